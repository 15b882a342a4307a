"""Reader of conversations and instructions, as JSON lines or a JSON array.

A record has one of these forms:

    messages: [{role, content}, …]             The assistant's turns are trained on.
    conversations: [{from, value}, …]          ShareGPT's names for messages and roles (human, gpt,
                                               system).
    prompt, completion: two strings            The completion is trained on.
    prompt, completion: two lists of messages  The assistant's turns in the completion are trained
                                               on.
    instruction, input, output                 Alpaca's names. The output is trained on. The input
                                               may be empty or absent.

Each form may have `system`, the text of a system turn. Forms with a prompt or instruction may have
`history`: earlier questions and answers as [[question, answer], …], a format of LLaMA-Factory. The
answers in it are trained on too, unless `learn_history` is false. `fields` maps these names to
other keys. `id`, `group`, `language`, `title`, `date` and `url` are read as by reader `jsonl`. A
message's content is a string or a list of text parts; null is read as an empty string.

A turn of the assistant is trained on unless one of its flags (`loss`, `train`, `trainable`,
`training`, `weight`, `loss_weight`) is false or 0. Some keys would change which tokens are trained
on, but are not supported: REFUSED, REFUSED_IN_TURNS, and flags in other spellings, such as
`compute_loss`. A record with such a key is dropped as unsupported, and the report names the key.
Other unknown keys are counted by name.
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
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
# Flags of a turn: keys that decide whether it is trained on.
FLAGS = ("loss", "train", "trainable", "training", "weight", "loss_weight")
# A record is refused if it, or one of its turns, has a value under one of these keys: the value
# would change which tokens are trained on, or the text that the model reads.
REFUSED = (
    "tools", "functions", "images", "videos", "audios", "documents", "chat_template_kwargs",
    "enable_thinking", "rejected", "chosen", "mask_history", "loss_mask",
)  # fmt: skip
REFUSED_IN_TURNS = (
    "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "prefix",
    "images", "videos", "audios", "audio", "train_detail", "training_detail", "masked", "ignore",
    "ignore_loss",
)  # fmt: skip
# Keys of a turn that are refused unless they are null. In some data sets 0 means that the turn is
# trained on, in others that it is not.
AMBIGUOUS_IN_TURNS = ("mask", "loss_mask", "labels", "label")
# Keys of a record that are refused unless they are true or 1. A false `kto_tag` marks an answer
# that the model must not learn; so does a false `label` in KTO's data.
REFUSED_UNLESS_TRUE = (*FLAGS, "sample_weight", "kto_tag")
# Parts of the names of training flags in other spellings, such as compute_loss, isTrainable and
# no_loss. The meaning of such flags is ambiguous, so a record with one is refused.
_FLAG_WORDS = re.compile(r"(?:^|_)(?:loss|train|learn|supervis|unsupervis|mask|ignore|weight)")
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
MAX_NAMES = 20  # maximum number of unknown keys of one file that are counted by name

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
    """Options that all readers of conversations and instructions have."""

    role_key: str = setting("", "key of a turn's role in the records; empty: role or from")
    content_key: str = setting("", "key of a turn's text in the records; empty: content or value")
    roles: dict[str, str] = setting(
        {}, "roles of the names in the records, e.g. {kunde: user, saksbehandler: assistant}"
    )
    prompt_template: str = setting(
        "",
        'plain text around a prompt or instruction, e.g. "{prompt}\\n\\n", instead of the chat template; '
        "empty: the chat template renders them as turns",
    )
    strip_html: bool = setting(False, "whether HTML tags are removed from answers")
    learn_history: bool = setting(
        True, "whether to train on the answers in history; false: they are only context"
    )

    def __post_init__(self) -> None:
        for name, role in self.roles.items():
            if role not in ROLES:
                raise UserError(
                    f"options.roles: '{name}' is mapped to the unknown role '{role}'; "
                    f"use one of {', '.join(ROLES)}"
                )
        if self.prompt_template and self.prompt_template.count("{prompt}") != 1:
            raise UserError(
                "options.prompt_template: must contain {prompt} exactly once, "
                f'such as "{{prompt}}\\n\\n", not {self.prompt_template!r}'
            )


@dataclass
class Options(ConversationOptions, jsonl.Options):
    """Options of reader `chat`."""

    def __post_init__(self) -> None:
        jsonl.Options.__post_init__(self)
        super().__post_init__()


class Malformed(UserError):
    """Error for a record whose keys fit no supported form, or whose content is not supported.

    Attributes:
        reason: reason code under which the report counts the record.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def list_files(source: SourceConfig) -> list[Path]:
    claims.parse_options(source, Options)
    return jsonl.list_files(source)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    reader = ConversationReader(source, claims.parse_options(source, Options), report)
    for place, record in jsonl.iter_records(name, source, report, paths):
        with report.quarantining(place):
            document = reader.build_document(record, place)
            if document is not None:
                yield document


