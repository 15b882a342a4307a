"""Letters of a source's bodies against letters after its reader and after `normalise`; what is missing is
named.

    python -m benchmarks.letters FOLDER [--record]                  every reader on every file of a folder
    like ../shared/corpora python -m benchmarks.letters FOLDER --reader NAME [--settings '{"options": {"unit":
    "speech"}}']

The bodies are taken from the files by benchmarks/bodies.py, without the readers. A piece of a body (the text
of an element, a line, a cell) that stands in the reader's text as a whole is there; of the others, each word
is looked for in what is left of the file's text. Letters that are not there are named by where they stood: an
element and its class, a term, a key. Later losses are those of the stages of `finetune prepare` with its
default settings: of documents that a stage drops, by its reason, and of what it changes in those that it lets
through."""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import bodies, harness
from data_prep import pipeline, reading
from data_prep.config import READERS, CorpusConfig, LimitsConfig, PrepareConfig, SourceConfig
from data_prep.document import Report
from data_prep.plan import LAST_STEPS, READ, Preparation
from data_prep.stages import TEXT_STAGES

_WORD = re.compile(r"[^\W\d_]+")
NAMES = 8  # of places that are named in a row


@dataclass(frozen=True)
class Source:
    """A reader and the files that it is made for, in a folder like ../shared/corpora."""

    reader: str
    folder: str
    settings: dict[str, Any] = field(default_factory=dict)


SOURCES = [
    Source("lovdata", "lovdata/lovtidend-avd1-2025.tar.bz2"),
    Source("lovdata", "lovdata/gjeldende-lover"),
    Source("stortinget", "stortinget-xml"),
    Source("parlamint", "parlamint-no"),
    Source("talk_of_norway", "stortinget-ton"),
    Source("table", "stortinget-ton"),
    Source("text", "stortinget-ton"),
    Source("einnsyn", "einnsyn-eksempler"),
    Source("markdown", "digdir-docs"),
    Source("pdf", "digdir-docs"),
    Source("jsonl", "nav-pensjonsbrev", {"fields": {"text": "nob"}}),
    Source("parallel", "nav-pensjonsbrev", {"options": {"form": "text"}}),
    Source("squad", "norquad"),
    Source("conllu", "ud"),
]


@dataclass
class Measured:
    """Letters of one source: of its bodies, after the reader, and after each stage.

    Attributes:
        missing: letters that the reader leaves out, by where they stood.
        broken: records that it quarantined.
        stages: of each text stage: letters that came out, and letters lost, by reason.
    """

    source: Source
    files: int = 0
    documents: int = 0
    body: int = 0
    read: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    broken: int = 0
    stages: dict[str, tuple[int, Counter[str]]] = field(default_factory=dict)


def letters(text: str) -> int:
    return sum(map(len, _WORD.findall(text)))


def missing_letters(pieces: list[bodies.Piece], text: str) -> Counter[str]:
    """Count the letters of the pieces that are not in a text, by their names. No letter of the text counts
    twice."""
    left = bytearray(f" {' '.join(_WORD.findall(text))} ".encode())
    at, rest = 0, []
    for piece in pieces:
        words = _WORD.findall(piece.text)
        if not words:
            continue
        wanted = f" {' '.join(words)} ".encode()
        found = left.find(wanted, at)
        found = left.find(wanted) if found < 0 else found
        if found < 0:
            rest.append((piece.name, words))
        else:
            at = found + len(wanted) - 1
            left[found + 1 : at] = b"\0" * (len(wanted) - 2)
    return _missing_words(rest, left.replace(b"\0", b"").decode())


def _missing_words(pieces: list[tuple[str, list[str]]], left: str) -> Counter[str]:
    """Count the letters of words that are not left; one that was joined to others, or parted, is there."""
    words, joined = Counter(left.split()), left.replace(" ", "")
    missing = Counter[str]()
    for name, wanted in pieces:
        for word in wanted:
            if words[word]:
                words[word] -= 1
            elif word in joined:
                joined = joined.replace(word, "", 1)
            else:
                missing[name] += len(word)
    return missing


def measure(source: Source, folder: Path, work: Path) -> Measured:
    """Read a source's files one by one, then send all of them through the stages."""
    with tempfile.TemporaryDirectory(prefix="letters-") as scratch:
        raw = bodies.unpacked(folder, Path(scratch))
        config = SourceConfig(
            reader=source.reader,
            path=str(raw),
            license="-",
            max_broken_share=1.0,
            limits=LimitsConfig(),
            **source.settings,
        )
        found = Measured(source)
        for path in reading.files(config):
            report = Report()
            documents = list(reading.read("s", config, report, [path]))
            text = "\n".join(document.whole_text for document in documents)
            pieces = bodies.of_file(source.reader, path, config.fields.get("text", "text"))
            found.files += 1
            found.documents += len(documents)
            found.broken += len(report.broken)
            found.body += sum(letters(piece.text) for piece in pieces)
            found.read += letters(text)
            found.missing.update(missing_letters(pieces, text))
        if found.documents:
            found.stages = through_stages(config, work)
    return found


