"""Disturbed runs on the test cluster: each must restart by itself, or stop with a diagnosis.

A run that restarts must end with the result of the undisturbed run. `make chaos` disturbs more
runs, at more moments.
"""

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
def undisturbed(box: Sandbox) -> RunFolder:
    """Return a completed run that nothing disturbed."""
    run = box.submit()
    box.wait_for_end(run)
    assert run.state() == "completed", run.failure()
    return run


def assert_same(run: RunFolder, undisturbed: RunFolder) -> None:
    outcome = Outcome("")
    chaos.compare(run, undisturbed, outcome)
    assert not outcome.faults


def endings(run: RunFolder) -> list[str]:
    return [attempt.ending.cause if attempt.ending else "open" for attempt in attempts.read(run.path)]


def step_in_attempt(run: RunFolder, number: int) -> int:
    """Wait until attempt `number` has started; return the number of a step soon after its first."""
    wait_for(lambda: len(attempts.read(run.path)) == number, 600, f"attempt {number}")
    return attempts.read(run.path)[-1].from_step + 2


def test_after_its_time_limit_a_run_with_a_hung_rank_restarts_and_ends_the_same(
    box: Sandbox, undisturbed: RunFolder
) -> None:
    chance = random.Random(os.getpid())
    step = chance.randint(3, 10)
    run = box.submit(box.plant(chaos.HANG, step + 1))
    chaos.unannounced_limit(box, run, step, chance)
    chaos.time_limit(box, run, step_in_attempt(run, 2), chance)
    box.wait_for_end(run)
    # The cause depends on whether the batch script could still close the attempt.
    assert endings(run)[0] in ("killed from outside", "died")
    assert endings(run)[1:] == ["interrupted", "completed"]
    assert_same(run, undisturbed)


def test_a_crash_that_repeats_ends_the_run_with_its_diagnosis(box: Sandbox) -> None:
    outcome = chaos.same_crash(box, random.Random(0))
    assert outcome.faults == []
    assert outcome.requeues == 1


def test_a_run_gives_up_after_max_restarts(box: Sandbox) -> None:
    assert chaos.restart_limit(box, random.Random(os.getpid()), max_restarts=1, nodes=1).faults == []


def test_where_requeue_is_forbidden_the_run_is_submitted_again(box: Sandbox, undisturbed: RunFolder) -> None:
    run = box.submit("cluster.on_interrupt=resubmit", "cluster.nodes=1")
    first_job = box.job(run)
    wait_for(lambda: steps_done(run.path) >= 3, 600, "step 3")
    box.ranks(run)[0].terminate()
    wait_for(lambda: box.job(run) != first_job, 600, "another job")
    box.wait_for_end(run)
    assert endings(run) == ["interrupted", "completed"]
    assert attempts.read(run.path)[0].next_job == attempts.read(run.path)[1].job != first_job
    assert_same(run, undisturbed)


def test_a_node_that_fails_its_preflight_is_avoided_and_a_run_with_a_killed_rank_restarts(
    box: Sandbox, undisturbed: RunFolder
) -> None:
    """Node 1 cannot copy the corpus to its disk. Later, a rank that reads a copy is killed.

    When the run has ended, no copy may be left on a node.
    """
    local = box.cluster.node_local
    box.on_node("node1", "mount", "-o", "remount,ro", str(local))
    try:
        run = box.submit(f"cluster.node_local={local}", "data.stage=true")
        chaos.kill_rank(box, run, step_in_attempt(run, 2), random.Random(os.getpid()))
        box.wait_for_end(run)
    finally:
        box.on_node("node1", "mount", "-o", "remount,rw", str(local))
    assert endings(run) == ["failed preflight", "died", "completed"]
    first, second, third = attempts.read(run.path)
    assert "node1: cannot write into" in first.reason
    assert attempts.excluded_nodes(run.path) == ["node1"]
    assert re.search(r"rank \d on node\d: killed by SIGKILL", second.reason), second.reason
    assert second.nodes == third.nodes == ("node2", "node3")
    log = "".join(path.read_text() for path in run.jobs.glob("*_0_log.out"))
    assert f"corpus copied to the nodes' own disks ({local}" in log
    assert [box.on_node(node, "ls", str(local)) for node in ("node2", "node3")] == ["", ""]
    assert_same(run, undisturbed)


def test_a_cancelled_job_does_not_restart(box: Sandbox) -> None:
    """A cancelled job must not restart.

    Its rank gets the same signal as the rank of a job that is requeued.
    """
    run = box.submit("cluster.nodes=1")
    wait_for(lambda: steps_done(run.path) >= 2, 600, "step 2")
    box.cluster.slurm("scancel", box.job(run))
    box.wait_for_end(run)
    assert len(attempts.read(run.path)) == 1
    assert "CANCELLED" in box.cluster.slurm("scontrol", "show", "job", box.job(run))
