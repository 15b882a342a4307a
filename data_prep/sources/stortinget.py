"""Reader of the minutes of Stortinget from data.stortinget.no/eksport, in both XML formats.

The first format was used until 2015-16, the second since then:

    <forhandling><mote><saker><sak><innlegg type="hovedinnlegg"><navn>…</navn><a>…</a></innlegg>
    <Forhandlinger><Mote><Hovedseksjon><Saker><Sak><Hovedinnlegg><A><Navn>…</Navn> …</A>

A document is an item of the agenda. The text of a meeting that is in no item is a document too.
With `unit: speech`, each speech is a document. All documents of a file form a group, which a split
keeps together.

Each item keeps its number and title, and its speeches, remarks and votes in order. A speech begins
with the speaker, party and time as written in the minutes, and with its kind: main speech
(hovedinnlegg) or reply (replikk).
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
from data_prep.sources.files import find_files, id_from_place, iter_contents
from data_prep.sources.markup import iter_blocks, local_name, parse_xml, squeeze

SUFFIXES = (".xml",)
SPEECHES = {"innlegg", "presinnl", "hovedinnlegg", "replikk", "presinnlegg"}
INLINE = {
    "uth", "i", "b", "u", "em", "sup", "sub", "hoy", "lav", "kursiv", "halvfet", "sperret",
    "entry", "td", "th", "a_ref",
}  # fmt: skip
PUBLICATION = "https://data.stortinget.no/eksport/publikasjon?publikasjonid="
# Publication ids that have an address, such as refs-202021-11-17 and s140213.
_PUBLICATION_ID = re.compile(r"[a-z]+-?\d{6}")
SKIPPED = {"sidetall", "side", "bilde"}


@dataclass
class Options:
    """Options of reader `stortinget`."""

    unit: str = setting("item", "text that becomes a document: item (of the agenda) or speech")

    def __post_init__(self) -> None:
        one_of("options.unit", self.unit, ("item", "speech"))


@dataclass
class Piece:
    """A paragraph of the minutes.

    Attributes:
        speech: element of the speech that contains the paragraph; None outside speeches.
    """

    speech: etree._Element | None
    text: str


def list_files(source: SourceConfig) -> list[Path]:
    claims.parse_options(source, Options)
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    unit = claims.parse_options(source, Options).unit
    for place, raw in iter_contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(place):
            yield from list(_documents(parse_xml(raw, report), place, source, unit))


def _documents(root: etree._Element, place: Place, source: SourceConfig, unit: str) -> Iterator[Document]:
    if local_name(root).lower() not in ("forhandling", "forhandlinger"):
        raise Unreadable(f"not minutes of Stortinget: the root is <{local_name(root)}>")
    publication = root.get("Id", "")
    if publication.count("-") > 3:
        publication = re.sub(r"-\d+$", "", publication)
    publication = publication or Path(id_from_place(place)).name
    meetings = [child for child in root if local_name(child).lower() == "mote"] or [root]
    for number, meeting in enumerate(meetings, start=1):
        heading = _meeting_heading(meeting)
        document = partial(
            Document,
            source=place.source,
            license=source.license,
            group=publication,
            date=claims.parse_date(heading),
            url=f"{PUBLICATION}{publication}" if _PUBLICATION_ID.match(publication) else "",
        )
        items = [element for element in meeting.iter() if _is_item(element)]
        sections = [(heading, _read_pieces(meeting, leave_out=items))]
        sections += [(_title(item), _read_pieces(item)) for item in items]
        for index, (title, pieces) in enumerate(sections):
            for suffix, text in _iter_texts(pieces, unit):
                yield document(id=f"{publication}:{number}.{index}{suffix}", text=text, title=title)


def _is_item(element: etree._Element) -> bool:
    """Return whether an element is an item of the agenda that is not nested in another item."""
    if local_name(element).lower() != "sak":
        return False
    return not any(local_name(above).lower() == "sak" for above in element.iterancestors())


def _iter_texts(pieces: list[Piece], unit: str) -> Iterator[tuple[str, str]]:
    """Yield the documents of an item: the suffix of each document's id, and its text.

    Args:
        unit: "item" to yield the whole item, "speech" to yield each speech in it.
    """
    if unit == "item":
        if pieces:
            yield "", "\n\n".join(piece.text for piece in pieces)
        return
    speeches: dict[int, list[str]] = {}
    order: list[etree._Element] = []  # keeps the elements alive, so that id() stays unique
    for piece in pieces:
        if piece.speech is not None:
            if id(piece.speech) not in speeches:
                order.append(piece.speech)
            speeches.setdefault(id(piece.speech), []).append(piece.text)
    for number, speech in enumerate(order, start=1):
        yield f".{number}", "\n\n".join(speeches[id(speech)])


def _read_pieces(element: etree._Element, leave_out: Sequence[etree._Element] = ()) -> list[Piece]:
    """Return the paragraphs of an element in order.

    A speaker's name and the kind of speech are put at the beginning of the next paragraph.

    Args:
        leave_out: elements whose paragraphs are not returned.
    """
    pieces: list[Piece] = []
    name = ""
    left_out = set(leave_out)

    def is_skipped(child: etree._Element) -> bool:
        return child in left_out or local_name(child).lower() in SKIPPED

    for block, text in iter_blocks(element, _is_block, is_skipped):
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
    kind = local_name(speech).lower()
    if kind == "innlegg":
        kind = speech.get("type") or ""
    name = name.rstrip(" :")
    if kind in ("hovedinnlegg", "replikk"):
        name += f", {kind}"
    return f"{name}:"


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
