"""Reader of conversations and instructions, as JSON lines or a JSON array.

A record is one of

    messages: [{role, content}, …]                          the model learns the assistant's turns
    conversations: [{from, value}, …]                       the same in ShareGPT's words (human, gpt, system)
    prompt, completion: two strings, or two such lists       it learns the completion (of lists, the
                                                            assistant's turns in it)
    instruction, input (may be empty or absent), output      Alpaca's names: a question by the user, and the
                                                            answer to learn

Beside each of them may stand `system`, the text of a system turn; beside the last two `history`, earlier
questions and answers as [[question, answer], …], which are learned too, as where the format comes from
(LLaMA-Factory). `fields` maps other keys; `id`, `group`, `language`, `title` and `date` are read as in
`jsonl`. A content is a string or a list of text parts; null is empty.

A turn of the assistant is learned unless one of its flags (`loss`, `train`, `trainable`, `training`,
`weight`) is false or 0. Keys that would change what is learned, and are not followed here (REFUSED,
REFUSED_IN_TURNS, and flags in other spellings, as `compute_loss`), make a record unsupported: it is dropped,
with their names. All other keys are counted by name.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.document import Document, Drop, Place, Report, Turn, Unreadable
from data_prep.fields import setting
from data_prep.sources import claims, jsonl
from data_prep.user_error import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")
FORMS = (("messages",), ("prompt", "completion"), ("instruction", "output"))
FIELDS = (*(name for form in FORMS for name in form), "input", "system", "history", *jsonl.OPTIONAL)
SHAREGPT_LISTS = ("conversations", "conversation")
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
                  "observation": "tool", "tool": "tool"}  # fmt: skip
FLAGS = (
    "loss",
    "train",
    "trainable",
    "training",
    "weight",
    "loss_weight",
)  # of a turn: whether it is learned
# Keys that would change what is learned, unless they are empty …
REFUSED = ("tools", "functions", "images", "videos", "audios", "documents", "chat_template_kwargs", "enable_thinking", "rejected",
           "chosen", "mask_history", "loss_mask")  # fmt: skip
REFUSED_IN_TURNS = (
    "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "prefix", "images", "videos", "audios", "audio",
    "train_detail", "training_detail", "masked", "ignore", "ignore_loss",
)  # fmt: skip
AMBIGUOUS_IN_TURNS = ("mask", "loss_mask", "labels", "label")  # 0 may mean either
# … and of a whole record, unless they are true or 1. KTO's `label` and `kto_tag`: false is an answer to
# avoid.
REFUSED_UNLESS_TRUE = (*FLAGS, "sample_weight", "kto_tag")
# Other spellings of such flags, as compute_loss, isTrainable and no_loss. They may mean either, so none is
# followed.
_FLAG_WORDS = re.compile(r"(?:^|_)(?:loss|train|learn|supervis|unsupervis|mask|ignore|weight)")
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
MAX_NAMES = 20  # of unknown keys that are counted by name in one file

_NAME = re.compile(r"[\w.-]{1,40}")
_TAGS = (
    r"a|abbr|article|aside|b|big|blockquote|body|br|button|caption|center|cite|code|col|colgroup|dd|del"
    r"|details|dfn|div|dl|dt|em|figcaption|figure|font|footer|form|h1|h2|h3|h4|h5|h6|head|header|hr|html|i"
    r"|iframe|img|input|ins|kbd|label|legend|li|link|main|mark|meta|nav|noscript|ol|option|p|picture|pre|q"
    r"|s|samp|section|select|small|source|span|strike|strong|sub|summary|sup|svg|table|tbody|td|textarea"
    r"|tfoot|th|thead|time|title|tr|tt|u|ul|var|video|wbr"
)
_PARAGRAPH = re.compile(
    r"<\s*/?\s*(?:p|h[1-6]|table|blockquote|pre|section|article)\b[^<>]*>|<\s*/\s*[uo]l\s*>", re.I
)
_LINE = re.compile(r"<\s*/?\s*(?:br|hr|div|tr|ul|ol|dl|dd|dt)\b[^<>]*>", re.I)
_ITEM = re.compile(r"\s*<\s*li\b[^<>]*>", re.I)
_CELL = re.compile(r"<\s*/t[dh]\b[^<>]*>", re.I)
_NO_TEXT = re.compile(r"<\s*(script|style)\b[^<>]*>.*?<\s*/\s*\1\s*>|<!--.*?-->", re.I | re.S)
_TAG = re.compile(rf"<\s*/?\s*(?:{_TAGS})(?:\s[^<>]*|\s*/)?>", re.I)
_BLANK_LINES = re.compile(r"[ \t]*\n[ \t]*(?:\n[ \t]*)+")


@dataclass
class ConversationOptions:
    """Options of every reader of conversations and instructions."""

    role_key: str = setting("", "key of a turn's role in the records; empty: role or from")
    content_key: str = setting("", "key of a turn's text in the records; empty: content or value")
    roles: dict[str, str] = setting(
        {}, "roles of the names in the records, as {kunde: user, saksbehandler: assistant}"
    )
    prompt_template: str = setting(
        "",
        'plain text around a prompt or instruction, as "{prompt}\\n\\n", instead of the chat template; '
        "empty: the chat template renders them as turns",
    )
    strip_html: bool = setting(False, "whether HTML tags are removed from answers")
    learn_history: bool = setting(
        True, "whether to train on the answers in history; false: they are only context"
    )

    def __post_init__(self) -> None:
        for name, role in self.roles.items():
            if role not in ROLES:
                raise UserError(f"options.roles maps '{name}' to '{role}': choose one of {', '.join(ROLES)}")
        if self.prompt_template and self.prompt_template.count("{prompt}") != 1:
            raise UserError(
                f'options.prompt_template is {self.prompt_template!r}: it must hold {{prompt}} once, as "{{prompt}}\\n\\n"'
            )


@dataclass
class Options(ConversationOptions, jsonl.Options):
    """Options of conversations in JSON records."""

    def __post_init__(self) -> None:
        jsonl.Options.__post_init__(self)
        super().__post_init__()


class Malformed(UserError):
    """A record that is none of the forms; `reason` is what it is counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def files(source: SourceConfig) -> list[Path]:
    claims.options(source, Options)
    return jsonl.files(source)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    reader = ConversationReader(source, claims.options(source, Options), report)
    for where, record in jsonl.records(name, source, report, paths):
        with report.quarantining(where):
            if (document := reader.document(record, where)) is not None:
                yield document


