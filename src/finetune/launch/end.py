"""Ending runs, and removing what they leave."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from finetune.launch import slurm
from finetune.launch.freeze import CODE
from finetune.launch.observe import Observed, observe
from finetune.run_folder import RunFolder

JOBS_A_COMMAND = 500


def cancel(runs: list[RunFolder], now: bool) -> Iterator[tuple[RunFolder, str]]:
    """Take queued runs out of the queue and stop running ones: at their next step with a checkpoint, or `now`.

    Yields:
        each run, and what was done, in words.

    Raises:
        ValueError: Slurm refuses.
    """
    seen = observe(runs)
    jobs = [one.job_id for one in seen if one.alive and one.job_id and (now or one.state == "queued")]
    for first in range(0, len(jobs), JOBS_A_COMMAND):
        slurm.slurm_command("scancel", *jobs[first : first + JOBS_A_COMMAND])
    for one in seen:
        yield one.run, _cancel(one, now)


def _cancel(one: Observed, now: bool) -> str:
    run = one.run
    if one.state == "queued":
        run.write_json("outcome.json", {"state": "cancelled", "reason": "cancelled in the queue"})
        return "cancelled"
    if not one.alive:
        return f"has ended already: {one.state}"
    if not now:
        run.stop_file.touch()
        return "stops after its next step, with a checkpoint (at once: --now)"
    if not one.job_id:
        _kill_local(run)
    return "ended; what it did since its last checkpoint is lost"


def _kill_local(run: RunFolder) -> None:
    attempt = run.read_json("attempt.json") or {}
    with contextlib.suppress(psutil.NoSuchProcess):
        controller = psutil.Process(int(attempt["job_id"]))
        for process in (*controller.children(recursive=True), controller):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    for rank in run.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.kill()
    run.write_json("outcome.json", {"state": "cancelled", "reason": "cancelled"})


def prunable(runs: list[RunFolder], runs_dir: Path, failed: bool) -> Iterator[tuple[Path, int]]:
    """What can go: of completed runs all but their result and their numbers; code that no run's job imports.

    Args:
        failed: whole folders too, of runs that failed, died or were cancelled.

    Yields:
        a file or folder, and its bytes.
    """
    for one in observe(runs):
        if one.alive:
            continue
        if one.state == "completed":
            parts = [
                one.run.checkpoints,
                one.run.path / "merged_base",
                *one.run.jobs.glob("*.pkl"),
                *one.run.jobs.glob("rendezvous-*"),
            ]
        else:
            parts = [one.run.path] if failed and one.state in ("failed", "dead", "cancelled") else []
        yield from ((path, _size(path)) for path in parts if path.exists())
    used = {run.code() for run in RunFolder.all(runs_dir)}
    for folder in sorted((runs_dir / CODE).glob("*")):
        if folder.name not in used:
            yield folder, _size(folder)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
