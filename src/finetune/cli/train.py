"""`finetune train`: composes the config of a run, or of each point of a sweep, and submits it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.hydra_config import compose, wants_help
from finetune.cli.schemas import train_schema

if TYPE_CHECKING:
    from finetune.config.points import Sweep
    from finetune.config.train import TrainConfig
    from finetune.runs.folder import RunFolder


def train(arguments: list[str]) -> int:
    """Compose the settings and submit a run. With -m, Hydra's launcher submits a sweep's points."""
    if wants_help(arguments):
        from finetune.cli.help import train_help

        print(train_help(), end="")
        return 0
    from finetune.config.train import from_omegaconf

    expanded = [part for argument in _rewrite_after(arguments) for part in _expand(argument)]
    node = compose("train", train_schema(), expanded)
    if node is not None:
        run_points([from_omegaconf(node)])
    return 0


def run_points(
    points: list[TrainConfig], sweep: Sweep | None = None, ignore_failures: bool = False
) -> list[float | None]:
    """Submit the points, report each of them, and return their held-out losses.

    Args:
        points: the config of each point of a sweep, or of a single run.
        sweep: the sweep that the points belong to; None for a single run.
        ignore_failures: return None as the loss of a failed run, instead of exiting.

    Returns:
        for each point its held-out loss after training; None if there is none, or none yet.

    Raises:
        SystemExit: a run failed (the others were still reported), or this is a dry run.
    """
    from finetune.cli import run_reports
    from finetune.launch.submit import dry_run, submit

    if points[0].dry_run:
        print(dry_run(points, sweep), end="")
        run_reports.report_dry_run(points, sweep)
        raise SystemExit(0)
    runs = submit(points, sweep)
    code = run_reports.report_runs(runs)
    if code and not ignore_failures:
        raise SystemExit(code)
    return [_held_out_loss(run) for run in runs]


def _held_out_loss(run: RunFolder) -> float | None:
    summary = run.summary()
    if summary is None or summary.after is None:
        return None
    return summary.after.loss


def _rewrite_after(arguments: list[str]) -> list[str]:
    """Return the arguments with `--after ID` rewritten to the setting `after=ID`."""
    if not arguments:
        return []
    joined = re.sub(r"(^|\0)--after[=\0]", r"\1after=", "\0".join(arguments))
    return joined.split("\0")


def _expand(argument: str) -> list[str]:
    """Return an argument in the form that Hydra reads.

    Three short forms of `train` are rewritten: --dry-run, corpus=<name or folder>, and
    model=<run:id, folder or hub id>. Other values of model are names of files in conf/model.
    """
    if argument == "--dry-run":
        return ["dry_run=true"]
    key, _, value = argument.partition("=")
    if key == "corpus":
        return [f"data.corpus={value}"]
    if key == "model" and value and ("/" in value or value.startswith("run:") or Path(value).is_dir()):
        return ["model=pretrained", f"model.path={value}"]
    return [argument]