class ConversationReader:
    """Makes documents of records, and counts in the report what it does not use of them."""

    def __init__(self, source: SourceConfig, options: ConversationOptions, report: Report) -> None:
        self._source, self._options, self._report = source, options, report
        self._keys = {ours: source.fields.get(ours, ours) for ours in FIELDS}
        described = {self._keys[name] for name in ("system", "history", *jsonl.OPTIONAL)}
        self._known = {*described, *REFUSED, *REFUSED_UNLESS_TRUE}
        # Whoever names a preferred answer as the completion leaves the other one out.
        chosen = set(source.fields.values())
        self._may_be_there = chosen | ({"rejected"} if "chosen" in chosen else set())
        self._names: set[str] = set()  # of unknown keys so far

    def document(self, record: dict[str, object], where: Place) -> Document | None:
        """Return a record as a conversation; None, and a drop, if it is one that cannot be learned from.

        Raises:
            Unreadable: it is none of the forms.
        """
        try:
            turns, mask = self._conversation(record)
        except Malformed as fault:
            if fault.reason == "unreadable_record":
                raise Unreadable(str(fault)) from None
            self._report.drops.append(Drop(str(where), where.source, fault.reason, str(fault)))
            return None
        if not any(turn.target for turn in turns):
            self._report.drops.append(
                Drop(str(where), where.source, "no_answer", "no turn of the assistant to learn")
            )
            return None
        return jsonl.described(record, where, self._source).document(turns=turns, mask=mask)

    def _conversation(self, record: dict[str, object]) -> tuple[list[Turn], str]:
        """Return the turns of a record, and the name of the mask it calls for."""
        _refuse({name: value for name, value in record.items() if name not in self._may_be_there})
        form, keys = self._form(record)
        system = self._text(record, "system")
        history = self._history(record)
        values = [record[key] for key in keys]
        if form == "messages":
            if history:
                raise Malformed("unsupported_record", f"has '{self._keys['history']}' beside its messages")
            turns, mask = self._messages(values[0], learn=True), "assistant_masks"
        elif form == "prompt" and all(isinstance(value, list) for value in values):
            turns = self._messages(values[0], learn=False) + self._messages(values[1], learn=True)
            turns, mask = history + turns, "completion_mask"
        else:
            question = _string(values[0], keys[0])
            if form == "instruction":
                question = "\n\n".join(part for part in (question, self._text(record, "input")) if part)
            answer = Turn(role="assistant", content=self._answer(values[1], keys[1]), target=True)
            turns, mask = (
                [*history, Turn(role="user", content=question, target=False), answer],
                "completion_mask",
            )
            if self._options.prompt_template:
                turns = self._plain(turns, system)
        used = {*keys, self._keys["input"]} if form == "instruction" else {*keys}
        self._count_unknown(record, self._known | used, "unknown_key_")
        return _with_system(turns, system), mask

    def _form(self, record: dict[str, object]) -> tuple[str, list[str]]:
        """Return the form of a record by its first field, and its keys in the record. An answer may be
        null."""
        forms = [[self._keys[name] for name in form] for form in FORMS]
        if self._keys["messages"] == "messages":
            forms[1:1] = [[name] for name in SHAREGPT_LISTS]
        whole = [keys for keys in forms if all(record.get(key) is not None for key in keys)]
        unanswered = [keys for keys in forms if record.get(keys[0]) is not None and keys[-1] in record]
        for keys in [*whole, *unanswered]:
            return next((form[0] for form in FORMS if self._keys[form[0]] == keys[0]), "messages"), keys
        wanted = ", or ".join(" and ".join(f"'{self._keys[name]}'" for name in form) for form in FORMS)
        raise Malformed("unreadable_record", f"no {wanted}")

    def _messages(self, value: object, learn: bool) -> list[Turn]:
        if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
            raise Malformed("unreadable_record", "messages are not a list of objects")
        return [self._message(message, learn) for message in value]

    def _message(self, message: dict[str, object], learn: bool) -> Turn:
        extra = [name for name in REFUSED_IN_TURNS if not _is_empty(message.get(name))]
        extra += [name for name in AMBIGUOUS_IN_TURNS if message.get(name) is not None]
        followed = {*FLAGS, *REFUSED_IN_TURNS, *AMBIGUOUS_IN_TURNS}
        extra += [
            name for name, value in message.items() if name not in followed and _is_other_flag(name, value)
        ]
        if extra:
            raise Malformed("unsupported_record", f"a message with {', '.join(extra)}")
        role_key, content_key = self._turn_keys(message)
        role, wanted = self._role(message, role_key), _flag(message)
        if content_key not in message:
            raise Malformed(
                "unreadable_record",
                f"a message without '{content_key}'; options.content_key can name another key",
            )
        content = message[content_key]
        if isinstance(content, list):
            if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                raise Malformed("unsupported_record", f"a content of the {role} that is not all text")
            content = "".join(_string(part.get("text"), "text") for part in content)
        self._count_unknown(
            message, {role_key, content_key, *FLAGS, *REFUSED_IN_TURNS}, "unknown_key_of_a_turn_"
        )
        if role != "assistant":
            if wanted:
                raise Malformed("unsupported_record", f"a turn of the {role} that is to be learned")
            return Turn(role=role, content=_string(content, content_key), target=False)
        return Turn(
            role=role, content=self._answer(content, content_key), target=learn and wanted is not False
        )

    def _turn_keys(self, message: dict[str, object]) -> tuple[str, str]:
        sharegpt = "from" in message and "role" not in message
        role, content = ("from", "value") if sharegpt else ("role", "content")
        return self._options.role_key or role, self._options.content_key or content

    def _role(self, message: dict[str, object], key: str) -> str:
        if key not in message:
            names = ", ".join(sorted(name for name in message if _NAME.fullmatch(name))[:5])
            raise Malformed(
                "unknown_role", f"a message without '{key}'; options.role_key can name another key ({names})"
            )
        said = message[key]
        if isinstance(said, str):
            role = self._options.roles.get(said, SHAREGPT_ROLES.get(said, said) if key == "from" else said)
            if role in ROLES:
                return role
        if said == "function_call":
            raise Malformed("unsupported_record", "a message with function_call")
        known = ", ".join([*self._options.roles, *ROLES])
        raise Malformed(
            "unknown_role", f"{key} is {said!r:.60}, not one of {known}; options.roles can name more"
        )

    def _history(self, record: dict[str, object]) -> list[Turn]:
        key = self._keys["history"]
        pairs = record.get(key) or []
        if not isinstance(pairs, list) or not all(
            isinstance(pair, list) and len(pair) == 2 for pair in pairs
        ):
            raise Malformed("unreadable_record", f"'{key}' is not a list of questions with answers")
        turns = []
        for question, answer in pairs:
            turns.append(Turn(role="user", content=_string(question, key), target=False))
            turns.append(
                Turn(role="assistant", content=self._answer(answer, key), target=self._options.learn_history)
            )
        return turns

    def _plain(self, turns: list[Turn], system: str) -> list[Turn]:
        """Return a question and its answer as plain text in the form that the options name."""
        if len(turns) != 2 or system:
            raise Malformed(
                "unsupported_record", "has a system or history, for which prompt_template has no place"
            )
        # A command line passes the two characters of an escaped line break on.
        form = self._options.prompt_template.replace("\\n", "\n")
        prompt = form.replace("{prompt}", turns[0].content)
        return [
            Turn(role="", content=prompt, target=False),
            Turn(role="", content=turns[1].content, target=True),
        ]

    def _answer(self, value: object, name: str) -> str:
        text = _string(value, name)
        if not self._options.strip_html:
            return text
        stripped = without_html(text)
        self._report.counts["answers_with_html_stripped"] += stripped != text
        return stripped

    def _text(self, record: dict[str, object], field_name: str) -> str:
        key = self._keys[field_name]
        return _string(record.get(key), key)

    def _count_unknown(self, keys: dict[str, object], known: set[str], prefix: str) -> None:
        for name in keys:
            if name in known or keys[name] is None:
                continue
            counted = prefix + (name if _NAME.fullmatch(name) else "(no plain name)")
            if counted not in self._names and len(self._names) >= MAX_NAMES:
                counted = "unknown_keys_of_other_names"
            else:
                self._names.add(counted)
            self._report.counts[counted] += 1


