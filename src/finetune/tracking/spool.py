"""The spool, metrics.jsonl: rank 0 appends a JSON line with the metrics of each step.

Any process can read the run's progress from this file. Standard library only: the batch script's
helper reads the spool outside of a container (job/batch_script.py).
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from finetune.runs import layout
from finetune.runs.records import Metrics, Started
from finetune.tracking import names

logger = logging.getLogger(__name__)


class Spool:
    """Writer of a run's metrics.

    If the file cannot be written, as on a full disk, metrics are lost and the run continues.

    Args:
        enabled: True on rank 0; on other ranks, nothing is written.
    """

    def __init__(self, path: Path, enabled: bool) -> None:
        self._file = None
        if enabled:
            is_incomplete = layout.has_incomplete_last_line(path)
            self._file = path.open("a", encoding="utf-8")
            if is_incomplete:  # a kill interrupted a write; the next record needs a line of its own
                self._file.write("\n")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the metrics of a step.

        Args:
            step: number of completed optimizer steps; 0 is before the first.
            values: values by metric name.
        """
        if self._file is None:
            return
        line = json.dumps(Metrics(step, int(time.time() * 1000), values).to_json())
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as fault:
            logger.warning("metrics of step %d are lost: %s", step, fault)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as fault:
                logger.warning("the last metrics are lost: %s", fault)


@dataclass(frozen=True)
class LastStep:
    """The newest training step of a run.

    Attributes:
        step: number of completed optimizer steps.
        num_steps: total number of steps of the run.
        seconds_per_step: mean over the last steps since the start of the job; None with fewer than
            two steps.
    """

    step: int
    loss: float
    tokens_per_second: float
    num_steps: int
    seconds_per_step: float | None


def read_training_steps(run: Path) -> list[Metrics]:
    """Return the metrics of the newest training steps of the run in a folder, oldest first."""
    lines = layout.read_json_lines(run / layout.METRICS, tail=layout.TAIL_BYTES)
    return [Metrics.from_json(line) for line in lines if names.TRAIN_LOSS in line["values"]]


def last_step(run: Path) -> LastStep | None:
    """Return the newest training step of the run in a folder; None before the first."""
    steps = read_training_steps(run)
    if not steps:
        return None
    last = steps[-1]
    started = Started.read(run / layout.STARTED) or Started()
    first = next((step for step in steps if step.time_ms >= 1000 * started.time), last)
    seconds = None
    if last.step > first.step:
        seconds = (last.time_ms - first.time_ms) / 1000 / (last.step - first.step)
    return LastStep(
        step=last.step,
        loss=last.values[names.TRAIN_LOSS],
        tokens_per_second=last.values.get(names.TOKENS_PER_SECOND, 0.0),
        num_steps=int(last.values.get(names.NUM_STEPS, 0)),
        seconds_per_step=seconds,
    )


def steps_done(run: Path) -> int:
    """Return the number of optimizer steps that a run has logged; 0 before the first."""
    steps = read_training_steps(run)
    return steps[-1].step if steps else 0
