"""The document that readers yield and stages process, and the report of a stage."""

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
        role: the role in the chat template (system, user, assistant, tool); "" for a prompt or a
            completion of plain text.
        content: the text of the turn.
        target: True if the model is trained to write the content.
    """

    role: str
    content: str
    target: bool


@dataclass(slots=True, kw_only=True)
class Document:
    """A document: running text, or the turns of a conversation.

    Attributes:
        id: the id that the source gives; if it gives none, the document's place in the source.
        text: plain text; paragraphs are separated by a blank line. "" if the document has turns.
        source: the source's name in the corpus file.
        license: the source's licence.
        group: the name of a group, such as an act, a case or a meeting; all documents of a group go
            into the same split.
        language: ISO 639-3 code. Before stage language, it is the code from the source, or "".
        title, date, url: the values that the source gives, or "". A date begins with its year.
        split: "train" or "validation" after the split stage, else "".
        turns: the turns of a conversation, or a prompt and its completion. Stages that read or
            change text process the content of each turn.
        mask: TRL's name of the column that marks the targets; "" for a document without turns.
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
        """The text, or the contents of all turns, for stages that examine the whole document."""
        if not self.turns:
            return self.text
        return "\n\n".join(turn.content for turn in self.turns)

    @property
    def characters(self) -> int:
        return len(self.text) + sum(len(turn.content) for turn in self.turns)


_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("target", pa.bool_())]))
DOCUMENT_SCHEMA = pa.schema(
    [(name, _TURNS if name == "turns" else pa.string()) for name in Document.__dataclass_fields__]
)


@dataclass(slots=True)
class Drop:
    """A document that a stage dropped, or a record that reading dropped.

    Attributes:
        reason: a code, by which drops are counted.
        detail: details of the reason, such as the measured value, or the id of the document that is
            kept instead.
        characters: the length of the text; 0 for a record that reading dropped.
    """

    id: str
    source: str
    reason: str
    detail: str = ""
    characters: int = 0


class Unreadable(UserError):
    """A record, member or file that cannot be read; the caller quarantines it with its place."""


@dataclass(slots=True, frozen=True)
class Place:
    """The place of a record in a source.

    Attributes:
        file: path of the file, relative to the source's path.
        member: name of the archive member; names of nested members are joined by "!". "" if the
            file is not an archive.
        at: place in the file or member: "line 17", "record 3", "byte 8192", or "" for all of it.
    """

    source: str
    file: str
    member: str = ""
    at: str = ""

    def __str__(self) -> str:
        return ":".join(part for part in (self.file, self.member, self.at.rpartition(" ")[2]) if part)


@dataclass(slots=True)
class Broken:
    """A quarantined record: its place (see `Place`), and the error in one line."""

    source: str
    file: str
    member: str
    at: str
    error: str


@dataclass(slots=True)
class Cut:
    """A line or paragraph that a stage cut from the documents of a source.

    Attributes:
        reason: the reason with its details, such as the site that repeats the line, or the
            evaluation set that contains it.
        text: the line or paragraph.
        documents: number of documents from which it was cut.
        example: id of the first of them.
    """

    source: str
    reason: str
    text: str
    documents: int
    example: str


@dataclass(slots=True, frozen=True)
class Shortened:
    """The number of characters that a stage cut from one document, with source and reason."""

    source: str
    reason: str
    characters: int


@dataclass
class Report:
    """A stage's report on a shard: drops, counts of changes, broken records and cut text.

    `drops` and `shortened` together cover all text that the stage removed. The corpus card lists
    both by reason and source.

    Attributes:
        cuts: the lines and paragraphs that were cut, by source, reason and text.
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
        """Record lines or paragraphs that are cut from a document.

        Args:
            reason: the reason under which the corpus card counts them.
            texts: the lines or paragraphs. Those that differ only in white space count as equal.
            characters: number of characters by which the document becomes shorter.
            where: an addition to the reason in the stage's files, such as the site that repeats the
                lines. The corpus card does not show it.
        """
        self.shortened.append(Shortened(document.source, reason, characters))
        place = f"{reason} {where}".strip()
        for text in dict.fromkeys(" ".join(text.split()) for text in texts):
            key = (document.source, place, text)
            if key not in self.cuts:
                self.cuts[key] = Cut(*key, documents=0, example=document.id)
            self.cuts[key].documents += 1

    def quarantine(self, place: Place, error: str | Exception) -> None:
        """Record a broken record.

        Raises:
            UserError: there would be more than MAX_BROKEN broken records. Their number is limited
                because they are held in memory.
        """
        if len(self.broken) >= MAX_BROKEN:
            raise UserError(
                f"source {place.source}: has more than {MAX_BROKEN:,} broken records; "
                f"correct the source; the last broken record is {place}: {error}"
            )
        line = " ".join(str(error).split())[:500]
        self.broken.append(Broken(place.source, place.file, place.member, place.at, line))

    @contextmanager
    def quarantining(self, place: Place) -> Iterator[None]:
        """Quarantine the record at `place` if the `with` block raises Unreadable.

        The exception ends the block only. Execution continues after the block.
        """
        try:
            yield
        except Unreadable as fault:
            self.quarantine(place, fault)

    def drop_reasons(self) -> dict[str, int]:
        """Return the number of drops by reason."""
        return dict(sorted(Counter(drop.reason for drop in self.drops).items()))


QUARANTINE_SCHEMA = pa.schema([(name, pa.string()) for name in Broken.__dataclass_fields__])
CUT_SCHEMA = pa.schema(
    [(name, pa.int64() if name == "documents" else pa.string()) for name in Cut.__dataclass_fields__]
)
