"""Readers of laws, minutes, debates, publications and journals. All of it is invented, in the exact format of
the source."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from data_prep import reading
from data_prep.config import SourceConfig
from data_prep.document import Report
from data_prep.sources import claims, lovdata, markup
from tests.data_prep.reading import faults, read, strange, texts

# --- what sources claim
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("2014-02-13T10:00:00+01:00", "2014-02-13"),
        ("Møte torsdag den 13. februar 2014 kl. 10", "2014-02-13"),
        ("1.12.2020", "2020-12-01"),
        (2019, "2019"),
        ("NOU 2015: 8", "2015"),
        ("", ""),
        (None, ""),
        ("kl. 10.15", ""),
        ("31.13.2020", "2020"),
        ("12345", ""),
    ],
)
def test_dates(claim: object, expected: str) -> None:
    assert claims.parse_date(claim) == expected


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("nb", "nob"),
        ("no", "nob"),
        ("NN", "nno"),
        ("nn-NO", "nno"),
        ("en_GB", "eng"),
        ("se", "sme"),
        ("fr", "fra"),
        (None, ""),
        ("pl", "pol"),
        ("UKR", "ukr"),
        ("ar-SY", "ara"),
        ("ger", "deu"),
        ("zh_Hans", "zho"),
        ("smj", "smj"),
        ("klingon", ""),
    ],
)
def test_languages(claim: object, expected: str) -> None:
    assert claims.parse_language(claim) == expected


# --- Lovdata
# -------------------------------------------------------------------------------------------------------------------

LAW = """<html lang="nn"><head></head><body><header class="documentHeader"><dl class="data-document-key-info">
<dd class="dokid">NL/lov/2019-05-03-907</dd><dd class="refid">lov/2019-05-03-907</dd><dd class="title">Lov om vatn</dd>
<dd class="dateInForce">2019-07-01</dd></dl></header><main class="documentBody"><h1>Lov om vatn</h1>
<section class="section"><h2>Kapittel 1. Føremål</h2><article class="legalArticle" data-lovdata-URL="NL/lov/2019-05-03-907/§1">
<h3 class="legalArticleHeader"><span>§ 1.</span> <span>Føremål</span></h3>
<article class="legalP">Lova skal<br>verne vatn.</article><article class="changesToParent">Endra ved lov.</article></article>
{deep}</section></main></body></html>"""


def test_a_law_is_read_from_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "nl-1.xml").write_text(LAW.format(deep=""))
    documents, report = read("lovdata", tmp_path)
    (law,) = documents
    assert law.text == "Lov om vatn\n\nKapittel 1. Føremål\n\n§ 1. Føremål\n\nLova skal verne vatn."
    assert (law.id, law.group, law.language) == ("NL/lov/2019-05-03-907", "lov/2019-05-03-907", "nno")
    assert (law.date, law.url) == ("2019-05-03", "https://lovdata.no/lov/2019-05-03-907")
    assert not report.broken


AMENDMENT = LAW.replace("NL/lov", "LTI/lov").format(
    deep="""<article class="change"><article class="legalP">Nytt kapittel 2 skal lyde:</article>
<span class="futuretitle">Kapittel 2.<br>Vern</span><article class="futureLegalArticle"><span class="futureLegalArticleHeader">
<span>§ 2</span>. <span>Vern</span></span><article class="legalP">Vatn skal vernast.<sup
class="footnotereference">1</sup></article></article>
<span class="miscHeadline">Vedlegg</span><article class="marginIdArticle"><span class="data-marginOriginalId">1.</span>
<article class="legalP">Reagens</article><article class="marginIdArticle"><span class="data-marginOriginalId">1.1.</span>Reint
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


FUTURE = '<article class="futureLegalArticle"><span class="futureLegalArticleHeader">§ {n}</span><p>Ikkje i kraft.</p></article>'
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
def test_what_introduces_a_provision_not_in_force_goes_with_it(
    tmp_path: Path, markup: str, left: list[str]
) -> None:
    whole = LAW.format(deep=f'<section class="section"><h2>Sluttføresegner</h2>{markup}</section>')
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


def test_of_real_acts_nothing_is_lost_but_what_is_named(real_corpora: Path) -> None:
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


def test_an_act_is_of_the_year_it_was_made_not_of_the_one_it_is_in_force_from(tmp_path: Path) -> None:
    announced = LAW.replace("NL/lov", "LTI/lov").replace("2019-07-01", "2021-01-01")
    (tmp_path / "nl-1.xml").write_text(announced.format(deep=""))
    assert [law.date for law in read("lovdata", tmp_path)[0]] == ["2019-05-03"]
    unnamed = announced.replace("2019-05-03-907", "x").replace("dateInForce", "dateOfPublication")
    (tmp_path / "nl-1.xml").write_text(unnamed.format(deep=""))
    assert [law.date for law in read("lovdata", tmp_path)[0]] == ["2021-01-01"]


