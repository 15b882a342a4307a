"""Exact and near duplicates, over all sources. Of documents that say the same, the best is kept, wherever it stands.

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
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rensa import RMinHash

from data_prep.config import CorpusConfig, DeduplicateConfig
from data_prep.distinctions import Profile, profile, tell_apart
from data_prep.document import Document, Report
from data_prep.shingles import jaccard, ngrams
from data_prep.stages.protocol import CorpusStage

NGRAM, PERMUTATIONS, SEED = 5, 128, 42
BATCH_DOCUMENTS, BATCH_CHARACTERS = 500, 2_000_000
PARAGRAPH_WORDS = 12  # shorter ones are headings and formulas
# Kept documents of a bucket that a further one is compared with, beside those with its title, numbers and names:
# beyond, the bucket is a form.
MAX_COMPARED = 64
MAX_TOLD_APART = 16  # documents that one is told apart from, before it counts as one of a form
REMEMBERED = 500_000  # pairs that do not say the same, so that they are not compared again in the next band
PROFILES = 2048  # that are in memory at a time
PARAGRAPHS_AT_ONCE = 20_000_000

_WORD = re.compile(r"\w+")

Integers = NDArray[np.int64]


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
        """A row a document: a hash of its text, what makes it better or worse, and its bands, 5-grams and paragraphs."""
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
                columns["ngrams"] = pa.ListArray.from_arrays(pa.array(begins.astype(np.int32)), pa.array(values, pa.uint32()))
                profiles = [
                    profile(document.title, "\n".join(asked)) for document, asked in zip(batch, _asked(batch), strict=True)
                ]
                columns["profile"] = pa.array(profiles, pa.large_binary())
                columns["marks"] = pa.array([_hash(Profile(lines).key) for lines in profiles], pa.uint64())
                for number, band in enumerate(_bands(values, begins, config.deduplicate.bands).T):
                    columns[f"band_{number}"] = pa.array(band, pa.uint64())
            tables.append(pa.table(columns))
        return pa.concat_tables(tables) if tables else pa.table({name: pa.array([], pa.null()) for name in ("name", "key")})

    def decide(self, collected: list[Path], config: CorpusConfig) -> pa.Table:
        """Which rows of which shards go, and why."""
        found = _Collected(collected)
        order = found.best_first()
        kept_by = np.full(found.number, -1, np.int64)  # of each document, the one that is kept in its place
        similar: dict[int, float] = {}
        _exact(found, order, kept_by)
        counts = Counter[str]()
        if config.deduplicate.near and found.number:
            for worse, (better, similarity) in _near(found, order, kept_by < 0, config.deduplicate, counts).items():
                kept_by[worse], similar[worse] = better, similarity
        counts.update(_shared_paragraphs(found, kept_by < 0))
        lost = np.flatnonzero(kept_by >= 0)
        names = found.names(np.union1d(lost, kept_by[lost]))
        table = pa.table(
            {
                "shard": pa.array(found.shard_of(lost), pa.int64()),
                "row": pa.array(lost - found.begins[found.shard_of(lost)], pa.int64()),
                "reason": pa.array(["near_duplicate" if i in similar else "exact_duplicate" for i in lost.tolist()], pa.string()),
                "detail": pa.array([_detail(names[kept_by[i]], similar.get(i)) for i in lost.tolist()], pa.string()),
            }
        )
        return table.replace_schema_metadata({"counts": json.dumps(counts)})

    def run(self, documents: Iterator[Document], config: CorpusConfig, report: Report, decided: pa.Table) -> Iterator[Document]:
        dropped = {row["row"]: (row["reason"], row["detail"]) for row in decided.to_pylist()}
        for row, document in enumerate(documents):
            if row in dropped:
                report.drop(document, *dropped[row])
            else:
                yield document


# --- one document ----------------------------------------------------------------------------------------------------


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
            answer = _WORD.findall(" ".join(turn.content for turn in document.turns if turn.target).casefold())
            lines = reversed(asked[place].splitlines())
            question = _WORD.findall(next((line for line in lines if line.rstrip().endswith("?")), "").casefold())
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
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(values.astype(np.uint64), begins.astype(np.uint64), PERMUTATIONS, SEED)
    rows = PERMUTATIONS // bands
    minima = np.array(matrix.to_rows(), np.uint64)[:, : bands * rows].reshape(len(begins) - 1, bands, rows)
    folded = np.zeros(minima.shape[:2], np.uint64)
    for row in range(rows):
        folded = (folded ^ minima[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        folded ^= folded >> np.uint64(29)
    return folded


# --- all documents ---------------------------------------------------------------------------------------------------


class _Collected:
    """What was collected of all documents, which are numbered through in shard order; columns are read when they are needed."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.begins: Integers = np.cumsum([0, *(pq.read_metadata(path).num_rows for path in paths)])
        self.number = int(self.begins[-1])
        self._filled = [path for path, rows in zip(paths, np.diff(self.begins), strict=True) if rows]

    def column(self, name: str) -> NDArray[Any]:
        parts = [_column(path, name).to_numpy() for path in self._filled]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def tables(self, name: str) -> Iterator[tuple[int, pa.Array]]:
        """A column shard by shard, with the number of its first document."""
        for path, begin in zip(self.paths, self.begins[:-1].tolist(), strict=True):
            if path in self._filled:
                yield begin, _column(path, name).combine_chunks()

    def keys(self) -> NDArray[np.uint64]:
        """The hashes of the texts, as pairs of numbers."""
        parts = [_column(path, "key").combine_chunks() for path in self._filled]
        whole = b"".join(part.buffers()[1][part.offset * 16 : (part.offset + len(part)) * 16].to_pybytes() for part in parts)
        return np.frombuffer(whole, np.uint64).reshape(-1, 2)

    def best_first(self) -> Integers:
        """All documents, the best first: see the head of this file."""
        if not self.number:
            return np.zeros(0, np.int64)
        words, date, filled = (self.column(name) for name in ("words", "date", "filled"))
        tenths = np.floor(np.log(np.maximum(words, 1)) / math.log(1.1))
        return np.lexsort((-filled.astype(np.int64), -words, -date.astype(np.int64), -tenths))

    def shard_of(self, documents: Integers) -> Integers:
        return np.searchsorted(self.begins, documents, "right") - 1

    def names(self, documents: Integers) -> dict[int, str]:
        found: dict[int, str] = {}
        for begin, names in self.tables("name"):
            own = documents[(documents >= begin) & (documents < begin + len(names))]
            found.update(zip(own.tolist(), names.take(pa.array(own - begin)).to_pylist(), strict=True))
        return found


