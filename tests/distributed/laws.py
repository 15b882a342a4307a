"""Trainings whose results must be equal, and functions that compare the results.

Every case trains 24 steps over more than one epoch. Documents have 3 to 512 tokens and packs have
128, so some documents are split. All cases use gradient accumulation, a warm-up and a cosine
schedule, weight decay, and clipping that takes effect. The ranks have unequal numbers of targets.
All trainings use fp32 and no dropout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from finetune.config import train as configuration
from finetune.config.train import ClusterConfig, DataConfig, ModelConfig, TrainConfig, conf_dir
from finetune.runs.folder import RunFolder
from tests.distributed.worker import Case
from tests.models import LLAMA, LORA

STEPS = 24
LONG = 42  # steps of runs that are killed and resumed
# Partitions of different sizes sum in different orders in fp32. On x86-64, losses differed by up to
# 2e-8 and weights by up to 9e-7.
LOSS_TOLERANCE = 2e-6
WEIGHT_TOLERANCE = 2e-5

# the threshold is 0 because by default ZeRO-3 does not partition parameters as small as these
ZERO: list[dict[str, Any]] = [
    {"stage": 0},
    {"stage": 1},
    {"stage": 2},
    {"stage": 3, "stage3_param_persistence_threshold": 0},
]
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": LORA,
    "dora": {**LORA, "use_dora": True},
    "qlora": LORA,
}


@dataclass(frozen=True)
class Training:
    """A training method (a key of ADAPTERS) and a ZeRO stage."""

    method: str
    stage: int

    @property
    def id(self) -> str:
        return f"{self.method}-zero{self.stage}"

    def config(self, corpus: Path, **changes: Any) -> TrainConfig:
        """Return the config of this training."""
        settings: dict[str, Any] = {"zero": ZERO[self.stage], "adapter": ADAPTERS[self.method]}
        return law_config(corpus, quantized=self.method == "qlora", **{**settings, **changes})


# bitsandbytes' packed numbers cannot be partitioned, so QLoRA has no stage 3
MATRIX = [Training(method, stage) for method in ADAPTERS for stage in range(3 if method == "qlora" else 4)]


def law_config(corpus: Path, quantized: bool = False, **changes: Any) -> TrainConfig:
    """Return the config that all trainings share. It is for two ranks.

    Args:
        quantized: use the base in the folder `wide`, quantized to 4 bits (NF4).
        changes: settings that replace those of the shared config.
    """
    settings: dict[str, Any] = {
        "data": DataConfig(corpus=str(corpus), sequence_length=128),
        "model": ModelConfig(from_scratch=LLAMA),
        "zero": ZERO[2],
        "cluster": ClusterConfig(ranks_per_node=2),
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "max_steps": STEPS,
        "lr": 3e-3,
        "warmup_ratio": 0.2,
        "weight_decay": 0.1,
        "max_grad_norm": 0.2,
        "seed": 3,
        "checkpoint_every": 5,
        "check_first_loss": False,
    }
    if changes.get("adapter"):  # needs a base on disk, which the fixture writes beside the corpus
        settings["model"] = ModelConfig(path=str(corpus.parent / "base"))
    if quantized:
        settings["model"] = ModelConfig(path=str(corpus.parent / "wide"), quantization="nf4")
    return TrainConfig(**{**settings, **changes})


def zero_file(name: str) -> dict[str, Any]:
    """Return the settings of conf/zero/<name>.yaml."""
    settings = yaml.safe_load((conf_dir() / f"zero/{name}.yaml").read_text())
    assert isinstance(settings, dict)
    return settings


def make_run(
    folder: Path,
    name: str,
    config: TrainConfig,
    fault: str | None = None,
    refused: bool = False,
) -> Case:
    """Make the run folder `runs/<name>`; return the case that trains it.

    Args:
        folder: folder that contains `runs`.
        fault: name of a fault to plant; None for no fault.
        refused: True if training should raise a UserError.
    """
    run = RunFolder(folder / "runs" / name)
    run.path.mkdir(parents=True)
    configuration.save(config, run.config_file)
    return Case(str(run.path), fault, refused)


def runs_by_name(folder: Path) -> dict[str, RunFolder]:
    """Return by name the runs that `make_run` made in a folder."""
    return {path.name: RunFolder(path) for path in (folder / "runs").iterdir()}


def losses(run: RunFolder) -> torch.Tensor:
    return torch.tensor([value["train/loss"] for value in steps(run)], dtype=torch.float64)


def checksums(run: RunFolder) -> list[int]:
    return [value["data/checksum"] for value in steps(run)]


def steps(run: RunFolder) -> list[dict[str, Any]]:
    """Return the metrics of each step; the later ones if a step was logged twice."""
    by_step = {record["step"]: record["values"] for record in spool(run) if "train/loss" in record["values"]}
    return [by_step[step] for step in sorted(by_step)]


def spool(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    """Return the tensors of the run's result."""
    folder = run.model if run.model.is_dir() else run.adapter
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def loss_distance(run: RunFolder, other: RunFolder) -> float:
    """Compare two runs step by step; return the largest difference of the loss."""
    return float((losses(run) - losses(other)).abs().max())


def weight_distance(run: RunFolder, other: RunFolder) -> float:
    """Compare the results of two runs; return the largest difference of a weight."""
    a, b = weights(run), weights(other)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def assert_same(
    run: RunFolder,
    other: RunFolder,
    num_steps: int = STEPS,
    tolerance: float = WEIGHT_TOLERANCE,
) -> None:
    """Assert that two runs trained on the same documents, with equal losses and weights."""
    assert len(steps(run)) == len(steps(other)) == num_steps
    assert checksums(run) == checksums(other), "a step was trained on other documents"
    assert loss_distance(run, other) < LOSS_TOLERANCE
    assert weight_distance(run, other) < tolerance
