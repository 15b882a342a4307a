"""Files from outside as streams of named members, whatever they are packed in: gzip, zstd, bzip2, xz, tar, zip, in each other.

What a file is, its first bytes say, not its name. Nothing is unpacked to disk under a name of the archive's choosing, and nothing
is held in memory but one record. Whatever cannot be read, or should not be, goes into the report's quarantine with its place, and
reading goes on with what is left: members before a break are kept, links, devices and names that leave the archive are refused,
and a file that unpacks to more than the limits allow ends there.
"""

from __future__ import annotations

import bz2
import codecs
import errno
import gzip
import io
import logging
import lzma
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from data_prep.config import LimitsConfig
from data_prep.document import Place, Report, Unreadable

if sys.version_info >= (3, 14):
    from compression import zstd  # type: ignore[import-not-found]
else:
    from backports import zstd

CHUNK = 2**16
RATIO_FROM = 16 * 2**20  # unpacked bytes from which the ratio is looked at: small files may well be all alike
MAX_NAME_BYTES = 2**20  # of a tar header that extends a name; tarfile would read any size at once

PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
BINARY = {
    b"%PDF-": "a PDF",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"\x7fELF": "a program",
    b"MZ\x90": "a program",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it, or pack it as tar or zip",
    b"Rar!": "a RAR archive: unpack it, or pack it as tar or zip",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"SQLite format 3": "an SQLite database",
}
WIDE = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip

logger = logging.getLogger(__name__)


Wanted = Callable[[str], bool]


class _Readable(Protocol):
    def read1(self, size: int = -1, /) -> bytes: ...


class Member:
    """A file that is packed in nothing any more: `stream` reads its bytes, and raises Unreadable where it breaks off."""

    def __init__(self, place: Place, stream: io.BufferedReader, report: Report, limits: LimitsConfig, path: Path | None) -> None:
        self.place, self.stream = place, stream
        self._report, self._limits, self._path = report, limits, path

    @property
    def name(self) -> str:
        """The innermost name, without what it was packed by."""
        return unpacked_name((self.place.member or self.place.file).rpartition("!")[2])

    def whole(self) -> bytes:
        """All of it.

        Raises:
            Unreadable: it breaks off, or is larger than a record may be.
        """
        data = self.stream.read(self._limits.max_record_bytes + 1)
        if len(data) > self._limits.max_record_bytes:
            raise Unreadable(f"over {_size(self._limits.max_record_bytes)}: raise limits.max_record_bytes if this is no fault")
        return data

    def lines(self) -> Iterator[tuple[Place, bytes]]:
        """Its lines and their places. One that is too long is quarantined and stepped over; a break ends them."""
        limit, number = self._limits.max_record_bytes, 0
        while True:
            number += 1
            where = replace(self.place, at=f"line {number}")
            try:
                line = self.stream.readline(limit)
                if len(line) == limit and not line.endswith(b"\n"):
                    size = limit + self._skip_line()
                    too_long = f"a line of {_size(size)}: raise limits.max_record_bytes if this is no fault"
                    self._report.quarantine(where, too_long)
                    continue
            except Unreadable as fault:
                break_off(self._report, where, fault)
                return
            if not line:
                return
            yield where, line

    def _skip_line(self) -> int:
        size = 0
        while piece := self.stream.readline(CHUNK):
            size += len(piece)
            if piece.endswith(b"\n"):
                break
        return size

    def seekable(self) -> BinaryIO:
        """The same bytes for a format that must be read back and forth: the file itself, or a copy without a name on disk."""
        if self._path is not None:
            return self._path.open("rb")
        return _spooled(self.stream, self._limits)


def members(path: Path, file: Place, wanted: Wanted, limits: LimitsConfig, report: Report) -> Iterator[Member]:
    """What `path` holds, in its order. Members of archives whose unpacked name is not `wanted` are left out and counted.

    A member must be read before the next one is asked for.
    """
    found = False
    with path.open("rb") as raw:
        try:
            for member in _Container(wanted, limits, report).open(raw, file, 0, path):
                found = True
                yield member
        except Unreadable as fault:
            break_off(report, file, fault)
            return
    if not found and not any(broken.file == file.file and broken.source == file.source for broken in report.broken[-1000:]):
        report.quarantine(file, "an archive without any file of the kind that this reader reads")


