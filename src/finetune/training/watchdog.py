"""The watchdog: ends a job in which a rank hangs, and leaves a stack dump of every rank."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType


class Watchdog:
    """Ends a job in which nothing happens any more, and leaves a stack dump of every rank.

    A hung rank stops its peers in their next collective, so all of them fall silent and each dumps its own
    stacks, from Python's C-level timer, which needs no lock that the hung thread may hold. GRACE seconds
    later the rank leaves.

    Args:
        file: where this rank's stacks go.
        seconds: silence that is a hang. Loading, evaluations and checkpoints need not `beat` more often than
            that.
        record: called with the fault, for people, before the process ends; it has RECORD_SECONDS.
    """

    GRACE = 15.0
    RECORD_SECONDS = 10.0

    def __init__(self, file: Path, seconds: float, record: Callable[[str], None]) -> None:
        self._seconds, self._record, self._path = seconds, record, file
        self._file = file.open("w", encoding="utf-8")
        self._ended = threading.Event()
        self._last = time.monotonic()
        self.beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """Something happened."""
        self._last = time.monotonic()
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
            if time.monotonic() - self._last > self._seconds + self.GRACE:
                # in a thread: on a file system that hangs or is full the record fails, and the hang must end
                # all the same
                try:
                    fault = f"no progress for {self._seconds:.0f} s: a rank hangs; its stack is in {self._path.parent}"
                    recorder = threading.Thread(target=self._record, args=(fault,), daemon=True)
                    recorder.start()
                    recorder.join(self.RECORD_SECONDS)
                finally:
                    os._exit(1)
