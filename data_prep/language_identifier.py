"""py3langid's scores, computed for many texts at once. Used by stage language.

py3langid runs its automaton over each text, byte by byte, in Python. Here numpy advances the
automaton by one byte in all texts at once, which is about ten times as fast. The model is the same.
The scores differ in their last digits only, because py3langid sums in single precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Texts in a batch, for up to FEW_LANGUAGES languages. Larger batches need more memory and are not
# faster. With more languages, batches are smaller in proportion, because the scores take memory.
BATCH_SIZE = 2048
FEW_LANGUAGES = 8
FEW = 16  # up to this number of texts, one by one is faster than a batch
# A key has 32 bits: the text's index in the upper bits, the feature's index in these lower bits.
_FEATURE_BITS = 17


class LanguageIdentifier:
    """py3langid's model, restricted to some languages.

    Args:
        codes: py3langid's codes of the languages; empty for all that it has.

    Attributes:
        codes: py3langid's code of each column of scores.
        original: py3langid's own identifier.
    """

    def __init__(self, codes: Sequence[str]) -> None:
        # The model is loaded again, because all code in the process shares py3langid's own object.
        from py3langid.langid import MODEL_FILE, RAW_FLOOR
        from py3langid.langid import LanguageIdentifier as Original

        self.original: Any = Original.from_model_file(MODEL_FILE)
        self.original.set_languages(list(codes) or list(dict.fromkeys(self.original.nb_classes)))
        model = self.original
        self.codes: list[str] = list(model.nb_classes)
        self._floor = RAW_FLOOR  # score of a text without features, for every language
        self._row = np.asarray(model.tk_row, np.uint32) << np.uint32(8)
        self._move = np.asarray(model.tk_nextmove, np.uint32)
        self._feature = np.asarray(model.tk_output, np.int32)
        self._likelihood = model.nb_ptc.astype(np.float64)
        self._prior = model.nb_pc.astype(np.float64)
        assert len(self._likelihood) <= 2**_FEATURE_BITS

    def compute_scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the score of each language for each text, as an array [texts, codes].

        A score is the logarithm of the language's probability, plus a constant that is the same for
        all languages of a text. It does not depend on the other texts.
        """
        size = max(1, BATCH_SIZE * FEW_LANGUAGES // max(FEW_LANGUAGES, len(self.codes)))
        batches = [self._score_batch(texts[begin : begin + size]) for begin in range(0, len(texts), size)]
        return np.concatenate(batches) if batches else np.zeros((0, len(self.codes)))

    def _score_batch(self, texts: Sequence[str]) -> NDArray[np.float64]:
        find_keys = self._find_keys_one_by_one if len(texts) <= FEW else self._find_keys
        all_keys = np.sort(find_keys([self.original._encode(text) for text in texts]))
        first = np.flatnonzero(np.diff(all_keys, prepend=np.uint32(2**32 - 1)))
        counts = np.diff(first, append=len(all_keys))
        keys = all_keys[first]
        logs = np.log1p(np.arange(counts.max(initial=0) + 1))
        terms = logs[counts][:, None] * self._likelihood[keys & np.uint32(2**_FEATURE_BITS - 1)]
        begins = np.searchsorted(keys >> np.uint32(_FEATURE_BITS), np.arange(len(texts) + 1))
        scores = np.full((len(texts), len(self.codes)), self._floor)
        with_features = np.flatnonzero(np.diff(begins))
        if len(with_features):
            scores[with_features] = np.add.reduceat(terms, begins[with_features], axis=0) + self._prior
        return scores

    def _find_keys_one_by_one(self, texts: list[bytes]) -> NDArray[np.uint32]:
        from py3langid.langid import visit_counts

        model = self.original
        keys = [np.zeros(0, np.uint32)]
        for number, text in enumerate(texts):
            counts = visit_counts(model.tk_nextmove, model._rowbase, model.tk_output, text)
            if counts:
                features = np.fromiter(counts, np.uint32, len(counts)) | np.uint32(number << _FEATURE_BITS)
                keys.append(np.repeat(features, list(counts.values())))
        return np.concatenate(keys)

    def _find_keys(self, texts: list[bytes]) -> NDArray[np.uint32]:
        """Return a key for each occurrence of a feature (a byte sequence that py3langid knows).

        The key consists of the index of the text and the index of the feature (`_FEATURE_BITS`).
        """
        lengths = np.array([len(text) for text in texts])
        # Long texts come first. So the texts that have not ended at a step come before the others.
        order = np.argsort(-lengths, kind="stable")
        letters = np.zeros((lengths.max(), len(texts)), np.uint8)
        for column, text in enumerate(order.tolist()):
            letters[: lengths[text], column] = np.frombuffer(texts[text], np.uint8)
        num_left = np.searchsorted(-lengths[order], -np.arange(len(letters)))
        owner = order.astype(np.uint32) << np.uint32(_FEATURE_BITS)
        state = np.zeros(len(texts), np.uint32)
        keys = [np.zeros(0, np.uint32)]
        for step, num_texts in enumerate(num_left.tolist()):
            state = self._move[self._row[state[:num_texts]] + letters[step, :num_texts]]
            feature = self._feature[state]
            has_feature = feature >= 0
            keys.append(owner[:num_texts][has_feature] | feature[has_feature].astype(np.uint32))
        return np.concatenate(keys)