class ConversationReader:
    """Converter of records to documents. It counts dropped records and unknown keys in the report."""

    def __init__(self, source: SourceConfig, options: ConversationOptions, report: Report) -> None:
        self._source = source
        self._options = options
        self._report = report
        self._keys = {ours: source.fields.get(ours, ours) for ours in FIELDS}
        description_keys = {self._keys[name] for name in ("system", "history", *jsonl.OPTIONAL)}
        self._known = {*description_keys, *REFUSED, *REFUSED_UNLESS_TRUE}
        # Refused keys are allowed if `fields` maps a name to them. If it maps a name to `chosen`,
        # the preferred answer of a pair, the other answer (`rejected`) is ignored.
        self._allowed = set(source.fields.values())
        if "chosen" in self._allowed:
            self._allowed.add("rejected")
        self._unknown_names: set[str] = set()

    def build_document(self, record: dict[str, object], place: Place) -> Document | None:
        """Convert a record to a document; if it cannot be trained on, drop it and return None.

        Raises:
            Unreadable: the record has none of the forms, or a value has the wrong type.
        """
        try:
            turns, mask = self._parse_conversation(record)
        except Malformed as fault:
            if fault.reason == "unreadable_record":
                raise Unreadable(str(fault)) from None
            self._report.drops.append(Drop(str(place), place.source, fault.reason, str(fault)))
            return None
        if not any(turn.target for turn in turns):
            self._report.drops.append(
                Drop(str(place), place.source, "no_answer", "no turn of the assistant to train on")
            )
            return None
        return jsonl.describe(record, place, self._source).build_document(turns=turns, mask=mask)

    def _parse_conversation(self, record: dict[str, object]) -> tuple[list[Turn], str]:
        """Return the turns of a record, and the name of the mask that marks the tokens to train on.

        Raises:
            Malformed: the record has none of the forms in FORMS, or has unsupported content.
        """
        _refuse({name: value for name, value in record.items() if name not in self._allowed})
        form, keys = self._find_form(record)
        system = self._get_text(record, "system")
        history = self._parse_history(record)
        values = [record[key] for key in keys]
        if form == "messages":
            if history:
                raise Malformed(
                    "unsupported_record", f"has '{self._keys['history']}' in addition to its messages"
                )
            turns = self._parse_messages(values[0], learn=True)
        elif form == "prompt" and all(isinstance(value, list) for value in values):
            prompt = self._parse_messages(values[0], learn=False)
            turns = [*history, *prompt, *self._parse_messages(values[1], learn=True)]
        else:
            question = _as_string(values[0], keys[0])
            if form == "instruction":
                parts = [question, self._get_text(record, "input")]
                question = "\n\n".join(part for part in parts if part)
            answer = Turn(role="assistant", content=self._parse_answer(values[1], keys[1]), target=True)
            turns = [*history, Turn(role="user", content=question, target=False), answer]
            if self._options.prompt_template:
                turns = self._apply_prompt_template(turns, system)
        used = set(keys)
        if form == "instruction":
            used.add(self._keys["input"])
        self._count_unknown(record, self._known | used, "unknown_key_")
        mask = "assistant_masks" if form == "messages" else "completion_mask"
        return _prepend_system(turns, system), mask

    def _find_form(self, record: dict[str, object]) -> tuple[str, list[str]]:
        """Return the name of a record's form, and the keys of the record that belong to it.

        A form is a set of fields, such as prompt and completion. It is named after its first field.
        A record has a form if it has all its fields. The first form in which no value is null
        is used. If there is none, the first form in which only the answer is null is used.

        Raises:
            Malformed: the record has none of the forms.
        """
        forms = [[self._keys[name] for name in form] for form in FORMS]
        if self._keys["messages"] == "messages":
            forms[1:1] = [[name] for name in SHAREGPT_LISTS]
        complete = [keys for keys in forms if all(record.get(key) is not None for key in keys)]
        unanswered = [keys for keys in forms if record.get(keys[0]) is not None and keys[-1] in record]
        for keys in [*complete, *unanswered]:
            names = (form[0] for form in FORMS if self._keys[form[0]] == keys[0])
            return next(names, "messages"), keys
        expected = ", or ".join(" and ".join(f"'{self._keys[name]}'" for name in form) for form in FORMS)
        raise Malformed("unreadable_record", f"has no {expected}")

    def _parse_messages(self, value: object, learn: bool) -> list[Turn]:
        if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
            raise Malformed("unreadable_record", "messages must be a list of objects")
        return [self._parse_message(message, learn) for message in value]

    def _parse_message(self, message: dict[str, object], learn: bool) -> Turn:
        refused = [name for name in REFUSED_IN_TURNS if not _is_empty(message.get(name))]
        refused += [name for name in AMBIGUOUS_IN_TURNS if message.get(name) is not None]
        refused += _find_other_flags(message, {*FLAGS, *REFUSED_IN_TURNS, *AMBIGUOUS_IN_TURNS})
        if refused:
            raise Malformed("unsupported_record", f"a message has unsupported keys: {', '.join(refused)}")
        role_key, content_key = self._get_turn_keys(message)
        role = self._parse_role(message, role_key)
        flag = _parse_flag(message)
        if content_key not in message:
            raise Malformed(
                "unreadable_record",
                f"a message has no '{content_key}'; set options.content_key to the key of its text",
            )
        content = message[content_key]
        if isinstance(content, list):
            if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                raise Malformed(
                    "unsupported_record", f"the content of the {role} has parts that are not text"
                )
            content = "".join(_as_string(part.get("text"), "text") for part in content)
        known = {role_key, content_key, *FLAGS, *REFUSED_IN_TURNS}
        self._count_unknown(message, known, "unknown_key_of_a_turn_")
        if role == "assistant":
            is_target = learn and flag is not False
            return Turn(role=role, content=self._parse_answer(content, content_key), target=is_target)
        if flag:
            raise Malformed("unsupported_record", f"a turn of the {role} is marked for training")
        return Turn(role=role, content=_as_string(content, content_key), target=False)

    def _get_turn_keys(self, message: dict[str, object]) -> tuple[str, str]:
        defaults = ("role", "content")
        if "from" in message and "role" not in message:  # ShareGPT's form
            defaults = ("from", "value")
        return self._options.role_key or defaults[0], self._options.content_key or defaults[1]

    def _parse_role(self, message: dict[str, object], key: str) -> str:
        if key not in message:
            names = ", ".join(sorted(name for name in message if _NAME.fullmatch(name))[:5])
            raise Malformed(
                "unknown_role", f"a message has no '{key}'; set options.role_key to one of its keys ({names})"
            )
        name = message[key]
        if isinstance(name, str):
            default = SHAREGPT_ROLES.get(name, name) if key == "from" else name
            role = self._options.roles.get(name, default)
            if role in ROLES:
                return role
        if name == "function_call":
            raise Malformed("unsupported_record", "a message has the role function_call")
        known = ", ".join([*self._options.roles, *ROLES])
        raise Malformed(
            "unknown_role", f"{key} is {name!r:.60}, not one of {known}; map it to a role in options.roles"
        )

    def _parse_history(self, record: dict[str, object]) -> list[Turn]:
        key = self._keys["history"]
        pairs = record.get(key) or []
        if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
            raise Malformed("unreadable_record", f"'{key}' must be a list of [question, answer] pairs")
        turns = []
        for question, answer in pairs:
            turns.append(Turn(role="user", content=_as_string(question, key), target=False))
            content = self._parse_answer(answer, key)
            turns.append(Turn(role="assistant", content=content, target=self._options.learn_history))
        return turns

    def _apply_prompt_template(self, turns: list[Turn], system: str) -> list[Turn]:
        """Insert a record's question into options.prompt_template.

        Returns:
            Two turns of plain text: the question in the template, and the answer.

        Args:
            turns: the turns of the record; only a question and an answer are supported.
            system: the record's system text.

        Raises:
            Malformed: the record has a system text or history, which the template cannot include.
        """
        if len(turns) != 2 or system:
            raise Malformed(
                "unsupported_record", "has a system or history, which options.prompt_template cannot include"
            )
        # A line break given on the command line arrives as the two characters \n.
        template = self._options.prompt_template.replace("\\n", "\n")
        prompt = template.replace("{prompt}", turns[0].content)
        return [
            Turn(role="", content=prompt, target=False),
            Turn(role="", content=turns[1].content, target=True),
        ]

    def _parse_answer(self, value: object, name: str) -> str:
        text = _as_string(value, name)
        if not self._options.strip_html:
            return text
        stripped = strip_html(text)
        self._report.counts["answers_with_html_stripped"] += stripped != text
        return stripped

    def _get_text(self, record: dict[str, object], field_name: str) -> str:
        key = self._keys[field_name]
        return _as_string(record.get(key), key)

    def _count_unknown(self, keys: dict[str, object], known: set[str], prefix: str) -> None:
        for name in keys:
            if name in known or keys[name] is None:
                continue
            shown = name if _NAME.fullmatch(name) else "(no plain name)"
            counted = f"{prefix}{shown}"
            if counted not in self._unknown_names and len(self._unknown_names) >= MAX_NAMES:
                counted = "unknown_keys_of_other_names"
            else:
                self._unknown_names.add(counted)
            self._report.counts[counted] += 1


