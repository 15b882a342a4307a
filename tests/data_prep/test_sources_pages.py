"""The readers of web pages, Markdown and PDF. All texts are invented."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.document import Report
from data_prep.sources import markdown, markup, pdf
from data_prep.sources.pdf_layout import Line, Page
from tests.data_prep.reading import broken_places, read

# --- web pages

PARAGRAPH = (
    "Kommunen behandler søknaden innen tre uker, og du får svar i posten når saken er ferdig "
    "behandlet av rådmannen. "
)
PAGE = f"""<!DOCTYPE html><html lang="nb"><head><title>Barnehage</title>
<meta property="og:url" content="https://www.kommune.no/barnehage/soek">
<meta property="article:published_time" content="2023-03-01"></head><body><nav><ul><li>\
<a href="/">Forsiden</a></li><li>
<a href="/kart">Kart</a></li></ul></nav>
<div class="cookie-banner">Vi bruker informasjonskapsler. Godta alle.</div><main><article>\
<h1>Søke barnehage</h1>
<p>{PARAGRAPH * 2}</p><h2>Frister</h2>
<p>{PARAGRAPH}<a href="/frist">Les om frister</a>.</p><ul><li>Hovedopptak er 1. mars.</li>\
<li>Klagefrist er tre uker.</li>
</ul></article></main>
<footer>Telefon 00 00 00 00 | Personvern</footer></body></html>"""


def test_a_page_is_its_main_text_with_its_headings(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    (tmp_path / "tom.html").write_text(
        "<html><head><title>Tom</title></head><body><script>start()</script></body></html>"
    )
    documents, report = read("webpage", tmp_path)
    (page,) = documents
    assert "## Frister" in page.text
    assert "Hovedopptak er 1. mars." in page.text
    assert not any(noise in page.text for noise in ("informasjonskapsler", "Personvern", "Kart", "](/frist)"))
    assert (page.url, page.group, page.language) == (
        "https://www.kommune.no/barnehage/soek",
        "kommune.no/barnehage",
        "nob",
    )
    assert page.date == "2023-03-01"
    assert [(drop.id, drop.reason) for drop in report.drops] == [("tom.html", "no_main_text")]


# --- Markdown

MARKDOWN = """---
title: "Feilsøking"
lang: nn
date: 2024-05-06
---
Sjå [loggen](../logg.md#a "tips"), [kosmos-[versjon].jar](fil.jar) og [regelen][r1].<br>Ny linje.

<!-- ikkje vis
dette -->
{% include note.html content="Vi flyttar i mai." %}
## Steg 1 {#steg-1}

![Skjermbilete](bilete.png) Skriv `<navn>` og <a href="mailto:x@y.no">x@y.no</a>, sjå \
<https://docs.no>.
{: .tabell}

```bash
# ikkje ei overskrift
curl "$URL" | grep "[a](b)" <!-- blir -->
```

{% highlight xml %}
<skjerming>JA</skjerming>
{% endhighlight %}

| A | B |
|---|---|
| 1<br/>2 | &lt;x&gt; |

[r1]: https://lov.no
"""


def test_markdown_keeps_headings_code_and_tables_and_reduces_the_rest(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(MARKDOWN)
    (document,), _ = read("markdown", tmp_path)
    assert document.text == (
        "# Feilsøking\n\nSjå loggen, kosmos-[versjon].jar og regelen.\nNy linje.\n\n"
        "Vi flyttar i mai.\n## Steg 1\n\n"
        "Skjermbilete Skriv `<navn>` og x@y.no, sjå https://docs.no.\n\n"
        '```bash\n# ikkje ei overskrift\ncurl "$URL" | grep "[a](b)" <!-- blir -->\n```\n\n'
        "```xml\n<skjerming>JA</skjerming>\n```\n\n| A | B |\n|---|---|\n| 1 2 | <x> |"
    )
    assert (document.title, document.language, document.date, document.group) == (
        "Feilsøking",
        "nno",
        "2024-05-06",
        "docs",
    )


WRAPPED = """# Postkasse

1. Innhold
{:toc}

Digital post er
brev som sendes *elektronisk* (se
[reglene](x.md)).  
Ny linje,\\
og en til

- Den som sender,
  er avsender
- Den som mottar
1. 3. august
    er fristen

    innrykket kode
    i to linjer

> sitat
> i to

A | B
:------|-----------:
en -------- | to

Overskrift
----------

```
kode
som står
```
slutt
her
"""


def test_wrapped_lines_of_a_markdown_paragraph_are_joined(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(WRAPPED)
    (document,), _ = read("markdown", tmp_path)
    assert document.text == (
        "# Postkasse\n\nDigital post er brev som sendes *elektronisk* (se reglene).\nNy linje,\\\n"
        "og en til\n\n- Den som sender, er avsender\n- Den som mottar\n1. 3. august er fristen\n\n"
        "    innrykket kode\n    i to linjer\n\n> sitat\n> i to\n\nA | B\n:---|---:\n"
        "en -------- | to\n\nOverskrift\n----------\n\n```\nkode\nsom står\n```\nslutt her"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "| A | B |\n|---|---|\n| <ul><li>en</li><li>to</li></ul> | x |",
            "| A | B |\n|---|---|\n| • en • to | x |",
        ),
        ("| A |\n|---|\n| <p>en</p><p>to</p> |", "| A |\n|---|\n| en to |"),
        ("<p>Ein.</p><p>To.</p>", "Ein.\nTo."),
        ("<ul><li>ein</li><li>to</li></ul>", "- ein\n- to"),
        (
            "<table><tr><td>Ein</td><td>To</td></tr><tr><td>Tre</td><td>Fire</td></tr></table>",
            "Ein | To\nTre | Fire",
        ),
        ("<dl><dt>Frist</dt><dd>1. mars</dd></dl>", "Frist\n1. mars"),
        (
            "<aside>\n<h2>Fakta</h2>\n<p>Vedteke i <mark>2012</mark>.</p>\n</aside>",
            "Fakta\nVedteke i 2012.",
        ),
        ("<details><summary>Meir</summary>Gøymd.</details>", "Meir\nGøymd."),
        ("{{% notice info %}}\nViktig.\n{{% /notice %}}", "Viktig."),
        ('{{< figure src="a.png" caption="Kart over vegen" >}}', "Kart over vegen"),
        ('{{<alert title="Obs!">}}Viktig.{{</alert>}}', "Obs! Viktig."),
        ("{% include callout.html content='Vi flyttar.' %}", "Vi flyttar."),
        ('{% hint style="info" %}\nHugs dette.\n{% endhint %}', "Hugs dette."),
        ("{% raw %}Skriv {{ namn }} her.{% endraw %}", "Skriv {{ namn }} her."),
        (
            "Sjå noten.[^1]\n\n[^1]: Noten seier noko viktig.",
            "Sjå noten.[^1]\n\n[^1]: Noten seier noko viktig.",
        ),
        ("Tekst.\n\n[viktig]: dette er inga lenkje", "Tekst.\n\n[viktig]: dette er inga lenkje"),
        ("Tekst [her][r].\n\n[r]: https://lov.no 'Lova'", "Tekst her."),
        ('<img src="a.png" alt="Kart over hamna">', "Kart over hamna"),
        ('!!! note "Merk"\n    Dette er\n    viktig.', '!!! note "Merk"\n    Dette er viktig.'),
        ("Skriv <namn> og trykk <Ctrl>, der a < b.", "Skriv <namn> og trykk <Ctrl>, der a < b."),
    ],
)
def test_the_text_of_markup_within_markdown_is_kept(source: str, expected: str) -> None:
    assert markdown.simplify(source, Report())[0] == expected


def test_template_values_are_filled_from_the_front_matter_or_counted(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "---\ntitle: Hent person\n---\n| Term | {{page.title}} |\n\n"
        "Vi har {{ antal }} saker, [sjå]({{site.url}}/x)."
    )
    (tmp_path / "b.md").write_text('+++\ntitle = "Fjell"\ndate = 2020-01-02\n+++\n\nTekst.')
    documents, report = read("markdown", tmp_path)
    assert documents[0].text == "# Hent person\n\n| Term | Hent person |\n\nVi har  saker, sjå."
    assert report.counts["template_values_left_out"] == 1
    assert (documents[1].text, documents[1].date) == ("# Fjell\n\nTekst.", "2020-01-02")


def test_the_title_is_not_added_to_markdown_that_has_a_heading(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Min tittel\n\nTekst.")
    (tmp_path / "b.md").write_text("---\ntitle: Noe\n---\n# Min tittel\n\n```\nåpen kode\n")
    documents, _ = read("markdown", tmp_path)
    assert [(d.title, d.text) for d in documents] == [
        ("Min tittel", "# Min tittel\n\nTekst."),
        ("Noe", "# Min tittel\n\n```\nåpen kode"),
    ]


@pytest.mark.parametrize(
    "opening",
    [
        " ",
        "`",
        "{%highlight %}",
        '{% include content="',
        "{{ ",
        "![a",
        "[[a]",
        "<http://",
        "<code>",
        "<script ",
        "{:",
        "[a](b){",
        "<!--",
        "ord\n",
        "<li>",
        "<li> ",
        "<li>a",
        "| <li>a",
        "<td",
        "{{< ",
        "{{% a",
        "{% raw %}",
        "{{ a",
        '{{< a title="',
        "<img alt='",
        "[a]: b",
        "+++\n",
    ],
)
def test_markdown_is_reduced_in_linear_time(opening: str) -> None:
    """Repeated marks that are never closed once took quadratic time: minutes for 200 kB."""
    text, _ = markdown.simplify("a" + opening * (200_000 // len(opening)) + "b", Report())
    assert text.startswith("a")


def test_front_matter_and_fences_are_read_in_linear_time() -> None:
    assert markdown.simplify("---\na: x" + " " * 200_000 + "x\n---\n", Report())[1]["a"].endswith("x")
    assert markdown.simplify("`" * 100_000 + "a" * 100_000, Report())[0].endswith("a")


def test_markdown_with_an_invalid_character_reference_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(f"&#{'9' * 5000};")
    (tmp_path / "b.md").write_text("Tekst.")
    documents, report = read("markdown", tmp_path)
    assert [d.text for d in documents] == ["Tekst."]
    assert broken_places(report) == [("a.md", "contains a numeric character reference with too many digits")]


def test_an_xml_declaration_is_read_in_linear_time() -> None:
    markup.parse_html(b"<?xml " + b'encoding="a" ' * 40_000 + b"<p>Tekst", Report())


# --- PDF


def make_page(*lines: str) -> Page:
    """Return a PDF page that has lines but no coordinates."""
    return Page([Line(line) for line in lines])


def test_pdf_lines_become_paragraphs_without_running_titles() -> None:
    body = [
        "Dette er en linje som er omtrent like lang som alle andre på siden, og setningen går videre",
        "på neste linje. Ferdig.",
    ]
    words = ("en", "to", "tre", "fire", "fem")
    bodies = [[body[0].replace("siden", word), body[1].replace("Ferdig", f"Ferdig {word}")] for word in words]
    pages = [
        make_page("Kommunens årsmelding", *bodies[n], f"{n + 1} Avsnitt", *bodies[n], f"Side {n + 1} av 5")
        for n in range(5)
    ]
    text = pdf.extract_running_text(pages).text
    assert "årsmelding" not in text
    assert "Side" not in text
    paragraphs = [" ".join(lines) for lines in bodies]
    assert text.split("\n\n") == [
        part for n in range(5) for part in (paragraphs[n], f"{n + 1} Avsnitt", paragraphs[n])
    ]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["Saksbehandlingen skal følge kommu\ufffe", "nens regler."],
            "Saksbehandlingen skal følge kommunens regler.",
        ),
        (
            ["Det ble laget en risiko\ufffe", "og sårbarhetsanalyse."],
            "Det ble laget en risiko- og sårbarhetsanalyse.",
        ),
        (["Logg inn med ID\ufffe", "porten nå."], "Logg inn med ID-porten nå."),
        (["Gjelder Nord\ufffe", "Norge alene."], "Gjelder Nord-Norge alene."),
        (["• en", "• to"], "• en\n• to"),
        (
            [
                "Innholdsfortegnelse",
                "1 Innledning ........ 3",
                "2 Mer . . . . . 17",
                "Selve teksten.",
            ],
            "Selve teksten.",
        ),
    ],
)
def test_pdf_words_hyphenated_at_a_line_end_are_joined(lines: list[str], expected: str) -> None:
    assert pdf.extract_running_text([make_page(*lines)]).text == expected


@pytest.mark.parametrize(
    "line", ["a" * 200_000, "a" + " " * 200_000 + "b", "...." + " " * 200_000 + "b", "a\n" * 20_000]
)
def test_the_lines_of_a_pdf_are_joined_in_linear_time(line: str) -> None:
    """No rule may take quadratic time."""
    assert pdf.extract_running_text([make_page(*line.split("\n"))]).text.startswith(line[0])


def make_pdf(text: str) -> bytes:
    """Return a PDF of one page. If the text is empty, the page has no text layer."""
    stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode("latin-1") if text else b""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        (
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << "
            b"/Font << /F1 5 0 R >> >> >>"
        ),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Title (Brevet) /CreationDate (D:20150312101500) >>",
    ]
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer << /Size 7 /Root 1 0 R /Info 6 0 R >>\nstartxref\n%d\n%%%%EOF" % len(out)
    return out + b"xref\n0 7\n0000000000 65535 f \n" + table + trailer


def test_pdf_scans_are_dropped_and_broken_files_quarantined(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(make_pdf("Søknaden er innvilget."))
    (tmp_path / "b.pdf").write_bytes(make_pdf(""))
    (tmp_path / "c.pdf").write_bytes(b"%PDF-1.4\nikke noe mer")
    documents, report = read("pdf", tmp_path)
    assert [(d.id, d.text, d.title, d.date) for d in documents] == [
        ("a", "Søknaden er innvilget.", "Brevet", "2015-03-12")
    ]
    assert [(drop.id, drop.reason) for drop in report.drops] == [("b", "no_text_layer")]
    assert [place for place, _ in broken_places(report)] == ["c.pdf"]
