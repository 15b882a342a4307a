"""A preparation as arrays of tasks on a real Slurm, one of which is killed: the corpus is the one that a single process makes."""

from __future__ import annotations

import pytest

from data_prep.shards import sha256_file
from finetune.launch.chain import PrepareRun
from tests.slurm.conftest import Shell, wait_for

pytestmark = pytest.mark.slurm

SAMPLE = ["corpus=sample", "shard_characters=4000"]
KILLED = "normalise"


def checksums(shell: Shell, corpora: str) -> dict[str, str]:
    folder = shell.folder / corpora / "sample"
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_array_of_four_with_one_task_killed_midway_ends_with_the_same_corpus(shell: Shell) -> None:
    shell.finetune("prepare", *SAMPLE, "corpora_dir=alone", "workers=1")
    chained = [*SAMPLE, "corpora_dir=chain", "cluster=testcluster", "cluster.prepare.tasks=4"]
    first = PrepareRun.find(shell.finetune("prepare", *chained).stdout.strip(), shell.folder / "chain")
    task = f"{first.jobs[KILLED]}_2"
    wait_for(lambda: shell.queue().get(task) == "RUNNING")
    shell.cluster.slurm("scancel", "--signal=KILL", "--full", task)
    wait_for(lambda: not shell.queue())
    assert not (shell.folder / "chain" / "sample").exists(), "the task was killed, so nothing may have come of it"
    stage = shell.folder / "chain" / ".sample.stages" / "1-normalise"
    before = {path: path.stat().st_mtime_ns for path in stage.glob("done-*.json")}
    assert before
    shell.finetune("prepare", *chained)
    wait_for(lambda: not shell.queue())
    after = {path: path.stat().st_mtime_ns for path in stage.glob("done-*.json")}
    assert before.items() < after.items(), "what the other tasks had done was done again, or the killed one had ended"
    assert checksums(shell, "chain") == checksums(shell, "alone")
