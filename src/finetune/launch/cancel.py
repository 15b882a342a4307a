"""`cancel` and `prune`: stop runs, and remove files that ended runs no longer need."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import Timeout

from data_prep.user_error import UserError
from finetune.config.train import RUN_PREFIX, split_step
from finetune.job import wave_files, waves
from finetune.launch import slurm
from finetune.launch.follow import Controller
from finetune.launch.observe import Observed, observe
from finetune.runs import checkpoint_files, layout, shared_bases
from finetune.runs.folder import RunFolder
from finetune.runs.state import PRUNED_STATES, RunState

JOBS_PER_COMMAND = 500
GRACE_SECONDS = 30.0  # for srun to end its ranks


def cancel(runs: list[RunFolder], now: bool) -> Iterator[tuple[RunFolder, str]]:
    """Remove queued runs from the queue and stop running ones.

    Args:
        now: end running runs at once, without a checkpoint. If False, they save a checkpoint after
            their next step and stop.

    Yields:
        each run, with a description of the result.

    Raises:
        UserError: Slurm refuses to cancel a job. Or `now` is set and a run is running on another
            machine; then nothing was changed.
    """
    observed = observe(runs)
    for seen in observed:
        host = seen.run.find_other_host() if now and seen.alive else None
        if host:
            raise UserError(
                f"run {seen.run.id}: is running on {host}; run `finetune cancel --now {seen.run.id}` there"
            )
    withdrawn = _withdraw(runs)
    if withdrawn:  # another process may have submitted some of the others in the meantime
        observed = observe([run for run in runs if run.id not in withdrawn])
    on_slurm = [seen for seen in observed if seen.alive and seen.job_id]
    jobs = [seen.job_id for seen in on_slurm if now or seen.state == RunState.QUEUED]
    for first in range(0, len(jobs), JOBS_PER_COMMAND):
        slurm.slurm_command("scancel", *jobs[first : first + JOBS_PER_COMMAND])
    for run in runs:
        if run.id in withdrawn:
            yield run, str(RunState.CANCELLED)
    # Queued runs first: stopping a run of a sweep would start the next one.
    for seen in sorted(observed, key=lambda seen: seen.state != RunState.QUEUED):
        yield seen.run, _cancel(seen, now)


def _withdraw(runs: list[RunFolder]) -> set[str]:
    """Cancel the runs that are sweep points without a Slurm job; return their ids.

    From then on, no process submits these points any more (job/waves.py).
    """
    withdrawn = set()
    for folder in {run.path.parent for run in runs}:
        if not {run.id for run in runs} & wave_files.waiting_points(folder).keys():
            continue
        with _sweep_lock(folder):
            points = {
                key: point for key, point in wave_files.waiting_points(folder).items() if not point.task
            }
            mine = {run.id: run for run in runs if run.id in points}
            for submission in {points[run_id].submission for run_id in mine}:
                wanted = {
                    points[run_id].index: run
                    for run_id, run in mine.items()
                    if points[run_id].submission == submission
                }
                for index in submission.withdraw_all(list(wanted)):
                    reason = "cancelled before it had a job"
                    wanted[index].record_outcome(RunState.CANCELLED, reason)
                    withdrawn.add(wanted[index].id)
                submission.close()
    return withdrawn


@contextlib.contextmanager
def _sweep_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of job/waves.py, so that no other process submits points in the meantime.

    If another process does not release the lock, continue without it. A point still cannot be both
    withdrawn and submitted. To do either, a process first removes the point's file from the folder
    `waiting`, and only one process can do that.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(TimeoutError):
            stack.enter_context(waves.lock(folder))
        yield


def _cancel(seen: Observed, now: bool) -> str:
    run = seen.run
    if seen.state == RunState.QUEUED:
        if _take_from_queue(run, seen.job_id):
            return str(RunState.CANCELLED)
        (seen,) = observe([run])  # it has just started
    if not seen.alive:
        return f"has already ended: {seen.state}"
    if not now:
        run.stop_file.touch()
        return "stops after its next step, with a checkpoint (--now ends it at once)"
    if not seen.job_id:
        _kill_local(run)
    return "ended; its steps since the last checkpoint are lost"


def _take_from_queue(run: RunFolder, job_id: str) -> bool:
    """Record that a queued run is cancelled. The process that was to start it will skip it.

    Returns:
        False if it is a local run that has started in the meantime; nothing is recorded then.
    """
    with run.submission_lock:
        if not job_id and run.state() == RunState.RUNNING:
            return False
        run.record_outcome(RunState.CANCELLED, "cancelled in the queue")
        return True


def _kill_local(run: RunFolder) -> None:
    process = run.find_controller()
    if process is not None:
        owns_ranks = run.config().cluster.scheduler == "local"
        Controller(process, lambda: not process.is_running(), owns_ranks).end()
        try:
            process.wait(GRACE_SECONDS)
        except psutil.TimeoutExpired:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    for rank in run.find_ranks():
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.kill()
    run.record_outcome(RunState.CANCELLED, reason=str(RunState.CANCELLED))


def find_prunable(runs: list[RunFolder], runs_dir: Path, failed: bool) -> Iterator[tuple[Path, int]]:
    """Find files that are no longer needed.

    Of a completed run, these are: all checkpoints except the best; exports that no run has as base
    model; its merged base model, unless an adapter was saved; and files that started its jobs.
    Copies of the code and, in runs/.bases, merged base models are found if no run uses them.

    Args:
        runs: the runs whose folders are searched.
        runs_dir: the folder of all runs.
        failed: also find the folders of runs that failed, died or were cancelled, unless another
            machine may still be running them.

    Yields:
        a file or folder, and its size in bytes.
    """
    every = RunFolder.all(runs_dir)
    bases = {folder for folder in map(_export_used_by, every) if folder}
    for seen in observe(runs):
        if seen.alive or seen.run.find_other_host():
            continue
        with contextlib.suppress(Timeout), seen.run.lock:  # held while the caller removes the yielded files
            if seen.run.state() == seen.state:  # otherwise it has been started since
                for path in _superfluous(seen, failed, bases):
                    if path.exists():
                        yield path, _size(path)
    used = {run.code() for run in every}
    for folder in sorted((runs_dir / layout.CODE).glob("*")):
        if folder.name not in used:
            yield folder, _size(folder)
    yield from ((entry, _size(entry)) for entry in shared_bases.find_unused(runs_dir))


def _superfluous(seen: Observed, failed: bool, bases: set[Path]) -> list[Path]:
    """List the files that an ended run no longer needs; some of them may not exist.

    The best checkpoint is kept, and so are exports that are the base model of another run.

    Args:
        failed: list the whole folder of a run that failed, died or was cancelled.
        bases: exports that are the base model of some run.
    """
    run = seen.run
    exports = set(run.exports.glob("*"))
    if seen.state == RunState.COMPLETED:
        # The config of a saved adapter refers to the merged base.
        merged = [] if run.adapter.is_dir() else [run.merged_base]
        job_files = (*run.jobs.glob("*.pkl"), *run.jobs.glob(layout.rendezvous_of("*", "*")))
        return [*_checkpoints(run), *sorted(exports - bases), *merged, *job_files]
    is_base = bool(exports & bases)
    if failed and not is_base and seen.state in PRUNED_STATES:
        return [run.path]
    return []


def _checkpoints(run: RunFolder) -> list[Path]:
    """List all checkpoints except the best; if no checkpoint is the best, list their folder."""
    best = checkpoint_files.find_best(run.checkpoints)
    if best is None:
        return [run.checkpoints]
    return sorted(path for path in run.checkpoints.iterdir() if path != best)


def _export_used_by(run: RunFolder) -> Path | None:
    """Return the folder of the exported model that is this run's base model.

    Return None if the base model is not an export of another run.
    """
    with contextlib.suppress(ValueError, OSError):
        config = run.config()
        name, step = split_step((config.model.path or "").removeprefix(RUN_PREFIX))
        if step is not None:
            return RunFolder.find(name, config.runs_dir).export(step)
    return None


def _size(path: Path) -> int:
    """Return the number of bytes that a removal frees. A file with another hard link frees none."""
    files = [path] if path.is_file() else path.rglob("*")
    stats = [file.lstat() for file in files if not file.is_dir()]
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
