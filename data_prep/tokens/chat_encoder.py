"""Token ids and their places in a rendered conversation, for chat_template.py. Running text has
encoder.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, processors

FIRST_PLACEHOLDER, NUM_PLACEHOLDERS = 0xFDD0, 31  # noncharacters, which Unicode keeps out of text
PLACEHOLDERS = re.compile("[\ufdd0-\ufdef]")
Span = tuple[int, int]


@dataclass
class Tokens:
    """Tokens with where they stand in the rendered text: [tokens] each. `control` marks added tokens, but
    those of white space, with which some vocabularies are merely made smaller."""

    ids: np.ndarray[Any, np.dtype[np.int64]]
    start: np.ndarray[Any, np.dtype[np.int64]]
    stop: np.ndarray[Any, np.dtype[np.int64]]
    control: np.ndarray[Any, np.dtype[np.bool_]]


class ChatEncoder:
    """A tokenizer for pieces of a longer text: nothing is put before or after them, and places are exact.

    Args:
        tokenizer_file: tokenizer.json.
    """

    def __init__(self, tokenizer_file: Path) -> None:
        self._with_control, self._as_text = (Tokenizer.from_file(str(tokenizer_file)) for _ in range(2))
        self._as_text.encode_special_tokens = True
        for tokenizer in (self._with_control, self._as_text):
            tokenizer.no_padding()
            tokenizer.no_truncation()
            tokenizer.post_processor = processors.Sequence(
                []
            )  # the usual one takes spaces out of the offsets
        added = self._with_control.get_added_tokens_decoder()
        self.special = {token.content for token in added.values() if token.special}
        self.added = {token.content for token in added.values() if token.content.strip()}
        self._added_ids = np.asarray(
            [number for number, token in added.items() if token.content in self.added], np.int64
        )

    def first(self, text: str) -> list[int]:
        """Encode plain text at the beginning of a sequence: control tokens in it are text."""
        return list(self._as_text.encode(text, add_special_tokens=False).ids)

    def following(self, text: str) -> list[int]:
        """Encode plain text that goes on from other text."""
        return _in_the_middle(self._as_text, text)[0]

    def rendered(self, text: str, literal: list[str], cuts: list[int]) -> Tokens:
        """Encode a rendered conversation, in which control tokens are control tokens.

        Args:
            literal: what the placeholders stand for, by number: control tokens that a content spells.
            cuts: places that no token may span.
        """
        places = [match.start() for match in PLACEHOLDERS.finditer(text)]
        borders = sorted({0, len(text), *cuts, *places, *(place + 1 for place in places)})
        ids: list[int] = []
        offsets: list[Span] = []
        for begin, end in pairwise(borders):
            if begin in places:
                piece = self._spelled(literal[ord(text[begin]) - FIRST_PLACEHOLDER])
                ids, offsets = ids + piece, offsets + [(begin, end)] * len(piece)
                continue
            if begin == 0:
                encoding = self._with_control.encode(text[:end], add_special_tokens=False)
                piece, at = encoding.ids, encoding.offsets
            else:
                piece, at = _in_the_middle(self._with_control, text[begin:end])
            ids, offsets = ids + piece, offsets + [(start + begin, stop + begin) for start, stop in at]
        ids_, offsets_ = np.asarray(ids, np.int64), np.asarray(offsets, np.int64).reshape(-1, 2)
        return Tokens(ids_, offsets_[:, 0], offsets_[:, 1], np.isin(ids_, self._added_ids))

    def _spelled(self, token: str) -> list[int]:
        """Encode a control token's characters as text. The library lets only special ones be text; the others
        are broken up."""
        return (
            self.following(token)
            if token in self.special
            else self.following(token[0]) + self.following(token[1:])
        )


def _in_the_middle(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[Span]]:
    """Encode what stands inside a longer text. SentencePiece's kin put a space before whatever they are
    given: here it comes before a line break, which is taken off again."""
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    encoding = tokenizer.encode("\n" + text, add_special_tokens=False)
    if (
        newline
        and encoding.ids[: len(newline)] == newline
        and all(stop <= 1 for _, stop in encoding.offsets[: len(newline)])
    ):
        rest = slice(len(newline), None)
        return list(encoding.ids[rest]), [(start - 1, stop - 1) for start, stop in encoding.offsets[rest]]
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return list(encoding.ids), list(encoding.offsets)
