"""`cancel` and `prune`: stop runs in the queue or at work, and remove what completed runs need no more."""

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

JOBS_A_COMMAND = 500
GRACE_SECONDS = 30.0  # that srun has to end its ranks


def cancel(runs: list[RunFolder], now: bool) -> Iterator[tuple[RunFolder, str]]:
    """Take queued runs out of the queue and stop running ones: at their next step with a checkpoint, or
    `now`.

    Yields:
        each run, and what was done, in words.

    Raises:
        UserError: Slurm refuses; or a run is to be ended now that another machine has. None was ended then.
    """
    seen = observe(runs)
    for one in seen:
        if now and one.alive and (host := one.run.find_other_host()):
            raise UserError(
                f"run {one.run.id} is at work on {host}: run `finetune cancel --now {one.run.id}` there"
            )
    withdrawn = _withdraw(runs)
    if withdrawn:  # and jobs that were being submitted in this moment are in the queue by now
        seen = observe([run for run in runs if run.id not in withdrawn])
    jobs = [one.job_id for one in seen if one.alive and one.job_id and (now or one.state == RunState.QUEUED)]
    for first in range(0, len(jobs), JOBS_A_COMMAND):
        slurm.slurm_command("scancel", *jobs[first : first + JOBS_A_COMMAND])
    for run in runs:
        if run.id in withdrawn:
            yield run, str(RunState.CANCELLED)
    # queued ones first, or the next of a sweep would start when one is stopped
    for one in sorted(seen, key=lambda one: one.state != RunState.QUEUED):
        yield one.run, _cancel(one, now)


def _withdraw(runs: list[RunFolder]) -> set[str]:
    """Take out the runs that wait for a place in the queue; return their ids."""
    withdrawn = set()
    for folder in {run.path.parent for run in runs}:
        if not {run.id for run in runs} & wave_files.waiting_points(folder).keys():
            continue
        with _locked(folder):
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
def _locked(folder: Path) -> Iterator[None]:
    """Keep others from submitting meanwhile; where the lock cannot be had, a point is still either withdrawn
    or submitted."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(TimeoutError):
            stack.enter_context(waves.lock(folder))
        yield


def _cancel(one: Observed, now: bool) -> str:
    run = one.run
    if one.state == RunState.QUEUED and _take_from_queue(run, one.job_id):
        return str(RunState.CANCELLED)
    if one.state == RunState.QUEUED:  # its turn came in this moment
        (one,) = observe([run])
    if not one.alive:
        return f"has ended already: {one.state}"
    if not now:
        run.stop_file.touch()
        return "stops after its next step, with a checkpoint (at once: --now)"
    if not one.job_id:
        _kill_local(run)
    return "ended; what it did since its last checkpoint is lost"


def _take_from_queue(run: RunFolder, job_id: str) -> bool:
    """Note that a run is cancelled, unless it has started meanwhile. The shell that was to start it in its
    turn will not."""
    with run.submission_lock:
        if not job_id and run.state() == RunState.RUNNING:
            return False
        run.record_outcome(RunState.CANCELLED, "cancelled in the queue")
        return True


def _kill_local(run: RunFolder) -> None:
    if (process := run.find_controller()) is not None:
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


def prunable(runs: list[RunFolder], runs_dir: Path, failed: bool) -> Iterator[tuple[Path, int]]:
    """What can go: of completed runs all but their result, their best checkpoint and their numbers; code that
    no run's job imports; merged bases that no run has.

    Args:
        failed: whole folders too, of runs that failed, died or were cancelled; not of one that another
            machine has, unless it has said its end.

    Yields:
        a file or folder, and its bytes.
    """
    every = RunFolder.all(runs_dir)
    bases = {folder for run in every if (folder := _export_used_by(run))}
    for one in observe(runs):
        if one.alive or one.run.find_other_host():
            continue
        with contextlib.suppress(Timeout), one.run.lock:  # held while the caller removes what it is given
            if one.run.state() == one.state:  # else somebody has started it since
                yield from ((path, _size(path)) for path in _superfluous(one, failed, bases) if path.exists())
    used = {run.code() for run in every}
    for folder in sorted((runs_dir / layout.CODE).glob("*")):
        if folder.name not in used:
            yield folder, _size(folder)
    yield from ((entry, _size(entry)) for entry in shared_bases.find_unused(runs_dir))


def _superfluous(one: Observed, failed: bool, bases: set[Path]) -> list[Path]:
    """List what a run that has ended needs no more; the best checkpoint and exports that are another run's
    base stay."""
    run = one.run
    exports = set(run.exports.glob("*"))
    if one.state == RunState.COMPLETED:
        merged = [] if run.adapter.is_dir() else [run.merged_base]  # which adapter_config.json names
        job_files = (*run.jobs.glob("*.pkl"), *run.jobs.glob(layout.rendezvous_of("*", "*")))
        return [*_checkpoints(run), *sorted(exports - bases), *merged, *job_files]
    is_base = bool(exports & bases)
    return [run.path] if failed and not is_base and one.state in PRUNED_STATES else []


def _checkpoints(run: RunFolder) -> list[Path]:
    """List all checkpoints but the best; their folder if there is no best."""
    best = checkpoint_files.find_best(run.checkpoints)
    return (
        [run.checkpoints]
        if best is None
        else sorted(path for path in run.checkpoints.iterdir() if path != best)
    )


def _export_used_by(run: RunFolder) -> Path | None:
    """Return the export that a run's base is, if model.path names a checkpoint of another run."""
    with contextlib.suppress(ValueError, OSError):
        config = run.config()
        name, step = split_step((config.model.path or "").removeprefix(RUN_PREFIX))
        if step is not None:
            return RunFolder.find(name, config.runs_dir).export(step)
    return None


def _size(path: Path) -> int:
    """Count the bytes that a removal frees: files with other names elsewhere stay."""
    files = [path] if path.is_file() else path.rglob("*")
    stats = [file.lstat() for file in files if not file.is_dir()]
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
