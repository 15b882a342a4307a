"""Requests to stop training early: by a signal (time limit, preemption, requeue), a deadline or a
stop file.

Signals may arrive while torch is being imported, so this module does not import torch. A request
may reach only some ranks. All ranks agree on a stop reason at the next optimizer step, evaluation
batch or stage of loading (training/).
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from finetune.runs.state import StopReason


class StopTraining(Exception):
    """Raised by all ranks at the same place in the code, to end training.

    Args:
        reason: why training stops.
    """

    def __init__(self, reason: StopReason) -> None:
        super().__init__(str(reason.state))
        self.reason = reason


class StopFlag:
    """A rank's flag that requests a stop of training.

    It is set by SIGTERM or SIGUSR2 (a scheduler's time limit, preemption or requeue), by a
    deadline, or by a stop file (a user's request).

    Args:
        file: the stop file.
        deadline: seconds since the epoch, by this machine's clock; None: no deadline.
    """

    def __init__(self, file: Path, deadline: float | None = None) -> None:
        self._file = file
        self.deadline = deadline
        self._signal: str | None = None

    def install_signal_handlers(self) -> None:
        """Let SIGTERM and SIGUSR2 set the flag instead of ending the process."""
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signal = signal.Signals(number).name

    def reason(self) -> StopReason:
        """Return why this rank is asked to stop; StopReason.NONE if it is not."""
        if self._file.exists():
            return StopReason.STOPPED
        if self._signal or self._is_past_deadline():
            return StopReason.INTERRUPTED
        return StopReason.NONE

    def describe(self) -> str:
        """Return what asked this rank to stop, as text for users; "" if nothing did."""
        if self._file.exists():
            return "a stop file"
        if self._signal:
            return self._signal
        return "the job's time was nearly up" if self._is_past_deadline() else ""

    def _is_past_deadline(self) -> bool:
        return self.deadline is not None and time.time() >= self.deadline
