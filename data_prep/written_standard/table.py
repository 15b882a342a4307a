"""Bokmål or Nynorsk, and Norwegian or a neighbour, by tables of log-odds: of words, their endings and their
beginnings.

The two standards share most of their words' stems, and with Danish too; what tells them apart is small words
(ikke, ikkje; av, af), endings of three and four letters (-ene, -ane; -jon, -hed) and beginnings of four
(hvor-, kvar-). A table is naive Bayes over these, in the manner of Cavnar and Trenkle's n-grams (1994), made
by train.py from the texts that README.md names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import repeat

STANDARDS_TABLE = "nob_nno.tsv"  # Nynorsk against Bokmål
NEIGHBOURS = {"dan": "nor_dan.tsv", "swe": "nor_swe.tsv"}  # each against Norwegian, both standards
_WORD = re.compile(r"[^\W\d_]+")
_REMEMBERED = 100_000  # words; a corpus uses few words often


def features(word: str) -> Iterator[str]:
    """What of a word in lower case the table may know: the word, -ing and -ning as endings, begi- as a
    beginning."""
    yield word
    if len(word) > 3:
        yield f"-{word[-3:]}"
        yield f"{word[:4]}-"
    if len(word) > 4:
        yield f"-{word[-4:]}"


def words(text: str) -> list[str]:
    """The text's words in lower case; digits and signs part them."""
    return _WORD.findall(text.lower())


class Table:
    """Log-odds of one language against another by feature."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights
        self._scores = _Scores(weights)

    def score(self, words: Iterable[str]) -> float:
        """Log-odds (nats) that a text of these words is in the first language: below zero it is the other,
        near 0 nothing tells.

        They are those of words that know nothing of each other, so far too sure of long texts.
        """
        total = math.fsum(map(self._scores.__getitem__, words))
        if len(self._scores) > _REMEMBERED:
            self._scores = _Scores(self.weights)
        return total


class _Scores(dict[str, float]):
    """The log-odds of each word, added up when it is first asked for."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights

    def __missing__(self, word: str) -> float:
        score = self[word] = sum(map(self._weights.get, features(word), repeat(0.0)))
        return score


@cache
def shipped_table(name: str = STANDARDS_TABLE) -> Table:
    """A table that comes with the package."""
    lines = (files("data_prep.written_standard") / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines if not line.startswith("#"))
    return Table({feature: float(weight) for feature, weight in pairs})
