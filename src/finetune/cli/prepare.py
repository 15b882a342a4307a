"""`finetune prepare`: prepares a corpus on this machine, or by jobs on Slurm."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from finetune.cli.hydra_config import compose, wants_help
from finetune.cli.schemas import prepare_schema

BYTES_A_TASK = 32_000_000  # raw text for each task of a preparation on Slurm


def prepare(arguments: list[str]) -> int:
    """Compose the settings and prepare a corpus, on this machine or on Slurm."""
    if wants_help(arguments):
        from finetune.cli.help import prepare_help

        print(prepare_help(), end="")
        return 0
    from finetune.config.train import from_omegaconf

    node = compose("prepare", prepare_schema(), arguments)
    if node is None:
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    config = from_omegaconf(node, prepare_schema())
    if config.cluster.scheduler == "slurm":
        _prepare_on_slurm(config)
    else:
        _prepare_here(config)
    return 0


def _prepare_here(config: Any) -> None:
    from data_prep.pipeline import prepare as run_pipeline
    from finetune.cli import corpus_tables

    prepared = run_pipeline(config)
    corpus_tables.print_corpus(prepared)
    print(prepared.folder)


def _prepare_on_slurm(config: Any) -> None:
    from data_prep.pipeline import plan
    from data_prep.plan import Preparation, Step
    from finetune.launch import prepare_jobs
    from finetune.launch.freeze import check_no_secrets

    cluster = config.cluster
    check_no_secrets(cluster, "cluster")
    for unchecked in prepare_jobs.check(cluster):
        print(f"not checked: {unchecked}", file=sys.stderr)
    folder = Path(config.corpora_dir) / config.corpus.name
    planned = plan(config)
    if not planned:
        print(f"corpus {folder} is up to date: these settings and sources produced it", file=sys.stderr)
        print(folder)
        return
    work = folder.with_name(f".{folder.name}.stages")
    steps = [(step.name, step.parallel) for step in planned]
    size = sum(Preparation.load(work).sizes(Step("read")))
    num_tasks = min(cluster.prepare.tasks, 1 + size // BYTES_A_TASK)
    run = prepare_jobs.submit(config.corpus.name, work, steps, num_tasks, cluster)
    assert run.layout is not None
    limited = ""
    if run.layout.num_tasks < num_tasks:
        limited = f" (limited by the queue; there is work for {num_tasks} tasks)"
    print(f"submitted {run.id}: {run.layout.describe(steps)}{limited}", file=sys.stderr)
    train_command = f"finetune train … corpus={config.corpus.name} --after {run.id}"
    print(f"  finetune status {run.id}    {train_command}    logs: {run.folder}", file=sys.stderr)
    print(run.id)
