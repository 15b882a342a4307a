"""Functions shared by the readers: find a source's files, open their members, decode their text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.containers import archives, sniff
from data_prep.containers.streams import Member
from data_prep.document import Place, Report, Unreadable
from data_prep.user_error import NotFoundError, UserError

# A few stray NUL bytes are removed from a text. Bytes with a larger share of NULs are not text.
NUL_SHARE = 0.001


def find_files(source: SourceConfig, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files below the source's path that a reader can read, sorted by name.

    These are files with one of the suffixes, compressed or not, and archives. If the path is a
    file, that file is returned, whatever its name.

    Raises:
        NotFoundError: the path does not exist, or contains no such file.
        UserError: a file's name is not valid UTF-8.
    """
    root = Path(source.path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise NotFoundError(f"source path {root}: does not exist; check `path` in the corpus file")
    has_suffix = _has_suffix(suffixes)
    files = sorted(
        path
        for path in root.rglob("*")
        if (has_suffix(sniff.unpacked_name(path.name)) or sniff.is_archive_name(path.name)) and path.is_file()
    )
    for file in files:
        decoded = sniff.decode_name(str(file))
        if decoded != str(file):
            raise UserError(f"file {decoded}: its name is not valid UTF-8; rename it")
    if not files:
        raise NotFoundError(
            f"source path {root}: contains no {' or '.join(suffixes)} file, compressed or not, "
            "and no archive; check `path` and `reader` in the corpus file"
        )
    return files


def iter_members(
    name: str,
    source: SourceConfig,
    report: Report,
    paths: Sequence[Path],
    suffixes: tuple[str, ...],
    kinds: tuple[str | None, ...] = (None,),
) -> Iterator[Member]:
    """Yield the unpacked members of files.

    A member is quarantined if the kind of its content is not in `kinds`.

    Args:
        name: name of the source.
        paths: the source's files to read.
        suffixes: suffixes of the members to read; others are skipped.
        kinds: accepted kinds of content, such as "a PDF" (see sniff.binary_kind); None means text.
    """
    for path in paths:
        file = place_of(name, source, path)
        for member in archives.iter_members(path, file, _has_suffix(suffixes), source.limits, report):
            try:
                found = sniff.binary_kind(member.stream.peek(16)[:16])
            except Unreadable as fault:
                report.quarantine(member.place, fault)
                continue
            if found in kinds:
                yield member
            else:
                accepted = " or ".join(kind or "text" for kind in kinds)
                report.quarantine(member.place, f"is {found or 'text'} by its first bytes, not {accepted}")


def iter_contents(
    name: str,
    source: SourceConfig,
    report: Report,
    paths: Sequence[Path],
    suffixes: tuple[str, ...],
    kinds: tuple[str | None, ...] = (None,),
) -> Iterator[tuple[Place, bytes]]:
    """Yield the place and the whole content of each member of the files.

    Members that cannot be read are quarantined. The arguments are those of `iter_members`.
    """
    for member in iter_members(name, source, report, paths, suffixes, kinds):
        with report.quarantining(member.place):
            yield member.place, member.read_all()


def place_of(name: str, source: SourceConfig, path: Path) -> Place:
    """Return a file's place in a source.

    It contains the path relative to the source's path, so that ids stay the same if a source moves.

    Args:
        name: name of the source.
    """
    root = Path(source.path).absolute()
    path = path.absolute()
    is_below = path.is_relative_to(root) and path != root
    return Place(name, path.relative_to(root).as_posix() if is_below else path.name)


def id_from_place(place: Place) -> str:
    """Build a document's id from its place: the names of file and member, without suffixes."""
    parts = [sniff.unpacked_name(part) for part in (place.file, *place.member.split("!")) if part]
    return ":".join([*parts[:-1], str(Path(parts[-1]).with_suffix(""))])


def decode(raw: bytes, report: Report, declared: str = "") -> str:
    """Decode a document as UTF-8; if it is not UTF-8, in the encoding that it declares.

    If both fail, the bytes that are not valid UTF-8 are read as Windows-1252, the most common other
    encoding in Norwegian archives. Documents that are not UTF-8 are counted.

    Args:
        declared: the encoding that the document declares; "" if it declares none.

    Raises:
        Unreadable: the bytes are not text.
    """
    nuls = raw.count(0)
    if nuls:
        if nuls > max(1, len(raw) * NUL_SHARE):
            raise Unreadable(f"not text: {nuls} of its {len(raw)} bytes are NUL")
        report.counts["nul_bytes_removed"] += nuls
        raw = raw.replace(b"\0", b"")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        if declared and declared.lower().replace("_", "-") not in ("utf-8", "utf8"):
            try:
                text = raw.decode(declared)
                text.encode()  # fails on lone surrogates, which codecs such as unicode_escape can produce
            except (UnicodeError, LookupError):
                pass
            else:
                report.counts["decoded_as_declared"] += 1
                return text
        report.counts["decoded_as_cp1252"] += 1
        return raw.decode("utf-8-sig", errors="cp1252")


def _has_suffix(suffixes: tuple[str, ...]) -> archives.Wanted:
    return lambda name: name.lower().endswith(suffixes)
