"""The reader of regjeringen.no, and tests of all markup readers on damaged documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lxml import etree

from data_prep import reading
from data_prep.config import SourceConfig
from data_prep.document import Report
from tests.data_prep.reading import broken_places, corrupt_each_value, read
from tests.data_prep.source_texts import (
    ANNOTATED_WORDS,
    JSON_LD_GRAPH,
    LOVDATA_ACT,
    NEW_MINUTES,
    NOARK_EXPORT,
    OLD_MINUTES,
    PARLAMINT_DEBATE,
    PUBLICATION,
    make_journal,
)

# --- regjeringen.no


def test_publications_keep_headings_lists_and_tables_without_navigation(tmp_path: Path) -> None:
    (tmp_path / "nou20150008").mkdir()
    for name in ("kap01.xhtml", "kap02.html"):
        (tmp_path / "nou20150008" / name).write_text(PUBLICATION)
    documents, _ = read("regjeringen", tmp_path, options={"group_by": "folder"})
    assert documents[0].text == (
        "NOU 2015: 8 Framtida\n\n1 Innleiing\n\nSkulen endrar seg.1\n\n– leike\n– lære\n\n"
        "Etter lista.\n\nTabell 1\nÅr | Elevar\n2014 | 615 327"
    )
    assert (documents[0].title, documents[0].date, documents[0].language) == (
        "NOU 2015: 8 Framtida",
        "2015-06-15",
        "nno",
    )
    assert documents[0].url == "https://www.regjeringen.no/nou-2015-8"
    assert {d.group for d in documents} == {"nou20150008"}
    assert len({d.group for d in read("regjeringen", tmp_path)[0]}) == 2


def test_a_publication_of_navigation_alone_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<html><body><div class="TOP">Meny</div></body></html>')
    (tmp_path / "b.html").write_text(PUBLICATION)
    documents, report = read("regjeringen", tmp_path)
    assert len(documents) == 1
    assert broken_places(report) == [
        ("a.html", "contains no text besides notes, navigation and other page boilerplate")
    ]


# --- damaged documents of all readers


def remove_each_part(markup: bytes) -> Iterator[bytes]:
    """Yield copies of a document. In each copy, one element or one attribute is missing."""
    for number, original in enumerate(etree.fromstring(markup).iter()):
        for key in ("", *original.attrib):
            element = list(etree.fromstring(markup).iter())[number]
            parent = element.getparent()
            if key:
                del element.attrib[key]
            elif parent is not None:
                parent.remove(element)
            yield etree.tostring(element.getroottree())


SHAPES: dict[str, tuple[str, bytes]] = {
    "law": ("lovdata", LOVDATA_ACT.format(deep="").replace("<br>", "<br/>").encode()),
    "old minutes": ("stortinget", OLD_MINUTES.format(encoding="UTF-8").encode()),
    "new minutes": ("stortinget", NEW_MINUTES.replace("&nbsp;", " ").encode()),
    "debate": ("parlamint", PARLAMINT_DEBATE.format(seg=ANNOTATED_WORDS).encode()),
    "publication": ("regjeringen", PUBLICATION.encode()),
    "journal": ("einnsyn", NOARK_EXPORT.encode()),
    "public journal": ("einnsyn", make_journal("offentligJournal").encode()),
    "running journal": ("einnsyn", make_journal("loependeJournal").encode()),
    "JSON-LD": ("einnsyn", json.dumps({"@graph": JSON_LD_GRAPH}).encode()),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_no_malformed_document_prevents_reading_good_ones(tmp_path: Path, kind: str) -> None:
    reader, good = SHAPES[kind]
    if kind == "JSON-LD":
        damaged = [json.dumps(graph).encode() for graph in corrupt_each_value(json.loads(good))]
    else:
        damaged = list(remove_each_part(good))
    for number, content in enumerate([*damaged, good]):
        (tmp_path / f"{number:05d}.xml").write_bytes(content)
    source = SourceConfig(reader=reader, path=str(tmp_path), license="CC0-1.0")
    *_, last = reading.files(source)
    documents = list(reading.read("s", source, Report(), reading.files(source)))
    expected = list(reading.read("s", source, Report(), [last]))
    assert expected
    assert documents[-len(expected) :] == expected
