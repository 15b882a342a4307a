"""Sets of hashed word n-grams (shingles), for the comparison of documents in stage deduplicate.

A word is a run of letters and digits, without regard to case. All other characters separate words.
The hash of an n-gram has 32 bits. So the probability is about 1 in 4,000 that two sets of a
thousand n-grams have a hash in common by chance.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

CHUNK = 2**20  # bytes that are hashed at a time
# Frequent characters outside ASCII that are not letters.
_SEPARATORS = "«»„“”‘’‹›–—−…·•§\u00a0\u202f\u2009\u2028\u2029"
# 2^64 / golden ratio, odd: Knuth's multiplicative hashing.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
_IS_WORD = np.zeros(256, np.bool_)
_IS_WORD[[*range(48, 58), *range(65, 91), *range(97, 123), *range(128, 256)]] = True

Numbers = NDArray[np.uint32]


def ngrams(texts: list[str], n: int) -> tuple[Numbers, NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorted hashes of the distinct n-grams of each text.

    A text with fewer than n words counts as one n-gram. A text without words has none.

    Returns:
        A tuple of three arrays. The first has the hashes of the n-grams of all texts, concatenated.
        The second has the index at which the n-grams of each text begin; its last value is the
        number of all n-grams. The third has the number of words of each text.
    """
    raw = [_fold(text).encode() for text in texts]
    starts, hashes = _hash_words(b"\n".join(raw))
    text_begins = np.cumsum([0, *(len(part) + 1 for part in raw)])
    word_begins = np.searchsorted(starts, text_begins)
    num_words = np.diff(word_begins)
    owner = np.repeat(np.arange(len(texts), dtype=np.uint64), num_words)
    count = max(len(hashes) - n + 1, 0)
    combined = hashes[:count].copy()
    for place in range(1, n):
        combined = _mix(combined) + hashes[place : place + count]
    is_in_one_text = owner[:count] == owner[n - 1 :] if count else np.zeros(0, np.bool_)
    # A key has the index of the text in its high bits and the hash of the n-gram in its low bits.
    mixed = _mix(combined[is_in_one_text])
    keys = [(owner[:count][is_in_one_text] << np.uint64(32)) | (mixed >> np.uint64(32))]
    for text in np.flatnonzero((num_words > 0) & (num_words < n)):
        value = np.zeros(1, np.uint64)
        for place in range(word_begins[text], word_begins[text + 1]):
            value = _mix(value + hashes[place])
        keys.append((np.uint64(text) << np.uint64(32)) | (value >> np.uint64(32)))
    # np.unique takes five times as long, because it uses hash tables.
    every = np.sort(np.concatenate(keys))
    distinct = every[np.diff(every, prepend=~every[:1]) != 0]
    begins = np.searchsorted(distinct, np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(32))
    return distinct.astype(np.uint32), begins, num_words


def jaccard(a: Numbers, b: Numbers) -> float:
    """Return the Jaccard similarity of two sets: |intersection| / |union|; 0 if both are empty."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(len(a) + len(b) - shared, 1)


def _fold(text: str) -> str:
    """Return a text in lower case, in which a space replaces each character of _SEPARATORS."""
    text = text.casefold()
    if text.isascii():
        return text
    for separator in _SEPARATORS:
        text = text.replace(separator, " ")
    return text


@np.errstate(over="ignore")
def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = value * _MULTIPLIER
    return (value ^ (value >> np.uint64(32))) * _MULTIPLIER


@np.errstate(over="ignore")
def _hash_words(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return the offset and the hash of each word.

    A word's hash is computed from a polynomial whose coefficients are its bytes. To compute it for
    all words at once, the terms of the polynomial of the whole text are summed cumulatively. A
    word's polynomial is the sum at its end minus the sum at its beginning, divided by the power at
    its beginning.
    """
    content = np.frombuffer(data, np.uint8)
    edges = np.flatnonzero(np.diff(_IS_WORD[content].view(np.int8), prepend=0, append=0))
    starts = edges[::2]
    ends = edges[1::2]
    hashes = np.empty(len(starts), np.uint64)
    first = 0
    while first < len(starts):
        base = starts[first]
        last = int(np.searchsorted(ends, base + CHUNK, "right"))
        last = max(last, first + 1)  # a word that is longer than a chunk is a chunk of its own
        powers, inverses = _powers(1 << int(ends[last - 1] - base).bit_length())
        piece = content[base : ends[last - 1]]
        terms = (piece + np.uint64(1)) * powers[: len(piece)]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms)])
        begin = starts[first:last] - base
        hashes[first:last] = (sums[ends[first:last] - base] - sums[begin]) * inverses[begin]
        first = last
    return starts, _mix(hashes)


@lru_cache(maxsize=2)
@np.errstate(over="ignore")
def _powers(length: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the powers of the hash's multiplier, and the powers of its inverse, modulo 2^64.

    Args:
        length: the highest exponent.
    """
    powers, inverses = (
        np.multiply.accumulate(np.concatenate([np.ones(1, np.uint64), np.full(length, base, np.uint64)]))
        for base in (_MULTIPLIER, _INVERSE)
    )
    return powers, inverses
