"""Tables of log-odds that distinguish Bokmål from Nynorsk, and Danish and Swedish from Norwegian.

The two standards share most of their words' stems, also with Danish. They are distinguished by
small words (ikke, ikkje; av, af), endings of three and four letters (-ene, -ane; -jon, -hed) and
beginnings of four (hvor-, kvar-). A table is a naive Bayes classifier over these features, similar
to Cavnar and Trenkle's n-grams (1994). train.py computes the tables from the texts that README.md
names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import repeat

STANDARDS_TABLE = "nob_nno.tsv"  # Nynorsk against Bokmål
NEIGHBOURS = {"dan": "nor_dan.tsv", "swe": "nor_swe.tsv"}  # each against both standards of Norwegian
_WORD = re.compile(r"[^\W\d_]+")
_MAX_CACHED_WORDS = 100_000


def iter_features(word: str) -> Iterator[str]:
    """Yield a lower-case word's features: itself, endings (-ing, -ning) and beginning (begi-)."""
    yield word
    if len(word) > 3:
        yield f"-{word[-3:]}"
        yield f"{word[:4]}-"
    if len(word) > 4:
        yield f"-{word[-4:]}"


def words(text: str) -> list[str]:
    """Return the words of a text in lower case: its runs of letters."""
    return _WORD.findall(text.lower())


class Table:
    """Log-odds, in nats, of one language against another by feature."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights
        self._scores = _Scores(weights)

    def score(self, words: Iterable[str]) -> float:
        """Return the log-odds that a text of these words is in the first language, in nats.

        Below zero, it is rather in the other language. The words are treated as independent, so the
        score of a long text overstates the certainty by far.
        """
        total = math.fsum(map(self._scores.__getitem__, words))
        if len(self._scores) > _MAX_CACHED_WORDS:
            self._scores = _Scores(self.weights)
        return total


class _Scores(dict[str, float]):
    """Cache of each word's log-odds, summed over its features when the word is first looked up."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights

    def __missing__(self, word: str) -> float:
        score = self[word] = sum(map(self._weights.get, iter_features(word), repeat(0.0)))
        return score


@cache
def load_shipped_table(name: str = STANDARDS_TABLE) -> Table:
    """Return a table that is part of the package."""
    lines = (files("data_prep.written_standard") / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines if not line.startswith("#"))
    return Table({feature: float(weight) for feature, weight in pairs})
