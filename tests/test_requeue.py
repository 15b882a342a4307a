"""The end of an attempt: the decision on a restart, and the calls of the batch script's helper.

Slurm is a pair of programs on PATH here; tests/slurm uses the real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune.job import batch_script, scontrol
from finetune.runs import attempts
from finetune.runs.attempts import Ending, decide
from finetune.runs.state import EndingCause

COMPLETED, STOPPED, MISTAKE, INTERRUPTED, KILLED, DIED, PREFLIGHT, DEAD_NODE = EndingCause


def ending(cause: EndingCause, last: int = 0, saved: int = 0, start: int = 0, detail: str = "why") -> Ending:
    return Ending(cause, from_step=start, last_step=last, saved_step=saved, detail=detail)


@dataclass(frozen=True)
class Case:
    """The ending of an attempt and of those before it, and the expected decision."""

    id: str
    how: Ending
    restarts: bool
    words: str = ""
    earlier: tuple[Ending, ...] = ()


CRASH = ending(DIED, 17, 10)
PASSING = tuple(ending(INTERRUPTED, 10 * n, 10 * n, 10 * n - 10) for n in range(1, 9))
TWO_RESTARTS = (CRASH, ending(DEAD_NODE, 19, 10, 10))
THREE_RESTARTS = (*TWO_RESTARTS, ending(DIED, 23, 20, 10))
PREFLIGHTS_APART = (ending(PREFLIGHT), ending(INTERRUPTED, 9, 9))
CASES = [
    Case("done", ending(COMPLETED, 30, 30), False, "completed"),
    Case("a person's wish", ending(STOPPED, 12, 12), False, "stopped as asked"),
    Case("a user's mistake", ending(MISTAKE, detail="lr is too high"), False, "lr is too high"),
    Case("time limit", ending(INTERRUPTED, 12, 12), True, "interrupted after step 12"),
    Case("dead rank", CRASH, True, "died after step 17"),
    Case("dead node", ending(DEAD_NODE, 17, 10), True, "dead node"),
    Case("bad node", ending(PREFLIGHT), True, "failed preflight"),
    Case("twice at one step", ending(DIED, 17, 10, 10), False, "died 2 times at step 18: why", (CRASH,)),
    Case(
        "a dead node in between",
        ending(DIED, 17, 10, 10),
        False,
        "died 2 times at step 18",
        (CRASH, ending(DEAD_NODE, 12, 10, 10)),
    ),
    Case(
        "an interruption at the step of a crash",
        ending(DIED, 17, 17, 17),
        True,
        "died after",
        (ending(INTERRUPTED, 17, 17),),
    ),
    Case(
        "twice before any step",
        ending(DIED),
        False,
        "died 2 times before the end of its first step: why",
        (ending(DIED),),
    ),
    Case("one step further", ending(DIED, 18, 10, 10), True, "died after step 18", (CRASH,)),
    Case("a dead node at the step of a crash", ending(DEAD_NODE, 17, 10, 10), True, earlier=(CRASH,)),
    Case("three preflights", ending(PREFLIGHT), False, "3 preflights in a row", (ending(PREFLIGHT),) * 2),
    Case(
        "three preflights, not in a row",
        ending(PREFLIGHT),
        True,
        earlier=(*PREFLIGHTS_APART, ending(PREFLIGHT)),
    ),
    Case("as many restarts as allowed", ending(DIED, 23, 20, 10), True, earlier=TWO_RESTARTS),
    Case(
        "one more",
        ending(DIED, 33, 30, 20),
        False,
        "gave up after 3 restarts (cluster.max_restarts); the last attempt: died, why",
        THREE_RESTARTS,
    ),
    Case(
        "time limits that brought it further are free", ending(INTERRUPTED, 90, 90, 80), True, earlier=PASSING
    ),
    Case(
        "those that did not are not",
        ending(INTERRUPTED, 9, 9, 9),
        False,
        "gave up after 3",
        (ending(INTERRUPTED, 9, 9, 9),) * 3,
    ),
    Case(
        "killed without having saved",
        ending(KILLED, 15, 10, 10),
        False,
        "gave up after 3",
        (ending(KILLED, 14, 10, 10),) * 3,
    ),
    Case("killed, having saved", ending(KILLED, 25, 20, 10), True, earlier=(ending(KILLED, 14, 10, 0),) * 3),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_run_restarts_or_ends_depending_on_its_endings(case: Case) -> None:
    decision = decide(case.how, list(case.earlier), max_restarts=3)
    assert decision.restart == case.restarts
    assert case.words in decision.reason
    assert decision.failed == (not case.restarts and case.how.cause not in (COMPLETED, STOPPED))


# --- calls of the batch script's helper ---------------------------------------------------------

SBATCH = """\
#!/bin/sh
echo "sbatch $@" >> {log}
if [ -e {log}.breaks ]; then rm {log}.breaks; exit 1; fi
if [ -e {log}.full ]; then
    rm {log}.full
    echo "Job violates accounting/QOS policy (job submit limit, …)" >&2
    exit 1
fi
if [ -e {log}.slow ]; then sleep 2; fi
echo 8
"""
SCONTROL = """\
#!{python} -IS
import json, os, sys
words = sys.argv[1:]
with open("{log}", "a") as log:
    log.write(" ".join(words) + "\\n")
