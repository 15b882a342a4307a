"""Functions that build documents and configs, and that run a stage on one shard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from data_prep.config import CorpusConfig, SourceConfig
from data_prep.document import Document, Report
from data_prep.stages.protocol import ShardStage


def make_document(text: str, id: str = "a", source: str = "letters", **fields: Any) -> Document:
    defaults = {"license": "CC0-1.0", "group": id}
    return Document(**{"id": id, "text": text, "source": source, **defaults, **fields})


def make_config(reader: str = "jsonl", **settings: Any) -> CorpusConfig:
    source = SourceConfig(reader=reader, path="x", license="CC0-1.0")
    return CorpusConfig(name="mine", sources={"letters": source}, **settings)


def run_shard_stage(
    stage: ShardStage, documents: Iterable[Document], settings: CorpusConfig
) -> tuple[list[Document], Report]:
    """Run a stage on one shard; return the documents that it keeps, and its report."""
    report = Report()
    return list(stage.run(iter(documents), settings, report)), report
