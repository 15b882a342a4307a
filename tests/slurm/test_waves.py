"""A sweep larger than Slurm's submit limit, on the test cluster.

The sweep is submitted in waves: before a job ends, it submits points that wait.
`python -m slurm.testcluster.waves` runs a larger sweep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from finetune.runs.folder import RunFolder
from slurm.testcluster import waves
from slurm.testcluster.chaos import Sandbox
from tests.slurm.conftest import Shell, training, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


@pytest.fixture
def limited(shell: Shell) -> Iterator[Shell]:
    """Limit a user to three jobs in the queue. A sweep leaves one of the three places free."""
    shell.empty_queue()
    waves.limit_submissions(shell.cluster, 3)
    yield shell
    shell.empty_queue()


def test_a_sweep_over_the_limits_completes_in_waves_after_its_shell_was_killed(limited: Shell) -> None:
    """Run a sweep of seven points.

    Slurm takes three jobs per user, and arrays of up to three tasks. The last array therefore has
    one point. One point fails, and one is cancelled while it waits; a retry submits these two
    together.
    """
    shell = limited
    settings = training(
        *waves.write_rank_stand_in(shell.folder, seconds=0.3, failing_seed=3),
        f"cluster.qos={waves.QOS}",
        "cluster.site.max_array_size=3",
        "seed=range(0,7)",
        "name=wave",
    )
    with shell.closed():
        printed = waves.submit_from_a_shell_that_is_killed(Sandbox(shell.folder, shell.cluster), settings)
        message = (
            "7 runs, 2 submitted now; Slurm takes 3 jobs of yours at a time (qos few): the others follow"
        )
        assert message in printed
        runs = [run for run in RunFolder.all(shell.folder / "runs") if run.id.startswith("wave-")]
        runs.sort(key=lambda run: run.config().seed)
        assert len(shell.queue()) == 2
        status = " ".join(shell.finetune("status", str(runs[0].sweep())).stdout.split())
        assert status.count("queued (waits for a place in the queue)") == 5
        assert len(shell.queue()) == 2, "one place is kept for the next job"
        assert "cancelled" in shell.finetune("cancel", runs[5].id).stderr
    most = 0

    def has_ended() -> bool:
        nonlocal most
        most = max(most, len(shell.queue()))
        return not shell.queue()

    wait_for(has_ended)
    assert [run.state() for run in runs] == [
        *["completed"] * 3,
        "failed",
        "completed",
        "cancelled",
        "completed",
    ]
    assert most <= 3
    started = Counter(run for run, _ in waves.read_starts(shell.folder))
    assert started == Counter(run.id for run in runs if run != runs[5])
    assert not list((shell.folder / "runs" / "sweeps" / str(runs[0].sweep())).glob("*/waves.json"))
    assert set(shell.finetune("retry", str(runs[0].sweep())).stdout.split()) == {runs[3].id, runs[5].id}
    wait_for(lambda: not shell.queue())
    assert {run.state() for run in runs} == {"completed"}
