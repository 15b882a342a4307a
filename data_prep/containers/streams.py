"""Streams of what is packed, read piece by piece within limits, and with every fault turned into Unreadable.

Used by archives.py, and by readers for the members that it yields. Nothing is held in memory but one record.
"""

from __future__ import annotations

import codecs
import errno
import io
import logging
import lzma
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from data_prep.config import LimitsConfig
from data_prep.containers.sniff import unpacked_name, wide_encoding
from data_prep.document import Place, Report, Unreadable

if sys.version_info >= (3, 14):
    from compression import zstd as zstd  # type: ignore[import-not-found]
else:
    from backports import zstd as zstd

CHUNK = 2**16
RATIO_FROM = 16 * 2**20  # unpacked bytes from which the ratio is looked at: small files may well be all alike

logger = logging.getLogger(__name__)


class Readable(Protocol):
    def read1(self, size: int = -1, /) -> bytes: ...


class Member:
    """A file that is packed in nothing any more: `stream` reads its bytes, and raises Unreadable where it
    breaks off."""

    def __init__(
        self, place: Place, stream: io.BufferedReader, report: Report, limits: LimitsConfig, path: Path | None
    ) -> None:
        self.place, self.stream = place, stream
        self._report, self._limits, self._path = report, limits, path

    @property
    def name(self) -> str:
        """Return the innermost name, without what it was packed by."""
        return unpacked_name((self.place.member or self.place.file).rpartition("!")[2])

    def whole(self) -> bytes:
        """Return all of it.

        Raises:
            Unreadable: it breaks off, or is larger than a record may be.
        """
        data = self.stream.read(self._limits.max_record_bytes + 1)
        if len(data) > self._limits.max_record_bytes:
            raise Unreadable(
                f"over {size_of(self._limits.max_record_bytes)}: raise limits.max_record_bytes if this is no fault"
            )
        return data

    def lines(self) -> Iterator[tuple[Place, bytes]]:
        """Yield its lines and their places. One that is too long is quarantined and stepped over; a break
        ends them."""
        limit, number = self._limits.max_record_bytes, 0
        while True:
            number += 1
            where = replace(self.place, at=f"line {number}")
            try:
                line = self.stream.readline(limit)
                if len(line) == limit and not line.endswith(b"\n"):
                    size = limit + self._skip_line()
                    too_long = f"a line of {size_of(size)}: raise limits.max_record_bytes if this is no fault"
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
        """Open the same bytes for a format that must be read back and forth: the file itself, or a copy
        without a name on disk."""
        if self._path is not None:
            return self._path.open("rb")
        return spooled(self.stream, self._limits)


@dataclass
class Budget:
    """What may be unpacked of one file, with all that is packed in it, and what was so far."""

    limits: LimitsConfig
    unpacked: int = 0


class Tally:
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


class Guarded(io.RawIOBase):
    """A stream whose every fault is Unreadable, raised once all before it has been read, and which ends at
    the limits."""

    def __init__(self, inner: Readable, budget: Budget, packed: Tally | int | None, kind: str) -> None:
        self._inner, self._budget = inner, budget
        self._packed, self._kind = packed, kind
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
            except (
                EOFError,
                OSError,
                zlib.error,
                lzma.LZMAError,
                zstd.ZstdError,
                zipfile.BadZipFile,
                tarfile.TarError,
            ) as error:
                raise_of_machine(error)
                self.fault = Unreadable(f"{self._kind} breaks off or is broken: {error}")
        if not filled and self.fault is not None:
            raise self.fault
        return filled

    def _check(self, new: int) -> None:
        limits = self._budget.limits
        self._count += new
        self._budget.unpacked += new
        if self._budget.unpacked > limits.max_unpacked_bytes:
            raise Unreadable(
                f"unpacks to more than limits.max_unpacked_bytes={size_of(limits.max_unpacked_bytes)}"
            )
        packed = self._packed.count if isinstance(self._packed, Tally) else self._packed
        if (
            packed is not None
            and self._count > RATIO_FROM
            and self._count > limits.max_ratio * max(packed, 1)
        ):
            raise Unreadable(
                f"unpacks to over limits.max_ratio={limits.max_ratio:g} times its size, like a decompression bomb"
            )


class Window:
    """The next `size` bytes of a file."""

    def __init__(self, raw: BinaryIO, size: int) -> None:
        self._raw, self._left = raw, size

    def read1(self, size: int = -1) -> bytes:
        data = self._raw.read(min(size if size > 0 else CHUNK, self._left))
        self._left -= len(data)
        return data


class Inflater:
    """Raw deflate data, unpacked in bounded pieces."""

    def __init__(self, inner: Readable) -> None:
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


def as_utf8(stream: io.BufferedReader, head: bytes) -> io.BufferedReader:
    """Return a stream of UTF-8 where this one is UTF-16 or UTF-32, by its first bytes; else the stream
    itself."""
    encoding = wide_encoding(head)
    return io.BufferedReader(_Transcoded(stream, encoding), CHUNK) if encoding else stream


def spooled(stream: BinaryIO, limits: LimitsConfig) -> BinaryIO:
    """Return a copy that can be read back and forth: in memory, or without a name on disk where it is
    large."""
    copy = tempfile.SpooledTemporaryFile(max_size=limits.max_record_bytes)  # noqa: SIM115
    while piece := stream.read(CHUNK):
        try:
            copy.write(piece)
        except OSError as error:  # it does not say which disk is full
            raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from None
    copy.seek(0)
    return cast(BinaryIO, copy)


def raise_of_machine(error: Exception) -> None:
    """Raise an error that is the machine's and not the data's (a disk that fails or is full, a server that
    does not answer): what is well there must not be given up as broken. Decompressors' errors have no number,
    and a seek to where a file's own bytes point has EINVAL."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error


def break_off(report: Report, place: Place, fault: Exception) -> None:
    """Quarantine a place behind which an unknown number of records is lost: one broken record, with a
    warning."""
    report.quarantine(place, fault)
    report.counts["broken_off"] += 1
    logger.warning("%s: %s breaks off: %s; what came before is kept", place.source, place, fault)


def size_of(number: float) -> str:
    """Return a number of bytes in words."""
    return f"{number / 2**20:.1f} MiB" if number >= 2**20 else f"{number:.0f} bytes"