def without_html(text: str) -> str:
    """Return a text without HTML's tags: blocks become lines, items a list, entities their characters. What
    has the form of a tag but is none of HTML's, as <think>, stays."""
    lines = _LINE.sub("\n", _PARAGRAPH.sub("\n\n", _NO_TEXT.sub("", text)))
    plain = html.unescape(_TAG.sub("", _CELL.sub("\t", _ITEM.sub("\n- ", lines))))
    return text if plain == text else _BLANK_LINES.sub("\n\n", plain).strip()


def _with_system(turns: list[Turn], system: str) -> list[Turn]:
    """Put the text that a record has under `system` before its turns."""
    if not system.strip() or (turns and turns[0].role == "system" and turns[0].content == system):
        return turns
    if any(turn.role in ("system", "developer") for turn in turns):
        raise Malformed("unsupported_record", "has a system beside that of its messages")
    return [Turn(role="system", content=system, target=False), *turns]


def _refuse(record: dict[str, object]) -> None:
    """Raise Malformed if a record has keys that would change what is learned of it."""
    extra = [name for name in REFUSED if not _is_empty(record.get(name))]
    extra += [name for name in REFUSED_UNLESS_TRUE if record.get(name) not in (None, True)]
    extra += ["label"] * (record.get("label") is False)
    followed = {*REFUSED, *REFUSED_UNLESS_TRUE}
    extra += [name for name, value in record.items() if name not in followed and _is_other_flag(name, value)]
    if extra:
        raise Malformed("unsupported_record", f"has {', '.join(extra)}")


