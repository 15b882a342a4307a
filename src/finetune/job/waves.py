"""Waves: a sweep with more points than Slurm takes at a time is submitted in parts, as places become free.

`submit_waiting` moves points along. Every job of the runs folder calls it when it ends (job/batch_script.py),
and so do `finetune status`, `retry`, `cancel` and `wait=true`. The renames of wave_files.py decide who
submits a point; the lock below only keeps callers from counting the same free place twice.

Only the standard library, from Python 3.8 on: it runs on the batch host, outside of a container.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from finetune.job import slurm_queue
from finetune.job.slurm_queue import QueuedJob
from finetune.job.wave_files import NONE, list_files, open_submissions
from finetune.runs.layout import ENDING, SWEEPS, WAVES_LOCK
from finetune.runs.state import FAILED_JOB_STATES, JobState

LOCK_SECONDS = 120.0  # that a caller waits for the lock
LEASE_SECONDS = 300.0  # after which a lock is taken for that of a process that was killed
LAST_SECONDS = 60.0  # that the last job waits for jobs that are ending beside it
PAUSE = 2.0  # between two tries of it


def submit_waiting(runs_dir: Path, ending: str = NONE) -> int:
    """Submit as many waiting points of a runs folder's sweeps as there are places for; return their number.

    Args:
        ending: the job that calls this in its last lines. If no other job of the runs folder is left to move
            the sweeps on, it waits a little for places of jobs that are ending at the same time.

    Raises:
        Refused: Slurm does not answer.
        OSError: the folder cannot be written, or another process holds the lock.
    """
    total, deadline = 0, time.monotonic() + LAST_SECONDS
    while open_submissions(runs_dir):
        with lock(runs_dir):
            submitted, is_last = _submit_once(runs_dir, ending)
        total += submitted
        if submitted or not is_last or time.monotonic() > deadline:
            break
        time.sleep(PAUSE)
    return total


def _submit_once(runs_dir: Path, ending: str) -> tuple[int, bool]:
    """Submit what there is room for; return its number, and whether to try again, as ending jobs keep
    places."""
    jobs = slurm_queue.queue()
    leaving = _note_ending(runs_dir, ending, jobs) if ending else set()
    total = 0
    for submission in open_submissions(runs_dir):
        submission.recover(jobs)
        plan = submission.plan
        count = min(len(submission.waiting()), plan.places(jobs, ending))
        awaited = slurm_queue.states_of(plan.after) if count and plan.after else set()
        if awaited & FAILED_JOB_STATES:
            submission.pause(f"job {plan.after}, which was to make the corpus, has failed")
            continue
        if count:
            dependencies = (
                [f"afterany:{ending}"] if ending else []
            )  # so that parallel points stay as many as allowed
            if awaited - {JobState.COMPLETED}:  # a job of another run or sweep may be the one that calls this
                dependencies.append(f"afterok:{plan.after}")
            total += submission.submit(count, dependencies)
            jobs = slurm_queue.queue()
        submission.close()
    others = [job for job in movers(jobs, runs_dir) if job.id not in leaving]
    return total, bool(leaving - {ending}) and not others and bool(open_submissions(runs_dir))


def movers(jobs: list[QueuedJob], runs_dir: Path) -> list[QueuedJob]:
    """Return the jobs of a runs folder that submit waiting points when they end."""
    return [job for job in jobs if job.can_end and _is_under(job.command, runs_dir)]


def _is_under(command: str, folder: Path) -> bool:
    return os.path.realpath(command).startswith(os.path.realpath(str(folder)) + os.sep)


def _note_ending(runs_dir: Path, ending: str, jobs: list[QueuedJob]) -> set[str]:
    """Note that this job has had its turn; return all jobs in the queue that have had theirs."""
    folder = runs_dir / SWEEPS / ENDING
    folder.mkdir(exist_ok=True)
    (folder / ending).touch()
    queued = {job.id for job in jobs}
    leaving = set()
    for path in list_files(folder):
        if path.name in queued:
            leaving.add(path.name)
        else:
            path.unlink(missing_ok=True)
    return leaving


@contextlib.contextmanager
def lock(runs_dir: Path) -> Iterator[None]:
    """Hold the lock of a runs folder's sweeps: a file that only one process can create, on whatever node.

    Raises:
        TimeoutError: another process has it for longer than LOCK_SECONDS.
    """
    path = runs_dir / SWEEPS / WAVES_LOCK
    deadline = time.monotonic() + LOCK_SECONDS
    while not _create(path):
        _break_stale(path)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} is held by another process")
        time.sleep(0.1)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    try:
        descriptor = os.open(str(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{socket.gethostname()} {os.getpid()}\n")
    return True


def _break_stale(path: Path) -> None:
    """Remove the lock of a killed process: at once where it can be seen to be gone, else after LEASE_SECONDS.
    A lock broken by mistake costs a refusal by Slurm, not a point: renames decide who submits those."""
    with contextlib.suppress(OSError, ValueError):
        host, pid = path.read_text().split()
        is_gone = host == socket.gethostname() and not Path(f"/proc/{pid}").exists()
        probe = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
        probe.touch()  # its time is the file server's, as the lock's is
        age = probe.stat().st_mtime - path.stat().st_mtime
        if is_gone or age > LEASE_SECONDS:
            os.replace(path, probe)
        probe.unlink(missing_ok=True)
