"""Detection of a CSV file's column separator: a comma, semicolon (Excel's in Norway), tab or pipe.

Reader table and evaluation_sets.py use this module.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Sequence

NO_SEPARATOR = "\x1f"  # for a table with one column, whose texts may contain all other separators
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe", NO_SEPARATOR: "none"}
EXCEL_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # a first line that Excel writes
HEAD = 2**16  # bytes at a file's beginning that are examined
# If a stream's buffer holds fewer bytes, they are the whole file. For a longer file, it holds at
# least 8 KiB.
WHOLE_BELOW = 4096
SAMPLE_LINES = 200


def find_separator(head: bytes, is_whole: bool, usual: str = ",", needed: Sequence[str] = ()) -> str:
    """Return the separator between the columns of a CSV file.

    A first line such as `sep=;` names the separator. Otherwise, the separators that occur in the
    first line are compared by these criteria, in this order:

    1. Whether the first line has all needed columns.
    2. The share of records with as many columns as the first line, in tenths.
    3. The number of columns of the first line.
    4. Whether the separator is the usual one.

    If no separator occurs in the first line, the table has one column, and NO_SEPARATOR is
    returned.

    Args:
        head: the first bytes of the file.
        is_whole: True if `head` is the whole file, so that its last line is complete.
        usual: the separator that the file's suffix suggests.
        needed: names of columns that the file must have.
    """
    text = head.removeprefix(codecs.BOM_UTF8).decode("utf-8", "cp1252")
    lines = [line for line in text.splitlines(keepends=True) if line.strip()]
    excel = EXCEL_LINE.fullmatch(lines[0]) if lines else None
    if excel:
        return excel[1]
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
    """Return the first row, and a list of the other rows.

    Both are empty if the lines are not valid CSV with this separator.
    """
    try:
        rows = [row for row in csv.reader(lines, delimiter=separator) if row]
    except csv.Error:
        rows = []
    return (rows[0], rows[1:]) if rows else ([], [])
