"""Reader of ParlaMint corpora (TEI), plain or linguistically annotated; tested with ParlaMint-NO.

A file contains the debates of one day. A document is a section of a debate; with `unit: speech`, it
is a speech. All documents of a day form a group, which a split keeps together.

Headings, the speaker's name from the note before a speech, the paragraphs of speeches, and remarks
in the minutes are kept. The corpus's own annotations (gaps, descriptions of noise) are left out.
Files without debates, such as the corpus root and lists of persons, are counted and skipped.
"""

from __future__ import annotations

import re
from collections import Counter
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
XML = "{http://www.w3.org/XML/1998/namespace}"
NO_DEBATES = {"teiCorpus", "listPerson", "listOrg", "taxonomy", "teiHeader"}
_SPACE_BEFORE = re.compile(r" +(?=[,.;:!?»)](?:\s|$))")
SKIPPED_IN_SPEECH = {"gap", "vocal", "kinesic", "incident", "desc", "linkGrp", "link"}


@dataclass
class Options:
    """Options of reader `parlamint`."""

    unit: str = setting("debate", "text that becomes a document: debate (a section of a sitting) or speech")

    def __post_init__(self) -> None:
        one_of("options.unit", self.unit, ("debate", "speech"))


@dataclass
class Part:
    """A heading, a remark or a speech.

    Attributes:
        id: the corpus's id of a speech; "" for headings and remarks.
        language: the language that the corpus gives for a speech; "" if it gives none.
    """

    id: str
    text: str
    language: str = ""


def list_files(source: SourceConfig) -> list[Path]:
    claims.parse_options(source, Options)
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    unit = claims.parse_options(source, Options).unit
    for place, raw in iter_contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(place):
            root = parse_xml(raw, report)
            if local_name(root) in NO_DEBATES:
                report.counts["files_without_debates"] += 1
            else:
                yield from list(_documents(root, place, source, unit))


def _documents(root: etree._Element, place: Place, source: SourceConfig, unit: str) -> Iterator[Document]:
    if local_name(root) != "TEI":
        raise Unreadable(f"not a TEI document: the root is <{local_name(root)}>")
    day = root.get(f"{XML}id") or Path(id_from_place(place)).name
    file_language = claims.parse_language(root.get(f"{XML}lang"))
    bibl = next(root.iter("{*}bibl"), root)
    urls = (squeeze(e.itertext()) for e in bibl.iter("{*}idno") if e.get("type") == "URI")
    url = next(urls, "")
    dates = (claims.parse_date(e.get("when")) for e in bibl.iter("{*}date") if e.get("when"))
    date = next(dates, "") or claims.parse_date(day)
    document = partial(Document, source=place.source, license=source.license, group=day, date=date, url=url)
    for number, section in enumerate(root.findall(".//{*}body/{*}div"), start=1):
        section_id = f"{day}.{number}"
        parts = list(_iter_parts(section))
        title = next((squeeze(e.itertext()) for e in section.iter("{*}head")), "")
        if unit == "speech":
            for part in parts:
                if part.language or part.id:
                    language = part.language or file_language
                    yield document(id=part.id or section_id, text=part.text, title=title, language=language)
        elif parts:
            language = _main_language(parts, file_language)
            text = "\n\n".join(part.text for part in parts)
            yield document(id=section_id, text=text, title=title, language=language)


def _main_language(parts: list[Part], file_language: str) -> str:
    """Return the language with the most characters; the file's language if no part has its own."""
    lengths = Counter[str]()
    for part in parts:
        if part.language:
            lengths[part.language] += len(part.text)
        else:
            lengths[file_language] += 0
    if not any(lengths.values()):
        return file_language
    return lengths.most_common(1)[0][0]


def _iter_parts(section: etree._Element) -> Iterator[Part]:
    speaker = ""
    for element in section:
        name = local_name(element)
        if name == "note" and element.get("type") == "speaker":
            speaker = squeeze(element.itertext())
        elif name in ("head", "note"):
            text = squeeze(element.itertext())
            if text:
                yield Part("", text)
        elif name == "u":
            if not speaker and "#chair" in (element.get("ana") or "").split():
                speaker = "Presidenten:"
            speech = "\n\n".join(text for text in map(_paragraph_text, element) if text)
            if speech:
                yield Part(
                    element.get(f"{XML}id", ""),
                    f"{speaker} {speech}".strip(),
                    claims.parse_language(element.get(f"{XML}lang")),
                )
            speaker = ""


def _paragraph_text(element: etree._Element) -> str:
    """Return the text of a note or paragraph (<seg>); words may be elements (<w>) of their own."""
    if local_name(element) in SKIPPED_IN_SPEECH:
        return ""
    tokens = element.iter("{*}w", "{*}pc")
    words = [e for e in tokens if not any(local_name(above) == "w" for above in e.iterancestors())]
    if words:
        pieces = []
        for word in words:
            pieces += [word.text or "", "" if word.get("join") in ("right", "both") else " "]
        return squeeze(pieces)
    blocks = iter_blocks(element, lambda _: False, lambda child: local_name(child) in SKIPPED_IN_SPEECH)
    # Names are elements of their own, with white space around them; remove it before punctuation.
    return _SPACE_BEFORE.sub("", " ".join(text for _, text in blocks))
