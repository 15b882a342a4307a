"""PDF files with a text layer, by PDFium (extra `prep`): one document a file.

Words that a line break parted are joined: PDFium writes U+FFFE for their hyphen, and for one that belongs
there too, as in "risiko- og" or "ID-porten". Line numbers in the margins, lines that stand at the top or foot
of most pages (titles, page numbers) and tables of contents are left out and counted, and lines of one
paragraph are joined; headings are told from it by their type. The letters kept are measured against those of
the pages: below `min_kept` all lines are read, and the document is counted. A file without text, a scan, is
dropped; pages without text among others are counted.
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
from data_prep.sources.files import contents, find, stem
from data_prep.sources.pdf_layout import LARGER, Line, Page, body_size, load_pdfium, read_pages
from data_prep.sources.pdf_margins import remove_line_numbers, remove_running_titles

SUFFIXES = (".pdf",)
UNMAPPED_SHARE = 0.1  # of a page's characters, from which on it counts as one without readable letters
FAR = 1.5  # times the usual distance of lines: a new paragraph
_HYPHEN = re.compile("((?<!\\w)\\w++|)[\ufffe\u00ad]\\s*(\\w*)")
_COORDINATIONS = ("og", "eller", "samt", "til", "men", "and", "or")
_CONTENTS = re.compile(
    r"(?:innhold|innhald)(?:sfortegnelse|sliste|sfortegning)?|contents|table of contents", re.IGNORECASE
)
_BULLET = re.compile(r"[–•▪◦\-*]\s")
_ITEM = re.compile(r"[–•▪◦\-*]\s|\(?\w{1,3}[.)]\s|\d+(\.\d+)*\.?\s+\S")
_SECTION = re.compile(r"[–•▪◦\-*]\s|\(?\w{1,2}[.)]\s|\d{1,2}(\.\d+)*\.?\s+\S")  # begins another heading
_LEADERS_BACKWARDS = re.compile(r"\d*\s*(?:\.\s*){4}")  # of a table of contents, from a line's end


@dataclass
class Options:
    """Options of PDF files."""

    min_kept: float = setting(
        0.5,
        "minimum share of the pages' letters in the extracted text; below it, all lines are read, and the "
        "document is counted",
    )

    def __post_init__(self) -> None:
        between("options.min_kept", self.min_kept, 0, 1)


def files(source: SourceConfig) -> list[Path]:
    load_pdfium()
    claims.options(source, Options)
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    min_kept = claims.options(source, Options).min_kept
    for where, raw in contents(name, source, report, paths, SUFFIXES, ("a PDF",)):
        with report.quarantining(where):
            pages, about = read_pages(raw)
            place = stem(where)
            if not any(page.lines for page in pages):
                report.drops.append(
                    Drop(place, name, "no_text_layer", f"{len(pages)} pages without text: a scan?")
                )
                continue
            yield Document(
                id=place,
                text=_measured_text(pages, min_kept, report),
                title=about.get("Title", ""),
                source=name,
                license=source.license,
                group=place,
                date=claims.date(_pdf_date(about.get("CreationDate", ""))),
            )


def _measured_text(pages: list[Page], min_kept: float, report: Report) -> str:
    """Return the running text, or all lines where that would keep too few of the pages' letters."""
    everything = [Page([*page.lines]) for page in pages]
    own = sum(map(str.isalpha, "".join(line.text for page in pages for line in page.lines)))
    report.counts["pages_without_text"] += sum(page.is_picture for page in pages)
    report.counts["pages_with_unreadable_letters"] += sum(_is_unreadable(page) for page in pages)
    report.counts["line_numbers_left_out"] += remove_line_numbers(pages)
    text, left_out = _running_text(pages)
    if sum(map(str.isalpha, text)) < min_kept * own:
        report.counts["documents_below_min_kept"] += 1
        return _paragraphs(everything)
    report.counts["page_titles_and_numbers_left_out"] += left_out.titles
    report.counts["lines_of_contents_left_out"] += left_out.contents
    return text


def _is_unreadable(page: Page) -> bool:
    return page.unmapped > UNMAPPED_SHARE * (page.unmapped + sum(len(line.text) for line in page.lines))


@dataclass(slots=True)
class _LeftOut:
    """Lines that are no running text."""

    titles: int = 0
    contents: int = 0


def running_text(pages: list[Page]) -> str:
    """Return the paragraphs of all pages, without what is repeated at their edges, and without tables of
    contents."""
    return _running_text(pages)[0]


def _running_text(pages: list[Page]) -> tuple[str, _LeftOut]:
    titles = remove_running_titles(pages)
    lines = [line.text for page in pages for line in page.lines]
    listed = [bool(_LEADERS_BACKWARDS.match(line[::-1])) for line in lines]
    headed = [_CONTENTS.fullmatch(line) and any(listed[n + 1 : n + 3]) for n, line in enumerate(lines)]
    number = 0
    for page in pages:
        first, number = number, number + len(page.lines)
        page.lines = [
            line for n, line in enumerate(page.lines, start=first) if not listed[n] and not headed[n]
        ]
    contents_lines = len(lines) - sum(len(page.lines) for page in pages)
    return _paragraphs(pages), _LeftOut(titles, contents_lines)


