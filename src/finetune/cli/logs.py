"""`finetune logs`: prints or follows the log of a rank, or prints the logs of a preparation."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from data_prep.user_error import UserError
from finetune.cli.run_arguments import add_corpora_dir, make_parser, select_runs, take_preparations
from finetune.runs.folder import RunFolder

STATE_SECONDS = 3.0  # between two checks for the end of a followed run


def logs(arguments: list[str]) -> int:
    """Print the log of one rank of each run, or the logs of a preparation's tasks."""
    parser = make_parser(
        "logs", "Print the log of one rank of each run, or the logs of a preparation's tasks."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="ids of runs, sweeps or preparations")
    add_corpora_dir(parser)
    parser.add_argument(
        "--rank",
        type=int,
        metavar="N",
        default=0,
        help="rank whose log to print (default: 0, whose log includes the output of the batch script)",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="print new lines until the run has ended")
    options = parser.parse_args(arguments)
    preparations = take_preparations(options)
    if preparations and options.follow:
        raise UserError(
            f"-f follows only training runs, and {preparations[0].id} is a preparation; "
            "`finetune status` shows its steps"
        )
    for preparation in preparations:
        for log in preparation.logs():
            print(f"==> {log.stem} <==", flush=True)
            _print_from(log, 0)
    if preparations and not options.runs:
        return 0
    runs = select_runs(options)
    if options.follow and len(runs) > 1:
        raise UserError(f"-f follows one run, and {len(runs)} are named; name one of them, or leave -f out")
    for run in runs:
        if len(runs) > 1:
            print(f"==> {run.id} <==", flush=True)
        _print_log(run, options.rank, options.follow)
    return 0


def _print_log(run: RunFolder, rank: int, follow: bool) -> None:
    from finetune.launch.observe import observe

    world_size = run.config().cluster.world_size
    if not 0 <= rank < world_size:
        raise UserError(f"--rank {rank}: must be between 0 and {world_size - 1}, the ranks of run {run.id}")
    shown: Path | None = None
    position = 0
    checked_at = 0.0
    alive = True
    while True:
        log = run.log(rank)
        if log is not None:
            if log != shown:  # a new job of the run: it was resubmitted or resumed
                shown = log
                position = 0
            position = _print_from(log, position)
        if not (follow and alive):
            break
        time.sleep(0.5)
        if time.monotonic() - checked_at > STATE_SECONDS:
            (observed,) = observe([run])
            alive = observed.alive  # after the end, the loop reads the log once more
            checked_at = time.monotonic()
    if shown is None:
        (observed,) = observe([run])
        message = f"run {run.id} has no log of rank {rank} yet: {observed.describe()} {observed.reason}"
        print(message.rstrip(), file=sys.stderr)


def _print_from(log: Path, position: int) -> int:
    """Print a log from a byte position to its end, and return the position of the end.

    If the log is shorter than `position`, it was written anew. It is then printed from its beginning.
    """
    with log.open("rb") as file:
        if position > log.stat().st_size:  # the log was written anew
            position = 0
        file.seek(position)
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.flush()
        return file.tell()
