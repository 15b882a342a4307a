"""Quarantined records with an excerpt of their raw text, for `finetune inspect`."""

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
    """A quarantined record and an excerpt of its raw text.

    Attributes:
        raw: the excerpt; "" if the raw file does not exist any more or cannot be read.
    """

    record: Broken
    raw: str


def read_excerpts(work: Path, records: list[Broken]) -> Iterator[Quarantined]:
    """Yield each record with an excerpt of its raw text.

    Each raw file is read only once. So the records of a file are yielded one after the other.

    Args:
        work: the folder of the stages, with plan.json.
    """
    paths = _raw_paths(work)
    by_file: dict[tuple[str, str], list[Broken]] = {}
    for record in records:
        by_file.setdefault((record.source, record.file), []).append(record)
    for (source, name), wanted in by_file.items():
        path = paths.get((source, name))
        texts: dict[tuple[str, str], str] = {}
        if path is not None and path.is_file():
            texts = _read(path, Place(source, name), wanted, work)
        for record in wanted:
            yield Quarantined(record, texts.get((record.member, record.at), ""))


def count_by_source(stage: StageFolder) -> dict[str, int]:
    """Return the number of quarantined records of each source."""
    counts: dict[str, int] = {}
    for record in stage.quarantined():
        counts[record.source] = counts.get(record.source, 0) + 1
    return counts


def _raw_paths(work: Path) -> dict[tuple[str, str], Path]:
    """Return the path of each raw file by source and name; no paths if there is no plan.json."""
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
    """Return excerpts of a raw file at the places of its quarantined records.

    The file is unpacked by the same functions as in step read. The keys of the result are (archive
    member, place in the member). Places that cannot be read are left out.

    Args:
        place: the source and the name of the file.
        wanted: the file's quarantined records.
    """
    limits = Preparation.load(work).corpus.sources[place.source].limits
    members = {record.member for record in wanted}
    found: dict[tuple[str, str], str] = {}
    try:
        for member in archives.iter_members(path, place, lambda name: True, limits, Report()):
            if member.place.member in members:
                places = [record.at for record in wanted if record.member == member.place.member]
                found.update({(member.place.member, at): text for at, text in _texts(member, places)})
    except (OSError, ValueError):
        return found  # the excerpts that were read before the error
    return found


def _texts(member: streams.Member, places: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (place, excerpt) for places in a file, or in a member of an archive.

    For a place "line N", the excerpt is that line. For a place "byte N", it starts at that byte.
    For any other place, it is the beginning of the file or member.
    """
    parsed = {at: _AT.fullmatch(at) for at in places}
    lines = {int(match[2]): at for at, match in parsed.items() if match and match[1] == "line"}
    offsets = sorted((int(match[2]), at) for at, match in parsed.items() if match and match[1] == "byte")
    others = [at for at, match in parsed.items() if match is None]
    if others or offsets:
        last_offset = offsets[-1][0] if offsets else 0
        head = member.stream.read(last_offset + EXCERPT_BYTES)
        yield from ((at, _as_text(head[:EXCERPT_BYTES])) for at in others)
        yield from ((at, _as_text(head[first : first + EXCERPT_BYTES])) for first, at in offsets)
        return
    for number, line in enumerate(islice(member.stream, max(lines, default=0)), start=1):
        if number in lines:
            yield lines[number], _as_text(line[:EXCERPT_BYTES])


def _as_text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").rstrip(os.linesep)