def _flag(message: dict[str, object]) -> bool | None:
    """Return whether a turn is to be learned, by its own word; None if it says nothing."""
    flags = {name: message[name] for name in FLAGS if message.get(name) is not None}
    odd = [name for name, value in flags.items() if not isinstance(value, int | float) or value not in (0, 1)]
    if odd:
        raise Malformed(
            "unsupported_record", f"a message with {odd[0]} {flags[odd[0]]!r}, neither true nor false"
        )
    if len({bool(value) for value in flags.values()}) > 1:
        raise Malformed("unsupported_record", f"a message whose {' and '.join(flags)} disagree")
    return bool(next(iter(flags.values()))) if flags else None


def _is_other_flag(name: str, value: object) -> bool:
    """Whether a key of another spelling seems to say what is learned; a text or null under it is no flag."""
    if not _FLAG_WORDS.search(_CAPITAL.sub("_", name).replace("-", "_").lower()):
        return False
    if isinstance(value, str):
        return value.strip().lower() in ("true", "false", "yes", "no", "ja", "nei", "0", "1")
    return isinstance(value, bool | int | float | list)


def _is_empty(value: object) -> bool:
    return value in (None, "", False, [], {}) or value in ("[]", "{}", "null")


def _string(value: object, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed("unreadable_record", f"'{name}' is a {type(value).__name__}, not a string")
    return jsonl.clean(value)
