"""The learning rate as a pure function of the step, so that a checkpoint needs no schedule state.

This module does not import torch: `finetune train` computes learning rates before a job starts too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from finetune.config.train import TrainConfig

# Share by which the learning rate may change at a resume without a warning.
MAX_JUMP = 0.05


@dataclass(frozen=True)
class Schedule:
    """The learning rates of a run: a linear warm-up to `lr`, then a decay to `lr × min_lr_ratio`.

    The decay by `kind`:
        constant: none; the learning rate stays at `lr`.
        linear: a straight line.
        cosine: half a cosine (Loshchilov & Hutter 2017, SGDR, eq. 5, one period).
        wsd: stable at `lr`, then a straight line over the last `decay_ratio` of the steps (warm-up,
            stable, decay: Hu et al. 2024, MiniCPM, eq. 1; linear decay is among those that Hägele
            et al. 2024 recommend).

    Attributes:
        kind: constant, linear, cosine or wsd.
        lr: the peak learning rate.
        num_steps: optimizer steps of the run.
        warmup_ratio: share of the steps that warm up.
        decay_ratio: share of the steps that decay, for wsd.
        min_lr_ratio: the last learning rate as a share of the peak.
    """

    kind: str
    lr: float
    num_steps: int
    warmup_ratio: float
    decay_ratio: float
    min_lr_ratio: float

    @classmethod
    def of(cls, config: TrainConfig, num_packs: int) -> Schedule:
        """Return the schedule of a run on a corpus with `num_packs` packs an epoch.

        Without max_steps, the run takes as many steps as cover num_epochs; the last one is filled
        up from the next epoch.
        """
        packs_of_run = round(num_packs * config.num_epochs)
        steps_of_epochs = math.ceil(packs_of_run / config.global_batch_size)
        return cls(
            kind=config.schedule,
            lr=config.lr,
            num_steps=config.max_steps or max(1, steps_of_epochs),
            warmup_ratio=config.warmup_ratio,
            decay_ratio=config.decay_ratio,
            min_lr_ratio=config.min_lr_ratio,
        )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: optimizer step counted from 0, below num_steps. Step 0 is not lost: it has
                1/warm-up steps of the peak.
        """
        warmup_steps = math.ceil(self.num_steps * self.warmup_ratio)
        if step < warmup_steps:
            return self.lr * (step + 1) / warmup_steps
        decay_start = warmup_steps
        if self.kind == "wsd":
            decay_steps = math.ceil(self.num_steps * self.decay_ratio)
            decay_start = max(warmup_steps, self.num_steps - decay_steps)
        progress = max(0, step - decay_start) / max(1, self.num_steps - 1 - decay_start)
        share = {
            "constant": 1.0,
            "linear": 1 - progress,
            "wsd": 1 - progress,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        }[self.kind]
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * share)


def describe_lr_jump(step: int, old_num_steps: int, schedule: Schedule) -> str | None:
    """Describe the jump of the learning rate when a run resumes with another number of steps.

    Args:
        step: number of steps done.
        old_num_steps: number of steps planned before.
        schedule: the schedule that the run resumes with.

    Returns:
        None if the change is at most MAX_JUMP of the learning rate.
    """
    if not 0 < step < schedule.num_steps or old_num_steps == schedule.num_steps:
        return None
    old = replace(schedule, num_steps=old_num_steps)
    before = old.learning_rate(min(step, old_num_steps) - 1)
    planned = old.learning_rate(min(step, old_num_steps - 1))
    after = schedule.learning_rate(step)
    if abs(after - planned) <= MAX_JUMP * max(after, planned):
        return None
    return (
        f"the learning rate jumps from {before:.3g} at step {step} of {old_num_steps} to "
        f"{after:.3g} at step {step + 1} of {schedule.num_steps}: schedule={schedule.kind} is "
        "stretched over the new number of steps; for a steady rate, start a new run from this one "
        "with schedule=constant"
    )
