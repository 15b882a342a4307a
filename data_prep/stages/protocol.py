"""The protocol of a stage, which execute.py applies shard by shard in the processes of a preparation.

`name` stays the same for good: it names the stage's folder, its steps and its settings, and fingerprints hold
it. A stage has no state: processes share nothing but files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Stage(ABC):
    """A step on the way from raw text to tokens.

    Attributes:
        name: of its folder, its steps and its settings.
        version: raised when the output changes, so that corpora are made again.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    @abstractmethod
    def settings(self, config: CorpusConfig) -> DataclassInstance:
        """Return all of the config that the output depends on. Fingerprints and manifests hold it as plain
        data."""


class ShardStage(Stage):
    """A stage that judges each document by itself."""

    @abstractmethod
    def run(self, documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
        """Yield what goes on of the documents of one shard, in order; every drop and change goes into the
        report.

        Nothing may be kept from one shard (some megabytes of one source) to the next: shards run in any
        order, in any number of processes.
        """


class CorpusStage(Stage):
    """A stage that must see the whole corpus before it can judge a document."""

    @abstractmethod
    def collect(self, documents: Iterator[Document], config: CorpusConfig) -> pa.Table:
        """Return what must be known of one shard, as small as will do."""

    @abstractmethod
    def decide(self, collected: list[Path], config: CorpusConfig) -> pa.Table:
        """Return a decision over all shards.

        JSON in the schema's metadata under `counts` is added to the counts of the stage.

        Args:
            collected: the shards' Parquet files, in shard order. Read only the columns needed, file by file:
                here alone all of a corpus is seen at once.
        """

    @abstractmethod
    def run(
        self, documents: Iterator[Document], config: CorpusConfig, report: Report, decided: pa.Table
    ) -> Iterator[Document]:
        """Yield what goes on of the documents of one shard, as in `ShardStage.run`.

        Args:
            decided: the decision; of one with a column `shard` (a shard's place in `collected`), this shard's
                rows only.
        """
