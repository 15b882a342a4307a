"""Conversations as tokens, with what the model must learn to write marked.

The model is asked with a prompt: `render(messages[:i], add_generation_prompt=True)`, the conversation so far
as its chat template renders it. It must then write the rest of `render(messages[:i + 1])`, up to and with the
token that ends the turn. Exactly that is the target of turn i, whatever else a template shows or marks:

- A template without a generation prompt leaves more to the model: the header of the turn, its leading space,
  its thoughts.
- A template may show the conversation otherwise once it is answered. Mistral's kind puts the system prompt
  into the last user turn, and only while that is last; there the answer is found behind the last message that
  prompt and rendering share.
- A template may leave the thoughts of an answer out even where it has just been given (DeepSeek-R1). The
  model writes them all the same, so they are put back from the content.
- Markers (`{% generation %}`) are a claim by the template's author on what to learn. The prompt decides; a
  difference is counted.

Turns share a row as long as the row holds, character by character, what the model sees and writes at each of
them. Else, as with Qwen3, which leaves out earlier thoughts, each turn has a row of its own that ends with it
and in which it alone is a target.

Control tokens are those of the template. The same characters inside a content are text: they are replaced by
one placeholder each (a Unicode noncharacter) while the template is rendered, and encoded as plain text
afterwards. Only the marks around the thoughts that begin an answer stay what they are.
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
from data_prep.user_error import UserError

# For tokenizers without a template of their own: ChatML's form, with the beginning and end of a sequence
# around each turn, so that it needs no token that a plain tokenizer lacks, and every program that stops at
# the end of a sequence stops.
DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
{{ bos_token + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ bos_token + 'assistant\\n' }}
{%- endif -%}
"""

_PROBE = "\ufdef"  # one more of them, in place of an answer
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_THOUGHT_MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
)
_LONGEST_LEAD = 200  # characters that a template may put between the prompt and the answer


