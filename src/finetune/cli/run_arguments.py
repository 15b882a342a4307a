"""Arguments shared by the verbs on runs: folders, and names of runs, sweeps and preparations."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.user_error import NotFoundError
from finetune.cli.overrides import Parser
from finetune.runs.folder import RunFolder

if TYPE_CHECKING:
    from finetune.launch.prepare_jobs import PrepareRun


def make_parser(verb: str, description: str) -> Parser:
    """Return an argument parser with the option --runs-dir, for a verb that acts on runs."""
    parser = Parser(prog=f"finetune {verb}", description=description)
    parser.add_argument(
        "--runs-dir", metavar="FOLDER", default="runs", help="folder that holds the runs (default: runs)"
    )
    return parser


def add_corpora_dir(parser: argparse.ArgumentParser) -> None:
    """Add the option --corpora-dir, for verbs that also act on preparations or corpora."""
    parser.add_argument(
        "--corpora-dir",
        metavar="FOLDER",
        default="corpora",
        help="folder that holds the prepared corpora (default: corpora)",
    )


def select_runs(options: argparse.Namespace) -> list[RunFolder]:
    """Return the runs that a command names, or all runs if it names none.

    The id of a sweep selects all its points.

    Raises:
        NotFoundError: a run or sweep, or the folder of runs, does not exist.
    """
    if options.runs_dir != "runs" and not Path(options.runs_dir).is_dir():
        raise NotFoundError(
            f"--runs-dir: folder {options.runs_dir} does not exist; name the folder that holds the runs"
        )
    all_runs = RunFolder.all(options.runs_dir)
    names = getattr(options, "runs", [])
    if not names:
        return all_runs
    found: dict[str, RunFolder] = {}
    for name in names:
        points = [run for run in all_runs if run.sweep() == name]
        for run in points or [RunFolder.find(name, options.runs_dir)]:
            found[run.id] = run
    return list(found.values())


def take_preparations(options: argparse.Namespace) -> list[PrepareRun]:
    """Return the preparations named in options.runs, and remove their names from it."""
    from finetune.launch.prepare_jobs import PrepareRun

    found = []
    for name in options.runs:
        with contextlib.suppress(FileNotFoundError):
            found.append(PrepareRun.find(name, options.corpora_dir))
    options.runs = [name for name in options.runs if name not in {run.id for run in found}]
    return found
