"""What a shell prints of runs that were submitted or resumed: that they go on by themselves, or how they
ended."""

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
MOVE_ON_SECONDS = 15.0  # between two tries of a watching shell to submit points that wait for a place
REPORTED_POINTS = 20  # of a sweep, one by one


def report_runs(runs: list[RunFolder]) -> int:
    """Report what became of submitted runs: how they ended, or that they go on by themselves, with what comes
    next. With wait=true it waits for the end first. Stdout carries the run ids.

    Returns:
        the exit code: 1 if a run has ended and is not completed.
    """
    from finetune.launch.observe import observe

    config, now = runs[0].config(), observe(runs)
    if config.wait and any(one.alive for one in now):
        _print_submitted(now)
        now = _wait(runs)
    elif any(one.alive for one in now):
        _print_submitted([one for one in now if one.alive])
    failed = [one for one in now if not one.alive and one.state != RunState.COMPLETED]
    sweep = runs[0].sweep() if len({run.sweep() for run in runs}) == 1 else None
    ended = [one for one in now if not one.alive]
    if sweep and len(runs) > 1 and ended:
        _report_sweep(sweep, ended, is_over=len(ended) == len(now))
    else:
        for one in now:
            _print_ended(one)
    update_sweep_files(runs)
    if ended and config.cluster.scheduler == "local":  # follow.py has sent the runs themselves
        finish_sweeps(runs)
    for one in now:
        print(one.run.id, flush=True)
    if failed and len(runs) > 1:
        print(f"error: {len(failed)} of {len(runs)} runs did not complete", file=sys.stderr)
    return 1 if failed else 0


def report_dry_run(points: list[TrainConfig], sweep: Sweep | None) -> None:
    """Print the points that were checked, and what a submission of them would be charged."""
    from finetune.cli.run_tables import print_points

    print(file=sys.stderr)
    if sweep and len(points) > 1:
        print_points(sweep.points, REPORTED_POINTS)
    if points[0].cluster.scheduler == "slurm":
        print(*points[0].cluster.describe_submission(len(points)), sep="\n", file=sys.stderr)
    print(
        "dry run: all was checked, nothing was written or started; leave --dry-run out to start",
        file=sys.stderr,
    )


def watch(
    runs: list[RunFolder], also: Callable[[], None] = lambda: None, show_end: bool = True
) -> list[Observed]:
    """A live table until all runs have ended, or Ctrl-C; then how they ended.

    Args:
        also: called between two looks.
        show_end: print how they ended; no, if the caller does so.
    """
    from rich.live import Live

    from finetune.cli.run_tables import print_status, status_group
    from finetune.launch import places
    from finetune.launch.observe import observe
    from finetune.terminal import console

    now, moved = observe(runs), time.monotonic()
    with Live(status_group(now), console=console(), auto_refresh=False, transient=True) as live:
        while any(one.alive for one in now):
            also()
            time.sleep(WATCH_SECONDS)
            if time.monotonic() - moved > MOVE_ON_SECONDS:
                places.move_sweeps_on(runs[0].path.parent, quiet=True)
                moved = time.monotonic()
            now = observe(runs)
            live.update(status_group(now), refresh=True)
    if show_end:
        print_status(now, stderr=True)
    return now


def _wait(runs: list[RunFolder]) -> list[Observed]:
    from finetune.launch.observe import observe

    synced = time.monotonic()

    def sync_now_and_then() -> None:
        nonlocal synced
        if time.monotonic() - synced > SYNC_SECONDS:
            sync_runs(runs, quiet=True)
            synced = time.monotonic()

    try:
        now = watch(runs, sync_now_and_then, show_end=False)
    except KeyboardInterrupt:
        print("no longer waiting; the runs go on", file=sys.stderr)
        return observe(runs)
    sync_runs(runs, quiet=True)
    return now


def _print_submitted(now: list[Observed]) -> None:
    from finetune.config.points import describe

    first, sweep = now[0], now[0].run.sweep()
    if first.run.scheduler() == "local":
        for one in now:
            print(
                f"started {one.run.id}: `finetune status {one.run.id}`, and `finetune sync` when it has ended",
                file=sys.stderr,
            )
        return
    name = sweep if sweep and len(now) > 1 else first.run.id
    for one in now[:REPORTED_POINTS]:
        where = f"job {one.job_id}" if one.job_id else one.reason
        print(f"  {one.run.id}  {where}  {describe(one.run.point())}".rstrip(), file=sys.stderr)
    if len(now) > REPORTED_POINTS:
        print(f"  … and {len(now) - REPORTED_POINTS} more", file=sys.stderr)
    print(
        f"submitted {f'sweep {name}: {len(now)} runs' if len(now) > 1 else f'run {name}'}\n"
        f"  finetune status {name} --watch    finetune logs {first.run.id} -f    finetune cancel {name}",
        *first.run.config().cluster.describe_submission(len(now)),
        sep="\n  ",
        file=sys.stderr,
    )


def _print_ended(one: Observed) -> None:
    from finetune.cli import result_tables
    from finetune.cli.next_step import what_helps

    if one.alive:
        return
    if one.state == RunState.COMPLETED:
        result_tables.print_summary(one.run)
        return
    run, reason = one.run, one.reason or "its processes are gone, and it left no log"
    details = {
        RunState.STOPPED: "stopped as asked",
        RunState.FAILED: reason,
        RunState.QUEUED: "not started",
        RunState.CANCELLED: str(RunState.CANCELLED),
    }
    detail = details.get(one.state, f"{one.state}: {reason}")
    print(f"error: run {_name(run)}: {detail}\n  {what_helps(one)}\n  logs: {run.jobs}", file=sys.stderr)


def _report_sweep(sweep: str, ended: list[Observed], is_over: bool) -> None:
    """Print the table of a sweep's points, and before it what it does not hold: faults, warnings, the best
    point's result."""
    from finetune.cli import result_tables
    from finetune.cli.run_tables import print_sweep
    from finetune.launch.sweep_files import best_of, read_point
    from finetune.terminal import short_path

    points = {one.run.id: read_point(one.run, one.state) for one in ended}
    best = best_of(list(points.values()))
    for one in [one for one in ended if one.state in FAILED_STATES][:REPORTED_POINTS]:
        _print_ended(one)
    others = [
        one for one in ended if one.state == RunState.COMPLETED and (best is None or one.run.id != best.id)
    ]
    warnings = {
        one.run.id: summary.warnings for one in others if (summary := one.run.summary()) and summary.warnings
    }
    for one in [one for one in others if one.run.id in warnings][:REPORTED_POINTS]:
        for message in warnings[one.run.id]:
            print(f"warning: {_name(one.run)}: {message}", file=sys.stderr)
    for one in ended:
        if best is not None and one.run.id == best.id:
            result_tables.print_summary(one.run)
    print_sweep(sweep, ended)
    again = any(one.state != RunState.COMPLETED for one in ended) and is_over
    file = ended[0].run.path.parent / layout.SWEEPS / sweep / layout.POINTS_TABLE
    retry = f"    finetune retry {sweep}" if again else ""
    print(f"  finetune status {sweep}{retry}    all points: {short_path(file)}", file=sys.stderr)


def _name(run: RunFolder) -> str:
    """A run's id, with its values where it is a point of a sweep."""
    from finetune.config.points import describe

    return f"{run.id} ({describe(run.point())})" if run.point() else run.id
