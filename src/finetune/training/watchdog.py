"""A watchdog: if a rank hangs, every rank dumps its stacks to a file and ends."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType


class Watchdog:
    """Context manager that dumps the stacks and ends this process if `beat` is not called in time.

    A hung rank blocks the others in their next collective, so no rank makes progress, and each
    dumps its own stacks. The dump is made by faulthandler's timer in C, because Python code could
    wait for a lock that the hung thread holds. The process exits GRACE seconds after the dump.

    Args:
        file: file for this rank's stacks; removed when the context ends, unless it ends with an error
            after a dump.
        seconds: longest time between two calls of `beat`; a longer one counts as a hang. Loading
            the model and saving a checkpoint must each take less.
        record: called with the reason, in one line, before the process exits. The process exits
            after RECORD_SECONDS even if the call has not returned.
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
        """Restart the timer, because this rank has made progress."""
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
        # When a peer ends after a hang, this rank's collective fails, often before its own GRACE
        # is over. Its stacks are needed then.
        if error is None or self._path.stat().st_size == 0:
            self._path.unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds)):
            if time.monotonic() - self._last_beat > self._seconds + self.GRACE:
                self._end_process()

    def _end_process(self) -> None:
        reason = (
            f"no progress for {self._seconds:.0f} s: a rank hangs; read the stacks in {self._path.parent}"
        )
        # A thread, because the process must end even if recording fails or blocks on a full or hung
        # file system.
        try:
            recorder = threading.Thread(target=self._record, args=(reason,), daemon=True)
            recorder.start()
            recorder.join(self.RECORD_SECONDS)
        finally:
            os._exit(1)
