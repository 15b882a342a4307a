"""Detection of a CSV file's column separator: a comma, semicolon (Excel's in Norway), tab or pipe.

Used by reader table and for evaluation sets.
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
WHOLE_BELOW = 4096  # fewer bytes than this are a whole file: the buffer of a longer one holds 8 KiB or more
SAMPLE_LINES = 200


def find_separator(head: bytes, is_whole: bool, usual: str = ",", needed: Sequence[str] = ()) -> str:
    """Return the separator of the columns, judged by the first line and the records after it.

    A separator that splits the first line into the needed columns wins; then the one that splits
    most records into as many columns as the first line; then the one that splits the first line
    into most columns. If none occurs in the first line, the table has one column, and NO_SEPARATOR
    is returned.

    Args:
        head: the first bytes of the file.
        is_whole: true if `head` is the whole file, so that its last line is complete.
        usual: the separator that the file's suffix suggests, which breaks ties.
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
    """Return the first row and the other rows; both empty if this separator gives no CSV."""
    try:
        rows = [row for row in csv.reader(lines, delimiter=separator) if row]
    except csv.Error:
        rows = []
    return (rows[0], rows[1:]) if rows else ([], [])
