"""Runs one stage over shards given by hand, as the pipeline would."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report
from data_prep.stages.protocol import CorpusStage


def run_stage(
    stage: CorpusStage, shards: list[list[Document]], config: CorpusConfig
) -> tuple[list[Document], Report]:
    """What comes out of all shards, and the report of them together."""
    report, out = Report(), list[Document]()
    with tempfile.TemporaryDirectory() as folder:
        collected = [Path(folder) / f"{number}.parquet" for number in range(len(shards))]
        for path, shard in zip(collected, shards, strict=True):
            pq.write_table(stage.collect(iter(copy.deepcopy(shard)), config), path)
        decided = stage.decide(collected, config)
        report.counts.update(json.loads((decided.schema.metadata or {}).get(b"counts", b"{}")))
    for number, shard in enumerate(shards):
        own = decided.filter(pc.field("shard") == number) if "shard" in decided.column_names else decided
        out += stage.run(iter(copy.deepcopy(shard)), config, report, own)
    return out, report