def strip_html(text: str) -> str:
    """Remove HTML tags from a text, and replace entities by characters.

    Each block element becomes a line; the line of a list item begins with "- ". Tags that HTML does
    not define, such as <think>, are kept.
    """
    lines = _LINE.sub("\n", _PARAGRAPH.sub("\n\n", _NO_TEXT.sub("", text)))
    plain = html.unescape(_TAG.sub("", _CELL.sub("\t", _ITEM.sub("\n- ", lines))))
    if plain == text:
        return text
    return _BLANK_LINES.sub("\n\n", plain).strip()


def _prepend_system(turns: list[Turn], system: str) -> list[Turn]:
    """Insert a record's system text as the first turn.

    It is not inserted if it is empty, or if the turns begin with it.

    Raises:
        Malformed: the turns have a different system text.
    """
    if not system.strip() or (turns and turns[0].role == "system" and turns[0].content == system):
        return turns
    if any(turn.role in ("system", "developer") for turn in turns):
        raise Malformed("unsupported_record", "has a system text that differs from that in its messages")
    return [Turn(role="system", content=system, target=False), *turns]


def _refuse(record: dict[str, object]) -> None:
    """Raise Malformed if a record has unsupported keys.

    Such keys would change which tokens are trained on, or the text that the model reads.
    """
    refused = [name for name in REFUSED if not _is_empty(record.get(name))]
    refused += [name for name in REFUSED_UNLESS_TRUE if record.get(name) not in (None, True)]
    if record.get("label") is False:
        refused.append("label")
    refused += _find_other_flags(record, {*REFUSED, *REFUSED_UNLESS_TRUE})
    if refused:
        raise Malformed("unsupported_record", f"has unsupported keys: {', '.join(refused)}")