def test_markup_that_is_too_deep_is_quarantined_not_cut(tmp_path: Path) -> None:
    """libxml2 leaves out in silence what is nested deeper than 256 elements."""
    (tmp_path / "a.xml").write_text(LAW.format(deep="<div>" * 400 + "Lenge, lenge nede." + "</div>" * 400))
    (tmp_path / "b.xml").write_text(LAW.format(deep="<div>" * 100 + "Langt nede." + "</div>" * 100))
    documents, report = read("lovdata", tmp_path)
    assert [d.text.endswith("Langt nede.") for d in documents] == [True]
    assert faults(report)[0][0] == "a.xml"
    assert "cannot be parsed to its end" in report.broken[0].error


# --- Stortinget
# ----------------------------------------------------------------------------------------------------------------

OLD = """<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE forhandling SYSTEM "forhandl_xml.dtd">
<forhandling><mote sakid="7"><formalia><dato>Møte torsdag den 13. februar 2014 kl. 10</dato>
<president>President: Per Prøve</president></formalia>
<saker><sak sakid="101"><sakhode><saknr>Sak nr. 1</saknr><saktit>Innstilling om fjellskogen</saktit></sakhode>
<presinnl><navn>Presidenten:</navn><a>Ordet går til saksordføreren.</a></presinnl>
<innlegg type="hovedinnlegg"><navn>Kari Eksempel (Sp) [10:00:37]:</navn><a>Skogen er <i>viktig</i>.</a><a>Takk.</a></innlegg>
<innlegg type="replikk"><navn>Ola Dømme (A) [10:05:00]:</navn><a>Kva kostar det?</a></innlegg>
<handling><a>Per Prøve hadde her overtatt presidentplassen.</a></handling></sak>
<sak sakid="102"><sakhode><saktit>Referat</saktit></sakhode><innlegg><navn>Kari Eksempel (Sp):</navn><a>Ingen merknader.</a>
</innlegg></sak>
</saker></mote></forhandling>"""

NEW = """<?xml version="1.0" encoding="UTF-8"?>
<Forhandlinger Id="refs-202021-11-17-2" Status="Komplett"><Mote Id="refs-202021-11-17-3" moteID="10"><Startseksjon><Motestart>
<Tittel>Møte tirsdag den 17. november 2020 kl. 10</Tittel><President><A>President: <Uth Type="Sperret">Per Prøve</Uth></A>
</President>
</Motestart></Startseksjon><Hovedseksjon><Saker><Sak Id="a" sakID="1" saksKartNr="1"><Sakshode>
<Saknr>Sak nr. 1 [10:00:12]</Saknr>
<Saktittel><A>Innstilling om ferjer</A></Saktittel></Sakshode>
<Presinnlegg><A><Navn>Presidenten:</Navn> Etter ønske fra komiteen er taletiden begrenset.</A></Presinnlegg>
<Hovedinnlegg><A><Navn personID="KAE">Kari Eksempel (H) [10:01:00]:</Navn> Ferjene går&nbsp;for sjelden.</A><A>Punkt:</A>
<Liste><Pkt><A>flere avganger</A></Pkt></Liste></Hovedinnlegg>
<Replikk><A><Navn personID="OLD">Ola Dømme (A) [10:04:00]:</Navn> Hva koster det?</A></Replikk>
<Tabell><table><tr><td>År</td><td>Kroner</td></tr></table></Tabell></Sak></Saker></Hovedseksjon></Mote></Forhandlinger>"""


@pytest.mark.parametrize("encoding", ["UTF-8", "ISO-8859-1"])
def test_minutes_of_the_old_generation_keep_who_said_what_when(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "s140213.xml").write_bytes(OLD.format(encoding=encoding).encode(encoding))
    documents, report = read("stortinget", tmp_path)
    assert [d.id for d in documents] == ["s140213:1.0", "s140213:1.1", "s140213:1.2"]
    assert documents[1].text == (
        "Sak nr. 1\n\nInnstilling om fjellskogen\n\nPresidenten: Ordet går til saksordføreren.\n\n"
        "Kari Eksempel (Sp) [10:00:37], hovedinnlegg: Skogen er viktig.\n\nTakk.\n\n"
        "Ola Dømme (A) [10:05:00], replikk: Kva kostar det?\n\nPer Prøve hadde her overtatt presidentplassen."
    )
    assert documents[2].text == "Referat\n\nKari Eksempel (Sp): Ingen merknader."
    assert {(d.group, d.date) for d in documents} == {("s140213", "2014-02-13")}
    assert {d.url.partition("=")[2] for d in documents} == {"s140213"}
    (tmp_path / "s140213.xml").rename(tmp_path / "kopi.xml")
    assert {d.url for d in read("stortinget", tmp_path)[0]} == {""}, (
        "Stortinget knows no publication of that name"
    )
    assert [d.title for d in documents[1:]] == ["Innstilling om fjellskogen", "Referat"]
    assert not report.broken