def unpacked_name(name: str) -> str:
    """A name without the endings that say what it is packed by."""
    for ending in (".gz", ".zst", ".bz2", ".xz"):
        name = name[: -len(ending)] if name.lower().endswith(ending) else name
    return name


def is_archive_name(name: str) -> bool:
    return unpacked_name(name).lower().endswith((".tar", ".tgz", ".tbz2", ".tbz", ".txz", ".tzst", ".zip"))


class _Container:
    def __init__(self, wanted: Wanted, limits: LimitsConfig, report: Report) -> None:
        self.wanted, self.limits, self.report = wanted, limits, report
        self.unpacked = 0

    def open(self, raw: BinaryIO, place: Place, depth: int, path: Path | None = None) -> Iterator[Member]:
        """The members of what `raw` reads.

        Raises:
            Unreadable: it breaks off.
        """
        stream = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, raw), CHUNK)
        head = stream.peek(512)[:512]
        packed = next((kind for magic, kind in PACKED.items() if head.startswith(magic)), None)
        is_zip, is_tar = head.startswith(ZIP), head[257:262] == b"ustar"
        if (packed or is_zip or is_tar) and depth >= self.limits.max_depth:
            raise Unreadable(f"more than limits.max_depth={self.limits.max_depth} archives or compressed files in each other")
        if packed:
            yield from self.open(self._unpacked(stream, packed), place, depth + 1)
        elif is_tar:
            yield from self._tar(stream, place, depth + 1)
        elif is_zip:
            yield from self._zip(path.open("rb") if path else _spooled(stream, self.limits), place, depth + 1)
        else:
            text = _as_utf8(stream, head)
            yield Member(place, text, self.report, self.limits, path if text is stream else None)

    def _unpacked(self, stream: io.BufferedReader, kind: str) -> BinaryIO:
        tally = _Tally(stream)
        source = cast(BinaryIO, tally)
        opener: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open, "zstd": zstd.open}[kind]
        return cast(BinaryIO, _Guarded(opener(source), self, tally, kind))

    def _member(self, raw: BinaryIO, outer: Place, name: str, depth: int) -> Iterator[Member]:
        """One member of an archive, which may be an archive. Its faults are its own: the next one is read all the same."""
        place = replace(outer, member=f"{outer.member}!{name}" if outer.member else name)
        if _is_unsafe(name):
            self.report.quarantine(place, "its name leaves the archive")
        elif _is_litter(name) or not (self.wanted(unpacked_name(name)) or is_archive_name(name)):
            self.report.counts["members_of_other_kinds"] += 1
        else:
            try:
                yield from self.open(raw, place, depth)
            except Unreadable as fault:
                break_off(self.report, place, fault)

    def _tar(self, stream: io.BufferedReader, place: Place, depth: int) -> Iterator[Member]:
        try:
            with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK, tarinfo=_TarInfo) as archive:
                for info in archive:
                    info.name = as_text(info.name)
                    outer = replace(place, member=f"{place.member}!{info.name}" if place.member else info.name)
                    if info.isdir():
                        continue
                    if not info.isreg() or info.issparse():
                        self.report.quarantine(outer, "a link, a device or a sparse file, not a plain one")
                        continue
                    data = archive.extractfile(info)
                    assert data is not None  # isreg() above
                    guarded = _Guarded(cast(_Readable, data), self, None, "tar")
                    yield from self._member(cast(BinaryIO, guarded), place, info.name, depth)
                    if guarded.fault:
                        return  # the stream under it is at its end, and the member's place has been noted
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise_of_machine(error)
            raise error if isinstance(error, Unreadable) else Unreadable(f"not a whole tar archive: {error}") from None

    def _zip(self, raw: BinaryIO, place: Place, depth: int) -> Iterator[Member]:
        with raw:
            try:
                archive = zipfile.ZipFile(raw)
            except (zipfile.BadZipFile, struct.error, ValueError, OSError, NotImplementedError, UnicodeError) as error:
                raise_of_machine(error)
                yield from self._zip_without_directory(raw, place, depth)
                raise Unreadable(f"the zip archive's directory cannot be read: {error}") from None
            with archive:
                for info in archive.infolist():
                    where = replace(place, member=f"{place.member}!{info.filename}" if place.member else info.filename)
                    if info.is_dir():
                        continue
                    if (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                        self.report.quarantine(where, "a link or a device, not a plain file")
                        continue
                    try:
                        data = archive.open(info)
                    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError, ValueError) as error:
                        raise_of_machine(error)
                        self.report.quarantine(where, f"cannot be unpacked: {error}")
                        continue
                    with closing(data):
                        guarded = _Guarded(cast(_Readable, data), self, info.compress_size, "zip")
                        yield from self._member(cast(BinaryIO, guarded), place, info.filename, depth)

    def _zip_without_directory(self, raw: BinaryIO, place: Place, depth: int) -> Iterator[Member]:
        """Of a zip archive that breaks off, the members that are whole: each stands behind a header with its name and size."""
        offset = 0
        while True:
            raw.seek(offset)
            header = raw.read(30)
            if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
                return
            flags, method = struct.unpack("<HH", header[6:10])
            size, _, name_length, extra_length = struct.unpack("<IIHH", header[18:30])
            name = raw.read(name_length).decode("utf-8" if flags & 0x800 else "cp437", "replace")
            offset += 30 + name_length + extra_length + size
            if flags & 0x9 or method not in (0, 8):  # encrypted, or the size stands behind the data, where nothing leads to it
                return
            raw.seek(offset - size)
            if len(raw.read(1)) < min(size, 1) or not _reaches(raw, offset):
                return
            raw.seek(offset - size)
            data: _Readable = _Window(raw, size)
            if method == 8:
                data = _Inflater(data)
            if not name.endswith("/"):
                guarded = _Guarded(data, self, size, "zip")
                yield from self._member(cast(BinaryIO, guarded), place, name, depth)


