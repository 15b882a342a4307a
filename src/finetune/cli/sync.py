"""`finetune sync`: sends what runs have logged to MLflow, and brings the tables of their sweeps up to
date."""

from __future__ import annotations

import contextlib
import sys

from finetune.cli.run_arguments import make_parser, select_runs
from finetune.runs.folder import RunFolder


def sync(arguments: list[str]) -> int:
    """Send runs to MLflow."""
    options_of = make_parser(
        "sync", "Send what runs have said since the last time to MLflow. Safe to repeat."
    )
    options_of.add_argument("runs", nargs="*", help="ids of runs or sweeps (all)")
    return sync_runs(select_runs(options_of.parse_args(arguments)))


def sync_runs(runs: list[RunFolder], quiet: bool = False) -> int:
    from finetune.config import extras
    from finetune.launch.observe import observe
    from finetune.tracking import mlflow_sync

    if quiet and extras.find_missing(("mlflow",)):  # a login node: `finetune sync` elsewhere sends the same
        return 0
    extras.check("mlflow", "sending runs to MLflow")
    observe(runs)  # writes down the ends that only Slurm saw
    failed = 0
    for run in runs:
        try:
            mlflow_sync.sync(run)
        except Exception as fault:  # one run, or one server, must not keep the others from theirs
            failed += 1
            reason = f"{type(fault).__name__}: {' '.join(str(fault).split())[:300]}"
            if not quiet:
                print(f"error: run {run.id} is not in MLflow: {reason}", file=sys.stderr)
    update_sweep_files(runs)
    finish_sweeps(runs)
    if failed and quiet:
        print(f"MLflow is behind by {failed} runs ({reason}): `finetune sync` catches up", file=sys.stderr)
    elif not quiet:
        print(f"{len(runs) - failed} of {len(runs)} runs are in MLflow", file=sys.stderr)
    return 1 if failed else 0


def update_sweep_files(runs: list[RunFolder]) -> None:
    """Bring the tables of these runs' sweeps in runs/sweeps up to date, where they may be written."""
    from finetune.launch import sweep_files

    sweeps: dict[str, list[RunFolder]] = {}
    for run in runs:
        if (sweep := run.sweep()) is not None:
            sweeps.setdefault(sweep, []).append(run)
    for sweep, points in sweeps.items():
        with contextlib.suppress(OSError):  # another user's folder, or a full disk
            sweep_files.update(points[0].path.parent, sweep, points)


def finish_sweeps(runs: list[RunFolder]) -> None:
    """Bring MLflow's parent runs of these runs' sweeps up to date; a server that is away has been reported
    with each run."""
    from finetune.tracking import mlflow_sync

    for sweep in {run.sweep() for run in runs} - {None}:
        with contextlib.suppress(Exception):
            mlflow_sync.update_sweep_status(
                [run for run in RunFolder.all(runs[0].path.parent) if run.sweep() == sweep]
            )
