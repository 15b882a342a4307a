"""Split of the documents into training and validation, by groups such as an act or a meeting.

A group is never divided, so no validation document shares its group with a training document.
"""

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
            document.split = choose_split(document.group, config.split.validation_share, config.split.seed)
            report.counts[document.split] += 1
            yield document


def choose_split(group: str, validation_share: float, seed: int) -> str:
    """Return the split of a group: "train" or "validation".

    The split depends on seed and group only, so a group keeps its split when other documents are
    added or removed.
    """
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    is_held_out = int.from_bytes(digest, "big") < validation_share * 2**64
    return "validation" if is_held_out else "train"