@dataclass(slots=True)
class _Shape:
    """What lines of a document are like: the height of its letters, the distance of its lines, and how long a
    full one is."""

    size: float
    pitch: float
    full: float
    width: float
    right: float

    @classmethod
    def of(cls, pages: list[Page]) -> _Shape:
        lines = [line for page in pages for line in page.lines]
        lengths = sorted(len(line.text) for line in lines)
        widths = sorted(line.right - line.left for line in lines)
        rights = sorted(line.right for line in lines)
        steps = [round(a.y - b.y) for page in pages for a, b in pairwise(page.lines) if _is_below(a, b)]
        eighty = int(len(lines) * 0.8)
        return cls(
            size=body_size(lines),
            pitch=Counter(steps).most_common(1)[0][0] if steps else 0.0,
            full=lengths[eighty] * 0.75 if lines else 0,
            width=widths[eighty] if lines else 0,
            right=rights[eighty] if lines else 0,
        )

    def is_full(self, above: Line, line: Line) -> bool:
        """Return whether a line is about as long as lines get: where places are known, whether the next word
        had no room in it."""
        if len(above.text) < self.full or not (above.placed and line.placed and self.width):
            return len(above.text) >= self.full
        word = len(line.text.split()[0]) * (line.right - line.left) / len(line.text)
        return above.right - above.left + word > 0.97 * self.width or above.right + word > self.right

    def is_heading(self, line: Line) -> bool:
        """Return whether a line is set as headings are: larger than the text, or bold and no smaller."""
        if not line.placed or not self.size:
            return False
        return line.size > LARGER * self.size or (line.bold and line.size > 0.95 * self.size)

    def parts(self, above: Line, line: Line) -> bool:
        """Return whether type or distance parts a line from the one above it."""
        if not (above.placed and line.placed):
            return False
        heads, is_heading = self.is_heading(above), self.is_heading(line)
        if heads != is_heading or (heads and abs(above.size - line.size) > 0.05 * line.size):
            return (
                not line.text[:1].islower()
                or line.size > LARGER * self.size
                or above.size > LARGER * self.size
            )
        return (
            _is_below(above, line)
            and bool(self.pitch)
            and above.y - line.y > FAR * max(self.pitch, line.size)
        )

    def goes_on(self, above: Line, line: Line) -> bool:
        """Return whether a heading goes on in the next line: its size shows it, or its line has no room for
        the next word."""
        if (
            not (self.is_heading(above) and self.is_heading(line))
            or _SECTION.match(line.text)
            or self.parts(above, line)
        ):
            return False
        if min(above.size, line.size) > 1.15 * self.size and _is_below(above, line):
            return True
        return self.is_full(above, line)


def _is_below(above: Line, line: Line) -> bool:
    return above.placed and line.placed and 0 < above.y - line.y < 6 * max(above.size, line.size)


def _paragraphs(pages: list[Page]) -> str:
    """A line goes on in the next if it is about as long as lines get, or ends inside a word, and the next
    does not open anew.

    Type and distance, where they are known, part lines and join those of a heading.
    """
    shape = _Shape.of(pages)
    paragraphs: list[list[str]] = []  # of pieces each
    above = Line("")
    for line in (line for page in pages for line in page.lines):
        text = line.text
        before = above.text
        parted = before.endswith(("\ufffe", "\u00ad"))
        starts_low = text[:1].islower() or text[:1] in ",.;)"
        open_end = shape.is_full(above, line) and not before.endswith((".", "!", "?", ":"))
        joins = before and ((open_end and not _ITEM.match(text)) or (starts_low and before[-1] not in ".!?:"))
        if parted or (joins and not shape.parts(above, line)) or shape.goes_on(above, line):
            paragraphs[-1].append(text if parted else f" {text}")
        else:
            paragraphs.append([text])
        above = line
    return _joined_paragraphs(paragraphs)


def _joined_paragraphs(paragraphs: list[list[str]]) -> str:
    text = ""
    was_item = False
    for paragraph in map("".join, paragraphs):
        is_item = bool(_BULLET.match(paragraph))
        text += ("" if not text else "\n" if is_item and was_item else "\n\n") + _HYPHEN.sub(
            _joined, paragraph
        )
        was_item = is_item
    return text


def _joined(match: re.Match[str]) -> str:
    """The two halves of a word that a line break parted."""
    before, after = match[1], match[2]
    if after in _COORDINATIONS:
        return f"{before}- {after}"
    keeps = (
        not before or before[-1].isdigit() or before.isupper() or after[:1].isupper() or after[:1].isdigit()
    )
    return f"{before}-{after}" if keeps else before + after


def _pdf_date(date: str) -> str:
    return re.sub(r"^D:(\d{4})(\d{2})(\d{2}).*", r"\1-\2-\3", date)
