"""Exact duplicates, over all sources: the first in source order is kept. White space and letter case do not tell texts apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report

VERSION = 1


def settings(config: CorpusConfig) -> dict[str, Any]:
    return {}


def run(documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
    first: dict[bytes, str] = {}  # 16 bytes of hash a document: 1M documents are about 150 MB
    for document in documents:
        turns = [f"{turn.role}: {turn.content}" for turn in document.turns]
        text = " ".join("\n".join([document.text, *turns]).casefold().split())
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if key in first:
            report.drop(document, "exact_duplicate", f"same text as {first[key]}")
            continue
        first[key] = f"{document.source}/{document.id}"
        yield document
