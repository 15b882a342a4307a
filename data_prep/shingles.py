"""Sets of word n-grams as numbers, many documents at once, by which stage deduplicate compares documents.

A word is a run of letters and digits, whatever its case; all else only parts words. An n-gram is 32 bits of a
hash of the hashes of its words, so two sets of a thousand share an n-gram by chance once in four thousand
times.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

CHUNK = 2**20  # bytes hashed at a time
_PARTING = (
    "«»„“”‘’‹›–—−…·•§\u00a0\u202f\u2009\u2028\u2029"  # of what is not ASCII, the usual that are no letters
)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: Knuth's multiplicative hashing
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
_IS_WORD = np.zeros(256, np.bool_)
_IS_WORD[[*range(48, 58), *range(65, 91), *range(97, 123), *range(128, 256)]] = True

Numbers = NDArray[np.uint32]


def ngrams(texts: list[str], n: int) -> tuple[Numbers, NDArray[np.int64], NDArray[np.int64]]:
    """The n-grams of each text, sorted and each once; a text of fewer words is one n-gram, one without words
    has none.

    Returns:
        All n-grams, where those of each text begin in them (one more than texts), and the number of words of
        each text.
    """
    raw = [_plain(text).encode() for text in texts]
    starts, hashes = _words(b"\n".join(raw))
    text_begins = np.cumsum([0, *(len(part) + 1 for part in raw)])
    word_begins = np.searchsorted(starts, text_begins)
    num_words = np.diff(word_begins)
    owner = np.repeat(np.arange(len(texts), dtype=np.uint64), num_words)
    count = max(len(hashes) - n + 1, 0)
    combined = hashes[:count].copy()
    for place in range(1, n):
        combined = _mixed(combined) + hashes[place : place + count]
    whole = owner[:count] == owner[n - 1 :] if count else np.zeros(0, np.bool_)
    keys = [(owner[:count][whole] << np.uint64(32)) | (_mixed(combined[whole]) >> np.uint64(32))]
    for text in np.flatnonzero((num_words > 0) & (num_words < n)):
        value = np.zeros(1, np.uint64)
        for place in range(word_begins[text], word_begins[text + 1]):
            value = _mixed(value + hashes[place])
        keys.append((np.uint64(text) << np.uint64(32)) | (value >> np.uint64(32)))
    every = np.sort(np.concatenate(keys))  # np.unique goes by hash tables, which takes five times as long
    distinct = every[np.diff(every, prepend=~every[:1]) != 0]
    begins = np.searchsorted(distinct, np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(32))
    return distinct.astype(np.uint32), begins, num_words


def jaccard(a: Numbers, b: Numbers) -> float:
    """Size of what two sets share over the size of both together; 0 for two empty ones."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(len(a) + len(b) - shared, 1)


def _plain(text: str) -> str:
    text = text.casefold()
    for mark in _PARTING if not text.isascii() else "":
        text = text.replace(mark, " ")
    return text


@np.errstate(over="ignore")
def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = value * _MULTIPLIER
    return (value ^ (value >> np.uint64(32))) * _MULTIPLIER


@np.errstate(over="ignore")
def _words(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Where the words begin, and their hashes: the polynomial of their bytes, as a difference of the sums up
    to both ends."""
    content = np.frombuffer(data, np.uint8)
    edges = np.flatnonzero(np.diff(_IS_WORD[content].view(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]
    hashes = np.empty(len(starts), np.uint64)
    first = 0
    while first < len(starts):
        base = starts[first]
        last = max(
            int(np.searchsorted(ends, base + CHUNK, "right")), first + 1
        )  # a longer word is a chunk of its own
        powers, inverses = _powers(1 << int(ends[last - 1] - base).bit_length())
        piece = content[base : ends[last - 1]]
        sums = np.concatenate(
            [np.zeros(1, np.uint64), np.cumsum((piece + np.uint64(1)) * powers[: len(piece)])]
        )
        begin = starts[first:last] - base
        hashes[first:last] = (sums[ends[first:last] - base] - sums[begin]) * inverses[begin]
        first = last
    return starts, _mixed(hashes)


@lru_cache(maxsize=2)
@np.errstate(over="ignore")
def _powers(length: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of the multiplier, and of its inverse modulo 2^64."""
    powers, inverses = (
        np.multiply.accumulate(np.concatenate([np.ones(1, np.uint64), np.full(length, base, np.uint64)]))
        for base in (_MULTIPLIER, _INVERSE)
    )
    return powers, inverses
