"""Lines of a PDF with their positions and fonts, read by PDFium. Used by reader pdf."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from data_prep.document import Unreadable
from data_prep.user_error import UserError

# A line is treated as a heading if its letters are more than this many times as high as the body
# text's.
LARGER = 1.08
_BOLD = re.compile(r"bold|black|heavy|semib|demi|-bd|,bd", re.IGNORECASE)
_LINES = re.compile("[^\\r\\n\ufffe]+\ufffe?")
FIRST_NUMBER = re.compile(r"\s*(\d{1,6})(?=\s|$)\s*")
LAST_NUMBER = re.compile(r"(?<=\s)(\d{1,6})\s*$")


@dataclass(slots=True)
class Line:
    """A line of text, with its position on the page and its font if PDFium reports them.

    Positions and sizes are in points.

    Attributes:
        placed: true if the position is known.
        left, right, y: the line's left edge, right edge and bottom.
        size: height of the line's letters.
        bold: true if the font is bold.
        first_right: right edge of a number that begins the line.
        after_first: left edge of the text after that number.
        last_left: left edge of a number that ends the line.
        before_last: right edge of the text before that number.
    """

    text: str
    placed: bool = False
    left: float = 0.0
    right: float = 0.0
    y: float = 0.0
    size: float = 0.0
    bold: bool = False
    first_right: float = 0.0
    after_first: float = 0.0
    last_left: float = 0.0
    before_last: float = 0.0


@dataclass(slots=True)
class Page:
    """The lines of a page.

    Attributes:
        unmapped: number of characters that the file does not map to Unicode.
        is_picture: true if the page has pictures but no text, as in a scan.
    """

    lines: list[Line] = field(default_factory=list)
    unmapped: int = 0
    is_picture: bool = False


def read_pages(raw: bytes) -> tuple[list[Page], dict[str, str]]:
    """Return the pages of a PDF file, and its metadata.

    Raises:
        Unreadable: PDFium cannot read the file; it is broken, or not a PDF, or needs a password.
        UserError: PDFium is not installed.
    """
    pdfium = load_pdfium()
    try:
        document = pdfium.PdfDocument(raw)
        try:
            pages = [_read_page(pdfium, document[number]) for number in range(len(document))]
            return pages, document.get_metadata_dict()
        finally:
            document.close()
    except pdfium.PdfiumError as fault:
        raise Unreadable(f"not a readable PDF: {fault}") from None


def load_pdfium() -> Any:
    try:
        return importlib.import_module("pypdfium2")
    except ImportError as fault:
        raise UserError(
            f"reader pdf: pypdfium2 cannot be imported ({fault}); run pip install 'finetune[prep]'"
        ) from None


def _read_page(pdfium: Any, page: Any) -> Page:
    text_page = page.get_textpage()
    text: str = text_page.get_text_range()
    letters = _Letters(pdfium, text_page)
    lines = [_read_line(match, text, letters) for match in _LINES.finditer(text) if match[0].strip()]
    is_picture = not lines and any(True for _ in page.get_objects(filter=[pdfium.raw.FPDF_PAGEOBJ_IMAGE]))
    unmapped = max(0, text_page.count_chars() - len(text)) + text.count("\ufffd")
    return Page(lines, unmapped, is_picture)


class _Letters:
    """The position of each letter of a page, and whether it is bold.

    A letter is given by its index in the page's text.
    """

    def __init__(self, pdfium: Any, text_page: Any) -> None:
        self._raw = pdfium.raw
        self._page = text_page

    def box(self, number: int) -> tuple[float, float, float, float] | None:
        """Return left, bottom, right and top of a letter, in points; None if it has no position."""
        index = self._raw.FPDFText_GetCharIndexFromTextIndex(self._page, number)
        if index < 0:
            return None
        left, bottom, right, top = self._page.get_charbox(index, loose=True)
        if right <= left and top <= bottom:
            return None
        return (left, bottom, right, top)

    def is_bold(self, number: int) -> bool:
        index = self._raw.FPDFText_GetCharIndexFromTextIndex(self._page, number)
        name = _font_name(self._raw, self._page, index) if index >= 0 else ""
        return _BOLD.search(name) is not None or self._raw.FPDFText_GetFontWeight(self._page, index) >= 600


def _font_name(raw: Any, page: Any, index: int) -> str:
    ctypes = importlib.import_module("ctypes")
    buffer = ctypes.create_string_buffer(128)
    raw.FPDFText_GetFontInfo(page, index, buffer, 128, None)
    name: bytes = buffer.value
    return name.decode("utf-8", errors="replace")


def _read_line(match: re.Match[str], text: str, letters: _Letters) -> Line:
    line = Line(match[0].strip())
    start = match.start() + len(match[0]) - len(match[0].lstrip())
    end = match.start() + len(match[0].rstrip()) - 1
    while start < end and text[end] in "\ufffe\u00ad":
        end -= 1
    middle = next((n for n in range((start + end) // 2, end) if not text[n].isspace()), end)
    first_box = letters.box(start)
    last_box = letters.box(end)
    middle_box = letters.box(middle)
    if first_box is None or last_box is None or middle_box is None:
        return line
    line.placed = True
    line.left = first_box[0]
    line.right = last_box[2]
    line.y = min(first_box[1], last_box[1])
    line.size = median([box[3] - box[1] for box in (first_box, middle_box, last_box)])
    line.bold = all(letters.is_bold(number) for number in (start, middle, end))
    _set_word_edges(line, match[0].strip(), start, letters)
    return line


def _set_word_edges(line: Line, text: str, start: int, letters: _Letters) -> None:
    """Set the edges of a number at the line's beginning or end, and of the text next to it.

    Args:
        text: the line's text, without white space around it.
        start: index of the line's first letter in the page's text.
    """
    first = FIRST_NUMBER.match(text)
    if first:
        end = letters.box(start + first.end(1) - 1)
        after = letters.box(start + first.end()) if first.end() < len(text) else None
        line.first_right = end[2] if end else line.left
        line.after_first = after[0] if after else line.right
    last = LAST_NUMBER.search(text)
    if last:
        begin = letters.box(start + last.start(1))
        before = letters.box(start + len(text[: last.start(1)].rstrip()) - 1)
        line.last_left = begin[0] if begin else line.right
        line.before_last = before[2] if before else line.left


def body_size(lines: Iterable[Line]) -> float:
    """Return the most frequent height of letters, in points; 0 if no line has a position."""
    sizes: Counter[float] = Counter()
    for line in lines:
        if line.placed:
            sizes[round(line.size, 1)] += len(line.text)
    return sizes.most_common(1)[0][0] if sizes else 0.0
