"""The layout of invented PDF files: line and page numbers, running titles, headings."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.document import Report
from tests.data_prep.pdf_files import LEADING, Piece, column, make_pdf
from tests.data_prep.reading import read

THEMES = [
    "skole",
    "vann",
    "veier",
    "helse",
    "kultur",
    "skog",
    "havn",
    "brann",
    "bibliotek",
    "park",
    "museum",
    "ferje",
    "fjell",
    "fiske",
]


def read_text(tmp_path: Path, pages: list[list[Piece]], picture: bool = False) -> tuple[str, Report]:
    (tmp_path / "a.pdf").write_bytes(make_pdf(pages, picture))
    (document,), report = read("pdf", tmp_path)
    return document.text, report


def make_sentence(page: int, line: int) -> str:
    theme = THEMES[line % 14]
    other = THEMES[(line + page + 1) % 14]
    return (
        f"kommunen skal i planperioden bruke mer på {theme} og mindre på {other} enn den gjorde i den forrige"
    )


def expected_words(pages: int, lines: int) -> list[str]:
    return " ".join(make_sentence(page, line) for page in range(pages) for line in range(lines)).split()


def make_numbers(values: list[int], x: float, flush_right: bool = False, step: int = 1) -> list[Piece]:
    """Return line numbers as pieces in a column at `x`.

    Args:
        values: number of each line.
        flush_right: `x` is the right edge of the numbers instead of the left.
        step: only numbers divisible by `step` are drawn.
    """
    size = 8
    pieces = []
    for line, value in enumerate(values):
        if value % step == 0:
            width = 0.556 * size * len(str(value)) if flush_right else 0
            pieces.append(Piece(x - width, 760 - LEADING * line, str(value), size))
    return pieces


@pytest.mark.parametrize("x", [50.0, 545.0])
@pytest.mark.parametrize("step", [1, 5])
@pytest.mark.parametrize("restarts", [True, False])
@pytest.mark.parametrize("drawn", ["line by line", "after the text", "before the text"])
def test_line_numbers_are_left_out_and_counted(
    tmp_path: Path, x: float, step: int, restarts: bool, drawn: str
) -> None:
    pages = []
    for page in range(3):
        text = column([make_sentence(page, line) for line in range(24)], size=10)
        first = 1 if restarts else 1 + 24 * page
        marks = make_numbers(list(range(first, first + 24)), x + 16, flush_right=x < 100, step=step)
        if drawn == "after the text":
            pages.append(text + marks)
        elif drawn == "before the text":
            pages.append(marks + text)
        else:
            pages.append(sorted(marks + text, key=lambda piece: (-piece.y, piece.x)))
    text, report = read_text(tmp_path, pages)
    assert text.split() == expected_words(3, 24)
    assert report.counts["line_numbers_left_out"] == sum(len(page) - 24 for page in pages)


def test_line_numbers_within_a_hyphenated_word_are_left_out(tmp_path: Path) -> None:
    """PDFium joins the two halves of a hyphenated word. The number of the second line is then in it."""
    lines = []
    for line in range(0, 20, 2):
        lines.append(f"{make_sentence(0, line)} og i hver kom-")
        lines.append(f"mune. {make_sentence(0, line + 1)}.")
    pieces = column(lines, size=9) + make_numbers(list(range(1, 21)), 50)
    pages = [sorted(pieces, key=lambda piece: (-piece.y, piece.x))]
    text, report = read_text(tmp_path, pages)
    assert text.count("kommune.") == 10
    assert not any(character.isdecimal() for character in text)
    assert report.counts["line_numbers_left_out"] == 20


def test_line_numbers_of_short_pages_and_headings_are_left_out(tmp_path: Path) -> None:
    first = [
        Piece(72, 760, "Plan for skog og fjell", 16, True),
        *column([make_sentence(0, n) for n in range(19)], top=746, size=10),
    ]
    last = column(["Vedtatt av kommunestyret."], size=10)
    pages = [first + make_numbers(list(range(1, 21)), 40), last + make_numbers([21], 40)]
    text, report = read_text(tmp_path, pages)
    assert text.startswith("Plan for skog og fjell\n\nkommunen")
    assert text.endswith("Vedtatt av kommunestyret.")
    assert report.counts["line_numbers_left_out"] == 21


LISTS = {
    "a numbered list": column([f"{n}. {THEMES[n % 14]}" for n in range(1, 21)]),
    "numbers without a dot": column([f"{n} {THEMES[n % 14].title()} Prøvesen" for n in range(1, 21)]),
    "a table with a number column": [
        *column(["Deltakere på møtet"], top=788),
        *column([str(n) for n in range(1, 21)]),
        *column([f"{THEMES[n % 14].title()} Prøvesen" for n in range(1, 21)], x=120),
    ],
    "a table of years": [
        *column(["År", *[str(n) for n in range(2001, 2021)]]),
        *column(["Kroner", *[f"{n * 37} tusen" for n in range(2001, 2021)]], x=200),
    ],
    "numbered sections": [
        piece
        for n in range(1, 11)
        for piece in (
            Piece(72, 790 - 42 * n, f"{n} Om {THEMES[n]}", 12, True),
            Piece(72, 776 - 42 * n, make_sentence(0, n), 10),
        )
    ],
    "paragraphs numbered in the margin": [
        piece
        for n in range(1, 9)
        for piece in (
            Piece(50, 800 - 56 * n, str(n)),
            *column(
                [make_sentence(n, 0), make_sentence(n, 1), "slik er det."],
                top=800 - 56 * n,
                size=10,
            ),
        )
    ],
}


@pytest.mark.parametrize("kind", LISTS)
def test_numbers_of_lists_sections_and_tables_are_kept(tmp_path: Path, kind: str) -> None:
    text, report = read_text(tmp_path, [LISTS[kind]])
    digits = [piece.text for piece in LISTS[kind]]
    assert sorted(filter(str.isdecimal, text)) == sorted(filter(str.isdecimal, "".join(digits)))
    assert not report.counts["line_numbers_left_out"]


ROMAN = ["i", "ii", "iii", "iv", "v", "vi"]
PAGE_NUMBERS = {
    "Roman": ROMAN,
    "Roman capitals": [number.upper() for number in ROMAN],
    "Roman, then Arabic": ["i", "ii", "iii", "1", "2", "3"],
    "Side iv av vi": [f"Side {number} av vi" for number in ROMAN],
    "- iv -": [f"- {number} -" for number in ROMAN],
    "– 4 –": [f"– {number} –" for number in range(1, 7)],
    "4 | Side": [f"{number} | Side" for number in range(1, 7)],
    "4 (6)": [f"{number} (6)" for number in range(1, 7)],
    "a title and a number": [f"Forord {number}" for number in ROMAN],
    "a number and a title": [f"{number} Årsmelding 2020" for number in range(7, 13)],
    "left and right": [
        "NOU 2020: 1",
        "Om vann",
        "NOU 2020: 1",
        "Om vann",
        "NOU 2020: 1",
        "Om vann",
    ],
}


@pytest.mark.parametrize("kind", PAGE_NUMBERS)
@pytest.mark.parametrize("at_foot", [True, False])
def test_page_numbers_and_running_titles_are_left_out_and_counted(
    tmp_path: Path, kind: str, at_foot: bool
) -> None:
    y = 40 if at_foot else 810
    pages = [
        [
            *column([make_sentence(page, line) for line in range(8)], size=10),
            Piece(290, y, PAGE_NUMBERS[kind][page], 9),
        ]
        for page in range(6)
    ]
    text, report = read_text(tmp_path, pages)
    assert text.split() == expected_words(6, 8)
    assert report.counts["page_titles_and_numbers_left_out"] == 6


CONTENT_LINES = {
    "numbers of cases": [f"Sak {number}/2020" for number in (12, 17, 19, 23, 40, 41)],
    "headings of chapters": [f"Kapittel {number}" for number in range(1, 7)],
    "years": [str(year) for year in (1998, 2003, 2014, 2015, 2019, 2021)],
    "letters that are Roman numerals too": ["C", "X", "V", "L", "D", "I"],
}


@pytest.mark.parametrize("kind", CONTENT_LINES)
def test_lines_that_resemble_page_numbers_are_kept(tmp_path: Path, kind: str) -> None:
    titles = CONTENT_LINES[kind]
    pages = [
        [
            Piece(72, 790, titles[page], 16, True),
            *column([make_sentence(page, line) for line in range(8)], size=10),
        ]
        for page in range(6)
    ]
    text, report = read_text(tmp_path, pages)
    assert [paragraph for paragraph in text.split("\n\n") if len(paragraph) < 30] == titles
    assert not report.counts["page_titles_and_numbers_left_out"]


BODY = [
    "Kommunen skal verne vannet og sørge for at alle får rent drikkevann hele året i hele kommunen",
    "også når det er tørt.",
]
HEADINGS = {
    "larger": [
        Piece(72, 760, "Kommunens plan for vern av vann og vassdrag i perioden", 16),
        Piece(72, 741, "2020 til 2030 med kart", 16),
    ],
    "bold and no larger": [
        Piece(
            72,
            760,
            "Kommunens plan for vern av vann og vassdrag og andre saker i perioden for",
            11,
            True,
        ),
        Piece(72, 746, "Troms og Finnmark", 11, True),
    ],
    "numbered": [
        Piece(72, 760, "2.1 Kommunens plan for vern av vann og vassdrag i perioden fram til", 13, True),
        Piece(98, 744, "Troms og Finnmark blir delt", 13, True),
    ],
    "of three lines": [
        Piece(72, 775, "Kommunens plan for vern av vann", 18, True),
        Piece(72, 755, "Troms og Finnmark og andre", 18, True),
        Piece(72, 735, "fylker", 18, True),
    ],
}


@pytest.mark.parametrize("kind", HEADINGS)
def test_a_heading_of_several_lines_is_one_paragraph_of_its_own(tmp_path: Path, kind: str) -> None:
    lines = HEADINGS[kind]
    after = column([make_sentence(0, line) for line in range(6)], top=600, size=10)
    text, _ = read_text(tmp_path, [[*lines, *column(BODY, top=lines[-1].y - 16, size=10), *after]])
    assert text.split("\n\n")[:2] == [" ".join(piece.text for piece in lines), " ".join(BODY)]


def test_a_heading_in_body_type_is_separated_by_its_distance(tmp_path: Path) -> None:
    heading = (
        "Kommunens plan for vern av vann og vassdrag og andre viktige saker i hele perioden fram til neste"
    )
    after = column([make_sentence(0, line) for line in range(6)], top=600, size=10)
    text, _ = read_text(tmp_path, [[*column([heading], size=10), *column(BODY, top=730, size=10), *after]])
    assert text.split("\n\n")[:2] == [heading, " ".join(BODY)]


def test_consecutive_headings_stay_separate(tmp_path: Path) -> None:
    heads = [Piece(72, 760, "2 Vann", 14, True), Piece(72, 740, "2.1 Drikkevann", 12, True)]
    after = column([make_sentence(0, n) for n in range(6)], top=600, size=10)
    text, _ = read_text(tmp_path, [[*heads, *column(BODY, top=720, size=10), *after]])
    assert text.split("\n\n")[:3] == ["2 Vann", "2.1 Drikkevann", " ".join(BODY)]


def test_a_bold_word_does_not_split_a_paragraph(tmp_path: Path) -> None:
    first = [
        Piece(72, 760, "Formål.", 10, True),
        Piece(
            115,
            760,
            "Kommunen skal verne vannet og sørge for at alle får rent drikkevann hele året",
            10,
        ),
    ]
    rest = [
        *column(["og i hele kommunen."], top=746, size=10),
        *column([make_sentence(0, n) for n in range(6)], top=600, size=10),
    ]
    text, _ = read_text(tmp_path, [[*first, *rest]])
    assert text.startswith(
        "Formål. Kommunen skal verne vannet og sørge for at alle får rent drikkevann hele "
        "året og i hele kommunen."
    )


def test_scanned_pages_are_counted(tmp_path: Path) -> None:
    text, report = read_text(tmp_path, [column(BODY), [], []], picture=True)
    assert text == " ".join(BODY)
    assert report.counts["pages_without_text"] == 2
    _, report = read_text(tmp_path, [column(BODY), [], []])
    assert report.counts["pages_without_text"] == 0, "an empty page is not a scan"


def test_all_lines_are_kept_where_most_letters_would_be_lost(tmp_path: Path) -> None:
    """The pages of this form differ in one word, so nearly all lines resemble running titles."""
    form = [
        "Jeg søker om støtte til friluftsliv for barn og unge",
        "Jeg har lest vilkårene",
        "Sted og dato",
    ]
    pages = [[*column([*form, f"Søker: {THEMES[n]}"])] for n in range(5)]
    text, report = read_text(tmp_path, pages)
    assert text.count("Jeg har lest vilkårene") == 5
    assert report.counts["documents_below_min_kept"] == 1
    assert report.counts["page_titles_and_numbers_left_out"] == 0