answers = json.load(open("{answers}"))
if words[:2] == ["show", "hostnames"]:
    print("\\n".join(words[2].split("+")))
elif words[:2] == ["show", "job"]:
    first = open("{log}").read().count("show job") == 1 and answers.get("job_first")
    reason = answers.get("reason" + words[2]) or answers.get("reason", "None")
    print("JobId=7 JobState=" + (first or answers.get("job", "RUNNING")) + " Reason=" + reason)
    print("Command=submit.sh")
elif words[:2] == ["show", "node"]:
    healthy = "BootTime=2020-01-01T00:00:00 State=ALLOCATED"
    print("NodeName=" + words[2] + " " + answers.get(words[2], healthy))
elif "refuses" in answers:
    print(answers["refuses"], file=sys.stderr)
    sys.exit(1)
"""


class Batch:
    """A run folder, and calls of its batch script's helper in a simulated job."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = folder / "run"
        (self.run / "jobs").mkdir(parents=True)
        self.log = folder / "log"
        self.answers = folder / "answers"
        self.answers.write_text("{}")
        (folder / "bin").mkdir()
        for name, text in {"scontrol": SCONTROL, "sbatch": SBATCH}.items():
            program = folder / "bin" / name
            program.write_text(text.format(python=sys.executable, log=self.log, answers=self.answers))
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
            monkeypatch.delenv(name, raising=False)
        for name in ("signal", "pthread_sigmask", "sigtimedwait"):  # keep the test's own signal handlers
            monkeypatch.setattr(batch_script.signal, name, lambda *_: signal.SIGTERM)
        self.setenv = monkeypatch.setenv
        self.job = "7"

    def call(self, when: str, *arguments: str, nodes: str = "n1+n2", on_interrupt: str = "requeue") -> int:
        self.setenv("SLURM_JOB_ID", self.job)
        self.setenv("SLURM_JOB_NODELIST", nodes)
        policy = ["--max-restarts", "3", "--on-interrupt", on_interrupt, "--world-size", "2"]
        return batch_script.main([when, str(self.run), *arguments, *policy])

    def begin(self, nodes: str = "n1+n2") -> int:
        return self.call("begin", nodes=nodes)

    def end(self, code: int, on_interrupt: str = "requeue") -> int:
        return self.call("end", "--code", str(code), on_interrupt=on_interrupt)

    def set_answers(self, **answers: str) -> None:
        """Set the answers of scontrol."""
        self.answers.write_text(json.dumps(answers))

    def requests(self) -> list[str]:
        """Return the requests that Slurm received, without queries."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if not line.startswith("show")]

    def write(self, name: str, **body: Any) -> None:
        (self.run / name).write_text(json.dumps(body))

    def train(self, *steps: int, saved: int | None = None) -> None:
        with (self.run / "metrics.jsonl").open("a") as file:
            for step in steps:
                record = {"step": step, "time_ms": time.time() * 1000 + 1, "values": {"train/loss": 1.0}}
                file.write(json.dumps(record) + "\n")
        if saved is not None:
            (self.run / "checkpoints" / f"step-{saved:08d}").mkdir(parents=True)

    def causes(self) -> list[str | None]:
        return [attempt.ending.cause if attempt.ending else None for attempt in attempts.read(self.run)]


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
    assert batch.end(0) == 1, "a job that depends on its result must not start"
    assert (batch.causes(), batch.requests()) == ([STOPPED], [])


def test_an_interrupted_run_is_requeued(batch: Batch) -> None:
    batch.begin()
    batch.train(1, 2, saved=2)
    batch.write("outcome.json", state="interrupted")
    batch.end(0)
    assert (batch.causes(), batch.requests()) == ([INTERRUPTED], ["requeue 7"])
    assert not (batch.run / "outcome.json").exists(), "the next attempt would take it for its own outcome"


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
    assert "rank 1: no cause is in the log; its last line: it has none" in attempt.words
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
    # If Slurm allocates that node all the same, the run is requeued rather than started there.
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
    # This time the ranks could save, but the batch script was killed.
    batch.write("outcome.json", state="interrupted")
    assert batch.begin() == 0
    assert batch.causes() == [KILLED, INTERRUPTED, None]


@pytest.mark.parametrize("left", ["interrupted", None])
def test_a_job_that_slurm_ends_is_not_restarted(batch: Batch, left: str | None) -> None:
    """A requeue from outside needs no help, and a cancellation, which looks alike, must be final."""
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
    batch.end(143, on_interrupt="resubmit")  # the script was not killed before its last line
    assert batch.requests() == RESUBMISSION
    assert [attempt.next_job for attempt in attempts.read(batch.run)] == ["8"]
    batch.job = "8"
    assert batch.begin() == batch_script.PROCEED
    assert [attempt.job for attempt in attempts.of_submission(attempts.read(batch.run), "8")] == ["7", "8"]


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
    """Start an attempt, on a site that forbids requeue, whose time limit is reached."""
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
    """A sweep's jobs reach their limit together, and each counts while it submits its successor."""
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
    """Slurm may restart a preempted job in spite of --no-requeue."""
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


def test_a_requeue_by_slurm_itself_in_between_is_no_failure(batch: Batch) -> None:
    """Between the query of the job's state and our request; Slurm then refuses our request."""
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
