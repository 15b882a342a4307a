"""The terminal that people read: its width, and the progress of what takes more than a moment. On stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

QUIET_SECONDS = 1.0  # what takes less shows no progress
LINE_SECONDS = 10.0  # between two lines where there is no terminal

Item = TypeVar("Item")


def console(stderr: bool = True) -> Console:
    """Return a console as wide as the terminal; a pipe has no width of its own, and 80 columns would cut run
    ids."""
    is_terminal = sys.stdout.isatty() or sys.stderr.isatty()
    return Console(stderr=stderr, highlight=False, width=None if is_terminal else 160)


def short_path(path: os.PathLike[str]) -> str:
    """Return a path as seen from here, or the whole one where that would lead upwards."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def counted(items: Iterable[Item], total: int, verb: str) -> Iterator[Item]:
    """Yield the items and show how many of `total` points are done: a live line on a terminal, else a line
    now and then."""
    started = time.monotonic()
    live: Progress | None = None
    shown = started
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - started > QUIET_SECONDS and sys.stderr.isatty():
                live = live or _begin(total, verb)
                live.update(live.task_ids[0], completed=done)
            elif now - shown > LINE_SECONDS:
                print(f"{verb}: {done} of {total} points", file=sys.stderr, flush=True)  # noqa: T201
                shown = now
            yield item
    finally:
        if live is not None:
            live.stop()


def _begin(total: int, verb: str) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("points"),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    progress.add_task(verb, total=total)
    progress.start()
    return progress
