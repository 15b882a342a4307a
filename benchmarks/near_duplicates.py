"""How many planted copies the deduplicate stage finds, and how many of those it drops are copies.

    python -m benchmarks.near_duplicates --corpora FOLDER [--copies 2500] [--record]

Documents are what the readers make of FOLDER (see norwegian.py), running text of at least 30 words; copies
have 3% of their words replaced, left out or doubled, at random, and stand anywhere. Titles (and first lines),
numbers and names are left alone, as another one makes another document; the rows "any word" are the benchmark
of before, which changes those too. A copy is found if one document is kept for it and its original.

Real text has duplicates of its own: a drop outside the planted pairs counts as right if the two documents
have the same title and their words are alike to 80% by difflib, which knows nothing of n-grams, and as wrong
otherwise. `other title` are the drops whose title, as the source gives it, is not that of the document that
was kept.
"""

from __future__ import annotations

import argparse
import difflib
import random
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks import harness
from benchmarks.norwegian import documents
from data_prep.config import CorpusConfig, SourceConfig
from data_prep.document import Document
from data_prep.stage_settings import DeduplicateConfig
from data_prep.stages import deduplicate

SHARD = 2000
EDITED, ALIKE, LONGEST = 0.03, 0.8, 3000
PLAIN_WORD = re.compile(r"[a-zæøåáčđŋšŧž]+[.,;:)]?")  # neither a number nor a name


def plant(originals: list[Document], copies: int, any_word: bool = False, seed: int = 0) -> list[Document]:
    """The documents with edited copies among them; a copy's id is its original's with "copy-" before it."""
    rng = random.Random(seed)
    words = {word for document in originals for word in document.text.split()}
    vocabulary = sorted(words if any_word else filter(PLAIN_WORD.fullmatch, words))
    chosen = rng.sample(originals, copies)
    planted = [
        replace(d, id=f"copy-{d.id}", text=_edited(d.text, vocabulary, any_word, rng), date="")
        for d in chosen
    ]
    everything = originals + planted
    rng.shuffle(everything)
    return everything


def _edited(text: str, vocabulary: list[str], any_word: bool, rng: random.Random) -> str:
    if any_word:  # as it was: what line breaks join is one word
        words = text.split(" ")
        places = list(range(len(words)))
        number = len(words)
    else:
        words = re.split(r"(\s+)", text)
        number = len(text.split())
        first_line = next((place for place, word in enumerate(words) if "\n" in word), -1)
        places = [
            place for place, word in enumerate(words) if place > first_line and PLAIN_WORD.fullmatch(word)
        ]
    for place in sorted(rng.sample(places, min(max(1, round(EDITED * number)), len(places))), reverse=True):
        doubled = [words[place], words[place]] if any_word else [words[place] + " " + words[place]]
        words[place : place + 1] = rng.choice(([rng.choice(vocabulary)], [], doubled))
    return (" " if any_word else "").join(words)


def find(everything: list[Document], bands: int) -> tuple[dict[int, int], list[int], float]:
    """For each dropped document, by place, the one it lost to; which of them are near duplicates; and the
    seconds it took."""
    source = SourceConfig(reader="jsonl", path="-", license="-")
    config = CorpusConfig(name="bench", sources={"s": source}, deduplicate=DeduplicateConfig(bands=bands))
    stage = deduplicate.Deduplicate()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, first in enumerate(range(0, len(everything), SHARD)):
            paths.append(Path(folder) / f"{number:03d}.parquet")
            pq.write_table(stage.collect(iter(everything[first : first + SHARD]), config), paths[-1])
        decided = stage.decide(paths, config).to_pylist()
    seconds = time.perf_counter() - began
    places = {f"{document.source}/{document.id}": place for place, document in enumerate(everything)}
    lost = {row["shard"] * SHARD + row["row"]: places[row["detail"].split(" as ", 1)[1]] for row in decided}
    near = [row["shard"] * SHARD + row["row"] for row in decided if row["reason"] == "near_duplicate"]
    return lost, near, seconds


def last(lost: dict[int, int], place: int) -> int:
    """The document that is kept for one."""
    while place in lost:
        place = lost[place]
    return place


def say_the_same(a: Document, b: Document) -> bool:
    if other_title(a, b):
        return False
    first, second = (document.text.casefold().split()[:LONGEST] for document in (a, b))
    return bool(difflib.SequenceMatcher(None, first, second, autojunk=False).ratio() >= ALIKE)


def other_title(a: Document, b: Document) -> bool:
    return bool(a.title and b.title) and a.title.casefold().split() != b.title.casefold().split()


def measure(everything: list[Document], bands: int) -> dict[str, float]:
    lost, near, seconds = find(everything, bands)
    place_of = {(document.source, document.id): place for place, document in enumerate(everything)}
    pairs = {
        place: place_of[d.source, d.id.removeprefix("copy-")]
        for place, d in enumerate(everything)
        if d.id.startswith("copy-")
    }
    found = sum(last(lost, copy) == last(lost, original) for copy, original in pairs.items())
    planted = {*pairs.items(), *((original, copy) for copy, original in pairs.items())}
    others = [(place, lost[place]) for place in near if (place, lost[place]) not in planted]
    right = sum(say_the_same(everything[one], everything[other]) for one, other in others)
    return {
        "recall": found / len(pairs),
        "precision": (len(near) - len(others) + right) / len(near),
        "dropped": len(near),
        "real": right,
        "speed": len(everything) / seconds,
        "other_title": sum(other_title(everything[one], everything[lost[one]]) for one in near),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Recall and precision of near-duplicate search on planted copies."
    )
    parser.add_argument("--corpora", type=Path, required=True, help="a folder like ../shared/corpora")
    parser.add_argument("--copies", type=int, default=2500)
    parser.add_argument(
        "--bands",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[16, DeduplicateConfig().bands, 32],
    )
    parser.add_argument("--record", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    originals, seen = [], set[tuple[str, str]]()
    for document in documents(options.corpora):
        if len(document.text.split()) >= 30 and (document.source, document.id) not in seen:
            seen.add((document.source, document.id))
            originals.append(document)
    lines = [
        f"{len(originals):,} real documents, {options.copies:,} copies with {EDITED:.0%} word edits; similarity "
        f"{DeduplicateConfig().similarity}, {deduplicate.PERMUTATIONS} permutations, {deduplicate.NGRAM}-grams of words.",
        "",
        "| edited | bands | recall of copies | precision | dropped | real ones among them | other title | documents/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for any_word in (False, True):
        everything = plant(originals, options.copies, any_word)
        for bands in options.bands:
            m = measure(everything, bands)
            lines.append(
                f"| {'any word' if any_word else 'plain words'} | {bands} | {m['recall']:.3f} | {m['precision']:.3f} | "
                f"{m['dropped']:,} | {m['real']:,} | {m['other_title']:,} | {m['speed']:,.0f} |"
            )
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if options.record:
        head = ["## Near duplicates", "", harness.origin("benchmarks.near_duplicates"), ""]
        harness.write_section("near-duplicates", "\n".join(head + lines))


if __name__ == "__main__":
    main()
