"""Tables of log-odds that distinguish Bokmål from Nynorsk, and Danish and Swedish from Norwegian.

Bokmål, Nynorsk and Danish share most word stems. They are distinguished by small words (ikke,
ikkje; av, af), endings of three and four letters (-ene, -ane; -jon, -hed) and beginnings of four
letters (hvor-, kvar-). A table is a naive Bayes classifier over these features, similar to Cavnar
and Trenkle's n-grams (1994). train.py computes the tables from the texts that README.md names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import repeat

STANDARDS_TABLE = "nob_nno.tsv"  # Nynorsk against Bokmål
# Danish and Swedish, each against both standards of Norwegian.
NEIGHBOURS = {"dan": "nor_dan.tsv", "swe": "nor_swe.tsv"}
_WORD = re.compile(r"[^\W\d_]+")
_MAX_CACHED_WORDS = 100_000


def iter_features(word: str) -> Iterator[str]:
    """Yield the features of a lower-case word.

    They are the word itself, its last three and four letters (-ing, -ning) and its first four
    letters (begi-). Short words have fewer features.
    """
    yield word
    if len(word) > 3:
        yield f"-{word[-3:]}"
        yield f"{word[:4]}-"
    if len(word) > 4:
        yield f"-{word[-4:]}"


def words(text: str) -> list[str]:
    """Return the words of a text in lower case. A word is a run of letters."""
    return _WORD.findall(text.lower())


class Table:
    """Log-odds of features, in nats, for one language against another language.

    Args:
        weights: the log-odds of each feature.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights
        self._scores = _Scores(weights)

    def score(self, words: Iterable[str]) -> float:
        """Return the log-odds, in nats, that a text of these words is in the first language.

        If they are negative, the other language is more probable. The words are treated as
        independent, so the log-odds of a long text overstate the certainty by far.
        """
        total = math.fsum(map(self._scores.__getitem__, words))
        if len(self._scores) > _MAX_CACHED_WORDS:
            self._scores = _Scores(self.weights)
        return total


class _Scores(dict[str, float]):
    """Cache of the log-odds of words.

    The log-odds of a word are summed over its features when the word is first looked up.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights

    def __missing__(self, word: str) -> float:
        score = self[word] = sum(map(self._weights.get, iter_features(word), repeat(0.0)))
        return score


@cache
def load_shipped_table(name: str = STANDARDS_TABLE) -> Table:
    """Return one of the tables in the package.

    Args:
        name: file name of the table.
    """
    lines = (files("data_prep.written_standard") / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines if not line.startswith("#"))
    return Table({feature: float(weight) for feature, weight in pairs})
