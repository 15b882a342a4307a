"""Reports on submitted and resumed runs: which runs were started, and how they ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune.cli.sync import finish_sweeps, sync_runs, update_sweep_files
from finetune.runs import layout
from finetune.runs.folder import RunFolder
from finetune.runs.state import FAILED_STATES, RunState

if TYPE_CHECKING:
    from finetune.config.points import Sweep
    from finetune.config.train import TrainConfig
    from finetune.launch.observe import Observed

WATCH_SECONDS = 3.0
SYNC_SECONDS = 60.0
MOVE_ON_SECONDS = 15.0  # between two attempts to submit waiting points, while runs are watched
REPORTED_POINTS = 20  # points of a sweep that are reported one by one


def report_runs(runs: list[RunFolder]) -> int:
    """Print a report on submitted runs: their states, results and failures, and the next commands.

    With wait=true, wait until all runs have ended. At the end, the run ids are printed on stdout.

    Returns:
        the exit code: 1 if a run has ended and is not completed.
    """
    from finetune.launch.observe import observe

    config = runs[0].config()
    statuses = observe(runs)
    alive = [status for status in statuses if status.alive]
    if config.wait and alive:
        _print_submitted(statuses)
        statuses = _wait(runs)
    elif alive:
        _print_submitted(alive)
    ended = [status for status in statuses if not status.alive]
    failed = [status for status in ended if status.state != RunState.COMPLETED]
    sweep = runs[0].sweep()
    is_one_sweep = len(runs) > 1 and len({run.sweep() for run in runs}) == 1
    if sweep and is_one_sweep and ended:
        _report_sweep(sweep, ended, is_over=len(ended) == len(statuses))
    else:
        for status in ended:
            _print_ended(status)
    update_sweep_files(runs)
    if ended and config.cluster.scheduler == "local":  # launch/follow.py has sent them to MLflow
        finish_sweeps(runs)
    for status in statuses:
        print(status.run.id, flush=True)
    if failed and len(runs) > 1:
        print(f"error: {len(failed)} of {len(runs)} runs did not complete", file=sys.stderr)
    return int(len(failed) > 0)


def report_dry_run(points: list[TrainConfig], sweep: Sweep | None) -> None:
    """Print the points that were checked, and the cost of their runs if they were submitted."""
    from finetune.cli.run_tables import print_points

    print(file=sys.stderr)
    if sweep and len(points) > 1:
        print_points(sweep.points, REPORTED_POINTS)
    if points[0].cluster.scheduler == "slurm":
        print(*points[0].cluster.describe_submission(len(points)), sep="\n", file=sys.stderr)
    print(
        "dry run: all checks passed; nothing was written or started; leave --dry-run out to start",
        file=sys.stderr,
    )


def watch(
    runs: list[RunFolder], on_refresh: Callable[[], None] = lambda: None, show_end: bool = True
) -> list[Observed]:
    """Show a live table until all runs have ended or Ctrl-C is pressed, and return the last states.

    Args:
        on_refresh: called before each refresh of the table.
        show_end: print the final table; False if the caller prints its own report.
    """
    from rich.live import Live

    from finetune.cli.run_tables import print_status, status_group
    from finetune.launch import places
    from finetune.launch.observe import observe
    from finetune.terminal import console

    statuses = observe(runs)
    moved_on_at = time.monotonic()
    with Live(status_group(statuses), console=console(), auto_refresh=False, transient=True) as live:
        while any(status.alive for status in statuses):
            on_refresh()
            time.sleep(WATCH_SECONDS)
            if time.monotonic() - moved_on_at > MOVE_ON_SECONDS:
                places.submit_waiting_points(runs[0].path.parent, quiet=True)
                moved_on_at = time.monotonic()
            statuses = observe(runs)
            live.update(status_group(statuses), refresh=True)
    if show_end:
        print_status(statuses, stderr=True)
    return statuses


def _wait(runs: list[RunFolder]) -> list[Observed]:
    """Watch the runs until they have ended, and send their metrics to MLflow at intervals."""
    from finetune.launch.observe import observe

    synced_at = time.monotonic()

    def sync_if_due() -> None:
        nonlocal synced_at
        if time.monotonic() - synced_at > SYNC_SECONDS:
            sync_runs(runs, quiet=True)
            synced_at = time.monotonic()

    try:
        statuses = watch(runs, sync_if_due, show_end=False)
    except KeyboardInterrupt:
        print("no longer waiting; the runs continue", file=sys.stderr)
        return observe(runs)
    sync_runs(runs, quiet=True)
    return statuses


def _print_submitted(statuses: list[Observed]) -> None:
    """Print queued and running runs, with the commands that show, follow and cancel them."""
    from finetune.config.points import describe

    first = statuses[0].run
    if first.scheduler() == "local":
        for status in statuses:
            run_id = status.run.id
            print(
                f"started {run_id}: `finetune status {run_id}` shows its state; "
                "after its end, run `finetune sync`",
                file=sys.stderr,
            )
        return
    for status in statuses[:REPORTED_POINTS]:
        job = f"job {status.job_id}" if status.job_id else status.reason
        print(f"  {status.run.id}  {job}  {describe(status.run.point())}".rstrip(), file=sys.stderr)
    if len(statuses) > REPORTED_POINTS:
        print(f"  … and {len(statuses) - REPORTED_POINTS} more", file=sys.stderr)
    name = first.id
    submitted = f"run {name}"
    if len(statuses) > 1:
        name = first.sweep() or first.id
        submitted = f"sweep {name}: {len(statuses)} runs"
    print(
        f"submitted {submitted}",
        f"finetune status {name} --watch    finetune logs {first.id} -f    finetune cancel {name}",
        *first.config().cluster.describe_submission(len(statuses)),
        sep="\n  ",
        file=sys.stderr,
    )


def _print_ended(status: Observed) -> None:
    """Print the result of an ended run, or the reason for its end and the next step."""
    from finetune.cli import result_tables
    from finetune.cli.next_step import describe_next_step

    run = status.run
    if status.state == RunState.COMPLETED:
        result_tables.print_summary(run)
        return
    reason = status.reason or "its processes are gone, and it left no log"
    details = {
        RunState.STOPPED: "stopped on request",
        RunState.FAILED: reason,
        RunState.QUEUED: "not started",
        RunState.CANCELLED: str(RunState.CANCELLED),
    }
    detail = details.get(status.state, f"{status.state}: {reason}")
    print(
        f"error: run {_name_with_values(run)}: {detail}\n  {describe_next_step(status)}\n  logs: {run.jobs}",
        file=sys.stderr,
    )


def _report_sweep(sweep: str, ended: list[Observed], is_over: bool) -> None:
    """Print a report on a sweep: failures, warnings, the best result, and a table of the points.

    Args:
        ended: the points that have ended.
        is_over: True if all points have ended. If some are not completed, the retry command is then
            printed.
    """
    from finetune.cli import result_tables
    from finetune.cli.run_tables import print_sweep
    from finetune.launch.sweep_files import best_of, read_point
    from finetune.terminal import short_path

    best = best_of([read_point(status.run, status.state) for status in ended])
    failed = [status for status in ended if status.state in FAILED_STATES]
    for status in failed[:REPORTED_POINTS]:
        _print_ended(status)
    completed = [status.run for status in ended if status.state == RunState.COMPLETED]
    _print_warnings([run for run in completed if best is None or run.id != best.id])
    for status in ended:
        if best is not None and status.run.id == best.id:
            result_tables.print_summary(status.run)
    print_sweep(sweep, ended)
    can_retry = is_over and len(completed) < len(ended)
    retry = f"    finetune retry {sweep}" if can_retry else ""
    file = ended[0].run.path.parent / layout.SWEEPS / sweep / layout.POINTS_TABLE
    print(f"  finetune status {sweep}{retry}    all points: {short_path(file)}", file=sys.stderr)


def _print_warnings(runs: list[RunFolder]) -> None:
    """Print the warnings in the runs' summaries, for the first REPORTED_POINTS runs with any."""
    reported = 0
    for run in runs:
        summary = run.summary()
        if summary is None or not summary.warnings:
            continue
        reported += 1
        if reported > REPORTED_POINTS:
            return
        for message in summary.warnings:
            print(f"warning: {_name_with_values(run)}: {message}", file=sys.stderr)


def _name_with_values(run: RunFolder) -> str:
    """Return a run's id, with the swept values if it is a point of a sweep."""
    from finetune.config.points import describe

    point = run.point()
    return f"{run.id} ({describe(point)})" if point else run.id
