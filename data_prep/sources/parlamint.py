"""ParlaMint (TEI), made for ParlaMint-NO: one file a day of sitting, plain or annotated (.ana).

One document is one debate section, or one speech (`unit: speech`); a day is one group. Kept: headings, the
speaker as the note before a speech names him, what each says, paragraph by paragraph, and comments of the
minutes. Left out: what the corpus says of itself (gaps, descriptions of noise). Corpus roots and lists of
persons, which hold no debates, are counted and passed over.
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
from data_prep.sources.files import contents, find, stem
from data_prep.sources.markup import blocks, local_name, parse_xml, squeeze

SUFFIXES = (".xml",)
XML = "{http://www.w3.org/XML/1998/namespace}"
NO_DEBATES = {"teiCorpus", "listPerson", "listOrg", "taxonomy", "teiHeader"}
_SPACE_BEFORE = re.compile(r" +(?=[,.;:!?»)](?:\s|$))")
SKIPPED_IN_SPEECH = {"gap", "vocal", "kinesic", "incident", "desc", "linkGrp", "link"}


@dataclass
class Options:
    """Options of ParlaMint."""

    unit: str = setting("debate", "text that becomes a document: debate (a section of a sitting) or speech")

    def __post_init__(self) -> None:
        one_of("options.unit", self.unit, ("debate", "speech"))


@dataclass
class Part:
    """A heading, a comment or a speech; `language` is what the corpus says of a speech, "" otherwise."""

    id: str
    text: str
    language: str = ""


def files(source: SourceConfig) -> list[Path]:
    claims.options(source, Options)
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    unit = claims.options(source, Options).unit
    for where, raw in contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(where):
            root = parse_xml(raw, report)
            if local_name(root) in NO_DEBATES:
                report.counts["files_without_debates"] += 1
            else:
                yield from list(_documents(root, where, source, unit))


def _documents(root: etree._Element, where: Place, source: SourceConfig, unit: str) -> Iterator[Document]:
    if local_name(root) != "TEI":
        raise Unreadable(f"not a TEI document: the root is <{local_name(root)}>")
    day = root.get(f"{XML}id") or Path(stem(where)).name
    own = claims.language(root.get(f"{XML}lang"))
    bibl = next((e for e in root.iter("{*}bibl")), root)
    url = next((squeeze(e.itertext()) for e in bibl.iter("{*}idno") if e.get("type") == "URI"), "")
    date = next(
        (claims.date(e.get("when")) for e in bibl.iter("{*}date") if e.get("when")), ""
    ) or claims.date(day)
    document = partial(Document, source=where.source, license=source.license, group=day, date=date, url=url)
    for number, section in enumerate(root.findall(".//{*}body/{*}div"), start=1):
        parts = list(_parts(section))
        title = next((squeeze(e.itertext()) for e in section.iter("{*}head")), "")
        if unit == "speech":
            for part in (part for part in parts if part.language or part.id):
                language = part.language or own
                yield document(
                    id=part.id or f"{day}.{number}", text=part.text, title=title, language=language
                )
        elif parts:
            said = Counter[str]()
            for part in parts:
                said[part.language or own] += len(part.text) if part.language else 0
            language = said.most_common(1)[0][0] if any(said.values()) else own
            text = "\n\n".join(part.text for part in parts)
            yield document(id=f"{day}.{number}", text=text, title=title, language=language)


def _parts(section: etree._Element) -> Iterator[Part]:
    speaker = ""
    for element in section:
        name = local_name(element)
        if name == "note" and element.get("type") == "speaker":
            speaker = squeeze(element.itertext())
        elif name in ("head", "note"):
            if text := squeeze(element.itertext()):
                yield Part("", text)
        elif name == "u":
            who = speaker or ("Presidenten:" if "#chair" in (element.get("ana") or "").split() else "")
            said = "\n\n".join(text for text in map(_paragraph, element) if text)
            speaker = ""
            if said:
                yield Part(
                    element.get(f"{XML}id", ""),
                    f"{who} {said}".strip(),
                    claims.language(element.get(f"{XML}lang")),
                )


def _paragraph(element: etree._Element) -> str:
    """A <seg> of running text, or of sentences cut into words; a note within a speech."""
    if local_name(element) in SKIPPED_IN_SPEECH:
        return ""
    words = [
        e for e in element.iter("{*}w", "{*}pc") if not any(local_name(a) == "w" for a in e.iterancestors())
    ]
    if words:
        return squeeze((w.text or "") + ("" if w.get("join") in ("right", "both") else " ") for w in words)
    pieces = blocks(element, lambda _: False, lambda child: local_name(child) in SKIPPED_IN_SPEECH)
    # Names stand in elements of their own there, with white space around them.
    return _SPACE_BEFORE.sub("", " ".join(text for _, text in pieces))
