"""Tests of the reader of Lovdata's acts and amendments."""

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
    assert (law.id, law.group, law.language) == ("NL/lov/2019-05-03-907", "lov/2019-05-03-907", "nno")
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
    assert not any(word in law.text for word in ("Kapittel 2. Vern", "vernast")), (
        "in a consolidated act it is not yet in force"
    )
    assert "skal lyde" not in law.text, "it would introduce nothing"


FUTURE = (
    '<article class="futureLegalArticle"><span class="futureLegalArticleHeader">§ {n}</span>'
    "<p>Ikkje i kraft.</p></article>"
)
F = FUTURE.format(n=7)
TITLE = '<span class="futuretitle">Kapittel 4. Ikkje i kraft</span>'


def lead(text: str, kind: str = "defaultP") -> str:
    return f'<article class="{kind}">{text}</article>'


def change(*parts: str) -> str:
    return f'<article class="change">{"".join(parts)}</article>'


def items(*texts: str) -> str:
    return (
        "<ul>"
        + "".join(f'<li data-name="{n}."><article>{text}</article></li>' for n, text in enumerate(texts, 1))
        + "</ul>"
    )


SEVERAL = lead("I lov 3. mai 2001 nr. 7 om elvar blir det gjort følgjande endringar:", "legalP")
KEPT = change(lead("§ 9 andre ledd skal lyde:"), lead("Ny tekst som gjeld.", "legalP"))


@pytest.mark.parametrize(
    ("markup", "left"),
    [
        (change(lead("§ 7 skal lyde:"), F), []),
        (change(lead("Nytt kapittel 4 skal lyde:"), TITLE, F, F), []),
        (change(lead("§ 7 skal lyde"), F), []),
        (change("§ 7 skal lyde:", F), []),
        (change("§ 7 skal lyde:", F, "§ 8 skal lyde:", F, "Noko anna."), ["Noko anna."]),
        (lead("§ 7 skal lyde:") + F + lead("§ 8 skal lyde:") + F + lead("Slutt."), ["Slutt."]),
        (lead("§ 7 skal lyde:" + F), []),
        (lead("Ein setning.") + F, ["Ein setning."]),
        (SEVERAL + change(lead("§ 7 skal lyde:"), F), []),
        (
            SEVERAL + change(lead("§ 7 skal lyde:"), F) + KEPT,
            [SEVERAL, "§ 9 andre ledd skal lyde:", "Ny tekst som gjeld."],
        ),
        (
            SEVERAL + KEPT + change(lead("§ 7 skal lyde:"), F),
            [SEVERAL, "§ 9 andre ledd skal lyde:", "Ny tekst som gjeld."],
        ),
        (
            SEVERAL + lead("§ 7 skal lyde:") + F + SEVERAL.replace("elvar", "vatn") + KEPT,
            [SEVERAL.replace("elvar", "vatn"), "§ 9 andre ledd skal lyde:", "Ny tekst som gjeld."],
        ),
        (f'<article class="document-change">{SEVERAL}{change(lead("§ 7 skal lyde:"), F)}</article>', []),
        (items(lead("§ 7 skal lyde:") + F, "Står."), ["2. Står."]),
        (items("Står.", "§ 7 skal lyde:") + F, ["1. Står."]),
        (lead("§ 7 skal lyde:") + '<sup class="footnotereference">1</sup>' + F, []),
        (KEPT, ["§ 9 andre ledd skal lyde:", "Ny tekst som gjeld."]),
        (
            "<h3>Endringar i andre lover:</h3>" + change(lead("§ 7 skal lyde:"), F),
            ["Endringar i andre lover:"],
        ),
    ],
)
def test_the_lead_in_of_a_provision_not_in_force_is_dropped_with_it(
    tmp_path: Path, markup: str, left: list[str]
) -> None:
    whole = LOVDATA_ACT.format(deep=f'<section class="section"><h2>Sluttføresegner</h2>{markup}</section>')
    (tmp_path / "nl-1.xml").write_text(whole)
    (law,), report = read("lovdata", tmp_path)
    expected = [re.sub("<[^>]+>", "", part) for part in left]
    found = law.text.partition("Sluttføresegner")[2].split("\n")
    assert [line for line in found if line] == expected
    assert report.counts["provisions_not_in_force"] == markup.count("futureLegalArticle") // 2 + markup.count(
        "futuretitle"
    )
    assert bool(report.counts["lead_ins_left_out"]) == ("skal lyde" in markup and F in markup)
    (tmp_path / "nl-1.xml").write_text(whole.replace("NL/lov", "LTI/lov"))
    (law,), report = read("lovdata", tmp_path)
    lost = [
        text for text in re.sub("<[^>]+>", "\n", markup).split("\n") if text.strip() and text not in law.text
    ]
    assert not lost
    assert not report.counts["provisions_not_in_force"]


