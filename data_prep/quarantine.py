"""Records that no document could be made of, with what their files hold at that place. For `finetune
inspect`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data_prep.containers import archives, streams
from data_prep.document import Broken, Place, Report
from data_prep.plan import Preparation
from data_prep.stage_files import StageFolder

EXCERPT_BYTES = 4000
_AT = re.compile(r"(line|byte) (\d+)")


@dataclass(frozen=True)
class Quarantined:
    """A record, and the bytes at its place as text; "" where they cannot be read (any more)."""

    record: Broken
    raw: str


def with_excerpts(work: Path, records: list[Broken]) -> Iterator[Quarantined]:
    """Yield each record with its raw text. A file is read once for all its records."""
    paths = _paths(work)
    by_file: dict[tuple[str, str], list[Broken]] = {}
    for record in records:
        by_file.setdefault((record.source, record.file), []).append(record)
    for (source, name), wanted in by_file.items():
        path = paths.get((source, name))
        found = _read(path, Place(source, name), wanted, work) if path is not None and path.is_file() else {}
        for record in wanted:
            yield Quarantined(record, found.get((record.member, record.at), ""))


def counts(stage: StageFolder) -> dict[str, int]:
    """Return how many records of each source are quarantined."""
    found: dict[str, int] = {}
    for record in stage.quarantined():
        found[record.source] = found.get(record.source, 0) + 1
    return found


def _paths(work: Path) -> dict[tuple[str, str], Path]:
    """Return where each raw file lay when it was read; nothing where the plan is gone."""
    try:
        preparation = Preparation.load(work)
    except ValueError:
        return {}
    return {
        (task.source, name): Path(preparation.cwd) / path
        for task in preparation.tasks
        for name, path in zip(task.names, task.paths, strict=True)
    }


def _read(path: Path, place: Place, wanted: list[Broken], work: Path) -> dict[tuple[str, str], str]:
    """Return the text at the wanted places of a file, unpacked as its reader unpacks it."""
    limits = Preparation.load(work).corpus.sources[place.source].limits
    members = {record.member for record in wanted}
    found: dict[tuple[str, str], str] = {}
    try:
        for member in archives.iter_members(path, place, lambda name: True, limits, Report()):
            if member.place.member in members:
                places = [record.at for record in wanted if record.member == member.place.member]
                found.update({(member.place.member, at): text for at, text in _texts(member, places)})
    except (OSError, ValueError):
        return found  # what cannot be unpacked has no text
    return found


def _texts(member: streams.Member, places: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the text at each place of a member: a line, what follows a byte, or the beginning."""
    parsed = {at: _AT.fullmatch(at) for at in places}
    lines = {int(match[2]): at for at, match in parsed.items() if match and match[1] == "line"}
    offsets = sorted((int(match[2]), at) for at, match in parsed.items() if match and match[1] == "byte")
    others = [at for at, match in parsed.items() if match is None]
    if others or offsets:
        head = member.stream.read(EXCERPT_BYTES if not offsets else offsets[-1][0] + EXCERPT_BYTES)
        yield from ((at, _as_text(head[:EXCERPT_BYTES])) for at in others)
        yield from ((at, _as_text(head[first : first + EXCERPT_BYTES])) for first, at in offsets)
        return
    for number, line in enumerate(islice(member.stream, max(lines, default=0)), start=1):
        if number in lines:
            yield lines[number], _as_text(line[:EXCERPT_BYTES])


def _as_text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").rstrip(os.linesep)
