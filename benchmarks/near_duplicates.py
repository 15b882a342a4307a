"""Recall and precision of the deduplicate stage on planted copies of real documents.

    python -m benchmarks.near_duplicates --corpora FOLDER [--copies 2500] [--record]

The documents are those that the readers find in FOLDER (norwegian.py) and that have at least 30
words. In a copy, 3% of the words are replaced, left out or doubled at random. Copies are shuffled
among the documents. Titles, first lines, numbers and names are not changed, because documents that
differ in them are not duplicates. The table's rows "any word" are an exception: there, these are
changed too. A copy is found if the same document is kept for it and for its original.

Real text has duplicates of its own. If a document is dropped as the duplicate of another, and the
two are not a copy and its original, this counts as correct on two conditions: their titles do not
differ, and their word similarity by difflib, which uses no n-grams, is at least 80%. The column
"other title" counts dropped documents whose title differs from that of the document that they
duplicate.
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

from benchmarks import report
from benchmarks.norwegian import read_documents
from data_prep.config import CorpusConfig, SourceConfig
from data_prep.document import Document
from data_prep.stage_settings import DeduplicateConfig
from data_prep.stages import deduplicate

SHARD = 2000  # documents
EDITED_SHARE = 0.03  # share of edited words in a copy
SIMILAR = 0.8  # minimum ratio, by difflib, of two duplicates
COMPARED_WORDS = 3000  # words at the beginning of each document that difflib compares
PLAIN_WORD = re.compile(r"[a-zæøåáčđŋšŧž]+[.,;:)]?")  # neither a number nor a name


def plant_copies(
    originals: list[Document], copies: int, any_word: bool = False, seed: int = 0
) -> list[Document]:
    """Add edited copies of randomly chosen documents, and shuffle; a copy's id begins with "copy-".

    Args:
        originals: the documents to copy.
        copies: number of documents that are copied, each once.
        any_word: True to edit all kinds of words. By default, first lines, numbers and names stay
            unchanged.
        seed: seed of the random choices.

    Returns:
        The originals and the copies.
    """
    rng = random.Random(seed)
    words = {word for document in originals for word in document.text.split()}
    vocabulary = sorted(words if any_word else filter(PLAIN_WORD.fullmatch, words))
    planted = []
    for original in rng.sample(originals, copies):
        text = _edit(original.text, vocabulary, any_word, rng)
        planted.append(replace(original, id=f"copy-{original.id}", text=text, date=""))
    everything = originals + planted
    rng.shuffle(everything)
    return everything


def _edit(text: str, vocabulary: list[str], any_word: bool, rng: random.Random) -> str:
    if any_word:  # words on both sides of a line break count as one word
        words = text.split(" ")
        places = list(range(len(words)))
        number = len(words)
    else:
        words = re.split(r"(\s+)", text)
        number = len(text.split())
        first_line = next((place for place, word in enumerate(words) if "\n" in word), -1)
        candidates = range(first_line + 1, len(words))
        places = [place for place in candidates if PLAIN_WORD.fullmatch(words[place])]
    number_edited = min(max(1, round(EDITED_SHARE * number)), len(places))
    for place in sorted(rng.sample(places, number_edited), reverse=True):
        doubled = [words[place], words[place]] if any_word else [words[place] + " " + words[place]]
        words[place : place + 1] = rng.choice(([rng.choice(vocabulary)], [], doubled))
    return (" " if any_word else "").join(words)


def find_duplicates(everything: list[Document], bands: int) -> tuple[dict[int, int], list[int], float]:
    """Run the deduplicate stage.

    Returns:
        Three values. The first maps the index of each dropped document in `everything` to the index
        of the document that it duplicates, which may be dropped too. The second lists the indices
        of the documents dropped as near duplicates. The third is the duration in seconds.
    """
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
    places = {}
    for place, document in enumerate(everything):
        places[f"{document.source}/{document.id}"] = place
    lost = {}
    near = []
    for row in decided:
        dropped = row["shard"] * SHARD + row["row"]
        kept = row["detail"].split(" as ", 1)[1]
        lost[dropped] = places[kept]
        if row["reason"] == "near_duplicate":
            near.append(dropped)
    return lost, near, seconds


def find_kept(lost: dict[int, int], place: int) -> int:
    """Return the index of the kept document that a document duplicates, directly or indirectly.

    Return `place` if the document at that index was kept itself.

    Args:
        lost: for each dropped document, the index of the document that it duplicates.
        place: index of a document.
    """
    while place in lost:
        place = lost[place]
    return place


def are_duplicates(a: Document, b: Document) -> bool:
    if have_other_titles(a, b):
        return False
    first = a.text.casefold().split()[:COMPARED_WORDS]
    second = b.text.casefold().split()[:COMPARED_WORDS]
    return bool(difflib.SequenceMatcher(None, first, second, autojunk=False).ratio() >= SIMILAR)


def have_other_titles(a: Document, b: Document) -> bool:
    return bool(a.title and b.title) and a.title.casefold().split() != b.title.casefold().split()


def measure(everything: list[Document], bands: int) -> dict[str, float]:
    lost, near, seconds = find_duplicates(everything, bands)
    place_of = {(document.source, document.id): place for place, document in enumerate(everything)}
    pairs = {}
    for place, document in enumerate(everything):
        if document.id.startswith("copy-"):
            pairs[place] = place_of[document.source, document.id.removeprefix("copy-")]
    found = 0
    for copy, original in pairs.items():
        found += find_kept(lost, copy) == find_kept(lost, original)
    planted = {*pairs.items(), *((original, copy) for copy, original in pairs.items())}
    drops = [(place, lost[place]) for place in near]
    others = [drop for drop in drops if drop not in planted]
    correct = sum(are_duplicates(everything[one], everything[other]) for one, other in others)
    retitled = sum(have_other_titles(everything[one], everything[other]) for one, other in drops)
    return {
        "recall": found / len(pairs),
        "precision": (len(near) - len(others) + correct) / len(near),
        "dropped": len(near),
        "real": correct,
        "speed": len(everything) / seconds,
        "other_title": retitled,
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
    parser.add_argument("--record", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    originals = []
    seen = set[tuple[str, str]]()
    for document in read_documents(options.corpora):
        if len(document.text.split()) >= 30 and (document.source, document.id) not in seen:
            seen.add((document.source, document.id))
            originals.append(document)
    lines = [
        f"{len(originals):,} real documents, {options.copies:,} copies with {EDITED_SHARE:.0%} word edits; "
        f"similarity {DeduplicateConfig().similarity}, {deduplicate.PERMUTATIONS} permutations, "
        f"{deduplicate.NGRAM}-grams of words.",
        "",
        "| edited | bands | recall of copies | precision | dropped | real duplicates among these "
        "| other title | documents/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for any_word in (False, True):
        everything = plant_copies(originals, options.copies, any_word)
        edited = "any word" if any_word else "plain words"
        for bands in options.bands:
            m = measure(everything, bands)
            lines.append(
                f"| {edited} | {bands} | {m['recall']:.3f} | {m['precision']:.3f} | "
                f"{m['dropped']:,} | {m['real']:,} | {m['other_title']:,} | {m['speed']:,.0f} |"
            )
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if options.record:
        head = ["## Near duplicates", "", report.origin("benchmarks.near_duplicates"), ""]
        report.write_section("near-duplicates", "\n".join(head + lines))


if __name__ == "__main__":
    main()
