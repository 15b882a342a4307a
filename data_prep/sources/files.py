"""What every reader shares: finding files in a fixed order, and their members, lines and text without losing
a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.containers import archives, sniff
from data_prep.containers.streams import Member
from data_prep.document import Place, Report, Unreadable
from data_prep.user_error import NotFoundError, UserError

# A text may hold a stray NUL, which means nothing. One in a thousand bytes, and it is no text.
NUL_SHARE = 0.001


def find_files(source: SourceConfig, suffixes: tuple[str, ...]) -> list[Path]:
    """Files under the source's path (or the path itself) in name order: with one of the suffixes, packed or
    not, and archives.

    Raises:
        NotFoundError: the path does not exist, or holds no such file.
    """
    root = Path(source.path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise NotFoundError(f"source path {root} does not exist: check `path` in the corpus file")
    wanted = _wanted(suffixes)
    files = sorted(
        p
        for p in root.rglob("*")
        if (wanted(sniff.unpacked_name(p.name)) or sniff.is_archive_name(p.name)) and p.is_file()
    )
    if strange := next((path for path in files if sniff.decode_name(str(path)) != str(path)), None):
        raise UserError(
            f"source path {root} holds a file whose name is no UTF-8, {sniff.decode_name(str(strange))}: rename it"
        )
    if not files:
        raise NotFoundError(
            f"source path {root} holds no {' or '.join(suffixes)} file, packed or not, and no archive"
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
    """What the files hold, unpacked. What is of none of the kinds by its first bytes, None for text, is
    quarantined."""
    for path in paths:
        for member in archives.iter_members(
            path, place_of(name, source, path), _wanted(suffixes), source.limits, report
        ):
            try:
                found = sniff.binary_kind(member.stream.peek(16)[:16])
            except Unreadable as fault:
                report.quarantine(member.place, fault)
                continue
            if found not in kinds:
                wanted = " or ".join(kind or "text" for kind in kinds)
                report.quarantine(member.place, f"{found or 'text'} by its first bytes, not {wanted}")
            else:
                yield member


def iter_contents(
    name: str,
    source: SourceConfig,
    report: Report,
    paths: Sequence[Path],
    suffixes: tuple[str, ...],
    kinds: tuple[str | None, ...] = (None,),
) -> Iterator[tuple[Place, bytes]]:
    """The members that can be read whole, with their places."""
    for member in iter_members(name, source, report, paths, suffixes, kinds):
        with report.quarantining(member.place):
            yield member.place, member.read_all()


def place_of(name: str, source: SourceConfig, path: Path) -> Place:
    """The place of a file, called by its path under the source's, so that it does not depend on where the
    source lies."""
    root, path = Path(source.path).absolute(), path.absolute()
    return Place(
        name, path.relative_to(root).as_posix() if path.is_relative_to(root) and path != root else path.name
    )


def id_from_place(place: Place) -> str:
    """A document's id by its place: file and member, without endings."""
    parts = [sniff.unpacked_name(part) for part in (place.file, *place.member.split("!")) if part]
    return ":".join([*parts[:-1], str(Path(parts[-1]).with_suffix(""))])


def decode(raw: bytes, report: Report, declared: str = "") -> str:
    """UTF-8 where it is UTF-8; else what the document declares; else byte by byte what is no UTF-8 is taken
    for Windows-1252, the usual stray in Norwegian archives. Strays are counted.

    Raises:
        Unreadable: it is no text at all.
    """
    if nuls := raw.count(0):
        if nuls > max(1, len(raw) * NUL_SHARE):
            raise Unreadable(f"{nuls} NUL bytes among {len(raw)}: not a text")
        report.counts["nul_bytes_removed"] += nuls
        raw = raw.replace(b"\0", b"")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        if declared and declared.lower().replace("_", "-") not in ("utf-8", "utf8"):
            try:
                text = raw.decode(declared)
                text.encode()  # or it holds half characters, as \\ud800 is in unicode_escape
            except (UnicodeError, LookupError):
                pass
            else:
                report.counts["decoded_as_declared"] += 1
                return text
        report.counts["decoded_as_cp1252"] += 1
        return raw.decode("utf-8-sig", errors="cp1252")


def _wanted(suffixes: tuple[str, ...]) -> archives.Wanted:
    return lambda name: name.lower().endswith(suffixes)
