"""What becomes of a run after its ranks have ended: the decision as a table, and what the batch script's two
calls do to the run folder. Slurm itself is a program on PATH here; the real one is in tests/slurm."""

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
    """How an attempt and those before it ended, and the decision."""

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
def test_a_run_restarts_or_ends_as_its_endings_say(case: Case) -> None:
    decision = decide(case.how, list(case.earlier), max_restarts=3)
    assert decision.restart == case.restarts
    assert case.words in decision.reason
    assert decision.failed == (not case.restarts and case.how.cause not in (COMPLETED, STOPPED))


# --- the batch script's calls
# ------------------------------------------------------------------------------------------

SBATCH = """\
#!/bin/sh
echo "sbatch $@" >> {log}
if [ -e {log}.breaks ]; then rm {log}.breaks; exit 1; fi
if [ -e {log}.full ]; then rm {log}.full; echo "Job violates accounting/QOS policy (job submit limit, …)" >&2; exit 1; fi
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
    print("NodeName=" + words[2] + " " + answers.get(words[2], "BootTime=2020-01-01T00:00:00 State=ALLOCATED"))
elif "refuses" in answers:
    print(answers["refuses"], file=sys.stderr)
    sys.exit(1)
"""


class Batch:
    """A run folder, and the two calls of its batch script in a pretended job."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = folder / "run"
        (self.run / "jobs").mkdir(parents=True)
        self.log, self.answers = folder / "log", folder / "answers"
        self.answers.write_text("{}")
        (folder / "bin").mkdir()
        for name, text in {"scontrol": SCONTROL, "sbatch": SBATCH}.items():
            program = folder / "bin" / name
            program.write_text(text.format(python=sys.executable, log=self.log, answers=self.answers))
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
            monkeypatch.delenv(name, raising=False)
        for name in (
            "signal",
            "pthread_sigmask",
            "sigtimedwait",
        ):  # the test's own process must go on hearing
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

    def say(self, **answers: str) -> None:
        self.answers.write_text(json.dumps(answers))

    def told(self) -> list[str]:
        """What Slurm was asked to do."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if not line.startswith("show")]

    def write(self, name: str, **body: Any) -> None:
        (self.run / name).write_text(json.dumps(body))

    def train(self, *steps: int, saved: int | None = None) -> None:
        with (self.run / "metrics.jsonl").open("a") as file:
            for step in steps:
                file.write(
                    json.dumps(
                        {"step": step, "time_ms": time.time() * 1000 + 1, "values": {"train/loss": 1.0}}
                    )
                    + "\n"
                )
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
    assert (batch.causes(), batch.told()) == ([COMPLETED], [])


def test_a_stopped_run_stays_where_it_is(batch: Batch) -> None:
    batch.begin()
    batch.write("outcome.json", state="stopped")
    assert batch.end(0) == 1, "a job that depends on its result must not start"
    assert (batch.causes(), batch.told()) == ([STOPPED], [])


def test_an_interrupted_run_goes_back_into_the_queue(batch: Batch) -> None:
    batch.begin()
    batch.train(1, 2, saved=2)
    batch.write("outcome.json", state="interrupted")
    batch.end(0)
    assert (batch.causes(), batch.told()) == ([INTERRUPTED], ["requeue 7"])
    assert not (batch.run / "outcome.json").exists(), "the next attempt would take it for its own"


def test_a_killed_rank_brings_the_run_back_and_is_named(batch: Batch) -> None:
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
    assert batch.told() == ["requeue 7"]
    assert not list(batch.run.glob("failure*"))


def test_a_mistake_is_not_repeated(batch: Batch) -> None:
    batch.begin()
    batch.write(
        "failure-rank-1.json", time=1.0, rank=1, error="lr is too high: lower it", kind="mistake", nodes=[]
    )
    assert batch.end(1) == 1
    assert batch.told() == []
    assert json.loads((batch.run / "failure.json").read_text())["error"] == "lr is too high: lower it"