class Refused(UserError):
    """A conversation that the template cannot render, or whose answers cannot be told for certain."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class _Ending:
    """How a template ends the last answer.

    Attributes:
        tail: all that it puts behind the answer.
        written: the part of it that the model must write: up to the token that ends the turn, if any does.
        token: that token.
    """

    tail: str
    written: str
    token: str | None


@dataclass(frozen=True)
class _Content:
    """An answer's content: the thoughts that begin it, and what is said.

    Attributes:
        marks: around the thoughts; None where there are none.
        opens: whether the first of these marks is there.
    """

    whole: str
    thought: str
    answer: str
    marks: tuple[str, str] | None
    opens: bool

    @staticmethod
    def of(text: str) -> _Content:
        """Split a content. Where a prompt opens the thoughts, some data sets leave out the opening mark."""
        for opening, closing in _THOUGHT_MARKS:
            if closing in text:
                thought, _, answer = text.partition(closing)
                opens = thought.lstrip().startswith(opening)
                if opens or opening not in thought:
                    return _Content(text, thought.replace(opening, "", 1), answer, (opening, closing), opens)
        return _Content(text, "", text, None, opens=False)


@dataclass(frozen=True)
class _Turn:
    """What the model sees when it is asked for an answer, and what it must then write."""

    prompt: str
    written: str
    ended: bool

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
        variables: what the template may use beside the messages: the tokenizer's special tokens and the
            corpus' arguments.
        name: where the template comes from, for messages.

    Attributes:
        end_of_turn: the token with which the model ends its answers; None where the template has none, so
            that the end of the sequence stands for it.

    Raises:
        UserError: the template does not even render a question and its answer.
    """

    def __init__(self, source: str, variables: Mapping[str, object], encoder: ChatEncoder, name: str) -> None:
        self._source, self._variables, self._encoder = source, variables, encoder
        self._has_markers = bool(_GENERATION.search(source))
        question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
        try:
            frame = self._render([question], add_generation_prompt=True) + self._render([question, answer])
            shows_answers = _PROBE in self._render([question, {**answer, "content": _PROBE}])
        except Refused as fault:
            raise UserError(f"chat template of {name} fails on a question and its answer: {fault}") from None
        if not shows_answers:
            raise UserError(
                f"chat template of {name} does not show an answer that is a string: it is for contents in parts"
            )
        # Tokens that are not called special, but frame turns all the same, are control tokens too.
        marks = {mark for pair in _THOUGHT_MARKS for mark in pair}
        control = encoder.special | {token for token in encoder.added - marks if token in frame}
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)")
        self._ending = self._find_ending([question])
        self.end_of_turn = self._ending.token

    def rows(
        self, turns: list[Turn], eos_token_id: int, everything: bool, counts: Counter[str] | None = None
    ) -> list[Row]:
        """Return a conversation as rows: one, or more where the template rewrites what was said.

        Args:
            everything: one row of the whole conversation, in which every token is a target.
            counts: counts answers that the template does not show as they are to be learned.

        Raises:
            Refused: the template cannot render it, or its answers cannot be told for certain.
        """
        literal: list[str] = []
        messages = [{"role": turn.role, "content": self._protected(turn, literal)} for turn in turns]
        if everything:
            text = self._render(messages)
            if counts is not None:
                counts["answers_learned_as_everything"] += sum(_is_context(turn) for turn in turns)
            return [self._row(text, [(0, len(text))], literal, eos_token_id)]
        counts = Counter() if counts is None else counts
        wanted = [self._turn(messages, i, counts) for i, turn in enumerate(turns) if turn.target]
        rows = []
        while wanted:  # from the last turn backwards: a row holds all turns left that stand in it as written
            last = wanted[-1]
            inside = [
                turn for turn in wanted if turn is last or (turn.ended and last.text.startswith(turn.text))
            ]
            rows.append(self._row(last.text, [turn.span for turn in inside], literal, eos_token_id))
            wanted = [turn for turn in wanted if turn not in inside]
        return rows[::-1]

    def _turn(self, messages: list[dict[str, str]], i: int, counts: Counter[str]) -> _Turn:
        """Turn i as inference has it."""
        prompt = self._render(messages[:i], add_generation_prompt=True)
        marked: list[Span] = []
        answered = self._render(messages[: i + 1], spans_into=marked if self._has_markers else None)
        content, ending = _Content.of(messages[i]["content"]), self._ending
        if not answered.endswith(ending.tail):
            ending = self._find_ending(messages[:i])
        shown = answered[: len(answered) - len(ending.tail)]
        answer = content.answer.strip()
        if not answered.endswith(ending.tail) or not shown.rstrip().endswith(answer):
            beginning = PLACEHOLDERS.sub("…", answer[:40])
            raise Refused(
                "template_changes_answer", f"the template does not show the answer '{beginning}' as it is"
            )
        if shown.startswith(prompt):
            written: str | None = shown[len(prompt) :]
        else:
            written = _behind_shared_text(prompt, shown, content, messages[i - 1]["content"] if i else "")
        if written is None:
            written = _behind_prompt(prompt, content, i)
        elif _lacks_thought(prompt, written, content):
            written = _with_thought(prompt, written, content, i)
            counts["thoughts_that_the_template_leaves_out"] += 1
        begin = len(shown) - len(written)
        in_marks = "".join(answered[max(start, begin) : stop] for start, stop in marked if stop > begin)
        is_marked = not self._has_markers or _squeezed(written) in _squeezed(in_marks)
        counts["answers_that_the_template_marks_otherwise"] += not is_marked
        counts["answers_whose_end_is_no_token"] += ending.token is None and bool(ending.tail.strip())
        return _Turn(prompt, written + ending.written, ended=ending.token is not None)

    def _find_ending(self, messages: list[dict[str, str]]) -> _Ending:
        """Find how the template ends an answer to these messages.

        A conversation that goes on shows what belongs to the turn: Phi-3 puts a token behind the last turn
        that ends the whole, and some templates end a turn only where another one follows.
        """
        probe, question = {"role": "assistant", "content": _PROBE}, {"role": "user", "content": "?"}
        tail = self._render([*messages, probe]).rpartition(_PROBE)[2]
        try:
            before, _, after = self._render([question, probe, question]).partition(_PROBE)
        except Refused:
            before, after = "", tail
        shared = os.path.commonprefix([tail, after])  # noqa: RUF071  # of texts
        ends = [*self._control.finditer(shared)] or self._adjacent_control(tail)
        if ends:
            return _Ending(tail, tail[: ends[-1].end()], ends[-1][0])
        between, opened = after.rpartition("?")[0], before.rpartition("?")[0]
        # without the header of the next question
        between = between[: len(between) - len(_shared_end(between, opened))]
        ends = self._adjacent_control(between)
        if ends:
            return _Ending(tail, between[: ends[-1].end()], ends[-1][0])
        return _Ending(tail, tail, None)

    def _adjacent_control(self, text: str) -> list[re.Match[str]]:
        """Return the first control token of a text, and those that follow it without anything between."""
        found: list[re.Match[str]] = []
        for match in self._control.finditer(text):
            if found and match.start() > found[-1].end():
                break
            found.append(match)
        return found

    def _row(self, text: str, spans: list[Span], literal: list[str], eos_token_id: int) -> Row:
        """Return a text with its targets. A turn that no control token ends is ended by the end of the
        sequence."""
        tokens = self._encoder.rendered(text, literal, [])
        borders = [border for span in spans for border in span]
        if cuts := [b for b in borders if ((tokens.start < b) & (b < tokens.stop) & ~tokens.control).any()]:
            tokens = self._encoder.rendered(text, literal, cuts)
        mask = np.zeros(len(tokens.ids), np.int64)
        for start, stop in spans:
            mask |= (tokens.start >= start) & (tokens.start < stop)
        ids, marks = tokens.ids.tolist(), mask.tolist()
        last = max((match.end() for match in self._control.finditer(text)), default=0)
        if last == 0 or text[last:].strip():
            ids, marks = [*ids, eos_token_id], [*marks, 1]
        return Row(ids, marks)

    def _protected(self, turn: Turn, literal: list[str]) -> str:
        """Return the content with a placeholder for every control token it spells; `literal` grows by what
        they stand for."""

        def placeholder(match: re.Match[str]) -> str:
            if match[0] not in literal:
                literal.append(match[0])
            if len(literal) > NUM_PLACEHOLDERS:
                raise Refused(
                    "control_tokens_in_content", f"it spells more than {NUM_PLACEHOLDERS} control tokens"
                )
            return chr(FIRST_PLACEHOLDER + literal.index(match[0]))

        text = PLACEHOLDERS.sub("", turn.content)
        content = _Content.of(text)
        if turn.role != "assistant" or content.marks is None:
            return self._control.sub(placeholder, text)
        opening, closing = content.marks
        thought, answer = (self._control.sub(placeholder, part) for part in (content.thought, content.answer))
        return f"{opening if content.opens else ''}{thought}{closing}{answer}"

    def _render(
        self,
        messages: list[dict[str, str]],
        add_generation_prompt: bool = False,
        spans_into: list[Span] | None = None,
    ) -> str:
        try:  # a second to import, and only chats need it
            from transformers.utils.chat_template_utils import render_jinja_template
        except ModuleNotFoundError as fault:
            raise UserError(f"conversations need {fault.name}: pip install 'finetune[prep]'") from None
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
            raise Refused("template_refuses", " ".join(str(fault).split()) or type(fault).__name__) from None
        if spans_into is not None:
            spans_into += [(start, stop) for start, stop in spans[0]]
        return str(text)


