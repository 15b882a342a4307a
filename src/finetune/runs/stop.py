"""Why a run should leave early, as one rank sees it. No torch in here: signals must be heard while it is being imported.

The ranks agree on what to do, together, at the next step, batch of an evaluation or stage of loading: see train.py.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

# In order of weight: where ranks disagree the highest holds.
GO_ON, INTERRUPTED, STOPPED = 0, 1, 2
STATES = {INTERRUPTED: "interrupted", STOPPED: "stopped"}


class Leave(Exception):
    """All ranks leave now, from this very place. `reason` is INTERRUPTED or STOPPED."""

    def __init__(self, reason: int) -> None:
        super().__init__(STATES[reason])
        self.reason = reason


class StopFlag:
    """Set by SIGTERM or SIGUSR2 (a scheduler's time limit, preemption or requeue), by a deadline, or by a stop file (a person).

    Args:
        file: the person's wish.
        deadline: seconds since the epoch, of this machine's clock; None: the job has no end.
    """

    def __init__(self, file: Path, deadline: float | None = None) -> None:
        self._file, self.deadline = file, deadline
        self._signal: str | None = None

    def listen(self) -> None:
        """From now on the two signals only set the flag."""
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signal = signal.Signals(number).name

    def reason(self) -> int:
        """STOPPED if a person asked, INTERRUPTED if the scheduler did or the time is up, else GO_ON."""
        if self._file.exists():
            return STOPPED
        return INTERRUPTED if self._signal or self._is_late() else GO_ON

    def describe(self) -> str:
        """What set this rank's flag, in words; "" if it is not set."""
        if self._file.exists():
            return "a stop file"
        return self._signal or ("the job's time was nearly up" if self._is_late() else "")

    def _is_late(self) -> bool:
        return self.deadline is not None and time.time() >= self.deadline
