"""What parts the columns of a CSV file: a comma, a semicolon (as Excel writes it in Norway), a tab or a pipe.

For reader table and evaluation sets.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Sequence

NO_SEPARATOR = "\x1f"  # of a table with one column, whose texts may hold all others
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe", NO_SEPARATOR: "none"}
EXCEL_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # Excel's own first line
HEAD, WHOLE_BELOW = (
    2**16,
    4096,
)  # bytes to look at; fewer than the second are all of a file: 8 KiB are read of any at once
SAMPLE_LINES = 200


def find_separator(head: bytes, is_whole: bool, usual: str = ",", needed: Sequence[str] = ()) -> str:
    """Return what parts the columns, by the first line and the records behind it.

    It is what makes the needed columns of the first line; else what cuts most records into as many columns as
    the first line, and that into most. Without any in the first line, there is one column.

    Args:
        head: the first bytes of the file.
        is_whole: whether that is all of it, so that its last line is whole.
        usual: the separator that the file's name speaks for; it decides between equals.
    """
    text = head.removeprefix(codecs.BOM_UTF8).decode("utf-8", "cp1252")
    lines = [line for line in text.splitlines(keepends=True) if line.strip()]
    if lines and (said := EXCEL_LINE.fullmatch(lines[0])):
        return said[1]
    if len(lines) > 1 and not is_whole:
        lines.pop()
    scores = {}
    for separator in SEPARATORS:
        names, records = _rows(lines[:SAMPLE_LINES], separator)
        if len(names) > 1:
            fitting = sum(len(row) == len(names) for row in records) / max(len(records), 1)
            has_needed = {name.strip() for name in names} >= set(needed)
            scores[separator] = (has_needed, round(fitting, 1), len(names), separator == usual)
    return max(scores, key=lambda separator: scores[separator], default=NO_SEPARATOR)


def _rows(lines: list[str], separator: str) -> tuple[list[str], list[list[str]]]:
    """Return the first row and the others; none if this separator makes no CSV of them."""
    try:
        rows = [row for row in csv.reader(lines, delimiter=separator) if row]
    except csv.Error:
        rows = []
    return (rows[0], rows[1:]) if rows else ([], [])
