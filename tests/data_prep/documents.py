"""Documents made by hand, and stages run on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from data_prep.config import CorpusConfig, SourceConfig
from data_prep.document import Document, Report
from data_prep.stages.protocol import ShardStage


def document(text: str, id: str = "a", source: str = "letters", **fields: Any) -> Document:
    return Document(**{"id": id, "text": text, "source": source, "license": "CC0-1.0", "group": id, **fields})


def config(reader: str = "jsonl", **settings: Any) -> CorpusConfig:
    return CorpusConfig(
        name="mine", sources={"letters": SourceConfig(reader=reader, path="x", license="CC0-1.0")}, **settings
    )


def through(
    stage: ShardStage, documents: Iterable[Document], settings: CorpusConfig
) -> tuple[list[Document], Report]:
    """What a stage lets through of one shard, and what it says."""
    report = Report()
    return list(stage.run(iter(documents), settings, report)), report
