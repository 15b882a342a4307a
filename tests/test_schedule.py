"""Learning rate schedules, and the warning about a jump of the learning rate at a resume."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from finetune.config.train import DataConfig, ModelConfig, TrainConfig
from finetune.training.schedule import Schedule, describe_lr_jump


def rates(schedule: str, num_steps: int = 100, **changes: float) -> list[float]:
    config = TrainConfig(
        data=DataConfig(corpus="none"),
        model=ModelConfig(path="none"),
        schedule=schedule,
        **{"lr": 2.0, "warmup_ratio": 0.1, "min_lr_ratio": 0.05, **changes},
    )
    schedule_of_run = Schedule.of(replace(config, max_steps=num_steps), num_packs=1)
    return [schedule_of_run.learning_rate(step) for step in range(num_steps)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_every_schedule_warms_up_to_the_peak_and_ends_at_the_minimum(schedule: str) -> None:
    out = rates(schedule)
    assert out[0] == pytest.approx(0.2)
    assert max(out) == out[9] == out[10] == 2.0
    assert out[99] == pytest.approx(2.0 if schedule == "constant" else 0.1)


def test_cosine_falls_symmetrically_about_its_middle() -> None:
    out = rates("cosine")
    assert all(a > b for a, b in pairwise(out[10:]))
    assert out[54] + out[55] == pytest.approx(2.0 + 0.1, abs=0.02)


def test_linear_falls_by_the_same_each_step() -> None:
    falls = [a - b for a, b in pairwise(rates("linear")[10:])]
    assert falls == pytest.approx([falls[0]] * len(falls))


def test_wsd_is_stable_then_falls_over_its_decay() -> None:
    out = rates("wsd", decay_ratio=0.3)
    assert out[10:71] == [2.0] * 61
    assert all(a > b for a, b in pairwise(out[70:]))
    assert rates("wsd", decay_ratio=0.0)[10:] == [2.0] * 90


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("num_steps", [1, 2])
def test_very_short_runs_have_a_learning_rate(schedule: str, num_steps: int) -> None:
    assert all(0 < rate <= 2.0 for rate in rates(schedule, num_steps))


def describe(schedule: str, step: int, old: int, new: int) -> str:
    config = TrainConfig(
        data=DataConfig(corpus="c"), model=ModelConfig(path="m"), schedule=schedule, warmup_ratio=0.0, lr=1.0
    )
    return describe_lr_jump(step, old, Schedule.of(replace(config, max_steps=new), num_packs=1)) or ""


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_a_jump_of_the_learning_rate_at_a_resume_is_described_with_both_rates(schedule: str) -> None:
    assert describe(schedule, 100, 100, 400).startswith(
        "the learning rate jumps from 0.1 at step 100 of 100 to "
    )
    assert describe(schedule, 100, 100, 100) == describe(schedule, 0, 100, 400) == ""


def test_a_resume_without_a_jump_of_the_learning_rate_has_no_warning() -> None:
    assert describe("constant", 100, 100, 400) == describe("wsd", 50, 100, 400) == ""
    assert describe("cosine", 50, 100, 101) == ""
