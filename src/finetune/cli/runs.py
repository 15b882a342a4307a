"""The verbs of life with runs: resume, status, logs, cancel, retry, prune, sync. Each reads disk and Slurm, from any shell."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.overrides import Parser, to_dotlist
from finetune.runs.folder import RunFolder

if TYPE_CHECKING:
    from finetune.config.points import Sweep
    from finetune.config.train import TrainConfig
    from finetune.launch.observe import Observed
    from finetune.launch.prepare_jobs import PrepareRun

WATCH_SECONDS = 3.0
SYNC_SECONDS = 60.0
MOVE_ON_SECONDS = 15.0  # between two tries of a watching shell to submit points that wait for a place
REPORTED_POINTS = 20  # of a sweep, one by one


def parser(verb: str, description: str) -> Parser:
    made = Parser(prog=f"finetune {verb}", description=description)
    made.add_argument("--runs-dir", default="runs", help="where the runs lie (runs)")
    return made


def resume(arguments: list[str]) -> int:
    options_of = parser(
        "resume", "Go on with a run, from its newest checkpoint that verifies; with more steps, a completed one too."
    )
    options_of.add_argument("run", help="run id")
    options_of.add_argument("settings", nargs="*", help="what changes from now on, as cluster.ranks_per_node=2 or max_steps=2000")
    options = options_of.parse_args(arguments)
    from finetune.launch import submit

    words = [options.run, *options.settings]
    options.run = next((word for word in words if "=" not in word), None)  # settings may stand before it
    if options.run is None:
        raise ValueError("RUN is missing; `finetune resume --help` lists what it takes")
    words.remove(options.run)
    try:
        run = RunFolder.find(options.run, options.runs_dir)
    except FileNotFoundError:
        points = chosen(argparse.Namespace(runs_dir=options.runs_dir, runs=[options.run]))
        raise ValueError(f"{options.run} is a sweep of {len(points)} runs: resume one of them, or `finetune retry` it") from None
    submit.resume(run, to_dotlist(words))
    return report_runs([run])


def status(arguments: list[str]) -> int:
    options_of = parser("status", "What the runs are doing, or how they ended; from disk and Slurm, from any shell.")
    options_of.add_argument("runs", nargs="*", help="ids of runs or sweeps (all)")
    _add_corpora_dir(options_of)
    options_of.add_argument("--watch", action="store_true", help="go on showing it, until all have ended")
    options = options_of.parse_args(arguments)
    from finetune.cli import report
    from finetune.cli.tables import print_status
    from finetune.launch import places
    from finetune.launch.observe import observe

    if prepared := _prepare_runs(options):
        report.print_steps(prepared)
        if not options.runs:
            return 0
    runs = chosen(options)
    places.move_sweeps_on(Path(options.runs_dir).resolve())
    if options.watch:
        watch(runs)
    else:
        print_status(observe(runs))
    update_sweep_files(runs)
    return 0


def _add_corpora_dir(options_of: argparse.ArgumentParser) -> None:
    options_of.add_argument("--corpora-dir", default="corpora", help="where the corpora of prepare runs lie (corpora)")


def _prepare_runs(options: argparse.Namespace) -> list[PrepareRun]:
    """Those of the named runs that are preparations; options.runs keeps the others."""
    from finetune.launch.prepare_jobs import PrepareRun

    found = []
    for name in options.runs:
        with contextlib.suppress(FileNotFoundError):
            found.append(PrepareRun.find(name, options.corpora_dir))
    options.runs = [name for name in options.runs if name not in {run.id for run in found}]
    return found


def logs(arguments: list[str]) -> int:
    options_of = parser("logs", "What a rank of each run has written, or the tasks of a preparation.")
    options_of.add_argument("runs", nargs="+", help="ids of runs, sweeps or preparations")
    _add_corpora_dir(options_of)
    options_of.add_argument(
        "--rank", type=int, default=0, help="of which rank (0, whose log also holds the batch script's words)"
    )
    options_of.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    options = options_of.parse_args(arguments)
    if prepared := _prepare_runs(options):
        if options.follow:
            raise ValueError(f"-f follows a training run, {prepared[0].id} is a preparation: `finetune status` shows its steps")
        for log in (log for run in prepared for log in run.logs()):
            print(f"==> {log.stem} <==", flush=True)
            _print_from(log, 0)
        if not options.runs:
            return 0
    runs = chosen(options)
    if options.follow and len(runs) > 1:
        raise ValueError(f"-f follows one run, these are {len(runs)}: name one of them, or leave -f out")
    for run in runs:
        if len(runs) > 1:
            print(f"==> {run.id} <==", flush=True)
        _print_log(run, options.rank, options.follow)
    return 0


def _print_log(run: RunFolder, rank: int, follow: bool) -> None:
    from finetune.launch.observe import observe

    if not 0 <= rank < run.config().cluster.world_size:
        raise ValueError(f"--rank {rank}: run {run.id} has ranks 0 to {run.config().cluster.world_size - 1}")
    shown: Path | None = None
    position, asked = 0, 0.0
    alive = True
    while True:
        log = run.log(rank)
        if log is not None:
            if log != shown:  # another job of the run: resubmitted, or resumed
                shown, position = log, 0
            position = _print_from(log, position)
        if not (follow and alive):
            break
        time.sleep(0.5)
        if time.monotonic() - asked > WATCH_SECONDS:  # one more look at the log after the end
            (now,) = observe([run])
            alive, asked = now.alive, time.monotonic()
    if shown is None:
        (now,) = observe([run])
        print(f"run {run.id} has no log of rank {rank} yet: {now.describe()} {now.reason}".rstrip(), file=sys.stderr)


def _print_from(log: Path, position: int) -> int:
    with log.open("rb") as file:
        file.seek(position if position <= log.stat().st_size else 0)  # begun anew
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.flush()
        return file.tell()


def cancel(arguments: list[str]) -> int:
    options_of = parser("cancel", "Take runs out of the queue; stop running ones at their next step, with a checkpoint.")
    options_of.add_argument("runs", nargs="+", help="ids of runs, sweeps or preparations")
    _add_corpora_dir(options_of)
    options_of.add_argument("--now", action="store_true", help="end running ones at once, without a checkpoint")
    options = options_of.parse_args(arguments)
    from finetune.launch import cancel as end
    from finetune.launch import places

    for preparation in _prepare_runs(options):
        print(f"{preparation.id}: {preparation.cancel()}", file=sys.stderr)
    for run, words in end.cancel(chosen(options), options.now) if options.runs else []:
        print(f"{run.id}: {words}", file=sys.stderr)
    places.move_sweeps_on(Path(options.runs_dir).resolve(), quiet=True)  # their places are free
    return 0


def retry(arguments: list[str]) -> int:
    options_of = parser(
        "retry", "Start again what failed, died, was stopped, cancelled or never started, each from its newest checkpoint."
    )
    options_of.add_argument("runs", nargs="+", help="ids of runs or sweeps")
    options = options_of.parse_args(arguments)
    from finetune.launch import submit

    again = submit.retry(chosen(options))
    if not again:
        print(
            "nothing to retry: none of these runs failed, died, was stopped or cancelled, or waits without a job", file=sys.stderr
        )
        return 0
    return report_runs(again)


def prune(arguments: list[str]) -> int:
    options_of = parser(
        "prune",
        "Free what completed runs need no more: all checkpoints but the best, job files, code and bases that no run uses.",
    )
    options_of.add_argument("runs", nargs="*", help="ids of runs or sweeps (all)")
    options_of.add_argument(
        "--failed",
        action="store_true",
        help="and whole folders of runs that failed, died or were cancelled; not what another machine may be at work on",
    )
    options_of.add_argument("--yes", action="store_true", help="do it; else it is only said")
    options = options_of.parse_args(arguments)
    from finetune.launch import cancel as end

    total = 0
    for path, size in end.prunable(chosen(options), Path(options.runs_dir), options.failed):
        total += size
        print(f"{size / 2**20:10.1f} MiB  {path}", file=sys.stderr)
        if options.yes:
            end.remove(path)
    done = (
        "freed"
        if options.yes
        else "would be freed: add --yes. The best checkpoint stays, and a completed run that is given more steps resumes from it"
    )
    print(f"{total / 2**20:10.1f} MiB  {done}", file=sys.stderr)
    return 0


def sync(arguments: list[str]) -> int:
    options_of = parser("sync", "Send what runs have said since the last time to MLflow. Safe to repeat.")
    options_of.add_argument("runs", nargs="*", help="ids of runs or sweeps (all)")
    return sync_runs(chosen(options_of.parse_args(arguments)))


# --- what verbs share --------------------------------------------------------------------------------------------------


def chosen(options: argparse.Namespace) -> list[RunFolder]:
    """The runs that a command names, a sweep standing for its points; all if it names none.

    Raises:
        FileNotFoundError: there is no such run, sweep or folder.
    """
    if options.runs_dir != "runs" and not Path(options.runs_dir).is_dir():
        raise FileNotFoundError(f"--runs-dir {options.runs_dir} does not exist")
    every = RunFolder.all(options.runs_dir)
    wanted = getattr(options, "runs", [])
    if not wanted:
        return every
    found: dict[str, RunFolder] = {}
    for name in wanted:
        points = [run for run in every if run.sweep() == name]
        for run in points or [RunFolder.find(name, options.runs_dir)]:
            found[run.id] = run
    return list(found.values())


def watch(runs: list[RunFolder], also: Callable[[], None] = lambda: None, show_end: bool = True) -> list[Observed]:
    """A live table until all runs have ended, or Ctrl-C; then how they ended.

    Args:
        also: called between two looks.
        show_end: print how they ended; no, if the caller does so.
    """
    from rich.live import Live

    from finetune.cli.tables import print_status, status_group
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


def report_runs(runs: list[RunFolder]) -> int:
    """Report what became of submitted runs: how they ended, or that they go on by themselves, with what comes next. With
    wait=true it waits for the end first. Stdout carries the run ids.

    Returns:
        the exit code: 1 if a run has ended and is not completed.
    """
    from finetune.launch.observe import observe

    config, now = runs[0].config(), observe(runs)
    if config.wait and any(one.alive for one in now):
        _say_submitted(now)
        now = _wait(runs)
    elif any(one.alive for one in now):
        _say_submitted([one for one in now if one.alive])
    failed = [one for one in now if not one.alive and one.state != "completed"]
    sweep = runs[0].sweep() if len({run.sweep() for run in runs}) == 1 else None
    ended = [one for one in now if not one.alive]
    if sweep and len(runs) > 1 and ended:
        _report_sweep(sweep, ended, is_over=len(ended) == len(now))
    else:
        for one in now:
            _say_ended(one)
    update_sweep_files(runs)
    if ended and config.cluster.scheduler == "local":  # follow.py has sent the runs themselves
        _finish_sweeps(runs)
    for one in now:
        print(one.run.id, flush=True)
    if failed and len(runs) > 1:
        print(f"error: {len(failed)} of {len(runs)} runs did not complete", file=sys.stderr)
    return 1 if failed else 0


def report_dry_run(points: list[TrainConfig], sweep: Sweep | None) -> None:
    """Print the points that were checked, and what a submission of them would be charged."""
    from finetune.cli.tables import print_points

    print(file=sys.stderr)
    if sweep and len(points) > 1:
        print_points(sweep.points, REPORTED_POINTS)
    if points[0].cluster.scheduler == "slurm":
        print(*points[0].cluster.what_to_know(len(points)), sep="\n", file=sys.stderr)
    print("dry run: all was checked, nothing was written or started; leave --dry-run out to start", file=sys.stderr)


def _report_sweep(sweep: str, ended: list[Observed], is_over: bool) -> None:
    """Print the table of a sweep's points, and before it what it does not hold: faults, warnings, the best point's result."""
    from finetune.cli import report
    from finetune.cli.tables import print_sweep
    from finetune.launch.sweep_files import best_of, read_point
    from finetune.terminal import short_path

    points = {one.run.id: read_point(one.run, one.state) for one in ended}
    best = best_of(list(points.values()))
    for one in [one for one in ended if one.state in ("failed", "dead")][:REPORTED_POINTS]:
        _say_ended(one)
    warned = [one for one in ended if one.state == "completed" and (one.run.summary() or {}).get("warnings")]
    for one in [one for one in warned if best is None or one.run.id != best.id][:REPORTED_POINTS]:
        for message in (one.run.summary() or {})["warnings"]:
            print(f"warning: {_name(one.run)}: {message}", file=sys.stderr)
    for one in ended:
        if best is not None and one.run.id == best.id:
            report.print_summary(one.run)
    print_sweep(sweep, ended)
    again = any(one.state != "completed" for one in ended) and is_over
    file = ended[0].run.path.parent / "sweeps" / sweep / "points.tsv"
    retry = f"    finetune retry {sweep}" if again else ""
    print(f"  finetune status {sweep}{retry}    all points: {short_path(file)}", file=sys.stderr)


def _name(run: RunFolder) -> str:
    """A run's id, with its values where it is a point of a sweep."""
    from finetune.config.points import describe

    return f"{run.id} ({describe(run.point())})" if run.point() else run.id


