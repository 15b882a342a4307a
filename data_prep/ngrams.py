"""Hashes of all word n-grams of a text, for stages decontaminate and quality."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: odd, with well mixed bits
_MAX_CACHED = 200_000  # words whose hashes are cached: most words of a text are frequent ones


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
    """Return a hash of 64 bits for each word, which is the same in every process."""
    if len(_cache) > _MAX_CACHED:
        _cache.clear()
    return np.fromiter(map(_cache.__getitem__, words), np.uint64, len(words))


def ngram_hashes(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Return a hash of each sequence of `n` words, in the order of their first words.

    It is a polynomial of the words' hashes modulo 2^64, so it depends on the order of the words.
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
