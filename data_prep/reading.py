"""Interface between step read and the readers in data_prep.sources.

A document depends on its own file only. So different processes may read the files of a source, in
any order and grouping.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from data_prep.config import SourceConfig
from data_prep.document import Broken, Document, Drop, Report
from data_prep.sources import claims
from data_prep.user_error import UserError


def files(source: SourceConfig) -> list[Path]:
    """Return the source's files, sorted by name.

    Raises:
        NotFoundError: the path does not exist, or holds no file for this reader.
        UserError: the reader does not have one of the options or fields.
    """
    return _reader(source).list_files(source)  # type: ignore[no-any-return]


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    """Yield the documents of `paths`, which are some or all of `files(source)`.

    The broken records are added to the report in file order. So are the counts `read_<name>`,
    `quarantined_<name>` and `files_without_documents_<name>`.

    Args:
        name: name of the source.

    Raises:
        UserError: there are more broken records than a report can hold (see Report.quarantine).
    """
    reader = _reader(source)
    for path in paths:
        num_read = 0
        num_broken_before = len(report.broken)
        for document in reader.read(name, source, report, [path]):
            document.language = document.language or source.language
            num_read += 1
            yield document
        report.counts[f"read_{name}"] += num_read
        report.counts[f"files_without_documents_{name}"] += not num_read
        report.counts[f"quarantined_{name}"] += len(report.broken) - num_broken_before


def check_source(
    name: str,
    source: SourceConfig,
    num_read: int,
    num_broken: int,
    first_broken: Broken | None,
    first_drop: Drop | None = None,
) -> None:
    """Check the result of reading all files of a source.

    Args:
        name: name of the source.
        num_read: number of documents in all files.
        num_broken: number of broken records in all files.
        first_broken: the first broken record, if there is one.
        first_drop: the first record that reading dropped, if no document was read.

    Raises:
        UserError: too many records are broken, or there are no documents.
    """
    faults = []
    if first_broken:
        place = (first_broken.file, first_broken.member, first_broken.at)
        faults.append(f"{':'.join(filter(None, place))}: {first_broken.error}")
    if not num_read:
        if first_drop:
            faults.append(f"{first_drop.id}: {first_drop.reason}: {first_drop.detail}")
        reasons = "; ".join(faults) or "its files hold no document for this reader and its options"
        raise UserError(f"source {name}: no document can be read; {reasons}")
    num_records = num_read + num_broken
    if first_broken and num_broken > max(source.max_broken, source.max_broken_share * num_records):
        raise UserError(
            f"source {name}: {num_broken} of {num_records} records cannot be read, more than "
            f"max_broken_share {source.max_broken_share:g} allows; correct the source, or raise "
            f"max_broken_share; the first broken record is {faults[0]}"
        )


def options_of(reader: str) -> Any:
    """Return the dataclass of a reader's options; None if the reader has no options."""
    return getattr(_module(reader), "Options", None)


def fields_of(reader: str) -> tuple[str, ...]:
    """Return a reader's field names. The setting `fields` maps them to keys of the records."""
    names: tuple[str, ...] = getattr(_module(reader), "FIELDS", ())
    return names


def _module(reader: str) -> ModuleType:
    return importlib.import_module(f"data_prep.sources.{reader}")


def _reader(source: SourceConfig) -> ModuleType:
    """Check a source's options and fields, and return the module of its reader.

    Raises:
        UserError: the reader does not have one of the options or fields.
    """
    options = options_of(source.reader)
    if source.options and options is None:
        raise UserError(
            f"options.{next(iter(source.options))}: reader {source.reader} has no options; remove this one"
        )
    if options is not None:
        claims.parse_options(source, options)
    known = fields_of(source.reader)
    unknown = next((field for field in source.fields if field not in known), None)
    if unknown is not None:
        choices = f"its fields are {', '.join(known)}" if known else "it has no fields"
        raise UserError(f"fields.{unknown}: unknown field of reader {source.reader}; {choices}")
    return _module(source.reader)