class _TarInfo(tarfile.TarInfo):
    """tarfile takes a broken header in mid-archive for its end, in silence, and a long name's size for granted."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _TarInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.type in (b"x", b"g", b"X", b"L", b"K") and info.size > MAX_NAME_BYTES:
            raise Unreadable(f"a name of {_size(info.size)} in a tar archive")
        return info

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _TarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise Unreadable(f"the tar archive breaks off: {error}") from None


class _Tally:
    """Counts what a decompressor takes from the stream under it."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream, self.count = stream, 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read1(size if size > 0 else CHUNK)
        self.count += len(data)
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        pass


class _Guarded(io.RawIOBase):
    """A stream whose every fault is Unreadable, raised once all before it has been read, and which ends at the limits."""

    def __init__(self, inner: _Readable, container: _Container, packed: _Tally | int | None, kind: str) -> None:
        self._inner, self._container, self._packed, self._kind = inner, container, packed, kind
        self._count = 0
        self.fault: Unreadable | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer) and self.fault is None:
            try:
                piece = self._inner.read1(min(len(buffer) - filled, CHUNK))
                if not piece:
                    break
                buffer[filled : filled + len(piece)] = piece
                filled += len(piece)
                self._check(len(piece))
            except Unreadable as fault:
                self.fault = fault
            except (EOFError, OSError, zlib.error, lzma.LZMAError, zstd.ZstdError, zipfile.BadZipFile, tarfile.TarError) as error:
                raise_of_machine(error)
                self.fault = Unreadable(f"{self._kind} breaks off or is broken: {error}")
        if not filled and self.fault is not None:
            raise self.fault
        return filled

    def _check(self, new: int) -> None:
        limits = self._container.limits
        self._count += new
        self._container.unpacked += new
        if self._container.unpacked > limits.max_unpacked_bytes:
            raise Unreadable(f"unpacks to more than limits.max_unpacked_bytes={_size(limits.max_unpacked_bytes)}")
        packed = self._packed.count if isinstance(self._packed, _Tally) else self._packed
        if packed is not None and self._count > RATIO_FROM and self._count > limits.max_ratio * max(packed, 1):
            raise Unreadable(f"unpacks to over limits.max_ratio={limits.max_ratio:g} times its size, like a decompression bomb")


