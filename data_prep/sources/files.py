"""Functions of all readers: find a source's files, open their members, decode their text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.containers import archives, sniff
from data_prep.containers.streams import Member
from data_prep.document import Place, Report, Unreadable
from data_prep.user_error import NotFoundError, UserError

# A text may contain a few stray NUL bytes, which are removed. Above this share of NULs it is not a
# text.
NUL_SHARE = 0.001


def find_files(source: SourceConfig, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files below the source's path, or the path itself if it is a file, by name.

    Files with one of the suffixes are found, compressed or not, and archives.

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
    """Yield the files' unpacked members; members of other kinds are quarantined.

    Args:
        suffixes: of the files to read.
        kinds: accepted kinds of content by its first bytes, as sniff.binary_kind returns them; None
            for text.
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
                report.quarantine(member.place, f"{found or 'text'} by its first bytes, not {accepted}")


def iter_contents(
    name: str,
    source: SourceConfig,
    report: Report,
    paths: Sequence[Path],
    suffixes: tuple[str, ...],
    kinds: tuple[str | None, ...] = (None,),
) -> Iterator[tuple[Place, bytes]]:
    """Yield the members' places and whole contents; members that cannot be read are quarantined."""
    for member in iter_members(name, source, report, paths, suffixes, kinds):
        with report.quarantining(member.place):
            yield member.place, member.read_all()


def place_of(name: str, source: SourceConfig, path: Path) -> Place:
    """Return a file's place; its path is relative to the source's, so moving a source keeps ids."""
    root = Path(source.path).absolute()
    path = path.absolute()
    is_below = path.is_relative_to(root) and path != root
    return Place(name, path.relative_to(root).as_posix() if is_below else path.name)


def id_from_place(place: Place) -> str:
    """Return a document's id from its place: the names of file and member, without suffixes."""
    parts = [sniff.unpacked_name(part) for part in (place.file, *place.member.split("!")) if part]
    return ":".join([*parts[:-1], str(Path(parts[-1]).with_suffix(""))])


def decode(raw: bytes, report: Report, declared: str = "") -> str:
    """Return a document's bytes as text: decoded as UTF-8, or else in the encoding it declares.

    If neither decodes it, the bytes that are not valid UTF-8 are read as Windows-1252, the most
    common other encoding in Norwegian archives. Documents that are not UTF-8 are counted.

    Raises:
        Unreadable: the bytes are not text.
    """
    nuls = raw.count(0)
    if nuls:
        if nuls > max(1, len(raw) * NUL_SHARE):
            raise Unreadable(f"not a text: {nuls} of its {len(raw)} bytes are NUL")
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
