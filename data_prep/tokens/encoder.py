"""Texts to token ids: by gigatoken, where it is installed and gives what tokenizers gives, else by
tokenizers.

gigatoken (MIT) is some fifty times as fast, and young. So it is never taken at its word: before a corpus is
tokenised it must give the same ids as tokenizers on a sample of it; texts in which the two could differ
(special tokens spelt out, scripts and signs of which versions of Unicode know different things) always go to
tokenizers; and of every batch one text is compared again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_prep.user_error import UserError

GIGATOKEN, TOKENIZERS = "gigatoken", "tokenizers"
COMPARED_CHARACTERS = 20_000  # of a text that is compared; longer ones would take tokenizers too long
COMPARED_AT_ONCE = 100  # texts, by as many threads as there are cores
RENEWED_AFTER = 100_000_000  # characters: gigatoken remembers each word it has seen, without bounds
# All but Latin, Greek and Cyrillic letters, punctuation, arrows, mathematical and geometric signs: Unicode
# has long left them.
_UNSETTLED = re.compile(
    "[^\t\n -~\u00a0-\u024f\u0370-\u03ff\u0400-\u045f\u2010-\u2027\u202f-\u205e\u2070-\u25ff]"
)

Ids = NDArray[np.int32]


def choose(tokenizer_file: Path, sample: Iterable[str], wanted: str = "auto") -> dict[str, str]:
    """Choose the library that encodes a corpus with this tokenizer: {"library": …, "version": …, "reason":
    …}.

    Args:
        sample: texts of the corpus.
        wanted: `auto`, or `tokenizers`, which needs no comparison.
    """
    by_tokenizers = {"library": TOKENIZERS, "version": tokenizers.__version__}
    if wanted == TOKENIZERS:
        return {**by_tokenizers, "reason": "as set"}
    try:
        installed = version(GIGATOKEN)
        encoder = TextEncoder(tokenizer_file, GIGATOKEN)
    except (ImportError, PackageNotFoundError):
        return {**by_tokenizers, "reason": "gigatoken is not installed (pip install 'finetune[fast]')"}
    except Exception as fault:  # whatever a young library raises at a tokenizer it does not know
        return {
            **by_tokenizers,
            "reason": f"gigatoken cannot read this tokenizer: {' '.join(str(fault).split())[:200]}",
        }
    compared = False
    settled = (text for text in sample if encoder.is_settled(text))
    while texts := list(islice(settled, COMPARED_AT_ONCE)):
        compared = True
        if not all(map(np.array_equal, encoder.fast(texts), encoder.slow(texts))):
            return {**by_tokenizers, "reason": "gigatoken gave other tokens for a text of the corpus"}
    if not compared:
        return {**by_tokenizers, "reason": "no text to compare gigatoken with tokenizers on"}
    return {
        "library": GIGATOKEN,
        "version": installed,
        "reason": "the same tokens as tokenizers on a sample of the corpus",
    }


class TextEncoder:
    """The token ids of texts, with what the tokenizer puts around a sequence (a beginning, an end).

    Attributes:
        tokenizer: tokenizers' own. It takes the text of a special token ("<s>") for text.
    """

    def __init__(self, tokenizer_file: Path, library: str = TOKENIZERS) -> None:
        self._file = tokenizer_file
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True
        self._gigatoken: Any = None
        self._seen = 0
        if library == GIGATOKEN:
            body = json.loads(tokenizer_file.read_text(encoding="utf-8"))
            special = [token["content"] for token in body.get("added_tokens") or [] if token.get("special")]
            self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
            self._before, self._after = (np.array(part, np.int32) for part in self._frame())
            self._load()

    def __call__(self, texts: list[str]) -> list[Ids]:
        """Return the ids of each text, in order.

        Raises:
            UserError: gigatoken turns out to be wrong. What it gave before may be wrong too.
        """
        is_settled = [self._gigatoken is not None and self.is_settled(text) for text in texts]
        settled = [text for text, settled in zip(texts, is_settled, strict=True) if settled]
        if not settled:
            return self.slow(texts)
        fast = self.fast(settled)
        compared = next(
            (place for place, text in enumerate(settled) if len(text) <= COMPARED_CHARACTERS), None
        )
        if compared is not None and not np.array_equal(fast[compared], self.slow([settled[compared]])[0]):
            raise UserError(
                "gigatoken gave other tokens than tokenizers for a text, though not for those of the first comparison: set "
                "corpus.tokenizer.library=tokenizers"
            )
        other = iter(
            self.slow([text for text, settled in zip(texts, is_settled, strict=True) if not settled])
        )
        quick = iter(fast)
        return [next(quick if settled else other) for settled in is_settled]

    def is_settled(self, text: str) -> bool:
        """Return whether there is nothing in the text that the two libraries are known to treat
        differently."""
        return not _UNSETTLED.search(text) and not self._special.search(text)

    def slow(self, texts: list[str]) -> list[Ids]:
        return (
            [np.array(encoding.ids, np.int32) for encoding in self.tokenizer.encode_batch_fast(texts)]
            if texts
            else []
        )

    def fast(self, texts: list[str]) -> list[Ids]:
        self._seen += sum(map(len, texts))
        if self._seen > RENEWED_AFTER:
            self._load()
        # In this thread: there is a process for each core already. An awkward array: all ids, and where each
        # text's begin.
        found = self._gigatoken.encode_batch(texts, parallel=False).layout
        ids, begins = found.content.data.astype(np.int32), found.offsets.data.tolist()
        rows = [ids[begin:end] for begin, end in pairwise(begins)]
        if not len(self._before) + len(self._after):
            return rows
        return [np.concatenate([self._before, row, self._after]) for row in rows]

    def _load(self) -> None:
        import gigatoken

        self._gigatoken = gigatoken.Tokenizer.from_json(self._file.read_text(encoding="utf-8")).backend
        self._seen = 0

    def _frame(self) -> tuple[list[int], list[int]]:
        """Return what the tokenizer's post-processor puts before and after a text; gigatoken leaves it
        out."""
        with_frame, bare = (
            self.tokenizer.encode("a", add_special_tokens=special).ids for special in (True, False)
        )
        for start in range(len(with_frame) - len(bare) + 1):
            if with_frame[start : start + len(bare)] == bare:
                return with_frame[:start], with_frame[start + len(bare) :]
        return [], []  # a frame that changes the text itself: the comparison will tell
