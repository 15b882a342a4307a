"""Follow a run until it ends: show its progress, keep MLflow up to date, and handle Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from finetune.config.points import describe
from finetune.runs import rank_warnings
from finetune.runs.folder import RunFolder
from finetune.terminal import short_path
from finetune.tracking import mlflow_sync
from finetune.tracking.spool import last_step

POLL_SECONDS = 0.5
SYNC_SECONDS = 15.0
ORPHAN_SECONDS = 30.0
MOST_WARNINGS = 20  # shown while a run is followed; `finetune logs` shows all


@dataclass(frozen=True)
class Controller:
    """The process on this machine that controls a run's ranks: submitit's controller, or srun.

    Attributes:
        is_done: returns True once the process has ended.
        owns_ranks: the ranks are its descendants on this machine, so that killing them ends the
            run. False for srun, whose ranks may be on other nodes.
    """

    process: psutil.Process
    is_done: Callable[[], bool]
    owns_ranks: bool = True

    def end(self) -> None:
        if self.owns_ranks:
            _end(self.process)
        else:
            with contextlib.suppress(psutil.NoSuchProcess):
                # srun forwards SIGTERM to the ranks; if srun were killed, they would keep running.
                self.process.terminate()


class Interrupts:
    """Handling of Ctrl-C while runs are followed.

    The first Ctrl-C makes the current run finish its step, save and stop. No further run is started
    then. The second Ctrl-C ends the current run at once.
    """

    def __init__(self) -> None:
        self.pressed = 0
        self._watched: tuple[RunFolder, Controller] | None = None

    @contextlib.contextmanager
    def catch_sigint(self) -> Iterator[None]:
        old = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, old)

    @contextlib.contextmanager
    def direct_to(self, run: RunFolder, controller: Controller) -> Iterator[None]:
        """Make Ctrl-C stop this run during the `with` block.

        If Ctrl-C was pressed before the block, while the run started, the run is stopped at once.
        """
        self._watched = (run, controller)
        if self.pressed:
            self._stop(run)
        try:
            yield
        finally:
            self._watched = None

    def _handle(self, number: int, frame: Any) -> None:
        self.pressed += 1
        if self._watched is None:
            # Between two runs there is no run to stop, and the next start may take too long.
            if self.pressed > 1:
                raise KeyboardInterrupt
            return
        run, controller = self._watched
        if self.pressed == 1:
            self._stop(run)
        else:
            controller.end()

    def _stop(self, run: RunFolder) -> None:
        run.stop_file.touch()
        sweep = run.sweep()
        resume = f"`finetune retry {sweep}`" if sweep else f"`finetune resume {run.id}`"
        line = (
            f"stopping after this step, with a checkpoint (a second Ctrl-C ends it at once); "
            f"{resume} continues the training"
        )
        Console(stderr=True).print(line, soft_wrap=True, highlight=False)


def follow(run: RunFolder, controller: Controller, interrupts: Interrupts, place: str = "") -> None:
    """Show a run's progress and send its metrics to MLflow, until its processes have ended.

    Args:
        place: the run's number among those started in turn, such as `3/12`; "" for a single run.
    """
    console = Console(stderr=True)
    num_ranks = run.config().cluster.world_size
    point = escape(describe(run.point()))
    number = escape(f"[{place}]") if place else ""
    title = "  ".join(filter(None, (number, f"[bold]{run.id}[/bold]", point)))
    folder = short_path(run.path)
    console.print(f"{title}  ranks: {num_ranks}  folder: {folder}", highlight=False, soft_wrap=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        transient=True,
    )
    watch = _RankWatch(controller, num_ranks)
    shown: set[str] = set()
    with bar, interrupts.direct_to(run, controller):
        task = bar.add_task("starting", total=None, status="")
        # Sync while the job starts. The run then appears in MLflow at once, and the import of
        # MLflow does not slow down the first steps.
        _sync(run, console)
        synced = time.monotonic()
        while not controller.is_done():
            time.sleep(POLL_SECONDS)
            if controller.owns_ranks:  # srun itself ends the others if a rank has died
                watch.end_orphans()
            _show_warnings(run, console, shown)
            last = last_step(run.path)
            if last:
                bar.update(
                    task,
                    description="training",
                    completed=last.step,
                    total=last.num_steps,
                    status=f"loss {last.loss:.3f}  {last.tokens_per_second:,.0f} tok/s",
                )
                if time.monotonic() - synced > SYNC_SECONDS:
                    _sync(run, console)
                    synced = time.monotonic()
    _show_warnings(run, console, shown)
    for rank in run.find_ranks():  # the controller, which would end them, has ended itself
        _end(rank)
    _sync(run, console)


def _show_warnings(run: RunFolder, console: Console, shown: set[str]) -> None:
    """Print the ranks' warnings that are not in `shown` yet, and add them to it.

    Ranks that log the same text share a line.
    """
    for warning in rank_warnings.read(run.jobs):
        if warning.text not in shown and len(shown) < MOST_WARNINGS:
            shown.add(warning.text)
            line = f"warning: {warning.describe(len(warning.ranks))}"
            console.print(Text(line, style="yellow"), soft_wrap=True)


def _sync(run: RunFolder, console: Console) -> None:
    """Send new metrics of the run to MLflow. If that fails, print why; no metrics are lost."""
    try:
        mlflow_sync.sync(run)
    except Exception as fault:
        reason = escape(" ".join(f"{type(fault).__name__}: {fault}".split())[:200])
        line = f"MLflow: not up to date ({reason}); `finetune sync` sends the missing metrics"
        console.print(line, soft_wrap=True)


class _RankWatch:
    """A watch on a run's ranks. It ends all ranks 30 s after one of them has died.

    They would otherwise wait for the dead rank in a collective operation.
    """

    def __init__(self, controller: Controller, num_ranks: int) -> None:
        self._controller = controller
        self._num_ranks = num_ranks
        self._incomplete_since: float | None = None
        self._started = False

    def end_orphans(self) -> None:
        try:
            alive = len(self._controller.process.children())
        except psutil.NoSuchProcess:
            return
        self._started = self._started or alive >= self._num_ranks
        if not self._started or alive in (0, self._num_ranks):
            self._incomplete_since = None
        elif self._incomplete_since is None:
            self._incomplete_since = time.monotonic()
        elif time.monotonic() - self._incomplete_since > ORPHAN_SECONDS:
            self._controller.end()


def _end(parent: psutil.Process) -> None:
    """Kill a process and its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (*parent.children(recursive=True), parent):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
