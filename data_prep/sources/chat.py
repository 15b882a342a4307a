"""Conversations and instructions, as JSON lines or a JSON array. A record is one of

    messages: [{role, content}, …]                          the model learns the assistant's turns
    prompt, completion: two strings, or two such lists       it learns the completion (of lists, the assistant's turns in it)
    instruction, input (may be empty or absent), output      Alpaca's names: a question by the user, and the answer to learn

`fields` maps other keys; `id`, `group`, `language`, `title` and `date` are read as in `jsonl`. A content is a string or a list
of text parts. What a template or this reader could only leave out in silence (tools, images, reasoning apart from the content)
makes a record unsupported: it is dropped, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.config import SourceConfig
from data_prep.document import Document, Drop, Place, Report, Turn, Unreadable
from data_prep.sources import jsonl

ROLES = ("system", "developer", "user", "assistant", "tool")
FORMS = (("messages",), ("prompt", "completion"), ("instruction", "output"))
FIELDS = (*(name for form in FORMS for name in form), "input", *jsonl.OPTIONAL)
UNSUPPORTED = ("tools", "images", "videos", "audios", "chat_template_kwargs")
UNSUPPORTED_IN_MESSAGES = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "weight", "prefix")


class Malformed(ValueError):
    """A record that is none of the forms; `reason` is what it is counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


Options = jsonl.Options


def files(source: SourceConfig) -> list[Path]:
    return jsonl.files(source)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    for where, record in jsonl.records(name, source, report, paths):
        with report.quarantining(where):
            if (document := document_of(record, where, source, report)) is not None:
                yield document


def document_of(record: dict[str, Any], where: Place, source: SourceConfig, report: Report) -> Document | None:
    """A record as a conversation; None, and a drop, if it is one that cannot be learned from.

    Raises:
        Unreadable: it is none of the forms.
    """
    try:
        turns, mask = conversation(record, source.fields)
    except Malformed as fault:
        if fault.reason == "unreadable_record":
            raise Unreadable(str(fault)) from None
        report.drops.append(Drop(str(where), where.source, fault.reason, str(fault)))
        return None
    return Document(text="", turns=turns, mask=mask, **jsonl.described(record, where, source))


def conversation(record: dict[str, Any], fields: dict[str, str]) -> tuple[list[Turn], str]:
    """The turns of a record, and the name of the mask it calls for.

    Raises:
        Malformed: it has none that could be learned from.
    """
    key = {ours: fields.get(ours, ours) for ours in FIELDS}
    if extra := [name for name in UNSUPPORTED if record.get(name)]:
        raise Malformed("unsupported_record", f"has {', '.join(extra)}")
    form = next((form for form in FORMS if all(record.get(key[name]) is not None for name in form)), None)
    if form is None:
        wanted = ", or ".join(" and ".join(f"'{key[name]}'" for name in form) for form in FORMS)
        raise Malformed("unreadable_record", f"no {wanted}")
    values = [record[key[name]] for name in form]
    if form == ("messages",):
        return _answered(_messages(values[0], targets=True)), "assistant_masks"
    if form == ("instruction", "output"):
        more = record.get(key["input"])
        question = "\n\n".join(_string(part, form[0]) for part in (values[0], more) if part)
        return [Turn(role="user", content=question, target=False), _answer(_string(values[1], form[1]))], "completion_mask"
    if all(isinstance(value, list) for value in values):
        return _messages(values[0], targets=False) + _answered(_messages(values[1], targets=True)), "completion_mask"
    prompt, completion = (_string(value, name) for value, name in zip(values, form, strict=True))
    return [Turn(role="", content=prompt, target=False), Turn(role="", content=completion, target=True)], "completion_mask"


def _messages(value: object, targets: bool) -> list[Turn]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise Malformed("unreadable_record", "messages are not a list of objects")
    return [_message(message, targets) for message in value]


def _message(message: dict[str, Any], targets: bool) -> Turn:
    if extra := [name for name in UNSUPPORTED_IN_MESSAGES if message.get(name) is not None]:
        raise Malformed("unsupported_record", f"a message with {', '.join(extra)}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise Malformed("unknown_role", f"role {role!r}, not one of {', '.join(ROLES)}")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise Malformed("unsupported_record", f"a content of the {role} that is not all text")
        content = "".join(_string(part.get("text"), "text") for part in content)
    return Turn(role=role, content=_string(content, "content"), target=targets and role == "assistant")


def _answered(turns: list[Turn]) -> list[Turn]:
    if not any(turn.target for turn in turns):
        raise Malformed("no_answer", "no turn of the assistant")
    return turns


def _answer(content: str) -> Turn:
    return Turn(role="assistant", content=content, target=True)


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise Malformed("unreadable_record", f"'{name}' is a {type(value).__name__}, not a string")
    return jsonl.clean(value)
