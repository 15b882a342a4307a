"""Reader of tables with named columns (CSV, TSV and Parquet). Each row is a document.

`fields` maps a document's fields, above all `text`, to columns. The separator of CSV columns is
detected: a comma, semicolon, tab or pipe, or the one that Excel states in the first line, such as
`sep=;`. The report counts the files by separator.
"""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import SourceConfig
from data_prep.containers.streams import Member, quarantine_rest, reraise_machine_error
from data_prep.document import Document, Place, Report, Unreadable
from data_prep.fields import setting
from data_prep.separators import EXCEL_LINE, HEAD, SEPARATORS, WHOLE_BELOW, find_separator
from data_prep.sources import claims
from data_prep.sources.files import decode, find_files, iter_members
from data_prep.sources.jsonl import OPTIONAL, describe, to_valid_text
from data_prep.user_error import UserError

SUFFIXES = (".csv", ".tsv", ".parquet")
PARQUET = "a Parquet file"
ROWS = 256
FIELDS = ("text", *OPTIONAL)
LINE_BYTES = 200  # memory that a line needs in addition to its text
# Maximum number of characters that are read again because of unclosed quotes, as a multiple of
# those read from the file. Above it, rows of more than one line are quarantined; otherwise, a file
# with many stray quotes would take hours.
MAX_REREAD_RATIO = 8


@dataclass
class Options:
    """Options of reader `table`."""

    delimiter: str = setting("", "character between the columns of a CSV file; empty: it is detected")

    def __post_init__(self) -> None:
        if len(self.delimiter) > 1:
            raise UserError(f"options.delimiter: must be a single character, not {self.delimiter!r}")


def list_files(source: SourceConfig) -> list[Path]:
    claims.parse_options(source, Options)
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    delimiter = claims.parse_options(source, Options).delimiter
    key = source.fields.get("text", "text")
    rows: Iterator[tuple[Place, Mapping[str, object]]]
    for member in iter_members(name, source, report, paths, SUFFIXES, (None, PARQUET)):
        if member.stream.peek(4)[:4] == b"PAR1":
            rows = _parquet_rows(member, key, source, report)
        else:
            rows = csv_rows(member, delimiter, (key,), source, report)
        for place, row in rows:
            with report.quarantining(place):
                if not isinstance(row.get(key), str):
                    raise Unreadable(f"no text in column '{key}'")
                yield describe(row, place, source).build_document(to_valid_text(row[key]))


class _Lines:
    """Iterator over the lines of a CSV file, for csv.reader.

    `give_up_row` can rewind it to the second line of the current row. This is needed after an
    unclosed quote, which joins several rows into one.

    Attributes:
        row: the lines of the current row, with their places.
    """

    def __init__(self, member: Member, limit: int, report: Report) -> None:
        self.row: list[tuple[Place, str]] = []
        self._new_lines = _iter_decoded_lines(member, report)
        self._rewound_lines = deque[tuple[Place, str]]()
        self._limit = limit
        self._report = report
        self._row_size = 0
        self._new_size = 0
        self._rewound_size = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        is_over = self._row_size > self._limit or self._rewound_size > MAX_REREAD_RATIO * self._new_size
        if self.row and is_over:
            raise csv.Error(
                "a quote is not closed within limits.max_record_bytes, or many quotes are not closed"
            )
        if self._rewound_lines:
            line = self._rewound_lines.popleft()
            size = len(line[1]) + LINE_BYTES
        else:
            line = next(self._new_lines)
            size = len(line[1]) + LINE_BYTES
            self._new_size += size
        self._row_size += size
        self.row.append(line)
        return line[1]

    def begin_row(self) -> None:
        self.row = []
        self._row_size = 0

    def give_up_row(self, reason: str, rewind: bool = True) -> None:
        """Quarantine the current row.

        Args:
            rewind: true to read the row's lines after the first one again, as rows of their own.
        """
        self._report.quarantine(self.row[0][0], reason)
        if rewind:
            self._rewound_lines.extendleft(reversed(self.row[1:]))
            self._rewound_size += self._row_size


