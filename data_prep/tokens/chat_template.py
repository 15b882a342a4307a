"""Tokenization of conversations with a chat template, and their target masks.

At inference, the prompt for turn i is `render(messages[:i], add_generation_prompt=True)`: the
conversation so far, as the chat template renders it. The model must then write the rest of
`render(messages[:i + 1])`, up to and including the token that ends the turn. That is the target of
turn i, with these special cases:

- If a template has no generation prompt, the model must write more: the header of the turn, its
  leading space, and its thoughts (the reasoning before an answer, such as <think>…</think>).
- A template may render earlier messages differently once the answer follows. Templates like
  Mistral's put the system prompt into the last user turn only. Then the target begins after the
  last message that prompt and rendering have in common.
- A template may leave out the thoughts even of the last answer (DeepSeek-R1). The model must write
  them all the same, so they are inserted from the content.
- The template's author may mark targets by `{% generation %}`. These marks do not change a target.
  Answers whose target is not within the marks are counted.

Turns share a row if the row contains, character by character, the prompt and the target of each
turn. Some templates, such as Qwen3's, leave out earlier thoughts. Then each turn has its own row,
which ends with the turn and has no other target.

Control tokens come from the template only. A message may contain the characters of a control token,
such as "<|im_end|>". They are replaced by a placeholder (a Unicode noncharacter) while the template
is rendered, and encoded as plain text afterwards. The only exceptions are the marks around the
thoughts at the beginning of an answer.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import jinja2
import numpy as np

from data_prep.document import Turn
from data_prep.tokens.chat_encoder import FIRST_PLACEHOLDER, NUM_PLACEHOLDERS, PLACEHOLDERS, ChatEncoder, Span
from data_prep.tokens.row import Row
from data_prep.tokens.thoughts import (
    THOUGHT_MARKS,
    Content,
    UnusableChat,
    insert_thought,
    lacks_thought,
    squeeze,
)
from data_prep.user_error import UserError

# The template for tokenizers without one. It has ChatML's form, but each turn is between the tokens
# for the beginning and the end of a sequence, because every tokenizer has these tokens, and every
# program stops at the end of a sequence.
DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
{{ bos_token + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ bos_token + 'assistant\\n' }}
{%- endif -%}
"""

# A noncharacter that is not a placeholder. It is rendered as an answer, to find the text that the
# template puts around answers.
_PROBE = "\ufdef"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MAX_LEAD = 200  # characters that a template may put between the prompt and the answer


@dataclass(frozen=True)
class _Ending:
    """The text that a template puts after the last answer.

    Attributes:
        tail: the whole text.
        written: the text that the model must write after the answer. It ends with `token`. If there
            is no token, it is the same as `tail`.
        token: the control token that ends the turn; None if there is none.
    """

    tail: str
    written: str
    token: str | None


@dataclass(frozen=True)
class _Turn:
    """A turn that is a target: its prompt, and the text that the model must then write.

    Attributes:
        is_ended: True if a control token ends the turn.
    """

    prompt: str
    written: str
    is_ended: bool

    @property
    def text(self) -> str:
        return self.prompt + self.written

    @property
    def span(self) -> Span:
        return len(self.prompt), len(self.prompt) + len(self.written)


