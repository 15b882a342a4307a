"""Open a file from outside: yield its members, in order, whatever it is packed in. Called by the readers in
`finetune prepare`.

What a file is, its first bytes say, not its name. Nothing is unpacked to disk under a name of the archive's
choosing, and nothing is held in memory but one record. Whatever cannot be read, or should not be, goes into
the report's quarantine with its place, and reading goes on with what is left: members before a break are
kept, links, devices and names that leave the archive are refused, and a file that unpacks to more than the
limits allow ends there.
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
    Budget,
    Guarded,
    Inflater,
    Member,
    Readable,
    Tally,
    Window,
    as_utf8,
    break_off,
    raise_of_machine,
    size_of,
    spooled,
    zstd,
)
from data_prep.document import Place, Report, Unreadable

MAX_NAME_BYTES = 2**20  # of a tar header that extends a name; tarfile would read any size at once

Wanted = Callable[[str], bool]


def members(
    path: Path, file: Place, wanted: Wanted, limits: LimitsConfig, report: Report
) -> Iterator[Member]:
    """Yield what `path` holds, in its order. Members of archives whose unpacked name is not `wanted` are left
    out and counted.

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
    if not found and not any(
        broken.file == file.file and broken.source == file.source for broken in report.broken[-1000:]
    ):
        report.quarantine(file, "an archive without any file of the kind that this reader reads")


class _Container:
    def __init__(self, wanted: Wanted, limits: LimitsConfig, report: Report) -> None:
        self.wanted, self.limits, self.report = wanted, limits, report
        self.budget = Budget(limits)

    def open(self, raw: BinaryIO, place: Place, depth: int, path: Path | None = None) -> Iterator[Member]:
        """Yield the members of what `raw` reads.

        Raises:
            Unreadable: it breaks off.
        """
        stream = (
            raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, raw), CHUNK)
        )
        head = stream.peek(512)[:512]
        packed, is_zip, is_tar = sniff.packed_by(head), sniff.is_zip(head), sniff.is_tar(head)
        if (packed or is_zip or is_tar) and depth >= self.limits.max_depth:
            raise Unreadable(
                f"more than limits.max_depth={self.limits.max_depth} archives or compressed files in each other"
            )
        if packed:
            yield from self.open(self._unpacked(stream, packed), place, depth + 1)
        elif is_tar:
            yield from self._tar(stream, place, depth + 1)
        elif is_zip:
            yield from self._zip(path.open("rb") if path else spooled(stream, self.limits), place, depth + 1)
        else:
            text = as_utf8(stream, head)
            yield Member(place, text, self.report, self.limits, path if text is stream else None)

    def _unpacked(self, stream: io.BufferedReader, kind: str) -> BinaryIO:
        tally = Tally(stream)
        source = cast(BinaryIO, tally)
        opener: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open, "zstd": zstd.open}[kind]
        return cast(BinaryIO, Guarded(opener(source), self.budget, tally, kind))

    def _member(self, raw: BinaryIO, outer: Place, name: str, depth: int) -> Iterator[Member]:
        """Yield one member of an archive, or its members if it is one. Its faults are its own: the next one
        is read all the same."""
        place = replace(outer, member=f"{outer.member}!{name}" if outer.member else name)
        if sniff.is_unsafe(name):
            self.report.quarantine(place, "its name leaves the archive")
        elif sniff.is_litter(name) or not (
            self.wanted(sniff.unpacked_name(name)) or sniff.is_archive_name(name)
        ):
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
                    info.name = sniff.as_text(info.name)
                    outer = replace(
                        place, member=f"{place.member}!{info.name}" if place.member else info.name
                    )
                    if info.isdir():
                        continue
                    if not info.isreg() or info.issparse():
                        self.report.quarantine(outer, "a link, a device or a sparse file, not a plain one")
                        continue
                    data = archive.extractfile(info)
                    assert data is not None  # isreg() above
                    guarded = Guarded(cast(Readable, data), self.budget, None, "tar")
                    yield from self._member(cast(BinaryIO, guarded), place, info.name, depth)
                    if guarded.fault:
                        return  # the stream under it is at its end, and the member's place has been noted
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise_of_machine(error)
            raise (
                error if isinstance(error, Unreadable) else Unreadable(f"not a whole tar archive: {error}")
            ) from None

    def _zip(self, raw: BinaryIO, place: Place, depth: int) -> Iterator[Member]:
        with raw:
            try:
                archive = zipfile.ZipFile(raw)
            except (
                zipfile.BadZipFile,
                struct.error,
                ValueError,
                OSError,
                NotImplementedError,
                UnicodeError,
            ) as error:
                raise_of_machine(error)
                yield from self._zip_without_directory(raw, place, depth)
                raise Unreadable(f"the zip archive's directory cannot be read: {error}") from None
            with archive:
                for info in archive.infolist():
                    where = replace(
                        place, member=f"{place.member}!{info.filename}" if place.member else info.filename
                    )
                    if info.is_dir():
                        continue
                    if (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                        self.report.quarantine(where, "a link or a device, not a plain file")
                        continue
                    try:
                        data = archive.open(info)
                    except (
                        zipfile.BadZipFile,
                        RuntimeError,
                        NotImplementedError,
                        OSError,
                        EOFError,
                        ValueError,
                    ) as error:
                        raise_of_machine(error)
                        self.report.quarantine(where, f"cannot be unpacked: {error}")
                        continue
                    with closing(data):
                        guarded = Guarded(cast(Readable, data), self.budget, info.compress_size, "zip")
                        yield from self._member(cast(BinaryIO, guarded), place, info.filename, depth)

    def _zip_without_directory(self, raw: BinaryIO, place: Place, depth: int) -> Iterator[Member]:
        """Yield the whole members of a zip archive that breaks off: each stands behind a header with its name
        and size."""
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
            if flags & 0x9 or method not in (
                0,
                8,
            ):  # encrypted, or the size stands behind the data, where nothing leads to it
                return
            raw.seek(offset - size)
            if len(raw.read(1)) < min(size, 1) or raw.seek(0, io.SEEK_END) < offset:
                return
            raw.seek(offset - size)
            data: Readable = Window(raw, size)
            if method == 8:
                data = Inflater(data)
            if not name.endswith("/"):
                guarded = Guarded(data, self.budget, size, "zip")
                yield from self._member(cast(BinaryIO, guarded), place, name, depth)


class _TarInfo(tarfile.TarInfo):
    """tarfile takes a broken header in mid-archive for its end, in silence, and a long name's size for
    granted."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _TarInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.type in (b"x", b"g", b"X", b"L", b"K") and info.size > MAX_NAME_BYTES:
            raise Unreadable(f"a name of {size_of(info.size)} in a tar archive")
        return info

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _TarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise Unreadable(f"the tar archive breaks off: {error}") from None
