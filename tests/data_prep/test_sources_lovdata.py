"""The reader of Lovdata's acts and amendments."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from lxml import etree

from data_prep.document import Report
from data_prep.sources import lovdata, markup
from tests.data_prep.reading import broken_places, read
from tests.data_prep.source_texts import LOVDATA_ACT


def test_a_law_is_read_with_its_metadata(tmp_path: Path) -> None:
    (tmp_path / "nl-1.xml").write_text(LOVDATA_ACT.format(deep=""))
    documents, report = read("lovdata", tmp_path)
    (law,) = documents
    assert law.text == "Lov om vatn\n\nKapittel 1. Føremål\n\n§ 1. Føremål\n\nLova skal verne vatn."
    assert (law.id, law.group, law.language) == (
        "NL/lov/2019-05-03-907",
        "lov/2019-05-03-907",
        "nno",
    )
    assert (law.date, law.url) == ("2019-05-03", "https://lovdata.no/lov/2019-05-03-907")
    assert not report.broken


AMENDMENT = LOVDATA_ACT.replace("NL/lov", "LTI/lov").format(
    deep="""<article class="change"><article class="legalP">Nytt kapittel 2 skal lyde:</article>
<span class="futuretitle">Kapittel 2.<br>Vern</span><article class="futureLegalArticle">\
<span class="futureLegalArticleHeader">
<span>§ 2</span>. <span>Vern</span></span><article class="legalP">Vatn skal vernast.<sup
class="footnotereference">1</sup></article></article>
<span class="miscHeadline">Vedlegg</span><article class="marginIdArticle">\
<span class="data-marginOriginalId">1.</span>
<article class="legalP">Reagens</article><article class="marginIdArticle">\
<span class="data-marginOriginalId">1.1.</span>Reint
vatn.</article></article><article class="footnote">Note.</article></article>"""
)


def test_an_amendment_is_read_with_its_titles_and_numbered_points(tmp_path: Path) -> None:
    (tmp_path / "nl-1.xml").write_text(AMENDMENT)
    (law,) = read("lovdata", tmp_path)[0]
    assert law.text.partition("verne vatn.\n\n")[2].split("\n\n") == [
        "Nytt kapittel 2 skal lyde:",
        "Kapittel 2. Vern",
        "§ 2. Vern",
        "Vatn skal vernast.",
        "Vedlegg",
        "1. Reagens",
        "1.1. Reint vatn.",
    ]
    (tmp_path / "nl-1.xml").write_text(AMENDMENT.replace("LTI/lov", "NL/lov"))
    (law,) = read("lovdata", tmp_path)[0]
    assert "Vedlegg\n\n1. Reagens" in law.text
    assert "Kapittel 2. Vern" not in law.text, "a consolidated act omits what is not in force"
    assert "vernast" not in law.text
    assert "skal lyde" not in law.text, "the provision after this lead-in is omitted"


FUTURE = (
    '<article class="futureLegalArticle"><span class="futureLegalArticleHeader">§ {n}</span>'
    "<p>Ikkje i kraft.</p></article>"
)
NOT_IN_FORCE = FUTURE.format(n=7)
TITLE_NOT_IN_FORCE = '<span class="futuretitle">Kapittel 4. Ikkje i kraft</span>'


def make_article(text: str, kind: str = "defaultP") -> str:
    return f'<article class="{kind}">{text}</article>'


def make_change(*parts: str) -> str:
    return f'<article class="change">{"".join(parts)}</article>'


def make_list(*texts: str) -> str:
    numbered = [
        f'<li data-name="{number}."><article>{text}</article></li>'
        for number, text in enumerate(texts, start=1)
    ]
    return f"<ul>{''.join(numbered)}</ul>"


LEAD_IN = make_article("§ 7 skal lyde:")
SEVERAL_CHANGES = make_article(
    "I lov 3. mai 2001 nr. 7 om elvar blir det gjort følgjande endringar:", "legalP"
)
IN_FORCE = make_change(
    make_article("§ 9 andre ledd skal lyde:"), make_article("Ny tekst som gjeld.", "legalP")
)


@pytest.mark.parametrize(
    ("markup", "remaining"),
    [
        (make_change(LEAD_IN, NOT_IN_FORCE), []),
        (
            make_change(
                make_article("Nytt kapittel 4 skal lyde:"),
                TITLE_NOT_IN_FORCE,
                NOT_IN_FORCE,
                NOT_IN_FORCE,
            ),
            [],
        ),
        (make_change(make_article("§ 7 skal lyde"), NOT_IN_FORCE), []),
        (make_change("§ 7 skal lyde:", NOT_IN_FORCE), []),
        (
            make_change("§ 7 skal lyde:", NOT_IN_FORCE, "§ 8 skal lyde:", NOT_IN_FORCE, "Noko anna."),
            ["Noko anna."],
        ),
        (
            LEAD_IN + NOT_IN_FORCE + make_article("§ 8 skal lyde:") + NOT_IN_FORCE + make_article("Slutt."),
            ["Slutt."],
        ),
        (make_article("§ 7 skal lyde:" + NOT_IN_FORCE), []),
        (make_article("Ein setning.") + NOT_IN_FORCE, ["Ein setning."]),
        (SEVERAL_CHANGES + make_change(LEAD_IN, NOT_IN_FORCE), []),
        (
            SEVERAL_CHANGES + make_change(LEAD_IN, NOT_IN_FORCE) + IN_FORCE,
            [SEVERAL_CHANGES, "§ 9 andre ledd skal lyde:", "Ny tekst som gjeld."],
        ),
        (
            SEVERAL_CHANGES + IN_FORCE + make_change(LEAD_IN, NOT_IN_FORCE),
            [SEVERAL_CHANGES, "§ 9 andre ledd skal lyde:", "Ny tekst som gjeld."],
        ),
        (
            SEVERAL_CHANGES + LEAD_IN + NOT_IN_FORCE + SEVERAL_CHANGES.replace("elvar", "vatn") + IN_FORCE,
            [
                SEVERAL_CHANGES.replace("elvar", "vatn"),
                "§ 9 andre ledd skal lyde:",
                "Ny tekst som gjeld.",
            ],
        ),
        (make_article(SEVERAL_CHANGES + make_change(LEAD_IN, NOT_IN_FORCE), "document-change"), []),
        (make_list(LEAD_IN + NOT_IN_FORCE, "Står."), ["2. Står."]),
        (make_list("Står.", "§ 7 skal lyde:") + NOT_IN_FORCE, ["1. Står."]),
        (LEAD_IN + '<sup class="footnotereference">1</sup>' + NOT_IN_FORCE, []),
        (IN_FORCE, ["§ 9 andre ledd skal lyde:", "Ny tekst som gjeld."]),
        (
            "<h3>Endringar i andre lover:</h3>" + make_change(LEAD_IN, NOT_IN_FORCE),
            ["Endringar i andre lover:"],
        ),
    ],
)
def test_the_lead_in_of_a_provision_not_in_force_is_dropped_with_it(
    tmp_path: Path, markup: str, remaining: list[str]
) -> None:
    section = f'<section class="section"><h2>Sluttføresegner</h2>{markup}</section>'
    act = LOVDATA_ACT.format(deep=section)
    (tmp_path / "nl-1.xml").write_text(act)
    (law,), report = read("lovdata", tmp_path)
    expected = [re.sub("<[^>]+>", "", part) for part in remaining]
    found = law.text.partition("Sluttføresegner")[2].split("\n")
    assert [line for line in found if line] == expected
    num_provisions = markup.count("futureLegalArticle") // 2 + markup.count("futuretitle")
    assert report.counts["provisions_not_in_force"] == num_provisions
    assert bool(report.counts["lead_ins_left_out"]) == ("skal lyde" in markup and NOT_IN_FORCE in markup)
    (tmp_path / "nl-1.xml").write_text(act.replace("NL/lov", "LTI/lov"))
    (law,), report = read("lovdata", tmp_path)
    texts = re.sub("<[^>]+>", "\n", markup).split("\n")
    assert not [text for text in texts if text.strip() and text not in law.text]
    assert not report.counts["provisions_not_in_force"]


def test_real_acts_lose_only_notes_and_provisions_not_in_force(real_corpora: Path) -> None:
    """Only notes are left out, and from consolidated acts also provisions not in force.

    The test counts the letters of each act.
    """
    archive = real_corpora / "lovdata" / "lovtidend-avd1-2025.tar.bz2"
    with tarfile.open(archive) as tar:
        files = [tar.extractfile(member) for member in islice(tar, 300)]
        raws = [file.read() for file in files if file is not None]
    consolidated = sorted((real_corpora / "lovdata" / "gjeldende-lover").glob("*.xml"))
    raws += [file.read_bytes() for file in consolidated]
    notes = {"changesToParent", "footnote", "footnotes", "footnotereference"}
    not_in_force = {"futureLegalArticle", "futureLegalArticleHeader", "futuretitle"}
    for raw in raws:
        law = lovdata.parse(raw, "mine", "NLOD-2.0", Report())
        skipped = notes
        if law.id.startswith(("NL/", "SF/")):  # consolidated acts
            skipped = notes | not_in_force
        body = markup.parse_html(raw, Report()).find(".//main")
        assert body is not None
        for element in list(body.iter(etree.Element)):
            if skipped & set((element.get("class") or "").split()):
                element.drop_tree()
        expected = Counter(filter(str.isalpha, body.text_content()))
        lost = expected - Counter(filter(str.isalpha, law.text))
        assert not lost, f"{law.id} lost {lost.total()} letters"


def test_the_date_of_an_act_is_that_of_its_adoption(tmp_path: Path) -> None:
    announced = LOVDATA_ACT.replace("NL/lov", "LTI/lov").replace("2019-07-01", "2021-01-01")
    (tmp_path / "nl-1.xml").write_text(announced.format(deep=""))
    assert [law.date for law in read("lovdata", tmp_path)[0]] == ["2019-05-03"]
    unnamed = announced.replace("2019-05-03-907", "x").replace("dateInForce", "dateOfPublication")
    (tmp_path / "nl-1.xml").write_text(unnamed.format(deep=""))
    assert [law.date for law in read("lovdata", tmp_path)[0]] == ["2021-01-01"]


def test_markup_nested_too_deeply_is_quarantined_and_not_truncated(tmp_path: Path) -> None:
    """libxml2 omits elements that are nested more than 256 deep, without an error."""
    (tmp_path / "a.xml").write_text(
        LOVDATA_ACT.format(deep="<div>" * 400 + "Lenge, lenge nede." + "</div>" * 400)
    )
    (tmp_path / "b.xml").write_text(LOVDATA_ACT.format(deep="<div>" * 100 + "Langt nede." + "</div>" * 100))
    documents, report = read("lovdata", tmp_path)
    assert [d.text.endswith("Langt nede.") for d in documents] == [True]
    assert broken_places(report)[0][0] == "a.xml"
    assert "cannot be parsed to its end" in report.broken[0].error


def test_a_declared_encoding_that_yields_surrogates_is_not_trusted(tmp_path: Path) -> None:
    body = LOVDATA_ACT.format(deep="").replace("verne", "\\ud800").encode() + b"\xe5"
    (tmp_path / "a.xml").write_bytes(b'<?xml version="1.0" encoding="unicode_escape"?>' + body)
    (document,), report = read("lovdata", tmp_path)
    assert "\\ud800" in document.text
    assert report.counts["decoded_as_cp1252"] == 1
