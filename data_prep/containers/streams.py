"""Streams that read unpacked data within limits, and raise Unreadable if the data is broken.

archives.py opens files as such streams; readers then read the members that it yields. At most one
record is held in memory.
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
# limits.max_ratio applies only to files that unpack to more bytes than this. Smaller files can have
# a high ratio without being decompression bombs, for example if they repeat one line.
RATIO_FROM = 16 * 2**20

_DATA_ERRORS = (
    EOFError, OSError, zlib.error, lzma.LZMAError, zstd.ZstdError, zipfile.BadZipFile,
    tarfile.TarError,
)  # fmt: skip

logger = logging.getLogger(__name__)


class Readable(Protocol):
    def read1(self, size: int = -1, /) -> bytes: ...


class Member:
    """An unpacked file, or an unpacked member of an archive.

    Attributes:
        place: its place in the source, for the report.
        stream: its content. Reading raises Unreadable where the data is truncated or corrupt.
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
        """Name of the member in its innermost archive, without compression suffixes."""
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
                f"is larger than {format_size(limit)}; raise limits.max_record_bytes if this is intended"
            )
        return data

    def iter_lines(self) -> Iterator[tuple[Place, bytes]]:
        """Yield the lines with their places.

        A line longer than limits.max_record_bytes is quarantined and skipped. If the data is
        truncated, the lines before that point are yielded and the rest is quarantined.
        """
        limit = self._limits.max_record_bytes
        for number in itertools.count(1):
            place = replace(self.place, at=f"line {number}")
            try:
                line = self.stream.readline(limit)
                if len(line) == limit and not line.endswith(b"\n"):
                    size = format_size(limit + self._skip_line())
                    self._report.quarantine(
                        place,
                        f"a line of {size} is too long; raise limits.max_record_bytes if this is intended",
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
        """Return a seekable stream of the content: the file itself if possible, else a copy."""
        if self._path is not None:
            return self._path.open("rb")
        return copy_to_seekable(self.stream, self._limits)


@dataclass
class Budget:
    """Limits on the unpacking of one source file.

    Attributes:
        unpacked: number of bytes unpacked so far, of the file and of all archives nested in it.
    """

    limits: LimitsConfig
    unpacked: int = 0


class CountingReader:
    """A stream of compressed bytes, which counts the bytes read from it."""

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
    """A stream of unpacked bytes that raises Unreadable if the data is broken or exceeds a limit.

    The bytes before the fault are returned first.

    Args:
        inner: the unpacked bytes.
        budget: limits of the source file, shared by all its streams.
        packed: the compressed size, to which limits.max_ratio applies. If the size is not known
            before reading, it is the CountingReader of the compressed data. None if the data is not
            compressed.
        kind: name of the format, for messages.
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
                f"unpacks to more than limits.max_unpacked_bytes={format_size(limits.max_unpacked_bytes)}; "
                "raise that limit if this is intended"
            )
        packed = self._packed.count if isinstance(self._packed, CountingReader) else self._packed
        if packed is None or self._count <= RATIO_FROM:
            return
        if self._count > limits.max_ratio * max(packed, 1):
            raise Unreadable(
                f"unpacks to more than limits.max_ratio={limits.max_ratio:g} times its size, "
                "like a decompression bomb; raise that limit if this is intended"
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
    """A stream that converts UTF-16 or UTF-32 to UTF-8, in which a line break is a single byte."""

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
    """Convert a stream in UTF-16 or UTF-32 to UTF-8; return any other stream unchanged.

    Args:
        head: the first bytes of the stream, from which the encoding is detected.
    """
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
        except OSError as error:  # the error alone does not show which disk is full
            raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from None
    copy.seek(0)
    return cast(BinaryIO, copy)


def reraise_machine_error(error: Exception) -> None:
    """Raise `error` if the machine caused it, such as a full disk; return if the data caused it.

    Otherwise, intact data would be quarantined because of the machine. An error without errno, or
    with EINVAL, is taken for an error of the data. Decompressors' errors have no errno,
    and EINVAL follows from a seek to a wrong offset that corrupt data contains.
    """
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error


def quarantine_rest(report: Report, place: Place, fault: Exception) -> None:
    """Quarantine the rest of a file, starting at `place`, and log a warning.

    The rest is counted as one broken record, because the number of records in it is unknown.
    """
    report.quarantine(place, fault)
    report.counts["broken_off"] += 1
    message = "%s: %s cannot be read to its end: %s; the records before this point are kept"
    logger.warning(message, place.source, place, fault)


def format_size(size: float) -> str:
    """Format a number of bytes for messages: "1.5 MiB" or "300 bytes"."""
    if size >= 2**20:
        return f"{size / 2**20:.1f} MiB"
    return f"{size:.0f} bytes"
