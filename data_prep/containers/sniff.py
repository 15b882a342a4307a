"""What a file is, by its first bytes or by its name, and whether a name can be trusted. Opens nothing."""

from __future__ import annotations

import codecs

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
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def packed_by(head: bytes) -> str | None:
    """Return what a file is compressed by: gzip, bzip2, xz or zstd; None if it is not."""
    return next((kind for magic, kind in PACKED.items() if head.startswith(magic)), None)


def is_zip(head: bytes) -> bool:
    return head.startswith(ZIP)


def is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def kind_of(head: bytes) -> str | None:
    """Return what a file is by its first bytes, if that is not text: "a PDF", "a PNG picture" …"""
    return next((kind for magic, kind in BINARY.items() if head.startswith(magic)), None)


def wide_encoding(head: bytes) -> str | None:
    """Return the encoding of a text in UTF-16 or UTF-32; None of any other."""
    marked = next((name for bom, name in WIDE if head.startswith(bom)), None)
    if marked is not None or len(head) < 4 or kind_of(head) is not None:
        return marked
    # Without a mark: of most letters of Latin scripts, every other byte is zero.
    even, odd = head[0:64:2], head[1:64:2]
    if all(even) and odd.count(0) > 0.7 * len(odd):
        return "utf-16-le"
    return "utf-16-be" if all(odd) and even.count(0) > 0.7 * len(even) else None


def unpacked_name(name: str) -> str:
    """Return a name without the endings that say what it is packed by."""
    for ending in (".gz", ".zst", ".bz2", ".xz"):
        name = name[: -len(ending)] if name.lower().endswith(ending) else name
    return name


def is_archive_name(name: str) -> bool:
    return unpacked_name(name).lower().endswith((".tar", ".tgz", ".tbz2", ".tbz", ".txz", ".tzst", ".zip"))


def is_unsafe(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name


def is_litter(name: str) -> bool:
    """Return whether a file is one that macOS puts beside others."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")


def as_text(name: str) -> str:
    """Return a file's name that may be no UTF-8, as in old archives: its stray bytes are taken for
    Windows-1252."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "cp1252")


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error("cp1252", _as_cp1252)
