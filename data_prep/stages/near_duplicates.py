"""The search for near duplicates among all documents of a corpus; a part of stage deduplicate."""

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

from data_prep.distinctions import Profile, are_distinct
from data_prep.shingles import jaccard
from data_prep.stage_settings import DeduplicateConfig

# A document is compared with at most this number of kept documents of its bucket, and with as many
# that have the same title, numbers and names. A larger bucket consists of filled-in copies of one
# form.
MAX_COMPARED = 64
# A document that is distinct from this number of similar documents is taken for a filled-in form.
MAX_DISTINCT = 16
MAX_REMEMBERED = 500_000  # maximum number of pairs that are not compared again in later bands
MAX_PROFILES = 2048  # maximum number of profiles in memory

Integers = NDArray[np.int64]


class Collected:
    """The collected tables of all shards, whose columns are read when they are needed.

    Documents have consecutive numbers, in shard order.

    Attributes:
        begins: for each shard, the number of its first document; then the number of all documents.
        number: the number of documents.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.begins: Integers = np.cumsum([0, *(pq.read_metadata(path).num_rows for path in paths)])
        self.number = int(self.begins[-1])
        self._filled = [path for path, rows in zip(paths, np.diff(self.begins), strict=True) if rows]

    def column(self, name: str) -> NDArray[Any]:
        parts = [_read_column(path, name).to_numpy() for path in self._filled]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def tables(self, name: str) -> Iterator[tuple[int, pa.Array]]:
        """Yield, for each shard with documents, the number of its first document and a column."""
        for path, begin in zip(self.paths, self.begins[:-1].tolist(), strict=True):
            if path in self._filled:
                yield begin, _read_column(path, name).combine_chunks()

    def bands(self) -> list[str]:
        """Return the names of the columns that hold the bands, the parts of the MinHash signatures.

        There must be at least one document.
        """
        return [name for name in pq.read_schema(self._filled[0]).names if name.startswith("band_")]

    def keys(self) -> NDArray[np.uint64]:
        """Return the 128-bit hash of each text, as two 64-bit numbers [documents, 2]."""
        parts = [_read_column(path, "key").combine_chunks() for path in self._filled]
        content = b"".join(
            part.buffers()[1][part.offset * 16 : (part.offset + len(part)) * 16].to_pybytes()
            for part in parts
        )
        return np.frombuffer(content, np.uint64).reshape(-1, 2)

    def best_first(self) -> Integers:
        """Return the numbers of all documents, from best to worst.

        Of several duplicates, the best is kept. deduplicate.py describes the ranking.
        """
        if not self.number:
            return np.zeros(0, np.int64)
        words, date, filled = (self.column(name) for name in ("words", "date", "filled"))
        tenths = np.floor(np.log(np.maximum(words, 1)) / math.log(1.1))
        return np.lexsort((-filled.astype(np.int64), -words, -date.astype(np.int64), -tenths))

    def shard_of(self, documents: Integers) -> Integers:
        """Return the index of each document's shard."""
        return np.searchsorted(self.begins, documents, "right") - 1

    def names(self, documents: Integers) -> dict[int, str]:
        """Return the name (`<source>/<id>`) of each document, by the document's number."""
        found: dict[int, str] = {}
        for begin, names in self.tables("name"):
            own = documents[(documents >= begin) & (documents < begin + len(names))]
            found.update(zip(own.tolist(), names.take(pa.array(own - begin)).to_pylist(), strict=True))
        return found


def _read_column(path: Path, name: str) -> pa.ChunkedArray:
    # pq.read_table takes several times as long for so small a column: it sets up a data set and
    # threads.
    return pq.ParquetFile(path).read([name], use_threads=False)[name]


