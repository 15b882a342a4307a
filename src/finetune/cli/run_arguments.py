"""What the verbs on runs share: --runs-dir, and from the names that a person types to runs, sweeps and
preparations."""

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
    """Return the parser of a verb on runs."""
    made = Parser(prog=f"finetune {verb}", description=description)
    made.add_argument("--runs-dir", default="runs", help="where the runs lie (runs)")
    return made


def add_corpora_dir(options_of: argparse.ArgumentParser) -> None:
    """Add --corpora-dir, for verbs that take preparations too."""
    options_of.add_argument(
        "--corpora-dir", default="corpora", help="where the corpora of prepare runs lie (corpora)"
    )


def select_runs(options: argparse.Namespace) -> list[RunFolder]:
    """Return the runs that a command names, a sweep standing for its points; all if it names none.

    Raises:
        NotFoundError: there is no such run, sweep or folder.
    """
    if options.runs_dir != "runs" and not Path(options.runs_dir).is_dir():
        raise NotFoundError(f"--runs-dir {options.runs_dir} does not exist")
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


def take_preparations(options: argparse.Namespace) -> list[PrepareRun]:
    """Return those of the named runs that are preparations; options.runs keeps the others."""
    from finetune.launch.prepare_jobs import PrepareRun

    found = []
    for name in options.runs:
        with contextlib.suppress(FileNotFoundError):
            found.append(PrepareRun.find(name, options.corpora_dir))
    options.runs = [name for name in options.runs if name not in {run.id for run in found}]
    return found