class ChatTemplate:
    """A chat template with its tokenizer.

    Args:
        source: the Jinja text.
        variables: variables of the template other than the messages: the tokenizer's special tokens
            and the corpus' template_arguments.
        encoder: the encoder of rendered conversations, with the corpus' tokenizer.
        name: the origin of the template, for error messages.

    Attributes:
        end_of_turn: the control token that ends the model's answers; None if the template has none.
            Answers then end with the end-of-sequence token.

    Raises:
        UserError: the template cannot render a question and its answer, or leaves out the answer.
    """

    def __init__(self, source: str, variables: Mapping[str, object], encoder: ChatEncoder, name: str) -> None:
        self._source = source
        self._variables = variables
        self._encoder = encoder
        self._has_markers = bool(_GENERATION.search(source))
        question = {"role": "user", "content": "?"}
        answer = {"role": "assistant", "content": "!"}
        try:
            frame = self._render([question], add_generation_prompt=True) + self._render([question, answer])
            shows_answers = _PROBE in self._render([question, {**answer, "content": _PROBE}])
        except UnusableChat as fault:
            raise UserError(
                f"chat template of {name}: fails on a question and its answer; correct the "
                f"template, or set corpus.chat.template to another one; the error is: {fault}"
            ) from None
        if not shows_answers:
            raise UserError(
                f"chat template of {name}: leaves out an answer whose content is a string (it may "
                "accept only lists of parts); set corpus.chat.template to a template that accepts "
                "strings"
            )
        # Added tokens that the template puts around turns are control tokens, even if the tokenizer
        # does not declare them special.
        marks = {mark for pair in THOUGHT_MARKS for mark in pair}
        control = encoder.special | {token for token in encoder.added - marks if token in frame}
        longest_first = sorted(control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._ending = self._find_ending([question])
        self.end_of_turn = self._ending.token

    def rows(
        self, turns: list[Turn], eos_token_id: int, everything: bool, counts: Counter[str] | None = None
    ) -> list[Row]:
        """Return a conversation as one row, or as several if the template rewrites earlier turns.

        Args:
            everything: True to return one row, in which every token is a target.
            counts: receives, by kind, the number of answers that the template renders unusually.

        Raises:
            UnusableChat: the template cannot render the conversation, or its targets cannot be
                determined.
        """
        literal: list[str] = []
        messages = [{"role": turn.role, "content": self._protect(turn, literal)} for turn in turns]
        if everything:
            text = self._render(messages)
            if counts is not None:
                counts["answers_learned_as_everything"] += sum(_is_context(turn) for turn in turns)
            return [self._row(text, [(0, len(text))], literal, eos_token_id)]
        counts = Counter() if counts is None else counts
        remaining = [self._target_turn(messages, i, counts) for i, turn in enumerate(turns) if turn.target]
        rows = []
        # Rows are made from the last turn backwards. A row has all turns that it shows unchanged.
        while remaining:
            last = remaining[-1]
            inside = [
                turn
                for turn in remaining
                if turn is last or (turn.is_ended and last.text.startswith(turn.text))
            ]
            rows.append(self._row(last.text, [turn.span for turn in inside], literal, eos_token_id))
            remaining = [turn for turn in remaining if turn not in inside]
        return rows[::-1]

    def _target_turn(self, messages: list[dict[str, str]], i: int, counts: Counter[str]) -> _Turn:
        """Return the prompt before turn i, and the text that the model must write after it."""
        prompt = self._render(messages[:i], add_generation_prompt=True)
        marked: list[Span] = []
        answered = self._render(messages[: i + 1], spans_into=marked if self._has_markers else None)
        content = Content.parse(messages[i]["content"])
        ending = self._ending
        if not answered.endswith(ending.tail):
            ending = self._find_ending(messages[:i])
        shown = answered[: len(answered) - len(ending.tail)]
        answer = content.answer.strip()
        if not answered.endswith(ending.tail) or not shown.rstrip().endswith(answer):
            beginning = PLACEHOLDERS.sub("…", answer[:40])
            raise UnusableChat(
                "template_changes_answer", f"the template does not show the answer '{beginning}' unchanged"
            )
        if shown.startswith(prompt):
            written: str | None = shown[len(prompt) :]
        else:
            asked = messages[i - 1]["content"] if i else ""
            written = _find_after_shared_text(prompt, shown, content, asked)
        if written is None:
            written = _continue_prompt(prompt, content, i)
        elif lacks_thought(prompt, written, content):
            written = insert_thought(prompt, written, content, i)
            counts["thoughts_that_the_template_leaves_out"] += 1
        begin = len(shown) - len(written)
        in_marks = "".join(answered[max(start, begin) : stop] for start, stop in marked if stop > begin)
        is_marked = not self._has_markers or squeeze(written) in squeeze(in_marks)
        counts["answers_that_the_template_marks_otherwise"] += not is_marked
        counts["answers_whose_end_is_no_token"] += ending.token is None and bool(ending.tail.strip())
        return _Turn(prompt, written + ending.written, is_ended=ending.token is not None)

    def _find_ending(self, messages: list[dict[str, str]]) -> _Ending:
        """Return the text that the template puts after an answer to these messages.

        Some of this text may end the conversation, not the turn. To find the part that belongs to
        the turn, a conversation with a second question is rendered too. For example, Phi-3's
        template puts a token after the last turn only. Other templates end a turn only if another
        turn follows.
        """
        probe = {"role": "assistant", "content": _PROBE}
        question = {"role": "user", "content": "?"}
        tail = self._render([*messages, probe]).rpartition(_PROBE)[2]
        try:
            before, _, after = self._render([question, probe, question]).partition(_PROBE)
        except UnusableChat:
            before = ""
            after = tail
        shared = os.path.commonprefix([tail, after])  # noqa: RUF071  # these are not paths
        ends = [*self._control.finditer(shared)] or self._adjacent_control(tail)
        if ends:
            return _Ending(tail, tail[: ends[-1].end()], ends[-1][0])
        between = after.rpartition("?")[0]
        question_header = _shared_end(between, before.rpartition("?")[0])
        between = between[: len(between) - len(question_header)]
        ends = self._adjacent_control(between)
        if ends:
            return _Ending(tail, between[: ends[-1].end()], ends[-1][0])
        return _Ending(tail, tail, None)

    def _adjacent_control(self, text: str) -> list[re.Match[str]]:
        """Return the first control token of a text, and the control tokens directly after it."""
        found: list[re.Match[str]] = []
        for match in self._control.finditer(text):
            if found and match.start() > found[-1].end():
                break
            found.append(match)
        return found

    def _row(self, text: str, spans: list[Span], literal: list[str], eos_token_id: int) -> Row:
        """Return a rendered text as a row with its targets.

        If no control token ends the text, the end-of-sequence token is added as a target.

        Args:
            spans: the parts of the text to train on, as pairs of character offsets.
            literal: the strings that the placeholders in the text stand for, in the placeholders'
                order. Each looks like a control token, but is encoded as plain text.
        """
        tokens = self._encoder.encode_rendered(text, literal, [])
        borders = [border for span in spans for border in span]
        cuts = [b for b in borders if ((tokens.start < b) & (b < tokens.stop) & ~tokens.control).any()]
        if cuts:
            tokens = self._encoder.encode_rendered(text, literal, cuts)
        mask = np.zeros(len(tokens.ids), np.int64)
        for start, stop in spans:
            mask |= (tokens.start >= start) & (tokens.start < stop)
        ids = tokens.ids.tolist()
        marks = mask.tolist()
        last = max((match.end() for match in self._control.finditer(text)), default=0)
        if last == 0 or text[last:].strip():
            ids.append(eos_token_id)
            marks.append(1)
        return Row(ids, marks)

    def _protect(self, turn: Turn, literal: list[str]) -> str:
        """Return a turn's content with placeholders for strings that look like control tokens.

        These strings are appended to `literal`. They are later encoded as plain text. The marks
        around an answer's thoughts, such as <think>, stay.

        Raises:
            UnusableChat: there are more such strings than placeholders.
        """

        def placeholder(match: re.Match[str]) -> str:
            if match[0] not in literal:
                literal.append(match[0])
            if len(literal) > NUM_PLACEHOLDERS:
                raise UnusableChat(
                    "control_tokens_in_content",
                    f"the contents spell more than {NUM_PLACEHOLDERS} different control tokens",
                )
            return chr(FIRST_PLACEHOLDER + literal.index(match[0]))

        text = PLACEHOLDERS.sub("", turn.content)
        content = Content.parse(text)
        if turn.role != "assistant" or content.marks is None:
            return self._control.sub(placeholder, text)
        opening, closing = content.marks
        thought = self._control.sub(placeholder, content.thought)
        answer = self._control.sub(placeholder, content.answer)
        return f"{opening if content.opens else ''}{thought}{closing}{answer}"

    def _render(
        self,
        messages: list[dict[str, str]],
        add_generation_prompt: bool = False,
        spans_into: list[Span] | None = None,
    ) -> str:
        """Return the rendered messages.

        Args:
            spans_into: receives the spans that the template marks by `{% generation %}`.

        Raises:
            UnusableChat: the template fails on the messages.
            UserError: transformers is not installed.
        """
        try:  # the import takes a second, and only conversations need it
            from transformers.utils.chat_template_utils import render_jinja_template
        except ModuleNotFoundError as fault:
            raise UserError(
                f"{fault.name} is not installed, but conversations need it; run: pip install 'finetune[prep]'"
            ) from None
        try:
            (text,), spans = render_jinja_template(
                [messages],
                chat_template=self._source,
                add_generation_prompt=add_generation_prompt,
                return_assistant_tokens_mask=spans_into is not None,
                **self._variables,
            )
        except (
            jinja2.TemplateError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RuntimeError,
        ) as fault:
            detail = " ".join(str(fault).split()) or type(fault).__name__
            raise UnusableChat("template_refuses", detail) from None
        if spans_into is not None:
            spans_into += [(start, stop) for start, stop in spans[0]]
        return str(text)


def _is_context(turn: Turn) -> bool:
    """Return whether a turn is an answer that is only context, not text to train on."""
    return turn.role == "assistant" and not turn.target and bool(turn.content.strip())


def _find_after_shared_text(prompt: str, shown: str, content: Content, asked: str) -> str | None:
    """Return the part of a rendered conversation that the model must write after its prompt.

    This is for templates whose rendered conversation does not begin with the prompt, because they
    render earlier messages differently. The conversation can still contain the end of the prompt,
    from the last question on. The model must then write the text that follows this end.

    Args:
        prompt: the prompt, as the template renders it.
        shown: the conversation, as the template renders it, up to the end of the answer.
        content: the answer.
        asked: the content of the last message in the prompt.

    Returns:
        The part of `shown`; None if `shown` does not contain the end of the prompt.
    """
    end = len(shown.rstrip())
    full = content.full.strip()
    shows_full = shown[:end].endswith(full)
    begin = end - len(full if shows_full else content.answer.strip())
    if content.marks and content.opens and not shows_full:
        begin = max(shown.rfind(content.marks[0], 0, begin), 0) or begin
    places = range(max(0, begin - _MAX_LEAD), begin + 1)
    best = max(places, key=lambda place: len(_shared_end(prompt, shown[:place])))
    if not asked.strip() or asked.strip() not in _shared_end(prompt, shown[:best]):
        return None
    return shown[best:]


def _continue_prompt(prompt: str, content: Content, i: int) -> str:
    """Return the text that the model must write after a prompt, made from the answer's content.

    This is for templates whose rendered conversation does not contain the end of the prompt. If the
    prompt ends with the mark that opens the model's reasoning ("thoughts"), such as <think>, the
    text starts after that mark.

    Args:
        i: index of the turn, for error messages.

    Raises:
        UnusableChat: the prompt opens thoughts that the turn does not have, or thoughts cannot be
            inserted.
    """
    opening = next((opening for opening, _ in THOUGHT_MARKS if prompt.rstrip().endswith(opening)), None)
    if opening is None:
        return insert_thought(prompt, content.answer.strip(), content, i)
    if content.marks is None or content.marks[0] != opening:
        raise UnusableChat(
            "prompt_is_no_prefix",
            f"the template's generation prompt opens thoughts with {opening}, but turn {i + 1} "
            "has none with this mark; add thoughts, or set corpus.chat.template_arguments or "
            "corpus.chat.template so that the prompt does not open them",
        )
    written = content.full.strip()
    if content.opens:
        written = written.removeprefix(opening)
        if prompt.endswith("\n"):
            written = written.removeprefix("\n")
    return written


def _shared_end(a: str, b: str) -> str:
    """Return the longest common suffix of two texts."""
    length = 0
    for ours, theirs in zip(reversed(a), reversed(b), strict=False):
        if ours != theirs:
            break
        length += 1
    return a[len(a) - length :]
