"""Write the table of a sweep, `runs/sweeps/<id>/points.tsv`: one row per run, the best first.

The runs of a sweep are called its points. Their ids and swept values are written at submission. The
states and held-out losses of ended points are added later: in a local sweep after each point, in
all sweeps by `finetune status`, `finetune sync` and wait=true.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune.config.points import find_varying_keys
from finetune.runs import layout
from finetune.runs.folder import RunFolder
from finetune.runs.state import ENDED_STATES, RunState

INCOMPARABLE = ("data.corpus",)  # held-out losses on different corpora cannot be compared


def update(runs_dir: Path, sweep: str, runs: Iterable[RunFolder] = ()) -> None:
    """Write a sweep's table anew from the folders of its runs.

    Args:
        runs: runs to add to those that are in the table already.

    Raises:
        OSError: the table cannot be written.
    """
    folder = runs_dir / layout.SWEEPS / sweep
    table = folder / layout.POINTS_TABLE
    known = [runs_dir / name for name in _read_run_ids(table)]
    found = {run.id: run for run in [*map(RunFolder, known), *runs] if run.config_file.is_file()}
    folder.mkdir(parents=True, exist_ok=True)
    layout.write_text(table, _table([read_point(run) for run in found.values()]))


@dataclass(frozen=True)
class Point:
    """A point of a sweep, that is, one of its runs.

    Attributes:
        id: id of the run.
        values: the run's values of the swept settings, by the setting's name.
        loss: held-out loss at the end of training; None if there is none, or it is NaN.
    """

    id: str
    values: dict[str, str]
    state: RunState
    loss: float | None


def read_point(run: RunFolder, state: RunState | None = None) -> Point:
    """Return a run as a point of its sweep.

    Args:
        state: the run's state, if the caller knows it; None: it is read from the run folder.
    """
    summary = run.summary()
    loss = summary.after.loss if summary and summary.after else None
    known = None if loss is None or math.isnan(loss) else float(loss)
    if state is None:
        state = run.state()
    return Point(run.id, run.point(), state, known)


def sort_points(points: list[Point]) -> list[Point]:
    """Return the points sorted by held-out loss, lowest first. Points without a loss come last."""
    return sorted(points, key=lambda point: (point.loss is None, point.loss or 0.0, point.id))


def best_of(points: list[Point]) -> Point | None:
    """Return the point with the lowest held-out loss.

    Return None if fewer than two points have a held-out loss. Also return None if the points'
    corpora differ, because losses on different corpora cannot be compared.
    """
    done = [point for point in sort_points(points) if point.loss is not None]
    if len(done) < 2 or set(find_varying_keys([point.values for point in points])) & set(INCOMPARABLE):
        return None
    return done[0]


def _read_run_ids(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row["run"] for row in csv.DictReader(file, dialect="excel-tab")]


def _table(points: list[Point]) -> str:
    keys = list(dict.fromkeys(key for point in points for key in point.values))
    best = best_of(points)
    text = io.StringIO()
    rows = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    rows.writerow(["run", *keys, "state", "held_out_loss", "best"])
    for point in sort_points(points):
        state = point.state if point.state in ENDED_STATES else ""
        loss = "" if point.loss is None else point.loss
        values = [point.values.get(key, "") for key in keys]
        rows.writerow([point.id, *values, state, loss, "best" if point == best else ""])
    return text.getvalue()
