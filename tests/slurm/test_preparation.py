"""A preparation on a real Slurm, its tasks two to a job, one of them killed midway: it comes back, and the
corpus is the same. And how it is laid out where the queue takes few jobs of a user."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from data_prep import pipeline
from data_prep.plan import Preparation
from finetune.config.cluster import ClusterConfig, PrepareJobs, QueueLimits, SiteConfig
from finetune.launch import prepare_jobs
from finetune.launch.prepare_layout import Layout
from tests.data_prep.sample import checksums, markers
from tests.data_prep.sample import sharded_sample_config as config
from tests.slurm.conftest import Shell, wait_for

pytestmark = pytest.mark.slurm

STEP, SHARE, OF = "normalise", 2, 3
# the training's half is of no use to a preparation: it would wait for ever, or fail in its first line
CLUSTER = ClusterConfig(
    name="testcluster",
    scheduler="slurm",
    account="nn9999k",
    partition="debug",
    constraint="none_has_it",
    python="/nowhere/python",
    setup=["exit 3"],
    sbatch={"begin": "now+10days"},
    prepare=PrepareJobs(
        memory="1G",
        timeout_min=10,
        tasks_per_job=2,
        setup=['echo "$GREETING" >>$FOLDER/greetings'],
        env={"GREETING": "god dag"},
        sbatch={"comment": "packed"},
    ),
)
LIMIT = 20  # of jobs in the queue: a preparation has more steps


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
    shards = [shard.name for shard in Preparation.load(work).shards("read")][SHARE::OF]
    done = [work / "1-normalise" / f"done-{shard}.json" for shard in shards]
    deadline = time.monotonic() + 60
    while not done[0].exists():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert not done[-1].exists(), "it ended before it could be killed"


def test_two_tasks_a_job_with_one_killed_midway_end_with_the_same_corpus(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = checksums(pipeline.prepare(config(tmp_path / "alone")).folder)
    monkeypatch.setenv("SLURM_CONF", shell.environment["SLURM_CONF"])
    monkeypatch.setenv("FOLDER", str(tmp_path))
    corpora = tmp_path / "array"
    work, steps = corpora / ".sample.stages", pipeline.plan(config(corpora, shard_characters=4_000))
    run = prepare_jobs.submit("sample", work, [(step.name, step.parallel) for step in steps], OF, CLUSTER)
    details = shell.cluster.slurm("scontrol", "show", "job", run.jobs[STEP])
    assert "ArrayTaskId=0-1" in details, "three tasks in two jobs"
    assert "NumCPUs=2" in details
    assert "Comment=packed" in details
    kill_midway(work)
    before = markers(corpora)
    wait_for(lambda: not run.is_alive(), seconds=300)
    assert set(run.states().values()) == {"COMPLETED"}
    logs = {log.stem: log.read_text() for log in run.logs()}
    assert [name for name, text in logs.items() if "back into the queue" in text] == [f"{STEP}-jobs"]
    assert {f"{STEP}-{task}" for task in range(OF)} < logs.keys(), "each task has a log of its own"
    assert before.items() <= markers(corpora).items(), "what was done was done again"
    assert checksums(corpora / "sample") == expected
    assert set((tmp_path / "greetings").read_text().splitlines()) == {"god dag"}


def test_a_queue_that_takes_few_jobs_gets_few(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", shell.environment["SLURM_CONF"])
    for words in (
        ["add", "qos", "few", f"MaxSubmitJobsPerUser={LIMIT}"],
        ["modify", "user", "root", "set", "qos+=few"],
    ):
        shell.cluster.slurm("sacctmgr", "-i", "-Q", *words)
    steps = [(f"{kind}{number}", kind == "cut") for number in range(11) for kind in ("whole", "cut")]
    jobs = replace(CLUSTER.prepare, tasks_per_job=None, partition="debug")
    with shell.closed():
        unknown = replace(CLUSTER, prepare=replace(jobs, qos="few"))
        run = prepare_jobs.submit("sample", tmp_path / ".sample.stages", steps, OF, unknown)
        assert run.layout == Layout(OF, OF, is_one_job=True), "22 steps are too many jobs, says Slurm"
        assert list(shell.queue().values()) == ["PENDING"]
        script = (run.folder / "whole0-to-cut10.sh").read_text()
        assert [line.split()[1] for line in script.splitlines() if line.startswith("  run ")] == [
            name for name, _ in steps
        ]
        known = replace(
            CLUSTER, prepare=jobs, site=SiteConfig(queues={"debug": QueueLimits(max_submitted=34)})
        )
        layout = prepare_jobs.lay_out(
            32, steps, known
        )  # one job is there, 11 are for steps that cannot be cut: 22 for 11 arrays
        assert layout == Layout(8, 4), "two jobs an array, and four times 1G to a node of 8000M"
        assert layout.num_jobs(steps) == 33
        full = replace(known, site=SiteConfig(queues={"debug": QueueLimits(max_submitted=1)}))
        with pytest.raises(
            ValueError, match="its queue takes 1 jobs of a user, and 1 of yours are there; wait"
        ):
            prepare_jobs.lay_out(32, steps, full)
        assert run.cancel().startswith("cancelled")
        assert not run.is_alive()
