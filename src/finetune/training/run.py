"""`Run` and `Progress`: what a run is made of in a rank, and how far it is; `StepResult`: one optimizer step
over all ranks. The other modules of training/ work on them."""

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
    """Everything a run is made of.

    Attributes:
        at_start: an adapter's trainable tensors before the first step, on rank 0; None in full fine-tuning.
        stop_point: called on all ranks wherever all of them can stop together; raises StopTraining if one was
            asked to.
        flops_per_token: model FLOPs of a token; None where no formula holds.
        skipped: batches that are left out after a rewind.
    """

    config: TrainConfig
    folder: RunFolder
    world: World
    engine: Engine
    data: PackedData
    validation: PackedData
    corpus: Manifest
    at_start: dict[str, torch.Tensor] | None
    checkpoints: Checkpoints
    spool: Spool
    stop: StopFlag
    stop_point: Callable[[], None]
    watchdog: Watchdog
    clock: throughput.Clock
    peak: throughput.Peak
    flops_per_token: float | None
    schedule: Schedule
    skipped: list[int]

    @property
    def num_steps(self) -> int:
        """Optimizer steps that the run is to take."""
        return self.schedule.num_steps

    @property
    def vocab_size(self) -> int:
        """Tokens of the corpus' tokenizer."""
        return self.corpus.tokenizer.vocab_size

    def warn(self, message: str) -> None:
        """Log a warning that concerns the run as a whole, once."""
        if self.world.is_main:
            logger.warning(message)

    def batch_of(self, step: int) -> int:
        """Return the batch that step `step` trains on: the batches in their order, without those skipped."""
        batch = step
        for skipped in sorted(self.skipped):
            batch += skipped <= batch
        return batch


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, over all ranks.

    Attributes:
        loss: mean over the supervised tokens of the global batch, nats.
        targets, tokens: supervised tokens; tokens that are not padding.
        checksum: of the step's data: equal data, equal checksum.
        grad_norm: before clipping.
        skipped: DeepSpeed left the weights as they were.
        stop: the weightiest reason that a rank was given.
        seconds, data_seconds: of the slowest rank; of them, waiting for data.
        peak_memory: bytes, of the rank with the largest.
    """

    loss: float
    targets: int
    tokens: int
    checksum: int
    grad_norm: float
    skipped: bool
    stop: StopReason
    seconds: float
    data_seconds: float
    peak_memory: int


@dataclass
class Progress:
    """How far a run is, over all of its attempts.

    Attributes:
        step: optimizer steps done.
        check: holds the last losses.
        stop: why the loop ended before the last step.
        tokens, targets: trained on so far; tokens that are not padding, and those of them that are targets.
        seconds: of training steps alone.
        rank_seconds: the same, times ranks.
        num_steps: steps that the run was to take when its checkpoint was saved; 0: unknown.
        held_out: evaluation of the weights after `step`, if there was one.
    """

    step: int
    check: StepCheck
    stop: StopReason = StopReason.NONE
    tokens: int = 0
    targets: int = 0
    seconds: float = 0.0
    rank_seconds: float = 0.0
    num_steps: int = 0
    held_out: HeldOut | None = None
