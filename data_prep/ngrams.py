"""Hashes of all word n-grams of a text, for stages decontaminate and quality."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: odd, with well mixed bits
_MAX_CACHED = 200_000  # words; the cache is cleared above this, and refilled by frequent words


class _HashCache(dict[str, int]):
    """A cache of the hash of each word."""

    def __missing__(self, word: str) -> int:
        number = int.from_bytes(
            hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little"
        )
        self[word] = number
        return number


_cache = _HashCache()


def word_hashes(words: Sequence[str]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each word. A word has the same hash in every process."""
    if len(_cache) > _MAX_CACHED:
        _cache.clear()
    return np.fromiter(map(_cache.__getitem__, words), np.uint64, len(words))


def ngram_hashes(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each sequence of `n` consecutive words, in text order.

    A hash depends on the order of the words in the sequence.

    Args:
        hashes: the hashes of a text's words.
    """
    count = len(hashes) - n + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    combined = hashes[:count].copy()
    for offset in range(1, n):
        combined *= _MULTIPLIER
        combined ^= combined >> np.uint64(29)
        combined += hashes[offset : offset + count]
    return combined
