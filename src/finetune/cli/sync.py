"""`finetune sync`: sends the metrics of runs to MLflow and updates the tables of their sweeps."""

from __future__ import annotations

import contextlib
import sys

from finetune.cli.run_arguments import make_parser, select_runs
from finetune.runs.folder import RunFolder


def sync(arguments: list[str]) -> int:
    """Send the new metrics of runs to MLflow."""
    parser = make_parser("sync", "Send metrics of runs that MLflow does not have yet. Safe to repeat.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="ids of runs or sweeps (default: all runs)")
    return sync_runs(select_runs(parser.parse_args(arguments)))


def sync_runs(runs: list[RunFolder], quiet: bool = False) -> int:
    """Send the new metrics of runs to MLflow, and update the tables of their sweeps.

    Args:
        quiet: report failures in one line only, and do nothing where MLflow is not installed.

    Returns:
        the exit code: 1 if a run could not be sent.
    """
    from finetune.config import extras
    from finetune.launch.observe import observe
    from finetune.tracking import mlflow_sync

    if quiet and extras.find_missing(("mlflow",)):  # as on a login node; a later sync sends them
        return 0
    extras.check("mlflow", "sending runs to MLflow")
    observe(runs)  # records the end of runs that only Slurm has noticed
    failed = 0
    for run in runs:
        try:
            mlflow_sync.sync(run)
        except Exception as fault:  # a fault of one run must not block the others
            failed += 1
            reason = f"{type(fault).__name__}: {' '.join(str(fault).split())[:300]}"
            if not quiet:
                print(f"error: run {run.id} could not be sent to MLflow: {reason}", file=sys.stderr)
    update_sweep_files(runs)
    finish_sweeps(runs)
    if failed and quiet:
        print(
            f"{failed} runs could not be sent to MLflow ({reason}); run `finetune sync` to send them",
            file=sys.stderr,
        )
    elif not quiet:
        print(f"{len(runs) - failed} of {len(runs)} runs are in MLflow", file=sys.stderr)
    return int(failed > 0)


def update_sweep_files(runs: list[RunFolder]) -> None:
    """Update the tables of the runs' sweeps in runs/sweeps, if they can be written."""
    from finetune.launch import sweep_files

    sweeps: dict[str, list[RunFolder]] = {}
    for run in runs:
        sweep = run.sweep()
        if sweep is not None:
            sweeps.setdefault(sweep, []).append(run)
    for sweep, points in sweeps.items():
        with contextlib.suppress(OSError):  # the folder of another user, or a full disk
            sweep_files.update(points[0].path.parent, sweep, points)


def finish_sweeps(runs: list[RunFolder]) -> None:
    """Update the status in MLflow of the sweeps that the runs belong to.

    Errors are ignored, because sync_runs has already reported a server that cannot be reached.
    """
    from finetune.tracking import mlflow_sync

    for sweep in {run.sweep() for run in runs} - {None}:
        with contextlib.suppress(Exception):
            points = [run for run in RunFolder.all(runs[0].path.parent) if run.sweep() == sweep]
            mlflow_sync.update_sweep_status(points)
