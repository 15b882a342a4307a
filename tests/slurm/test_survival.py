"""Runs on the real test cluster that something befalls: each must come back by itself and end as if nothing
had happened, or stop with its diagnosis. `make chaos` does more of it, at more moments."""

from __future__ import annotations

import os
import random
import re

import pytest

from finetune.runs import attempts
from finetune.runs.folder import RunFolder
from finetune.tracking.spool import steps_done
from slurm.testcluster import chaos
from slurm.testcluster.chaos import Outcome, Sandbox, wait_for
from tests.slurm.conftest import Shell

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def box(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    sandbox = Sandbox(tmp_path_factory.mktemp("survival"), shell.cluster)
    sandbox.prepare()
    return sandbox


@pytest.fixture(scope="module")
def whole(box: Sandbox) -> RunFolder:
    """The undisturbed run."""
    run = box.submit()
    box.wait_for_end(run)
    assert run.state() == "completed", run.failure()
    return run


def assert_same(run: RunFolder, whole: RunFolder) -> None:
    outcome = Outcome("")
    chaos.compare(run, whole, outcome)
    assert not outcome.faults


def endings(run: RunFolder) -> list[str]:
    return [attempt.ending.cause if attempt.ending else "open" for attempt in attempts.read(run.path)]


def after(run: RunFolder, number: int) -> int:
    """A step or two into an attempt."""
    wait_for(lambda: len(attempts.read(run.path)) == number, 600, f"attempt {number}")
    return attempts.read(run.path)[-1].from_step + 2


def test_a_run_comes_back_from_the_time_limit_even_if_a_rank_hangs_and_is_the_same(
    box: Sandbox, whole: RunFolder
) -> None:
    chance = random.Random(os.getpid())
    step = chance.randint(3, 10)
    run = box.submit(box.plant(chaos.HANG, step + 1))
    chaos.unannounced_limit(box, run, step, chance)
    chaos.time_limit(box, run, after(run, 2), chance)
    box.wait_for_end(run)
    assert endings(run)[0] in ("killed from outside", "died"), (
        "as its batch script still had its say, or had not"
    )
    assert endings(run)[1:] == ["interrupted", "completed"]
    assert_same(run, whole)


def test_a_crash_that_repeats_ends_the_run_with_its_diagnosis(box: Sandbox) -> None:
    outcome = chaos.same_crash(box, random.Random(0))
    assert outcome.faults == []
    assert outcome.requeues == 1


def test_the_restart_limit_holds(box: Sandbox) -> None:
    assert chaos.restart_limit(box, random.Random(os.getpid()), max_restarts=1, nodes=1).faults == []


def test_where_requeue_is_forbidden_the_run_is_submitted_again(box: Sandbox, whole: RunFolder) -> None:
    run = box.submit("cluster.on_interrupt=resubmit", "cluster.nodes=1")
    first_job = box.job(run)
    wait_for(lambda: steps_done(run.path) >= 3, 600, "step 3")
    box.ranks(run)[0].terminate()
    wait_for(lambda: box.job(run) != first_job, 600, "another job")
    box.wait_for_end(run)
    assert endings(run) == ["interrupted", "completed"]
    assert attempts.read(run.path)[0].next_job == attempts.read(run.path)[1].job != first_job
    assert_same(run, whole)


def test_a_node_that_fails_its_preflight_is_avoided_and_a_killed_rank_comes_back(
    box: Sandbox, whole: RunFolder
) -> None:
    """The disk of node 1, to which the corpus is to be copied, cannot be written; then a rank is killed that
    uses such a copy. Nothing of the copies is left in the end."""
    local = box.cluster.node_local
    box.on_node("node1", "mount", "-o", "remount,ro", str(local))
    try:
        run = box.submit(f"cluster.node_local={local}", "data.stage=true")
        chaos.kill_rank(box, run, after(run, 2), random.Random(os.getpid()))
        box.wait_for_end(run)
    finally:
        box.on_node("node1", "mount", "-o", "remount,rw", str(local))
    assert endings(run) == ["failed preflight", "died", "completed"]
    first, second, third = attempts.read(run.path)
    assert "node1 cannot write into" in first.reason
    assert attempts.excluded_nodes(run.path) == ["node1"]
    assert re.search(r"rank \d on node\d: killed by SIGKILL", second.reason), second.reason
    assert second.nodes == third.nodes == ("node2", "node3")
    log = "".join(path.read_text() for path in run.jobs.glob("*_0_log.out"))
    assert f"corpus on the nodes' own disks ({local}" in log
    assert [box.on_node(node, "ls", str(local)) for node in ("node2", "node3")] == ["", ""]
    assert_same(run, whole)


def test_a_cancelled_job_does_not_come_back(box: Sandbox) -> None:
    """Its rank hears the same signal as at a requeue, and saves; its batch script must not bring it back."""
    run = box.submit("cluster.nodes=1")
    wait_for(lambda: steps_done(run.path) >= 2, 600, "step 2")
    box.cluster.slurm("scancel", box.job(run))
    box.wait_for_end(run)
    assert len(attempts.read(run.path)) == 1
    assert "CANCELLED" in box.cluster.slurm("scontrol", "show", "job", box.job(run))
