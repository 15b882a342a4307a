"""Lines of a PDF that are no text: line numbers in the margins, running titles and page numbers. Used by
reader pdf."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from data_prep.sources.pdf_layout import FIRST_NUMBER, LARGER, LAST_NUMBER, Line, Page, body_size

EDGE_LINES = 3  # at the top and the foot of a page, where running titles are looked for
SAME_PLACE = 3.0  # points
SAME_COLUMN = 2.0
MIN_NUMBERED = 8  # line numbers in a document, counted in lines: 2 numbers at every fifth line stand for 10
_ROMAN = re.compile(r"(?=[ivxlc])(?:c{0,3})(?:xc|xl|l?x{0,3})(?:ix|iv|v?i{0,3})", re.IGNORECASE)
_ROMAN_DIGITS = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
_TOKEN = re.compile(r"\d+|(?<!\w)[ivxlc]+(?!\w)", re.IGNORECASE)
_BARE_NUMBER = re.compile(r"(\d{1,4}|[ivxlc]{1,8})", re.IGNORECASE)
_N = r"(?:\d{1,4}|[ivxlc]{1,8})"
_LABELLED_NUMBER = re.compile(
    rf"(?:side|page|s\.|p\.)\s*{_N}(?:\s*(?:av|of|/)\s*{_N})?|[-–—|•·\[(]\s*{_N}\s*[-–—|•·\])]|{_N}\s*(?:av|of|/)\s*{_N}|"
    rf"[-–—|]\s*(?:side|page)?\s*{_N}\s*[-–—|]|{_N}\s*\|\s*(?:side|page)|(?:side|page)\s*\|\s*{_N}",
    re.IGNORECASE,
)


# --- line numbers -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Number:
    """A number that may count the lines of a page: the line that it stands in, and whether that has text
    beside it."""

    line: Line
    value: int
    left: float
    right: float
    at_end: bool

    @property
    def alone(self) -> bool:
        return self.line.text.isdecimal()


def remove_line_numbers(pages: list[Page]) -> int:
    """Take the numbers that count the lines out of the margins, and return how many they were.

    A column of numbers at one place beside all the text, which go up in equal steps as the lines do, is one
    of line numbers. Numbers of lists, sections and tables stand where other text of the document begins.
    """
    titles = _titles(pages)
    removed = 0
    for at_end in (False, True):
        found = [_numbers_of(page, at_end) for page in pages]
        column = _column([number for numbers in found for number in numbers])
        if column is None:
            continue
        columns = [[n for n in numbers if _in_column(n, column)] for numbers in found]
        if _counts_lines(pages, columns, at_end, titles):
            for page, numbers in zip(pages, columns, strict=True):
                removed += _take_out(page, numbers)
    return removed


def _numbers_of(page: Page, at_end: bool) -> list[_Number]:
    numbers = []
    for line in page.lines:
        pattern = LAST_NUMBER if at_end else FIRST_NUMBER
        match = re.fullmatch(r"(\d{1,6})", line.text) or pattern.search(line.text)
        if not line.placed or match is None or (not at_end and match.start(1)):
            continue
        if line.text.isdecimal():
            left, right = line.left, line.right
        elif at_end:
            left, right = line.last_left, line.right
        else:
            left, right = line.left, line.first_right
        numbers.append(_Number(line, int(match[1]), left, right, at_end))
    return numbers


@dataclass(slots=True)
class _Column:
    """Where numbers are set one below the other: flush left or flush right."""

    flush_left: bool
    x: float


def _column(numbers: list[_Number]) -> _Column | None:
    """Return where most of the numbers stand one below the other."""
    best, most = None, 0
    for flush_left in (True, False):
        edges = [number.left if flush_left else number.right for number in numbers]
        places = Counter(round(x / SAME_PLACE) for x in edges)
        for place, _ in places.most_common(1):
            column = _Column(flush_left, median(x for x in edges if abs(x / SAME_PLACE - place) <= 1.5))
            count = sum(_in_column(number, column) for number in numbers)
            if count > most:
                best, most = column, count
    return best


def _in_column(number: _Number, column: _Column) -> bool:
    return abs((number.left if column.flush_left else number.right) - column.x) <= SAME_COLUMN


def _counts_lines(pages: list[Page], columns: list[list[_Number]], at_end: bool, titles: set[int]) -> bool:
    """Return whether the numbers go up as the lines of their pages do, and stand outside of all text."""
    steps = Counter(step for numbers in columns for step in _steps(numbers))
    if not steps:
        return False
    step, count = steps.most_common(1)[0]
    total = sum(map(len, columns))
    if step < 1 or total * step < MIN_NUMBERED or count < 0.9 * steps.total():
        return False
    num_lines = sum(
        _num_text_lines(page, numbers) for page, numbers in zip(pages, columns, strict=True) if numbers
    )
    if not 0.6 * num_lines <= total * step + (step - 1) * sum(map(bool, columns)) or total * step > 3 * max(
        1, num_lines
    ):
        return False
    return _stands_outside(pages, columns, at_end, titles)


def _steps(numbers: list[_Number]) -> Iterator[int]:
    ordered = sorted(numbers, key=lambda number: -number.line.y)
    for above, below in pairwise(ordered):
        yield below.value - above.value


def _num_text_lines(page: Page, numbers: list[_Number]) -> int:
    alone = sum(number.alone for number in numbers)
    return len({round(line.y) for line in page.lines}) if not alone else len(page.lines) - alone


def _stands_outside(pages: list[Page], columns: list[list[_Number]], at_end: bool, titles: set[int]) -> bool:
    edge = min((n.left for numbers in columns for n in numbers), default=0.0)
    if not at_end:
        edge = max(n.right for numbers in columns for n in numbers)
    beside, among = 0, 0
    for page, numbers in zip(pages, columns, strict=True):
        numbered = {id(number.line): number for number in numbers}
        for line in page.lines:
            number = numbered.get(id(line))
            if not line.placed or (number and number.alone) or (not number and id(line) in titles):
                continue
            if at_end:
                outside = (line.before_last if number else line.right) < edge - 1
            else:
                outside = (line.after_first if number else line.left) > edge + 1
            beside += outside
            among += not outside
    return beside > 0 and among <= 0.02 * beside


def _take_out(page: Page, numbers: list[_Number]) -> int:
    alone = {id(number.line) for number in numbers if number.alone}
    for number in numbers:
        line = number.line
        if number.alone:
            continue
        if number.at_end:
            line.text = LAST_NUMBER.sub("", line.text).rstrip()
            line.right = line.before_last
        else:
            line.text = FIRST_NUMBER.sub("", line.text, count=1)
            line.left = line.after_first
    page.lines = [line for line in page.lines if id(line) not in alone and line.text]
    return len(numbers)


# --- running titles and page numbers ------------------------------------------------------------------------


def _titles(pages: list[Page]) -> set[int]:
    """The lines at the top and foot of pages that come again on others, numbers aside."""
    edges = [
        line
        for page in pages
        for line in _edge_lines([line for line in page.lines if not line.text.isdecimal()])
    ]
    counts = Counter(_masked(line.text) for line in edges)
    return {
        id(line) for line in edges if counts[_masked(line.text)] >= 3 or _BARE_NUMBER.fullmatch(line.text)
    }


@dataclass(slots=True)
class _Edge:
    """A line at the top or foot of a page, and the numbers in it."""

    page: int
    line: Line
    numbers: list[int]


def remove_running_titles(pages: list[Page]) -> int:
    """Leave out page numbers, and lines that stand at the top or foot of most pages, and return how many they
    were.

    A line that comes again with other numbers than the page's own is text: "Sak 12/2020" above each case.
    """
    edges: dict[str, list[_Edge]] = defaultdict(list)
    for number, page in enumerate(pages):
        for line in _edge_lines(page.lines):
            edges[_masked(line.text)].append(_Edge(number, line, list(_values(line.text))))
    body = body_size(line for page in pages for line in page.lines)
    dropped: set[int] = set()
    for group in edges.values():
        if _is_repeated(group, len(pages)) and _counts_pages(group, body):
            dropped.update(id(edge.line) for edge in group)
    dropped.update(_page_numbers(edges, pages, body))
    removed = 0
    for page in pages:
        kept = [line for line in page.lines if id(line) not in dropped]
        removed += len(page.lines) - len(kept)
        page.lines = kept
    return removed


def _edge_lines(lines: list[Line]) -> list[Line]:
    """The lines at the top and foot of a page, in the order of its text and by their places."""
    edge = lines[:EDGE_LINES] + lines[max(EDGE_LINES, len(lines) - EDGE_LINES) :]
    if all(line.placed for line in lines):
        placed = sorted(lines, key=lambda line: -line.y)
        edge += placed[:EDGE_LINES] + placed[-EDGE_LINES:]
    return list({id(line): line for line in edge}.values())


def _is_repeated(group: list[_Edge], num_pages: int) -> bool:
    """Return whether lines come on most pages, most left or right ones, or those of a chapter, at one
    place."""
    numbers = sorted({edge.page for edge in group})
    count = len(numbers)
    if count < 3 or not _at_one_place(group):
        return False
    stretch = numbers[-1] - numbers[0] + 1
    same_side = len({number % 2 for number in numbers}) == 1
    is_placed = group[0].line.placed
    return count > num_pages / 2 or (is_placed and count > 0.8 * (stretch / 2 if same_side else stretch))


def _at_one_place(group: list[_Edge]) -> bool:
    if not all(edge.line.placed for edge in group):
        return True
    middle = median(edge.line.y for edge in group)
    return sum(abs(edge.line.y - middle) <= SAME_PLACE for edge in group) >= 0.7 * len(group)


def _counts_pages(group: list[_Edge], body: float) -> bool:
    """Return whether each number in the lines is the same on all, or goes up with the pages."""
    for place in range(len(group[0].numbers)):
        values = [edge.numbers[place] for edge in group]
        if len(set(values)) == 1:
            continue
        offsets = Counter(value - edge.page for value, edge in zip(values, group, strict=True))
        if offsets.most_common(1)[0][1] < 0.7 * len(group) or _is_large(group, body):
            return False
    return True


def _is_large(group: list[_Edge], body: float) -> bool:
    """Headings of chapters go up with the pages too, where each begins a page."""
    return any(edge.line.placed and edge.line.size > LARGER * body for edge in group)


def _page_numbers(edges: dict[str, list[_Edge]], pages: list[Page], body: float) -> Iterator[int]:
    """Yield lines that hold a page number alone: one that says so, or is of a row that goes up with the
    pages."""
    bare = [
        edge
        for group in edges.values()
        for edge in group
        if edge.numbers and _BARE_NUMBER.fullmatch(edge.line.text)
    ]
    offsets = Counter(edge.numbers[0] - edge.page for edge in bare)
    for edge in bare:
        count = offsets[edge.numbers[0] - edge.page]
        in_row = count >= 3 or (count == 2 and count >= 0.4 * len(bare))
        if _is_large([edge], body):
            continue
        if in_row or (
            len(pages) < 3 and edge.line.text.isdecimal() and _stands_alone(edge.line, pages[edge.page].lines)
        ):
            yield id(edge.line)
    for group in edges.values():
        yield from (
            id(edge.line) for edge in group if edge.numbers and _LABELLED_NUMBER.fullmatch(edge.line.text)
        )


def _stands_alone(line: Line, lines: list[Line]) -> bool:
    """Return whether a number is the first or last line of its page, and apart from the text, as page numbers
    are."""
    others = [other.y for other in lines if other is not line]
    if not others or len(line.text) > 3:
        return False
    if not all(other.placed for other in lines):
        return line in (lines[0], lines[-1])
    return line.y > max(others) + line.size * 1.5 or line.y < min(others) - line.size * 1.5


def _masked(text: str) -> str:
    return _TOKEN.sub(lambda match: "0" if _value(match[0]) is not None else match[0], text)


def _values(text: str) -> Iterator[int]:
    for match in _TOKEN.finditer(text):
        if (value := _value(match[0])) is not None:
            yield value


def _value(token: str) -> int | None:
    """Return what an Arabic or Roman numeral stands for; None for another word. Long digits are cut: they
    count no pages."""
    if token.isdecimal():
        return int(token[:9])
    if not _ROMAN.fullmatch(token) or not (token.islower() or token.isupper()):
        return None
    digits = [_ROMAN_DIGITS[letter] for letter in token.lower()]
    return sum(
        -digit if any(digit < other for other in digits[n + 1 : n + 2]) else digit
        for n, digit in enumerate(digits)
    )
