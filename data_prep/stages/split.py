"""Holds out whole groups (an act, a case, a meeting), so that nothing in validation was half seen in training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report

VERSION = 1


def settings(config: CorpusConfig) -> dict[str, Any]:
    return {"validation_share": config.split.validation_share, "seed": config.split.seed}


def run(documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
    for document in documents:
        document.split = side(document.group, config.split.validation_share, config.split.seed)
        report.counts[document.split] += 1
        yield document


def side(group: str, validation_share: float, seed: int) -> str:
    """A pure function of (seed, group): a group stays on its side when other documents come or go."""
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "big") < validation_share * 2**64 else "train"
