"""A console as wide as the terminal, and a progress display for long operations."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

QUIET_SECONDS = 1.0  # no progress is shown before this time
LINE_SECONDS = 10.0  # between two progress lines if stderr is not a terminal

Item = TypeVar("Item")


def console(stderr: bool = True) -> Console:
    """Return a console as wide as the terminal, or of 160 columns for a pipe.

    A pipe's default of 80 columns would truncate run ids.
    """
    is_terminal = sys.stdout.isatty() or sys.stderr.isatty()
    return Console(stderr=stderr, highlight=False, width=None if is_terminal else 160)


def short_path(path: str | os.PathLike[str]) -> str:
    """Return a path relative to the working directory; a path outside of it is unchanged."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def track_progress(items: Iterable[Item], total: int, verb: str) -> Iterator[Item]:
    """Yield the items, and show how many of `total` points are done.

    A terminal shows a live line; elsewhere, a line is printed every LINE_SECONDS.

    Args:
        verb: the activity, such as "composing".
    """
    started = time.monotonic()
    live: Progress | None = None
    printed_at = started
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - started > QUIET_SECONDS and sys.stderr.isatty():
                live = live or _start_live_line(total, verb)
                live.update(live.task_ids[0], completed=done)
            elif now - printed_at > LINE_SECONDS:
                print(f"{verb}: {done} of {total} points", file=sys.stderr, flush=True)  # noqa: T201
                printed_at = now
            yield item
    finally:
        if live is not None:
            live.stop()


def _start_live_line(total: int, verb: str) -> Progress:
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


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
