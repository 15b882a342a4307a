"""Progress of a preparation: a live line on a terminal, or else a log line every 30 s."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn
from rich.text import Text

LOG_SECONDS = 30.0  # minimum time between two log lines
SLOWEST = 3  # number of slowest steps in the summary
logger = logging.getLogger(__name__)


class StepProgress:
    """Progress through the steps of a preparation.

    On a terminal, log records are printed above the live line.

    Args:
        steps: names of all steps.
    """

    def __init__(self, steps: list[str]) -> None:
        self._steps = steps
        self._seconds: dict[str, float] = {}  # duration of each step that had work to do
        self._began = time.perf_counter()
        self._step_began = self._last_line = self._began
        self._step = ""
        self._tasks = self._done = 0
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[tasks]}"),
            _Rate(),
            _Elapsed(self._began),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._bar = self._live.add_task("", tasks="")
        self._handlers: list[logging.StreamHandler[TextIO]] = []

    def start(self) -> None:
        """Show the live line, and let log handlers of standard error print above that line."""
        before = sys.stderr
        self._live.start()
        for handler in logging.getLogger().handlers:
            if (
                isinstance(handler, logging.StreamHandler)
                and handler.stream is before
                and sys.stderr is not before
            ):
                handler.setStream(sys.stderr)
                self._handlers.append(handler)

    def stop(self, completed: bool) -> None:
        """Remove the live line. If all steps are completed, log the time and the slowest steps."""
        self._live.stop()
        for handler in self._handlers:
            handler.setStream(sys.stderr)
        if completed and self._seconds:
            slowest = sorted(self._seconds, key=lambda step: -self._seconds[step])[:SLOWEST]
            named = ", ".join(f"{step} {self._seconds[step]:.1f} s" for step in slowest)
            total = time.perf_counter() - self._began
            logger.info(
                "%d of %d steps done in %.1f s: %s", len(self._seconds), len(self._steps), total, named
            )

    def start_step(self, step: str, sizes: list[int]) -> None:
        """Begin a step.

        Args:
            sizes: size of each task in bytes or characters.
        """
        self._step = step
        self._tasks = len(sizes)
        self._done = 0
        self._step_began = time.perf_counter()
        self._live.reset(self._bar, total=sum(sizes), description=self._describe(), tasks=self._count())

    def advance(self, size: int) -> None:
        """Count a task as done, and its size as processed."""
        self._done += 1
        self._live.update(self._bar, advance=size, tasks=self._count())
        now = time.perf_counter()
        if self._live.disable and now - self._last_line >= LOG_SECONDS:
            self._last_line = now
            logger.info("%s: %s tasks, %.0f s", self._describe(), self._count(), now - self._began)

    def end_step(self, worked: bool) -> None:
        """End a step.

        Args:
            worked: True if the step had work to do. Otherwise, the summary leaves the step out.
        """
        if worked:
            self._seconds[self._step] = time.perf_counter() - self._step_began

    def _describe(self) -> str:
        number = self._steps.index(self._step) + 1 if self._step in self._steps else 0
        return f"step {number}/{len(self._steps)} {self._step}"

    def _count(self) -> str:
        return f"{self._done}/{self._tasks}"


class _Rate(TextColumn):
    """Column with the speed: megabytes of raw files, or million characters, per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed / 1e6:6.1f} MB/s" if speed and task.total != 1 else "", style="cyan")


class _Elapsed(TextColumn):
    """Column with the seconds since the preparation began."""

    def __init__(self, began: float) -> None:
        super().__init__("")
        self._began = began

    def render(self, task: Task) -> Text:
        return Text(f"{time.perf_counter() - self._began:.0f} s", style="yellow")
