"""`finetune status`, `cancel`, `retry` and `prune`: the verbs that take any number of existing runs, from any
shell."""

from __future__ import annotations

import sys
from pathlib import Path

from finetune.cli.run_arguments import add_corpora_dir, make_parser, select_runs, take_preparations
from finetune.cli.run_reports import report_runs, watch
from finetune.cli.sync import update_sweep_files


def status(arguments: list[str]) -> int:
    """Print what runs are doing or how they ended, and the steps of preparations; once, or until all have
    ended."""
    options_of = make_parser(
        "status", "What the runs are doing, or how they ended; from disk and Slurm, from any shell."
    )
    options_of.add_argument("runs", nargs="*", help="ids of runs or sweeps (all)")
    add_corpora_dir(options_of)
    options_of.add_argument("--watch", action="store_true", help="go on showing it, until all have ended")
    options = options_of.parse_args(arguments)
    from finetune.cli import corpus_tables
    from finetune.cli.run_tables import print_status
    from finetune.launch import places
    from finetune.launch.observe import observe

    if prepared := take_preparations(options):
        corpus_tables.print_steps(prepared)
        if not options.runs:
            return 0
    runs = select_runs(options)
    places.submit_waiting_points(Path(options.runs_dir).resolve())
    if options.watch:
        watch(runs)
    else:
        print_status(observe(runs))
    update_sweep_files(runs)
    return 0


def cancel(arguments: list[str]) -> int:
    """Take runs and preparations out of the queue, or stop them."""
    options_of = make_parser(
        "cancel", "Take runs out of the queue; stop running ones at their next step, with a checkpoint."
    )
    options_of.add_argument("runs", nargs="+", help="ids of runs, sweeps or preparations")
    add_corpora_dir(options_of)
    options_of.add_argument(
        "--now", action="store_true", help="end running ones at once, without a checkpoint"
    )
    options = options_of.parse_args(arguments)
    from finetune.launch import places
    from finetune.launch.cancel import cancel as cancel_runs

    for preparation in take_preparations(options):
        print(f"{preparation.id}: {preparation.cancel()}", file=sys.stderr)
    for run, words in cancel_runs(select_runs(options), options.now) if options.runs else []:
        print(f"{run.id}: {words}", file=sys.stderr)
    places.submit_waiting_points(Path(options.runs_dir).resolve(), quiet=True)  # their places are free
    return 0


def retry(arguments: list[str]) -> int:
    """Submit again what has ended without a result."""
    options_of = make_parser(
        "retry",
        "Start again what failed, died, was stopped, cancelled or never started, each from its newest checkpoint.",
    )
    options_of.add_argument("runs", nargs="+", help="ids of runs or sweeps")
    options = options_of.parse_args(arguments)
    from finetune.launch import submit

    again = submit.retry(select_runs(options))
    if not again:
        print(
            "nothing to retry: none of these runs failed, died, was stopped or cancelled, or waits without a job",
            file=sys.stderr,
        )
        return 0
    return report_runs(again)


def prune(arguments: list[str]) -> int:
    """List what completed runs need no more; with --yes, remove it."""
    options_of = make_parser(
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
    from finetune.launch.cancel import find_prunable, remove

    total = 0
    for path, size in find_prunable(select_runs(options), Path(options.runs_dir), options.failed):
        total += size
        print(f"{size / 2**20:10.1f} MiB  {path}", file=sys.stderr)
        if options.yes:
            remove(path)
    done = (
        "freed"
        if options.yes
        else "would be freed: add --yes. The best checkpoint stays, and a completed run that is given more steps resumes from it"
    )
    print(f"{total / 2**20:10.1f} MiB  {done}", file=sys.stderr)
    return 0
