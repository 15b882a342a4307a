"""A preparation as arrays of four tasks on a real Slurm, one of them killed midway: it comes back, and the corpus is the same."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from data_prep import pipeline
from data_prep.preparation import Preparation
from finetune.cluster import ClusterConfig, PrepareJobs
from finetune.launch import chain
from tests.data_prep.test_pipeline import config, markers
from tests.data_prep.test_sample import checksums
from tests.slurm.conftest import Shell, wait_for

pytestmark = pytest.mark.slurm

STEP, SHARE, OF = "normalise", 2, 4
CLUSTER = ClusterConfig(
    name="testcluster", scheduler="slurm", account="nn9999k", partition="debug", prepare=PrepareJobs(memory="1G", timeout_min=10)
)


def process_of(share: int, work: Path) -> psutil.Process | None:
    """The Python process of a task of the step; a node's processes are this machine's."""
    words = ["data_prep.pipeline", str(work), STEP, "--task", str(share)]
    for process in psutil.process_iter(["cmdline"]):
        if all(word in (process.info["cmdline"] or []) for word in words):
            return process
    return None


def kill_midway(work: Path) -> None:
    """SIGKILL to the share's process when the first of its shards is done."""
    wait_for(lambda: process_of(SHARE, work), seconds=120)
    process = process_of(SHARE, work)
    assert process is not None
    shards = [shard.name for shard in Preparation.load(work).shards(0)][SHARE::OF]
    done = [work / "1-normalise" / f"done-{shard}.json" for shard in shards]
    deadline = time.monotonic() + 60
    while not done[0].exists():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert not done[-1].exists(), "it ended before it could be killed"


def test_an_array_of_four_with_one_task_killed_midway_ends_with_the_same_corpus(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = checksums(pipeline.prepare(config(tmp_path / "alone")).folder)
    monkeypatch.setenv("SLURM_CONF", shell.environment["SLURM_CONF"])
    corpora = tmp_path / "array"
    work, steps = corpora / ".sample.stages", pipeline.plan(config(corpora, shard_characters=4_000))
    run = chain.submit("sample", work, [(step.name, step.cut) for step in steps], OF, CLUSTER)
    kill_midway(work)
    before = markers(corpora)
    wait_for(lambda: not run.is_alive(), seconds=300)
    assert set(run.states().values()) == {"COMPLETED"}
    logs = {log.stem: log.read_text() for log in run.folder.glob("*.log")}
    assert [name for name, text in logs.items() if "back into the queue" in text] == [f"{STEP}-{SHARE}"]
    assert before.items() <= markers(corpora).items(), "what was done was done again"
    assert checksums(corpora / "sample") == expected
