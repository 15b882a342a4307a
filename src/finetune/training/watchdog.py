"""A watchdog that ends a job in which a rank hangs, and dumps the stacks of every rank."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType


class Watchdog:
    """Context manager that dumps stacks and ends this process if `beat` is not called for a while.

    A hung rank blocks its peers in their next collective, so no rank makes progress and each dumps
    its own stacks: from faulthandler's C-level timer, which needs no lock that the hung thread may
    hold. The process exits GRACE seconds later.

    Args:
        file: receives this rank's stacks; removed if the rank did not hang.
        seconds: time without `beat` that counts as a hang. Loading, evaluations and checkpoints
            must each take less.
        record: called with the reason, as one line for people, before the process exits; it has
            RECORD_SECONDS.
    """

    GRACE = 15.0
    RECORD_SECONDS = 10.0

    def __init__(self, file: Path, seconds: float, record: Callable[[str], None]) -> None:
        self._path = file
        self._seconds = seconds
        self._record = record
        self._file = file.open("w", encoding="utf-8")
        self._ended = threading.Event()
        self._last_beat = time.monotonic()
        self.beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """Report progress: the time without progress starts again at 0."""
        self._last_beat = time.monotonic()
        faulthandler.dump_traceback_later(self._seconds, file=self._file)

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds)):
            if time.monotonic() - self._last_beat > self._seconds + self.GRACE:
                self._end_process()

    def _end_process(self) -> None:
        reason = (
            f"no progress for {self._seconds:.0f} s: a rank hangs; read the stacks in {self._path.parent}"
        )
        # In a thread of its own: recording fails or blocks on a file system that is full or hangs,
        # and the process must end all the same.
        try:
            recorder = threading.Thread(target=self._record, args=(reason,), daemon=True)
            recorder.start()
            recorder.join(self.RECORD_SECONDS)
        finally:
            os._exit(1)