def test_minutes_of_the_new_generation_keep_who_said_what_when(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(NEW)
    documents, _ = read("stortinget", tmp_path)
    assert texts(documents) == [
        "Møte tirsdag den 17. november 2020 kl. 10\n\nPresident: Per Prøve",
        "Sak nr. 1 [10:00:12]\n\nInnstilling om ferjer\n\nPresidenten: Etter ønske fra komiteen er taletiden begrenset.\n\n"
        "Kari Eksempel (H) [10:01:00], hovedinnlegg: Ferjene går for sjelden.\n\nPunkt:\n\nflere avganger\n\n"
        "Ola Dømme (A) [10:04:00], replikk: Hva koster det?\n\nÅr | Kroner",
    ]
    assert {(d.group, d.date) for d in documents} == {("refs-202021-11-17", "2020-11-17")}
    assert (
        documents[1].url == "https://data.stortinget.no/eksport/publikasjon?publikasjonid=refs-202021-11-17"
    )
    speeches, _ = read("stortinget", tmp_path, options={"unit": "speech"})
    assert [text.partition(",")[0].partition(":")[0] for text in texts(speeches)] == [
        "Presidenten",
        "Kari Eksempel (H) [10",
        "Ola Dømme (A) [10",
    ]
    assert speeches[1].text.endswith("Punkt:\n\nflere avganger")


@pytest.mark.parametrize(
    ("xml", "error"),
    [
        ("<forhandling><mote></forhandling>", "not well-formed XML"),
        ("<rss/>", "not minutes of Stortinget: the root is <rss>"),
        ("<forhandling>" + "<a>" * 400 + "</a>" * 400 + "</forhandling>", "Excessive depth"),
        ("", "not well-formed XML"),
        ("bare tekst", "not well-formed XML"),
        (
            '<!DOCTYPE f [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
            "<forhandling><mote><saker><sak><innlegg><a>&c;</a></innlegg></sak></saker></mote></forhandling>",
            "uses the entity &c;, which it declares itself",
        ),
        (
            '<!DOCTYPE f [<!ENTITY x SYSTEM "file:///etc/hostname">]><forhandling><mote><a>&x;</a></mote></forhandling>',
            "uses the entity &x;, which it declares itself",
        ),
        (
            '<!DOCTYPE f [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd"> %p;]><forhandling><a>&y;</a></forhandling>',
            "&y;",
        ),
    ],
)
def test_bad_markup_is_quarantined_and_the_good_files_arrive(tmp_path: Path, xml: str, error: str) -> None:
    (tmp_path / "a.xml").write_text(xml)
    (tmp_path / "b.xml").write_text(NEW)
    documents, report = read("stortinget", tmp_path)
    assert len(documents) == 2
    ((place, found),) = faults(report)
    assert place == "a.xml"
    assert error in found


# --- ParlaMint
# -----------------------------------------------------------------------------------------------------------------

TEI = """<?xml version="1.0" encoding="UTF-8"?>
<TEI xmlns="http://www.tei-c.org/ns/1.0" xml:lang="nb" xml:id="ParlaMint-NO_2022-05-10"><teiHeader><fileDesc><sourceDesc><bibl>
<idno type="URI" subtype="parliament">https://data.stortinget.no/x</idno><date when="2022-05-10">10.05.22</date></bibl>
</sourceDesc></fileDesc></teiHeader>
<text><body><div type="debateSection"><head>Sak nr. 1 [10:00:00]</head><note type="comment">Spørsmål om ferjer</note>
<note type="speaker">Kari Eksempel (Sp) [10:00:37]:</note>
<u who="#person.KAE" ana="#regular" xml:id="u1" xml:lang="nn">
<seg>Representanten <name>Ola Dømme</name> , frå fylket, spør.</seg>
<gap reason="editorial"><desc xml:lang="en">SAMPLING</desc></gap><seg>Eg svarar gjerne, og eg svarar lenge.</seg></u>
<u who="#person.PPR" ana="#chair" xml:id="u2" xml:lang="nb"><seg>Neste.</seg><vocal><desc>applause</desc></vocal></u></div>
<div type="debateSection"><u who="#person.OLD" ana="#regular" xml:id="u3" xml:lang="nb">{seg}</u></div></body></text></TEI>"""
WORDS = '<seg><s><w join="right">Takk</w><pc>,</pc><w join="right">president</w><pc>!</pc></s></seg>'


def test_debates_keep_headings_and_speakers(tmp_path: Path) -> None:
    (tmp_path / "ParlaMint-NO_2022-05-10.xml").write_text(TEI.format(seg="<seg>Takk, president!</seg>"))
    (tmp_path / "ParlaMint-NO-listPerson.xml").write_text(
        '<listPerson xmlns="http://www.tei-c.org/ns/1.0"><person/></listPerson>'
    )
    documents, report = read("parlamint", tmp_path)
    assert texts(documents) == [
        "Sak nr. 1 [10:00:00]\n\nSpørsmål om ferjer\n\nKari Eksempel (Sp) [10:00:37]: "
        "Representanten Ola Dømme, frå fylket, spør.\n\nEg svarar gjerne, og eg svarar lenge.\n\nPresidenten: Neste.",
        "Takk, president!",
    ]
    assert [d.language for d in documents] == ["nno", "nob"]
    assert {(d.group, d.date, d.url) for d in documents} == {
        ("ParlaMint-NO_2022-05-10", "2022-05-10", "https://data.stortinget.no/x")
    }
    assert report.counts["files_without_debates"] == 1
    speeches, _ = read("parlamint", tmp_path, options={"unit": "speech"})
    assert [(d.id, d.language) for d in speeches] == [("u1", "nno"), ("u2", "nob"), ("u3", "nob")]


def test_annotated_debates_read_as_the_plain_ones(tmp_path: Path) -> None:
    (tmp_path / "a.ana.xml").write_text(TEI.format(seg=WORDS))
    assert texts(read("parlamint", tmp_path)[0])[1] == "Takk, president!"


# --- regjeringen.no
# -------------------------------------------------------------------------------------------------------------

XHTML = """<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml" lang="nn"><head>
<title>NOU 2015: 8</title>
<meta name="dc.date" content="2015-06-15"/><link rel="canonical" href="https://www.regjeringen.no/nou-2015-8"/></head>
<body><div class="TOP"><a href="#">Til innhaldet</a></div><nav>Meny</nav><h1 class="K-TITTEL">NOU 2015: 8 Framtida</h1>
<h2>1 Innleiing</h2>
<p class="K-A">Skulen endrar seg.<sup class="K-NOTEREF">1</sup></p><ul><li><p>leike</p></li><li><p>lære</p></li></ul>
<p>Etter lista.</p><table><caption>Tabell 1</caption><tr><th>År</th><th>Elevar</th></tr><tr><td>2014</td><td>615 327</td>
</tr></table>
<div class="K-NOTE-TBLNOTER"><p>Note til tabell.</p></div><p class="K-NOTETEXT">1 Fotnote.</p>
<p class="K-REFLISTE">Hansen, K. (2003).</p></body></html>"""


def test_publications_keep_headings_lists_and_tables_and_nothing_around(tmp_path: Path) -> None:
    (tmp_path / "nou20150008").mkdir()
    for name in ("kap01.xhtml", "kap02.html"):
        (tmp_path / "nou20150008" / name).write_text(XHTML)
    documents, _ = read("regjeringen", tmp_path, options={"group_by": "folder"})
    assert documents[0].text == (
        "NOU 2015: 8 Framtida\n\n1 Innleiing\n\nSkulen endrar seg.1\n\n– leike\n– lære\n\nEtter lista.\n\n"
        "Tabell 1\nÅr | Elevar\n2014 | 615 327"
    )
    assert (documents[0].title, documents[0].date, documents[0].language) == (
        "NOU 2015: 8 Framtida",
        "2015-06-15",
        "nno",
    )
    assert documents[0].url == "https://www.regjeringen.no/nou-2015-8"
    assert {d.group for d in documents} == {"nou20150008"}
    assert len({d.group for d in read("regjeringen", tmp_path)[0]}) == 2


def test_a_publication_of_nothing_but_navigation_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<html><body><div class="TOP">Meny</div></body></html>')
    (tmp_path / "b.html").write_text(XHTML)
    documents, report = read("regjeringen", tmp_path)
    assert len(documents) == 1
    assert faults(report) == [("a.html", "contains no text except notes, navigation and other furniture")]


# --- eInnsyn
# -------------------------------------------------------------------------------------------------------------------

NOARK = """<?xml version="1.0" encoding="utf-8"?>
<arkiv xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns="http://www.arkivverket.no/standarder/noark5/arkivstruktur">
<systemID>arkiv</systemID><tittel>HEMMELIG arkiv</tittel>
<mappe xsi:type="ark:saksmappe"><systemID>sak-1</systemID><tittel>HEMMELIG klage fra Kari Eksempel</tittel>
<offentligTittel>Klage på vedtak</offentligTittel>
<saksaar>2021</saksaar><sakssekvensnummer>44</sakssekvensnummer><administrativEnhet>Plan</administrativEnhet>
<saksansvarlig>HEMMELIG saksbehandler</saksansvarlig>
<registrering xsi:type="journalpost"><systemID>jp-1</systemID><tittel>HEMMELIG helseopplysning</tittel>
<offentligTittel>Klage</offentligTittel>
<skjerming><tilgangsrestriksjon>Unntatt offentlighet</tilgangsrestriksjon><skjermingshjemmel>Offl. § 13</skjermingshjemmel>
<skjermingMetadata>HEMMELIG</skjermingMetadata></skjerming>
<dokumentbeskrivelse><tittel>HEMMELIG vedlegg</tittel><tilknyttetRegistreringSom>Vedlegg</tilknyttetRegistreringSom>
</dokumentbeskrivelse>
<korrespondansepart><korrespondansepartNavn>HEMMELIG navn</korrespondansepartNavn></korrespondansepart>
<journalposttype>Inngående dokument</journalposttype><journalpostnummer>1</journalpostnummer>
<journaldato>2021-03-02</journaldato></registrering>
<registrering xsi:type="ark:journalpost"><systemID>jp-2</systemID><tittel>Svar HEMMELIG</tittel>
<offentligTittel>Svar</offentligTittel>
<dokumentbeskrivelse><tittel>Svar HEMMELIG 2</tittel></dokumentbeskrivelse><journalpostnummer>2</journalpostnummer>
</registrering>
<registrering xsi:type="ark:journalpost"><systemID>jp-3</systemID><tittel>Kart</tittel><offentligTittel>Kart</offentligTittel>
<dokumentbeskrivelse><tittel>Kart over området</tittel><tilknyttetRegistreringSom>Hoveddokument</tilknyttetRegistreringSom>
</dokumentbeskrivelse>
<journalpostnummer>3</journalpostnummer></registrering></mappe></arkiv>"""

A = "http://www.arkivverket.no/standarder/noark5/arkivstruktur/"


def node(name: str, kind: str | list[str], **terms: Any) -> dict[str, Any]:
    return {"@id": f"http://namespace/{name}", "@type": kind} | {
        f"arkiv:{term}": value for term, value in terms.items()
    }


def to(name: str) -> dict[str, str]:
    return {"@id": f"http://namespace/{name}"}


GRAPH: list[dict[str, Any]] = [
    node(
        "sak-1",
        "arkiv:Saksmappe",
        offentligTittel="Klage på vedtak",
        offentligTittel_SENSITIV="HEMMELIG klage",
        offentligTittel_LIST=["HEMMELIG"],
        saksansvarlig="HEMMELIG",
        saksaar={"@type": "xsd:integer", "@value": "2021"},
        sakssekvensnummer=44,
        administrativEnhet="Plan",
    ),
    node(
        "jp-1",
        ["arkiv:Journalpost"],
        offentligTittel="Klage",
        offentligTittel_SENSITIV="HEMMELIG",
        parent=to("sak-1"),
        journalposttype={"@id": "arkiv:inngåendeDokument"},
        journalpostnummer={"@value": "1"},
        skjerming=to("sk-1"),
        journaldato={"@type": "xsd:date", "@value": "2021-03-02"},
        korrespondansepart=to("k-1"),
        dokumentbeskrivelse=[to("d-1")],
    ),
    node(
        "d-1",
        "arkiv:Dokumentbeskrivelse",
        tittel="Vedlegg om vei",
        tittel_SENSITIV="HEMMELIG vedlegg",
        dokumentnummer=2,
        tilknyttetRegistreringSom={"@id": "arkiv:vedlegg"},
    ),
    node(
        "sk-1", "arkiv:Skjerming", tilgangsrestriksjon="Unntatt offentlighet", skjermingshjemmel="Offl. § 13"
    ),
    node(
        "k-1",
        "arkiv:Korrespondansepart",
        korrespondansepartNavn="HEMMELIG",
        korrespondansepartNavn_SENSITIV="HEMMELIG",
    ),
]


def expanded(graph: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same statements with whole addresses and lists of values, as JSON-LD's expanded form has them."""

    def name(key: str) -> str:
        return key.replace("arkiv:", A)

    def value(found: Any) -> list[Any]:
        values = found if isinstance(found, list) else [found]
        return [
            {name(k): name(v) for k, v in v.items()} if isinstance(v, dict) else {"@value": v} for v in values
        ]

    types = [node["@type"] if isinstance(node["@type"], list) else [node["@type"]] for node in graph]
    return [
        {"@id": node["@id"], "@type": [name(t) for t in kinds]}
        | {name(k): value(v) for k, v in node.items() if k[0] != "@"}
        for node, kinds in zip(graph, types, strict=True)
    ]


JOURNAL = "Sak 2021/44: Klage på vedtak\nPlan\n\nInngående dokument 1 (2021-03-02): Klage\n{attachment}Unntatt offentlighet: Offl. § 13"


def test_noark_journals_give_public_titles_and_nothing_withheld(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(NOARK)
    (document,), report = read("einnsyn", tmp_path)
    assert document.text == (
        JOURNAL.format(attachment="")
        + "\n\nJournalpost 2: Svar\n\nJournalpost 3: Kart\nHoveddokument: Kart over området"
    )
    assert "HEMMELIG" not in str(document)
    assert (document.group, document.title, document.date) == ("sak-1", "Klage på vedtak", "2021")
    assert not report.broken


SHIELD = "<skjerming><tilgangsrestriksjon>Unntatt offentlighet</tilgangsrestriksjon></skjerming>"


@pytest.mark.parametrize(
    "around", ["", "arkivdel", "klasse", "mappe", "dokumentbeskrivelse", "same", "missing", "empty"]
)
def test_a_documents_title_is_read_only_where_nothing_around_it_is_withheld(
    tmp_path: Path, around: str
) -> None:
    titles = {"same": "<tittel>Kart</tittel>", "missing": "", "empty": "<tittel/><offentligTittel/>"}
    own = titles.get(around, "<tittel>Kart</tittel><offentligTittel>Kart</offentligTittel>")
    shield = SHIELD if around == "dokumentbeskrivelse" else ""
    xml = f"<systemID>b</systemID>{own}<dokumentbeskrivelse><tittel>Tegning</tittel>{shield}</dokumentbeskrivelse>"
    xml = f"<registrering xsi:type='journalpost'>{xml}</registrering>"
    xml = f"<mappe xsi:type='saksmappe'><systemID>a</systemID><offentligTittel>Ny vei</offentligTittel>{xml}</mappe>"
    for name in ("mappe", "klasse", "arkivdel"):
        xml = f"<{name}>{xml}{SHIELD if around == name else ''}</{name}>"
    (tmp_path / "a.xml").write_text(
        f"<arkiv xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance'>{xml}</arkiv>"
    )
    (document,), report = read("einnsyn", tmp_path)
    assert document.title == "Ny vei"
    assert ("Tegning" in document.text) is (around == "")
    assert not report.broken


def test_folders_without_an_id_stay_apart(tmp_path: Path) -> None:
    folders = "".join(
        f"<mappe xsi:type='saksmappe'><offentligTittel>Sak {n}</offentligTittel>"
        f"<registrering xsi:type='journalpost'><offentligTittel>Brev {n}</offentligTittel></registrering></mappe>"
        for n in "ab"
    )
    (tmp_path / "a.xml").write_text(
        f"<arkiv xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance'>{folders}</arkiv>"
    )
    documents, _ = read("einnsyn", tmp_path)
    assert [d.text for d in documents] == [
        "Sak: Sak a\n\nJournalpost: Brev a",
        "Sak: Sak b\n\nJournalpost: Brev b",
    ]


@pytest.mark.parametrize("form", ["compact", "nested", "expanded"])
def test_json_ld_journals_give_public_titles_and_nothing_withheld(tmp_path: Path, form: str) -> None:
    graph = [{**GRAPH[0], "x:kind": ["a term that we have a name like"], "inside": 5}, *GRAPH[1:]]
    body: Any = {"@context": {"arkiv": A}, "@graph": graph}
    if form == "expanded":
        body = expanded(graph)
    if form == "nested":  # a document within its entry, within its case
        entry = {**GRAPH[1], "arkiv:dokumentbeskrivelse": [GRAPH[2]], "arkiv:skjerming": GRAPH[3]}
        del entry["arkiv:parent"]
        body = {"@context": {"arkiv": A}, "@graph": [{**graph[0], "arkiv:registrering": [entry]}]}
    (tmp_path / "a.jsonld").write_text(json.dumps(body, ensure_ascii=False, indent=1))
    (document,), report = read("einnsyn", tmp_path)
    assert document.text == JOURNAL.format(attachment="Vedlegg: Vedlegg om vei\n")
    assert "HEMMELIG" not in str(document)
    assert (document.id, document.group) == ("a:sak-1", "sak-1")
    assert not report.broken


def test_an_entry_without_its_case_is_in_the_cases_group(tmp_path: Path) -> None:
    (tmp_path / "a.jsonld").write_text(json.dumps({"@graph": GRAPH[1:]}))
    (tmp_path / "b.jsonld").write_text(json.dumps({"@graph": [{"@id": "x", "@type": "arkiv:Saksmappe"}]}))
    (document,), report = read("einnsyn", tmp_path)
    assert (document.id, document.group) == ("a:jp-1", "sak-1")
    assert report.counts["without_public_titles"] == 1


HEAD = """<journalhode><journalStartDato>2021-01-01</journalStartDato>
<journalSluttDato>2021-12-31</journalSluttDato>
<seleksjon>HEMMELIG utvalg</seleksjon><antallJournalposter>{count}</antallJournalposter><arkivskaper>
<arkivskaperID>958</arkivskaperID>
<arkivskaperNavn>Eksempel kommune</arkivskaperNavn></arkivskaper></journalhode>"""
ROW = """<journalregistrering><klasse><klasseID>010190 00000</klasseID><tittel>HEMMELIG Person</tittel>{class_shield}</klasse>
<saksmappe><saksaar>2021</saksaar><sakssekvensnummer>{case}</sakssekvensnummer>{case_title}
<offentligTittel>{public_case}</offentligTittel>
{case_shield}<administrativEnhet>Plan</administrativEnhet><saksansvarlig>HEMMELIG ansvarlig</saksansvarlig></saksmappe>
<journalpost><systemID>{id}</systemID><journalaar>2021</journalaar><journalsekvensnummer>7</journalsekvensnummer>
<journalpostnummer>{number}</journalpostnummer>{title}<offentligTittel>{public}</offentligTittel>{metadata}
<journaldato>2021-03-02</journaldato>{date}<administrativEnhet>Plan</administrativEnhet><saksbehandler>HEMMELIG</saksbehandler>
{shield}<korrespondansepart><korrespondanseparttype>Avsender</korrespondanseparttype>
<korrespondansepartNavn>HEMMELIG navn</korrespondansepartNavn>{party_shield}</korrespondansepart></journalpost>
</journalregistrering>"""


def journal(kind: str, version: str = "5") -> str:
    """Three entries of two cases, in the form of the schemas: the public journal has no `tittel` but a class'
    own."""
    running = kind == "loependeJournal"
    hidden = "<skjermingMetadata>HEMMELIG metadata</skjermingMetadata>"
    common = {
        "class_shield": hidden if running else "",
        "case_title": "<tittel>HEMMELIG sak</tittel>" if running else "",
        "title": "<tittel>HEMMELIG post</tittel>" if running else "",
        "party_shield": hidden if running else "",
        "case_shield": hidden if running else "",
    }
    degree = "<grad>HEMMELIG</grad>" if version == "5" else "<gradering>HEMMELIG</gradering>"
    law = "<skjermingshjemmel>Offl. § 13</skjermingshjemmel>"
    shield = f"<tilgangsrestriksjon>Unntatt offentlighet</tilgangsrestriksjon>{degree}{law}"
    rows = [
        ROW.format(
            case=44,
            public_case="Klage på vedtak",
            id="jp-1",
            number=1,
            public="Klage",
            metadata=hidden,
            date="<dokumentetsDato>2021-02-27</dokumentetsDato>",
            shield=shield,
            **common,
        ),
        ROW.format(
            case=45,
            public_case="Ny vei",
            id="jp-2",
            number=1,
            public="Kart",
            metadata="",
            date="",
            shield="",
            **common,
        ),
        ROW.format(
            case=44,
            public_case="Klage på vedtak",
            id="jp-3",
            number=2,
            public="Svar",
            metadata="",
            date="",
            shield="",
            **common,
        ),
    ]
    space = f"http://www.arkivverket.no/standarder/noark5/{kind}"
    body = HEAD.format(count=3) + "".join(rows)
    return f'<?xml version="1.0" encoding="utf-8"?><{kind} xmlns="{space}">{body}</{kind}>'


@pytest.mark.parametrize("version", ["3", "5"])
@pytest.mark.parametrize("kind", ["offentligJournal", "loependeJournal"])
def test_the_journals_of_an_archive_give_public_titles_by_case_and_nothing_withheld(
    tmp_path: Path, kind: str, version: str
) -> None:
    (tmp_path / f"{kind}.xml").write_text(journal(kind, version))
    documents, report = read("einnsyn", tmp_path)
    assert texts(documents) == [
        "Sak 2021/44: Klage på vedtak\nPlan\n\nJournalpost 1 (2021-02-27): Klage\nUnntatt offentlighet: Offl. § 13\n\n"
        "Journalpost 2 (2021-03-02): Svar",
        "Sak 2021/45: Ny vei\nPlan\n\nJournalpost 1 (2021-03-02): Kart",
    ]
    assert "HEMMELIG" not in str(documents)
    assert [(d.group, d.title, d.date) for d in documents] == [
        ("958:2021/44", "Klage på vedtak", "2021"),
        ("958:2021/45", "Ny vei", "2021"),
    ]
    assert not report.broken


def test_a_journal_without_public_titles_is_counted_and_never_read_by_its_whole_ones(tmp_path: Path) -> None:
    bare = re.sub("<offentligTittel>.*?</offentligTittel>", "", journal("loependeJournal"))
    (tmp_path / "a.xml").write_text(bare)
    (tmp_path / "b.xml").write_text(
        re.sub("<offentligTittel>(Kart|Ny vei)</offentligTittel>", "", journal("loependeJournal"))
    )
    documents, report = read("einnsyn", tmp_path)
    assert [d.title for d in documents] == ["Klage på vedtak"]
    assert "HEMMELIG" not in str(documents)
    assert report.counts["without_public_titles"] == 3


def test_a_case_that_is_named_in_one_row_alone_has_its_name(tmp_path: Path) -> None:
    text = journal("offentligJournal").replace("<offentligTittel>Klage på vedtak</offentligTittel>", "", 1)
    (tmp_path / "a.xml").write_text(text)
    assert [d.title for d in read("einnsyn", tmp_path)[0]] == ["Klage på vedtak", "Ny vei"]


# too deep for one of json.loads and what goes through its result
DEEP = '{"@id": "x", "@type": "y", "z": ' * 990 + "1" + "}" * 990


@pytest.mark.parametrize(
    "body", ["{", "[" * 5000, DEEP, '<arkiv><mappe xsi:type="saksmappe"/></arkiv>', "<rss/>"]
)
def test_a_broken_delivery_is_quarantined(tmp_path: Path, body: str) -> None:
    (tmp_path / "a.jsonld").write_text(body)
    (tmp_path / "b.xml").write_text(NOARK)
    documents, report = read("einnsyn", tmp_path)
    assert len(documents) == 1
    assert [place for place, _ in faults(report)] == ["a.jsonld"]


def test_a_declared_encoding_of_half_characters_is_not_taken_at_its_word(tmp_path: Path) -> None:
    body = LAW.format(deep="").replace("verne", "\\ud800").encode() + b"\xe5"
    (tmp_path / "a.xml").write_bytes(b'<?xml version="1.0" encoding="unicode_escape"?>' + body)
    (document,), report = read("lovdata", tmp_path)
    assert "\\ud800" in document.text
    assert report.counts["decoded_as_cp1252"] == 1


# --- documents of any shape
# ----------------------------------------------------------------------------------------------------


def lacking(markup: bytes) -> Iterator[bytes]:
    """A document without each of its elements in turn, and each of their attributes."""
    for number, whole in enumerate(etree.fromstring(markup).iter()):
        for key in ("", *whole.attrib):
            element = list(etree.fromstring(markup).iter())[number]
            above = element.getparent()
            if key:
                del element.attrib[key]
            elif above is not None:
                above.remove(element)
            yield etree.tostring(element.getroottree())


SHAPES: dict[str, tuple[str, bytes]] = {
    "law": ("lovdata", LAW.format(deep="").replace("<br>", "<br/>").encode()),
    "old minutes": ("stortinget", OLD.format(encoding="UTF-8").encode()),
    "new minutes": ("stortinget", NEW.replace("&nbsp;", " ").encode()),
    "debate": ("parlamint", TEI.format(seg=WORDS).encode()),
    "publication": ("regjeringen", XHTML.encode()),
    "journal": ("einnsyn", NOARK.encode()),
    "public journal": ("einnsyn", journal("offentligJournal").encode()),
    "running journal": ("einnsyn", journal("loependeJournal").encode()),
    "JSON-LD": ("einnsyn", json.dumps({"@graph": GRAPH}).encode()),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_no_document_of_any_shape_keeps_the_good_ones_from_arriving(tmp_path: Path, kind: str) -> None:
    reader, good = SHAPES[kind]
    others = (
        (json.dumps(other).encode() for other in strange(json.loads(good)))
        if kind == "JSON-LD"
        else lacking(good)
    )
    for number, content in enumerate([*others, good]):
        (tmp_path / f"{number:05d}.xml").write_bytes(content)
    source, report = SourceConfig(reader=reader, path=str(tmp_path), license="CC0-1.0"), Report()
    *_, last = reading.files(source)
    documents = list(reading.read("s", source, report, reading.files(source)))
    whole = list(reading.read("s", source, Report(), [last]))
    assert whole
    assert documents[-len(whole) :] == whole
