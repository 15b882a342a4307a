"""Base classes of the stages. execute.py runs a stage shard by shard, in several processes.

A stage holds no state, because the processes share only files.
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
        version: must be increased whenever the stage's output changes, so that existing corpora are
            prepared again.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    @abstractmethod
    def settings(self, config: CorpusConfig) -> DataclassInstance:
        """Return all settings on which the output depends, for fingerprints and manifests."""


class ShardStage(Stage):
    """A stage that handles each document independently of all others."""

    @abstractmethod
    def run(self, documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
        """Yield the kept documents of one shard in order, and report every drop and change.

        A shard holds some megabytes of one source. No state may be kept between shards, because
        they run in any order, in any number of processes.
        """


class CorpusStage(Stage):
    """A stage whose decision on a document depends on the whole corpus."""

    @abstractmethod
    def collect(self, documents: Iterator[Document], config: CorpusConfig) -> pa.Table:
        """Return the data that `decide` needs about the documents of one shard.

        The table should be as small as possible, because `decide` reads those of all shards.
        """

    @abstractmethod
    def decide(self, collected: list[Path], config: CorpusConfig) -> pa.Table:
        """Return the decisions for all shards, as one table.

        The table's metadata may hold a JSON object `counts`. Its numbers are added to the stage's
        counts.

        Args:
            collected: Parquet files with the tables that `collect` returned, one for each shard, in
                order. Together they cover the whole corpus. So read them one by one, and only the
                columns that are needed.
        """

    @abstractmethod
    def run(
        self, documents: Iterator[Document], config: CorpusConfig, report: Report, decided: pa.Table
    ) -> Iterator[Document]:
        """Yield the kept documents of one shard in order, and report every drop and change.

        Args:
            decided: the table that `decide` returned. If the table has a column `shard`, which is
                the index of a shard in `collected`, `decided` has only the rows of this shard.
        """
