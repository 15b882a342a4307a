"""Processes of this machine that do the tasks of a step. Started by `finetune prepare` where no scheduler
does the work."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from logging.handlers import QueueHandler, QueueListener
from multiprocessing import forkserver
from types import TracebackType

from data_prep.step_progress import StepProgress
from data_prep.user_error import UserError

JOIN_SECONDS = 5.0  # for processes that are being ended


class Workers:
    """`number` processes, started when the first step needs more than one; with one, the work is done in this
    process.

    Args:
        steps: names of all steps that will be run, for the progress line.
    """

    def __init__(self, number: int, steps: list[str]) -> None:
        self.number = number
        self._pool: ProcessPoolExecutor | None = None
        self._listener: QueueListener | None = None
        self._progress = StepProgress(steps)

    def __enter__(self) -> Workers:
        if self.number > 1:
            _start_server()
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            if (
                fault is not None
            ):  # what the others are at is done again another time; half a file is never there
                for process in list(self._pool._processes.values()):
                    process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._listener is not None and fault is None:  # a process that was ended may hold the queue's lock
            self._listener.stop()
        self._progress.stop(completed=fault is None)

    def run(self, step: str, work: Callable[..., bool], arguments: tuple[str, ...], sizes: list[int]) -> bool:
        """Call `work(*arguments, number)` for the number of every task; True if any call was.

        Args:
            sizes: of the tasks, in bytes or characters, for the progress line.

        Raises:
            UserError: a process was killed from outside, as happens when memory runs out.
        """
        self._progress.start_step(step, sizes)
        worked = False
        if self.number == 1 or len(sizes) == 1:
            for number, size in enumerate(sizes):
                worked |= work(*arguments, number)
                self._progress.advance(size)
        else:
            try:
                futures = {self._submit(work, *arguments, number): size for number, size in enumerate(sizes)}
                for future in as_completed(futures):
                    worked |= future.result()
                    self._progress.advance(futures[future])
            except BrokenProcessPool:
                raise UserError(
                    f"step {step}: a process {self._how_it_ended()}; run it again, with fewer workers if memory ran out "
                    f"(`journalctl -k` has the kernel's word for that); finished shards are kept"
                ) from None
        self._progress.end_step(worked=worked)
        return worked

    def _how_it_ended(self) -> str:
        """Return the exit status of the process that broke the pool; the others are ended by SIGTERM after
        it."""
        assert self._pool is not None
        processes = list((self._pool._processes or {}).values())
        for process in processes:
            process.join(timeout=JOIN_SECONDS)
        codes = [
            process.exitcode for process in processes if process.exitcode not in (None, 0, -signal.SIGTERM)
        ]
        if not codes or codes[0] is None:
            return "ended by itself"
        return (
            f"was ended by {signal.Signals(-codes[0]).name}"
            if codes[0] < 0
            else f"ended with exit code {codes[0]}"
        )

    def _submit(self, work: Callable[..., bool], *arguments: str | int) -> Future[bool]:
        if self._pool is None:
            # not by a fork of this process: it would copy threads of Arrow and the tokenizers in whatever
            # state they are
            context = multiprocessing.get_context("forkserver" if _has_server() else "spawn")
            records: multiprocessing.Queue[logging.LogRecord] = context.Queue()
            self._listener = QueueListener(records, _ToOurLoggers())
            self._listener.start()
            arguments_of_process = (dict(os.environ), records)
            self._pool = ProcessPoolExecutor(
                self.number, context, initializer=_begin, initargs=arguments_of_process
            )
        return self._pool.submit(work, *arguments)


def _has_server() -> bool:
    """Whether processes can be forked from a server that holds all they need: its socket's path may have 107
    bytes."""
    return len(os.fsencode(tempfile.gettempdir())) < 70


def _start_server() -> None:
    """Imports take a second or two, and go on while this process does something else."""
    if _has_server():
        multiprocessing.get_context("forkserver").set_forkserver_preload(["data_prep.preload"])
        forkserver.ensure_running()


class _ToOurLoggers(logging.Handler):
    """Passes on what a process has logged, so that it is printed above the progress line and not across
    it."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


def _begin(environment: dict[str, str], records: multiprocessing.Queue[logging.LogRecord]) -> None:
    """The processes share the cores among them: libraries in them need no threads of their own. If the one
    that started them is killed, so are they: nobody would tell them what to do."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= environment | {
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    logging.getLogger().addHandler(QueueHandler(records))
    import pyarrow as pa

    pa.set_cpu_count(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
