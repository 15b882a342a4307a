"""Thoughts of an answer: the reasoning before it, such as <think>…</think>."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.user_error import UserError

THOUGHT_MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
)


class UnusableChat(UserError):
    """A conversation that the template cannot render, or whose targets cannot be determined."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Content:
    """The content of an answer, split into reasoning ("thoughts") and the answer proper.

    Attributes:
        full: the unsplit content.
        marks: the marks around the thoughts, e.g. ("<think>", "</think>"); None without thoughts.
        opens: True if the content starts with the opening mark. Some data sets leave it out,
            because the prompt ends with it.
    """

    full: str
    thought: str
    answer: str
    marks: tuple[str, str] | None
    opens: bool

    @staticmethod
    def parse(text: str) -> Content:
        for opening, closing in THOUGHT_MARKS:
            if closing in text:
                thought, _, answer = text.partition(closing)
                opens = thought.lstrip().startswith(opening)
                if opens or opening not in thought:
                    return Content(text, thought.replace(opening, "", 1), answer, (opening, closing), opens)
        return Content(text, "", text, None, opens=False)


def lacks_thought(prompt: str, written: str, content: Content) -> bool:
    """Return whether a template left out the answer's thoughts, the reasoning before the answer.

    If the thoughts are empty, return whether it left out the marks around them.

    Args:
        written: the text that the model must write after `prompt`, as the template renders it.
    """
    if content.marks is None:
        return False
    lead = _text_before_answer(written, content)
    if content.thought.strip():
        return squeeze(content.thought) not in squeeze(lead)
    return content.marks[1] not in lead and not prompt.rstrip().endswith(content.marks)


def insert_thought(prompt: str, written: str, content: Content, i: int) -> str:
    """Insert the answer's thoughts, the reasoning before the answer, into the rendered answer.

    Args:
        written: the text that the model must write after `prompt`, as the template renders it.
        i: index of the turn, for error messages.

    Raises:
        UnusableChat: the thoughts cannot be inserted.
    """
    if content.marks is None:
        return written
    lead = _text_before_answer(written, content)
    is_closed = any(closing in lead or prompt.rstrip().endswith(closing) for _, closing in THOUGHT_MARKS)
    if is_closed or not content.opens:
        raise UnusableChat(
            "thoughts_do_not_fit",
            f"turn {i + 1} has thoughts that the template leaves out and that cannot be inserted "
            "before the answer",
        )
    return lead + content.full.strip()


def _text_before_answer(written: str, content: Content) -> str:
    """Return the part of a rendered turn before the answer proper: its header and thoughts."""
    return written[: len(written.rstrip()) - len(content.answer.strip())]


def squeeze(text: str) -> str:
    """Remove white space and the marks around thoughts, such as <think>, to compare two texts."""
    for pair in THOUGHT_MARKS:
        for mark in pair:
            text = text.replace(mark, "")
    return "".join(text.split())
