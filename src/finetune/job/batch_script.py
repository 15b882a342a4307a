"""Helper that the batch script runs before, beside and after srun.

It records each attempt in the run folder. After a time limit, a preemption, a crash or a dead node,
it carries out the decision of runs/attempts.py: requeue the job, submit it again, or end the run.

    begin RUN    before srun. Exit codes: 0: start the ranks; 64: the run is complete; 75: the job
                 was requeued; 1: the run must not start.
    guard RUN    beside srun. Restarts the job if its time limit is reached while ranks still run.
    end RUN      after srun. Its exit code is the job's.

A job that will not be restarted also submits sweep points that wait for a free place in the queue
(job/waves.py).

The helper runs on the batch host, outside any container, because scontrol is there. It needs Python
3.8 (cluster.host_python) and the standard library. The same holds for our modules that it imports
(see pyproject.toml).
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

PROCEED, FAILED, DONE, BACK_IN_QUEUE = 0, 1, 64, 75
SIGNALLED = {128 + number: number.name for number in (signal.SIGTERM, signal.SIGUSR2)}
NOT_RESTARTED = "; not restarted (cluster.on_interrupt=stop): `finetune retry` resumes it"
POLL_SECONDS = 5  # between two checks of the guard whether the batch script still runs


def main(arguments: list[str] | None = None) -> int:
    summary = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="finetune.job.batch_script", description=summary)
    parser.add_argument("when", choices=("begin", "guard", "end"))
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--code", type=int, help="srun's exit code (for `end`)")
    parser.add_argument(
        "--script", type=int, default=os.getpid(), help="process id of the batch script (for `guard`)"
    )
    parser.add_argument("--max-restarts", type=int, required=True)
    parser.add_argument("--on-interrupt", choices=("requeue", "resubmit", "stop"), required=True)
    parser.add_argument("--world-size", type=int, required=True)
    options = parser.parse_args(arguments)
    job = Job(options)
    run = options.run.resolve()  # a sweep's tasks pass points/<index>, a symbolic link
    code = {"begin": begin, "guard": guard, "end": end}[options.when](run, job)
    final_codes = {"begin": (FAILED, DONE), "guard": (), "end": (PROCEED, FAILED)}
    if code in final_codes[options.when]:
        submit_waiting(run.parent, job)
    return code


def submit_waiting(runs_dir: Path, job: Job) -> None:
    """Submit sweep points that may take this job's place in the queue; a failure is only logged."""
    try:
        submitted = waves.submit_waiting(runs_dir, ending=job.id)
    except Exception as fault:
        log(
            f"waiting sweep points: not submitted ({fault}); the next job that ends submits them, "
            f"or run `finetune status`"
        )
        return
    if submitted:
        log(f"{submitted} waiting sweep points submitted")


class Job:
    """The Slurm job that this process runs in, and requests to Slurm about it."""

    def __init__(self, options: argparse.Namespace) -> None:
        env = os.environ
        # For a task of an array, SLURM_JOB_ID may be the id of the whole array.
        array = env.get("SLURM_ARRAY_JOB_ID")
        self.id = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
        self.nodes = hostnames(env["SLURM_JOB_NODELIST"])
        self.options = options

    def owns_restart(self) -> bool:
        """Return whether the batch script may restart the job.

        It may while the job is running, and if Slurm ends the job at its time limit. If Slurm ends
        the job for another reason, its state is COMPLETING, and the script must not restart it:
        somebody has requeued it already, or has cancelled it for good.
        """
        state, _ = self._state()
        return state in ("", JobState.RUNNING) or self.is_over_time()

    def is_over_time(self) -> bool:
        """Return whether Slurm is ending the job because it has reached its time limit."""
        state, reason = self._state()
        return state in (JobState.COMPLETING, JobState.TIMEOUT) and reason == "TimeLimit"

    def _state(self) -> tuple[str, str]:
        """Return the job's state and Slurm's reason for it; "" for a value that is not reported."""
        shown = scontrol("show", "job", self.id)
        state = re.search(r"\bJobState=(\w+)", shown)
        reason = re.search(r"\bReason=(\w+)", shown)
        return state[1] if state else "", reason[1] if reason else ""

    def requeue(self, excluded: list[str]) -> None:
        """Requeue the job and keep it off the excluded nodes. Slurm then ends this script, too.

        Raises:
            RuntimeError: Slurm refuses, and has not requeued or ended the job itself in the
                meantime; or it refuses to exclude the nodes.
        """
        try:
            scontrol("requeue", self.id, check=True)
        except RuntimeError:
            # Slurm may just have requeued the job itself, for instance because a node was lost.
            if self.owns_restart():
                raise
        self.exclude(excluded)

    def exclude(self, nodes: list[str], check: bool = True) -> None:
        """Keep the requeued job off some nodes.

        The exclusion is in time: the requeued job cannot start before this script has ended.

        Args:
            check: raise RuntimeError if Slurm refuses; if False, ignore that.
        """
        if nodes:
            scontrol("update", f"jobid={self.id}", f"ExcNodeList={','.join(nodes)}", check=check)