def _parse_flag(message: dict[str, object]) -> bool | None:
    """Return whether a turn's flags mark it for training; None if it has no flag.

    Raises:
        Malformed: a flag is neither true nor false, or two flags contradict each other.
    """
    flags = {name: message[name] for name in FLAGS if message.get(name) is not None}
    for name, value in flags.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise Malformed("unsupported_record", f"{name} of a message must be true or false, not {value!r}")
    if len({bool(value) for value in flags.values()}) > 1:
        raise Malformed("unsupported_record", f"{' and '.join(flags)} of a message contradict each other")
    return bool(next(iter(flags.values()))) if flags else None


def _find_other_flags(record: dict[str, object], known: set[str]) -> list[str]:
    return [name for name, value in record.items() if name not in known and _is_other_flag(name, value)]


def _is_other_flag(name: str, value: object) -> bool:
    """Return whether a key seems to be a training flag in a spelling that is not supported.

    Such a key has a name with a part such as "loss" or "train", and its value is not free text.
    """
    if not _FLAG_WORDS.search(_CAPITAL.sub("_", name).replace("-", "_").lower()):
        return False
    if isinstance(value, str):
        return value.strip().lower() in ("true", "false", "yes", "no", "ja", "nei", "0", "1")
    return isinstance(value, bool | int | float | list)


def _is_empty(value: object) -> bool:
    return value in (None, "", False, [], {}) or value in ("[]", "{}", "null")


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2


def _as_string(value: object, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(
            "unreadable_record", f"'{name}' must be a string, but has type {type(value).__name__}"
        )
    return jsonl.to_valid_text(value)
