"""Exact duplicates, over all sources: the first in source order is kept. White space and letter case do not tell texts apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report

VERSION = 1


def settings(config: CorpusConfig) -> dict[str, Any]:
    return {}


def collect(documents: Iterator[Document], config: CorpusConfig) -> pa.Table:
    keys, names = [], []
    for document in documents:
        turns = [f"{turn.role}: {turn.content}" for turn in document.turns]
        text = " ".join("\n".join([document.text, *turns]).casefold().split())
        keys.append(hashlib.blake2b(text.encode(), digest_size=16).digest())
        names.append(f"{document.source}/{document.id}")
    return pa.table({"key": pa.array(keys, pa.binary()), "name": pa.array(names, pa.string())})


def decide(collected: list[Path], config: CorpusConfig) -> pa.Table:
    first: dict[bytes, str] = {}
    rows = []
    for shard, path in enumerate(collected):
        for row, (key, name) in enumerate(zip(*(pq.read_table(path)[c].to_pylist() for c in ("key", "name")), strict=True)):
            if key in first:
                rows.append((shard, row, f"same text as {first[key]}"))
            first.setdefault(key, name)
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return pa.table(
        {
            "shard": pa.array(columns[0], pa.int64()),
            "row": pa.array(columns[1], pa.int64()),
            "detail": pa.array(columns[2], pa.string()),
        }
    )


def run(documents: Iterator[Document], config: CorpusConfig, report: Report, decided: pa.Table) -> Iterator[Document]:
    dropped = dict(zip(decided["row"].to_pylist(), decided["detail"].to_pylist(), strict=True))
    for row, document in enumerate(documents):
        if row in dropped:
            report.drop(document, "exact_duplicate", dropped[row])
        else:
            yield document
