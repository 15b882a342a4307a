"""The batch script's helper, around srun: it opens an attempt, closes it, and carries out what
runs/attempts.py decides after a time limit, a preemption or a death: requeue, resubmit, or end.

    trap : TERM                                          # a requeue from outside must leave time for the last
        lines
    python -m finetune.job.batch_script begin RUN          # 0: go; 64: it is done; 75: back in the queue; 1:
    it must not run python -m finetune.job.batch_script guard RUN &        # a net under a time limit that
    strikes before the ranks have left srun …
    python -m finetune.job.batch_script end RUN --code $?  # its exit code is the job's

A job that has ended for good submits points of sweeps that wait for its place (job/waves.py).

It runs on the batch host, outside of a container, where scontrol is: only the standard library and modules
that need no more themselves (pyproject.toml lists them), from Python 3.8 on (cluster.host_python).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from finetune.job import waves
from finetune.job.scontrol import dead_nodes, hostnames, may_be_held, memory_used, sbatch, scontrol
from finetune.runs import attempts, causes, layout
from finetune.runs.attempts import Attempt, Decision, Ending
from finetune.runs.records import (
    Diagnosis,
    Failure,
    Outcome,
    Staged,
    move_submission,
    read_failures,
)
from finetune.runs.state import EndingCause, FailureKind, JobState
from finetune.tracking.spool import read_training_steps

GO, FAILED, DONE, BACK_IN_QUEUE = 0, 1, 64, 75
SIGNALLED = {128 + number: number.name for number in (signal.SIGTERM, signal.SIGUSR2)}
STAYS = "; it comes back when a person resumes it (cluster.on_interrupt=stop)"
LOOK_SECONDS = 5  # between two looks of the guard at the batch script


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="finetune.job.batch_script", description=__doc__.partition("\n")[0])
    parser.add_argument("when", choices=("begin", "guard", "end"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--code", type=int, help="srun's exit code (end)")
    parser.add_argument("--script", type=int, default=os.getpid(), help="process of the batch script (guard)")
    parser.add_argument("--max-restarts", type=int, required=True)
    parser.add_argument("--on-interrupt", choices=("requeue", "resubmit", "stop"), required=True)
    parser.add_argument("--world-size", type=int, required=True)
    options = parser.parse_args(arguments)
    job = Job(options)
    run = options.run.resolve()  # through a sweep's points/<index>
    code = {"begin": begin, "guard": guard, "end": end}[options.when](run, job)
    leaves_for_good = {"begin": (FAILED, DONE), "guard": (), "end": (GO, FAILED)}
    if code in leaves_for_good[options.when]:
        submit_waiting(run.parent, job)
    return code


def submit_waiting(runs_dir: Path, job: Job) -> None:
    """Let waiting points of sweeps have this job's place. Whatever goes wrong, the run has ended as it
    has."""
    try:
        if submitted := waves.submit_waiting(runs_dir, ending=job.id):
            say(f"{submitted} waiting points submitted")
    except Exception as fault:
        say(
            f"waiting points were not submitted ({fault}): the next job that ends does it, or `finetune status`"
        )


class Job:
    """This Slurm job, and what may be done with it."""

    def __init__(self, options: argparse.Namespace) -> None:
        env = os.environ
        # never an array task's SLURM_JOB_ID: that of one of them is the array's too, and names all of them
        array = env.get("SLURM_ARRAY_JOB_ID")
        self.id = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
        self.nodes = hostnames(env["SLURM_JOB_NODELIST"])
        self.options = options

    def is_ours(self) -> bool:
        """Whether what becomes of the job is for us to say. It is not once Slurm ends it: after a requeue
        from outside, which needs no second one, or after a cancellation, which must be the end. (Both show as
        COMPLETING.) A time limit is ours."""
        state, _ = self._state()
        return state in ("", JobState.RUNNING) or self.is_over_time()

    def is_over_time(self) -> bool:
        """Whether Slurm ends it for its time limit, and kills what is left of it some seconds later
        (KillWait)."""
        state, reason = self._state()
        return state in (JobState.COMPLETING, JobState.TIMEOUT) and reason == "TimeLimit"

    def _state(self) -> tuple[str, str]:
        """Slurm's words for its state and the reason of that; "" where Slurm does not tell."""
        shown = scontrol("show", "job", self.id)
        found = (re.search(rf"\b{key}=(\w+)", shown) for key in ("JobState", "Reason"))
        state, reason = (match[1] if match else "" for match in found)
        return state, reason

    def requeue(self, without: list[str]) -> None:
        """Put it back into the queue. Slurm ends this script, which is part of the job, a moment later.

        Raises:
            RuntimeError: Slurm refuses.
        """
        try:
            scontrol("requeue", self.id, check=True)
        except RuntimeError:
            if self.is_ours():
                raise  # else Slurm did so in this very moment, as where it missed a node
        self.exclude(without)

    def exclude(self, nodes: list[str], check: bool = True) -> None:
        """Keep a job that waits in the queue away from nodes. It cannot start before this script has
        ended."""
        if nodes:
            scontrol("update", f"jobid={self.id}", f"ExcNodeList={','.join(nodes)}", check=check)


