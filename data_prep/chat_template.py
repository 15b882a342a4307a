"""Conversations as tokens, with what the model must learn to write marked.

What a model sees when it is asked is the conversation so far, rendered by its chat template with a generation prompt; what it
must then write is what the template adds for its answer, up to and with the token that ends its turn. Exactly that is marked:

- by the template itself, where it has `{% generation %}` around the assistant's part (transformers, TRL): its author's word is
  taken, also on turns that it rewrites;
- else by rendering twice: a turn is what `render(messages[:i + 1])` adds to `render(messages[:i], add_generation_prompt=True)`.

Some templates rewrite history: Qwen3's leaves out the thoughts of earlier turns. There the long rendering does not go on from
the short one, and a turn inside it is not what the model would have written. Each such turn becomes a row of its own, which ends
with it and in which alone it is a target; the row is what the model would have seen at that moment.

Control tokens are those of the template. The same characters inside a content are text: they are replaced by one placeholder
each (a Unicode noncharacter) while the template is rendered, and encoded as plain text afterwards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, processors

from data_prep.document import Turn

# For tokenizers without a template of their own: ChatML's form, with the beginning and end of a sequence around each turn, so
# that it needs no token that a plain tokenizer lacks, and every program that stops at the end of a sequence stops.
DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
{{ bos_token + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ bos_token + 'assistant\\n' }}
{%- endif -%}
"""

_FIRST_PLACEHOLDER, _NUM_PLACEHOLDERS = 0xFDD0, 32  # noncharacters, which Unicode keeps out of text
_PLACEHOLDERS = re.compile("[\ufdd0-\ufdef]")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_THOUGHT_ENDS = "</think>"

Span = tuple[int, int]


class Refused(ValueError):
    """A conversation that the template cannot render, or renders so that its answers cannot be told for certain."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass
class Row:
    """Tokens of a document, or of its beginning up to a turn; `mask` is 1 at targets."""

    input_ids: list[int] | NDArray[np.int32]
    mask: list[int] | NDArray[np.int8]


@dataclass
class _Tokens:
    """Tokens with where they stand in the rendered text: [tokens] each. `control` marks added tokens, but those of white space,
    with which some vocabularies are merely made smaller."""

    ids: np.ndarray[Any, np.dtype[np.int64]]
    start: np.ndarray[Any, np.dtype[np.int64]]
    stop: np.ndarray[Any, np.dtype[np.int64]]
    control: np.ndarray[Any, np.dtype[np.bool_]]


class Encoder:
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
            tokenizer.post_processor = processors.Sequence([])  # the usual one takes spaces out of the offsets
        added = self._with_control.get_added_tokens_decoder()
        self.special = {token.content for token in added.values() if token.special}
        self.added = {token.content for token in added.values() if token.content.strip()}
        self._added_ids = np.asarray([number for number, token in added.items() if token.content in self.added], np.int64)

    def first(self, text: str) -> list[int]:
        """Plain text at the beginning of a sequence: control tokens in it are text."""
        return list(self._as_text.encode(text, add_special_tokens=False).ids)

    def following(self, text: str) -> list[int]:
        """Plain text that goes on from other text."""
        return _in_the_middle(self._as_text, text)[0]

    def rendered(self, text: str, literal: list[str], cuts: list[int]) -> _Tokens:
        """A rendered conversation, in which control tokens are control tokens.

        Args:
            literal: what the placeholders stand for, by number: control tokens that a content spells.
            cuts: places that no token may span.
        """
        places = [match.start() for match in _PLACEHOLDERS.finditer(text)]
        borders = sorted({0, len(text), *cuts, *places, *(place + 1 for place in places)})
        ids: list[int] = []
        offsets: list[Span] = []
        for begin, end in pairwise(borders):
            if begin in places:
                piece = self._spelled(literal[ord(text[begin]) - _FIRST_PLACEHOLDER])
                ids, offsets = ids + piece, offsets + [(begin, end)] * len(piece)
                continue
            if begin == 0:
                encoding = self._with_control.encode(text[:end], add_special_tokens=False)
                piece, at = encoding.ids, encoding.offsets
            else:
                piece, at = _in_the_middle(self._with_control, text[begin:end])
            ids, offsets = ids + piece, offsets + [(start + begin, stop + begin) for start, stop in at]
        ids_, offsets_ = np.asarray(ids, np.int64), np.asarray(offsets, np.int64).reshape(-1, 2)
        return _Tokens(ids_, offsets_[:, 0], offsets_[:, 1], np.isin(ids_, self._added_ids))

    def _spelled(self, token: str) -> list[int]:
        """A control token's characters as text. The library lets only special ones be text; the others are broken up."""
        return self.following(token) if token in self.special else self.following(token[0]) + self.following(token[1:])


