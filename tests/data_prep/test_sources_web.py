"""Web pages are read completely, without the navigation and boilerplate of their site.

All pages are invented.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from lxml import html

from data_prep.document import Report
from tests.data_prep.reading import read

INTRO = (
    "Kommunen gir støtte til lag og foreninger som driver med friluftsliv for barn og unge, og "
    "svarer på søknaden innen tre uker. Støtten kan brukes til utstyr, turer og kurs, og må brukes "
    "i løpet av det året den er gitt for."
)
CLOSING = (
    "Har du spørsmål om ordningen, kan du ringe kommunens servicetorg mellom klokken ni og tre på "
    "alle hverdager i uken."
)
SITE_TOP = (
    '<header><a href="/">Forsiden</a><nav><ul><li><a href="/a">Bolig</a></li><li>'
    '<a href="/b">Skole</a></li></ul></nav></header>'
)
SITE_FOOT = (
    "<footer><p>Prøvevik kommune, postboks 1, 0001 Prøvevik.</p>"
    "<p>Ansvarlig redaktør: Kari Eksempel</p></footer>"
)


def make_page(article: str) -> str:
    return (
        f'<html lang="nb"><head><title>Støtte</title></head>'
        f"<body>{SITE_TOP}<main>{article}</main>{SITE_FOOT}</body></html>"
    )


def read_text(tmp_path: Path, page: str, reader: str = "webpage", **options: object) -> tuple[str, Report]:
    (tmp_path / "a.html").write_text(page)
    documents, report = read(reader, tmp_path, options=options)
    return documents[0].text, report


@dataclass
class Case:
    """A part of a page, and the lines of text expected from it."""

    id: str
    html: str
    lines: list[str]


KEPT = [
    Case(
        "list in a table cell",
        "<table><tr><th>Hvem</th><th>Krav</th></tr><tr><td>Lag</td><td><ul><li>ha styre</li>"
        "<li>ha revisor</li></ul></td></tr></table>",
        ["| Hvem | Krav |", "| Lag | • ha styre • ha revisor |"],
    ),
    Case(
        "numbered list and paragraphs in a table cell",
        "<table><tr><th>Steg</th><td><p>Gjør slik:</p><ol><li>søk</li><li>vent</li></ol></td></tr>"
        "<tr><th>Frist</th><td>1. mars</td></tr></table>",
        ["| Steg | Gjør slik: 1. søk 2. vent |", "| Frist | 1. mars |"],
    ),
    Case(
        "fact box",
        "<aside><h2>Fakta</h2><ul><li>Vedtatt i 2012</li><li>Fire millioner</li></ul></aside>",
        ["## Fakta", "- Vedtatt i 2012", "- Fire millioner"],
    ),
    Case(
        "fact box of a class",
        '<aside class="factbox" role="complementary"><p>Budsjettet er på fire millioner kroner.</p></aside>',
        ["Budsjettet er på fire millioner kroner."],
    ),
    Case(
        "definitions",
        "<dl><dt>Frist</dt><dd>1. mars</dd><dt>Beløp</dt><dd>10 000 kroner</dd></dl>",
        ["Frist", "1. mars", "Beløp", "10 000 kroner"],
    ),
    Case(
        "details to unfold",
        "<details><summary>Hvem kan søke?</summary><p>Alle lag.</p></details>",
        ["Hvem kan søke?", "Alle lag."],
    ),
    Case(
        "accordion with a button and a hidden panel",
        '<h2><button aria-expanded="false" aria-controls="p1">Hvem kan klage?</button></h2>'
        '<div id="p1" hidden><p>Den som har søkt.</p></div>',
        ["## Hvem kan klage?", "Den som har søkt."],
    ),
    Case(
        "accordion of a class, hidden by style",
        '<div class="accordion-item">'
        '<button class="accordion-button" aria-controls="p2">Når kommer pengene?</button>'
        '<div id="p2" style="display: none" aria-hidden="true"><p>I mai.</p></div></div>',
        ["Når kommer pengene?", "I mai."],
    ),
    Case(
        "caption",
        '<figure><img src="a.jpg"><figcaption>Stien ble åpnet i 2019.</figcaption></figure>',
        ["Stien ble åpnet i 2019."],
    ),
    Case(
        "quotation",
        "<blockquote><p>Dette er viktig.</p><footer>Ordfører Ola Prøve</footer></blockquote>",
        ["> Dette er viktig.", "> Ordfører Ola Prøve"],
    ),
    Case(
        "lists in lists",
        "<ol><li>Søk<ul><li>på nett</li><li>på papir</li></ul></li><li>Vent</li></ol>",
        ["1. Søk", "   - på nett", "   - på papir", "2. Vent"],
    ),
    Case(
        "a list that starts at three",
        '<ol start="3"><li>Klag</li><li>Vent igjen</li></ol>',
        ["3. Klag", "4. Vent igjen"],
    ),
    Case(
        "a table for layout",
        '<table role="presentation"><tr><td><h3>Søknad</h3><p>Send skjemaet.</p></td></tr></table>',
        ["### Søknad", "Send skjemaet."],
    ),
    Case(
        "footnotes in the article's footer",
        "<footer><ol><li>Se kommunens vedtak om støtte fra 2012.</li></ol></footer>",
        ["1. Se kommunens vedtak om støtte fra 2012."],
    ),
    Case("code", "<pre>konto = 1\n  navn = 2</pre>", ["```", "konto = 1", "  navn = 2", "```"]),
    Case(
        "links are content in a list of laws",
        '<ul><li><a href="https://lov.no/1">Friluftsloven</a></li><li>'
        '<a href="https://lov.no/2">Naturloven</a></li></ul>',
        ["- Friluftsloven", "- Naturloven"],
    ),
    Case(
        "terms of furniture in running text",
        "<p>Del på Facebook at det er mulig å søke, og be andre tipse en venn om ordningen.</p>",
        ["Del på Facebook at det er mulig å søke, og be andre tipse en venn om ordningen."],
    ),
    Case(
        "an ordinal and marks of Markdown",
        "<p>1. mars er fristen, og * er ikke en stjerne [her].</p>",
        ["1. mars er fristen, og * er ikke en stjerne [her]."],
    ),
]


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case.id)
@pytest.mark.parametrize("place", ["in the middle", "at the end"])
def test_all_text_of_a_page_is_kept(tmp_path: Path, case: Case, place: str) -> None:
    after = f"<p>{CLOSING}</p>" if place == "in the middle" else ""
    text, report = read_text(
        tmp_path, make_page(f"<article><h1>Støtte</h1><p>{INTRO}</p>{case.html}{after}</article>")
    )
    assert text.startswith(f"# Støtte\n\n{INTRO}\n\n")
    assert text.endswith(CLOSING) == bool(after)
    lines = [line for line in text.split("\n") if line and line not in (INTRO, CLOSING)]
    lines = [line for line in lines if not line.startswith(("# S", "|---"))]
    assert lines == case.lines
    assert report.counts["pages_read_by_main_element"] == 1
    assert report.counts["page_letters_kept"] >= report.counts["page_letters"] > 0


FURNITURE = [
    '<div class="share-buttons"><a href="#">Del på Facebook</a><a href="#">Del på LinkedIn</a></div>',
    '<ul><li><a href="https://www.facebook.com/sharer/sharer.php?u=x">Facebook</a></li>'
    '<li><a href="https://twitter.com/intent/tweet?u=x">Twitter</a></li></ul>',
    '<p>Del denne siden: <a href="https://www.linkedin.com/shareArticle?u=x">LinkedIn</a> '
    '<a href="mailto:?subject=x">E-post</a></p>',
    '<div class="deling"><span>Tips en venn</span><span>Facebook</span></div>',
    '<a href="javascript:window.print()">Skriv ut</a>',
    '<a href="#" onclick="window.print(); return false">Utskriftsvennlig versjon</a>',
    '<button type="button">Skriv ut</button>',
    '<ul class="tools"><li>Skriv ut</li><li>Tips en venn</li></ul>',
    '<div class="d-print-none"><p>Lytt til teksten</p></div>',
    '<nav aria-label="Brødsmulesti"><ol><li><a href="/">Hjem</a></li><li>Støtte</li></ol></nav>',
    '<div class="breadcrumb"><a href="/">Hjem</a> / Støtte</div>',
    '<div role="navigation"><a href="/x">Undersider</a></div>',
    '<div id="cookieBanner">'
    '<p>Vi bruker informasjonskapsler for å gjøre siden bedre for deg. Godta alle.</p></div>',
    '<aside class="related-content"><h2>Relaterte saker</h2><ul><li><a href="/1">Om skiløyper'
    '</a></li></ul></aside>',
    '<section><h2>Les også</h2><ul><li><a href="/1">Om skiløyper og stier</a></li><li>'
    '<a href="/2">Om båter</a></li></ul></section>',
    '<h2>Relaterte lenker</h2><ul><li><a href="/1">Om skiløyper og stier</a></li><li>'
    '<a href="/2">Om båter</a></li></ul>',
    '<ul class="tag-list"><li><a href="/tag/1">Friluft</a></li><li><a href="/tag/2">Barn</a></li></ul>',
    '<aside><h2>Nyhetsbrev</h2><p>Meld deg på her.</p><form><input name="e"><button>Send'
    '</button></form></aside>',
    '<form><label>Fant du det du lette etter?</label><button>Ja</button><button>Nei</button></form>',
    "<p>Sist oppdatert: 12. mars 2024</p>",
    "<p>Publisert: 01.02.2023</p>",
    "<p>Ansvarlig redaktør: Kari Eksempel</p>",
    '<div class="article-meta"><span>Nettredaktør: Ola Prøve, telefon 00 00 00 00</span></div>',
    "<dl><dt>Redaktør</dt><dd>Kari Eksempel</dd></dl>",
    '<div><h2>Følg oss</h2><a href="https://www.facebook.com/x">Facebook</a> '
    '<a href="https://www.instagram.com/x">Instagram</a></div>',
    "<footer><p>Sist endret 1.2.2023</p></footer>",
    '<ul><li><a href="#a">Hvem kan søke</a></li><li><a href="#b">Frister og krav</a></li><li>'
    '<a href="#c">Klage på vedtak</a></li></ul>',
    '<div hidden><p>Denne meldingen vises bare når noe har gått galt med siden.</p></div>',
    '<template><p>Denne meldingen vises bare når noe har gått galt med siden.</p></template>',
    '<div class="comments"><p>Ola skrev i går at dette var en fin side om støtte til lag.</p></div>',
]  # fmt: skip


@pytest.mark.parametrize("furniture", FURNITURE)
@pytest.mark.parametrize("reader", ["webpage", "regjeringen"])
def test_page_boilerplate_around_the_text_is_left_out(tmp_path: Path, reader: str, furniture: str) -> None:
    text, _ = read_text(
        tmp_path,
        make_page(f"<article><h1>Støtte</h1><p>{INTRO}</p><p>{CLOSING}</p>{furniture}</article>"),
        reader,
    )
    assert text.removeprefix("# ") == f"Støtte\n\n{INTRO}\n\n{CLOSING}"
    text, _ = read_text(
        tmp_path,
        make_page(f"<article><h1>Støtte</h1>{furniture}<p>{INTRO}</p><p>{CLOSING}</p></article>"),
        reader,
    )
    assert text.removeprefix("# ") == f"Støtte\n\n{INTRO}\n\n{CLOSING}"


@pytest.mark.parametrize(
    "body",
    [
        "<div id='content'><h1>Støtte</h1><p>{intro}</p>{table}<p>{closing}</p></div>",
        "<form id='aspnetForm'><div id='content'><h1>Støtte</h1><p>{intro}</p>{table}<p>{closing}"
        "</p></div></form>",
        "<div role='main'><h1>Støtte</h1><p>{intro}</p>{table}<p>{closing}</p></div>",
        "<article><header><h1>Støtte</h1></header><p>{intro}</p>{table}<p>{closing}</p></article>",
        "<table role='presentation'><tr><td><a href='/'>Hjem</a></td><td><h1>Støtte</h1><p>{intro}"
        "</p>{table}<p>{closing}</p></td></tr></table>",
    ],
)
def test_pages_without_a_main_element_are_read_whole(tmp_path: Path, body: str) -> None:
    table = (
        "<table><tr><th>Hvem</th><th>Krav</th></tr><tr><td>Lag</td><td><ul><li>styre</li>"
        "<li>revisor</li></ul></td></tr></table>"
    )
    filled = body.format(intro=INTRO, closing=CLOSING, table=table)
    text, _ = read_text(tmp_path, f"<html><body>{SITE_TOP}{filled}{SITE_FOOT}</body></html>")
    assert f"{INTRO}\n\n| Hvem | Krav |\n|---|---|\n| Lag | • styre • revisor |\n\n{CLOSING}" in text
    assert "Bolig" not in text
    assert "redaktør" not in text


@pytest.mark.parametrize("reader", ["webpage", "regjeringen"])
def test_a_page_that_would_lose_most_letters_falls_back_to_another_method(
    tmp_path: Path, reader: str
) -> None:
    """All text of this page is in elements of a class that marks boilerplate on other pages."""
    parts = "".join(
        f'<div class="promo"><p>{text}</p></div>'
        for text in (INTRO, CLOSING, INTRO.replace("uker", "dager"), CLOSING[::-1])
    )
    text, report = read_text(tmp_path, make_page(parts), reader)
    assert text.split("\n\n")[:3] == [INTRO, CLOSING, INTRO.replace("uker", "dager")]
    way = {"webpage": "pages_read_by_tags_of_main_element", "regjeringen": "pages_read_by_tags"}
    assert report.counts[way[reader]] == 1


def test_kept_letters_are_counted_against_those_of_the_page(tmp_path: Path) -> None:
    _, report = read_text(
        tmp_path,
        make_page(
            f"<article><h1>Støtte</h1><p>{INTRO}</p><p>{CLOSING}</p><nav><a href='/'>Hjem</a></nav></article>"
        ),
    )
    num_letters = sum(map(str.isalnum, f"Støtte{INTRO}{CLOSING}"))
    assert report.counts["page_letters"] == num_letters
    assert report.counts["page_letters_kept"] == num_letters


@pytest.mark.parametrize("reader", ["webpage", "pdf", "regjeringen"])
def test_min_kept_must_be_between_0_and_1(tmp_path: Path, reader: str) -> None:
    (tmp_path / "a.html").write_text("x")
    with pytest.raises(ValueError, match=r"options.min_kept is 1.5: must be between 0 and 1"):
        read(reader, tmp_path, options={"min_kept": 1.5})


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case.id)
def test_all_letters_of_a_page_of_regjeringen_are_kept(tmp_path: Path, case: Case) -> None:
    text, report = read_text(
        tmp_path,
        make_page(f"<article><h1>Støtte</h1><p>{INTRO}</p>{case.html}</article>"),
        "regjeringen",
    )
    own = html.fromstring(f"<div>{case.html}</div>").text_content()
    assert sorted(filter(str.isalnum, text)) == sorted(filter(str.isalnum, f"Støtte{INTRO}{own}"))
    assert not report.counts["pages_read_by_tags"]


def test_a_box_of_related_information_without_links_is_kept(tmp_path: Path) -> None:
    text_of_box = (
        "Barn fødde før 30. november har rett til plass, og kommunen skal gi tilbod til alle som har rett."
    )
    around = "".join(
        f"<p>Søknad nummer {n} om plass blir handsama innan tre veker etter fristen.</p>" for n in range(8)
    )
    box = f'<div class="related-info"><h3>Viktig å vite</h3><p>{text_of_box}</p></div>'
    links = (
        '<div class="related-info"><h3>Sjå også</h3><p>'
        '<a href="/b">Betaling for plass i barnehage</a></p></div>'
    )
    (tmp_path / "a.html").write_text(
        f"<html><body><div><h1>Plass</h1>{around}{box}{links}</div></body></html>"
    )
    (document,), _ = read("webpage", tmp_path / "a.html")
    assert text_of_box in document.text
    assert "Viktig å vite" in document.text
    assert "Betaling for plass" not in document.text
