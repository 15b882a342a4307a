"""Runs one stage over shards given by hand, as the pipeline would."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from types import ModuleType

import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report


def run_stage(module: ModuleType, shards: list[list[Document]], config: CorpusConfig) -> tuple[list[Document], Report]:
    """What comes out of all shards, and the report of them together."""
    report, out = Report(), list[Document]()
    with tempfile.TemporaryDirectory() as folder:
        decided = []
        if hasattr(module, "decide"):
            collected = [Path(folder) / f"{number}.parquet" for number in range(len(shards))]
            for path, shard in zip(collected, shards, strict=True):
                pq.write_table(module.collect(iter(copy.deepcopy(shard)), config), path)
            decided.append(module.decide(collected, config))
            report.counts.update(json.loads((decided[0].schema.metadata or {}).get(b"counts", b"{}")))
    for number, shard in enumerate(shards):
        own = [t.filter(pc.field("shard") == number) if "shard" in t.column_names else t for t in decided]
        out += module.run(iter(copy.deepcopy(shard)), config, report, *own)
    return out, report
