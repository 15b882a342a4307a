"""Submission of large sweeps in waves, whenever Slurm has places for more of their jobs.

Each job of the runs folder calls `submit_waiting` when it ends (job/batch_script.py), and so do
`finetune status`, `retry`, `cancel` and `wait=true`. The renames of wave_files.py decide which
process submits a point; the lock in this module only prevents two processes from counting the same
place twice.

Also runs on the batch host, outside any container: standard library only, Python 3.8 or newer.
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

LOCK_SECONDS = 120.0  # for which a process waits for the lock
LEASE_SECONDS = 300.0  # after which the lock's holder is taken to have been killed
LAST_SECONDS = 60.0  # for which the last job waits for places of jobs that are ending too
PAUSE = 2.0  # seconds between two tries of the last job


def submit_waiting(runs_dir: Path, ending: str = NONE) -> int:
    """Submit the waiting sweep points that Slurm has places for; return their number.

    Args:
        ending: id of the job that calls this as it ends; "" for other callers. If no other job is
            left to submit the rest later, it waits up to LAST_SECONDS for the places of jobs that
            are ending too.

    Raises:
        CommandError: Slurm does not answer.
        OSError: the folder cannot be written, or another process holds the lock.
    """
    total = 0
    deadline = time.monotonic() + LAST_SECONDS
    while open_submissions(runs_dir):
        with lock(runs_dir):
            submitted, is_last = _submit_once(runs_dir, ending)
        total += submitted
        if submitted or not is_last or time.monotonic() > deadline:
            break
        time.sleep(PAUSE)
    return total


def _submit_once(runs_dir: Path, ending: str) -> tuple[int, bool]:
    """Submit as many points as fit; return their number, and whether to try again soon."""
    jobs = slurm_queue.queue()
    leaving = _record_ending(runs_dir, ending, jobs) if ending else set()
    total = 0
    for submission in open_submissions(runs_dir):
        submission.recover(jobs)
        plan = submission.plan
        count = min(len(submission.waiting()), plan.free_places(jobs, ending))
        awaited = slurm_queue.states_of(plan.after) if count and plan.after else set()
        if awaited & FAILED_JOB_STATES:
            submission.pause(f"job {plan.after}, which should have built the corpus, failed")
            continue
        if count:
            # Starting after the ending job keeps the number of parallel points within its limit.
            dependencies = [f"afterany:{ending}"] if ending else []
            # A job of another run or sweep may call this, before the awaited job has ended.
            if awaited - {JobState.COMPLETED}:
                dependencies.append(f"afterok:{plan.after}")
            total += submission.submit(count, dependencies)
            jobs = slurm_queue.queue()
        submission.close()
    others = [job for job in submitting_jobs(jobs, runs_dir) if job.id not in leaving]
    return total, bool(leaving - {ending}) and not others and bool(open_submissions(runs_dir))


def submitting_jobs(jobs: list[QueuedJob], runs_dir: Path) -> list[QueuedJob]:
    """Return the jobs of a runs folder that will submit waiting points when they end."""
    return [job for job in jobs if job.will_end and _is_under(job.command, runs_dir)]


def _is_under(command: str, folder: Path) -> bool:
    return os.path.realpath(command).startswith(os.path.realpath(str(folder)) + os.sep)


def _record_ending(runs_dir: Path, ending: str, jobs: list[QueuedJob]) -> set[str]:
    """Record that this job is ending; return the ids of all ending jobs in the queue."""
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
    """Hold the lock of a runs folder's sweeps, a file that processes on any node respect.

    Raises:
        TimeoutError: another process holds it for longer than LOCK_SECONDS.
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
    """Remove a killed process' lock: at once if it ran on this host, else after LEASE_SECONDS.

    If a live process' lock is removed by mistake, Slurm may refuse a submission, but no point is
    lost or submitted twice: renames decide who submits it.
    """
    with contextlib.suppress(OSError, ValueError):
        host, pid = path.read_text().split()
        is_gone = host == socket.gethostname() and not Path(f"/proc/{pid}").exists()
        probe = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
        probe.touch()  # its time is set by the file server's clock, as the lock's is
        age = probe.stat().st_mtime - path.stat().st_mtime
        if is_gone or age > LEASE_SECONDS:
            os.replace(path, probe)
        probe.unlink(missing_ok=True)
