"""Detection of code and URLs in a text. Stage normalise does not change them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

Span = tuple[int, int]

_OPENING = re.compile(r"(?<!\w)`+|://|www\.")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{1,20}\Z")
# A code span is on one line, and closes with as many backticks as it opens with.
_CODE = re.compile(r"(`{1,20}+)(?!`)[^\n]{1,2000}?(?<!`)\1(?!`)")
# The rest of a URL, up to white space or a quotation mark.
_URL = re.compile(r"(?:(?!&(?:[lg]t|quot|nbsp|[rl]aquo|[rl]dquo);)[^\s<>\"«»“”`]){1,4000}")
_NOT_IN_URL = ".,;:!?)]}'’…*_\u00ad\u200b\u2060\ufeff"  # a URL does not end in these characters
_FENCE = re.compile(r"[ \t]*(`{3,}(?![^\n]*`)|~{3,})")
_INDENTED = re.compile(r"(?: {4}|\t)[ \t]*\S")
_CODE_SIGN = re.compile(r"[{}<>\\]|&#?\w+;|\s[=:!+*-]?=\s|\w\(\S*\)|\)\s*;$|^\s*(?:[$#>]\s|//|/\*|\w+=\S)")
_BLOCK_SIGNS = ("```", "~~~", "\n    ", "\n\t")
_INLINE_SIGNS = ("`", "://", "www.")


def find_spans(text: str) -> list[Span]:
    """Return the spans of code (fenced, indented or in backticks) and URLs in `text`, in order."""
    has_inline = any(sign in text for sign in _INLINE_SIGNS)
    has_blocks = text.startswith(("    ", "\t")) or any(sign in text for sign in _BLOCK_SIGNS)
    blocks = list(_iter_blocks(text)) if has_blocks else []
    if not has_inline:
        return blocks
    found: list[Span] = []
    start = 0
    for block in [*blocks, (len(text), len(text))]:
        found += _iter_inline(text, start, block[0])
        found.append(block)
        start = block[1]
    return found[:-1]


def split(text: str) -> list[str]:
    """Divide `text` into pieces.

    Pieces with even indices are running text, which may be empty. Pieces with odd indices are code
    or URLs.
    """
    found = find_spans(text)
    if not found:
        return [text]
    edges = [0, *(edge for span in found for edge in span), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def _iter_inline(text: str, start: int, end: int) -> Iterator[Span]:
    """Yield the spans of URLs and of code in backticks, between `start` and `end`."""
    last_end = start  # end of the last span
    while opening := _OPENING.search(text, start, end):
        start = opening.end()
        find = _find_code if opening[0][0] == "`" else _find_url
        span = find(opening, end)
        if span and span[0] >= last_end:
            yield span
            start = span[1]
            last_end = start


def _find_code(opening: re.Match[str], end: int) -> Span | None:
    match = _CODE.match(opening.string, opening.start(), end)
    return match.span() if match else None


def _find_url(opening: re.Match[str], end: int) -> Span | None:
    text = opening.string
    start = opening.start()
    if opening[0] == "://":
        scheme = _SCHEME.search(text[max(0, start - 21) : start])
        if scheme is None:
            return None
        start -= len(scheme[0])
    elif text[start - 1 : start].isalnum():
        return None
    body = _URL.match(text, opening.end(), end)
    if body is None:
        return None
    return start, opening.end() + len(body[0].rstrip(_NOT_IN_URL))


def _iter_blocks(text: str) -> Iterator[Span]:
    """Yield the spans of fenced code, and of indented paragraphs that look like code.

    A span consists of whole lines, without the line end of the last line.
    """
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    may_tildes_close = True  # False after an unclosed fence of tildes, as no later one is closed
    number = 0
    while number < len(lines):
        end = number
        fence = _FENCE.match(lines[number])
        if fence and (fence[1][0] == "`" or may_tildes_close):
            end = _end_of_fence(lines, number, fence[1])
            may_tildes_close = end > number
        elif _INDENTED.match(lines[number]) and (not number or not lines[number - 1].strip()):
            end = _end_of_indented(lines, number)
        if end > number:
            yield starts[number], starts[end] - 1
        number = max(end, number + 1)


def _end_of_fence(lines: list[str], first: int, mark: str) -> int:
    """Return the index of the line after a block of code between fences (lines of ``` or ~~~).

    Without a closing fence, a fence of backticks makes code of all lines below it. A fence of tildes
    then begins no code, and `first` is returned.

    Args:
        first: index of the line with the opening fence.
        mark: the opening fence, such as "```".
    """
    for number in range(first + 1, len(lines)):
        line = lines[number].strip()
        if line.startswith(mark) and not line.strip(mark[0]):
            return number + 1
    return len(lines) if mark[0] == "`" else first


def _end_of_indented(lines: list[str], first: int) -> int:
    """Return the index of the line after an indented paragraph of code.

    Return `first` if the paragraph is not code.

    Args:
        first: index of the paragraph's first line.
    """
    end = first
    while end < len(lines) and lines[end].strip():
        if not _INDENTED.match(lines[end]):
            return first
        end += 1
    signs = sum(_CODE_SIGN.search(line) is not None for line in lines[first:end])
    return end if 2 * signs >= end - first else first
