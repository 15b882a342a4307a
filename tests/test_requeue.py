"""Calls of the batch script's helper (finetune.job.batch_script).

The tests check the run folder and the helper's requests to Slurm. Slurm's commands are stand-ins on
PATH; tests/slurm uses the real ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from finetune.job import batch_script, scontrol
from finetune.runs import attempts
from finetune.runs.state import EndingCause
from tests.simulated_batch import Batch

COMPLETED, STOPPED, MISTAKE, INTERRUPTED, KILLED, DIED, PREFLIGHT, DEAD_NODE = EndingCause


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    return Batch(tmp_path, monkeypatch)


def test_a_completed_run_does_not_restart(batch: Batch) -> None:
    assert batch.begin() == 0
    batch.train(1, 2, 3, saved=3)
    batch.write("outcome.json", state="completed")
    assert batch.end(0) == 0
    assert (batch.causes(), batch.requests()) == ([COMPLETED], [])


def test_a_stopped_run_does_not_restart(batch: Batch) -> None:
    batch.begin()
    batch.write("outcome.json", state="stopped")
    assert batch.end(0) == 1, "a job that depends on the run's result must not start"
    assert (batch.causes(), batch.requests()) == ([STOPPED], [])


def test_an_interrupted_run_is_requeued(batch: Batch) -> None:
    batch.begin()
    batch.train(1, 2, saved=2)
    batch.write("outcome.json", state="interrupted")
    batch.end(0)
    assert (batch.causes(), batch.requests()) == ([INTERRUPTED], ["requeue 7"])
    assert not (batch.run / "outcome.json").exists(), (
        "the next attempt would take the file for its own outcome"
    )


def test_after_a_rank_was_killed_the_run_is_requeued_and_the_rank_named(batch: Batch) -> None:
    batch.begin()
    batch.train(1, 2, 3)
    (batch.run / "jobs" / "present").mkdir()
    for node in ("n1", "n2"):
        (batch.run / "jobs" / "present" / node).touch()
    batch.write(
        "failure-rank-0.json", time=1.0, rank=0, error="Connection closed by peer", kind="crash", nodes=[]
    )
    batch.end(137)
    (attempt,) = attempts.read(batch.run)
    assert attempt.ending is not None
    assert (attempt.ending.cause, attempt.ending.last_step, attempt.ending.died_at) == (DIED, 3, 4)
    assert "rank 1: its log shows no known cause; its log is empty" in attempt.reason
    assert batch.requests() == ["requeue 7"]
    assert not list(batch.run.glob("failure*"))


def test_after_a_users_mistake_the_run_is_not_restarted(batch: Batch) -> None:
    batch.begin()
    batch.write(
        "failure-rank-1.json", time=1.0, rank=1, error="lr is too high: lower it", kind="mistake", nodes=[]
    )
    assert batch.end(1) == 1
    assert batch.requests() == []
    assert json.loads((batch.run / "failure.json").read_text())["error"] == "lr is too high: lower it"


def test_a_node_that_fails_its_preflight_is_avoided_by_later_attempts(batch: Batch) -> None:
    batch.begin()
    batch.write(
        "failure-rank-1.json", time=1.0, rank=1, error="preflight: n2 …", kind="preflight", nodes=["n2"]
    )
    batch.end(1)
    assert batch.requests() == ["requeue 7", "update jobid=7 ExcNodeList=n2"]
    # If Slurm allocates the excluded node nevertheless, the run is requeued instead of started.
    assert batch.begin(nodes="n2+n3") == batch_script.BACK_IN_QUEUE
    assert batch.requests()[2:] == ["requeue 7", "update jobid=7 ExcNodeList=n2"]
    assert batch.begin(nodes="n1+n3") == 0
    batch.write("failure-rank-0.json", time=1.0, rank=0, error="RuntimeError: …", kind="crash", nodes=[])
    batch.end(1)
    assert batch.requests()[-1] == "update jobid=7 ExcNodeList=n2"


def test_a_failure_on_every_node_blames_no_node(batch: Batch) -> None:
    batch.begin()
    for rank, node in enumerate(("n1", "n2")):
        batch.write(
            f"failure-rank-{rank}.json",
            time=1.0,
            rank=rank,
            error="preflight: no GPU",
            kind="preflight",
            nodes=[node],
        )
    assert batch.end(1) == 1
    assert batch.requests() == []


def test_a_node_whose_ranks_never_reached_the_shared_folder_is_avoided(batch: Batch) -> None:
    batch.begin()
    (batch.run / "jobs" / "present").mkdir()
    (batch.run / "jobs" / "present" / "n1").touch()
    batch.end(1)
    assert batch.requests() == ["requeue 7", "update jobid=7 ExcNodeList=n2"]


DEAD = {
    "down": "BootTime=2020-01-01T00:00:00 State=DOWN+CLOUD",
    "does not respond": "BootTime=2020-01-01T00:00:00 State=ALLOCATED*",
    "restarted": "BootTime=2020-01-01T00:00:00 SlurmdStartTime=2100-01-01T00:00:00 State=IDLE",
}


@pytest.mark.parametrize("how", DEAD)
def test_the_next_attempt_finds_a_node_that_lost_power(batch: Batch, how: str) -> None:
    batch.begin()
    batch.train(1, 2, 3)
    batch.set_answers(n2=DEAD[how])
    assert batch.begin(nodes="n1+n3") == 0  # `end` did not run
    assert batch.causes() == [DEAD_NODE, None]
    assert attempts.excluded_nodes(batch.run) == ["n2"]
    first, second = attempts.read(batch.run)
    assert first.ending is not None
    assert first.ending.last_step == 3
    assert second.nodes == ("n1", "n3")


def test_a_node_found_dead_later_explains_the_death_of_a_rank(batch: Batch) -> None:
    batch.begin()
    batch.write(
        "failure-rank-0.json", time=1.0, rank=0, error="Connection closed by peer", kind="crash", nodes=[]
    )
    batch.end(1)
    batch.set_answers(n2=DEAD["down"])
    assert batch.begin(nodes="n1+n3") == 0
    assert batch.causes() == [DEAD_NODE, None]


def test_a_requeue_from_outside_is_distinguished_from_a_crash(batch: Batch) -> None:
    batch.begin()
    batch.train(1, 2)
    batch.write(
        "failure-rank-0.json", time=1.0, rank=0, error="Connection closed by peer", kind="crash", nodes=[]
    )
    assert batch.begin() == 0
    assert batch.causes() == [KILLED, None]
    # In this attempt the ranks could save, but the batch script was killed.
    batch.write("outcome.json", state="interrupted")
    assert batch.begin() == 0
    assert batch.causes() == [KILLED, INTERRUPTED, None]


@pytest.mark.parametrize("left", ["interrupted", None])
def test_a_job_that_slurm_ends_is_not_restarted(batch: Batch, left: str | None) -> None:
    """The helper requests nothing, because it cannot distinguish two cases.

    A job that was requeued from outside is restarted by Slurm itself. A cancelled job must not
    restart.
    """
    batch.begin()
    if left:
        batch.write("outcome.json", state=left)
    batch.set_answers(job="COMPLETING")
    batch.end(0 if left else 143)
    assert batch.requests() == []


def test_after_a_time_limit_that_ended_the_ranks_the_run_is_requeued(batch: Batch) -> None:
    batch.begin()
    batch.set_answers(job="COMPLETING", reason="TimeLimit")
    batch.end(143)
    assert batch.requests() == ["requeue 7"]


def test_the_guard_requeues_a_run_whose_ranks_are_running_at_the_time_limit(batch: Batch) -> None:
    batch.begin()
    batch.train(1, 2, 3, saved=2)
    batch.set_answers(job="COMPLETING", reason="TimeLimit")
    batch.call("guard")
    assert batch.requests() == ["requeue 7"]
    assert batch.begin() == 0  # `end` did not run
    assert batch.causes() == [KILLED, None]


@pytest.mark.parametrize("reason", ["None", "Preempted"])
def test_the_guard_ignores_other_ends_of_the_job(batch: Batch, reason: str) -> None:
    batch.begin()
    batch.set_answers(job="COMPLETING", reason=reason)
    batch.call("guard")
    assert batch.requests() == []


def test_the_guard_ends_with_the_batch_script(batch: Batch) -> None:
    batch.begin()
    script = subprocess.Popen(["sleep", "60"])
    policy = ["--max-restarts", "3", "--on-interrupt", "requeue", "--world-size", "2"]
    arguments = ["guard", str(batch.run), *policy, "--script", str(script.pid)]
    guard = subprocess.Popen([sys.executable, "-m", "finetune.job.batch_script", *arguments])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            guard.wait(batch_script.POLL_SECONDS * 2)
        script.kill()
        script.wait()
        assert guard.wait(60) == 0
        assert batch.requests() == []
    finally:
        guard.kill()


def test_the_guard_ignores_a_closed_attempt(batch: Batch) -> None:
    batch.begin()
    batch.write("outcome.json", state="completed")
    batch.end(0)
    batch.set_answers(job="COMPLETING", reason="TimeLimit")
    batch.call("guard")
    assert batch.requests() == []


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(
    ("state", "code"), [("completed", batch_script.DONE), ("stopped", batch_script.FAILED)]
)
def test_a_run_that_ended_while_the_guard_requeued_it_does_not_run_again(
    batch: Batch, state: str, code: int, closed: bool
) -> None:
    batch.begin()
    batch.set_answers(job="COMPLETING", reason="TimeLimit")
    batch.call("guard")
    batch.write("outcome.json", state=state)
    if closed:
        batch.end(0)
    assert batch.begin() == code
    assert batch.causes() == [state]
    batch.job = "8"
    assert batch.begin() == batch_script.PROCEED, "a person submitted it again"


def test_where_requeue_is_forbidden_the_guard_submits_once(batch: Batch) -> None:
    (batch.run / "jobs" / "7_submitted.pkl").write_text("")
    batch.begin()
    batch.train(1, 2, 3, saved=2)
    batch.set_answers(job="COMPLETING", reason="TimeLimit")
    batch.call("guard", on_interrupt="resubmit")
    assert batch.requests() == RESUBMISSION
    batch.end(143, on_interrupt="resubmit")  # the batch script survived and calls `end`
    assert batch.requests() == RESUBMISSION
    assert [attempt.next_job for attempt in attempts.read(batch.run)] == ["8"]
    batch.job = "8"
    assert batch.begin() == batch_script.PROCEED
    assert [attempt.job for attempt in attempts.filter_by_submission(attempts.read(batch.run), "8")] == [
        "7",
        "8",
    ]


@pytest.mark.parametrize(
    ("state", "code"), [("completed", batch_script.DONE), ("stopped", batch_script.FAILED)]
)
def test_a_run_that_ended_while_the_guard_resubmitted_it_does_not_run_again(
    batch: Batch, state: str, code: int
) -> None:
    (batch.run / "jobs" / "7_submitted.pkl").write_text("")
    batch.begin()
    batch.set_answers(job="COMPLETING", reason="TimeLimit")
    batch.call("guard", on_interrupt="resubmit")
    batch.write("outcome.json", state=state)
    batch.job = "8"
    assert batch.begin() == code
    assert batch.causes() == [state]


def reach_time_limit(batch: Batch) -> None:
    """Start an attempt on a site that forbids requeue, and let it reach its time limit."""
    (batch.run / "jobs" / "7_submitted.pkl").write_text("")
    batch.begin()
    batch.set_answers(job="COMPLETING", reason="TimeLimit")


RESUBMISSION = ["sbatch --parsable --hold --dependency=afterany:7 submit.sh", "release 8"]


def test_guard_and_end_together_submit_one_job(batch: Batch) -> None:
    reach_time_limit(batch)
    batch.log.with_name("log.slow").touch()
    guard = threading.Thread(target=batch.call, args=("guard",), kwargs={"on_interrupt": "resubmit"})
    guard.start()
    while not batch.requests():
        time.sleep(0.05)
    batch.end(143, on_interrupt="resubmit")
    guard.join()
    assert batch.requests() == RESUBMISSION
    assert [attempt.next_job for attempt in attempts.read(batch.run)] == ["8"]


def test_end_submits_what_the_guard_could_not_submit(batch: Batch) -> None:
    reach_time_limit(batch)
    batch.log.with_name("log.breaks").touch()
    with pytest.raises(RuntimeError):
        batch.call("guard", on_interrupt="resubmit")
    batch.end(143, on_interrupt="resubmit")
    assert batch.requests() == [RESUBMISSION[0], *RESUBMISSION]
    assert attempts.read(batch.run)[-1].next_job == "8"


def test_while_slurm_takes_no_more_jobs_the_resubmission_waits(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs of a sweep reach their time limit together. Until they end, they fill the queue."""
    monkeypatch.setattr(scontrol, "PAUSE", 0.1)
    reach_time_limit(batch)
    batch.log.with_name("log.full").touch()
    batch.end(143, on_interrupt="resubmit")
    assert batch.requests() == [RESUBMISSION[0], *RESUBMISSION]
    assert attempts.read(batch.run)[-1].next_job == "8"


