"""`finetune train`: a run, or the points of a sweep, from composed configs to their submission."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.hydra_config import compose, wants_help
from finetune.cli.schemas import train_schema

if TYPE_CHECKING:
    from finetune.config.points import Sweep
    from finetune.config.train import TrainConfig


def train(arguments: list[str]) -> int:
    """Compose the settings, and submit a run; with -m, Hydra's launcher submits the points of a sweep."""
    if wants_help(arguments):
        from finetune.cli.help import train_help

        print(train_help(), end="")
        return 0
    from finetune.config.train import from_omegaconf

    arguments = [
        "dry_run=true" if argument == "--dry-run" else argument for argument in _rewrite_after(arguments)
    ]
    node = compose(
        "train", train_schema(), [rewritten for argument in arguments for rewritten in _expand(argument)]
    )
    if node is not None:
        run_points([from_omegaconf(node)])
    return 0


def run_points(
    points: list[TrainConfig], sweep: Sweep | None = None, go_on: bool = False
) -> list[float | None]:
    """Submit the points, print what comes of each, and give their held-out losses (None where there is none,
    or not yet).

    Args:
        sweep: whose points they are.
        go_on: a failed run is for the sweeper to judge.

    Raises:
        SystemExit: a run failed, and all of them have been tried; or nothing was to be started (--dry-run).
    """
    from finetune.cli import run_reports
    from finetune.launch.submit import dry_run, submit

    if points[0].dry_run:
        print(dry_run(points, sweep), end="")
        run_reports.report_dry_run(points, sweep)
        raise SystemExit(0)
    runs = submit(points, sweep)
    code = run_reports.report_runs(runs)
    if code and not go_on:
        raise SystemExit(code)
    summaries = [run.summary() for run in runs]
    return [summary.after.loss if summary and summary.after else None for summary in summaries]


def _rewrite_after(arguments: list[str]) -> list[str]:
    """Return the arguments with `--after ID` as the setting that it stands for."""
    joined = re.sub(r"(^|\0)--after[=\0]", r"\1after=", "\0".join(arguments))
    return joined.split("\0") if arguments else []


def _expand(argument: str) -> list[str]:
    """Return an argument as Hydra takes it.

    `train` takes some shorter: model=run:<id>, model=<folder or hub id> (names in conf/model stay as they
        are), and
    corpus=<name or folder>, which Hydra would take for a file of conf/corpus.
    """
    key, _, value = argument.partition("=")
    if key == "corpus":
        return [f"data.corpus={value}"]
    if key == "model" and value and ("/" in value or value.startswith("run:") or Path(value).is_dir()):
        return ["model=pretrained", f"model.path={value}"]
    return [argument]
