"""The learning rate as a pure function of the step, so that a checkpoint needs no schedule state.

This module does not import torch, because `finetune train` uses it before a job starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from finetune.config.train import TrainConfig

# Largest relative change of the learning rate at a resume that causes no warning.
MAX_JUMP = 0.05


@dataclass(frozen=True)
class Schedule:
    """The learning rates of a run: a linear warm-up to `lr`, then a decay to `lr × min_lr_ratio`.

    `kind` is the shape of the decay:
        constant: no decay; the learning rate stays at `lr`.
        linear: a straight line.
        cosine: half a cosine (Loshchilov & Hutter 2017, SGDR, eq. 5, without restarts).
        wsd: warm-up, stable, decay (Hu et al. 2024, MiniCPM, eq. 1). The learning rate stays at
            `lr` and falls in a straight line over the last `decay_ratio` of the steps. Hägele et
            al. 2024 recommend linear decay, among others.

    Attributes:
        kind: constant, linear, cosine or wsd.
        lr: the peak learning rate.
        num_steps: number of optimizer steps of the run.
        warmup_ratio: share of the steps in the warm-up.
        decay_ratio: share of the steps in the decay; used by wsd only.
        min_lr_ratio: final learning rate as a share of the peak.
    """

    kind: str
    lr: float
    num_steps: int
    warmup_ratio: float
    decay_ratio: float
    min_lr_ratio: float

    @classmethod
    def of(cls, config: TrainConfig, num_packs: int) -> Schedule:
        """Return the schedule of a run.

        If max_steps is not set, the run takes enough steps for num_epochs. If the last batch is not
        full, it is completed with packs of the next epoch.

        Args:
            num_packs: number of packs in an epoch.
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

        The warm-up does not start at a learning rate of 0, so that step 0 changes the weights.

        Args:
            step: optimizer step, counted from 0 and below num_steps.
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
    """Describe the jump of the learning rate if a run resumes with another total number of steps.

    Args:
        step: number of steps done.
        old_num_steps: total number of steps planned before the resume.
        schedule: the schedule after the resume.

    Returns:
        A warning; None if the learning rate changes by at most MAX_JUMP.
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