def test_real_acts_lose_only_notes_and_provisions_not_in_force(real_corpora: Path) -> None:
    """All letters of an act's body stand in the text, but for notes, and in consolidated acts what is not yet
    in force."""
    archive = real_corpora / "lovdata" / "lovtidend-avd1-2025.tar.bz2"
    with tarfile.open(archive) as tar:
        raws = [file.read() for member in islice(tar, 300) if (file := tar.extractfile(member)) is not None]
    raws += [
        file.read_bytes() for file in sorted((real_corpora / "lovdata" / "gjeldende-lover").glob("*.xml"))
    ]
    notes = {"changesToParent", "footnote", "footnotes", "footnotereference"}
    not_in_force = {"futureLegalArticle", "futureLegalArticleHeader", "futuretitle"}
    for raw in raws:
        law = lovdata.parse(raw, "mine", "NLOD-2.0", Report())
        skipped = notes | (not_in_force if law.id.startswith(("NL/", "SF/")) else set())
        body = markup.parse_html(raw, Report()).find(".//main")
        assert body is not None
        for element in list(body.iter(etree.Element)):
            if skipped & set((element.get("class") or "").split()):
                element.drop_tree()
        whole, kept = (Counter(filter(str.isalpha, text)) for text in (body.text_content(), law.text))
        assert not whole - kept, f"{law.id} lost {(whole - kept).total()} letters"


def test_the_date_of_an_act_is_that_of_its_adoption(tmp_path: Path) -> None:
    announced = LOVDATA_ACT.replace("NL/lov", "LTI/lov").replace("2019-07-01", "2021-01-01")
    (tmp_path / "nl-1.xml").write_text(announced.format(deep=""))
    assert [law.date for law in read("lovdata", tmp_path)[0]] == ["2019-05-03"]
    unnamed = announced.replace("2019-05-03-907", "x").replace("dateInForce", "dateOfPublication")
    (tmp_path / "nl-1.xml").write_text(unnamed.format(deep=""))
    assert [law.date for law in read("lovdata", tmp_path)[0]] == ["2021-01-01"]


def test_markup_nested_too_deeply_is_quarantined_and_not_truncated(tmp_path: Path) -> None:
    """libxml2 leaves out in silence what is nested deeper than 256 elements."""
    (tmp_path / "a.xml").write_text(
        LOVDATA_ACT.format(deep="<div>" * 400 + "Lenge, lenge nede." + "</div>" * 400)
    )
    (tmp_path / "b.xml").write_text(LOVDATA_ACT.format(deep="<div>" * 100 + "Langt nede." + "</div>" * 100))
    documents, report = read("lovdata", tmp_path)
    assert [d.text.endswith("Langt nede.") for d in documents] == [True]
    assert broken_places(report)[0][0] == "a.xml"
    assert "not read to its end" in report.broken[0].error


def test_a_declared_encoding_that_yields_surrogates_is_not_trusted(tmp_path: Path) -> None:
    body = LOVDATA_ACT.format(deep="").replace("verne", "\\ud800").encode() + b"\xe5"
    (tmp_path / "a.xml").write_bytes(b'<?xml version="1.0" encoding="unicode_escape"?>' + body)
    (document,), report = read("lovdata", tmp_path)
    assert "\\ud800" in document.text
    assert report.counts["decoded_as_cp1252"] == 1
