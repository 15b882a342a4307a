"""The objects that the modules of training/ share: `Run`, `Progress` and `StepResult`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from data_prep.shards import Manifest
from finetune.config.train import TrainConfig
from finetune.data.packs import PackedData
from finetune.distributed import World
from finetune.runs.folder import RunFolder
from finetune.runs.state import StopReason
from finetune.runs.stop import StopFlag
from finetune.runs.summary import HeldOut
from finetune.tracking.spool import Spool
from finetune.training import throughput
from finetune.training.checkpoint import Checkpoints
from finetune.training.engine import Engine
from finetune.training.guards import StepCheck
from finetune.training.schedule import Schedule
from finetune.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """The parts of a run on one rank, built by setup.py.

    Attributes:
        corpus: manifest of the corpus.
        initial_adapter: trainable tensors of an adapter at set-up, complete on rank 0 and meta
            tensors elsewhere; None in full fine-tuning.
        stop_flag: set when this rank is asked to stop.
        raise_if_stopping: raises StopTraining on all ranks if one of them was asked to stop. It is
            a collective, so all ranks must call it at the same point.
        flops_per_token: model FLOPs per token; None if they are unknown for this model.
        skipped_batches: indices of the batches that rewinds skip.
    """

    config: TrainConfig
    folder: RunFolder
    world: World
    engine: Engine
    data: PackedData
    validation: PackedData
    corpus: Manifest
    initial_adapter: dict[str, torch.Tensor] | None
    checkpoints: Checkpoints
    spool: Spool
    stop_flag: StopFlag
    raise_if_stopping: Callable[[], None]
    watchdog: Watchdog
    clock: throughput.Clock
    peak: throughput.Peak
    flops_per_token: float | None
    schedule: Schedule
    skipped_batches: list[int]

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps of the run."""
        return self.schedule.num_steps

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the corpus' tokenizer."""
        return self.corpus.tokenizer.vocab_size

    def warn(self, message: str) -> None:
        """Log a warning about the run as a whole, on rank 0 only."""
        if self.world.is_main:
            logger.warning(message)

    def batch_index(self, step: int) -> int:
        """Return the index of the batch that `step` trains on.

        Batches that rewinds skip are not counted, so no step trains on one of them.
        """
        index = step
        for skipped in sorted(self.skipped_batches):
            index += skipped <= index
        return index


@dataclass(frozen=True)
class StepResult:
    """The measurements of one optimizer step, over all ranks.

    Attributes:
        loss: mean over the supervised tokens of the global batch, in nats.
        targets: number of supervised tokens.
        tokens: number of tokens that are not padding.
        checksum: checksum of the step's data; equal data have equal checksums.
        grad_norm: gradient norm before clipping.
        skipped: True if DeepSpeed skipped the update because gradients contain NaN or Inf.
        stop_reason: the highest StopReason of all ranks.
        seconds: duration on the slowest rank.
        data_seconds: longest time that any rank waited for data.
        peak_memory: largest peak memory of all ranks, in bytes.
    """

    loss: float
    targets: int
    tokens: int
    checksum: int
    grad_norm: float
    skipped: bool
    stop_reason: StopReason
    seconds: float
    data_seconds: float
    peak_memory: int


@dataclass
class Progress:
    """The progress of a run, counted over all of its attempts.

    Attributes:
        step: number of optimizer steps done.
        step_check: detector of bad steps; holds the losses of the last steps.
        stop_reason: why training stops before the last step; NONE while it continues.
        tokens: number of tokens trained on, without padding.
        targets: number of supervised tokens.
        seconds: total duration of the optimizer steps.
        rank_seconds: total duration of the steps, each multiplied by its number of ranks.
        num_steps: total number of steps planned when the loaded checkpoint was saved; 0 if unknown.
        held_out: evaluation of the weights after `step`; None if they were not evaluated.
    """

    step: int
    step_check: StepCheck
    stop_reason: StopReason = StopReason.NONE
    tokens: int = 0
    targets: int = 0
    seconds: float = 0.0
    rank_seconds: float = 0.0
    num_steps: int = 0
    held_out: HeldOut | None = None

    def add(self, result: StepResult, num_ranks: int) -> None:
        """Add the result of a step that `num_ranks` ranks trained."""
        self.step += 1
        self.tokens += result.tokens
        self.targets += result.targets
        self.seconds += result.seconds
        self.rank_seconds += result.seconds * num_ranks
        self.stop_reason = result.stop_reason
        self.held_out = None