def _say_submitted(now: list[Observed]) -> None:
    from finetune.config.points import describe

    first, sweep = now[0], now[0].run.sweep()
    if first.run.scheduler() == "local":
        for one in now:
            print(f"started {one.run.id}: `finetune status {one.run.id}`, and `finetune sync` when it has ended", file=sys.stderr)
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
        *first.run.config().cluster.what_to_know(len(now)),
        sep="\n  ",
        file=sys.stderr,
    )


def _say_ended(one: Observed) -> None:
    from finetune.cli import report
    from finetune.cli.next_step import what_helps

    if one.alive:
        return
    if one.state == "completed":
        report.print_summary(one.run)
        return
    run, reason = one.run, one.reason or "its processes are gone, and it left no log"
    detail = {"stopped": "stopped as asked", "failed": reason, "queued": "not started", "cancelled": "cancelled"}.get(
        one.state, f"{one.state}: {reason}"
    )
    print(f"error: run {_name(run)}: {detail}\n  {what_helps(one)}\n  logs: {run.jobs}", file=sys.stderr)


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


def sync_runs(runs: list[RunFolder], quiet: bool = False) -> int:
    from finetune.config import extras
    from finetune.launch.observe import observe
    from finetune.tracking import mlflow_sync as sender

    if quiet and extras.missing(("mlflow",)):  # a login node: `finetune sync` elsewhere sends the same
        return 0
    extras.check("mlflow", "sending runs to MLflow")
    observe(runs)  # writes down the ends that only Slurm saw
    failed = 0
    for run in runs:
        try:
            sender.sync(run)
        except Exception as fault:  # one run, or one server, must not keep the others from theirs
            failed += 1
            reason = f"{type(fault).__name__}: {' '.join(str(fault).split())[:300]}"
            if not quiet:
                print(f"error: run {run.id} is not in MLflow: {reason}", file=sys.stderr)
    update_sweep_files(runs)
    _finish_sweeps(runs)
    if failed and quiet:
        print(f"MLflow is behind by {failed} runs ({reason}): `finetune sync` catches up", file=sys.stderr)
    elif not quiet:
        print(f"{len(runs) - failed} of {len(runs)} runs are in MLflow", file=sys.stderr)
    return 1 if failed else 0


def _finish_sweeps(runs: list[RunFolder]) -> None:
    """Bring MLflow's parent runs of these runs' sweeps up to date; a server that is away has been reported with each run."""
    from finetune.tracking import mlflow_sync as sender

    for sweep in {run.sweep() for run in runs} - {None}:
        with contextlib.suppress(Exception):
            sender.finish_sweep([run for run in RunFolder.all(runs[0].path.parent) if run.sweep() == sweep])
