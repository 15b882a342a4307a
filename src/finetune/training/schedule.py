"""The learning rate as a pure function of the step: there is no schedule state to save, and none to lose."""

from __future__ import annotations

import math

from finetune.config.train import TrainConfig

LEAP = 0.05  # share by which the learning rate may change at a resume without a warning


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """Linear warm-up to `lr` over `warmup_ratio` of the steps, then what `schedule` says, down to `lr × min_lr_ratio`.

    constant: stays at the peak. linear: a straight line down. cosine: half a cosine (Loshchilov & Hutter 2017, SGDR, eq. 5,
    one period). wsd: stable at the peak, then a straight line down over the last `decay_ratio` of the steps (warm-up, stable,
    decay: Hu et al. 2024, MiniCPM, eq. 1, with linear decay as Hägele et al. 2024 recommend among others).

    Args:
        step: 0-based optimizer step, 0 <= step < num_steps. The first already moves: it uses 1/warmup of the peak.
    """
    warmup = math.ceil(num_steps * config.warmup_ratio)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    first = warmup if config.schedule != "wsd" else max(warmup, num_steps - math.ceil(num_steps * config.decay_ratio))
    progress = max(0, step - first) / max(1, num_steps - 1 - first)
    left = {
        "constant": 1.0,
        "linear": 1 - progress,
        "wsd": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[config.schedule]
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)


def num_steps_of(num_packs: int, config: TrainConfig) -> int:
    """Return the optimizer steps of a run: max_steps, or those that cover num_epochs, the last filled up from the next epoch."""
    return config.max_steps or max(1, -(-round(num_packs * config.num_epochs) // config.global_batch_size))


def describe_leap(step: int, old_num_steps: int, num_steps: int, config: TrainConfig) -> str | None:
    """Describe how the learning rate leaps where a run of `old_num_steps` goes on after `step` steps to `num_steps`.

    Returns:
        None if it stays within a twentieth of what it was.
    """
    if not 0 < step < num_steps or old_num_steps == num_steps:
        return None
    before = learning_rate(min(step, old_num_steps) - 1, old_num_steps, config)
    planned = learning_rate(min(step, old_num_steps - 1), old_num_steps, config)
    after = learning_rate(step, num_steps, config)
    if abs(after - planned) <= LEAP * max(after, planned):
        return None
    return (
        f"the learning rate leaps from {before:.3g} at step {step} of {old_num_steps} to {after:.3g} at step {step + 1} of "
        f"{num_steps}: schedule={config.schedule} is stretched over the new number of steps; to go on at a steady rate, start a "
        f"new run from this one with schedule=constant"
    )
