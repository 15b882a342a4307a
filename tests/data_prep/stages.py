"""Function that runs a stage on the shards of a corpus, as the pipeline does.

The stage collects facts from each shard, decides on all shards together, and then runs on each
shard.
"""

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


def run_corpus_stage(
    stage: CorpusStage, shards: list[list[Document]], config: CorpusConfig
) -> tuple[list[Document], Report]:
    """Run a stage on all shards; return the documents that it keeps, and one report."""
    report = Report()
    kept: list[Document] = []
    with tempfile.TemporaryDirectory() as folder:
        collected = [Path(folder) / f"{number}.parquet" for number in range(len(shards))]
        for path, shard in zip(collected, shards, strict=True):
            pq.write_table(stage.collect(iter(copy.deepcopy(shard)), config), path)
        decided = stage.decide(collected, config)
        report.counts.update(json.loads((decided.schema.metadata or {}).get(b"counts", b"{}")))
    for number, shard in enumerate(shards):
        own = decided
        if "shard" in decided.column_names:
            own = decided.filter(pc.field("shard") == number)
        kept += stage.run(iter(copy.deepcopy(shard)), config, report, own)
    return kept, report