def csv_rows(
    member: Member, delimiter: str, needed: tuple[str, ...], source: SourceConfig, report: Report
) -> Iterator[tuple[Place, dict[str, str]]]:
    """Yield the rows of a CSV file as dicts by column name, with their places.

    A row with more or fewer columns than the first line is quarantined, except for additional
    columns that are empty. An unclosed quote would join all later rows to one. Only the line with
    the quote is then quarantined, and the lines after it are read as rows.

    Args:
        delimiter: separator of the columns; "" to detect it.
        needed: columns that the file must have.

    Raises:
        UserError: a needed column is missing, or two columns have its name.
    """
    csv.field_size_limit(source.limits.max_record_bytes)
    if not delimiter:
        head = member.stream.peek(HEAD)[:HEAD]
        usual = "\t" if member.name.lower().endswith(".tsv") else ","
        delimiter = find_separator(head, len(head) < WHOLE_BELOW, usual, needed)
        report.counts[f"separator_{SEPARATORS.get(delimiter, 'other')}"] += 1
    lines = _Lines(member, source.limits.max_record_bytes, report)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        lines.begin_row()
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as fault:
            lines.give_up_row(f"not CSV: {fault}")
            continue
        if names is None:
            if row and not EXCEL_LINE.fullmatch(lines.row[0][1]):
                names = row if set(needed) <= set(row) else [name.strip() for name in row]
                _check_columns(needed, names, member.place, source.reader)
        elif len(row) == len(names) or (len(row) > len(names) and not any(row[len(names) :])):
            yield lines.row[0][0], dict(zip(names, row, strict=False))
        elif row:
            # Lines between two stray quotes are mostly complete rows; the lines of a long text
            # rarely are. Count the lines that have as many separators as a row.
            fitting = [text.count(delimiter) == len(names) - 1 for _, text in lines.row[1:-1]]
            reason = f"has {len(row)} columns, but the first line names {len(names)}"
            lines.give_up_row(reason, rewind=2 * sum(fitting) > len(fitting))
    if names is None:
        report.quarantine(member.place, "empty: there is no line with the names of columns")


def _iter_decoded_lines(member: Member, report: Report) -> Iterator[tuple[Place, str]]:
    head = member.stream.peek(HEAD)[:HEAD]
    has_old_mac_lines = b"\r" in head and b"\n" not in head  # lines that end in a carriage return only
    for place, line in member.iter_lines():
        with report.quarantining(place):
            text = decode(line, report)
            if not has_old_mac_lines:
                yield place, text
                continue
            for number, part in enumerate(text.split("\r"), start=1):
                yield replace(place, at=f"line {number}"), part


def _parquet_rows(
    member: Member, key: str, source: SourceConfig, report: Report
) -> Iterator[tuple[Place, dict[str, object]]]:
    number = 0
    try:
        with member.open_seekable() as file:
            table = pq.ParquetFile(file)
            names = table.schema_arrow.names
            _check_columns((key,), names, member.place, source.reader)
            mapped = {key, *(source.fields.get(field, field) for field in OPTIONAL)}
            columns = [name for name in names if name in mapped]
            for batch in table.iter_batches(batch_size=ROWS, columns=columns):
                yield from batch_rows(batch, member.place, number, report)
                number += len(batch)
    except (pa.ArrowException, OSError, Unreadable) as fault:
        reraise_machine_error(fault)
        quarantine_rest(report, replace(member.place, at=f"row {number + 1}"), fault)


def batch_rows(
    batch: pa.RecordBatch, file: Place, number: int, report: Report
) -> Iterator[tuple[Place, dict[str, object]]]:
    """Yield the rows of an Arrow batch; rows that Python cannot represent are quarantined.

    Args:
        file: place of the file.
        number: number of rows of the file before this batch.
    """
    for at in range(len(batch)):
        place = replace(file, at=f"row {number + at + 1}")
        with report.quarantining(place):
            try:
                (row,) = batch.slice(at, 1).to_pylist()
            except (ValueError, OverflowError, KeyError) as fault:
                # Causes: invalid UTF-8, a date outside Python's calendar, an unknown time zone.
                raise Unreadable(f"contains a value that cannot be read: {fault}") from None
            yield place, row


def _check_columns(needed: Sequence[str], names: Sequence[str], place: Place, reader: str) -> None:
    """Raise UserError if a needed column is missing, or if two columns have its name."""
    for name in needed:
        if Counter(names)[name] > 1:
            raise UserError(f"source {place.source}: {place} has two columns '{name}'; rename one of them")
    for name in needed:
        if name in names:
            continue
        remedy = f"map one of them in `fields`, e.g. fields: {{text: {names[0] if names else '…'}}}"
        if reader != "table":
            remedy = f"rename a column, or use reader table, because reader {reader} cannot map columns"
        raise UserError(
            f"source {place.source}: {place} has no column '{name}', its columns are {', '.join(names)}; "
            f"{remedy}"
        )