def test_a_node_that_fails_its_preflight_is_avoided_from_then_on(batch: Batch) -> None:
    batch.begin()
    batch.write(
        "failure-rank-1.json", time=1.0, rank=1, error="preflight: n2 …", kind="preflight", nodes=["n2"]
    )
    batch.end(1)
    assert batch.told() == ["requeue 7", "update jobid=7 ExcNodeList=n2"]
    # Slurm by itself could forget: the run then goes back rather than onto that node
    assert batch.begin(nodes="n2+n3") == batch_script.BACK_IN_QUEUE
    assert batch.told()[2:] == ["requeue 7", "update jobid=7 ExcNodeList=n2"]
    assert batch.begin(nodes="n1+n3") == 0
    batch.write("failure-rank-0.json", time=1.0, rank=0, error="RuntimeError: …", kind="crash", nodes=[])
    batch.end(1)
    assert batch.told()[-1] == "update jobid=7 ExcNodeList=n2"


def test_what_fails_on_every_node_is_no_nodes_fault(batch: Batch) -> None:
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
    assert batch.told() == []


def test_a_node_from_which_no_rank_was_ever_heard_is_avoided(batch: Batch) -> None:
    batch.begin()
    (batch.run / "jobs" / "present").mkdir()
    (batch.run / "jobs" / "present" / "n1").touch()
    batch.end(1)
    assert batch.told() == ["requeue 7", "update jobid=7 ExcNodeList=n2"]


DOWN = {
    "down": "BootTime=2020-01-01T00:00:00 State=DOWN+CLOUD",
    "silent": "BootTime=2020-01-01T00:00:00 State=ALLOCATED*",
    "started anew": "BootTime=2020-01-01T00:00:00 SlurmdStartTime=2100-01-01T00:00:00 State=IDLE",
}


@pytest.mark.parametrize("how", DOWN)
def test_a_power_cut_is_found_out_by_the_next_attempt(batch: Batch, how: str) -> None:
    batch.begin()
    batch.train(1, 2, 3)
    batch.say(n2=DOWN[how])
    assert batch.begin(nodes="n1+n3") == 0  # nobody called end
    assert batch.causes() == [DEAD_NODE, None]
    assert attempts.excluded_nodes(batch.run) == ["n2"]
    first, second = attempts.read(batch.run)
    assert first.ending is not None
    assert first.ending.last_step == 3
    assert second.nodes == ("n1", "n3")


def test_a_node_found_dead_afterwards_explains_a_dead_rank(batch: Batch) -> None:
    batch.begin()
    batch.write(
        "failure-rank-0.json", time=1.0, rank=0, error="Connection closed by peer", kind="crash", nodes=[]
    )
    batch.end(1)
    batch.say(n2=DOWN["down"])
    assert batch.begin(nodes="n1+n3") == 0
    assert batch.causes() == [DEAD_NODE, None]


def test_a_requeue_from_outside_is_told_from_a_crash(batch: Batch) -> None:
    batch.begin()
    batch.train(1, 2)
    batch.write(
        "failure-rank-0.json", time=1.0, rank=0, error="Connection closed by peer", kind="crash", nodes=[]
    )
    assert batch.begin() == 0
    assert batch.causes() == [KILLED, None]
    # this time the ranks had time to save, the batch script not
    batch.write("outcome.json", state="interrupted")
    assert batch.begin() == 0
    assert batch.causes() == [KILLED, INTERRUPTED, None]


@pytest.mark.parametrize("left", ["interrupted", None])
def test_a_job_that_slurm_ends_is_left_to_it(batch: Batch, left: str | None) -> None:
    """It shows a requeue from outside and a cancellation alike: one needs no help, the other must stay
    cancelled."""
    batch.begin()
    if left:
        batch.write("outcome.json", state=left)
    batch.say(job="COMPLETING")
    batch.end(0 if left else 143)
    assert batch.told() == []


def test_a_time_limit_that_came_too_early_is_ours(batch: Batch) -> None:
    batch.begin()
    batch.say(job="COMPLETING", reason="TimeLimit")
    batch.end(143)
    assert batch.told() == ["requeue 7"]


def test_a_limit_that_strikes_while_the_ranks_work_brings_the_run_back(batch: Batch) -> None:
    batch.begin()
    batch.train(1, 2, 3, saved=2)
    batch.say(job="COMPLETING", reason="TimeLimit")
    batch.call("guard")
    assert batch.told() == ["requeue 7"]
    assert batch.begin() == 0  # nobody called end
    assert batch.causes() == [KILLED, None]


@pytest.mark.parametrize("reason", ["None", "Preempted"])
def test_any_other_end_is_none_of_the_guards_business(batch: Batch, reason: str) -> None:
    batch.begin()
    batch.say(job="COMPLETING", reason=reason)
    batch.call("guard")
    assert batch.told() == []