def begin(run: Path, job: Job) -> int:
    """Open an attempt: close the one before, if it could not do that itself, and see whether this one may
    run."""
    earlier = attempts.read(run)
    code = _close_the_last(run, earlier, job) if earlier else None
    if code is not None:
        return code
    avoided = attempts.excluded_nodes(run)
    if unwanted := sorted(set(avoided) & set(job.nodes)):
        say(f"Slurm gave this run {', '.join(unwanted)}, which it avoids: back into the queue")
        try:
            job.requeue(avoided)
            return BACK_IN_QUEUE
        except RuntimeError as fault:  # then a bad node is better than none: the preflight will tell
            say(f"cannot avoid {', '.join(unwanted)}: {fault}")
    forget_ending(run)
    attempts.begin(run, job.id, job.nodes, time.time(), layout.newest_step(run))
    return GO


def _close_the_last(run: Path, earlier: list[Attempt], job: Job) -> int | None:
    """Write down how the last attempt ended if its own batch script could not, or did not know that a node
    was dead."""
    last = earlier[-1]
    goes_on = job.id in (last.job, last.next_job)  # else a person submitted again
    stays = goes_on and job.options.on_interrupt == "stop"  # started again though submitted with --no-requeue
    final = (EndingCause.COMPLETED, EndingCause.STOPPED)
    if last.ending is not None and (stays or (goes_on and last.ending.cause in final)):
        return _exit_code(last.ending)  # it ended while `guard` brought it back
    if last.ending is not None and last.ending.cause not in (EndingCause.DIED, EndingCause.KILLED):
        return None
    dead = dead_nodes(last.nodes, last.time)
    if last.ending is not None:
        if dead:
            ending = replace(
                last.ending, cause=EndingCause.DEAD_NODE, bad_nodes=dead, detail=_names_dead(dead)
            )
            attempts.end(
                run,
                last.number,
                ending,
                f"{ending.cause} after step {ending.last_step}: {ending.detail}",
                time.time(),
            )
        return None
    ending = ending_of(run, last, None, job.options.world_size)
    if dead and ending.cause in (EndingCause.DIED, EndingCause.KILLED):
        ending = replace(ending, cause=EndingCause.DEAD_NODE, bad_nodes=dead, detail=_names_dead(dead))
    before = [a.ending for a in attempts.filter_by_submission(earlier[:-1], last.job) if a.ending]
    decision = attempts.decide(ending, before, job.options.max_restarts)
    if stays and decision.restart:
        failed = ending.cause != EndingCause.INTERRUPTED
        decision = Decision(restart=False, reason=decision.reason + STAYS, failed=failed)
    attempts.end(run, last.number, ending, decision.reason, time.time())
    say(f"attempt {last.number}: {decision.reason}")
    if decision.restart or not goes_on:  # who submits again wants it to run
        return None
    if decision.failed:
        fail(run, decision.reason)
    return _exit_code(ending)


def _exit_code(ending: Ending) -> int:
    """Return the exit code of `begin` for a run that must not go on."""
    return DONE if ending.cause == EndingCause.COMPLETED else FAILED


