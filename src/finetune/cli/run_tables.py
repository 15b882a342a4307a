"""The tables of runs, and of the points of a sweep with their swept values as columns, best first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetune.cli.next_step import what_helps
from finetune.config.points import find_varying_keys, short_names, short_values
from finetune.launch.observe import Observed
from finetune.launch.sweep_files import Point, best_of, read_point, sort_points
from finetune.runs import attempts
from finetune.runs.folder import RunFolder
from finetune.runs.state import RunState
from finetune.terminal import console
from finetune.tracking.spool import last_step

OVERVIEW_POINTS = 12  # of each sweep, where several things are shown
MOST_POINTS = 50  # where a sweep has ended: all are in its file
WARNINGS_OF_A_RUN = 5
FEW_RUNS = 5  # of which each has lines of its own
GAP = 2  # columns between two columns of a table


@dataclass
class Column:
    """A column of a sweep's table. `drop`: in which order columns are left out of a narrow terminal; 0:
    never."""

    name: str
    cells: list[str]
    drop: int = 0
    narrow: list[str] = field(default_factory=list)  # what takes its place before others are left out

    def width(self) -> int:
        return max(len(text) for text in [self.name, *self.cells])


def status_tables(
    seen: list[Observed], most: int = OVERVIEW_POINTS, width: int | None = None
) -> list[RenderableType]:
    """Return a table of the runs that are no points of a sweep, and a table for each sweep.

    Args:
        most: points that are shown of a sweep, where several tables are shown.
    """
    width = console().width if width is None else width
    sweeps: dict[str, list[Observed]] = {}
    alone = []
    for one in seen:
        if (sweep := one.run.sweep()) is None:
            alone.append(one)
        else:
            sweeps.setdefault(sweep, []).append(one)
    tables: list[RenderableType] = [_run_table(alone, width)] if alone or not sweeps else []
    limit = most if len(sweeps) + len(tables) > 1 else len(seen)
    for sweep, points in sweeps.items():
        tables += [Text(), sweep_table(sweep, points, limit, width)]
    return tables


def status_group(seen: list[Observed]) -> Group:
    """Return all tables as one, for a live view."""
    return Group(*status_tables(seen))


def print_status(seen: list[Observed], stderr: bool = False) -> None:
    """Print the tables, and a line for each run of which there is more to know."""
    out = console(stderr=stderr)
    for table in status_tables(seen):
        out.print(table, soft_wrap=isinstance(table, Text))
    for one in seen:
        if one.reason and one.state not in (RunState.COMPLETED, RunState.CANCELLED) and not _fits(one):
            style = "red" if one.state == RunState.FAILED else ""
            out.print(Text(f"{one.run.id}: {one.reason}", style=style), soft_wrap=True)
        if not one.alive and one.state != RunState.COMPLETED and len(seen) <= FEW_RUNS:
            out.print(Text(f"{one.run.id}: {what_helps(one)}"), soft_wrap=True)
        if one.alive and (words := attempts.describe_last_restart(one.run.path)):
            out.print(Text(f"{one.run.id}: {words}"), soft_wrap=True)
        print_warnings(out, one.run, most=WARNINGS_OF_A_RUN if len(seen) <= FEW_RUNS else 0)
    if len(seen) > FEW_RUNS:
        out.print(f"{len(seen)} runs: {_counts(seen)}")


def print_warnings(out: Console, run: RunFolder, most: int) -> None:
    """Print the first warnings of a run's ranks, and how many more there are."""
    found = run.warnings()
    for warning in found[:most]:
        out.print(Text(f"{run.id}: warning: {warning}", style="yellow"), soft_wrap=True)
    if len(found) > most:
        rest = f"{len(found) - most} more warnings: finetune logs {run.id}"
        line = rest if most else f"{len(found)} warnings: finetune status {run.id}"
        out.print(Text(f"{run.id}: {line}", style="yellow"), soft_wrap=True)


def print_sweep(sweep: str, seen: list[Observed]) -> None:
    """Print how the points of a sweep have ended, or stand."""
    out = console()
    out.print()
    out.print(sweep_table(sweep, seen, MOST_POINTS, out.width))


def sweep_table(sweep: str, seen: list[Observed], most: int, width: int) -> Group:
    """Return the points of a sweep, best first.

    Args:
        most: points that are shown.
        width: columns of the terminal.
    """
    observed = {one.run.id: one for one in seen}
    points = sort_points([read_point(one.run, one.state) for one in seen])
    best = best_of(points)
    shown = _choose(points, most)
    columns = _fit(_columns(sweep, points, shown, observed, best), width)
    table = _render(columns, len(shown), bold=shown.index(best) if best in shown else None)
    head = Text.assemble("sweep ", (sweep, "bold"), f": {len(points)} points: {_counts(seen)}")
    parts: list[RenderableType] = [head, table]
    if len(shown) < len(points):
        parts.append(Text(f"… and {len(points) - len(shown)} more: finetune status {sweep}"))
    return Group(*parts)


