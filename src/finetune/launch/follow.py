"""Following runs from the shell that started them: progress from the spool, MLflow kept up to date,
Ctrl-C."""

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
MOST_WARNINGS = 20  # that are shown while a run is followed; `finetune logs` has all


@dataclass(frozen=True)
class Controller:
    """The process on this machine that a run hangs on: submitit's, which has started the ranks as its
    children, or srun."""

    process: psutil.Process
    is_done: Callable[[], bool]
    owns_ranks: bool = True

    def end(self) -> None:
        if self.owns_ranks:
            _end(self.process)
        else:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.process.terminate()  # which srun hands on; killed, it would leave the ranks alone


class Interrupts:
    """Ctrl-C in the shell that follows runs. The first one asks the run that is at work to save and stop at
    its next step, and lets no other begin; the second one ends it."""

    def __init__(self) -> None:
        self.pressed = 0
        self._watched: tuple[RunFolder, Controller] | None = None

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        old = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, old)

    @contextlib.contextmanager
    def aimed_at(self, run: RunFolder, controller: Controller) -> Iterator[None]:
        """While the run is at work, Ctrl-C is for it; also one that came while it was being started."""
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
            if (
                self.pressed > 1
            ):  # nothing is at work that could be stopped: what is done between two runs takes too long
                raise KeyboardInterrupt
            return
        run, controller = self._watched
        if self.pressed == 1:
            self._stop(run)
        else:
            controller.end()

    def _stop(self, run: RunFolder) -> None:
        run.stop_file.touch()
        go_on = (
            f"`finetune retry {run.sweep()}` goes on with the sweep"
            if run.sweep()
            else f"`finetune resume {run.id}` goes on"
        )
        line = f"stopping after this step, with a checkpoint (again: at once); {go_on}"
        Console(stderr=True).print(line, soft_wrap=True, highlight=False)


def follow(run: RunFolder, controller: Controller, interrupts: Interrupts, place: str = "") -> None:
    """Show progress until the job's processes are gone; then fill MLflow.

    Args:
        place: of the run among those that are started in turn, as in `3/12`.
    """
    console, num_ranks = Console(stderr=True), run.config().cluster.world_size
    point = escape(describe(run.point()))
    title = "  ".join(
        part for part in (escape(f"[{place}]") if place else "", f"[bold]{run.id}[/bold]", point) if part
    )
    console.print(
        f"{title}  ranks: {num_ranks}  folder: {short_path(run.path)}", highlight=False, soft_wrap=True
    )
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
    with bar, interrupts.aimed_at(run, controller):
        task = bar.add_task("starting", total=None, status="")
        # while the job starts: the run is in MLflow at once, and MLflow's import takes no time from the first
        # steps
        _sync(run, console)
        synced = time.monotonic()
        while not controller.is_done():
            time.sleep(POLL_SECONDS)
            if controller.owns_ranks:  # srun ends a job that lost a rank by itself
                watch.end_orphans()
            _show_warnings(run, console, shown)
            if last := last_step(run.path):
                status = f"loss {last.loss:.3f}  {last.tokens_per_second:,.0f} tok/s"
                bar.update(
                    task, description="training", completed=last.step, total=last.num_steps, status=status
                )
                if time.monotonic() - synced > SYNC_SECONDS:
                    _sync(run, console)
                    synced = time.monotonic()
    _show_warnings(run, console, shown)
    for rank in run.find_ranks():  # the controller is gone: nothing else would end them
        _end(rank)
    _sync(run, console)


def _show_warnings(run: RunFolder, console: Console, shown: set[str]) -> None:
    """Print the warnings of ranks that are not among `shown` yet, each kind of them once."""
    for warning in rank_warnings.read(run.jobs):
        if warning.text not in shown and len(shown) < MOST_WARNINGS:
            shown.add(warning.text)
            console.print(
                Text(f"warning: {warning.describe(len(warning.ranks))}", style="yellow"), soft_wrap=True
            )


def _sync(run: RunFolder, console: Console) -> None:
    """Tracking never stops a run: what cannot be sent now is in the spool and can be sent later."""
    try:
        mlflow_sync.sync(run)
    except Exception as fault:
        reason = escape(" ".join(f"{type(fault).__name__}: {fault}".split())[:200])
        console.print(f"MLflow is behind ({reason}): `finetune sync` catches up", soft_wrap=True)


class _RankWatch:
    """Ends a job of which a rank has died while the others wait for it in a collective."""

    def __init__(self, controller: Controller, num_ranks: int) -> None:
        self._controller, self._num_ranks = controller, num_ranks
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
    """Kill a process and all it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (*parent.children(recursive=True), parent):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
