"""The verbs `status`, `cancel`, `retry` and `prune`, which act on any number of existing runs."""

from __future__ import annotations

import sys
from pathlib import Path

from finetune.cli.run_arguments import add_corpora_dir, make_parser, select_runs, take_preparations
from finetune.cli.run_reports import report_runs, watch
from finetune.cli.sync import update_sweep_files


def status(arguments: list[str]) -> int:
    """Print the state of runs and the steps of preparations, once or until all runs have ended."""
    parser = make_parser(
        "status",
        "Show the state of runs, or how they ended. Works from any shell: it reads the run folders and "
        "Slurm's queue.",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="ids of runs or sweeps (default: all runs)")
    add_corpora_dir(parser)
    parser.add_argument("--watch", action="store_true", help="refresh the table until all runs have ended")
    options = parser.parse_args(arguments)
    from finetune.cli import corpus_tables
    from finetune.cli.run_tables import print_status
    from finetune.launch import places
    from finetune.launch.observe import observe

    preparations = take_preparations(options)
    if preparations:
        corpus_tables.print_steps(preparations)
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
    """Remove runs and preparations from the queue, or stop them if they are running."""
    parser = make_parser(
        "cancel",
        "Remove runs from the queue. A running run saves a checkpoint after its next step and stops.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="ids of runs, sweeps or preparations")
    add_corpora_dir(parser)
    parser.add_argument("--now", action="store_true", help="stop running runs at once, without a checkpoint")
    options = parser.parse_args(arguments)
    from finetune.launch import places
    from finetune.launch.cancel import cancel as cancel_runs

    for preparation in take_preparations(options):
        print(f"{preparation.id}: {preparation.cancel()}", file=sys.stderr)
    if options.runs:
        for run, message in cancel_runs(select_runs(options), options.now):
            print(f"{run.id}: {message}", file=sys.stderr)
    # cancelled runs free places in the queue for waiting points of sweeps
    places.submit_waiting_points(Path(options.runs_dir).resolve(), quiet=True)
    return 0


def retry(arguments: list[str]) -> int:
    """Resubmit runs that ended without a result, and queued runs that have no job."""
    parser = make_parser(
        "retry",
        "Resubmit runs that failed, died, were stopped, were cancelled or never started. "
        "Each resumes from its newest checkpoint.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="ids of runs or sweeps")
    options = parser.parse_args(arguments)
    from finetune.launch import submit

    resubmitted = submit.retry(select_runs(options))
    if not resubmitted:
        print(
            "nothing to retry: none of these runs failed, died, was stopped, was cancelled "
            "or waits without a job",
            file=sys.stderr,
        )
        return 0
    return report_runs(resubmitted)


def prune(arguments: list[str]) -> int:
    """List the files that completed runs no longer need; with --yes, delete them."""
    parser = make_parser(
        "prune",
        "List files that completed runs no longer need, or delete them with --yes: all checkpoints but "
        "the best one, exported checkpoints, job files; and, in the whole runs-dir, code snapshots and "
        "copies of base models that no run uses.",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="ids of runs or sweeps (default: all runs)")
    parser.add_argument(
        "--failed",
        action="store_true",
        help="also list, or delete with --yes, the whole folders of runs that failed, died or were "
        "cancelled, but not of runs that another machine may still be running",
    )
    parser.add_argument("--yes", action="store_true", help="delete the files instead of listing them")
    options = parser.parse_args(arguments)
    from finetune.launch.cancel import find_prunable, remove

    outcome = (
        "would be freed: add --yes. The best checkpoint stays, and a completed run that is given "
        "more steps resumes from it"
    )
    if options.yes:
        outcome = "freed"
    total = 0
    for path, size in find_prunable(select_runs(options), Path(options.runs_dir), options.failed):
        total += size
        print(f"{size / 2**20:10.1f} MiB  {path}", file=sys.stderr)
        if options.yes:
            remove(path)
    print(f"{total / 2**20:10.1f} MiB  {outcome}", file=sys.stderr)
    return 0
