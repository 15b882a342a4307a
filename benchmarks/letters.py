"""Count of the letters in a source's files that its reader and the stages lose.

    python -m benchmarks.letters FOLDER [--record]
        all readers, on the files of a folder like ../shared/corpora
    python -m benchmarks.letters FOLDER --reader NAME [--settings '{"options": {"unit": "speech"}}']
        one reader, on all files of the folder

benchmarks/bodies.py extracts the text of the files without the readers, in pieces such as an
element, a line or a cell. If the reader's text contains a piece, no letter of the piece is missing.
The words of all other pieces are searched for in the rest of the reader's text. Missing letters are
counted by their place in the file (an element and its class, a term, a key).

Letters lost in the stages of `finetune prepare` are counted too, with default settings. A stage
loses the letters of the documents that it drops; they are counted by reason. It also loses the
letters that it changes in the documents that it keeps.
"""

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

from benchmarks import bodies, harness, report
from data_prep import pipeline, reading
from data_prep.config import READERS, CorpusConfig, LimitsConfig, PrepareConfig, SourceConfig
from data_prep.document import Report
from data_prep.plan import LAST_STEPS, READ, Preparation
from data_prep.stages import TEXT_STAGES

_WORD = re.compile(r"[^\W\d_]+")
MAX_PLACES = 8  # maximum number of places that a row of the table names


@dataclass(frozen=True)
class Source:
    """A reader of data_prep with its settings, and the files that it reads.

    Attributes:
        reader: name of the reader.
        folder: path of the files, relative to a folder laid out like ../shared/corpora.
        settings: settings of the reader in the corpus config.
    """

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
    """Counts for one source: its files, documents and letters, and the letters that were lost.

    Attributes:
        body: number of letters in the text of the source's files.
        read: number of letters in the documents that the reader returns.
        missing: numbers of letters that the reader leaves out, by their place in the file.
        broken: number of records that the reader set aside, because it could not read them.
        stages: for each text stage, the number of letters after it, and the numbers of letters lost
            in it, by reason.
    """

    source: Source
    files: int = 0
    documents: int = 0
    body: int = 0
    read: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    broken: int = 0
    stages: dict[str, tuple[int, Counter[str]]] = field(default_factory=dict)


def count_letters(text: str) -> int:
    return sum(map(len, _WORD.findall(text)))


def count_missing(pieces: list[bodies.Piece], text: str) -> Counter[str]:
    """Count the letters of the pieces that are missing in a text; return the numbers by piece name.

    Each letter of the text can match only one piece.
    """
    left = bytearray(f" {' '.join(_WORD.findall(text))} ".encode())
    position = 0
    unmatched = []
    for piece in pieces:
        words = _WORD.findall(piece.text)
        if not words:
            continue
        wanted = f" {' '.join(words)} ".encode()
        found = left.find(wanted, position)
        if found < 0:
            found = left.find(wanted)
        if found < 0:
            unmatched.append((piece.name, words))
        else:
            position = found + len(wanted) - 1
            left[found + 1 : position] = b"\0" * (len(wanted) - 2)
    return _count_missing_words(unmatched, left.replace(b"\0", b"").decode())


def _count_missing_words(pieces: list[tuple[str, list[str]]], left: str) -> Counter[str]:
    """Count the letters of the words that are missing in `left`; return the numbers by piece name.

    A word that is joined to another word in `left`, or split in two, is not missing.

    Args:
        pieces: name and words of each piece.
        left: the words of the text that belong to no complete piece, separated by spaces.
    """
    words = Counter(left.split())
    joined = left.replace(" ", "")
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
    """Measure a source: read its files one by one, then run all of them through the stages.

    Args:
        work: folder for the stages' files.
    """
    with tempfile.TemporaryDirectory(prefix="letters-") as scratch:
        raw = bodies.copy_unpacked(folder, Path(scratch))
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
            read_report = Report()
            documents = list(reading.read("s", config, read_report, [path]))
            text = "\n".join(document.whole_text for document in documents)
            pieces = bodies.read_pieces(source.reader, path, config.fields.get("text", "text"))
            found.files += 1
            found.documents += len(documents)
            found.broken += len(read_report.broken)
            found.body += sum(count_letters(piece.text) for piece in pieces)
            found.read += count_letters(text)
            found.missing.update(count_missing(pieces, text))
        if found.documents:
            found.stages = run_stages(config, work)
    return found


def run_stages(source: SourceConfig, work: Path) -> dict[str, tuple[int, Counter[str]]]:
    """Run the pipeline's text stages on a source.

    Returns:
        For each stage, by its name: the number of letters after it, and the numbers of letters lost
        in it, by reason.
    """
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
        after = _letters_by_id(preparation, stage.name)
        lost = Counter[str]()
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
        found[document.id].append(count_letters(document.whole_text))
    return found


def _total(counts: dict[str, list[int]]) -> int:
    return sum(map(sum, counts.values()))


def _list(counts: Counter[str], number: int = MAX_PLACES) -> str:
    """Return a line with the most frequent names, their counts, and the sum of the other counts.

    Args:
        counts: counts by name.
        number: how many names are listed.
    """
    common = [(name, count) for name, count in counts.most_common() if count]
    shown = [f"{name} {count:,}" for name, count in common[:number]]
    rest = sum(count for _, count in common[number:])
    if rest:
        shown.append(f"{len(common) - number} others {rest:,}")
    return ", ".join(shown) or "–"


def table(results: list[Measured]) -> Iterator[str]:
    """Yield the lines of two Markdown tables: letters lost by the readers, and by later stages."""
    yield (
        "| reader | source | files | documents | letters in the files | after the reader | missing "
        "| place in the file |"
    )
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
    yield (
        "| reader | source | after the reader | after normalise | lost in normalise | after all stages "
        "| lost in later stages |"
    )
    yield "|---|---|---|---|---|---|---|"
    for found in results:
        stages = list(found.stages.items())
        _, (after_first, lost_in_first) = stages[0]
        _, (after_last, _) = stages[-1]
        reasons = Counter[str]()
        for name, (_, lost) in stages[1:]:
            reasons.update({f"{name}: {reason}": count for reason, count in lost.items()})
        counts = f"{found.read:,} | {after_first:,} | {_list(lost_in_first)} | {after_last:,}"
        yield f"| {found.source.reader} | {found.source.folder} | {counts} | {_list(reasons, 12)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare the letters in sources' files with those after their readers and the stages."
    )
    parser.add_argument(
        "folder", type=Path, help="a folder like ../shared/corpora, or with --reader a folder of its files"
    )
    parser.add_argument("--reader", choices=bodies.READERS, help="use one reader on all files of the folder")
    parser.add_argument(
        "--settings", type=json.loads, default={}, help="settings of that source as JSON: options, fields …"
    )
    parser.add_argument("--record", action="store_true", help="write the tables into RESULTS.md")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    work = harness.cache_folder() / "letters"
    if options.reader:
        chosen = [(Source(options.reader, options.folder.name, options.settings), options.folder)]
    else:
        folders = [(source, options.folder / source.folder) for source in SOURCES]
        chosen = [(source, folder) for source, folder in folders if folder.exists()]
    results = [measure(source, folder, work) for source, folder in chosen]
    body = "\n".join(["## Letters kept", "", report.origin("benchmarks.letters"), "", *table(results)])
    print(body)
    if options.record:
        report.write_section("letters", body)


if __name__ == "__main__":
    main()
