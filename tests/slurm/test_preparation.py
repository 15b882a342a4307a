"""Preparations as jobs on a real Slurm.

Killed tasks are requeued, and no more jobs are submitted than Slurm takes.
"""

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
from finetune.config.cluster import ClusterConfig, PrepareJobs
from finetune.config.site import QueueLimits, SiteConfig
from finetune.launch import prepare_jobs
from finetune.launch.prepare_layout import Layout
from tests.data_prep.sample import checksums, markers
from tests.data_prep.sample import sharded_sample_config as config
from tests.slurm.conftest import Shell, wait_for

pytestmark = pytest.mark.slurm

STEP, SHARE, OF = "normalise", 2, 3
# The settings for trainings (constraint, python, setup, sbatch) would make a preparation wait
# forever or fail at its start; those in `prepare` must replace them.
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
LIMIT = 20  # jobs of a user in the queue; the preparation below has 22 steps


def process_of(share: int, work: Path) -> psutil.Process | None:
    """Return the Python process of task `share` of STEP, or None if there is none.

    The process can be found because this machine sees the processes of the test cluster's nodes.
    """
    arguments = ["data_prep.pipeline", str(work), STEP, "--task", str(share)]
    for process in psutil.process_iter(["cmdline"]):
        if all(argument in (process.info["cmdline"] or []) for argument in arguments):
            return process
    return None


def kill_midway(work: Path) -> None:
    """Send SIGKILL to the process of task SHARE of STEP when it has finished its first shard."""
    wait_for(lambda: process_of(SHARE, work), seconds=120)
    process = process_of(SHARE, work)
    assert process is not None
    shards = [shard.name for shard in Preparation.load(work).shards("read")][SHARE::OF]
    done = [work / "1-normalise" / f"done-{shard}.json" for shard in shards]
    deadline = time.monotonic() + 60
    while not done[0].exists():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert not done[-1].exists(), "the task ended before it could be killed"


def test_with_two_tasks_per_job_and_one_killed_midway_the_corpus_is_the_same(
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
    assert [name for name, text in logs.items() if "a task was killed: requeued" in text] == [f"{STEP}-jobs"]
    assert {f"{STEP}-{task}" for task in range(OF)} < logs.keys(), "each task has a log of its own"
    assert before.items() <= markers(corpora).items(), "finished work was repeated"
    assert checksums(corpora / "sample") == expected
    assert set((tmp_path / "greetings").read_text().splitlines()) == {"god dag"}


def test_a_queue_that_takes_few_jobs_gets_few(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", shell.environment["SLURM_CONF"])
    for arguments in (
        ["add", "qos", "few", f"MaxSubmitJobsPerUser={LIMIT}"],
        ["modify", "user", "root", "set", "qos+=few"],
    ):
        shell.cluster.slurm("sacctmgr", "-i", "-Q", *arguments)
    steps = [(f"{kind}{number}", kind == "cut") for number in range(11) for kind in ("whole", "cut")]
    jobs = replace(CLUSTER.prepare, tasks_per_job=None, partition="debug")
    with shell.closed():
        unknown = replace(CLUSTER, prepare=replace(jobs, qos="few"))
        run = prepare_jobs.submit("sample", tmp_path / ".sample.stages", steps, OF, unknown)
        assert run.layout == Layout(OF, OF, is_one_job=True), "Slurm refuses 22 steps as too many jobs"
        assert list(shell.queue().values()) == ["PENDING"]
        script = (run.folder / "whole0-to-cut10.sh").read_text()
        run_lines = [line for line in script.splitlines() if line.startswith("  run ")]
        assert [line.split()[1] for line in run_lines] == [name for name, _ in steps]
        site = SiteConfig(queues={"debug": QueueLimits(max_submitted=34)})
        known = replace(CLUSTER, prepare=jobs, site=site)
        # Of 34 jobs, one is queued, and 11 run the steps that cannot be split. So 22 jobs are left
        # for 11 arrays.
        layout = prepare_jobs.choose_layout(32, steps, known)
        assert layout == Layout(8, 4), "two jobs per array, and four times 1G on a node of 8000M"
        assert layout.num_jobs(steps) == 33
        full = replace(known, site=SiteConfig(queues={"debug": QueueLimits(max_submitted=1)}))
        with pytest.raises(
            ValueError, match="Slurm accepts at most 1 jobs of a user there, and you have 1; wait"
        ):
            prepare_jobs.choose_layout(32, steps, full)
        assert run.cancel().startswith("cancelled")
        assert not run.is_alive()