def begin(run: Path, job: Job) -> int:
    """Record the start of an attempt; return the exit code of `begin`.

    If the previous attempt has no recorded end, because its batch script was killed, the end is
    recorded here.
    """
    earlier = attempts.read(run)
    code = _close_last_attempt(run, earlier, job) if earlier else None
    if code is not None:
        return code
    avoided = attempts.excluded_nodes(run)
    unwanted = ", ".join(sorted(set(avoided) & set(job.nodes)))
    if unwanted:
        log(f"Slurm allocated {unwanted}, which this run must avoid: requeue")
        try:
            job.requeue(avoided)
            return BACK_IN_QUEUE
        except RuntimeError as fault:
            # Train on the suspect node rather than not at all; the preflight checks it.
            log(f"cannot avoid {unwanted}: {fault}")
    remove_traces_of_end(run)
    attempts.begin(run, job.id, job.nodes, time.time(), layout.newest_step(run))
    return PROCEED


def _close_last_attempt(run: Path, earlier: list[Attempt], job: Job) -> int | None:
    """Record how the last attempt ended, if that is missing.

    A recorded end is corrected if a node of that attempt has turned out to be dead.

    Returns:
        the exit code of `begin` if the run must not start; None if it may.
    """
    last = earlier[-1]
    continues = job.id in (last.job, last.next_job)  # False if a person has submitted the run again
    # True if Slurm has restarted the job although it was submitted with --no-requeue.
    must_not_restart = continues and job.options.on_interrupt == "stop"
    if last.ending is not None:
        final = last.ending.cause in (EndingCause.COMPLETED, EndingCause.STOPPED)
        if must_not_restart or (continues and final):
            return _exit_code(last.ending)  # the attempt ended while `guard` restarted the job
        _add_dead_nodes(run, last)
        return None
    ending = find_ending(run, last, None, job.options.world_size)
    if ending.cause in (EndingCause.DIED, EndingCause.KILLED):
        ending = _blame_dead_nodes(ending, last)
    before = [a.ending for a in attempts.filter_by_submission(earlier[:-1], last.job) if a.ending]
    decision = attempts.decide(ending, before, job.options.max_restarts)
    if must_not_restart and decision.restart:
        failed = ending.cause != EndingCause.INTERRUPTED
        decision = Decision(restart=False, reason=decision.reason + NOT_RESTARTED, failed=failed)
    attempts.end(run, last.number, ending, decision.reason, time.time())
    log(f"attempt {last.number}: {decision.reason}")
    if decision.restart or not continues:  # if a person has submitted the run again, it must start
        return None
    if decision.failed:
        record_failure(run, decision.reason)
    return _exit_code(ending)


def _add_dead_nodes(run: Path, last: Attempt) -> None:
    """Correct the recorded end of an attempt if one of its nodes has turned out to be dead."""
    assert last.ending is not None
    if last.ending.cause not in (EndingCause.DIED, EndingCause.KILLED):
        return
    ending = _blame_dead_nodes(last.ending, last)
    if ending.cause == EndingCause.DEAD_NODE:
        reason = f"{ending.cause} after step {ending.last_step}: {ending.detail}"
        attempts.end(run, last.number, ending, reason, time.time())


def _blame_dead_nodes(ending: Ending, attempt: Attempt) -> Ending:
    """Return the ending, with the attempt's dead nodes as its cause if there are any."""
    dead = dead_nodes(attempt.nodes, attempt.time)
    if not dead:
        return ending
    detail = f"{', '.join(dead)} went down"
    return replace(ending, cause=EndingCause.DEAD_NODE, bad_nodes=dead, detail=detail)


def _exit_code(ending: Ending) -> int:
    """Return the exit code of `begin` for a run that must not start."""
    if ending.cause == EndingCause.COMPLETED:
        return DONE
    return FAILED


