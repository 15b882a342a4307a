"""The one record that flows through preparation, and the report of what happened to it. Used by readers and
stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa

from data_prep.user_error import UserError

MAX_BROKEN = 100_000


@dataclass(slots=True, kw_only=True)
class Turn:
    """One turn of a conversation, or one side of a prompt and its completion.

    Attributes:
        role: as chat templates know it (system, user, assistant, tool); "" in a prompt and a completion of
            plain text.
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
        title, date, url: as the source gives them, or "". A date begins with its year.
        split: "train" or "validation" once the split stage has run, else "".
        turns: of a conversation, or a prompt and its completion; every stage that reads or changes text
            treats each of them.
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
    url: str = ""
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
DOCUMENT_SCHEMA = pa.schema(
    [(name, _TURNS if name == "turns" else pa.string()) for name in Document.__dataclass_fields__]
)


@dataclass(slots=True)
class Drop:
    """A document, or a record that never became one, that a stage refused. `detail` says where, or to what it
    lost.

    Attributes:
        characters: of its text; 0 of a record that never became a document.
    """

    id: str
    source: str
    reason: str
    detail: str = ""
    characters: int = 0


class Unreadable(UserError):
    """A record, member or file that cannot be read, in one line. Whoever knows its place quarantines it."""


@dataclass(slots=True, frozen=True)
class Place:
    """Where a record stands: the file's path under the source's, the member of an archive, and where in that.

    Attributes:
        member: names of nested members are joined by "!"; "" if the file is no archive.
        at: "line 17", "record 3", "byte 8192", or "" for all of it.
    """

    source: str
    file: str
    member: str = ""
    at: str = ""

    def __str__(self) -> str:
        return ":".join(part for part in (self.file, self.member, self.at.rpartition(" ")[2]) if part)


@dataclass(slots=True)
class Broken:
    """A record that is quarantined: its place, and its fault in one line."""

    source: str
    file: str
    member: str
    at: str
    error: str


@dataclass(slots=True)
class Cut:
    """A line or paragraph that a stage took out of documents and did not put elsewhere.

    Attributes:
        source: of the documents.
        reason: why it was cut: the site whose frame it is, the evaluation set that holds it.
        text: the line or paragraph.
        documents: in how many documents it was cut.
        example: id of the first of them.
    """

    source: str
    reason: str
    text: str
    documents: int
    example: str


@dataclass(slots=True, frozen=True)
class Shortened:
    """A document that went on without `characters` of its text."""

    source: str
    reason: str
    characters: int


@dataclass
class Report:
    """What one stage did: every dropped document has a reason, every change a count, every broken record a
    place, every text that was cut an example.

    `drops` and `shortened` together are all text that the stage took; the card shows both by reason and
    source.
    """

    drops: list[Drop] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    broken: list[Broken] = field(default_factory=list)
    cuts: dict[tuple[str, str, str], Cut] = field(default_factory=dict)
    shortened: list[Shortened] = field(default_factory=list)

    def drop(self, document: Document, reason: str, detail: str = "") -> None:
        self.drops.append(Drop(document.id, document.source, reason, detail, document.characters))

    def cut(
        self, document: Document, reason: str, texts: Iterable[str], characters: int, where: str = ""
    ) -> None:
        """Note what is cut from a document that goes on without it.

        Args:
            reason: as the card counts it.
            texts: the lines or paragraphs; white space makes no difference between them.
            characters: by how many the document becomes shorter.
            where: what belongs to the reason in the stage's files alone, as the site of a frame.
        """
        self.shortened.append(Shortened(document.source, reason, characters))
        place = f"{reason} {where}".strip()
        for text in dict.fromkeys(" ".join(text.split()) for text in texts):
            key = (document.source, place, text)
            if key not in self.cuts:
                self.cuts[key] = Cut(*key, documents=0, example=document.id)
            self.cuts[key].documents += 1

    def quarantine(self, place: Place, error: str | Exception) -> None:
        """Note a broken record.

        Raises:
            UserError: they are so many that they would fill the memory.
        """
        if len(self.broken) >= MAX_BROKEN:
            raise UserError(
                f"source {place.source}: over {MAX_BROKEN:,} records cannot be read, the last is {place}: {error}"
            )
        line = " ".join(str(error).split())[:500]
        self.broken.append(Broken(place.source, place.file, place.member, place.at, line))

    @contextmanager
    def quarantining(self, place: Place) -> Iterator[None]:
        """What turns out to be Unreadable inside is quarantined, and reading goes on behind."""
        try:
            yield
        except Unreadable as fault:
            self.quarantine(place, fault)

    def drop_reasons(self) -> dict[str, int]:
        return dict(sorted(Counter(drop.reason for drop in self.drops).items()))


QUARANTINE_SCHEMA = pa.schema([(name, pa.string()) for name in Broken.__dataclass_fields__])
CUT_SCHEMA = pa.schema(
    [(name, pa.int64() if name == "documents" else pa.string()) for name in Cut.__dataclass_fields__]
)
