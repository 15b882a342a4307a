"""Encoding of rendered conversations to token ids with character offsets, for chat_template.py.

Running text is encoded by encoder.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, processors

# Noncharacters, which Unicode reserves for internal use: they do not occur in text.
FIRST_PLACEHOLDER = 0xFDD0
NUM_PLACEHOLDERS = 31
PLACEHOLDERS = re.compile("[\ufdd0-\ufdef]")
Span = tuple[int, int]


@dataclass
class Tokens:
    """Tokens of a rendered text; all arrays have the shape [tokens].

    Attributes:
        ids: the token ids.
        start, stop: the offsets at which each token begins and ends, in characters of the text.
        control: True for added tokens, except those that consist of white space, with which some
            vocabularies encode indentation.
    """

    ids: np.ndarray[Any, np.dtype[np.int64]]
    start: np.ndarray[Any, np.dtype[np.int64]]
    stop: np.ndarray[Any, np.dtype[np.int64]]
    control: np.ndarray[Any, np.dtype[np.bool_]]


class ChatEncoder:
    """An encoder of parts of a longer text. It adds no tokens, and its offsets are exact.

    Args:
        tokenizer_file: path of the file tokenizer.json.

    Attributes:
        special: the tokens that the tokenizer declares special.
        added: all added tokens, except tokens of white space.
    """

    def __init__(self, tokenizer_file: Path) -> None:
        self._with_control = Tokenizer.from_file(str(tokenizer_file))
        self._as_text = Tokenizer.from_file(str(tokenizer_file))
        self._as_text.encode_special_tokens = True
        for tokenizer in (self._with_control, self._as_text):
            tokenizer.no_padding()
            tokenizer.no_truncation()
            # The usual post-processor excludes leading spaces from the offsets.
            tokenizer.post_processor = processors.Sequence([])
        added = self._with_control.get_added_tokens_decoder()
        self.special = {token.content for token in added.values() if token.special}
        self.added = {token.content for token in added.values() if token.content.strip()}
        self._added_ids = np.asarray(
            [number for number, token in added.items() if token.content in self.added], np.int64
        )

    def encode_start(self, text: str) -> list[int]:
        """Encode text at the beginning of a sequence.

        The characters of a control token in the text are encoded as text.
        """
        return list(self._as_text.encode(text, add_special_tokens=False).ids)

    def encode_continuation(self, text: str) -> list[int]:
        """Encode text that continues other text.

        The characters of a control token in the text are encoded as text.
        """
        return _encode_inside(self._as_text, text)[0]

    def encode_rendered(self, text: str, literal: list[str], cuts: list[int]) -> Tokens:
        """Encode a rendered conversation, in which control tokens become single tokens.

        Args:
            literal: strings in messages that look like control tokens. A placeholder in `text` with
                the number n stands for literal[n], which is encoded as text.
            cuts: character offsets that no token may span.
        """
        places = [match.start() for match in PLACEHOLDERS.finditer(text)]
        borders = sorted({0, len(text), *cuts, *places, *(place + 1 for place in places)})
        all_ids: list[int] = []
        all_offsets: list[Span] = []
        for begin, end in pairwise(borders):
            if begin in places:
                ids = self._encode_spelled(literal[ord(text[begin]) - FIRST_PLACEHOLDER])
                all_ids += ids
                all_offsets += [(begin, end)] * len(ids)
                continue
            if begin == 0:
                encoding = self._with_control.encode(text[:end], add_special_tokens=False)
                ids, offsets = encoding.ids, encoding.offsets
            else:
                ids, offsets = _encode_inside(self._with_control, text[begin:end])
            all_ids += ids
            all_offsets += [(start + begin, stop + begin) for start, stop in offsets]
        id_array = np.asarray(all_ids, np.int64)
        offset_array = np.asarray(all_offsets, np.int64).reshape(-1, 2)
        is_control = np.isin(id_array, self._added_ids)
        return Tokens(id_array, offset_array[:, 0], offset_array[:, 1], is_control)

    def _encode_spelled(self, token: str) -> list[int]:
        """Encode the characters of a control token as plain text, not as the control token.

        The library can encode only special tokens as text. The first character of any other
        control token is encoded separately from the rest.
        """
        if token in self.special:
            return self.encode_continuation(token)
        return self.encode_continuation(token[0]) + self.encode_continuation(token[1:])


def _encode_inside(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[Span]]:
    """Return the ids and offsets of a text that continues other text.

    SentencePiece-like tokenizers add a space at the beginning of each text. So the text is encoded
    with a line break before it, and the tokens of the line break are removed afterwards.
    """
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    encoding = tokenizer.encode("\n" + text, add_special_tokens=False)
    num_newline = len(newline)
    begins_with_newline = encoding.ids[:num_newline] == newline and all(
        stop <= 1 for _, stop in encoding.offsets[:num_newline]
    )
    if newline and begins_with_newline:
        offsets = [(start - 1, stop - 1) for start, stop in encoding.offsets[num_newline:]]
        return list(encoding.ids[num_newline:]), offsets
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return list(encoding.ids), list(encoding.offsets)
