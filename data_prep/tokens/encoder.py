"""Encoding of running text to token ids, by gigatoken if it is exact, else by tokenizers.

gigatoken (MIT) is some fifty times as fast as tokenizers, but young, so its output is checked.
Before a corpus is tokenised, both libraries must give the same ids for a sample of it. While it is
tokenised, one text of each batch is compared again. Texts for which the ids could differ are always
encoded by tokenizers. These texts contain the characters of special tokens (such as "<s>"), or
scripts and signs whose properties differ between versions of Unicode.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from itertools import compress, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_prep.user_error import UserError

GIGATOKEN = "gigatoken"
TOKENIZERS = "tokenizers"
# Length of the texts on which the libraries are compared; tokenizers is slow for longer texts.
COMPARED_CHARACTERS = 20_000
COMPARED_AT_ONCE = 100  # number of texts that tokenizers encodes together, in parallel
# gigatoken is loaded again after this number of characters: its cache of words has no limit.
RELOAD_AFTER = 100_000_000
# All characters except Latin, Greek and Cyrillic letters, punctuation, arrows, mathematical and
# geometric signs. The properties of these have long been stable in Unicode.
_UNSTABLE = re.compile(
    "[^\t\n -~\u00a0-\u024f\u0370-\u03ff\u0400-\u045f\u2010-\u2027\u202f-\u205e\u2070-\u25ff]"
)

Ids = NDArray[np.int32]


def choose(tokenizer_file: Path, sample: Iterable[str], wanted: str = "auto") -> dict[str, str]:
    """Choose the library that encodes the running text of a corpus with this tokenizer.

    Args:
        sample: texts of the corpus, on which both libraries are compared.
        wanted: the setting tokenizer.library: `auto`, or `tokenizers`, which needs no comparison.

    Returns:
        The name of the library, its version, and the reason for the choice, as {"library": …,
        "version": …, "reason": …}.
    """
    by_tokenizers = {"library": TOKENIZERS, "version": tokenizers.__version__}
    if wanted == TOKENIZERS:
        return {**by_tokenizers, "reason": "as set"}
    try:
        installed = version(GIGATOKEN)
        encoder = TextEncoder(tokenizer_file, GIGATOKEN)
    except (ImportError, PackageNotFoundError):
        return {**by_tokenizers, "reason": "gigatoken is not installed (pip install 'finetune[fast]')"}
    except Exception as fault:  # an unsupported tokenizer may raise an error of any class
        detail = " ".join(str(fault).split())[:200]
        return {**by_tokenizers, "reason": f"gigatoken cannot read this tokenizer: {detail}"}
    has_compared = False
    stable = (text for text in sample if encoder.is_stable(text))
    while texts := list(islice(stable, COMPARED_AT_ONCE)):
        has_compared = True
        if not all(map(np.array_equal, encoder.encode_fast(texts), encoder.encode_slow(texts))):
            return {**by_tokenizers, "reason": "gigatoken gave other tokens for a text of the corpus"}
    if not has_compared:
        return {**by_tokenizers, "reason": "no text to compare gigatoken with tokenizers on"}
    return {
        "library": GIGATOKEN,
        "version": installed,
        "reason": "the same tokens as tokenizers on a sample of the corpus",
    }


class TextEncoder:
    """An encoder of running text. It adds the tokens that the tokenizer puts around a sequence.

    Attributes:
        tokenizer: the tokenizer, as an object of the library tokenizers. If a text contains the
            characters of a special token, such as "<s>", it encodes them as text.
    """

    def __init__(self, tokenizer_file: Path, library: str = TOKENIZERS) -> None:
        self._file = tokenizer_file
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True
        self._gigatoken: Any = None
        self._num_characters = 0  # number encoded since gigatoken was loaded
        if library == GIGATOKEN:
            body = json.loads(tokenizer_file.read_text(encoding="utf-8"))
            special = [token["content"] for token in body.get("added_tokens") or [] if token.get("special")]
            self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
            before, after = self._find_frame()
            self._before = np.array(before, np.int32)
            self._after = np.array(after, np.int32)
            self._load()

    def __call__(self, texts: list[str]) -> list[Ids]:
        """Return the ids of each text, in order.

        Raises:
            UserError: gigatoken gave wrong ids for a text; earlier ids may be wrong too.
        """
        if self._gigatoken is None:
            return self.encode_slow(texts)
        is_stable = list(map(self.is_stable, texts))
        stable = list(compress(texts, is_stable))
        if not stable:
            return self.encode_slow(texts)
        stable_ids = self.encode_fast(stable)
        self._check_one(stable, stable_ids)
        other = [text for text, is_fast in zip(texts, is_stable, strict=True) if not is_fast]
        fast = iter(stable_ids)
        slow = iter(self.encode_slow(other))
        return [next(fast if is_fast else slow) for is_fast in is_stable]

    def _check_one(self, texts: list[str], ids: list[Ids]) -> None:
        """Compare gigatoken's ids of one text of a batch with those of tokenizers.

        Raises:
            UserError: the ids differ.
        """
        for text, found in zip(texts, ids, strict=True):
            if len(text) <= COMPARED_CHARACTERS:
                if not np.array_equal(found, self.encode_slow([text])[0]):
                    raise UserError(
                        "corpus.tokenizer.library: gigatoken and tokenizers gave different tokens for "
                        "a text, although they agreed on the sample; set it to tokenizers"
                    )
                return

    def is_stable(self, text: str) -> bool:
        """Return whether gigatoken and tokenizers can be expected to give a text the same ids."""
        return not _UNSTABLE.search(text) and not self._special.search(text)

    def encode_slow(self, texts: list[str]) -> list[Ids]:
        """Encode texts with the library tokenizers."""
        if not texts:
            return []
        encodings = self.tokenizer.encode_batch_fast(texts)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_fast(self, texts: list[str]) -> list[Ids]:
        """Encode texts with gigatoken, in one thread, because each core already runs a process."""
        self._num_characters += sum(map(len, texts))
        if self._num_characters > RELOAD_AFTER:
            self._load()
        # The result is an awkward array: the ids of all texts, and the offset at which the ids of
        # each text begin.
        found = self._gigatoken.encode_batch(texts, parallel=False).layout
        ids = found.content.data.astype(np.int32)
        rows = [ids[begin:end] for begin, end in pairwise(found.offsets.data.tolist())]
        if not len(self._before) + len(self._after):
            return rows
        return [np.concatenate([self._before, row, self._after]) for row in rows]

    def _load(self) -> None:
        import gigatoken

        self._gigatoken = gigatoken.Tokenizer.from_json(self._file.read_text(encoding="utf-8")).backend
        self._num_characters = 0

    def _find_frame(self) -> tuple[list[int], list[int]]:
        """Return the ids that the tokenizer's post-processor adds before a text and after it.

        They must be added to gigatoken's ids, because gigatoken does not do it.
        """
        framed = self.tokenizer.encode("a", add_special_tokens=True).ids
        bare = self.tokenizer.encode("a", add_special_tokens=False).ids
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return framed[:start], framed[start + len(bare) :]
        # The post-processor changes the ids of the text itself, so `choose` finds a difference.
        return [], []
