"""Tables of runs, and of sweeps.

A row of a sweep's table is a run with its swept values; the best run comes first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetune.cli.next_step import describe_next_step
from finetune.config.points import find_varying_keys, short_names, short_values
from finetune.launch.observe import Observed
from finetune.launch.sweep_files import Point, best_of, read_point, sort_points
from finetune.runs import attempts
from finetune.runs.folder import RunFolder
from finetune.runs.state import RunState
from finetune.terminal import console, format_count
from finetune.tracking.spool import last_step

OVERVIEW_POINTS = 12  # rows for each sweep if several tables are shown
MOST_POINTS = 50  # rows in the report of a sweep that has ended; its file lists all points
WARNINGS_OF_A_RUN = 5
FEW_RUNS = 5  # up to this number, advice and warnings are printed for each run
GAP = 2  # spaces between two columns of a table


@dataclass
class Column:
    """A column of a table of runs.

    Attributes:
        drop: on a narrow terminal, columns are left out in the order of this number; a column with
            0 is always shown.
        narrow: shorter cells, used before any column is left out; empty if there are none.
    """

    name: str
    cells: list[str]
    drop: int = 0
    narrow: list[str] = field(default_factory=list)

    def width(self) -> int:
        return max(len(text) for text in [self.name, *self.cells])


def status_tables(
    statuses: list[Observed], most: int = OVERVIEW_POINTS, width: int | None = None
) -> list[RenderableType]:
    """Return a table of the runs outside sweeps, and a table for each sweep.

    Args:
        most: largest number of rows for a sweep, if there are several tables.
        width: columns of the terminal; None to ask the terminal.
    """
    if width is None:
        width = console().width
    single: list[Observed] = []
    sweeps: dict[str, list[Observed]] = {}
    for status in statuses:
        sweep = status.run.sweep()
        if sweep is None:
            single.append(status)
        else:
            sweeps.setdefault(sweep, []).append(status)
    tables: list[RenderableType] = []
    if single or not sweeps:
        tables.append(_run_table(single, width))
    limit = len(statuses)
    if len(sweeps) + len(tables) > 1:
        limit = most
    for sweep, points in sweeps.items():
        tables += [Text(), sweep_table(sweep, points, limit, width)]
    return tables


def status_group(statuses: list[Observed]) -> Group:
    """Return all tables as one renderable, for a live view."""
    return Group(*status_tables(statuses))


def print_status(statuses: list[Observed], stderr: bool = False) -> None:
    """Print the tables and, below them, each run's reason, advice, last restart and warnings.

    For more than FEW_RUNS runs, advice is left out, and only the number of warnings is printed.
    """
    out = console(stderr=stderr)
    for table in status_tables(statuses):
        out.print(table, soft_wrap=isinstance(table, Text))
    are_few = len(statuses) <= FEW_RUNS
    for status in statuses:
        _print_details(out, status, with_advice=are_few)
        print_warnings(out, status.run, most=WARNINGS_OF_A_RUN if are_few else 0)
    if not are_few:
        out.print(f"{len(statuses)} runs: {_count_states(statuses)}")


def _print_details(out: Console, status: Observed, with_advice: bool) -> None:
    """Print a run's reason for its state, advice, and last restart.

    The reason is printed if the run is neither completed nor cancelled and the table does not show
    it. The last restart is printed while the run is queued or running.

    Args:
        with_advice: print advice if the run ended without being completed.
    """
    run = status.run
    has_no_result = status.state not in (RunState.COMPLETED, RunState.CANCELLED)
    if status.reason and has_no_result and not _is_reason_in_table(status):
        style = "red" if status.state == RunState.FAILED else ""
        out.print(Text(f"{run.id}: {status.reason}", style=style), soft_wrap=True)
    if with_advice and not status.alive and status.state != RunState.COMPLETED:
        out.print(Text(f"{run.id}: {describe_next_step(status)}"), soft_wrap=True)
    if status.alive:
        restart = attempts.describe_last_restart(run.path)
        if restart:
            out.print(Text(f"{run.id}: {restart}"), soft_wrap=True)


def print_warnings(out: Console, run: RunFolder, most: int) -> None:
    """Print the first `most` warnings of a run's ranks, and the number of the others."""
    warnings = run.warnings()
    for warning in warnings[:most]:
        out.print(Text(f"{run.id}: warning: {warning}", style="yellow"), soft_wrap=True)
    if len(warnings) <= most:
        return
    line = f"{len(warnings)} warnings: finetune status {run.id}"
    if most:
        line = f"{len(warnings) - most} more warnings: finetune logs {run.id}"
    out.print(Text(f"{run.id}: {line}", style="yellow"), soft_wrap=True)


