"""Submit large sweeps in parts, whenever Slurm accepts more jobs of the user.

Each job of the runs folder calls `submit_waiting` when it ends (job/batch_script.py). So do
`finetune status`, `finetune retry`, `finetune cancel` and wait=true. To submit a point, a process
must first rename the point's file, and only one process can do that (wave_files.py). The lock in
this module only prevents two processes from submitting, together, more jobs than Slurm accepts.

This module also runs on the batch host, outside any container. It uses only the standard library
and Python 3.8.
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

LOCK_SECONDS = 120.0  # a process waits this long for the lock
LEASE_SECONDS = 300.0  # a lock that is older was left by a killed process
LAST_SECONDS = 60.0  # the last job of a sweep tries this long to submit points
PAUSE = 2.0  # seconds between its tries


def submit_waiting(runs_dir: Path, ending: str = NONE) -> int:
    """Submit as many waiting sweep points as Slurm accepts; return their number.

    An ending job tries again, for up to LAST_SECONDS, if Slurm accepts no point and all other jobs
    in the queue are ending, too. If it did not, no job would be left to submit the points. Slurm
    accepts a point as soon as one of the other ending jobs has left the queue.

    Args:
        ending: id of the calling job if it is about to end; "" for other callers.

    Raises:
        CommandError: Slurm refuses a command or does not answer.
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
    """Submit as many waiting points as Slurm accepts now.

    Returns:
        the number of submitted points; and True if the caller should try again. It should if points
        still wait, and only ending jobs are in the queue, at least one besides the caller's.
    """
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
            # The new jobs start after the ending job, so that not too many points run in parallel.
            dependencies = [f"afterany:{ending}"] if ending else []
            # The awaited job may not have ended yet, if a job of another run or sweep calls this.
            if awaited - {JobState.COMPLETED}:
                dependencies.append(f"afterok:{plan.after}")
            total += submission.submit(count, dependencies)
            jobs = slurm_queue.queue()
        submission.close()
    others = [job for job in submitting_jobs(jobs, runs_dir) if job.id not in leaving]
    return total, bool(leaving - {ending}) and not others and bool(open_submissions(runs_dir))


def submitting_jobs(jobs: list[QueuedJob], runs_dir: Path) -> list[QueuedJob]:
    """Return the jobs of runs in `runs_dir` that will submit waiting points at their end."""
    return [job for job in jobs if job.will_end and _is_under(job.command, runs_dir)]


def _is_under(command: str, folder: Path) -> bool:
    return os.path.realpath(command).startswith(os.path.realpath(str(folder)) + os.sep)


def _record_ending(runs_dir: Path, ending: str, jobs: list[QueuedJob]) -> set[str]:
    """Record that the job `ending` is about to end; return the ids of all such jobs in the queue."""
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
    """Hold the lock for submitting the sweep points of a runs folder.

    The lock is a file in the runs folder, so that it works between processes on different nodes.

    Raises:
        TimeoutError: another process has held it for LOCK_SECONDS.
    """
    path = runs_dir / SWEEPS / WAVES_LOCK
    deadline = time.monotonic() + LOCK_SECONDS
    while not _create(path):
        _break_stale(path)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path}: is held by another process; try again later")
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
    """Remove a lock that a killed process has left.

    A lock counts as left if its process ran on this host and has ended, or if the lock is older
    than LEASE_SECONDS. If such an old lock belongs to a live process, its removal does little harm:
    Slurm may refuse a submission, but the renames of wave_files.py ensure that no point is lost or
    submitted twice.
    """
    with contextlib.suppress(OSError, ValueError):
        host, pid = path.read_text().split()
        is_gone = host == socket.gethostname() and not Path(f"/proc/{pid}").exists()
        probe = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
        probe.touch()  # the file server's clock sets its time, like that of the lock
        age = probe.stat().st_mtime - path.stat().st_mtime
        if is_gone or age > LEASE_SECONDS:
            os.replace(path, probe)
        probe.unlink(missing_ok=True)
