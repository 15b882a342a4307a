"""The one record that flows through preparation, and the report of what happened to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(slots=True, kw_only=True)
class Turn:
    """One turn of a conversation, or one side of a prompt and its completion.

    Attributes:
        role: as chat templates know it (system, user, assistant, tool); "" in a prompt and a completion of plain text.
        content: what is said.
        target: whether the model is to learn to say it.
    """

    role: str
    content: str
    target: bool


@dataclass(slots=True, kw_only=True)
class Document:
    """A document on its way to tokens: running text, or the turns of a conversation.

    Attributes:
        id: as the source gives it, or its place in the source.
        text: plain text; paragraphs are separated by a blank line. "" if the document has turns.
        source: the source's name in the corpus config.
        license: the source's licence.
        group: documents that must fall on the same side of a split share a group (an act, a case, a meeting).
        language: ISO 639-3 code; until the language stage, what the source claims, or "".
        title, date: as the source gives them, or "".
        split: "train" or "validation" once the split stage has run, else "".
        turns: of a conversation, or a prompt and its completion; every stage that reads or changes text treats each of them.
        mask: of a document with turns, TRL's name for the column that says which of its tokens are targets.
    """

    id: str
    text: str
    source: str
    license: str
    group: str
    language: str = ""
    title: str = ""
    date: str = ""
    split: str = ""
    turns: list[Turn] = field(default_factory=list)
    mask: str = ""

    @property
    def whole_text(self) -> str:
        """All that is said in it, for stages that judge a document as one."""
        return "\n\n".join(turn.content for turn in self.turns) if self.turns else self.text

    @property
    def characters(self) -> int:
        return len(self.text) + sum(len(turn.content) for turn in self.turns)


_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("target", pa.bool_())]))
DOCUMENT_SCHEMA = pa.schema([(name, _TURNS if name == "turns" else pa.string()) for name in Document.__dataclass_fields__])


@dataclass(slots=True)
class Drop:
    """A document, or a record that never became one, that a stage refused. `detail` says where, or to what it lost."""

    id: str
    source: str
    reason: str
    detail: str = ""


@dataclass
class Report:
    """What one stage did: every dropped document has a reason, every change a count."""

    drops: list[Drop] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def drop(self, document: Document, reason: str, detail: str = "") -> None:
        self.drops.append(Drop(document.id, document.source, reason, detail))

    def drop_reasons(self) -> dict[str, int]:
        return dict(sorted(Counter(drop.reason for drop in self.drops).items()))
