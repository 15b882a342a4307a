"""Functions that read a source and list its broken records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep import reading
from data_prep.config import LimitsConfig, SourceConfig
from data_prep.document import Document, Report


def read(reader: str, path: Path, **settings: Any) -> tuple[list[Document], Report]:
    """Read a source named `s`, check the report's counts, and return documents and report."""
    if "limits" in settings:
        settings["limits"] = LimitsConfig(**settings["limits"])
    source = SourceConfig(reader=reader, path=str(path), license="CC0-1.0", **settings)
    report = Report()
    documents = list(reading.read("s", source, report, reading.files(source)))
    assert report.counts["read_s"] == len(documents)
    assert report.counts["quarantined_s"] == len(report.broken)
    assert len({document.id for document in documents}) == len(documents)
    for document in documents:
        assert (document.source, document.license) == ("s", "CC0-1.0")
        assert document.group
    return documents, report


def texts(documents: list[Document]) -> list[str]:
    return [document.text for document in documents]


def broken_places(report: Report) -> list[tuple[str, str]]:
    """Return the place (`file:member:line`) and the error of each broken record."""
    return [(":".join(p for p in (b.file, b.member, b.at) if p), b.error) for b in report.broken]


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


WRONG_VALUES = [None, 5, "", [], {}, [5], True, "x" * 10_000, "http://[foo]/x", 10**400]


def corrupt_each_value(value: Any) -> Iterator[Any]:
    """Yield copies of a record. In each, one of WRONG_VALUES replaces one value at any depth."""
    yield from WRONG_VALUES
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    for key, part in parts:
        for other in corrupt_each_value(part):
            changed = value.copy()
            changed[key] = other
            yield changed
