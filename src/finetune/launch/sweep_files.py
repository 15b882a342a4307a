"""`runs/sweeps/<id>/points.tsv`: the points of a sweep with their swept values and results, best first.

The ids and values are written at submission. States and held-out losses are those of points that had ended
when the file was written: after each point of a local sweep, and whenever `finetune status`, `sync` or
wait=true looks at the sweep.
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

INCOMPARABLE = ("data.corpus",)  # of other corpora held-out losses are another thing


def update(runs_dir: Path, sweep: str, runs: Iterable[RunFolder] = ()) -> None:
    """Write the sweep's file as its run folders are now, with `runs` beside those that are in it already.

    Raises:
        OSError: it cannot be written.
    """
    folder = runs_dir / layout.SWEEPS / sweep
    table = folder / layout.POINTS_TABLE
    known = [runs_dir / name for name in _listed(table)]
    found = {run.id: run for run in [*map(RunFolder, known), *runs] if run.config_file.is_file()}
    folder.mkdir(parents=True, exist_ok=True)
    layout.write_text(table, _table([read_point(run) for run in found.values()]))


@dataclass(frozen=True)
class Point:
    """A point of a sweep: swept keys and values, state, and the held-out loss of its result (None: it has
    none, or not yet)."""

    id: str
    values: dict[str, str]
    state: RunState
    loss: float | None


def read_point(run: RunFolder, state: RunState | None = None) -> Point:
    """Return the point that a run is; its state is read from its folder where it is not given."""
    summary = run.summary()
    loss = summary.after.loss if summary and summary.after else None
    known = None if loss is None or math.isnan(loss) else float(loss)
    return Point(run.id, run.point(), run.state() if state is None else state, known)


def sort_points(points: list[Point]) -> list[Point]:
    """Return the points with the lowest held-out loss first, then those without one, by their ids."""
    return sorted(points, key=lambda point: (point.loss is None, point.loss or 0.0, point.id))


def best_of(points: list[Point]) -> Point | None:
    """Return the point with the lowest held-out loss; None if fewer than two have one, or they cannot be
    compared."""
    done = [point for point in sort_points(points) if point.loss is not None]
    if len(done) < 2 or set(find_varying_keys([point.values for point in points])) & set(INCOMPARABLE):
        return None
    return done[0]


def _listed(path: Path) -> list[str]:
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
        rows.writerow(
            [
                point.id,
                *(point.values.get(key, "") for key in keys),
                state,
                loss,
                "best" if point == best else "",
            ]
        )
    return text.getvalue()
