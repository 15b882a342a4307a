"""Worker processes on this machine, in which `finetune prepare` runs the tasks of a step."""

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

JOIN_SECONDS = 5.0  # time for a process to exit after SIGTERM


class Workers:
    """A pool of worker processes with a progress line.

    The processes start at the first step that has more than one task.

    Args:
        number: number of processes. With 1, tasks run in this process.
        steps: names of all steps that will be run, for the progress line.
    """

    def __init__(self, number: int, steps: list[str]) -> None:
        self.number = number
        self._pool: ProcessPoolExecutor | None = None
        self._listener: QueueListener | None = None
        self._progress = StepProgress(steps)

    def __enter__(self) -> Workers:
        if self.number > 1:
            _start_forkserver()
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            # After an error, running tasks are killed, and the next run repeats them. A file gets
            # its final name only when it is complete, so no partly written file is left.
            if fault is not None:
                for process in list(self._pool._processes.values()):
                    process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)
        # After an error, stopping the listener could hang, because a killed process may hold the
        # lock of its queue.
        if self._listener is not None and fault is None:
            self._listener.stop()
        self._progress.stop(completed=fault is None)

    def run(self, step: str, work: Callable[..., bool], arguments: tuple[str, ...], sizes: list[int]) -> bool:
        """Call `work(*arguments, number)` for each task number of a step.

        Args:
            sizes: size of each task in bytes or characters, for the progress line. Tasks are
                numbered from 0 to len(sizes) - 1.

        Returns:
            True if any call returned True.

        Raises:
            UserError: a worker process was killed or ended, for example because memory ran out.
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
                    f"step {step}: a worker process {self._describe_exit()}; run the same command "
                    "again, which keeps finished shards; if memory ran out (`journalctl -k` shows "
                    "whether the kernel killed the process), set workers to a lower number"
                ) from None
        self._progress.end_step(worked=worked)
        return worked

    def _describe_exit(self) -> str:
        """Describe how the worker process that failed first ended.

        The pool ends the other processes with SIGTERM, so these are left out.
        """
        assert self._pool is not None
        processes = list((self._pool._processes or {}).values())
        for process in processes:
            process.join(timeout=JOIN_SECONDS)
        for process in processes:
            code = process.exitcode
            if code is None or code in (0, -signal.SIGTERM):
                continue
            if code < 0:
                return f"was killed by {signal.Signals(-code).name}"
            return f"ended with exit code {code}"
        return "ended unexpectedly"

    def _submit(self, work: Callable[..., bool], *arguments: str | int) -> Future[bool]:
        if self._pool is None:
            # With "fork", a process would inherit locks that threads of Arrow or tokenizers hold.
            context = multiprocessing.get_context("forkserver" if _can_use_forkserver() else "spawn")
            records: multiprocessing.Queue[logging.LogRecord] = context.Queue()
            self._listener = QueueListener(records, _LogForwarder())
            self._listener.start()
            self._pool = ProcessPoolExecutor(
                self.number,
                context,
                initializer=_initialize_process,
                initargs=(dict(os.environ), records),
            )
        return self._pool.submit(work, *arguments)


def _can_use_forkserver() -> bool:
    """Return whether the fork server can create its socket in the temporary folder.

    The path of a socket may have at most 107 bytes.
    """
    return len(os.fsencode(tempfile.gettempdir())) < 70


def _start_forkserver() -> None:
    """Start the fork server early, because its imports take a second or two.

    This process continues meanwhile.
    """
    if _can_use_forkserver():
        multiprocessing.get_context("forkserver").set_forkserver_preload(["data_prep.preload"])
        forkserver.ensure_running()


class _LogForwarder(logging.Handler):
    """A handler that passes the log records of worker processes to the loggers of this process.

    The loggers of this process print above the progress line, not across it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


def _initialize_process(
    environment: dict[str, str], records: multiprocessing.Queue[logging.LogRecord]
) -> None:
    """Set up a worker process.

    Libraries use one thread in each process, because the processes share the cores. The process
    exits when its parent exits, because it would then get no more tasks.

    Args:
        environment: environment variables of the parent process.
        records: queue to which the process sends its log records.
    """
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ |= environment | {
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    logging.getLogger().addHandler(QueueHandler(records))
    import pyarrow as pa

    pa.set_cpu_count(1)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
