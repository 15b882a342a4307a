"""Streams of compressed data, read within limits; faults in the data raise Unreadable.

Used by archives.py, and by readers for the members that it yields. At most one record is held in
memory.
"""

from __future__ import annotations

import codecs
import errno
import io
import itertools
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
# Unpacked bytes from which limits.max_ratio applies: a small file may well repeat a single line.
RATIO_FROM = 16 * 2**20

_DATA_ERRORS = (
    EOFError, OSError, zlib.error, lzma.LZMAError, zstd.ZstdError, zipfile.BadZipFile,
    tarfile.TarError,
)  # fmt: skip

logger = logging.getLogger(__name__)


class Readable(Protocol):
    def read1(self, size: int = -1, /) -> bytes: ...


class Member:
    """An unpacked file, or a member of an archive.

    `stream` reads its bytes, and raises Unreadable where the data is truncated or corrupt.
    """

    def __init__(
        self, place: Place, stream: io.BufferedReader, report: Report, limits: LimitsConfig, path: Path | None
    ) -> None:
        self.place = place
        self.stream = stream
        self._report = report
        self._limits = limits
        self._path = path

    @property
    def name(self) -> str:
        """Innermost name, without compression suffixes."""
        return unpacked_name((self.place.member or self.place.file).rpartition("!")[2])

    def read_all(self) -> bytes:
        """Return the whole content.

        Raises:
            Unreadable: the data is truncated or corrupt, or larger than limits.max_record_bytes.
        """
        limit = self._limits.max_record_bytes
        data = self.stream.read(limit + 1)
        if len(data) > limit:
            raise Unreadable(
                f"larger than {format_size(limit)}; raise limits.max_record_bytes if this is intended"
            )
        return data

    def iter_lines(self) -> Iterator[tuple[Place, bytes]]:
        """Yield the lines with their places.

        A line that is too long is quarantined and skipped; lines end where the data is truncated.
        """
        limit = self._limits.max_record_bytes
        for number in itertools.count(1):
            place = replace(self.place, at=f"line {number}")
            try:
                line = self.stream.readline(limit)
                if len(line) == limit and not line.endswith(b"\n"):
                    size = format_size(limit + self._skip_line())
                    self._report.quarantine(
                        place, f"a line of {size}; raise limits.max_record_bytes if this is intended"
                    )
                    continue
            except Unreadable as fault:
                quarantine_rest(self._report, place, fault)
                return
            if not line:
                return
            yield place, line

    def _skip_line(self) -> int:
        size = 0
        while piece := self.stream.readline(CHUNK):
            size += len(piece)
            if piece.endswith(b"\n"):
                break
        return size

    def open_seekable(self) -> BinaryIO:
        """Return the content as a seekable stream: the file itself, or a temporary copy."""
        if self._path is not None:
            return self._path.open("rb")
        return copy_to_seekable(self.stream, self._limits)


@dataclass
class Budget:
    """Limits for one source file and everything nested in it, and the bytes unpacked so far."""

    limits: LimitsConfig
    unpacked: int = 0


class CountingReader:
    """A stream that counts the compressed bytes which a decompressor reads from it."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self.count = 0

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


class LimitedStream(io.RawIOBase):
    """A stream of unpacked bytes that raises Unreadable for any fault and when a limit is exceeded.

    The bytes before a fault are delivered first.

    Args:
        inner: the unpacked bytes.
        budget: of the source file; shared by all streams of it.
        packed: the compressed size for limits.max_ratio: known beforehand, or counted while
            reading; None where nothing is compressed.
        kind: name of the format for messages.
    """

    def __init__(
        self, inner: Readable, budget: Budget, packed: CountingReader | int | None, kind: str
    ) -> None:
        self._inner = inner
        self._budget = budget
        self._packed = packed
        self._kind = kind
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
            except _DATA_ERRORS as error:
                reraise_machine_error(error)
                self.fault = Unreadable(f"{self._kind} data is truncated or corrupt: {error}")
        if not filled and self.fault is not None:
            raise self.fault
        return filled

    def _check(self, new: int) -> None:
        limits = self._budget.limits
        self._count += new
        self._budget.unpacked += new
        if self._budget.unpacked > limits.max_unpacked_bytes:
            raise Unreadable(
                f"unpacks to more than limits.max_unpacked_bytes={format_size(limits.max_unpacked_bytes)}"
            )
        packed = self._packed.count if isinstance(self._packed, CountingReader) else self._packed
        if packed is None or self._count <= RATIO_FROM:
            return
        if self._count > limits.max_ratio * max(packed, 1):
            raise Unreadable(
                f"unpacks to more than limits.max_ratio={limits.max_ratio:g} times its size, "
                "as a decompression bomb does"
            )


class BoundedReader:
    """A stream of the next `size` bytes of a file."""

    def __init__(self, raw: BinaryIO, size: int) -> None:
        self._raw = raw
        self._left = size

    def read1(self, size: int = -1) -> bytes:
        data = self._raw.read(min(size if size > 0 else CHUNK, self._left))
        self._left -= len(data)
        return data


class Inflater:
    """A stream that decompresses raw deflate data in bounded chunks."""

    def __init__(self, inner: Readable) -> None:
        self._inner = inner
        self._inflate = zlib.decompressobj(-15)

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
    """A UTF-16 or UTF-32 stream as UTF-8, so that it can be split at line breaks."""

    def __init__(self, stream: io.BufferedReader, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            raw = self._stream.read1(CHUNK)
            self._rest = self._decoder.decode(raw, final=not raw).encode()
            if not raw:
                break
        piece = self._rest[: len(buffer)]
        self._rest = self._rest[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


def transcode_to_utf8(stream: io.BufferedReader, head: bytes) -> io.BufferedReader:
    """Return a stream in UTF-8, if its first bytes are UTF-16 or UTF-32; else the same stream."""
    encoding = wide_encoding(head)
    if encoding is None:
        return stream
    return io.BufferedReader(_Transcoded(stream, encoding), CHUNK)


def copy_to_seekable(stream: BinaryIO, limits: LimitsConfig) -> BinaryIO:
    """Return a seekable copy of a stream: in memory, or a temporary file if it is large."""
    copy = tempfile.SpooledTemporaryFile(max_size=limits.max_record_bytes)  # noqa: SIM115
    while piece := stream.read(CHUNK):
        try:
            copy.write(piece)
        except OSError as error:  # the error alone does not name the full disk
            raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from None
    copy.seek(0)
    return cast(BinaryIO, copy)


def reraise_machine_error(error: Exception) -> None:
    """Raise `error` if the machine caused it, not the data, as a disk that fails or is full does.

    Intact data must not be quarantined for such an error. Errors of decompressors have no errno,
    and a seek to an offset that corrupt data names has EINVAL: these return.
    """
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error


def quarantine_rest(report: Report, place: Place, fault: Exception) -> None:
    """Quarantine everything from `place` on as one broken record, and log a warning.

    The number of records that are lost is unknown.
    """
    report.quarantine(place, fault)
    report.counts["broken_off"] += 1
    message = "%s: %s cannot be read to its end: %s; records before it are kept"
    logger.warning(message, place.source, place, fault)


def format_size(size: float) -> str:
    """Return a number of bytes for messages, as "1.5 MiB" or "300 bytes"."""
    if size >= 2**20:
        return f"{size / 2**20:.1f} MiB"
    return f"{size:.0f} bytes"
