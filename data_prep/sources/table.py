"""Tables with named columns: CSV, TSV and Parquet, one document a row. `fields` maps our names to the columns, `text` above all.

Options: `delimiter` of CSV (a tab in .tsv).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import SourceConfig
from data_prep.containers import Member, break_off, raise_of_machine
from data_prep.document import Document, Place, Report, Unreadable
from data_prep.sources import claims
from data_prep.sources.files import find, members
from data_prep.sources.jsonl import OPTIONAL, clean, described

SUFFIXES = (".csv", ".tsv", ".parquet")
PARQUET = "a Parquet file"
ROWS = 256
FIELDS = ("text", *OPTIONAL)


@dataclass
class Options:
    """delimiter: between the columns of CSV; empty: a comma, or a tab in .tsv files."""

    delimiter: str = ""

    def __post_init__(self) -> None:
        if len(self.delimiter) > 1:
            raise ValueError(f"options.delimiter is {self.delimiter!r}: give one character")


def files(source: SourceConfig) -> list[Path]:
    claims.options(source, Options)
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    delimiter = claims.options(source, Options).delimiter
    key = source.fields.get("text", "text")
    for member in members(name, source, report, paths, SUFFIXES, (None, PARQUET)):
        if member.stream.peek(4)[:4] == b"PAR1":
            rows = _parquet_rows(member, key, source, report)
        else:
            own = delimiter or ("\t" if member.name.lower().endswith(".tsv") else ",")
            rows = csv_rows(member, own, (key,), source, report)
        for where, row in rows:
            with report.quarantining(where):
                if not isinstance(row.get(key), str):
                    raise Unreadable(f"no text in column '{key}'")
                yield Document(text=clean(row[key]), **described(row, where, source))


def csv_rows(
    member: Member, delimiter: str, needed: tuple[str, ...], source: SourceConfig, report: Report
) -> Iterator[tuple[Place, dict[str, str]]]:
    """Rows by column name. A row with more or fewer columns than the first line names is quarantined.

    Raises:
        ValueError: a needed column is not in the file.
    """
    csv.field_size_limit(source.limits.max_record_bytes)
    last = member.place

    def lines() -> Iterator[str]:
        nonlocal last
        for where, line in member.lines():
            last = where
            yield line.decode("utf-8-sig", "cp1252")

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as fault:
            report.quarantine(last, f"not CSV: {fault}")
            continue
        if names is None:
            names = row
            _require(needed, names, member.place)
        elif len(row) == len(names):
            yield last, dict(zip(names, row, strict=True))
        elif row:
            report.quarantine(last, f"{len(row)} columns where the first line names {len(names)}")
    if names is None:
        report.quarantine(member.place, "empty: not even the names of columns")


def _parquet_rows(member: Member, key: str, source: SourceConfig, report: Report) -> Iterator[tuple[Place, dict[str, Any]]]:
    number = 0
    try:
        with member.seekable() as file:
            table = pq.ParquetFile(file)
            names = table.schema_arrow.names
            _require((key,), names, member.place)
            wanted = [key, *(source.fields.get(ours, ours) for ours in OPTIONAL)]
            for batch in table.iter_batches(batch_size=ROWS, columns=[name for name in names if name in wanted]):
                for row in batch.to_pylist():
                    number += 1
                    yield replace(member.place, at=f"row {number}"), row
    except (pa.ArrowException, OSError, Unreadable) as fault:
        raise_of_machine(fault)
        break_off(report, replace(member.place, at=f"row {number + 1}"), fault)


def _require(needed: Sequence[str], names: Sequence[str], place: Place) -> None:
    if missing := [name for name in needed if name not in names]:
        raise ValueError(
            f"source {place.source}: {place} has no column '{missing[0]}' but {', '.join(names)}: name the one that you mean in "
            f"`fields`, e.g. fields: {{text: {names[0] if names else '…'}}}"
        )