def guard(run: Path, job: Job) -> int:
    """Restart the job if it reaches its time limit while ranks still run.

    `guard` runs beside the ranks until it receives SIGTERM or the batch script has ended.

    Normally, the ranks save and exit before the limit. But Slurm checks limits only twice a minute,
    an administrator may have changed the limit, and a step or a checkpoint can take longer than
    cluster.signal_lead_s. Slurm then kills the whole job within its KillWait, perhaps before `end`
    has run. So `guard` restarts the job, and the next attempt records how this one ended.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    script = Path(f"/proc/{job.options.script}")
    while signal.sigtimedwait({signal.SIGTERM}, POLL_SECONDS) is None:
        if not script.exists():  # on some sites, `guard` is not ended together with the batch script
            return PROCEED
    last = attempts.read(run)[-1]
    if last.ending is None and job.is_over_time():  # not a preemption, a requeue or a cancellation
        log(f"{causes.TIME_LIMIT_MESSAGE} while ranks were running: {job.options.on_interrupt}")
        excluded = attempts.excluded_nodes(run)
        if job.options.on_interrupt == "requeue":
            job.requeue(excluded)
        else:
            with resubmit_lock(run, job):
                if attempts.read(run)[-1].ending is None:  # otherwise `end` submits the job
                    resubmit(run, job, last, excluded)
    return PROCEED


def end(run: Path, job: Job) -> int:
    """Record how the attempt ended; restart the run if runs/attempts.py decides so.

    Returns:
        the exit code of the subcommand `end`, which becomes the job's.
    """
    earlier = attempts.read(run)
    if not earlier or earlier[-1].ending is not None:
        raise RuntimeError(f"{run / layout.ATTEMPTS}: the last attempt is missing or has already ended")
    last = earlier[-1]
    ending = find_ending(run, last, job.options.code, job.options.world_size)
    before = [a.ending for a in attempts.filter_by_submission(earlier[:-1], job.id) if a.ending]
    decision = attempts.decide(ending, before, job.options.max_restarts)
    if decision.restart:
        return _restart(run, job, last, ending, decision.reason)
    attempts.end(run, last.number, ending, decision.reason, time.time())
    log(decision.reason)
    if decision.failed:
        record_failure(run, decision.reason)
    clean_up(run, len(job.nodes))
    if ending.cause == EndingCause.COMPLETED:
        return PROCEED
    return FAILED


def _restart(run: Path, job: Job, last: Attempt, ending: Ending, reason: str) -> int:
    """Restart the run in the way that cluster.on_interrupt sets; return the exit code of `end`."""
    excluded = sorted({*attempts.excluded_nodes(run), *ending.bad_nodes})
    way = job.options.on_interrupt
    must_not_restart = way == "stop"
    if must_not_restart:
        reason += NOT_RESTARTED
    elif not job.owns_restart():
        way = "left to Slurm, which ends the job"
    # The end is recorded before the requeue, which ends this script.
    attempts.end(run, last.number, ending, reason, time.time())
    avoided = f", without {', '.join(excluded)}" if excluded else ""
    log(f"{reason}: {way}{avoided}")
    if must_not_restart:
        clean_up(run, len(job.nodes))
        return FAILED
    remove_traces_of_end(run)
    try:
        if way == "requeue":
            clean_up(run, len(job.nodes))
            job.requeue(excluded)
        elif way == "resubmit":
            clean_up(run, len(job.nodes))
            _resubmit_or_release(run, job, last, excluded)
        else:
            # This fails if the job was cancelled, as it has then left the queue.
            job.exclude(excluded, check=False)
    except RuntimeError as fault:
        reason = f"{reason}; it cannot be restarted: {fault}"
        attempts.end(run, last.number, ending, reason, time.time())
        log(reason)
        record_failure(run, reason)
        return FAILED
    return BACK_IN_QUEUE


def _resubmit_or_release(run: Path, job: Job, last: Attempt, excluded: list[str]) -> None:
    """Submit the job again, unless `guard` has done so. Release a job that `guard` left held."""
    with resubmit_lock(run, job):
        submitted = attempts.read(run)[-1].next_job
        if submitted is None:
            resubmit(run, job, last, excluded)
        elif may_be_held(submitted):
            scontrol("release", submitted.partition("_")[0], check=True)


@contextlib.contextmanager
def resubmit_lock(run: Path, job: Job) -> Iterator[None]:
    """Hold the lock under which `guard` and `end` submit the run again; both run on the batch host.

    The process that comes second waits, and then finds in attempts.jsonl whether the first has
    submitted the run. If the first is killed, its lock is freed, and the second submits the run. A
    job of the killed process that is not in attempts.jsonl yet is held, and so never starts.
    """
    with (run / layout.JOBS / layout.next_of(job.id)).open("w") as file:
        # A file system without locks cannot prevent two submissions at the same moment.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def resubmit(run: Path, job: Job, last: Attempt, excluded: list[str]) -> None:
    """Submit the same script again, as a new job that continues after the attempt `last`.

    The new job cannot start before its files are written, its id is recorded, and this job has
    ended.

    Args:
        excluded: nodes that the new job must avoid.

    Raises:
        RuntimeError: Slurm refuses, or does not report the job's script.
    """
    script = re.search(r"\bCommand=(.+)", scontrol("show", "job", job.id, check=True))
    if script is None:
        raise RuntimeError(f"scontrol show job {job.id}: the output does not name the batch script")
    index = job.id.partition("_")[2]
    options = [f"--array={index}"] if index else []
    if excluded:
        options.append(f"--exclude={','.join(excluded)}")
    command = ["sbatch", "--parsable", "--hold", f"--dependency=afterany:{job.id}", *options, script[1]]
    raw_id = sbatch(command)
    new_id = f"{raw_id}_{index}" if index else raw_id
    jobs = run / layout.JOBS
    shutil.copyfile(str(jobs / layout.pickle_of(job.id)), str(jobs / layout.pickle_of(new_id)))
    move_submission(run, new_id, socket.gethostname())
    attempts.hand_over(run, last.number, new_id, time.time())
    scontrol("release", raw_id, check=True)


# --- the end of an attempt -----------------------------------------------------------------------


def find_ending(run: Path, attempt: Attempt, code: int | None, world_size: int) -> Ending:
    """Find out how an attempt ended, from the files that its ranks wrote into the run folder.

    Args:
        code: srun's exit code; None if the batch script was killed, so that the code is unknown.
        world_size: number of ranks.
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
            "it left no reason: requeue, preemption or time limit with too little grace time",
        )
    if code in SIGNALLED and not failures:
        return ending(EndingCause.INTERRUPTED, f"{SIGNALLED[code]} while it was starting")
    absent = absent_nodes(run, attempt)
    memory = memory_used(attempt.job) if code == 128 + signal.SIGKILL else ""
    evidence = causes.collect_evidence(run, failures, world_size, code=code, job=attempt.job, memory=memory)
    detail = causes.explain(evidence) or f"it left no log (exit code {code})"
    if absent:
        detail += f"; no rank on {', '.join(absent)} ever reached the shared folder"
        return ending(EndingCause.PREFLIGHT, detail, absent)
    return ending(EndingCause.DIED, detail)