class ChatTemplate:
    """A chat template with its tokenizer.

    Args:
        source: the Jinja text.
        variables: what the template may use beside the messages: the tokenizer's special tokens and the corpus' arguments.
        name: where the template comes from, for messages.

    Raises:
        ValueError: the template does not even render a question and its answer.
    """

    def __init__(self, source: str, variables: dict[str, Any], encoder: Encoder, name: str) -> None:
        self._source, self._variables, self._encoder = source, variables, encoder
        self._has_markers = bool(_GENERATION.search(source))
        question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
        try:
            frame, whole = self._render([question]), self._render([question, answer]).rstrip()
        except Refused as fault:
            raise ValueError(f"chat template of {name} fails on a question and its answer: {fault}") from None
        # Tokens that are not called special, but frame turns all the same, are control tokens too.
        control = encoder.special | {token for token in encoder.added if token in frame}
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)")
        ends = [match[0] for match in self._control.finditer(whole) if match.end() == len(whole)]
        self._end_of_turn = ends[0] if ends else None

    def rows(self, turns: list[Turn], eos_token_id: int, everything: bool) -> list[Row]:
        """A conversation as rows: one, or more where the template rewrites history.

        Args:
            everything: one row of the whole conversation, in which every token is a target.

        Raises:
            Refused: the template cannot render it, or its answers cannot be told for certain.
        """
        literal: list[str] = []
        messages = [{"role": turn.role, "content": self._protected(turn.content, literal)} for turn in turns]
        wanted = [i for i, turn in enumerate(turns) if turn.target]
        if everything:
            rendered: list[tuple[str, list[Span]]] = [(text := self._render(messages), [(0, len(text))])]
        else:
            messages = messages[: wanted[-1] + 1]  # nothing is learned from what comes after the last answer
            rendered = self._by_markers(messages, wanted) if self._has_markers else self._by_prefixes(messages, wanted)
        return [self._row(text, spans, literal, eos_token_id) for text, spans in reversed(rendered)]

    def _by_markers(self, messages: list[dict[str, str]], wanted: list[int]) -> list[tuple[str, list[Span]]]:
        spans: list[Span] = []
        text = self._render(messages, spans_into=spans)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(spans) != len(answers):
            raise Refused("markers_do_not_fit", f"the template marks {len(spans)} parts for {len(answers)} answers")
        found = dict(zip(answers, spans, strict=True))
        for i in wanted:
            self._find_answer(text, found[i], messages[i])
        return [(text, [self._to_end_of_turn(text, found[i]) for i in wanted])]

    def _by_prefixes(self, messages: list[dict[str, str]], wanted: list[int]) -> list[tuple[str, list[Span]]]:
        """Rows from the last turn backwards: each holds all the turns left that stand in it as they were written."""
        asked = {i: self._render(messages[:i], add_generation_prompt=True) for i in wanted}
        answered = {i: self._render(messages[: i + 1]) for i in wanted}
        spans = {}
        for i in wanted:
            if not answered[i].startswith(asked[i]):
                raise Refused("prompt_is_no_prefix", f"turn {i + 1} does not begin with the template's own generation prompt")
            spans[i] = self._to_end_of_turn(answered[i], self._without_header(messages, i, asked[i], answered[i]))
        rows, left = [], wanted
        while left:
            text = answered[left[-1]]
            inside = [i for i in left if text.startswith(answered[i][: spans[i][1]])]
            rows.append((text, [spans[i] for i in inside]))
            left = [i for i in left if i not in inside]
        return rows

    def _without_header(self, messages: list[dict[str, str]], i: int, asked: str, answered: str) -> Span:
        """What the template adds for turn i. One that ignores add_generation_prompt adds the turn's header too: no target."""
        span = len(asked), len(answered)
        at = self._find_answer(answered, span, messages[i])
        if answered[span[0] : at].strip() and self._render(messages[:i]) == asked:
            return at, span[1]
        return span

    def _find_answer(self, text: str, span: Span, message: dict[str, str]) -> int:
        """Where the answer stands in its span. Templates may trim it and set its thoughts apart, but not change it."""
        answer = message["content"].rpartition(_THOUGHT_ENDS)[2].strip()
        before_end = next((m.start() for m in self._last_control(text, span)), span[1])
        at = text.rfind(answer, span[0], before_end)
        if at < 0:
            raise Refused("template_changes_answer", f"the template does not show the answer '{answer[:40]}' as it is")
        return at

    def _to_end_of_turn(self, text: str, span: Span) -> Span:
        """With the token that ends the turn, which the model must learn to write, and without white space after it."""
        for ending in self._last_control(text, span):
            return span[0], ending.end()
        if self._end_of_turn and (after := re.compile(rf"\s*{re.escape(self._end_of_turn)}").match(text, span[1])):
            return span[0], after.end()
        return span

    def _last_control(self, text: str, span: Span) -> list[re.Match[str]]:
        """The control token that ends the span, but for white space: one or none."""
        found = list(self._control.finditer(text, *span))[-1:]
        return [match for match in found if not text[match.end() : span[1]].strip()]

    def _row(self, text: str, spans: list[Span], literal: list[str], eos_token_id: int) -> Row:
        """The text up to its last target. A turn that no control token ends is ended by the end of the sequence."""
        text = text[: spans[-1][1]]
        tokens = self._encoder.rendered(text, literal, [])
        borders = [border for span in spans for border in span]
        if cuts := [b for b in borders if ((tokens.start < b) & (b < tokens.stop) & ~tokens.control).any()]:
            tokens = self._encoder.rendered(text, literal, cuts)
        mask = np.zeros(len(tokens.ids), np.int64)
        for start, stop in spans:
            mask |= (tokens.start >= start) & (tokens.start < stop)
        ids, marks = tokens.ids.tolist(), mask.tolist()
        if not self._last_control(text, (0, len(text))):
            ids, marks = [*ids, eos_token_id], [*marks, 1]
        return Row(ids, marks)

    def _protected(self, content: str, literal: list[str]) -> str:
        """The content with a placeholder for every control token it spells; `literal` grows by what they stand for."""

        def placeholder(match: re.Match[str]) -> str:
            if match[0] not in literal:
                literal.append(match[0])
            if len(literal) > _NUM_PLACEHOLDERS:
                raise Refused("control_tokens_in_content", f"it spells more than {_NUM_PLACEHOLDERS} control tokens")
            return chr(_FIRST_PLACEHOLDER + literal.index(match[0]))

        return self._control.sub(placeholder, _PLACEHOLDERS.sub("", content))

    def _render(
        self, messages: list[dict[str, str]], add_generation_prompt: bool = False, spans_into: list[Span] | None = None
    ) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template  # a second to import, and only chats need it

        try:
            (text,), spans = render_jinja_template(
                [messages], chat_template=self._source, add_generation_prompt=add_generation_prompt,
                return_assistant_tokens_mask=spans_into is not None, **self._variables,
            )  # fmt: skip
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as fault:
            raise Refused("template_refuses", " ".join(str(fault).split()) or type(fault).__name__) from None
        if spans_into is not None:
            spans_into += [(start, stop) for start, stop in spans[0]]
        return str(text)


def _in_the_middle(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[Span]]:
    """Encode what stands inside a longer text. SentencePiece's kin put a space before whatever they are given: here it comes
    before a line break, which is taken off again."""
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    encoding = tokenizer.encode("\n" + text, add_special_tokens=False)
    if newline and encoding.ids[: len(newline)] == newline and all(stop <= 1 for _, stop in encoding.offsets[: len(newline)]):
        rest = slice(len(newline), None)
        return list(encoding.ids[rest]), [(start - 1, stop - 1) for start, stop in encoding.offsets[rest]]
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return list(encoding.ids), list(encoding.offsets)