def test_if_sbatch_does_not_answer_the_run_ends_with_that_reason(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scontrol, "SBATCH_SECONDS", 0.2)
    batch.log.with_name("log.slow").touch()
    batch.begin()
    assert batch.end(143, on_interrupt="resubmit") == batch_script.FAILED
    assert "it cannot be restarted: sbatch did not answer within" in (batch.run / "failure.json").read_text()


def test_end_releases_what_the_guard_could_not_release(batch: Batch) -> None:
    reach_time_limit(batch)
    attempts.hand_over(batch.run, 1, "8", time.time())
    batch.set_answers(job="COMPLETING", reason="TimeLimit", reason8="JobHeldUser")
    batch.end(143, on_interrupt="resubmit")
    assert batch.requests() == ["release 8"]


def test_a_resubmitted_job_is_recorded_before_it_can_start(batch: Batch) -> None:
    reach_time_limit(batch)
    batch.set_answers(job="COMPLETING", reason="TimeLimit", refuses="Slurm is away")
    with pytest.raises(RuntimeError, match="Slurm is away"):
        batch.call("guard", on_interrupt="resubmit")
    assert attempts.read(batch.run)[-1].next_job == "8"


def test_with_on_interrupt_stop_a_preempted_run_stays_ended(batch: Batch) -> None:
    """Slurm may restart a preempted job although it was submitted with --no-requeue."""
    batch.begin()
    batch.train(1, 2, saved=2)
    batch.write("outcome.json", state="interrupted")
    batch.set_answers(job="COMPLETING", reason="Preempted")
    assert batch.end(0, on_interrupt="stop") == 1
    assert batch.call("begin", on_interrupt="stop") == 1
    assert (batch.causes(), batch.requests()) == ([INTERRUPTED], [])
    assert json.loads((batch.run / "outcome.json").read_text())["state"] == "interrupted"
    batch.job = "8"
    assert batch.call("begin", on_interrupt="stop") == 0, "a person submitted it again"


