"""The learning rate's shape."""

from __future__ import annotations

from itertools import pairwise

import pytest

from finetune.schedule import learning_rate

SETTINGS = {"num_steps": 100, "peak": 2.0, "warmup_ratio": 0.1, "min_lr_ratio": 0.05}


def test_warms_up_to_the_peak_and_falls_to_the_minimum() -> None:
    rates = [learning_rate(step, **SETTINGS) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[99] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[54] + rates[55] == pytest.approx(2.0 + 0.1, abs=0.02)  # the half cosine is symmetric about its middle


@pytest.mark.parametrize("num_steps", [1, 2])
def test_very_short_runs_have_a_rate(num_steps: int) -> None:
    for step in range(num_steps):
        assert 0 < learning_rate(step, **{**SETTINGS, "num_steps": num_steps}) <= 2.0