class _Window:
    """The next `size` bytes of a file."""

    def __init__(self, raw: BinaryIO, size: int) -> None:
        self._raw, self._left = raw, size

    def read1(self, size: int = -1) -> bytes:
        data = self._raw.read(min(size if size > 0 else CHUNK, self._left))
        self._left -= len(data)
        return data


class _Inflater:
    """Raw deflate data, unpacked in bounded pieces."""

    def __init__(self, inner: _Readable) -> None:
        self._inner, self._inflate = inner, zlib.decompressobj(-15)

    def read1(self, size: int = -1) -> bytes:
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._inner.read1(CHUNK)
            data = self._inflate.decompress(packed, size if size > 0 else CHUNK)
            if data:
                return data
            if not packed:
                raise EOFError("the data ends early")
        return b""


class _Transcoded(io.RawIOBase):
    """UTF-16 or UTF-32 as UTF-8, so that lines end where they should."""

    def __init__(self, stream: io.BufferedReader, encoding: str) -> None:
        self._stream, self._decoder = stream, codecs.getincrementaldecoder(encoding)("replace")
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            raw = self._stream.read1(CHUNK)
            self._rest = self._decoder.decode(raw, final=not raw).encode()
            if not raw:
                break
        piece, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


def kind_of(head: bytes) -> str | None:
    """What a file is by its first bytes, if that is not text: "a PDF", "a PNG picture" …"""
    return next((kind for magic, kind in BINARY.items() if head.startswith(magic)), None)


def _as_utf8(stream: io.BufferedReader, head: bytes) -> io.BufferedReader:
    encoding = next((name for bom, name in WIDE if head.startswith(bom)), None)
    if encoding is None and len(head) >= 4 and kind_of(head) is None:
        # Without a mark: of most letters of Latin scripts, every other byte is zero.
        even, odd = head[0:64:2], head[1:64:2]
        if all(even) and odd.count(0) > 0.7 * len(odd):
            encoding = "utf-16-le"
        elif all(odd) and even.count(0) > 0.7 * len(even):
            encoding = "utf-16-be"
    return io.BufferedReader(_Transcoded(stream, encoding), CHUNK) if encoding else stream


def _spooled(stream: BinaryIO, limits: LimitsConfig) -> BinaryIO:
    copy = tempfile.SpooledTemporaryFile(max_size=limits.max_record_bytes)  # noqa: SIM115
    while piece := stream.read(CHUNK):
        try:
            copy.write(piece)
        except OSError as error:  # it does not say which disk is full
            raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from None
    copy.seek(0)
    return cast(BinaryIO, copy)


def _reaches(raw: BinaryIO, offset: int) -> bool:
    return raw.seek(0, io.SEEK_END) >= offset


def as_text(name: str) -> str:
    """A file's name that may be no UTF-8, as in archives from before: its stray bytes are taken for Windows-1252."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "cp1252")


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error("cp1252", _as_cp1252)


def _is_unsafe(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name


def _is_litter(name: str) -> bool:
    """What macOS puts beside files."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")


def raise_of_machine(error: Exception) -> None:
    """Raise an error that is the machine's and not the data's (a disk that fails or is full, a server that does not answer): what
    is well there must not be given up as broken. Decompressors' errors have no number, and a seek to where a file's own bytes
    point has EINVAL."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error


def break_off(report: Report, place: Place, fault: Exception) -> None:
    """An unknown number of records is lost behind a break: it is one broken record, but somebody should hear of it."""
    report.quarantine(place, fault)
    report.counts["broken_off"] += 1
    logger.warning("%s: %s breaks off: %s; what came before is kept", place.source, place, fault)


def _size(number: float) -> str:
    return f"{number / 2**20:.1f} MiB" if number >= 2**20 else f"{number:.0f} bytes"
