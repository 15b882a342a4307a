"""Removal of exact and near duplicates across all sources; the best of the duplicates is kept.

Exact duplicates have the same text up to white space and case. Near duplicates have a Jaccard
similarity of at least `deduplicate.similarity` between their sets of word 5-grams. Candidates are
found by MinHash (Broder 1997; R-MinHash of the library rensa). A document's 128 minima are divided
into bands, and two documents are candidates if they agree in all minima of a band. Their sets of
5-grams are then compared. So MinHash can miss a duplicate, but cannot cause a false one.

Similar documents are both kept if their titles, numbers, dates or names differ, or if they have
different words in the same places (distinctions.py). In short documents, smaller differences
suffice. `similar_but_kept` counts such documents.

Pairs of duplicates are joined into clusters (union-find). The best document of a cluster is kept,
and the documents that are similar to it are dropped; then the best of the remaining documents is
kept, and so on. So a chain of small changes cannot drop a document that is not similar to any kept
one. Documents are ranked by length (in steps of 10%), then by date (the latest is best), number of
words, number of filled fields, and order in the corpus.

Conversations, and prompts with completions, can be duplicates only if their targets and their last
questions are equal up to case and punctuation. Then their text outside the targets is compared. So
different questions on the same long text are not duplicates.

Only whole documents are compared. A paragraph that many acts share (such as the usual provision on
entry into force) stays in each of them. Such paragraphs are counted in the kept documents:
`shared_paragraphs` is the number of distinct paragraphs that occur in more than one document,
`shared_paragraph_copies` the number of their copies after the first.

Each band is a column of the collected tables, so that `decide` holds one band of all documents in
memory at a time. The 5-grams and profiles of the candidates are in temporary files. In total,
`decide` needs some 420 bytes of memory per document.
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

NGRAM = 5
PERMUTATIONS = 128
SEED = 42
BATCH_DOCUMENTS = 500
BATCH_CHARACTERS = 2_000_000
PARAGRAPH_WORDS = 12  # shorter paragraphs are headings and standard phrases, and are not counted
PARAGRAPHS_AT_ONCE = 20_000_000

_WORD = re.compile(r"\w+")


@dataclass(kw_only=True)
class NearSettings(DeduplicateConfig):
    """The settings if near duplicates are removed, with MinHash's parameters and rensa's version."""

    ngram: int = NGRAM
    permutations: int = PERMUTATIONS
    rensa: str


class Deduplicate(CorpusStage):
    """Drop each document that is a duplicate of a better one."""

    name = "deduplicate"
    version = 4

    def settings(self, config: CorpusConfig) -> DeduplicateConfig:
        if not config.deduplicate.near:
            return config.deduplicate
        return NearSettings(**vars(config.deduplicate), rensa=version("rensa"))

    def collect(self, documents: Iterator[Document], config: CorpusConfig) -> pa.Table:
        """Return one row for each document of a shard.

        A row has a hash of the text, the values by which documents are ranked, and the hashes of
        the paragraphs. If near duplicates are removed, the row also has the 5-grams, the bands
        of the MinHash signature, and the profile (see distinctions.py).
        """
        tables = []
        while batch := _take_batch(documents):
            texts = [_full_text(document).casefold() for document in batch]
            values, begins, num_words = _ngrams(batch)
            paragraphs = [_paragraph_hashes(text) for text in texts]
            filled = [sum(map(bool, (d.title, d.date, d.language))) for d in batch]
            columns = {
                "name": pa.array([f"{document.source}/{document.id}" for document in batch], pa.string()),
                "key": pa.array([_key(text) for text in texts], pa.binary(16)),
                "words": pa.array(num_words, pa.int64()),
                "date": pa.array([_date_number(document.date) for document in batch], pa.int32()),
                "filled": pa.array(filled, pa.int8()),
                "paragraphs": pa.array(paragraphs, pa.list_(pa.uint64())),
            }
            if config.deduplicate.near:
                profiles = [
                    profile(document.title, "\n".join(parts))
                    for document, parts in zip(batch, _untargeted_parts(batch), strict=True)
                ]
                columns["ngrams"] = pa.ListArray.from_arrays(
                    pa.array(begins.astype(np.int32)), pa.array(values, pa.uint32())
                )
                columns["profile"] = pa.array(profiles, pa.large_binary())
                columns["marks"] = pa.array([_hash(Profile(lines).key) for lines in profiles], pa.uint64())
                for number, band in enumerate(_bands(values, begins, config.deduplicate.bands).T):
                    columns[f"band_{number}"] = pa.array(band, pa.uint64())
            tables.append(pa.table(columns))
        if not tables:
            return pa.table({name: pa.array([], pa.null()) for name in ("name", "key")})
        return pa.concat_tables(tables)

    def decide(self, collected: list[Path], config: CorpusConfig) -> pa.Table:
        """Return the documents to drop: the shard of each, its row in the shard, and the reason."""
        found = Collected(collected)
        order = found.best_first()
        # For each document, the document that is kept instead; -1 if it is kept itself.
        replaced_by = np.full(found.number, -1, np.int64)
        _drop_exact(found, order, replaced_by)
        similarities: dict[int, float] = {}
        counts = Counter[str]()
        if config.deduplicate.near and found.number:
            near = find_near(found, order, replaced_by < 0, config.deduplicate, counts)
            for worse, (better, similarity) in near.items():
                replaced_by[worse] = better
                similarities[worse] = similarity
        counts.update(_count_shared_paragraphs(found, replaced_by < 0))
        dropped = np.flatnonzero(replaced_by >= 0)
        names = found.names(np.union1d(dropped, replaced_by[dropped]))
        shards = found.shard_of(dropped)
        reasons = []
        details = []
        for i in dropped.tolist():
            reasons.append("near_duplicate" if i in similarities else "exact_duplicate")
            details.append(_detail(names[replaced_by[i]], similarities.get(i)))
        table = pa.table(
            {
                "shard": pa.array(shards, pa.int64()),
                "row": pa.array(dropped - found.begins[shards], pa.int64()),
                "reason": pa.array(reasons, pa.string()),
                "detail": pa.array(details, pa.string()),
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


# --- one document --------------------------------------------------------------------------------


def _take_batch(documents: Iterator[Document]) -> list[Document]:
    """Return the next documents, until BATCH_DOCUMENTS or BATCH_CHARACTERS is reached."""
    batch = []
    characters = 0
    for document in islice(documents, BATCH_DOCUMENTS):
        batch.append(document)
        characters += document.characters
        if characters >= BATCH_CHARACTERS:
            break
    return batch


def _full_text(document: Document) -> str:
    return "\n".join([document.text, *(f"{turn.role}: {turn.content}" for turn in document.turns)])


def _ngrams(batch: list[Document]) -> tuple[NDArray[np.uint32], Integers, Integers]:
    """Return the 5-grams of documents, in the three arrays that `shingles.ngrams` returns.

    The 5-grams of a conversation come from its text outside the targets. They are combined with a
    hash of the last question and the targets. So conversations with different questions or targets
    have no 5-grams in common.
    """
    untargeted = ["\n".join(parts) for parts in _untargeted_parts(batch)]
    values, begins, num_words = ngrams(untargeted, NGRAM)
    for place, document in enumerate(batch):
        if not document.turns:
            continue
        answer = _words(" ".join(turn.content for turn in document.turns if turn.target))
        lines = reversed(untargeted[place].splitlines())
        question = _words(next((line for line in lines if line.rstrip().endswith("?")), ""))
        key = " ".join([*question, "?", *answer]).encode()
        salt = np.uint32(int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big"))
        own = slice(begins[place], begins[place + 1])
        values[own] = np.sort(values[own] ^ salt)
        num_words[place] += len(answer)
    return values, begins, num_words


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _untargeted_parts(batch: list[Document]) -> Iterator[list[str]]:
    """Yield, for each document, its running text and the turns that are not targets."""
    return ([d.text, *(turn.content for turn in d.turns if not turn.target)] for d in batch)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _key(folded: str) -> bytes:
    return hashlib.blake2b(" ".join(folded.split()).encode(), digest_size=16).digest()


def _date_number(date: str) -> int:
    """Return a date as a number: 20240131 for "2024-01-31", 20240000 for "2024", 0 for ""."""
    digits = "".join(character for character in date[:10] if character.isdecimal())[:8]
    return int(digits.ljust(8, "0")) if len(digits) >= 4 else 0


def _paragraph_hashes(folded: str) -> list[int]:
    """Return the hash of each distinct paragraph that has at least PARAGRAPH_WORDS words."""
    found = (part.split() for part in folded.split("\n") if len(part) >= 2 * PARAGRAPH_WORDS - 1)
    long = {" ".join(words) for words in found if len(words) >= PARAGRAPH_WORDS}
    return sorted(map(_hash, long))


def _bands(values: NDArray[np.uint32], begins: Integers, bands: int) -> NDArray[np.uint64]:
    """Return a hash of each band of each document, as an array [documents, bands].

    A document has PERMUTATIONS minima of hashes (MinHash), which are divided into `bands` bands.

    Args:
        values: the 5-grams of all documents, concatenated.
        begins: the index at which the 5-grams of each document begin.
    """
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


# --- all documents -------------------------------------------------------------------------------


def _detail(name: str, similarity: float | None) -> str:
    return f"same text as {name}" if similarity is None else f"{similarity:.0%} as {name}"


def _drop_exact(found: Collected, order: Integers, replaced_by: Integers) -> None:
    """Set, in `replaced_by`, the document that is kept instead of each exact duplicate.

    Of the documents with the same text, the best is kept.

    Args:
        order: numbers of all documents, from best to worst.
    """
    keys = found.keys()[order]
    by_key = np.lexsort((np.arange(len(order)), keys[:, 1], keys[:, 0]))
    same = (keys[by_key[1:]] == keys[by_key[:-1]]).all(axis=1)
    for first, last in runs(same):
        members = order[by_key[first:last]]
        replaced_by[members[1:]] = members[0]


def _count_shared_paragraphs(found: Collected, kept: NDArray[np.bool_]) -> dict[str, int]:
    """Count the paragraphs that occur in several kept documents.

    Return `shared_paragraphs`, the number of such paragraphs, and `shared_paragraph_copies`, the
    number of their copies after the first. The paragraphs are divided into parts by their hashes,
    and counted part by part, to limit memory.
    """
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