def guard(run: Path, job: Job) -> int:
    """Wait for the time limit to strike, beside the ranks. They should have left long before; but Slurm looks
    at limits twice a minute only, somebody may have moved this one, and a step or a checkpoint can take
    longer than cluster.signal_lead_s. Then all is killed within KillWait, perhaps before `end` has had its
        say: so it is brought back now, and the next attempt finds out
    what became of this one."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    while signal.sigtimedwait({signal.SIGTERM}, LOOK_SECONDS) is None:
        if not Path(
            f"/proc/{job.options.script}"
        ).exists():  # it has ended, and not everywhere is the guard ended with it
            return GO
    last = attempts.read(run)[-1]
    if last.ending is None and job.is_over_time():  # else it was a preemption, a requeue, a cancellation
        say(f"{causes.TIME_LIMIT_MESSAGE} while the run was running: {job.options.on_interrupt}")
        without = attempts.excluded_nodes(run)
        if job.options.on_interrupt == "requeue":
            job.requeue(without)
        else:
            with resubmit_lock(run, job):
                if attempts.read(run)[-1].ending is None:  # else it is for `end` to submit
                    resubmit(run, job, last, without)
    return GO


def end(run: Path, job: Job) -> int:
    """Close the attempt: note how it ended, and bring the run back or not."""
    earlier = attempts.read(run)
    if not earlier or earlier[-1].ending is not None:
        raise RuntimeError(f"{run}: no attempt is open")
    last = earlier[-1]
    ending = ending_of(run, last, job.options.code, job.options.world_size)
    before = [a.ending for a in attempts.filter_by_submission(earlier[:-1], job.id) if a.ending]
    decision = attempts.decide(ending, before, job.options.max_restarts)
    if not decision.restart:
        attempts.end(run, last.number, ending, decision.reason, time.time())
        say(decision.reason)
        if decision.failed:
            fail(run, decision.reason)
        clean_up(run, len(job.nodes))
        return GO if ending.cause == EndingCause.COMPLETED else FAILED
    return _restart(run, job, last, ending, decision.reason)


def _restart(run: Path, job: Job, last: Attempt, ending: Ending, words: str) -> int:
    """Bring the run back, in the way its site allows."""
    without = sorted({*attempts.excluded_nodes(run), *ending.bad_nodes})
    stays = job.options.on_interrupt == "stop"
    way = job.options.on_interrupt if stays or job.is_ours() else "left to Slurm, which ends the job"
    if stays:
        words += STAYS
    attempts.end(run, last.number, ending, words, time.time())  # first of all: a requeue ends this script
    avoided = f", without {', '.join(without)}" if without else ""
    say(f"{words}: {way}{avoided}")
    if stays:
        clean_up(run, len(job.nodes))
        return FAILED
    forget_ending(run)
    try:
        if way == "requeue":
            clean_up(run, len(job.nodes))
            job.requeue(without)
        elif way == "resubmit":
            clean_up(run, len(job.nodes))
            with resubmit_lock(run, job):
                if (submitted := attempts.read(run)[-1].next_job) is None:
                    resubmit(run, job, last, without)
                elif may_be_held(submitted):  # `guard` was ended before it could release it
                    scontrol("release", submitted.partition("_")[0], check=True)
        else:
            job.exclude(without, check=False)  # a job that was cancelled has no queue to be kept in
    except RuntimeError as fault:
        words = f"{words}; it cannot come back: {fault}"
        attempts.end(run, last.number, ending, words, time.time())
        say(words)
        fail(run, words)
        return FAILED
    return BACK_IN_QUEUE


@contextlib.contextmanager
def resubmit_lock(run: Path, job: Job) -> Iterator[None]:
    """Hold the lock of who submits the run again, which `guard` and `end` may both want to.

    The second waits here, and finds in attempts.jsonl what the first has done. The lock is the process' own:
    if that ends before it has submitted, whoever of the two is left takes over; and if its sbatch outlives
    it, that job stays held. Both are on the batch host.
    """
    with (run / layout.JOBS / layout.next_of(job.id)).open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks: then what was noted must do
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def resubmit(run: Path, job: Job, last: Attempt, without: list[str]) -> None:
    """Submit the same script again, as a job of its own that goes on after the attempt `last`. It cannot
    start before its files are there, it is noted, and this job is over.

    Raises:
        RuntimeError: Slurm refuses.
    """
    script = re.search(r"\bCommand=(.+)", scontrol("show", "job", job.id, check=True))
    if script is None:
        raise RuntimeError(f"Slurm does not know the script of job {job.id}")
    index = job.id.partition("_")[2]
    options = [f"--array={index}"] if index else []
    options += [f"--exclude={','.join(without)}"] if without else []
    command = ["sbatch", "--parsable", "--hold", f"--dependency=afterany:{job.id}", *options, script[1]]
    raw_id = sbatch(command)
    new_id = f"{raw_id}_{index}" if index else raw_id
    jobs = run / layout.JOBS
    shutil.copyfile(str(jobs / layout.pickle_of(job.id)), str(jobs / layout.pickle_of(new_id)))
    move_submission(run, new_id, socket.gethostname())
    attempts.hand_over(run, last.number, new_id, time.time())
    scontrol("release", raw_id, check=True)


# --- how an attempt ended
# ----------------------------------------------------------------------------------------------


def ending_of(run: Path, attempt: Attempt, code: int | None, world_size: int) -> Ending:
    """How an attempt ended, from what its ranks left in the run folder.

    Args:
        code: srun's exit code; None: the batch script was killed, and with it perhaps the ranks.
    """
    reached = last_step(run, attempt)
    saved = layout.newest_step(run)

    def ending(cause: EndingCause, detail: str = "", bad_nodes: tuple[str, ...] = ()) -> Ending:
        return Ending(cause, attempt.from_step, max(reached, attempt.from_step), saved, detail, bad_nodes)

    outcome = Outcome.read_or_none(run / layout.OUTCOME)
    if outcome is not None and outcome.state in (EndingCause.COMPLETED, EndingCause.STOPPED):
        return ending(EndingCause(outcome.state))
    if outcome is not None and outcome.state == EndingCause.INTERRUPTED:
        who = outcome.asked_by or "another rank was asked to leave"
        return ending(EndingCause.INTERRUPTED, f"{who}: all ranks saved and left")
    failures = read_failures(run)
    stated = {FailureKind.MISTAKE: EndingCause.MISTAKE, FailureKind.PREFLIGHT: EndingCause.PREFLIGHT}
    for kind, cause in stated.items():
        chosen = [failure for failure in failures if failure.kind == kind]
        if chosen:
            return ending(*_stated_cause(attempt, cause, chosen))
    if code is None:
        return ending(
            EndingCause.KILLED,
            "it ended without a word: requeue, preemption or time limit with too little grace time",
        )
    if code in SIGNALLED and not failures:
        return ending(EndingCause.INTERRUPTED, f"{SIGNALLED[code]} while it was starting")
    absent = absent_nodes(run, attempt)
    memory = memory_used(attempt.job) if code == 128 + signal.SIGKILL else ""
    evidence = causes.collect_evidence(run, failures, world_size, code=code, job=attempt.job, memory=memory)
    word = causes.explain(evidence) or f"it left no log (exit code {code})"
    if absent:
        word += f"; no rank on {', '.join(absent)} ever reached the shared folder"
        return ending(EndingCause.PREFLIGHT, word, absent)
    return ending(EndingCause.DIED, word)


def _stated_cause(
    attempt: Attempt, cause: EndingCause, failures: list[Failure]
) -> tuple[EndingCause, str, tuple[str, ...]]:
    """Return cause, message and nodes to blame of an attempt that ranks ended for a reason that they
    named."""
    nodes = tuple(sorted({node for failure in failures for node in failure.nodes}))
    message = min(failures, key=lambda failure: failure.time).error
    if 1 < len(attempt.nodes) == len(nodes):  # then it is no node's fault
        return EndingCause.MISTAKE, f"{message} (and so it is on every node)", ()
    return cause, message, nodes


def last_step(run: Path, attempt: Attempt) -> int:
    """Return the last step that an attempt wrote into the run's metrics; 0 if it did none."""
    steps = read_training_steps(run)
    return steps[-1].step if steps and steps[-1].time_ms >= attempt.time * 1000 else 0


