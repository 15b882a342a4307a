"""`finetune logs`: what ranks and the tasks of preparations have written, once or as it comes."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from data_prep.user_error import UserError
from finetune.cli.run_arguments import add_corpora_dir, make_parser, select_runs, take_preparations
from finetune.runs.folder import RunFolder

LOOK_SECONDS = 3.0  # between two looks whether a run has ended


def logs(arguments: list[str]) -> int:
    """Print what a rank of each run has written, or the tasks of a preparation."""
    options_of = make_parser("logs", "What a rank of each run has written, or the tasks of a preparation.")
    options_of.add_argument("runs", nargs="+", help="ids of runs, sweeps or preparations")
    add_corpora_dir(options_of)
    options_of.add_argument(
        "--rank", type=int, default=0, help="of which rank (0, whose log also holds the batch script's words)"
    )
    options_of.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    options = options_of.parse_args(arguments)
    if prepared := take_preparations(options):
        if options.follow:
            raise UserError(
                f"-f follows a training run, {prepared[0].id} is a preparation: `finetune status` shows its steps"
            )
        for log in (log for run in prepared for log in run.logs()):
            print(f"==> {log.stem} <==", flush=True)
            _print_from(log, 0)
        if not options.runs:
            return 0
    runs = select_runs(options)
    if options.follow and len(runs) > 1:
        raise UserError(f"-f follows one run, these are {len(runs)}: name one of them, or leave -f out")
    for run in runs:
        if len(runs) > 1:
            print(f"==> {run.id} <==", flush=True)
        _print_log(run, options.rank, options.follow)
    return 0


def _print_log(run: RunFolder, rank: int, follow: bool) -> None:
    from finetune.launch.observe import observe

    if not 0 <= rank < run.config().cluster.world_size:
        raise UserError(f"--rank {rank}: run {run.id} has ranks 0 to {run.config().cluster.world_size - 1}")
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
        if time.monotonic() - asked > LOOK_SECONDS:  # one more look at the log after the end
            (now,) = observe([run])
            alive, asked = now.alive, time.monotonic()
    if shown is None:
        (now,) = observe([run])
        print(
            f"run {run.id} has no log of rank {rank} yet: {now.describe()} {now.reason}".rstrip(),
            file=sys.stderr,
        )


def _print_from(log: Path, position: int) -> int:
    with log.open("rb") as file:
        file.seek(position if position <= log.stat().st_size else 0)  # begun anew
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.flush()
        return file.tell()