def _is_context(turn: Turn) -> bool:
    """Return whether a turn is an answer that its record wants as context alone."""
    return turn.role == "assistant" and not turn.target and bool(turn.content.strip())


def _behind_shared_text(prompt: str, shown: str, content: _Content, asked: str) -> str | None:
    """Return what stands behind the prompt's last message in a rendering that begins otherwise.

    Args:
        shown: the rendering up to the end of the answer.
        asked: the content of the prompt's last message.

    Returns:
        None if prompt and rendering do not share that message with all behind it.
    """
    end = len(shown.rstrip())
    whole, answer = content.whole.strip(), content.answer.strip()
    begin = end - len(whole if shown[:end].endswith(whole) else answer)
    if content.marks and content.opens and not shown[:end].endswith(whole):
        begin = max(shown.rfind(content.marks[0], 0, begin), 0) or begin
    places = range(max(0, begin - _LONGEST_LEAD), begin + 1)
    best = max(places, key=lambda place: len(_shared_end(prompt, shown[:place])))
    if not asked.strip() or asked.strip() not in _shared_end(prompt, shown[:best]):
        return None
    return shown[best:]


def _behind_prompt(prompt: str, content: _Content, i: int) -> str:
    """Return the content as it goes on from a prompt that no rendering begins with; it may open thoughts."""
    opening = next((opening for opening, _ in _THOUGHT_MARKS if prompt.rstrip().endswith(opening)), None)
    if opening is None:
        return _with_thought(prompt, content.answer.strip(), content, i)
    if content.marks is None or content.marks[0] != opening:
        raise Refused(
            "prompt_is_no_prefix",
            f"turn {i + 1} does not begin with the template's own generation prompt, which opens thoughts ({opening}): give it "
            f"thoughts, or set corpus.chat.template_arguments or corpus.chat.template so that it is asked for without them",
        )
    written = content.whole.strip()
    if content.opens:
        written = written.removeprefix(opening)
        if prompt.endswith("\n"):
            written = written.removeprefix("\n")
    return written


def _lacks_thought(prompt: str, written: str, content: _Content) -> bool:
    """Return whether the template leaves out the thoughts of an answer, or their marks where they are
    empty."""
    if content.marks is None:
        return False
    lead = _lead(written, content)
    if content.thought.strip():
        return _squeezed(content.thought) not in _squeezed(lead)
    return content.marks[1] not in lead and not prompt.rstrip().endswith(content.marks)


def _with_thought(prompt: str, written: str, content: _Content, i: int) -> str:
    """Put the thoughts that the template leaves out back into what the model must write."""
    if content.marks is None:
        return written
    lead = _lead(written, content)
    closed = any(closing in lead or prompt.rstrip().endswith(closing) for _, closing in _THOUGHT_MARKS)
    if closed or not content.opens:
        raise Refused(
            "thoughts_do_not_fit", f"turn {i + 1} has thoughts, for which the template leaves no place"
        )
    return lead + content.whole.strip()


def _lead(written: str, content: _Content) -> str:
    """Return what stands before the answer in what the model must write."""
    return written[: len(written.rstrip()) - len(content.answer.strip())]


def _squeezed(text: str) -> str:
    """Return a text without white space and marks of thoughts, which templates set in their own ways."""
    for pair in _THOUGHT_MARKS:
        for mark in pair:
            text = text.replace(mark, "")
    return "".join(text.split())


def _shared_end(a: str, b: str) -> str:
    """Return the longest text with which both end."""
    length = 0
    for ours, theirs in zip(reversed(a), reversed(b), strict=False):
        if ours != theirs:
            break
        length += 1
    return a[len(a) - length :]
