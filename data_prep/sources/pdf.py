"""Reader of PDF files with a text layer. Each file is one document.

It needs PDFium, which the extra `prep` installs.

The lines of a paragraph are joined; headings are detected from their font. Words that were
hyphenated at a line break are rejoined. PDFium writes U+FFFE for each hyphen at a line end, also
for a hyphen that must stay, as in "risiko- og" and "ID-porten"; rules decide which hyphens stay.

Line numbers in margins, running titles (repeated headers and footers), page numbers and tables of
contents are removed, and counted. If less than `min_kept` of the pages' letters is then left, all
lines are used instead, and the document is counted. A file without text, such as a scan, is
dropped. In other files, pages with pictures but without text are counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.document import Document, Drop, Report
from data_prep.fields import between, setting
from data_prep.sources import claims
from data_prep.sources.files import find_files, id_from_place, iter_contents
from data_prep.sources.pdf_layout import LARGER, Line, Page, body_size, load_pdfium, read_pages
from data_prep.sources.pdf_margins import remove_line_numbers, remove_running_titles

SUFFIXES = (".pdf",)
UNMAPPED_SHARE = 0.1  # a page is counted as unreadable above this share of unmapped characters
# A new paragraph begins if the distance to the line above is more than this many times the usual
# one.
PARAGRAPH_DISTANCE = 1.5
_HYPHEN = re.compile("((?<!\\w)\\w++|)[\ufffe\u00ad]\\s*(\\w*)")
_COORDINATIONS = ("og", "eller", "samt", "til", "men", "and", "or")
_CONTENTS = re.compile(
    r"(?:innhold|innhald)(?:sfortegnelse|sliste|sfortegning)?|contents|table of contents", re.IGNORECASE
)
_BULLET = re.compile(r"[–•▪◦\-*]\s")
_ITEM = re.compile(r"[–•▪◦\-*]\s|\(?\w{1,3}[.)]\s|\d+(\.\d+)*\.?\s+\S")
_SECTION = re.compile(r"[–•▪◦\-*]\s|\(?\w{1,2}[.)]\s|\d{1,2}(\.\d+)*\.?\s+\S")  # begins a heading of its own
# End of an entry in a table of contents (dots and a page number), matched against the reversed
# line.
_LEADERS_BACKWARDS = re.compile(r"\d*\s*(?:\.\s*){4}")


@dataclass
class Options:
    """Options of reader `pdf`."""

    min_kept: float = setting(
        0.5,
        "minimum share of the pages' letters in the extracted text; below it, all lines are read, and the "
        "document is counted",
    )

    def __post_init__(self) -> None:
        between("options.min_kept", self.min_kept, 0, 1)


def list_files(source: SourceConfig) -> list[Path]:
    load_pdfium()
    claims.parse_options(source, Options)
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    min_kept = claims.parse_options(source, Options).min_kept
    for place, raw in iter_contents(name, source, report, paths, SUFFIXES, ("a PDF",)):
        with report.quarantining(place):
            pages, about = read_pages(raw)
            document_id = id_from_place(place)
            if not any(page.lines for page in pages):
                detail = f"none of its {len(pages)} pages has text; it may be a scan"
                report.drops.append(Drop(document_id, name, "no_text_layer", detail))
                continue
            yield Document(
                id=document_id,
                text=_extract_text(pages, min_kept, report),
                title=about.get("Title", ""),
                source=name,
                license=source.license,
                group=document_id,
                date=claims.parse_date(_pdf_date(about.get("CreationDate", ""))),
            )


def _extract_text(pages: list[Page], min_kept: float, report: Report) -> str:
    """Return the running text of a PDF's pages, and count in the report the lines left out.

    If the running text has less than `min_kept` of the pages' letters, all lines are returned.
    """
    unchanged_pages = [Page([*page.lines]) for page in pages]
    num_letters = sum(map(str.isalpha, "".join(line.text for page in pages for line in page.lines)))
    report.counts["pages_without_text"] += sum(page.is_picture for page in pages)
    report.counts["pages_with_unreadable_letters"] += sum(_is_unreadable(page) for page in pages)
    report.counts["line_numbers_left_out"] += remove_line_numbers(pages)
    running = extract_running_text(pages)
    if sum(map(str.isalpha, running.text)) < min_kept * num_letters:
        report.counts["documents_below_min_kept"] += 1
        return _join_lines(unchanged_pages)
    report.counts["page_titles_and_numbers_left_out"] += running.num_titles
    report.counts["lines_of_contents_left_out"] += running.num_contents
    return running.text


def _is_unreadable(page: Page) -> bool:
    return page.unmapped > UNMAPPED_SHARE * (page.unmapped + sum(len(line.text) for line in page.lines))


@dataclass(slots=True)
class RunningText:
    """The running text of a document.

    Attributes:
        num_titles: number of page numbers and running titles (repeated headers and footers) left
            out.
        num_contents: number of lines of tables of contents left out.
    """

    text: str
    num_titles: int
    num_contents: int


def extract_running_text(pages: list[Page]) -> RunningText:
    """Return the text without page headers and footers, page numbers and tables of contents.

    The lines left out are also removed from `pages`.
    """
    num_titles = remove_running_titles(pages)
    num_contents = _remove_contents(pages)
    return RunningText(_join_lines(pages), num_titles, num_contents)


def _remove_contents(pages: list[Page]) -> int:
    """Remove tables of contents from pages; return the number of lines removed."""
    lines = [line for page in pages for line in page.lines]
    is_entry = [bool(_LEADERS_BACKWARDS.match(line.text[::-1])) for line in lines]
    removed: set[int] = set()
    for number, line in enumerate(lines):
        is_heading = _CONTENTS.fullmatch(line.text) and any(is_entry[number + 1 : number + 3])
        if is_entry[number] or is_heading:
            removed.add(id(line))
    for page in pages:
        page.lines = [line for line in page.lines if id(line) not in removed]
    return len(removed)


@dataclass(slots=True)
class _Shape:
    """Typical measures of the lines of a document, in points except for `full`.

    Attributes:
        size: height of the letters of the body text.
        pitch: distance of consecutive lines.
        full: minimum number of characters of a full line.
        width: width of a long line.
        right: right edge of a long line.
    """

    size: float
    pitch: float
    full: float
    width: float
    right: float

    @classmethod
    def measure(cls, pages: list[Page]) -> _Shape:
        lines = [line for page in pages for line in page.lines]
        if not lines:
            return cls(size=0.0, pitch=0.0, full=0, width=0, right=0)
        lengths = sorted(len(line.text) for line in lines)
        widths = sorted(line.right - line.left for line in lines)
        rights = sorted(line.right for line in lines)
        steps = Counter[float]()
        for page in pages:
            for above, below in pairwise(page.lines):
                if _is_below(above, below):
                    steps[round(above.y - below.y)] += 1
        eighty = int(len(lines) * 0.8)
        return cls(
            size=body_size(lines),
            pitch=steps.most_common(1)[0][0] if steps else 0.0,
            full=lengths[eighty] * 0.75,
            width=widths[eighty],
            right=rights[eighty],
        )

    def is_full(self, above: Line, line: Line) -> bool:
        """Return whether the line above is full.

        A full line has at least `self.full` characters. If positions are known, there must also be
        no room on it for the first word of the next line.
        """
        if len(above.text) < self.full or not (above.placed and line.placed and self.width):
            return len(above.text) >= self.full
        word_width = len(line.text.split()[0]) * (line.right - line.left) / len(line.text)
        if above.right - above.left + word_width > 0.97 * self.width:
            return True
        return above.right + word_width > self.right

    def is_heading(self, line: Line) -> bool:
        """Return whether a line looks like a heading: larger than the text, or bold and not smaller."""
        if not line.placed or not self.size:
            return False
        return self.is_large(line) or (line.bold and line.size > 0.95 * self.size)

    def is_large(self, line: Line) -> bool:
        return line.size > LARGER * self.size

    def separates(self, above: Line, line: Line) -> bool:
        """Return whether a line begins a new paragraph, by its font or its distance to `above`."""
        if not (above.placed and line.placed):
            return False
        is_heading = self.is_heading(line)
        is_below_heading = self.is_heading(above)
        has_other_size = abs(above.size - line.size) > 0.05 * line.size
        if is_below_heading != is_heading or (is_below_heading and has_other_size):
            return not line.text[:1].islower() or self.is_large(line) or self.is_large(above)
        if not _is_below(above, line) or not self.pitch:
            return False
        return above.y - line.y > PARAGRAPH_DISTANCE * max(self.pitch, line.size)

    def continues_heading(self, above: Line, line: Line) -> bool:
        """Return whether a line continues the heading that is in the line above.

        Both lines must look like headings, and the line must not begin a new section or paragraph.
        In addition, the letters of both must be much larger than the body text, or the line above
        must be full.
        """
        if not self.is_heading(above) or not self.is_heading(line):
            return False
        if _SECTION.match(line.text) or self.separates(above, line):
            return False
        if min(above.size, line.size) > 1.15 * self.size and _is_below(above, line):
            return True
        return self.is_full(above, line)


def _is_below(above: Line, line: Line) -> bool:
    return above.placed and line.placed and 0 < above.y - line.y < 6 * max(above.size, line.size)


def _join_lines(pages: list[Page]) -> str:
    """Join the lines of all pages to paragraphs, and return them as one text.

    A line continues the paragraph of the line above in these cases:
    - the line above ends within a word;
    - the line above is full and does not end a sentence, and the line does not begin a list item;
    - the line begins in lower case or with punctuation, and the line above does not end a sentence;
    - both lines are parts of one heading.

    In the second and third case, the font and the distance of the lines, if known, must not show
    that a new paragraph begins.
    """
    shape = _Shape.measure(pages)
    paragraphs: list[list[str]] = []  # the pieces of each paragraph
    above = Line("")
    for line in (line for page in pages for line in page.lines):
        is_in_word = above.text.endswith(("\ufffe", "\u00ad"))
        continues = _continues_sentence(above, line, shape) and not shape.separates(above, line)
        if is_in_word or continues or shape.continues_heading(above, line):
            paragraphs[-1].append(line.text if is_in_word else f" {line.text}")
        else:
            paragraphs.append([line.text])
        above = line
    return _join_paragraphs(["".join(pieces) for pieces in paragraphs])


def _continues_sentence(above: Line, line: Line, shape: _Shape) -> bool:
    if not above.text:
        return False
    is_open = shape.is_full(above, line) and not above.text.endswith((".", "!", "?", ":"))
    if is_open and not _ITEM.match(line.text):
        return True
    starts_within = line.text[:1].islower() or line.text[:1] in ",.;)"
    return starts_within and above.text[-1] not in ".!?:"


def _join_paragraphs(paragraphs: list[str]) -> str:
    """Join paragraphs to one text, and rejoin hyphenated words.

    Blank lines separate the paragraphs, except between list items with bullets.
    """
    text = ""
    was_item = False
    for paragraph in paragraphs:
        is_item = bool(_BULLET.match(paragraph))
        if text:
            text += "\n" if is_item and was_item else "\n\n"
        text += _HYPHEN.sub(_join_word, paragraph)
        was_item = is_item
    return text


def _join_word(match: re.Match[str]) -> str:
    """Rejoin a word that was hyphenated at a line break; keep a hyphen that is part of the word."""
    before = match[1]
    after = match[2]
    if after in _COORDINATIONS:
        return f"{before}- {after}"
    has_hyphen_before = not before or before[-1].isdigit() or before.isupper()
    has_hyphen_after = after[:1].isupper() or after[:1].isdigit()
    if has_hyphen_before or has_hyphen_after:
        return f"{before}-{after}"
    return before + after


def _pdf_date(date: str) -> str:
    return re.sub(r"^D:(\d{4})(\d{2})(\d{2}).*", r"\1-\2-\3", date)
