"""Reading a source in a test: its documents, and what was said of the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep import reading
from data_prep.config import LimitsConfig, SourceConfig
from data_prep.document import Document, Report


def read(reader: str, path: Path, **settings: Any) -> tuple[list[Document], Report]:
    """All documents of a source called `s`, and the report."""
    if "limits" in settings:
        settings["limits"] = LimitsConfig(**settings["limits"])
    source, report = SourceConfig(reader=reader, path=str(path), license="CC0-1.0", **settings), Report()
    documents = list(reading.read("s", source, report, reading.files(source)))
    assert report.counts["read_s"] == len(documents)
    assert report.counts["quarantined_s"] == len(report.broken)
    assert len({document.id for document in documents}) == len(documents)
    assert all(
        document.source == "s" and document.license == "CC0-1.0" and document.group for document in documents
    )
    return documents, report


def texts(documents: list[Document]) -> list[str]:
    return [document.text for document in documents]


def faults(report: Report) -> list[tuple[str, str]]:
    """Place and error of each broken record."""
    return [(":".join(p for p in (b.file, b.member, b.at) if p), b.error) for b in report.broken]


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


STRANGE = [None, 5, "", [], {}, [5], True, "x" * 10_000, "http://[foo]/x", 10**400]


def strange(value: Any) -> Iterator[Any]:
    """A record with each of its values, however deep, replaced in turn."""
    yield from STRANGE
    for key, part in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        for other in strange(part):
            changed = value.copy()
            changed[key] = other
            yield changed