def print_sweep(sweep: str, statuses: list[Observed]) -> None:
    """Print the table of a sweep's points."""
    out = console()
    out.print()
    out.print(sweep_table(sweep, statuses, MOST_POINTS, out.width))


def sweep_table(sweep: str, statuses: list[Observed], most: int, width: int) -> Group:
    """Return the table of a sweep's points, best first.

    Args:
        most: largest number of rows.
        width: columns of the terminal.
    """
    by_id = {status.run.id: status for status in statuses}
    points = sort_points([read_point(status.run, status.state) for status in statuses])
    best = best_of(points)
    shown = _select_points(points, most)
    columns = _fit(_make_columns(sweep, points, shown, by_id, best), width)
    bold = shown.index(best) if best in shown else None
    table = _render(columns, len(shown), bold)
    head = Text.assemble(
        "sweep ", (sweep, "bold"), f": {format_count(len(points), 'point')}: {_count_states(statuses)}"
    )
    parts: list[RenderableType] = [head, table]
    if len(shown) < len(points):
        parts.append(Text(f"… and {len(points) - len(shown)} more: finetune status {sweep}"))
    return Group(*parts)


def print_points(points: list[dict[str, str]], most: int) -> None:
    """Print the swept values of points that have not been started.

    Args:
        most: largest number of rows.
    """
    out = console()
    out.print(f"{format_count(len(points), 'point')}:")
    columns = [Column("point", [f"{index:03d}" for index in range(len(points))])]
    for key, name in short_names(find_varying_keys(points)).items():
        columns.append(Column(name, short_values([point.get(key, "") for point in points])))
    out.print(_render(columns, min(most, len(points))))
    if len(points) > most:
        out.print(f"… and {len(points) - most} more")