def test_with_on_interrupt_stop_a_run_stays_ended_after_a_power_failure(batch: Batch) -> None:
    batch.begin()
    batch.train(1, 2, saved=2)
    batch.set_answers(n2=DEAD["down"])
    assert batch.call("begin", on_interrupt="stop") == 1
    assert batch.causes() == [DEAD_NODE]
    assert "`finetune retry` resumes it" in json.loads((batch.run / "failure.json").read_text())["error"]


def test_a_new_submission_grants_new_restarts(batch: Batch) -> None:
    for step in range(1, 4):
        batch.begin()
        batch.train(step)
        batch.end(137)
    batch.begin()
    batch.train(9)
    assert batch.end(137) == 1
    assert "gave up after 3 restarts" in json.loads((batch.run / "failure.json").read_text())["error"]
    batch.job = "8"
    assert batch.begin() == 0
    batch.train(10)
    batch.end(137)
    assert batch.requests()[-1] == "requeue 8"


def test_a_requeue_by_slurm_before_our_own_is_not_a_failure(batch: Batch) -> None:
    """Slurm requeues the job after the helper has queried the job's state.

    The helper then requests a requeue itself, and Slurm refuses this request.
    """
    batch.begin()
    batch.write("outcome.json", state="interrupted")
    batch.set_answers(job_first="RUNNING", job="COMPLETING", refuses="Job is pending execution for job 7")
    batch.end(0)
    assert not (batch.run / "failure.json").exists()
    assert batch.causes() == [INTERRUPTED]


def test_a_run_that_cannot_be_restarted_records_the_reason(batch: Batch) -> None:
    batch.begin()
    batch.write("outcome.json", state="interrupted")
    batch.set_answers(refuses="Requested operation is presently disabled")
    assert batch.end(0) == 1
    assert "presently disabled" in json.loads((batch.run / "failure.json").read_text())["error"]


def test_a_truncated_line_of_attempts_is_skipped(batch: Batch) -> None:
    batch.begin()
    with (batch.run / "attempts.jsonl").open("a") as file:
        file.write('{"event": "end", "attem')
    batch.set_answers(n1=DEAD["down"])
    assert batch.begin(nodes="n2+n3") == 0
    assert batch.causes() == [DEAD_NODE, None]