def _column(path: Path, name: str) -> pa.ChunkedArray:
    """Without pq.read_table's data set and threads, which take several times as long as so small a column."""
    return pq.ParquetFile(path).read([name], use_threads=False)[name]


def _detail(name: str, similarity: float | None) -> str:
    return f"same text as {name}" if similarity is None else f"{similarity:.0%} as {name}"


def _exact(found: _Collected, order: Integers, kept_by: Integers) -> None:
    """Of those with the same hash, all but the best are lost to it."""
    keys = found.keys()[order]
    by_key = np.lexsort((np.arange(len(order)), keys[:, 1], keys[:, 0]))
    same = (keys[by_key[1:]] == keys[by_key[:-1]]).all(axis=1)
    for first, last in _runs(same):
        members = order[by_key[first:last]]
        kept_by[members[1:]] = members[0]


def _runs(same_as_before: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Stretches of at least two, given for all but the first whether it is the same as the one before it."""
    edges = np.flatnonzero(np.diff(same_as_before.view(np.int8), prepend=0, append=0))
    return ((first, last + 1) for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _near(
    found: _Collected, order: Integers, alive: NDArray[np.bool_], rules: DeduplicateConfig, counts: Counter[str]
) -> dict[int, tuple[int, float]]:
    """Of every document that is lost, the one it is lost to, and how similar they are."""
    rank = np.empty(found.number, np.int64)
    rank[order] = np.arange(found.number)
    buckets = [bucket for band in _band_names(found) for bucket in _buckets(found.column(band), alive, rank)]
    if not buckets:
        return {}
    with tempfile.TemporaryFile(dir=found.paths[0].parent) as sets, tempfile.TemporaryFile(dir=found.paths[0].parent) as lines:
        pairs = _Pairs(found, np.unique(np.concatenate(buckets)), rules, sets, lines)
        clusters = _Clusters()
        marks = found.column("marks")
        for bucket in buckets:
            _join(bucket, marks, clusters, pairs)
        lost: dict[int, tuple[int, float]] = {}
        for cluster in clusters.all():
            kept: list[int] = []
            for document in sorted(cluster, key=lambda member: int(rank[member])):
                compared = [(pairs.similarity(document, other), other) for other in kept]
                closest, other = max(compared, default=(0.0, -1), key=lambda pair: pair[0])
                if closest > 0:
                    lost[document] = other, closest
                else:
                    kept.append(document)
        pairs.times_told_apart[list(lost)] = 0
        counts["similar_but_kept"] += int(np.count_nonzero(pairs.times_told_apart))
        counts["near_duplicates_not_compared"] += int(pairs.not_compared.sum())
        return lost


def _join(bucket: Integers, marks: NDArray[np.uint64], clusters: _Clusters, pairs: _Pairs) -> None:
    """Join what says the same in a bucket.

    Documents with the same title, numbers and names are compared however many others there are in a bucket; with others those
    that were told apart from many are not: they are of a form.
    """
    representatives: list[int] = []
    by_marks: dict[int, list[int]] = {}
    for document in bucket.tolist():
        alike = by_marks.setdefault(int(marks[document]), [])
        is_of_form = pairs.times_told_apart[document] >= MAX_TOLD_APART
        for other in alike if is_of_form else (*alike, *representatives):
            if clusters.joined(document, other) or pairs.similarity(document, other):
                clusters.join(document, other)
                break
        else:
            pairs.not_compared[document] |= is_of_form or len(representatives) >= MAX_COMPARED
            for known in (alike, representatives):
                if len(known) < MAX_COMPARED:
                    known.append(document)


def _band_names(found: _Collected) -> list[str]:
    names = pq.read_schema(found._filled[0]).names
    return [name for name in names if name.startswith("band_")]


def _buckets(band: NDArray[np.uint64], alive: NDArray[np.bool_], rank: Integers) -> Iterator[Integers]:
    """Documents that agree in a band, the best first."""
    documents = np.flatnonzero(alive)
    documents = documents[np.lexsort((rank[documents], band[documents]))]
    same = band[documents[1:]] == band[documents[:-1]]
    for first, last in _runs(same):
        yield documents[first:last]


class _Pairs:
    """The documents that are compared: their 5-grams, titles, names and words, in files that are mapped into memory."""

    def __init__(self, found: _Collected, documents: Integers, rules: DeduplicateConfig, sets: Any, lines: Any) -> None:
        self._documents, self._rules, self._number = documents, rules, found.number
        self._sets, self._set_begins = _mapped(found, documents, "ngrams", np.uint32, sets)
        self._lines, self._line_begins = _mapped(found, documents, "profile", np.uint8, lines)
        self._profile = lru_cache(maxsize=PROFILES)(self._read_profile)
        self._others: set[int] = set()
        self.times_told_apart = np.zeros(found.number, np.uint8)
        self.not_compared = np.zeros(found.number, np.bool_)

    def similarity(self, document: int, other: int) -> float:
        """How similar two documents are that say the same; 0 of two that do not."""
        pair = min(document, other) * self._number + max(document, other)
        if pair in self._others:
            return 0.0
        similarity = jaccard(self._set(document), self._set(other))
        if similarity >= self._rules.similarity:
            if not self._rules.tell_apart or not tell_apart(self._profile(document), self._profile(other)):
                return similarity
            self.times_told_apart[document] = min(self.times_told_apart[document] + 1, MAX_TOLD_APART)
        if len(self._others) < REMEMBERED:
            self._others.add(pair)
        return 0.0

    def _set(self, document: int) -> NDArray[np.uint32]:
        place = int(np.searchsorted(self._documents, document))
        return self._sets[self._set_begins[place] : self._set_begins[place + 1]]

    def _read_profile(self, document: int) -> Profile:
        place = int(np.searchsorted(self._documents, document))
        return Profile(self._lines[self._line_begins[place] : self._line_begins[place + 1]].tobytes().decode())


def _mapped(
    found: _Collected, documents: Integers, name: str, kind: type[np.generic], file: Any
) -> tuple[NDArray[Any], Integers]:
    """A column of lists or bytes of some documents, strung together in a file, and where those of each begin."""
    lengths = []
    for begin, column in found.tables(name):
        own = documents[(documents >= begin) & (documents < begin + len(column))] - begin
        chosen = column.take(pa.array(own))
        is_list = isinstance(chosen, pa.ListArray)
        lengths.append(np.asarray(pc.list_value_length(chosen) if is_list else pc.binary_length(chosen), np.int64))
        for part in [chosen.flatten().to_numpy().tobytes()] if is_list else chosen.to_pylist():
            file.write(part)
    file.flush()
    begins = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return np.memmap(file, kind, "r") if begins[-1] else np.zeros(0, kind), begins


class _Clusters:
    """Union-find with path halving (Tarjan & van Leeuwen 1984)."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def joined(self, a: int, b: int) -> bool:
        return self._root(a) == self._root(b)

    def join(self, a: int, b: int) -> None:
        a, b = sorted((self._root(a), self._root(b)))
        self._parent[b] = a

    def all(self) -> list[list[int]]:
        clusters: dict[int, list[int]] = {}
        for member in sorted(self._parent):
            clusters.setdefault(self._root(member), []).append(member)
        return [cluster for cluster in clusters.values() if len(cluster) > 1]

    def _root(self, member: int) -> int:
        parent = self._parent
        parent.setdefault(member, member)
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member


def _shared_paragraphs(found: _Collected, kept: NDArray[np.bool_]) -> dict[str, int]:
    """How many paragraphs stand in more than one kept document, and how often beyond once. Counted in parts, by hash."""
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