def _render(columns: list[Column], num_rows: int, bold: int | None = None) -> Table:
    table = Table(*(column.name for column in columns), box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for index in range(num_rows):
        style = "bold" if index == bold else ""
        table.add_row(*(Text(column.cells[index]) for column in columns), style=style)
    return table


def _make_columns(
    sweep: str, points: list[Point], shown: list[Point], by_id: dict[str, Observed], best: Point | None
) -> list[Column]:
    """Return the columns of a sweep's table, without those that are empty in all rows shown.

    Args:
        points: all points of the sweep; only the settings in which they differ get a column.
        shown: the points that have a row, in order.
        by_id: the state of each point, by run id.
        best: the point whose held-out loss is marked as the best; None if there is none.
    """
    ids = [point.id for point in shown]
    columns = [Column("run", ids, narrow=[run_id.removeprefix(f"{sweep}-") for run_id in ids])]
    for key, name in short_names(find_varying_keys([point.values for point in points])).items():
        columns.append(Column(name, short_values([point.values.get(key, "") for point in shown])))
    statuses = [by_id[point.id] for point in shown]
    columns += [
        Column(
            "state", [_state_cell(status) for status in statuses], narrow=[point.state for point in shown]
        ),
        *_make_progress_columns([_progress(status) for status in statuses]),
        Column("held-out loss", [_loss_cell(point, best) for point in shown]),
    ]
    return [column for column in columns if any(column.cells)]


def _loss_cell(point: Point, best: Point | None) -> str:
    if point.loss is None:
        return ""
    mark = " best" if point == best else ""
    return f"{point.loss:.3f}{mark}"


def _fit(columns: list[Column], width: int) -> list[Column]:
    """Shorten columns, then leave some out, until the table fits the terminal."""
    for column in columns:
        if _width(columns) > width and column.narrow:
            column.cells = column.narrow
            if column.name == "run":
                column.name = "point"
    for column in sorted(columns, key=lambda column: column.drop):
        if _width(columns) > width and column.drop:
            columns = [other for other in columns if other is not column]
    return columns


def _width(columns: list[Column]) -> int:
    return sum(column.width() + GAP for column in columns)


def _select_points(points: list[Point], most: int) -> list[Point]:
    """Return at most `most` of the sorted points: those with a result, then those without.

    If there are more than `most` points, half of those returned have a result and half have none.
    If one half has too few points, the other gets more. Of the points with a result, the best are
    returned.
    """
    if len(points) <= most:
        return points
    done = [point for point in points if point.loss is not None]
    others = [point for point in points if point.loss is None]
    others.sort(key=lambda point: (point.state == RunState.QUEUED, point.id))
    num_others = min(len(others), max(most // 2, most - len(done)))
    return done[: most - num_others] + others[:num_others]


def _run_table(statuses: list[Observed], width: int) -> Table:
    """Return the table of runs outside sweeps, in the given order."""
    states = [_state_cell(status) for status in statuses]
    columns = [
        Column("run", [status.run.id for status in statuses]),
        Column("state", states, narrow=[status.state for status in statuses]),
        *_make_progress_columns([_progress(status) for status in statuses]),
        Column("held-out loss", [_losses_cell(status.run) for status in statuses]),
    ]
    kept = [column for column in columns if not column.drop or any(column.cells)]
    return _render(_fit(kept, width), len(statuses))


def _make_progress_columns(rows: list[Progress]) -> list[Column]:
    return [
        Column("step", [row.step for row in rows], drop=4),
        Column("loss", [row.loss for row in rows], drop=3),
        Column("tok/s", [row.speed for row in rows], drop=1),
        Column("left", [row.left for row in rows], drop=5),
        Column("restarts", [row.restarts for row in rows], drop=2),
    ]


@dataclass(frozen=True)
class Progress:
    """The cells that show a run's progress in the table of runs."""

    step: str = ""
    loss: str = ""
    speed: str = ""
    left: str = ""
    restarts: str = ""


def _progress(status: Observed) -> Progress:
    last = last_step(status.run.path)
    restarts = str(status.restarts or "")
    if last is None:
        return Progress(restarts=restarts)
    left = ""
    if status.state == RunState.RUNNING and last.seconds_per_step is not None:
        left = format_duration((last.num_steps - last.step) * last.seconds_per_step)
    return Progress(
        step=f"{last.step}/{last.num_steps}",
        loss=f"{last.loss:.3f}",
        speed=f"{last.tokens_per_second:,.0f}",
        left=left,
        restarts=restarts,
    )


def _state_cell(status: Observed) -> str:
    return f"{status.state} ({status.reason})" if _is_reason_in_table(status) else status.state


def _is_reason_in_table(status: Observed) -> bool:
    """Return whether the table of runs shows the reason for this run's state.

    It shows a reason only if the run is queued and the reason is short.
    """
    return status.state == RunState.QUEUED and 0 < len(status.reason) < 60


def _count_states(statuses: list[Observed]) -> str:
    counts = Counter(status.state for status in statuses)
    return ", ".join(f"{count} {state}" for state, count in counts.most_common())


def format_duration(seconds: float) -> str:
    """Return a duration as 45 s, 12 min, 3 h 05 or 2 d 04 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours = minutes // 60
    if hours < 48:
        return f"{hours} h {minutes % 60:02}"
    return f"{hours // 24} d {hours % 24:02} h"


def _losses_cell(run: RunFolder) -> str:
    """Return a run's held-out losses before and after training; empty if there are none."""
    summary = run.summary()
    if summary is None or summary.before is None or summary.after is None:
        return ""
    return f"{summary.before.loss:.3f} → {summary.after.loss:.3f}"
