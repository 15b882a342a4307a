"""The learning rate as a pure function of the step: there is no schedule state to save, and none to lose."""

from __future__ import annotations

import math


def learning_rate(step: int, *, num_steps: int, peak: float, warmup_ratio: float, min_lr_ratio: float) -> float:
    """Linear warm-up, then a half cosine (Loshchilov & Hutter 2017, SGDR, eq. 5, one period).

    Args:
        step: 0-based optimizer step, 0 <= step < num_steps.
        warmup_ratio: share of num_steps that warms up; the first step already moves (step 0 uses 1/warmup of the peak).
        min_lr_ratio: the last step's rate as a share of `peak`.
    """
    warmup = math.ceil(num_steps * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - 1 - warmup)
    return peak * (min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
