"""The result of a run is the weights with the lowest held-out loss.

Any kept checkpoint can be the base of another run; its name is run:ID@STEP. The ranks are real
processes.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from finetune.config import train as configuration
from finetune.config.train import ClusterConfig, DataConfig, ModelConfig, TrainConfig
from finetune.evaluation.held_out import evaluate_on_corpus
from finetune.models.safetensors_io import WeightFiles
from finetune.runs import base_model as base
from finetune.runs import layout
from finetune.runs.folder import RunFolder
from finetune.runs.summary import StepLoss, Summary
from tests.corpora import write_corpus
from tests.distributed import worker
from tests.distributed.laws import ZERO, make_run, runs_by_name
from tests.distributed.worker import Case
from tests.models import LLAMA

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1500)]

EVERY = 17  # evaluations are due every 17 steps, so also at the interruption by usr2_on_only_rank
STEPS = 51
ONE_RANK = ClusterConfig(ranks_per_node=1)
TWO_RANKS = ClusterConfig(ranks_per_node=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write so few documents that a model overfits: its held-out loss falls and then rises."""
    folder = tmp_path_factory.mktemp("small")
    return write_corpus(folder / "few", num_documents=12, longest=60, seed=2)


def overfitting_config(corpus: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": DataConfig(corpus=str(corpus), sequence_length=64),
        "model": ModelConfig(from_scratch=LLAMA),
        "zero": {"stage": 1},
        "cluster": ONE_RANK,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "max_steps": STEPS,
        "lr": 2e-2,
        "schedule": "constant",
        "evaluate_every": EVERY,
        "checkpoint_every": 10,
        "keep_checkpoints": 1,
        "check_first_loss": False,
    }
    return TrainConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    folder = tmp_path_factory.mktemp("result")

    def make(name: str, fault: str | None = None, **changes: Any) -> Case:
        config = overfitting_config(corpus, runs_dir=str(folder / "runs"), **changes)
        return make_run(folder, name, config, fault=fault)

    interrupted = make("interrupted", "usr2_on_only_rank")
    worker.run(folder / "one", [make("uninterrupted"), interrupted], 1)
    path = interrupted.run.config_file
    configuration.save(dataclasses.replace(configuration.load(path), cluster=TWO_RANKS), path)
    zero3 = make("zero3", zero=ZERO[3], cluster=TWO_RANKS, micro_batch_size=1)
    worker.run(folder / "two", [Case(interrupted.path), zero3], 2)
    return runs_by_name(folder)


def summary_of(run: RunFolder) -> Summary:
    summary = run.summary()
    assert summary is not None
    return summary


def held_out(run: RunFolder) -> dict[int, float]:
    """Return the logged held-out loss by step."""
    losses = {}
    for line in run.metrics.read_text().splitlines():
        record = json.loads(line)
        if "validation/loss" in record["values"]:
            losses[record["step"]] = record["values"]["validation/loss"]
    return losses


def evaluate(run: RunFolder, name: str) -> float:
    """Return the held-out loss of `run:<name>` on the run's corpus."""
    return evaluate_on_corpus(f"run:{name}", run.config().data, str(run.path.parent)).loss


@pytest.mark.parametrize("name", ["uninterrupted", "interrupted", "zero3"])
def test_the_result_is_the_step_with_the_best_held_out_loss(runs: dict[str, RunFolder], name: str) -> None:
    run = runs[name]
    summary = summary_of(run)
    measured = {step: loss for step, loss in held_out(run).items() if step > 0}
    best = min(measured, key=lambda step: measured[step])
    assert summary.result_step == summary.best.step == best
    assert summary.last == StepLoss(step=STEPS, loss=measured[STEPS])
    assert summary.after.loss == pytest.approx(measured[best], abs=1e-5)
    assert evaluate(run, run.id) == pytest.approx(measured[best], abs=1e-4)
    kept = [layout.step_of(path) for path in layout.list_checkpoints(run.checkpoints)]
    assert kept == sorted({best, STEPS}, reverse=True)


def test_the_runs_are_long_enough_to_overfit(runs: dict[str, RunFolder]) -> None:
    """The other tests here need a run that overfits. Such a run warns that its result is poor."""
    summary = summary_of(runs["uninterrupted"])
    assert summary.best.step < STEPS
    assert summary.last.loss > summary.best.loss + 0.2
    assert any("worse than" in message for message in summary.warnings)


def test_an_interruption_changes_neither_the_best_step_nor_its_weights(
    runs: dict[str, RunFolder],
) -> None:
    """The run is interrupted when an evaluation is due, and resumed by two ranks.

    The two ranks must make this evaluation before they train.
    """
    uninterrupted = summary_of(runs["uninterrupted"])
    interrupted = summary_of(runs["interrupted"])
    assert interrupted.result_step == uninterrupted.result_step
    a, b = (dict(WeightFiles(runs[name].model)) for name in ("uninterrupted", "interrupted"))
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 2e-3
    assert interrupted.best.loss == pytest.approx(uninterrupted.best.loss, abs=1e-3)


def test_a_kept_checkpoint_can_be_used_as_a_base_by_its_step(runs: dict[str, RunFolder]) -> None:
    run = runs["zero3"]
    summary = summary_of(run)
    assert evaluate(run, f"{run.id}@{STEPS}") == pytest.approx(summary.last.loss, abs=1e-4)
    assert evaluate(run, f"{run.id}@{summary.result_step}") == pytest.approx(summary.best.loss, abs=1e-4)
    # the best checkpoint is not exported, because it is the result itself
    assert [path.name for path in run.path.glob("exports/*")] == [f"step-{STEPS:08d}"]


def test_a_step_without_a_checkpoint_is_a_user_error(runs: dict[str, RunFolder]) -> None:
    with pytest.raises(ValueError, match=f"no checkpoint of step 3; its checkpoints: steps .*{STEPS}"):
        base.resolve("run:uninterrupted@3", runs["uninterrupted"].path.parent)