def runs(same_as_before: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of each run of at least two equal elements of a sorted array.

    Args:
        same_as_before: for each element but the first, True if it equals the element before it.
    """
    edges = np.flatnonzero(np.diff(same_as_before.view(np.int8), prepend=0, append=0))
    return ((first, last + 1) for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def find_near(
    found: Collected,
    order: Integers,
    candidates: NDArray[np.bool_],
    rules: DeduplicateConfig,
    counts: Counter[str],
) -> dict[int, tuple[int, float]]:
    """Find the documents that are near duplicates of a better one.

    Args:
        found: the data collected from all documents.
        order: numbers of all documents, from best to worst.
        candidates: for each document, True if it is compared.
        counts: receives the number of similar documents that are kept. It also receives the number
            of documents that were not compared with all candidates.

    Returns:
        For each near duplicate, the document that is kept instead, and their similarity.
    """
    rank = np.empty(found.number, np.int64)
    rank[order] = np.arange(found.number)
    buckets = [bucket for band in found.bands() for bucket in _buckets(found.column(band), candidates, rank)]
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
            _join_duplicates(bucket, marks, clusters, pairs)
        dropped: dict[int, tuple[int, float]] = {}
        for cluster in clusters.all():
            kept: list[int] = []
            for document in sorted(cluster, key=lambda member: int(rank[member])):
                compared = [(pairs.similarity(document, other), other) for other in kept]
                similarity, other = max(compared, default=(0.0, -1), key=lambda pair: pair[0])
                if similarity > 0:
                    dropped[document] = other, similarity
                else:
                    kept.append(document)
        pairs.times_distinct[list(dropped)] = 0
        counts["similar_but_kept"] += int(np.count_nonzero(pairs.times_distinct))
        counts["near_duplicates_not_compared"] += int(pairs.not_compared.sum())
        return dropped


def _join_duplicates(bucket: Integers, marks: NDArray[np.uint64], clusters: _Clusters, pairs: _Pairs) -> None:
    """Join the duplicates among some documents into clusters.

    Each document is compared with earlier ones that are not duplicates themselves: with the first
    MAX_COMPARED of all, and the first MAX_COMPARED that have the same title, numbers and names. A
    document that is similar to many others but distinct from them is taken for a filled-in form. It
    is compared only with those that have the same title, numbers and names.

    Args:
        bucket: numbers of the documents, the best first.
        marks: for each document, a hash of its title, numbers and names.
    """
    representatives: list[int] = []
    by_marks: dict[int, list[int]] = {}
    for document in bucket.tolist():
        same_marks = by_marks.setdefault(int(marks[document]), [])
        is_form = pairs.times_distinct[document] >= MAX_DISTINCT
        others = same_marks if is_form else [*same_marks, *representatives]
        for other in others:
            if clusters.are_joined(document, other) or pairs.similarity(document, other):
                clusters.join(document, other)
                break
        else:
            pairs.not_compared[document] |= is_form or len(representatives) >= MAX_COMPARED
            for known in (same_marks, representatives):
                if len(known) < MAX_COMPARED:
                    known.append(document)


def _buckets(band: NDArray[np.uint64], candidates: NDArray[np.bool_], rank: Integers) -> Iterator[Integers]:
    """Yield each set of at least two candidates that may be duplicates of each other.

    Such documents have the same hash of a band, a part of the MinHash signature. In each set, the
    best document comes first.

    Args:
        band: for each document, the hash of the band.
        candidates: for each document, True if it is compared.
        rank: for each document, its rank; 0 is the best.
    """
    documents = np.flatnonzero(candidates)
    documents = documents[np.lexsort((rank[documents], band[documents]))]
    same = band[documents[1:]] == band[documents[:-1]]
    for first, last in runs(same):
        yield documents[first:last]


class _Pairs:
    """Comparison of documents by their 5-grams and profiles (see distinctions.py).

    Both are in memory-mapped temporary files.

    Args:
        documents: sorted numbers of the documents that are compared.
        sets: a temporary file for the sets of 5-grams.
        lines: a temporary file for the profiles.

    Attributes:
        times_distinct: for each document, the number of similar documents from which it is
            distinct, up to MAX_DISTINCT.
        not_compared: for each document, True if it was not compared with all candidates.
    """

    def __init__(
        self, found: Collected, documents: Integers, rules: DeduplicateConfig, sets: Any, lines: Any
    ) -> None:
        self._documents = documents
        self._rules = rules
        self._number = found.number
        self._sets, self._set_begins = _map_column(found, documents, "ngrams", np.uint32, sets)
        self._lines, self._line_begins = _map_column(found, documents, "profile", np.uint8, lines)
        self._profile = lru_cache(maxsize=MAX_PROFILES)(self._read_profile)
        self._distinct_pairs: set[int] = set()
        self.times_distinct = np.zeros(found.number, np.uint8)
        self.not_compared = np.zeros(found.number, np.bool_)

    def similarity(self, document: int, other: int) -> float:
        """Return the similarity of two documents; 0 if they are not near duplicates."""
        pair = min(document, other) * self._number + max(document, other)
        if pair in self._distinct_pairs:
            return 0.0
        similarity = jaccard(self._set(document), self._set(other))
        if similarity >= self._rules.similarity:
            if not self._rules.tell_apart or not are_distinct(self._profile(document), self._profile(other)):
                return similarity
            self.times_distinct[document] = min(self.times_distinct[document] + 1, MAX_DISTINCT)
        if len(self._distinct_pairs) < MAX_REMEMBERED:
            self._distinct_pairs.add(pair)
        return 0.0

    def _set(self, document: int) -> NDArray[np.uint32]:
        place = int(np.searchsorted(self._documents, document))
        return self._sets[self._set_begins[place] : self._set_begins[place + 1]]

    def _read_profile(self, document: int) -> Profile:
        place = int(np.searchsorted(self._documents, document))
        content = self._lines[self._line_begins[place] : self._line_begins[place + 1]]
        return Profile(content.tobytes().decode())


def _map_column(
    found: Collected, documents: Integers, name: str, kind: type[np.generic], file: Any
) -> tuple[NDArray[Any], Integers]:
    """Write a column with the data of some documents to a file, and map the file into memory.

    Args:
        documents: sorted numbers of the documents.
        name: name of the column; each of its values is a list or a byte string.
        kind: type of one element.
        file: an empty file.

    Returns:
        The concatenated values, and the index at which the values of each document begin
        [documents + 1].
    """
    lengths = []
    for begin, column in found.tables(name):
        own = documents[(documents >= begin) & (documents < begin + len(column))] - begin
        chosen = column.take(pa.array(own))
        if isinstance(chosen, pa.ListArray):
            lengths.append(np.asarray(pc.list_value_length(chosen), np.int64))
            file.write(chosen.flatten().to_numpy().tobytes())
        else:
            lengths.append(np.asarray(pc.binary_length(chosen), np.int64))
            file.writelines(chosen.to_pylist())
    file.flush()
    begins = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    # An empty file cannot be mapped.
    values = np.memmap(file, kind, "r") if begins[-1] else np.zeros(0, kind)
    return values, begins


class _Clusters:
    """Clusters of documents that are duplicates of each other.

    The data structure is union-find with path halving (Tarjan & van Leeuwen 1984).
    """

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def are_joined(self, a: int, b: int) -> bool:
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
