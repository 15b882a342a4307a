"""Minutes of Stortinget from data.stortinget.no (/eksport/publikasjon), in both generations of their XML.

Until 2015-16: <forhandling><mote><saker><sak><innlegg type="hovedinnlegg"><navn>…</navn><a>…</a></innlegg>.
Since: <Forhandlinger> <Mote><Hovedseksjon><Saker><Sak><Hovedinnlegg><A><Navn>…</Navn> …</A></Hovedinnlegg>.
One document is one item of the agenda, or one speech (`unit: speech`); what stands outside items is one
document a meeting. All of a file is one group.

Kept: the item's number and title; before each speech who speaks, party and time as the minutes have them, and
whether it is a main speech (hovedinnlegg) or a reply (replikk); remarks and votes, in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lxml import etree

from data_prep.config import SourceConfig
from data_prep.document import Document, Place, Report, Unreadable
from data_prep.fields import one_of, setting
from data_prep.sources import claims
from data_prep.sources.files import contents, find, stem
from data_prep.sources.markup import blocks, local_name, parse_xml, squeeze

SUFFIXES = (".xml",)
SPEECHES = {"innlegg", "presinnl", "hovedinnlegg", "replikk", "presinnlegg"}
INLINE = {
    "uth",
    "i",
    "b",
    "u",
    "em",
    "sup",
    "sub",
    "hoy",
    "lav",
    "kursiv",
    "halvfet",
    "sperret",
    "entry",
    "td",
    "th",
    "a_ref",
}
PUBLICATION = "https://data.stortinget.no/eksport/publikasjon?publikasjonid="
_PUBLICATION_ID = re.compile(
    r"[a-z]+-?\d{6}"
)  # refs-202021-11-17, s140213; what has another name is not to be found there
SKIPPED = {"sidetall", "side", "bilde"}


@dataclass
class Options:
    """Options of the minutes of Stortinget."""

    unit: str = setting("item", "text that becomes a document: item (of the agenda) or speech")

    def __post_init__(self) -> None:
        one_of("options.unit", self.unit, ("item", "speech"))


@dataclass
class Piece:
    """A paragraph and where it belongs: `speech` is the element of the speech it is part of, None outside of
    speeches."""

    speech: etree._Element | None
    text: str


def files(source: SourceConfig) -> list[Path]:
    claims.options(source, Options)
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    unit = claims.options(source, Options).unit
    for where, raw in contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(where):
            yield from list(_documents(parse_xml(raw, report), where, source, unit))


def _documents(root: etree._Element, where: Place, source: SourceConfig, unit: str) -> Iterator[Document]:
    if local_name(root).lower() not in ("forhandling", "forhandlinger"):
        raise Unreadable(f"not minutes of Stortinget: the root is <{local_name(root)}>")
    publication = (
        re.sub(r"-\d+$", "", root.get("Id", "")) if root.get("Id", "").count("-") > 3 else root.get("Id", "")
    )
    publication = publication or Path(stem(where)).name
    meetings = [child for child in root if local_name(child).lower() == "mote"] or [root]
    for number, meeting in enumerate(meetings, start=1):
        heading = _meeting_heading(meeting)
        document = partial(
            Document,
            source=where.source,
            license=source.license,
            group=publication,
            date=claims.date(heading),
            url=f"{PUBLICATION}{publication}" if _PUBLICATION_ID.match(publication) else "",
        )
        found = [element for element in meeting.iter() if local_name(element).lower() == "sak"]
        items = [
            item for item in found if not any(local_name(a).lower() == "sak" for a in item.iterancestors())
        ]
        around = _pieces(meeting, leave_out=items)
        for index, (element, pieces) in enumerate(
            [(meeting, around), *((item, _pieces(item)) for item in items)]
        ):
            base = f"{publication}:{number}.{index}"
            title = _title(element) if index else heading
            for suffix, text in _texts(pieces, unit):
                yield document(id=base + suffix, text=text, title=title)


def _texts(pieces: list[Piece], unit: str) -> Iterator[tuple[str, str]]:
    if unit == "item":
        if pieces:
            yield "", "\n\n".join(piece.text for piece in pieces)
        return
    speeches: dict[int, list[str]] = {}
    order: list[etree._Element] = []  # keeps the elements alive, so that their ids stay theirs
    for piece in pieces:
        if piece.speech is not None:
            if id(piece.speech) not in speeches:
                order.append(piece.speech)
            speeches.setdefault(id(piece.speech), []).append(piece.text)
    for number, speech in enumerate(order, start=1):
        yield f".{number}", "\n\n".join(speeches[id(speech)])


def _pieces(element: etree._Element, leave_out: Sequence[etree._Element] = ()) -> list[Piece]:
    """Paragraphs in order. A speaker's name opens the paragraph it stands before, with the kind of the speech
    behind it."""
    pieces: list[Piece] = []
    name = ""
    left_out = set(leave_out)
    found = blocks(
        element, _is_block, lambda child: child in left_out or local_name(child).lower() in SKIPPED
    )
    for block, text in found:
        speech = next((a for a in (block, *block.iterancestors()) if local_name(a).lower() in SPEECHES), None)
        if local_name(block).lower() == "navn":
            if speech is not None and text.strip(" :"):
                name = _with_kind(text, speech)
            elif text.strip(" :"):
                name = text
            continue
        pieces.append(Piece(speech, f"{name} {text}".strip()))
        name = ""
    if name:
        pieces.append(Piece(None, name))
    return pieces


def _is_block(element: etree._Element) -> bool:
    return local_name(element).lower() not in INLINE


def _with_kind(name: str, speech: etree._Element) -> str:
    tag = local_name(speech).lower()
    kind = (speech.get("type") or "") if tag == "innlegg" else tag
    name = name.rstrip(" :")
    return f"{name}, {kind}:" if kind in ("hovedinnlegg", "replikk") else f"{name}:"


def _meeting_heading(meeting: etree._Element) -> str:
    for element in meeting.iter():
        if local_name(element).lower() in ("dato", "tittel", "forhtit"):
            return squeeze(element.itertext())
    return ""


def _title(item: etree._Element) -> str:
    for element in item.iter():
        if local_name(element).lower() in ("saktittel", "saktit", "sakstittel", "tittel"):
            return squeeze(element.itertext())
    return ""
