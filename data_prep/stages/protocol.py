"""The interface of a stage, which execute.py runs shard by shard in the processes of a preparation.

A stage has no state, because the processes share only files.
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
    """A stage of the preparation from raw text to tokens.

    Attributes:
        name: the name of its folder, its steps and its settings. It must never change, because it
            is part of fingerprints.
        version: must be increased whenever the output changes, so that corpora are prepared again.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    @abstractmethod
    def settings(self, config: CorpusConfig) -> DataclassInstance:
        """Return all settings on which the output depends, for fingerprints and manifests."""


class ShardStage(Stage):
    """A stage that judges each document by itself."""

    @abstractmethod
    def run(self, documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
        """Yield the kept documents of one shard in order, and report every drop and change.

        No state may be kept from one shard (some megabytes of one source) to the next, because
        shards run in any order, in any number of processes.
        """


class CorpusStage(Stage):
    """A stage whose judgement of a document depends on the whole corpus."""

    @abstractmethod
    def collect(self, documents: Iterator[Document], config: CorpusConfig) -> pa.Table:
        """Return the data of one shard on which the decision depends, as little as possible."""

    @abstractmethod
    def decide(self, collected: list[Path], config: CorpusConfig) -> pa.Table:
        """Return the decision for all shards.

        The schema's metadata may have a JSON object `counts`, which is added to the counts of the
        stage.

        Args:
            collected: the Parquet files with the tables of all shards, in shard order. Read them
                one by one, and only the columns needed, because together they cover the whole
                corpus.
        """

    @abstractmethod
    def run(
        self, documents: Iterator[Document], config: CorpusConfig, report: Report, decided: pa.Table
    ) -> Iterator[Document]:
        """Yield the documents of one shard that are kept, as `ShardStage.run`.

        Args:
            decided: the decision. If it has a column `shard` (the shard's index in `collected`), it
                has only the rows of this shard.
        """
