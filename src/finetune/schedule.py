"""The learning rate as a pure function of the step: there is no schedule state to save, and none to lose."""

from __future__ import annotations

import math

from finetune.config import TrainConfig


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