def through_stages(source: SourceConfig, work: Path) -> dict[str, tuple[int, Counter[str]]]:
    """Run the text stages; return the letters that come out of each, and those that are lost in it, by
    reason."""
    corpus = CorpusConfig(name="letters", sources={"s": source})
    shutil.rmtree(work, ignore_errors=True)
    steps = pipeline.plan(PrepareConfig(corpus=corpus, corpora_dir=str(work), workers=1))
    stages = work / ".letters.stages"
    for step in steps:
        if step.name not in LAST_STEPS:
            pipeline.run_task(stages, step.name)
    preparation = Preparation.load(stages)
    before: dict[str, list[int]] = _letters_by_id(preparation, READ)
    results = {}
    for stage in TEXT_STAGES:
        after, lost = _letters_by_id(preparation, stage.name), Counter[str]()
        for drop in preparation.stage_folder(stage.name).drops():
            if before[drop.id]:
                lost[drop.reason] += before[drop.id].pop()
        changed = _total(before) - _total(after)
        if changed:
            lost["changed in documents that stay"] += changed
        results[stage.name] = _total(after), lost
        before = after
    return results


def _letters_by_id(preparation: Preparation, stage: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for document in preparation.documents(stage):
        found[document.id].append(letters(document.whole_text))
    return found


def _total(counts: dict[str, list[int]]) -> int:
    return sum(map(sum, counts.values()))


def _list(counts: Counter[str], names: int = NAMES) -> str:
    common = [(name, count) for name, count in counts.most_common() if count]
    shown = [f"{name} {count:,}" for name, count in common[:names]]
    if rest := sum(count for _, count in common[names:]):
        shown.append(f"{len(common) - names} others {rest:,}")
    return ", ".join(shown) or "–"


def table(results: list[Measured]) -> Iterator[str]:
    yield "| reader | files of | files | documents | letters of the bodies | after the reader | missing | where it stood |"
    yield "|---|---|---|---|---|---|---|---|"
    for found in results:
        lost = found.missing.total()
        broken = f" ({found.broken} broken records)" if found.broken else ""
        cells = [
            found.source.reader,
            found.source.folder,
            f"{found.files:,}",
            f"{found.documents:,}{broken}",
            f"{found.body:,}",
            f"{found.read:,}",
            f"{lost:,} ({lost / max(found.body, 1):.2%})",
            _list(found.missing),
        ]
        yield f"| {' | '.join(cells)} |"
    if len(results) > 1:
        unread = sorted(set(READERS) - {found.source.reader for found in results})
        yield f"\nThe folder holds no file for {', '.join(unread)}."
    yield ""
    yield from _later_losses([found for found in results if found.stages])


def _later_losses(results: list[Measured]) -> Iterator[str]:
    yield "| reader | files of | after the reader | after normalise | lost in it | after all stages | lost in later stages |"
    yield "|---|---|---|---|---|---|---|"
    for found in results:
        stages = list(found.stages.items())
        _, (after_first, lost_in_first) = stages[0]
        _, (after_last, _) = stages[-1]
        reasons = Counter[str]()
        for name, (_, lost) in stages[1:]:
            reasons.update({f"{name}: {reason}": count for reason, count in lost.items()})
        source, counts = (
            found.source,
            f"{found.read:,} | {after_first:,} | {_list(lost_in_first)} | {after_last:,}",
        )
        yield f"| {source.reader} | {source.folder} | {counts} | {_list(reasons, 12)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Letters of sources' bodies, after their readers, and after the stages."
    )
    parser.add_argument(
        "folder", type=Path, help="a folder like ../shared/corpora; with --reader, one of that reader's files"
    )
    parser.add_argument("--reader", choices=bodies.READERS, help="one reader on all files of the folder")
    parser.add_argument(
        "--settings", type=json.loads, default={}, help="of that source, as JSON: options, fields …"
    )
    parser.add_argument("--record", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    work = harness.cache_folder() / "letters"
    if options.reader:
        chosen = [(Source(options.reader, options.folder.name, options.settings), options.folder)]
    else:
        chosen = [
            (source, options.folder / source.folder)
            for source in SOURCES
            if (options.folder / source.folder).exists()
        ]
    results = [measure(source, folder, work) for source, folder in chosen]
    body = "\n".join(["## Letters kept", "", harness.origin("benchmarks.letters"), "", *table(results)])
    print(body)
    if options.record:
        harness.write_section("letters", body)


if __name__ == "__main__":
    main()