def _stated_cause(
    attempt: Attempt, cause: EndingCause, failures: list[Failure]
) -> tuple[EndingCause, str, tuple[str, ...]]:
    """Return why an attempt ended (cause, message), and the nodes that a restart must avoid.

    Args:
        cause: the cause to return, unless each of several nodes had a failure: then it is MISTAKE.
        failures: the failures that the ranks recorded, all of one kind.
    """
    nodes = tuple(sorted({node for failure in failures for node in failure.nodes}))
    message = min(failures, key=lambda failure: failure.time).error
    if 1 < len(attempt.nodes) == len(nodes):  # all nodes failed, so no single node is to blame
        return EndingCause.MISTAKE, f"{message} (on every node)", ()
    return cause, message, nodes


def last_step(run: Path, attempt: Attempt) -> int:
    """Return the last optimizer step that the attempt has recorded; 0 if it has recorded none."""
    steps = read_training_steps(run)
    if steps and steps[-1].time_ms >= attempt.time * 1000:
        return steps[-1].step
    return 0


def absent_nodes(run: Path, attempt: Attempt) -> tuple[str, ...]:
    """Return the nodes whose ranks left no presence file (preflight.py); none if no node has one."""
    present = {path.name for path in (run / layout.JOBS / layout.PRESENT).glob("*")}
    absent = tuple(node for node in attempt.nodes if node not in present)
    if 0 < len(absent) < len(attempt.nodes):
        return absent
    return ()


# --- files left behind --------------------------------------------------------------------------


def remove_traces_of_end(run: Path) -> None:
    """Remove files that describe the end of the last attempt; attempts.jsonl now describes it."""
    present = (run / layout.JOBS / layout.PRESENT).glob("*")
    for path in (*layout.list_attempt_files(run), *present):
        path.unlink(missing_ok=True)


def record_failure(run: Path, reason: str) -> None:
    """Record why the run has failed for good; `finetune status` shows the reason."""
    Diagnosis(time.time(), reason).write(run / layout.FAILURE)


def clean_up(run: Path, num_nodes: int) -> None:
    """Remove copies of the corpus that killed ranks left on their nodes' disks (job/staging.py)."""
    staged = Staged.read_or_none(run / layout.STAGED)
    if staged is None or not shutil.which("srun"):
        return
    srun = ["srun", f"--ntasks={num_nodes}", "--ntasks-per-node=1", "--overlap"]
    command = [*srun, "rm", "-rf", "--", staged.folder]
    try:
        subprocess.run(command, timeout=30, check=False, capture_output=True)
    except subprocess.TimeoutExpired:
        log(f"{staged.folder}: could not be removed on all nodes within 30 s")
    (run / layout.STAGED).unlink(missing_ok=True)


def log(message: str) -> None:
    """Write a line into the job's log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} finetune: {message}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
