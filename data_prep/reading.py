"""The read stage's door to data_prep.sources: which files a source has, and the documents in some of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from data_prep.config import SourceConfig
from data_prep.document import Document, Report


def files(source: SourceConfig) -> list[Path]:
    return _reader(source).files(source)  # type: ignore[no-any-return]


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    for path in paths:
        yield from _reader(source).read(name, source, report, [path])


def _reader(source: SourceConfig) -> ModuleType:
    return importlib.import_module(f"data_prep.sources.{source.reader}")
