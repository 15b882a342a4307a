"""Find the parts of a text that mean what is written in them, sign by sign: code and URLs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

Span = tuple[int, int]

# A code span of Markdown, on one line, closed by as many marks as opened it; a URL up to what ends one in running text.
_INLINE = re.compile(
    r"(?<!`)(`{1,20}+)(?!`)[^\n]{1,2000}?(?<!`)\1(?!`)"
    r"|(?:\b[a-zA-Z][a-zA-Z0-9+.-]{1,20}://|\bwww\.)(?:(?!&(?:[lg]t|quot|nbsp|[rl]aquo|[rl]dquo);)[^\s<>\"«»“”`]){1,4000}"
)
_NOT_IN_URL = ".,;:!?)]}'’…*_\u00ad\u200b\u2060\ufeff"  # at its end
_FENCE = re.compile(r"[ \t]*(`{3,}(?![^\n]*`)|~{3,})")
_INDENTED = re.compile(r"(?: {4}|\t)[ \t]*\S")
_CODE_SIGN = re.compile(r"[{}<>\\]|&#?\w+;|\s[=:!+*-]?=\s|\w\(\S*\)|\)\s*;$|^\s*(?:[$#>]\s|//|/\*|\w+=\S)")
_ANY_SIGN = re.compile(r"`|~~~|://|www\.|(?:\A|\n)(?: {4}|\t)")


def spans(text: str) -> list[Span]:
    """Return the parts of `text` that are code or URLs, in order: fenced and indented blocks, code spans, URLs."""
    if not _ANY_SIGN.search(text):
        return []
    found: list[Span] = []
    blocks = list(_blocks(text))
    edges = [0, *(edge for block in blocks for edge in block), len(text)]
    for number, (start, end) in enumerate(pairwise(edges)):
        if number % 2:
            found.append((start, end))
        else:
            found += _inline(text, start, end)
    return found


def split(text: str) -> list[str]:
    """Return `text` in pieces: running text, code or URL, running text, and so on, by turns."""
    edges = [0, *(edge for span in spans(text) for edge in span), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def _inline(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _INLINE.finditer(text, start, end):
        whole = match[0]
        is_code = match[1] is not None
        yield match.start(), match.start() + len(whole if is_code else whole.rstrip(_NOT_IN_URL))


def _blocks(text: str) -> Iterator[Span]:
    """Find fenced code, and indented paragraphs that look like code, whole lines without the last line end."""
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    tildes_close = True
    number = 0
    while number < len(lines):
        end = number
        fence = _FENCE.match(lines[number])
        if fence and (fence[1][0] == "`" or tildes_close):
            end = _end_of_fence(lines, number, fence[1])
            tildes_close = end > number
        elif _INDENTED.match(lines[number]) and (not number or not lines[number - 1].strip()):
            end = _end_of_indented(lines, number)
        if end > number:
            yield starts[number], starts[end] - 1
        number = max(end, number + 1)


def _end_of_fence(lines: list[str], first: int, mark: str) -> int:
    """Return the number of the line behind a fence. One of backticks that never closes runs to the end, another is none."""
    for number in range(first + 1, len(lines)):
        line = lines[number].strip()
        if line.startswith(mark) and not line.strip(mark[0]):
            return number + 1
    return len(lines) if mark[0] == "`" else first


def _end_of_indented(lines: list[str], first: int) -> int:
    """Return the number of the line behind an indented paragraph, or `first` if it does not look like code."""
    end = first
    while end < len(lines) and lines[end].strip():
        if not _INDENTED.match(lines[end]):
            return first
        end += 1
    signs = sum(_CODE_SIGN.search(line) is not None for line in lines[first:end])
    return end if 2 * signs >= end - first else first