def absent_nodes(run: Path, attempt: Attempt) -> tuple[str, ...]:
    """Nodes on which no rank came as far as writing into the run folder, where others did: see
    preflight.py."""
    present = {path.name for path in (run / layout.JOBS / layout.PRESENT).glob("*")}
    absent = tuple(node for node in attempt.nodes if node not in present)
    return absent if 0 < len(absent) < len(attempt.nodes) else ()


def _names_dead(nodes: tuple[str, ...]) -> str:
    return f"{', '.join(nodes)} went down"


# --- what is left on disk
# ----------------------------------------------------------------------------------------------


def forget_ending(run: Path) -> None:
    """How the last attempt ended is in attempts.jsonl: its files must not be taken for this one's."""
    present = (run / layout.JOBS / layout.PRESENT).glob("*")
    for path in (*layout.list_attempt_files(run), *present):
        path.unlink(missing_ok=True)


def fail(run: Path, words: str) -> None:
    """The run has ended for good: `finetune status` shows why."""
    Diagnosis(time.time(), words).write(run / layout.FAILURE)


def clean_up(run: Path, num_nodes: int) -> None:
    """Remove what ranks that were killed left on their nodes' own disks (job/staging.py); it may take
    seconds, not more."""
    staged = Staged.read_or_none(run / layout.STAGED)
    if staged is None or not shutil.which("srun"):
        return
    command = [
        "srun",
        f"--ntasks={num_nodes}",
        "--ntasks-per-node=1",
        "--overlap",
        "rm",
        "-rf",
        "--",
        staged.folder,
    ]
    try:
        subprocess.run(command, timeout=30, check=False, capture_output=True)
    except subprocess.TimeoutExpired:
        say(f"{staged.folder} may be left on a node")
    (run / layout.STAGED).unlink(missing_ok=True)


def say(words: str) -> None:
    """Into the job's log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} finetune: {words}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
