"""py3langid's scores of many texts at once. For stage language.

py3langid walks through a text byte by byte in Python. Here its automaton takes a step in all texts at once,
in numpy: some ten times as fast, by the same model, and the same scores but for their last digits (py3langid
adds up in single precision).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 2048  # texts that are walked through together: more gains nothing, and takes memory
FEW_LANGUAGES = (
    8  # up to which so many are; with more languages there are fewer, for the memory that their scores take
)
FEW = 16  # texts up to which it takes less time to walk through one after the other
_FEATURE_BITS = 17  # a feature's number and its text's are one number of 32 bits


class LanguageIdentifier:
    """py3langid, held to some languages.

    Args:
        codes: py3langid's codes of the languages that compete. Empty: all that it has.

    Attributes:
        codes: the same in the order of the scores.
        original: py3langid's own.
    """

    def __init__(self, codes: Sequence[str]) -> None:
        # A model of our own: the module-level one is shared with any other code in the process.
        from py3langid.langid import MODEL_FILE, RAW_FLOOR
        from py3langid.langid import LanguageIdentifier as Original

        self.original: Any = Original.from_model_file(MODEL_FILE)
        self.original.set_languages(list(codes) or list(dict.fromkeys(self.original.nb_classes)))
        model = self.original
        self.codes: list[str] = list(model.nb_classes)
        self._floor = RAW_FLOOR  # of a text without any feature, in every language
        self._row = np.asarray(model.tk_row, np.uint32) << np.uint32(8)
        self._move = np.asarray(model.tk_nextmove, np.uint32)
        self._feature = np.asarray(model.tk_output, np.int32)
        self._likelihood = model.nb_ptc.astype(np.float64)
        self._prior = model.nb_pc.astype(np.float64)
        assert len(self._likelihood) <= 2**_FEATURE_BITS

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Log-posterior up to a constant, of shape (texts, codes). A text's score does not depend on the
        others'."""
        at_once = max(1, AT_ONCE * FEW_LANGUAGES // max(FEW_LANGUAGES, len(self.codes)))
        found = [self._scores(texts[begin : begin + at_once]) for begin in range(0, len(texts), at_once)]
        return np.concatenate(found) if found else np.zeros((0, len(self.codes)))

    def _scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        visits = self._visits_of_few if len(texts) <= FEW else self._visits
        keys = np.sort(visits([self.original._encode(text) for text in texts]))
        first = np.flatnonzero(np.diff(keys, prepend=np.uint32(2**32 - 1)))
        counts, keys = np.diff(first, append=len(keys)), keys[first]
        logs = np.log1p(np.arange(counts.max(initial=0) + 1))
        terms = logs[counts][:, None] * self._likelihood[keys & np.uint32(2**_FEATURE_BITS - 1)]
        begins = np.searchsorted(keys >> np.uint32(_FEATURE_BITS), np.arange(len(texts) + 1))
        scores = np.full((len(texts), len(self.codes)), self._floor)
        some = np.flatnonzero(np.diff(begins))
        if len(some):
            scores[some] = np.add.reduceat(terms, begins[some], axis=0) + self._prior
        return scores

    def _visits_of_few(self, texts: list[bytes]) -> NDArray[np.uint32]:
        from py3langid.langid import visit_counts

        model, found = self.original, [np.zeros(0, np.uint32)]
        for number, text in enumerate(texts):
            if counts := visit_counts(model.tk_nextmove, model._rowbase, model.tk_output, text):
                features = np.fromiter(counts, np.uint32, len(counts)) | np.uint32(number << _FEATURE_BITS)
                found.append(np.repeat(features, list(counts.values())))
        return np.concatenate(found)

    def _visits(self, texts: list[bytes]) -> NDArray[np.uint32]:
        """A number for each time that a feature is met: the text's, and behind it the feature's."""
        lengths = np.array([len(text) for text in texts])
        order = np.argsort(
            -lengths, kind="stable"
        )  # long ones first: those that are left at a step are the first ones
        letters = np.zeros((lengths.max(), len(texts)), np.uint8)
        for column, text in enumerate(order.tolist()):
            letters[: lengths[text], column] = np.frombuffer(texts[text], np.uint8)
        left = np.searchsorted(-lengths[order], -np.arange(len(letters)))
        owner = order.astype(np.uint32) << np.uint32(_FEATURE_BITS)
        state = np.zeros(len(texts), np.uint32)
        found = [np.zeros(0, np.uint32)]
        for step, number in enumerate(left.tolist()):
            state = self._move[self._row[state[:number]] + letters[step, :number]]
            feature = self._feature[state]
            met = feature >= 0
            found.append(owner[:number][met] | feature[met].astype(np.uint32))
        return np.concatenate(found)
