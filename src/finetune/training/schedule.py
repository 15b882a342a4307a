"""The learning rate as a pure function of the step: there is no schedule state to save, and none to lose. No
torch in here: a submission computes it too."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from finetune.config.train import TrainConfig

LEAP = 0.05  # share by which the learning rate may change at a resume without a warning


@dataclass(frozen=True)
class Schedule:
    """The learning rates of a run.

    Linear warm-up to `lr` over `warmup_ratio` of the steps, then what `kind` says, down to `lr ×
    min_lr_ratio`.
    constant: stays at the peak. linear: a straight line down. cosine: half a cosine (Loshchilov & Hutter
        2017, SGDR, eq. 5,
    one period). wsd: stable at the peak, then a straight line down over the last `decay_ratio` of the steps
    (warm-up, stable,
    decay: Hu et al. 2024, MiniCPM, eq. 1, with linear decay as Hägele et al. 2024 recommend among others).

    Attributes:
        kind: constant, linear, cosine or wsd.
        lr: the peak.
        num_steps: optimizer steps of the run.
        warmup_ratio, decay_ratio: shares of the steps.
        min_lr_ratio: share of the peak.
    """

    kind: str
    lr: float
    num_steps: int
    warmup_ratio: float
    decay_ratio: float
    min_lr_ratio: float

    @classmethod
    def of(cls, config: TrainConfig, num_packs: int) -> Schedule:
        """Return the schedule of a run with this many packs an epoch.

        It takes max_steps steps, or those that cover num_epochs, the last filled up from the next epoch.
        """
        epochs = -(-round(num_packs * config.num_epochs) // config.global_batch_size)
        return cls(
            kind=config.schedule,
            lr=config.lr,
            num_steps=config.max_steps or max(1, epochs),
            warmup_ratio=config.warmup_ratio,
            decay_ratio=config.decay_ratio,
            min_lr_ratio=config.min_lr_ratio,
        )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: 0-based optimizer step, 0 <= step < num_steps. The first already moves: it uses 1/warmup of
                the peak.
        """
        warmup = math.ceil(self.num_steps * self.warmup_ratio)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        first = warmup
        if self.kind == "wsd":
            first = max(warmup, self.num_steps - math.ceil(self.num_steps * self.decay_ratio))
        progress = max(0, step - first) / max(1, self.num_steps - 1 - first)
        left = {
            "constant": 1.0,
            "linear": 1 - progress,
            "wsd": 1 - progress,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        }[self.kind]
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * left)


def describe_leap(step: int, old_num_steps: int, schedule: Schedule) -> str | None:
    """Describe how the learning rate leaps where a run of `old_num_steps` is resumed after `step` steps with
    a schedule.

    Returns:
        None if it stays within a twentieth of what it was.
    """
    if not 0 < step < schedule.num_steps or old_num_steps == schedule.num_steps:
        return None
    old = replace(schedule, num_steps=old_num_steps)
    before = old.learning_rate(min(step, old_num_steps) - 1)
    planned = old.learning_rate(min(step, old_num_steps - 1))
    after = schedule.learning_rate(step)
    if abs(after - planned) <= LEAP * max(after, planned):
        return None
    return (
        f"the learning rate leaps from {before:.3g} at step {step} of {old_num_steps} to {after:.3g} at step {step + 1} of "
        f"{schedule.num_steps}: schedule={schedule.kind} is stretched over the new number of steps; to go on at a steady rate, "
        f"start a new run from this one with schedule=constant"
    )
