"""Tables with named columns: CSV, TSV and Parquet, one document a row. `fields` maps our names to the
columns, `text` above all.

What parts the columns of CSV is found (comma, semicolon, tab, pipe, or Excel's own line `sep=;`), and
counted."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import SourceConfig
from data_prep.containers.streams import Member, break_off, raise_of_machine
from data_prep.document import Document, Place, Report, Unreadable
from data_prep.fields import setting
from data_prep.separators import EXCEL_LINE, HEAD, SEPARATORS, WHOLE_BELOW, find_separator
from data_prep.sources import claims
from data_prep.sources.files import decode, find, members
from data_prep.sources.jsonl import OPTIONAL, clean, described
from data_prep.user_error import UserError

SUFFIXES = (".csv", ".tsv", ".parquet")
PARQUET = "a Parquet file"
ROWS = 256
FIELDS = ("text", *OPTIONAL)
LINE_BYTES = 200  # that a line takes in memory besides its text
# how much more may be gone back over than is read; then every row is a line, or stray quotes alone would take
# hours
PATIENCE = 8


@dataclass
class Options:
    """Options of tables."""

    delimiter: str = setting("", "character between the columns of a CSV file; empty: it is detected")

    def __post_init__(self) -> None:
        if len(self.delimiter) > 1:
            raise UserError(f"options.delimiter is {self.delimiter!r}: give one character")


def files(source: SourceConfig) -> list[Path]:
    claims.options(source, Options)
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    delimiter = claims.options(source, Options).delimiter
    key = source.fields.get("text", "text")
    rows: Iterator[tuple[Place, Mapping[str, object]]]
    for member in members(name, source, report, paths, SUFFIXES, (None, PARQUET)):
        if member.stream.peek(4)[:4] == b"PAR1":
            rows = _parquet_rows(member, key, source, report)
        else:
            rows = csv_rows(member, delimiter, (key,), source, report)
        for where, row in rows:
            with report.quarantining(where):
                if not isinstance(row.get(key), str):
                    raise Unreadable(f"no text in column '{key}'")
                yield described(row, where, source).document(clean(row[key]))


class _Lines:
    """The lines of a CSV file for csv.reader, which may go back to the second one of a row.

    Attributes:
        row: the lines of the row that is being read, and their places.
    """

    def __init__(self, member: Member, limit: int, report: Report) -> None:
        self.row: list[tuple[Place, str]] = []
        self._new, self._again = _decoded(member, report), deque[tuple[Place, str]]()
        self._limit, self._report = limit, report
        self._size = self._size_new = self._size_again = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.row and (self._size > self._limit or self._size_again > PATIENCE * self._size_new):
            raise csv.Error("a quote that is not closed within limits.max_record_bytes")
        is_new = not self._again
        line = next(self._new) if is_new else self._again.popleft()
        size = len(line[1]) + LINE_BYTES
        self._size += size
        self._size_new += size if is_new else 0
        self.row.append(line)
        return line[1]

    def begin_row(self) -> None:
        self.row, self._size = [], 0

    def give_up_row(self, fault: str, go_back: bool = True) -> None:
        """Quarantine the row, or its first line alone and `go_back` to the next."""
        self._report.quarantine(self.row[0][0], fault)
        if go_back:
            self._again.extendleft(reversed(self.row[1:]))
            self._size_again += self._size


def csv_rows(
    member: Member, delimiter: str, needed: tuple[str, ...], source: SourceConfig, report: Report
) -> Iterator[tuple[Place, dict[str, str]]]:
    """Rows by column name. A row with more or fewer columns than the first line names is quarantined. Without
    a delimiter, it is found.

    A quote that is not closed takes in the rows behind it: its first line alone is given up, and the others
    are read as rows.

    Raises:
        UserError: a needed column is not in the file, or twice.
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
                _require(needed, names, member.place, source.reader)
        elif len(row) == len(names) or (len(row) > len(names) and not any(row[len(names) :])):
            yield lines.row[0][0], dict(zip(names, row, strict=False))
        elif row:
            # Of what two stray quotes took between them, most lines are rows by themselves; of a text of many
            # lines, few.
            fitting = [text.count(delimiter) == len(names) - 1 for _, text in lines.row[1:-1]]
            fault_line = f"{len(row)} columns where the first line names {len(names)}"
            lines.give_up_row(fault_line, go_back=2 * sum(fitting) > len(fitting))
    if names is None:
        report.quarantine(member.place, "empty: not even the names of columns")


def _decoded(member: Member, report: Report) -> Iterator[tuple[Place, str]]:
    head = member.stream.peek(HEAD)[:HEAD]
    of_old_macs = b"\r" in head and b"\n" not in head  # their lines end in a carriage return
    for where, line in member.lines():
        with report.quarantining(where):
            text = decode(line, report)
            for number, part in enumerate(text.split("\r"), start=1) if of_old_macs else [(0, text)]:
                yield (replace(where, at=f"line {number}") if number else where), part


def _parquet_rows(
    member: Member, key: str, source: SourceConfig, report: Report
) -> Iterator[tuple[Place, dict[str, object]]]:
    number = 0
    try:
        with member.seekable() as file:
            table = pq.ParquetFile(file)
            names = table.schema_arrow.names
            _require((key,), names, member.place, source.reader)
            wanted = [key, *(source.fields.get(ours, ours) for ours in OPTIONAL)]
            for batch in table.iter_batches(
                batch_size=ROWS, columns=[name for name in names if name in wanted]
            ):
                yield from batch_rows(batch, member.place, number, report)
                number += len(batch)
    except (pa.ArrowException, OSError, Unreadable) as fault:
        raise_of_machine(fault)
        break_off(report, replace(member.place, at=f"row {number + 1}"), fault)


def batch_rows(
    batch: pa.RecordBatch, place: Place, number: int, report: Report
) -> Iterator[tuple[Place, dict[str, object]]]:
    """The rows of a batch that `number` rows stand before. One with a value that Python cannot hold is
    quarantined."""
    for at in range(len(batch)):
        where = replace(place, at=f"row {number + at + 1}")
        with report.quarantining(where):
            try:
                (row,) = batch.slice(at, 1).to_pylist()
            except (
                ValueError,
                OverflowError,
                KeyError,
            ) as fault:  # no UTF-8, a day of no calendar, a time zone of no map
                raise Unreadable(f"a value that cannot be read: {fault}") from None
            yield where, row


def _require(needed: Sequence[str], names: Sequence[str], place: Place, reader: str) -> None:
    if twice := [name for name in needed if Counter(names)[name] > 1]:
        raise UserError(
            f"source {place.source}: {place} has two columns '{twice[0]}': rename the one that is not meant"
        )
    if missing := [name for name in needed if name not in names]:
        hint = f"name the one that you mean in `fields`, e.g. fields: {{text: {names[0] if names else '…'}}}"
        if reader != "table":
            hint = f"reader {reader} knows no other name; reader table has `fields` for that"
        raise UserError(
            f"source {place.source}: {place} has no column '{missing[0]}' but {', '.join(names)}: {hint}"
        )
