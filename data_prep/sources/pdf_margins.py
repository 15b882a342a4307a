"""Removal of line numbers, running titles and page numbers from a PDF's text. Used by reader pdf.

A running title is a line that is repeated at the top or foot of pages.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from data_prep.sources.pdf_layout import FIRST_NUMBER, LARGER, LAST_NUMBER, Line, Page, body_size

EDGE_LINES = 3  # number of lines at the top and at the foot of a page that may be running titles
SAME_PLACE = 3.0  # maximum distance, in points, of positions that are treated as the same
SAME_COLUMN = 2.0  # maximum distance, in points, of a number's edge from the edge of its column
# Minimum number of lines that line numbers must stand for. If every fifth line has a number, two
# numbers stand for 10 lines.
MIN_NUMBERED = 8
_ROMAN = re.compile(r"(?=[ivxlc])(?:c{0,3})(?:xc|xl|l?x{0,3})(?:ix|iv|v?i{0,3})", re.IGNORECASE)
_ROMAN_DIGITS = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
_TOKEN = re.compile(r"\d+|(?<!\w)[ivxlc]+(?!\w)", re.IGNORECASE)
_BARE_NUMBER = re.compile(r"(\d{1,4}|[ivxlc]{1,8})", re.IGNORECASE)
_N = r"(?:\d{1,4}|[ivxlc]{1,8})"
_LABELLED_NUMBER = re.compile(
    rf"(?:side|page|s\.|p\.)\s*{_N}(?:\s*(?:av|of|/)\s*{_N})?"
    rf"|[-–—|•·\[(]\s*{_N}\s*[-–—|•·\])]"
    rf"|{_N}\s*(?:av|of|/)\s*{_N}"
    rf"|[-–—|]\s*(?:side|page)?\s*{_N}\s*[-–—|]"
    rf"|{_N}\s*\|\s*(?:side|page)"
    rf"|(?:side|page)\s*\|\s*{_N}",
    re.IGNORECASE,
)


# --- line numbers


@dataclass(slots=True)
class _Number:
    """A number at the beginning or end of a line. The number may be a line number.

    Attributes:
        left, right: the number's edges, in points.
        at_end: true if it is at the end of the line.
    """

    line: Line
    value: int
    left: float
    right: float
    at_end: bool

    @property
    def is_bare(self) -> bool:
        """True if the line contains nothing but the number."""
        return self.line.text.isdecimal()


def remove_line_numbers(pages: list[Page]) -> int:
    """Remove line numbers from the margins of pages; return the number of line numbers removed.

    Line numbers form a column outside the text, and increase in equal steps from line to line. The
    numbers of lists, sections and tables are not line numbers, because they are within the text.
    """
    titles = _find_titles(pages)
    removed = 0
    for at_end in (False, True):
        found = [_find_numbers(page, at_end) for page in pages]
        column = _find_column([number for numbers in found for number in numbers])
        if column is None:
            continue
        columns = [[number for number in numbers if column.contains(number)] for numbers in found]
        if _are_line_numbers(pages, columns, at_end, titles):
            for page, numbers in zip(pages, columns, strict=True):
                removed += _remove_numbers(page, numbers)
    return removed


def _find_numbers(page: Page, at_end: bool) -> list[_Number]:
    numbers = []
    for line in page.lines:
        pattern = LAST_NUMBER if at_end else FIRST_NUMBER
        match = re.fullmatch(r"(\d{1,6})", line.text) or pattern.search(line.text)
        if not line.placed or match is None or (not at_end and match.start(1)):
            continue
        left = line.left
        right = line.right
        if not line.text.isdecimal() and at_end:
            left = line.last_left
        elif not line.text.isdecimal():
            right = line.first_right
        numbers.append(_Number(line, int(match[1]), left, right, at_end))
    return numbers


@dataclass(slots=True)
class _Column:
    """A column of numbers with the same left or right edge.

    Attributes:
        flush_left: true if the numbers' left edges are the same, false if their right edges are.
        x: position of that edge, in points.
    """

    flush_left: bool
    x: float

    def contains(self, number: _Number) -> bool:
        edge = number.left if self.flush_left else number.right
        return abs(edge - self.x) <= SAME_COLUMN


def _find_column(numbers: list[_Number]) -> _Column | None:
    """Return the column that contains the most numbers; None if there are no numbers."""
    best = None
    most = 0
    for flush_left in (True, False):
        edges = [number.left if flush_left else number.right for number in numbers]
        places = Counter(round(x / SAME_PLACE) for x in edges)
        for place, _ in places.most_common(1):
            column = _Column(flush_left, median(x for x in edges if abs(x / SAME_PLACE - place) <= 1.5))
            count = sum(map(column.contains, numbers))
            if count > most:
                best = column
                most = count
    return best


def _are_line_numbers(
    pages: list[Page], columns: list[list[_Number]], at_end: bool, titles: set[int]
) -> bool:
    """Return whether numbers are line numbers.

    Line numbers are outside the text, and increase in equal steps from line to line.

    Args:
        columns: the numbers of each page.
        at_end: true if the numbers are at the ends of lines.
        titles: ids of the lines that may be running titles. These may overlap with the numbers.
    """
    steps = Counter(step for numbers in columns for step in _iter_steps(numbers))
    if not steps:
        return False
    step, count = steps.most_common(1)[0]
    num_counted = sum(map(len, columns)) * step
    if step < 1 or num_counted < MIN_NUMBERED or count < 0.9 * steps.total():
        return False
    num_lines = 0
    for page, numbers in zip(pages, columns, strict=True):
        if numbers:
            num_lines += _count_text_lines(page, numbers)
    num_after_last = (step - 1) * sum(map(bool, columns))  # lines after the pages' last numbers
    if num_counted + num_after_last < 0.6 * num_lines or num_counted > 3 * max(1, num_lines):
        return False
    return _are_outside_text(pages, columns, at_end, titles)


def _iter_steps(numbers: list[_Number]) -> Iterator[int]:
    ordered = sorted(numbers, key=lambda number: -number.line.y)
    for above, below in pairwise(ordered):
        yield below.value - above.value


def _count_text_lines(page: Page, numbers: list[_Number]) -> int:
    num_bare = sum(number.is_bare for number in numbers)
    if num_bare:
        return len(page.lines) - num_bare
    return len({round(line.y) for line in page.lines})


def _are_outside_text(
    pages: list[Page], columns: list[list[_Number]], at_end: bool, titles: set[int]
) -> bool:
    edge = min((n.left for numbers in columns for n in numbers), default=0.0)
    if not at_end:
        edge = max(n.right for numbers in columns for n in numbers)
    num_beside = 0
    num_overlapping = 0
    for page, numbers in zip(pages, columns, strict=True):
        numbered = {id(number.line): number for number in numbers}
        for line in page.lines:
            number = numbered.get(id(line))
            if not line.placed or (number and number.is_bare) or (not number and id(line) in titles):
                continue
            if at_end:
                is_beside = (line.before_last if number else line.right) < edge - 1
            else:
                is_beside = (line.after_first if number else line.left) > edge + 1
            num_beside += is_beside
            num_overlapping += not is_beside
    return num_beside > 0 and num_overlapping <= 0.02 * num_beside


def _remove_numbers(page: Page, numbers: list[_Number]) -> int:
    bare = {id(number.line) for number in numbers if number.is_bare}
    for number in numbers:
        line = number.line
        if number.is_bare:
            continue
        if number.at_end:
            line.text = LAST_NUMBER.sub("", line.text).rstrip()
            line.right = line.before_last
        else:
            line.text = FIRST_NUMBER.sub("", line.text, count=1)
            line.left = line.after_first
    page.lines = [line for line in page.lines if id(line) not in bare and line.text]
    return len(numbers)


# --- running titles and page numbers


def _find_titles(pages: list[Page]) -> set[int]:
    """Return the ids of lines that may be running titles or page numbers.

    Only lines at the top and foot of a page are considered. A line may be a running title if it
    occurs there at least three times; different numbers in it do not matter. It may be a page
    number if it is a Roman numeral. Lines of digits only are never returned, because they may be
    line numbers.
    """
    edges: list[Line] = []
    for page in pages:
        edges += _edge_lines([line for line in page.lines if not line.text.isdecimal()])
    counts = Counter(_mask_numbers(line.text) for line in edges)
    return {
        id(line)
        for line in edges
        if counts[_mask_numbers(line.text)] >= 3 or _BARE_NUMBER.fullmatch(line.text)
    }


@dataclass(slots=True)
class _Edge:
    """A line at the top or foot of a page.

    Attributes:
        page: index of the page.
        numbers: values of the numbers in the line.
    """

    page: int
    line: Line
    numbers: list[int]


def remove_running_titles(pages: list[Page]) -> int:
    """Remove page numbers and running titles from pages; return the number of lines removed.

    A running title is a line that is repeated at the top or foot of pages. A repeated line is kept
    as text if its numbers change, but do not increase with the pages, for example "Sak 12/2020" and
    "Sak 3/2021".
    """
    edges: dict[str, list[_Edge]] = defaultdict(list)
    for number, page in enumerate(pages):
        for line in _edge_lines(page.lines):
            edges[_mask_numbers(line.text)].append(_Edge(number, line, list(_iter_values(line.text))))
    body = body_size(line for page in pages for line in page.lines)
    dropped: set[int] = set()
    for group in edges.values():
        if _is_repeated(group, len(pages)) and _has_page_numbers(group, body):
            dropped.update(id(edge.line) for edge in group)
    dropped.update(_iter_page_numbers(edges, pages, body))
    removed = 0
    for page in pages:
        kept = [line for line in page.lines if id(line) not in dropped]
        removed += len(page.lines) - len(kept)
        page.lines = kept
    return removed


def _edge_lines(lines: list[Line]) -> list[Line]:
    """Return the lines at the top and foot of a page.

    These are the first and last lines in the order of the page's text. If positions are known, the
    highest and lowest lines are added.
    """
    edge = lines[:EDGE_LINES] + lines[max(EDGE_LINES, len(lines) - EDGE_LINES) :]
    if all(line.placed for line in lines):
        placed = sorted(lines, key=lambda line: -line.y)
        edge += placed[:EDGE_LINES] + placed[-EDGE_LINES:]
    return list({id(line): line for line in edge}.values())


def _is_repeated(group: list[_Edge], num_pages: int) -> bool:
    """Return whether a line recurs on at least three pages, often enough and in the same position.

    It must be on more than half of the document's pages, or on more than 80 % of the pages from its
    first page to its last. If it is only on left pages, or only on right pages, the 80 % refer to
    these pages. If positions are unknown, the line must be on more than half of the pages.

    Args:
        group: the occurrences of the line.
    """
    numbers = sorted({edge.page for edge in group})
    count = len(numbers)
    if count < 3 or not _are_in_one_place(group):
        return False
    if count > num_pages / 2:
        return True
    num_possible: float = numbers[-1] - numbers[0] + 1
    if len({number % 2 for number in numbers}) == 1:  # on left pages only, or on right ones
        num_possible /= 2
    return group[0].line.placed and count > 0.8 * num_possible


def _are_in_one_place(group: list[_Edge]) -> bool:
    if not all(edge.line.placed for edge in group):
        return True
    middle = median(edge.line.y for edge in group)
    return sum(abs(edge.line.y - middle) <= SAME_PLACE for edge in group) >= 0.7 * len(group)


def _has_page_numbers(group: list[_Edge], body: float) -> bool:
    """Return whether the numbers in a line that is repeated on several pages may be page numbers.

    Each number must be the same on all these pages, or increase with the pages on at least 70 % of
    them. If a number increases, the line must not have larger letters than the body text.

    Args:
        group: the occurrences of the line.
        body: height of the letters of the body text.
    """
    for index in range(len(group[0].numbers)):
        values = [edge.numbers[index] for edge in group]
        if len(set(values)) == 1:
            continue
        offsets = Counter(value - edge.page for value, edge in zip(values, group, strict=True))
        if offsets.most_common(1)[0][1] < 0.7 * len(group) or _is_large(group, body):
            return False
    return True


def _is_large(group: list[_Edge], body: float) -> bool:
    """Return whether a repeated line has larger letters than the body text on any page.

    It may then be a heading, for example of a chapter.

    Args:
        group: the occurrences of the line.
        body: height of the letters of the body text.
    """
    return any(edge.line.placed and edge.line.size > LARGER * body for edge in group)


def _iter_page_numbers(edges: dict[str, list[_Edge]], pages: list[Page], body: float) -> Iterator[int]:
    """Yield the ids of lines that consist of a page number.

    These are numbers with a label or marks, such as "Side 3" and "- 3 -", and lines with only a
    number that increases with the pages. In a document of one or two pages, a line with only a
    number is enough if it is at a distance from the text.
    """
    with_numbers = [edge for group in edges.values() for edge in group if edge.numbers]
    bare = [edge for edge in with_numbers if _BARE_NUMBER.fullmatch(edge.line.text)]
    offsets = Counter(edge.numbers[0] - edge.page for edge in bare)
    for edge in bare:
        if _is_large([edge], body):
            continue
        count = offsets[edge.numbers[0] - edge.page]
        is_in_sequence = count >= 3 or (count == 2 and count >= 0.4 * len(bare))
        is_decimal_of_few_pages = len(pages) < 3 and edge.line.text.isdecimal()
        if is_in_sequence or (is_decimal_of_few_pages and _is_apart(edge.line, pages[edge.page].lines)):
            yield id(edge.line)
    for edge in with_numbers:
        if _LABELLED_NUMBER.fullmatch(edge.line.text):
            yield id(edge.line)


def _is_apart(line: Line, lines: list[Line]) -> bool:
    """Return whether a line of at most 3 characters is at a distance from all other lines.

    It must be above or below all of them. If positions are unknown, it must be the first or last
    line of the page.
    """
    others = [other.y for other in lines if other is not line]
    if not others or len(line.text) > 3:
        return False
    if not all(other.placed for other in lines):
        return line in (lines[0], lines[-1])
    return line.y > max(others) + line.size * 1.5 or line.y < min(others) - line.size * 1.5


def _mask_numbers(text: str) -> str:
    return _TOKEN.sub(_mask_numeral, text)


def _mask_numeral(match: re.Match[str]) -> str:
    return match[0] if _parse_numeral(match[0]) is None else "0"


def _iter_values(text: str) -> Iterator[int]:
    for match in _TOKEN.finditer(text):
        value = _parse_numeral(match[0])
        if value is not None:
            yield value


def _parse_numeral(token: str) -> int | None:
    """Return the value of an Arabic or Roman numeral; None for any other word.

    Only the first 9 digits are used, because longer numbers are not page numbers.
    """
    if token.isdecimal():
        return int(token[:9])
    if not _ROMAN.fullmatch(token) or not (token.islower() or token.isupper()):
        return None
    digits = [_ROMAN_DIGITS[letter] for letter in token.lower()]
    value = 0
    for digit, next_digit in zip(digits, [*digits[1:], 0], strict=True):
        value += -digit if digit < next_digit else digit
    return value
