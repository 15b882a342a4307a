"""Holds out whole groups (an act, a case, a meeting), so that nothing in validation was half seen in
training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report
from data_prep.stages.protocol import ShardStage


@dataclass(kw_only=True)
class SplitSettings:
    """The settings of the stage."""

    validation_share: float
    seed: int


class Split(ShardStage):
    """Hold out a share of the groups for validation."""

    name = "split"
    version = 1

    def settings(self, config: CorpusConfig) -> SplitSettings:
        return SplitSettings(validation_share=config.split.validation_share, seed=config.split.seed)

    def run(self, documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
        for document in documents:
            document.split = side(document.group, config.split.validation_share, config.split.seed)
            report.counts[document.split] += 1
            yield document


def side(group: str, validation_share: float, seed: int) -> str:
    """A pure function of (seed, group): a group stays on its side when other documents come or go."""
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "big") < validation_share * 2**64 else "train"
