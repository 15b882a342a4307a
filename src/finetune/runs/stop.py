"""Whether a rank is asked to stop training early: by a signal (time limit, preemption, requeue), a deadline
or a stop file.

No torch in here: signals may come while it is being imported.
The ranks agree on what to do, together, at the next step, batch of an evaluation or stage of loading: see
training/.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from finetune.runs.state import StopReason


class StopTraining(Exception):
    """All ranks leave training at once, from the place where it is raised."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(str(reason.state))
        self.reason = reason


class StopFlag:
    """Set by SIGTERM or SIGUSR2 (a scheduler's time limit, preemption or requeue), by a deadline, or by a
    stop file (a person).

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

    def reason(self) -> StopReason:
        """Return why this rank should leave, as far as it is asked to."""
        if self._file.exists():
            return StopReason.STOPPED
        return StopReason.INTERRUPTED if self._signal or self._is_late() else StopReason.NONE

    def describe(self) -> str:
        """What set this rank's flag, in words; "" if it is not set."""
        if self._file.exists():
            return "a stop file"
        return self._signal or ("the job's time was nearly up" if self._is_late() else "")

    def _is_late(self) -> bool:
        return self.deadline is not None and time.time() >= self.deadline
