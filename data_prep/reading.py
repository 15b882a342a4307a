"""The read step's door to data_prep.sources: which files a source has, and the documents in some of them.

The files of a source may be read by different processes, in any order and grouping: a document depends on its
own file alone.
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
    """The source's files in name order.

    Raises:
        NotFoundError: its path does not exist, or holds no file for this reader.
        UserError: an option is not one of the reader's.
    """
    return _reader(source).list_files(source)  # type: ignore[no-any-return]


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    """Documents of `paths`, which are some or all of `files(source)`.

    Counts `read_<name>` and `quarantined_<name>` in the report, whose `broken` records stand in file order.

    Raises:
        UserError: more broken records than a report can hold (see Report.quarantine).
    """
    reader = _reader(source)
    for path in paths:
        num_read, before = 0, len(report.broken)
        for document in reader.read(name, source, report, [path]):
            document.language = document.language or source.language
            num_read += 1
            yield document
        report.counts[f"read_{name}"] += num_read
        report.counts[f"files_without_documents_{name}"] += not num_read
        report.counts[f"quarantined_{name}"] += len(report.broken) - before


def check_yield(
    name: str,
    source: SourceConfig,
    num_read: int,
    num_broken: int,
    first: Broken | None,
    dropped: Drop | None = None,
) -> None:
    """To be asked once all files of a source are read, with the sums of their counts and the first broken
    record.

    Args:
        dropped: the first record that was dropped while it was read, if nothing else came of the source.

    Raises:
        UserError: too many of its records were broken, or nothing came of it.
    """
    place = ":".join(part for part in (first.file, first.member, first.at) if part) if first else ""
    if not num_read:
        why = [f"{place}: {first.error}"] if first else []
        why += [f"{dropped.id}: {dropped.reason}: {dropped.detail}"] if dropped else []
        reasons = (
            "; " + "; ".join(why) if why else ": its files hold no document for this reader and its options"
        )
        raise UserError(f"source {name}: nothing of it can be read{reasons}")
    if first and num_broken > max(source.max_broken, source.max_broken_share * (num_read + num_broken)):
        raise UserError(
            f"source {name}: {num_broken} of {num_read + num_broken} records cannot be read, more than max_broken_share "
            f"{source.max_broken_share:g} allows; the first is {place}: {first.error}. Mend the source, or raise the share"
        )


def options_of(reader: str) -> Any:
    """Return the dataclass of the options that a reader takes, or None if it takes none."""
    return getattr(_module(reader), "Options", None)


def fields_of(reader: str) -> tuple[str, ...]:
    """Return the names of a reader's fields, which a record may have under other names."""
    names: tuple[str, ...] = getattr(_module(reader), "FIELDS", ())
    return names


def _module(reader: str) -> ModuleType:
    return importlib.import_module(f"data_prep.sources.{reader}")


def _reader(source: SourceConfig) -> ModuleType:
    module, options = _module(source.reader), options_of(source.reader)
    if source.options and options is None:
        raise UserError(f"options.{next(iter(source.options))}: reader {source.reader} has no options")
    if options is not None:
        claims.parse_options(source, options)
    known = fields_of(source.reader)
    if unknown := next((field for field in source.fields if field not in known), None):
        raise UserError(
            f"fields.{unknown}: reader {source.reader} reads {', '.join(known) or 'no named fields'}"
        )
    return module
