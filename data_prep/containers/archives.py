"""Unpacking of source files for the readers: `iter_members` yields a file's decompressed members.

A file is decompressed or unpacked if its first bytes are those of a supported format; its name does
not matter. No file is written under a name taken from an archive, and at most one record is held in
memory.

A file or member that cannot be read is quarantined: it is left out, and listed in the report.
Reading continues with the next one. If an archive is truncated, the members before that point are
kept. Links, devices and names that point outside the archive are refused. A file that unpacks to
more than the limits allow is read up to the limit.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_prep.config import LimitsConfig
from data_prep.containers import sniff
from data_prep.containers.streams import (
    CHUNK,
    BoundedReader,
    Budget,
    CountingReader,
    Inflater,
    LimitedStream,
    Member,
    Readable,
    copy_to_seekable,
    format_size,
    quarantine_rest,
    reraise_machine_error,
    transcode_to_utf8,
    zstd,
)
from data_prep.document import Place, Report, Unreadable

# Maximum size of a tar header with a long name. tarfile itself has no limit, and reads such a
# header into memory at once.
MAX_NAME_BYTES = 2**20

_ZIP_DIRECTORY_ERRORS = (
    zipfile.BadZipFile, struct.error, ValueError, OSError, NotImplementedError, UnicodeError,
)  # fmt: skip
_ZIP_MEMBER_ERRORS = (
    zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError, ValueError,
)  # fmt: skip

Wanted = Callable[[str], bool]


def iter_members(
    path: Path, file: Place, wanted: Wanted, limits: LimitsConfig, report: Report
) -> Iterator[Member]:
    """Yield the members of the file at `path`, in the order of the archive.

    A file that is not an archive is yielded as a single member. Each member must be read before the
    next one is requested.

    Args:
        file: the file's place in its source, for the report.
        wanted: a function that takes a member's name without compression suffixes, and returns
            whether the member is read. Other members of archives are skipped and counted, unless
            they are archives themselves.
        report: receives the counts, and the members that cannot be read.
    """
    found = False
    with path.open("rb") as raw:
        try:
            for member in _Container(wanted, limits, report).open(raw, file, 0, path):
                found = True
                yield member
        except Unreadable as fault:
            quarantine_rest(report, file, fault)
            return
    if not found:
        recent = report.broken[-1000:]
        if not any(broken.file == file.file and broken.source == file.source for broken in recent):
            report.quarantine(file, "the archive contains no file of a kind that this reader accepts")


class _Container:
    def __init__(self, wanted: Wanted, limits: LimitsConfig, report: Report) -> None:
        self.wanted = wanted
        self.limits = limits
        self.report = report
        self.budget = Budget(limits)

    def open(self, raw: BinaryIO, place: Place, depth: int, path: Path | None = None) -> Iterator[Member]:
        """Yield the members of a stream.

        A stream that is not an archive is yielded as a single member.

        Args:
            place: the stream's place, for the report.
            depth: number of archives and compressed files that the stream is nested in.
            path: the file that the stream reads; None if the stream is unpacked data.

        Raises:
            Unreadable: the stream is truncated or corrupt, or exceeds a limit.
        """
        if isinstance(raw, io.BufferedReader):
            stream = raw
        else:
            stream = io.BufferedReader(cast(io.RawIOBase, raw), CHUNK)
        head = stream.peek(512)[:512]
        compression = sniff.compression_of(head)
        is_tar = sniff.is_tar(head)
        is_zip = sniff.is_zip(head)
        if (compression or is_zip or is_tar) and depth >= self.limits.max_depth:
            raise Unreadable(
                "archives or compressed files are nested deeper than "
                f"limits.max_depth={self.limits.max_depth}; raise that limit if this is intended"
            )
        if compression:
            yield from self.open(self._decompress(stream, compression), place, depth + 1)
        elif is_tar:
            yield from self._iter_tar(stream, place, depth + 1)
        elif is_zip:
            seekable = path.open("rb") if path else copy_to_seekable(stream, self.limits)
            yield from self._iter_zip(seekable, place, depth + 1)
        else:
            text = transcode_to_utf8(stream, head)
            if text is not stream:
                path = None  # readers that open the file itself would read UTF-16 or UTF-32
            yield Member(place, text, self.report, self.limits, path)

    def _decompress(self, stream: io.BufferedReader, compression: str) -> BinaryIO:
        counting = CountingReader(stream)
        openers: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open, "zstd": zstd.open}
        decompressed = openers[compression](cast(BinaryIO, counting))
        return cast(BinaryIO, LimitedStream(decompressed, self.budget, counting, compression))

    def _iter_member(self, raw: BinaryIO, outer: Place, name: str, depth: int) -> Iterator[Member]:
        """Yield one member of an archive; if it is an archive itself, yield the members in it.

        A member that cannot be read is quarantined; the archive's next member can still be read.
        """
        place = _place_in(outer, name)
        if sniff.is_unsafe(name):
            self.report.quarantine(place, "the member's name points outside the archive")
        elif self._is_skipped(name):
            self.report.counts["members_of_other_kinds"] += 1
        else:
            try:
                yield from self.open(raw, place, depth)
            except Unreadable as fault:
                quarantine_rest(self.report, place, fault)

    def _is_skipped(self, name: str) -> bool:
        if sniff.is_macos_metadata(name):
            return True
        return not self.wanted(sniff.unpacked_name(name)) and not sniff.is_archive_name(name)

    def _iter_tar(self, stream: io.BufferedReader, place: Place, depth: int) -> Iterator[Member]:
        try:
            with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK, tarinfo=_TarInfo) as archive:
                for info in archive:
                    info.name = sniff.decode_name(info.name)
                    if info.isdir():
                        continue
                    if not info.isreg() or info.issparse():
                        member_place = _place_in(place, info.name)
                        self.report.quarantine(
                            member_place, "is a link, device or sparse file; only regular files are read"
                        )
                        continue
                    data = archive.extractfile(info)
                    assert data is not None  # isreg() above
                    limited = LimitedStream(cast(Readable, data), self.budget, None, "tar")
                    yield from self._iter_member(cast(BinaryIO, limited), place, info.name, depth)
                    if limited.fault:
                        return  # no later member can be read; this one is already quarantined
        except Unreadable:
            raise
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            reraise_machine_error(error)
            raise Unreadable(f"the tar archive is truncated or corrupt: {error}") from None

    def _iter_zip(self, raw: BinaryIO, place: Place, depth: int) -> Iterator[Member]:
        with raw:
            try:
                archive = zipfile.ZipFile(raw)
            except _ZIP_DIRECTORY_ERRORS as error:
                reraise_machine_error(error)
                yield from self._iter_zip_without_directory(raw, place, depth)
                raise Unreadable(f"the zip archive's directory cannot be read: {error}") from None
            with archive:
                for info in archive.infolist():
                    if info.is_dir():
                        continue
                    member_place = _place_in(place, info.filename)
                    if (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                        self.report.quarantine(
                            member_place, "is a link or device; only regular files are read"
                        )
                        continue
                    try:
                        data = archive.open(info)
                    except _ZIP_MEMBER_ERRORS as error:
                        reraise_machine_error(error)
                        self.report.quarantine(member_place, f"cannot be unpacked: {error}")
                        continue
                    with closing(data):
                        limited = LimitedStream(cast(Readable, data), self.budget, info.compress_size, "zip")
                        yield from self._iter_member(cast(BinaryIO, limited), place, info.filename, depth)

    def _iter_zip_without_directory(self, raw: BinaryIO, place: Place, depth: int) -> Iterator[Member]:
        """Yield the members of a zip archive whose central directory is missing or broken.

        The members are found by their local headers, one after another. Reading stops at the first
        member that is truncated, encrypted, compressed with an unsupported method, or of
        unknown size.
        """
        offset = 0
        while True:
            raw.seek(offset)
            header = raw.read(30)
            if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
                return
            flags, method = struct.unpack("<HH", header[6:10])
            size, _, name_length, extra_length = struct.unpack("<IIHH", header[18:30])
            is_utf8 = bool(flags & 0x800)
            name = raw.read(name_length).decode("utf-8" if is_utf8 else "cp437", "replace")
            offset += 30 + name_length + extra_length + size
            # Stop at a member that is encrypted, or whose size is stored after its data (bit 3):
            # the end of its data is then unknown.
            if flags & 0x9 or method not in (0, 8):
                return
            raw.seek(offset - size)
            if len(raw.read(1)) < min(size, 1) or raw.seek(0, io.SEEK_END) < offset:
                return
            raw.seek(offset - size)
            data: Readable = BoundedReader(raw, size)
            if method == 8:
                data = Inflater(data)
            if not name.endswith("/"):
                limited = LimitedStream(data, self.budget, size, "zip")
                yield from self._iter_member(cast(BinaryIO, limited), place, name, depth)


def _place_in(archive: Place, name: str) -> Place:
    return replace(archive, member=f"{archive.member}!{name}" if archive.member else name)


class _TarInfo(tarfile.TarInfo):
    """A tar header whose parsing raises Unreadable if the header is broken or its name too long.

    tarfile alone treats a broken header within an archive as the archive's end, without an error,
    and reads a member name of any size into memory.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _TarInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.type in (b"x", b"g", b"X", b"L", b"K") and info.size > MAX_NAME_BYTES:
            size = format_size(info.size)
            limit = format_size(MAX_NAME_BYTES)
            raise Unreadable(f"the tar archive contains a member name of {size}, longer than {limit}")
        return info

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _TarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise Unreadable(f"the tar archive is truncated or corrupt: {error}") from None
