"""Detection of a file's kind from its first bytes, and checks of the names of archive members."""

from __future__ import annotations

import codecs

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
BINARY_KINDS = {
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
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def compression_of(head: bytes) -> str | None:
    """Return a file's compression format: gzip, bzip2, xz or zstd; None if it is not compressed."""
    return next((kind for magic, kind in COMPRESSIONS.items() if head.startswith(magic)), None)


def is_zip(head: bytes) -> bool:
    return head.startswith(ZIP)


def is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def binary_kind(head: bytes) -> str | None:
    """Return the kind of a binary file, such as "a PDF"; None if the file may be text."""
    return next((kind for magic, kind in BINARY_KINDS.items() if head.startswith(magic)), None)


def wide_encoding(head: bytes) -> str | None:
    """Return the encoding of a file in UTF-16 or UTF-32; None for any other file."""
    marked = next((name for bom, name in BYTE_ORDER_MARKS if head.startswith(bom)), None)
    if marked is not None or len(head) < 4 or binary_kind(head) is not None:
        return marked
    # UTF-16 without a byte order mark: one of the two bytes of each Latin letter is zero.
    even = head[0:64:2]
    odd = head[1:64:2]
    if all(even) and odd.count(0) > 0.7 * len(odd):
        return "utf-16-le"
    if all(odd) and even.count(0) > 0.7 * len(even):
        return "utf-16-be"
    return None


def unpacked_name(name: str) -> str:
    """Return a file's name without its compression suffixes."""
    for suffix in (".gz", ".zst", ".bz2", ".xz"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def is_archive_name(name: str) -> bool:
    return unpacked_name(name).lower().endswith((".tar", ".tgz", ".tbz2", ".tbz", ".txz", ".tzst", ".zip"))


def is_unsafe(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name


def is_macos_metadata(name: str) -> bool:
    """Return whether macOS has added this member to an archive, for example as a resource fork."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")


def decode_name(name: str) -> str:
    """Return a file's name in valid Unicode.

    Its bytes that are not UTF-8 are decoded as Windows-1252, an encoding of old archives.

    Args:
        name: the name as Python returns it, with invalid bytes as surrogates.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "cp1252")


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error("cp1252", _as_cp1252)
