"""Sequences of words as numbers: all of a text's, at once. For stages decontaminate and quality."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: odd, with well mixed bits
_REMEMBERED = 200_000  # words whose numbers are kept: a corpus uses few words often


class _Numbers(dict[str, int]):
    """A number of 64 bits for each word, made when it is first asked for."""

    def __missing__(self, word: str) -> int:
        number = int.from_bytes(
            hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little"
        )
        self[word] = number
        return number


_known = _Numbers()


def word_numbers(words: Sequence[str]) -> NDArray[np.uint64]:
    """A number of 64 bits for each word, the same in every process."""
    if len(_known) > _REMEMBERED:
        _known.clear()
    return np.fromiter(map(_known.__getitem__, words), np.uint64, len(words))


def ngram_hashes(numbers: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """The hash of each sequence of `n` of the numbers, by its first place: a polynomial modulo 2^64, which
    knows their order."""
    places = len(numbers) - n + 1
    if places < 1:
        return np.zeros(0, np.uint64)
    hashes = numbers[:places].copy()
    for offset in range(1, n):
        hashes *= _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
        hashes += numbers[offset : offset + places]
    return hashes
