"""Exact and near duplicates, over all sources. Of documents that say the same, the best is kept, wherever it
stands.

Exact: white space and letter case do not tell texts apart. Near: documents are sets of word 5-grams, and
those whose Jaccard similarity is at least `deduplicate.similarity` say the same. MinHash finds who might
(Broder 1997; rensa's R-MinHash, whose 128 minima are cut into bands: two documents are compared if they agree
in one whole band), and every pair is then compared by its real sets, so that MinHash can miss a duplicate,
but never makes one. Standard text is not what makes a document: two that are similar, and have another title,
other numbers, dates or names, or other words in the same places, are both kept, as distinctions.py says; the
fewer words they have, the less it takes. `similar_but_kept` counts such documents.

Pairs that say the same are joined into clusters (union-find). Of a cluster the best document is kept, and
what is similar to it goes; of what is left, if anything, again the best is kept: a chain of small changes
does not pull a document down that nothing kept resembles. Better is, in this order: longer by a tenth, later
date, more words, more fields filled in, earlier in the corpus file.

Answers tell conversations, and prompts with their completions, apart: two of them say the same only if what
is to be learned is the same up to case and punctuation, and so is the last question that was asked, and then
by all that was asked. Questions on one long text are no duplicates of each other.

Only whole documents are judged. A paragraph that many acts share (their usual provision on entry into force)
stays in each of them and is counted: `shared_paragraphs` are the different paragraphs that more than one
document has, `shared_paragraph_copies` how often they occur beyond once, among the documents that are kept.

The bands are columns of what is collected, so that `decide` holds one band of all documents at a time, and
the 5-grams only of those that are compared, which lie in a file, as do their titles, names and words. In all
it needs some 420 bytes a document.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rensa import RMinHash

from data_prep.config import CorpusConfig
from data_prep.distinctions import Profile, profile
from data_prep.document import Document, Report
from data_prep.shingles import ngrams
from data_prep.stage_settings import DeduplicateConfig
from data_prep.stages.near_duplicates import Collected, Integers, find_near, runs
from data_prep.stages.protocol import CorpusStage

NGRAM, PERMUTATIONS, SEED = 5, 128, 42
BATCH_DOCUMENTS, BATCH_CHARACTERS = 500, 2_000_000
PARAGRAPH_WORDS = 12  # shorter ones are headings and formulas
PARAGRAPHS_AT_ONCE = 20_000_000

_WORD = re.compile(r"\w+")


@dataclass(kw_only=True)
class NearSettings(DeduplicateConfig):
    """The settings where near duplicates are sought, with how MinHash finds them."""

    ngram: int = NGRAM
    permutations: int = PERMUTATIONS
    rensa: str


class Deduplicate(CorpusStage):
    """Drop the documents that say the same as a better one."""

    name = "deduplicate"
    version = 4

    def settings(self, config: CorpusConfig) -> DeduplicateConfig:
        if not config.deduplicate.near:
            return config.deduplicate
        return NearSettings(**vars(config.deduplicate), rensa=version("rensa"))

    def collect(self, documents: Iterator[Document], config: CorpusConfig) -> pa.Table:
        """A row a document: a hash of its text, what makes it better or worse, and its bands, 5-grams and
        paragraphs."""
        tables = []
        while batch := _batch(documents):
            texts = [_said(document).casefold() for document in batch]
            values, begins, num_words = _ngrams(batch)
            paragraphs = [_paragraphs(text) for text in texts]
            columns = {
                "name": pa.array([f"{document.source}/{document.id}" for document in batch], pa.string()),
                "key": pa.array([_key(text) for text in texts], pa.binary(16)),
                "words": pa.array(num_words, pa.int64()),
                "date": pa.array([_day(document.date) for document in batch], pa.int32()),
                "filled": pa.array([sum(map(bool, (d.title, d.date, d.language))) for d in batch], pa.int8()),
                "paragraphs": pa.array(paragraphs, pa.list_(pa.uint64())),
            }
            if config.deduplicate.near:
                columns["ngrams"] = pa.ListArray.from_arrays(
                    pa.array(begins.astype(np.int32)), pa.array(values, pa.uint32())
                )
                profiles = [
                    profile(document.title, "\n".join(asked))
                    for document, asked in zip(batch, _asked(batch), strict=True)
                ]
                columns["profile"] = pa.array(profiles, pa.large_binary())
                columns["marks"] = pa.array([_hash(Profile(lines).key) for lines in profiles], pa.uint64())
                for number, band in enumerate(_bands(values, begins, config.deduplicate.bands).T):
                    columns[f"band_{number}"] = pa.array(band, pa.uint64())
            tables.append(pa.table(columns))
        return (
            pa.concat_tables(tables)
            if tables
            else pa.table({name: pa.array([], pa.null()) for name in ("name", "key")})
        )

    def decide(self, collected: list[Path], config: CorpusConfig) -> pa.Table:
        """Which rows of which shards go, and why."""
        found = Collected(collected)
        order = found.best_first()
        kept_by = np.full(found.number, -1, np.int64)  # of each document, the one that is kept in its place
        similar: dict[int, float] = {}
        _exact(found, order, kept_by)
        counts = Counter[str]()
        if config.deduplicate.near and found.number:
            for worse, (better, similarity) in find_near(
                found, order, kept_by < 0, config.deduplicate, counts
            ).items():
                kept_by[worse], similar[worse] = better, similarity
        counts.update(_shared_paragraphs(found, kept_by < 0))
        lost = np.flatnonzero(kept_by >= 0)
        names = found.names(np.union1d(lost, kept_by[lost]))
        table = pa.table(
            {
                "shard": pa.array(found.shard_of(lost), pa.int64()),
                "row": pa.array(lost - found.begins[found.shard_of(lost)], pa.int64()),
                "reason": pa.array(
                    ["near_duplicate" if i in similar else "exact_duplicate" for i in lost.tolist()],
                    pa.string(),
                ),
                "detail": pa.array(
                    [_detail(names[kept_by[i]], similar.get(i)) for i in lost.tolist()], pa.string()
                ),
            }
        )
        return table.replace_schema_metadata({"counts": json.dumps(counts)})

    def run(
        self, documents: Iterator[Document], config: CorpusConfig, report: Report, decided: pa.Table
    ) -> Iterator[Document]:
        dropped = {row["row"]: (row["reason"], row["detail"]) for row in decided.to_pylist()}
        for row, document in enumerate(documents):
            if row in dropped:
                report.drop(document, *dropped[row])
            else:
                yield document


# --- one document -------------------------------------------------------------------------------------------


def _batch(documents: Iterator[Document]) -> list[Document]:
    batch, characters = [], 0
    for document in islice(documents, BATCH_DOCUMENTS):
        batch.append(document)
        characters += document.characters
        if characters >= BATCH_CHARACTERS:
            break
    return batch


def _said(document: Document) -> str:
    return "\n".join([document.text, *(f"{turn.role}: {turn.content}" for turn in document.turns)])


def _ngrams(batch: list[Document]) -> tuple[NDArray[np.uint32], Integers, Integers]:
    """The 5-grams of each document.

    Those of a conversation are of what is asked, and other numbers for every other answer and question.
    """
    asked = ["\n".join(parts) for parts in _asked(batch)]
    values, begins, num_words = ngrams(asked, NGRAM)
    for place, document in enumerate(batch):
        if document.turns:
            own = slice(begins[place], begins[place + 1])
            answer = _WORD.findall(
                " ".join(turn.content for turn in document.turns if turn.target).casefold()
            )
            lines = reversed(asked[place].splitlines())
            question = _WORD.findall(
                next((line for line in lines if line.rstrip().endswith("?")), "").casefold()
            )
            lesson = " ".join([*question, "?", *answer]).encode()
            salt = np.uint32(int.from_bytes(hashlib.blake2b(lesson, digest_size=4).digest(), "big"))
            values[own] = np.sort(values[own] ^ salt)
            num_words[place] += len(answer)
    return values, begins, num_words


def _asked(batch: list[Document]) -> Iterator[list[str]]:
    """The text of each document; of a conversation, what is asked."""
    return ([d.text, *(turn.content for turn in d.turns if not turn.target)] for d in batch)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _key(folded: str) -> bytes:
    return hashlib.blake2b(" ".join(folded.split()).encode(), digest_size=16).digest()


def _day(date: str) -> int:
    """20240131 of "2024-01-31", as far as a date goes; 0 without."""
    digits = "".join(character for character in date[:10] if character.isdecimal())[:8]
    return int(digits.ljust(8, "0")) if len(digits) >= 4 else 0


def _paragraphs(folded: str) -> list[int]:
    """A hash of each paragraph that is long enough to count, each once a document."""
    found = (part.split() for part in folded.split("\n") if len(part) >= 2 * PARAGRAPH_WORDS - 1)
    long = {" ".join(words) for words in found if len(words) >= PARAGRAPH_WORDS}
    return sorted(map(_hash, long))


def _bands(values: NDArray[np.uint32], begins: Integers, bands: int) -> NDArray[np.uint64]:
    """A number for each band of each document, of shape (documents, bands)."""
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        values.astype(np.uint64), begins.astype(np.uint64), PERMUTATIONS, SEED
    )
    rows = PERMUTATIONS // bands
    minima = np.array(matrix.to_rows(), np.uint64)[:, : bands * rows].reshape(len(begins) - 1, bands, rows)
    folded = np.zeros(minima.shape[:2], np.uint64)
    for row in range(rows):
        folded = (folded ^ minima[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        folded ^= folded >> np.uint64(29)
    return folded


# --- all documents ------------------------------------------------------------------------------------------


def _detail(name: str, similarity: float | None) -> str:
    return f"same text as {name}" if similarity is None else f"{similarity:.0%} as {name}"


def _exact(found: Collected, order: Integers, kept_by: Integers) -> None:
    """Of those with the same hash, all but the best are lost to it."""
    keys = found.keys()[order]
    by_key = np.lexsort((np.arange(len(order)), keys[:, 1], keys[:, 0]))
    same = (keys[by_key[1:]] == keys[by_key[:-1]]).all(axis=1)
    for first, last in runs(same):
        members = order[by_key[first:last]]
        kept_by[members[1:]] = members[0]


def _shared_paragraphs(found: Collected, kept: NDArray[np.bool_]) -> dict[str, int]:
    """How many paragraphs stand in more than one kept document, and how often beyond once. Counted in parts,
    by hash."""
    total = sum(len(column.flatten()) for _, column in found.tables("paragraphs"))
    shared = copies = 0
    parts = total // PARAGRAPHS_AT_ONCE + 1
    for part in range(parts):
        hashes = [np.zeros(0, np.uint64)]
        for begin, column in found.tables("paragraphs"):
            own = column.filter(pa.array(kept[begin : begin + len(column)])).flatten().to_numpy()
            hashes.append(own[own % np.uint64(parts) == part])
        _, times = np.unique(np.concatenate(hashes), return_counts=True)
        shared += int((times > 1).sum())
        copies += int((times[times > 1] - 1).sum())
    return {"shared_paragraphs": shared, "shared_paragraph_copies": copies}