def test_the_guard_ends_with_the_batch_script(batch: Batch) -> None:
    batch.begin()
    script = subprocess.Popen(["sleep", "60"])
    policy = [
        "--max-restarts",
        "3",
        "--on-interrupt",
        "requeue",
        "--world-size",
        "2",
        "--script",
        str(script.pid),
    ]
    guard = subprocess.Popen(
        [sys.executable, "-m", "finetune.job.batch_script", "guard", str(batch.run), *policy]
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            guard.wait(batch_script.LOOK_SECONDS * 2)
        script.kill()
        script.wait()
        assert guard.wait(60) == 0
        assert batch.told() == []
    finally:
        guard.kill()


def test_an_attempt_that_is_closed_needs_no_guard(batch: Batch) -> None:
    batch.begin()
    batch.write("outcome.json", state="completed")
    batch.end(0)
    batch.say(job="COMPLETING", reason="TimeLimit")
    batch.call("guard")
    assert batch.told() == []


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(
    ("state", "code"), [("completed", batch_script.DONE), ("stopped", batch_script.FAILED)]
)
def test_a_run_that_ended_while_it_was_put_back_does_not_run_again(
    batch: Batch, state: str, code: int, closed: bool
) -> None:
    batch.begin()
    batch.say(job="COMPLETING", reason="TimeLimit")
    batch.call("guard")
    batch.write("outcome.json", state=state)
    if closed:
        batch.end(0)
    assert batch.begin() == code
    assert batch.causes() == [state]
    batch.job = "8"
    assert batch.begin() == batch_script.GO, "a person submitted it again"


def test_where_requeue_is_forbidden_the_guard_submits_again_once(batch: Batch) -> None:
    (batch.run / "jobs" / "7_submitted.pkl").write_text("")
    batch.begin()
    batch.train(1, 2, 3, saved=2)
    batch.say(job="COMPLETING", reason="TimeLimit")
    batch.call("guard", on_interrupt="resubmit")
    again = ["sbatch --parsable --hold --dependency=afterany:7 submit.sh", "release 8"]
    assert batch.told() == again
    batch.end(143, on_interrupt="resubmit")  # it still had the time to
    assert batch.told() == again
    assert [attempt.next_job for attempt in attempts.read(batch.run)] == ["8"]
    batch.job = "8"
    assert batch.begin() == batch_script.GO
    assert [attempt.job for attempt in attempts.filter_by_submission(attempts.read(batch.run), "8")] == [
        "7",
        "8",
    ]


@pytest.mark.parametrize(
    ("state", "code"), [("completed", batch_script.DONE), ("stopped", batch_script.FAILED)]
)
def test_a_run_that_ended_while_it_was_submitted_again_does_not_run_again(
    batch: Batch, state: str, code: int
) -> None:
    (batch.run / "jobs" / "7_submitted.pkl").write_text("")
    batch.begin()
    batch.say(job="COMPLETING", reason="TimeLimit")
    batch.call("guard", on_interrupt="resubmit")
    batch.write("outcome.json", state=state)
    batch.job = "8"
    assert batch.begin() == code
    assert batch.causes() == [state]


def time_limit(batch: Batch) -> None:
    """The run is at work, on a site that forbids batch_script, and its time is over."""
    (batch.run / "jobs" / "7_submitted.pkl").write_text("")
    batch.begin()
    batch.say(job="COMPLETING", reason="TimeLimit")


AGAIN = ["sbatch --parsable --hold --dependency=afterany:7 submit.sh", "release 8"]


def test_guard_and_end_at_once_submit_one_job(batch: Batch) -> None:
    time_limit(batch)
    batch.log.with_name("log.slow").touch()
    guard = threading.Thread(target=batch.call, args=("guard",), kwargs={"on_interrupt": "resubmit"})
    guard.start()
    while not batch.told():
        time.sleep(0.05)
    batch.end(143, on_interrupt="resubmit")
    guard.join()
    assert batch.told() == AGAIN
    assert [attempt.next_job for attempt in attempts.read(batch.run)] == ["8"]


def test_what_the_guard_could_not_submit_is_submitted_at_the_end(batch: Batch) -> None:
    time_limit(batch)
    batch.log.with_name("log.breaks").touch()
    with pytest.raises(RuntimeError):
        batch.call("guard", on_interrupt="resubmit")
    batch.end(143, on_interrupt="resubmit")
    assert batch.told() == [AGAIN[0], *AGAIN]
    assert attempts.read(batch.run)[-1].next_job == "8"


def test_where_slurm_takes_no_more_jobs_it_waits_for_a_place(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points of a sweep come to their time limit together, and each counts while it submits the job that goes
    on."""
    monkeypatch.setattr(scontrol, "PAUSE", 0.1)
    time_limit(batch)
    batch.log.with_name("log.full").touch()
    batch.end(143, on_interrupt="resubmit")
    assert batch.told() == [AGAIN[0], *AGAIN]
    assert attempts.read(batch.run)[-1].next_job == "8"


def test_a_controller_that_does_not_answer_ends_the_run_in_words(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scontrol, "SBATCH_SECONDS", 0.2)
    batch.log.with_name("log.slow").touch()
    batch.begin()
    assert batch.end(143, on_interrupt="resubmit") == batch_script.FAILED
    assert "it cannot come back: sbatch did not answer within" in (batch.run / "failure.json").read_text()


def test_what_the_guard_could_not_release_is_released_at_the_end(batch: Batch) -> None:
    time_limit(batch)
    attempts.hand_over(batch.run, 1, "8", time.time())
    batch.say(job="COMPLETING", reason="TimeLimit", reason8="JobHeldUser")
    batch.end(143, on_interrupt="resubmit")
    assert batch.told() == ["release 8"]


def test_the_job_that_goes_on_is_noted_before_it_can_start(batch: Batch) -> None:
    time_limit(batch)
    batch.say(job="COMPLETING", reason="TimeLimit", refuses="Slurm is away")
    with pytest.raises(RuntimeError, match="Slurm is away"):
        batch.call("guard", on_interrupt="resubmit")
    assert attempts.read(batch.run)[-1].next_job == "8"


def test_a_run_that_shall_not_come_back_stays_as_it_ended(batch: Batch) -> None:
    """Slurm preempts its job, and starts it again all the same."""
    batch.begin()
    batch.train(1, 2, saved=2)
    batch.write("outcome.json", state="interrupted")
    batch.say(job="COMPLETING", reason="Preempted")
    assert batch.end(0, on_interrupt="stop") == 1
    assert batch.call("begin", on_interrupt="stop") == 1
    assert (batch.causes(), batch.told()) == ([INTERRUPTED], [])
    assert json.loads((batch.run / "outcome.json").read_text())["state"] == "interrupted"
    batch.job = "8"
    assert batch.call("begin", on_interrupt="stop") == 0, "a person submitted it again"


def test_a_power_cut_ends_a_run_that_shall_not_come_back(batch: Batch) -> None:
    batch.begin()
    batch.train(1, 2, saved=2)
    batch.say(n2=DOWN["down"])
    assert batch.call("begin", on_interrupt="stop") == 1
    assert batch.causes() == [DEAD_NODE]
    assert "when a person resumes it" in json.loads((batch.run / "failure.json").read_text())["error"]


def test_a_person_who_submits_again_grants_new_restarts(batch: Batch) -> None:
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
    assert batch.told()[-1] == "requeue 8"


def test_slurm_may_requeue_it_in_between(batch: Batch) -> None:
    """Between the question for its state and our request: Slurm then refuses ours."""
    batch.begin()
    batch.write("outcome.json", state="interrupted")
    batch.say(job_first="RUNNING", job="COMPLETING", refuses="Job is pending execution for job 7")
    batch.end(0)
    assert not (batch.run / "failure.json").exists()
    assert batch.causes() == [INTERRUPTED]


def test_a_run_that_cannot_come_back_says_so(batch: Batch) -> None:
    batch.begin()
    batch.write("outcome.json", state="interrupted")
    batch.say(refuses="Requested operation is presently disabled")
    assert batch.end(0) == 1
    assert "presently disabled" in json.loads((batch.run / "failure.json").read_text())["error"]


def test_a_torn_line_of_attempts_costs_nothing_else(batch: Batch) -> None:
    batch.begin()
    with (batch.run / "attempts.jsonl").open("a") as file:
        file.write('{"event": "end", "attem')
    batch.say(n1=DOWN["down"])
    assert batch.begin(nodes="n2+n3") == 0
    assert batch.causes() == [DEAD_NODE, None]