def print_points(points: list[dict[str, str]], most: int) -> None:
    """Print the values of points that are not started, in their order."""
    out = console()
    out.print(f"{len(points)} points:")
    columns = [Column("point", [f"{index:03d}" for index in range(len(points))])]
    for key, name in short_names(find_varying_keys(points)).items():
        columns.append(Column(name, short_values([point.get(key, "") for point in points])))
    out.print(_render(columns, min(most, len(points))))
    if len(points) > most:
        out.print(f"… and {len(points) - most} more")


def _render(columns: list[Column], num_rows: int, bold: int | None = None) -> Table:
    table = Table(*(column.name for column in columns), box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for index in range(num_rows):
        table.add_row(
            *(Text(column.cells[index]) for column in columns), style="bold" if index == bold else ""
        )
    return table


def _columns(
    sweep: str, points: list[Point], shown: list[Point], observed: dict[str, Observed], best: Point | None
) -> list[Column]:
    ids = [point.id for point in shown]
    columns = [Column("run", ids, narrow=[run_id.removeprefix(f"{sweep}-") for run_id in ids])]
    for key, name in short_names(find_varying_keys([point.values for point in points])).items():
        columns.append(Column(name, short_values([point.values.get(key, "") for point in shown])))
    rows = [_progress(observed[point.id]) for point in shown]
    losses = [
        "" if point.loss is None else f"{point.loss:.3f}{' best' if point == best else ''}" for point in shown
    ]
    states = [_state(observed[point.id]) for point in shown]
    columns += [
        Column("state", states, narrow=[point.state for point in shown]),
        *_progress_columns(rows),
        Column("held-out loss", losses),
    ]
    return [column for column in columns if any(column.cells)]


def _fit(columns: list[Column], width: int) -> list[Column]:
    """Shorten columns, then leave some out, until the table is no wider than the terminal."""
    for column in columns:
        if _width(columns) > width and column.narrow:
            column.cells = column.narrow
            column.name = "point" if column.name == "run" else column.name
    for column in sorted(columns, key=lambda column: column.drop):
        if _width(columns) > width and column.drop:
            columns = [other for other in columns if other is not column]
    return columns


def _width(columns: list[Column]) -> int:
    return sum(column.width() + GAP for column in columns)


def _choose(points: list[Point], most: int) -> list[Point]:
    """Return at most so many of the sorted points: half of them the best, the others those that have no
    result."""
    if len(points) <= most:
        return points
    done = [point for point in points if point.loss is not None]
    others = [point for point in points if point.loss is None]
    others.sort(key=lambda point: (point.state == RunState.QUEUED, point.id))
    num_others = min(len(others), max(most // 2, most - len(done)))
    return done[: most - num_others] + others[:num_others]


def _run_table(seen: list[Observed], width: int) -> Table:
    """Return the runs that are no points of a sweep, in the order in which they were submitted."""
    rows = [_progress(one) for one in seen]
    columns = [
        Column("run", [one.run.id for one in seen]),
        Column("state", [_state(one) for one in seen], narrow=[one.state for one in seen]),
        *_progress_columns(rows),
        Column("held-out loss", [_before_after(one.run) for one in seen]),
    ]
    kept = [column for column in columns if not column.drop or any(column.cells)]
    return _render(_fit(kept, width), len(seen))


def _progress_columns(rows: list[Progress]) -> list[Column]:
    return [
        Column("step", [row.step for row in rows], drop=4),
        Column("loss", [row.loss for row in rows], drop=3),
        Column("tok/s", [row.speed for row in rows], drop=1),
        Column("left", [row.left for row in rows], drop=5),
        Column("restarts", [row.restarts for row in rows], drop=2),
    ]


@dataclass(frozen=True)
class Progress:
    """How far a run has come, in words."""

    step: str = ""
    loss: str = ""
    speed: str = ""
    left: str = ""
    restarts: str = ""


def _progress(one: Observed) -> Progress:
    last = last_step(one.run.path)
    restarts = str(one.restarts or "")
    if last is None:
        return Progress(restarts=restarts)
    left = ""
    if one.state == RunState.RUNNING and last.seconds_per_step is not None:
        left = duration((last.num_steps - last.step) * last.seconds_per_step)
    return Progress(
        step=f"{last.step}/{last.num_steps}",
        loss=f"{last.loss:.3f}",
        speed=f"{last.tokens_per_second:,.0f}",
        left=left,
        restarts=restarts,
    )


def _state(one: Observed) -> str:
    return f"{one.state} ({one.reason})" if _fits(one) else one.state


def _fits(one: Observed) -> bool:
    """Why a run waits is mostly a word."""
    return one.state == RunState.QUEUED and 0 < len(one.reason) < 60


def _counts(seen: list[Observed]) -> str:
    counts = Counter(one.state for one in seen)
    return ", ".join(f"{count} {state}" for state, count in counts.most_common())


def duration(seconds: float) -> str:
    """As people say it: 45 s, 12 min, 3 h 05, 2 d 04 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02}" if hours < 48 else f"{hours // 24} d {hours % 24:02} h"


def _before_after(run: RunFolder) -> str:
    """Return the held-out losses of a run's start and end; nothing where it has no result, or was not
    evaluated."""
    summary = run.summary()
    if summary is None or summary.before is None or summary.after is None:
        return ""
    return f"{summary.before.loss:.3f} → {summary.after.loss:.3f}"
