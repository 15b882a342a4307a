"""Processes of this machine that do the tasks of a step, and the bar that shows how far they are."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

logger = logging.getLogger(__name__)


class Workers:
    """`number` processes, started when the first step needs more than one; with one, the work is done in this process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._pool: ProcessPoolExecutor | None = None
        self._progress = Progress(
            TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.fields[done]}/{task.fields[tasks]}"),
            _Rate(), TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty(),
        )  # fmt: skip

    def __enter__(self) -> Workers:
        if self.number > 1:
            _start_server()
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
        if self._pool is not None:
            if fault is not None:  # what the others are at is done again another time; half a file is never there
                for process in list(self._pool._processes.values()):
                    process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, step: str, work: Callable[..., bool], arguments: tuple[str, ...], sizes: list[int]) -> bool:
        """Call `work(*arguments, number)` for the number of every task; True if any call was.

        Args:
            sizes: of the tasks, in bytes or characters, for the bar.

        Raises:
            ValueError: a process was killed from outside, as happens when memory runs out.
        """
        began = time.perf_counter()
        bar = self._progress.add_task(step, total=sum(sizes), done=0, tasks=len(sizes))
        worked = False
        if self.number == 1 or len(sizes) == 1:
            for number, size in enumerate(sizes):
                worked |= work(*arguments, number)
                self._progress.update(bar, advance=size, done=number + 1)
        else:
            try:
                futures = {self._submit(work, *arguments, number): size for number, size in enumerate(sizes)}
                for count, future in enumerate(as_completed(futures), start=1):
                    worked |= future.result()
                    self._progress.update(bar, advance=futures[future], done=count)
            except BrokenProcessPool:
                raise ValueError(
                    f"step {step}: a process was killed, perhaps for want of memory: run it again, with fewer workers if it "
                    f"happens again; finished shards are kept"
                ) from None
        if worked and self._progress.disable:
            logger.info("%s: %d tasks, %.1f s", step, len(sizes), time.perf_counter() - began)
        return worked

    def _submit(self, work: Callable[..., bool], *arguments: str | int) -> Future[bool]:
        if self._pool is None:
            # not by a fork of this process: it would copy threads of Arrow and the tokenizers in whatever state they are
            context = multiprocessing.get_context("forkserver" if _has_server() else "spawn")
            self._pool = ProcessPoolExecutor(self.number, context, initializer=_begin, initargs=(dict(os.environ),))
        return self._pool.submit(work, *arguments)


def _has_server() -> bool:
    """Whether processes can be forked from a server that holds all they need: its socket's path may have 107 bytes."""
    return len(os.fsencode(tempfile.gettempdir())) < 70


def _start_server() -> None:
    """Imports take a second or two, and go on while this process does something else."""
    if _has_server():
        multiprocessing.get_context("forkserver").set_forkserver_preload(["data_prep.preload"])
        forkserver.ensure_running()


def _begin(environment: dict[str, str]) -> None:
    """The processes share the cores among them: libraries in them need no threads of their own. If the one that started them is
    killed, so are they: nobody would tell them what to do."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= environment | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    import pyarrow as pa

    pa.set_cpu_count(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Rate(TextColumn):
    """Megabytes (of raw files) or million characters a second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed / 1e6:6.1f} MB/s" if speed and task.total != 1 else "", style="cyan")
