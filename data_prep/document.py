"""The one record that flows through preparation, and the report of what happened to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(slots=True, kw_only=True)
class Document:
    """A document on its way to tokens.

    Attributes:
        id: as the source gives it, or its place in the source.
        text: plain text; paragraphs are separated by a blank line.
        source: the source's name in the corpus config.
        license: the source's licence.
        group: documents that must fall on the same side of a split share a group (an act, a case, a meeting).
        language: ISO 639-3 code; until the language stage, what the source claims, or "".
        title, date: as the source gives them, or "".
        split: "train" or "validation" once the split stage has run, else "".
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


DOCUMENT_SCHEMA = pa.schema([(name, pa.string()) for name in Document.__dataclass_fields__])


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
