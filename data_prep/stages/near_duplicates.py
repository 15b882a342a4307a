"""A part of stage deduplicate (deduplicate.py): the search for near duplicates among all documents of a
corpus."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.distinctions import Profile, tell_apart
from data_prep.shingles import jaccard
from data_prep.stage_settings import DeduplicateConfig

# Kept documents of a bucket that a further one is compared with, beside those with its title, numbers and
# names: beyond, the bucket is a form.
MAX_COMPARED = 64
MAX_TOLD_APART = 16  # documents that one is told apart from, before it counts as one of a form
REMEMBERED = 500_000  # pairs that do not say the same, so that they are not compared again in the next band
PROFILES = 2048  # that are in memory at a time

Integers = NDArray[np.int64]


class Collected:
    """What was collected of all documents, which are numbered through in shard order; columns are read when
    they are needed."""

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

    def bands(self) -> list[str]:
        """The names of the columns that hold the bands; there must be a document."""
        return [name for name in pq.read_schema(self._filled[0]).names if name.startswith("band_")]

    def keys(self) -> NDArray[np.uint64]:
        """The hashes of the texts, as pairs of numbers."""
        parts = [_column(path, "key").combine_chunks() for path in self._filled]
        whole = b"".join(
            part.buffers()[1][part.offset * 16 : (part.offset + len(part)) * 16].to_pybytes()
            for part in parts
        )
        return np.frombuffer(whole, np.uint64).reshape(-1, 2)

    def best_first(self) -> Integers:
        """All documents, the best first: see the head of deduplicate.py."""
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


def runs(same_as_before: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Stretches of at least two, given for all but the first whether it is the same as the one before it."""
    edges = np.flatnonzero(np.diff(same_as_before.view(np.int8), prepend=0, append=0))
    return ((first, last + 1) for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def find_near(
    found: Collected,
    order: Integers,
    alive: NDArray[np.bool_],
    rules: DeduplicateConfig,
    counts: Counter[str],
) -> dict[int, tuple[int, float]]:
    """Of every document that is lost, the one it is lost to, and how similar they are."""
    rank = np.empty(found.number, np.int64)
    rank[order] = np.arange(found.number)
    buckets = [bucket for band in found.bands() for bucket in _buckets(found.column(band), alive, rank)]
    if not buckets:
        return {}
    with (
        tempfile.TemporaryFile(dir=found.paths[0].parent) as sets,
        tempfile.TemporaryFile(dir=found.paths[0].parent) as lines,
    ):
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

    Documents with the same title, numbers and names are compared however many others there are in a bucket;
    with others those that were told apart from many are not: they are of a form.
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


def _buckets(band: NDArray[np.uint64], alive: NDArray[np.bool_], rank: Integers) -> Iterator[Integers]:
    """Documents that agree in a band, the best first."""
    documents = np.flatnonzero(alive)
    documents = documents[np.lexsort((rank[documents], band[documents]))]
    same = band[documents[1:]] == band[documents[:-1]]
    for first, last in runs(same):
        yield documents[first:last]


class _Pairs:
    """The documents that are compared: their 5-grams, titles, names and words, in files that are mapped into
    memory."""

    def __init__(
        self, found: Collected, documents: Integers, rules: DeduplicateConfig, sets: Any, lines: Any
    ) -> None:
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
        return Profile(
            self._lines[self._line_begins[place] : self._line_begins[place + 1]].tobytes().decode()
        )


def _mapped(
    found: Collected, documents: Integers, name: str, kind: type[np.generic], file: Any
) -> tuple[NDArray[Any], Integers]:
    """A column of lists or bytes of some documents, strung together in a file, and where those of each
    begin."""
    lengths = []
    for begin, column in found.tables(name):
        own = documents[(documents >= begin) & (documents < begin + len(column))] - begin
        chosen = column.take(pa.array(own))
        is_list = isinstance(chosen, pa.ListArray)
        lengths.append(
            np.asarray(pc.list_value_length(chosen) if is_list else pc.binary_length(chosen), np.int64)
        )
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
