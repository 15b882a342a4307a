"""Planted faults by name. Each breaks the code under test, and the test must detect it."""

from __future__ import annotations

import os
import pkgutil
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

# Import paths of the functions that faults replace, in the modules that call the functions.
TRAIN_STEP = "finetune.training.loop.train_step"
NORMALISE_LOSS = "finetune.training.loop.normalise_loss"
LEARNING_RATE = "finetune.training.schedule.Schedule.learning_rate"
EVALUATE_IF_DUE = "finetune.training.loop.evaluate_if_due"
BUILD_MODEL = "finetune.models.build.build"
LOAD_MODEL = "finetune.models.build.load"
LOAD_PARTITIONED = "finetune.models.load._load_partitioned"
MICRO_BATCH = "finetune.data.packs.PackedData._micro_batch"
EVALUATION_BATCHES = "finetune.data.packs.PackedData.iter_epoch"
ENGINE_STEP = "finetune.training.engine.Engine.step"
SAVE_CHECKPOINT = "finetune.training.checkpoint.Checkpoints.save"
WATCHDOG_GRACE = "finetune.training.watchdog.Watchdog.GRACE"

# Index of the poisoned batch. It is late enough for the mean of losses that detects a spike.
POISONED = 18
# Name of the parameter that is damaged.
DAMAGED = "model.layers.1.mlp.up_proj.weight"


@dataclass
class Call:
    """A call of the function that a fault replaces.

    Args:
        original: the function without the fault.
        number: number of calls since the fault was planted, including this one.
        memory: values that the fault keeps from call to call.
    """

    original: Callable[..., Any]
    number: int
    memory: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """A replacement for a function of finetune.

    Args:
        breaks: description of the fault.
        target: import path of the function that is replaced.
        broken: the replacement, which is called with a Call and the function's arguments.
    """

    name: str
    breaks: str
    target: str
    broken: Callable[..., Any] = field(repr=False)

    def plant(self) -> AbstractContextManager[Any]:
        """Replace the function until the context ends."""
        original = pkgutil.resolve_name(self.target)
        memory: dict[str, Any] = {}
        num_calls = 0

        def replacement(*args: Any, **kwargs: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            return self.broken(Call(original, num_calls, memory), *args, **kwargs)

        return mock.patch(self.target, replacement)


def mean_of_means(call: Call, run: Any, data: Any, lr: float) -> Any:
    micro_batches = list(data.micro_batches)
    data.micro_batches = iter(micro_batches)
    counts = iter([batch.num_targets for batch in micro_batches])
    steps = run.config.gradient_accumulation_steps

    def normalise_loss(loss_sum: Any, _global_tokens: int, _world_size: int) -> Any:
        return loss_sum / max(1, next(counts)) / steps

    with mock.patch(NORMALISE_LOSS, normalise_loss):
        return call.original(run, data, lr)


def number_positions_through(call: Call, data: Any, packs: Any) -> Any:
    import torch

    batch = call.original(data, packs)
    batch.position_ids = torch.arange(batch.position_ids.shape[1]).expand_as(batch.position_ids).contiguous()
    return batch


def start_over(call: Call, schedule: Any, step: int) -> float:
    first_step = call.memory.setdefault("first_step", step)
    learning_rate: float = call.original(schedule, step - first_step)
    return learning_rate


def die_in_second_save(call: Call, checkpoints: Any, engine: Any, step: int, *rest: Any) -> float:
    if call.number == 2:
        engine.save(checkpoints.folder / f".step-{step:08d}.tmp" / "engine")
        os.kill(os.getpid(), signal.SIGKILL)
    seconds: float = call.original(checkpoints, engine, step, *rest)
    return seconds


def die_in_step(call: Call, run: Any, data: Any, lr: float) -> Any:
    if call.number == 17 + zlib.crc32(str(run.folder.path).encode()) % 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return call.original(run, data, lr)


def poison(call: Call, run: Any, data: Any, lr: float, *, factor: float) -> Any:
    poisoned = run.data.load_batch(POISONED, run.config.global_batch_size, run.config.micro_batch_size)
    if data.segments.tobytes() != poisoned.segments.tobytes():
        return call.original(run, data, lr)
    normalise_loss = pkgutil.resolve_name(NORMALISE_LOSS)
    with mock.patch(NORMALISE_LOSS, lambda *arguments: normalise_loss(*arguments) * factor):
        result = call.original(run, data, lr)
    return replace(result, loss=result.loss * factor)


def hang(call: Call, run: Any, data: Any, lr: float) -> Any:
    with mock.patch(WATCHDOG_GRACE, 2.0):
        if call.number == 6 and run.world.rank == 1:
            time.sleep(600)
        return call.original(run, data, lr)


def send_signal(call: Call, *args: Any, number: int, rank: int, at_call: int, **kwargs: Any) -> Any:
    if call.number == at_call and int(os.environ["RANK"]) == rank:
        os.kill(os.getpid(), number)
    return call.original(*args, **kwargs)


def terminate_in_second_evaluation(call: Call, data: Any, micro_batch_size: int) -> Iterator[Any]:
    for number, batch in enumerate(call.original(data, micro_batch_size)):
        if call.number == 2 and number == 1 and data.world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch


def load_nothing_partitioned(call: Call, base: Any, dtype: Any, partitioner: Any) -> None:
    return None


def leave_random(call: Call, *args: Any, **kwargs: Any) -> Any:
    loaded = call.original(*args, **kwargs)
    parameter = dict(loaded.named_parameters())[DAMAGED]
    getattr(parameter, "ds_tensor", parameter).data.normal_(std=0.02)
    return loaded


def shift_last_slice(call: Call, *args: Any, **kwargs: Any) -> Any:
    loaded = call.original(*args, **kwargs)
    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        own = dict(loaded.named_parameters())[DAMAGED].ds_tensor
        own.data.copy_(own.data.roll(1))
    return loaded


TABLE = [
    Fault(
        "mean_of_means",
        "the loss is normalised by each micro-batch's own tokens instead of the global step's",
        TRAIN_STEP,
        mean_of_means,
    ),
    Fault(
        "positions_not_reset",
        "positions do not start again at 0 in packed documents, which then attend to each other",
        MICRO_BATCH,
        number_positions_through,
    ),
    Fault("schedule_starts_over", "a resumed run starts its schedule again", LEARNING_RATE, start_over),
    Fault(
        "killed_inside_checkpoint",
        "every rank gets SIGKILL during its second save: files are written, but not published",
        SAVE_CHECKPOINT,
        die_in_second_save,
    ),
    Fault(
        "killed_at_step",
        "every rank gets SIGKILL in a step from 17 to 24, which depends on the folder's path",
        TRAIN_STEP,
        die_in_step,
    ),
    Fault(
        "nan",
        "loss and gradients of one batch are NaN, and then all weights",
        TRAIN_STEP,
        partial(poison, factor=float("nan")),
    ),
    Fault("spike", "the loss of one batch is three times as high", TRAIN_STEP, partial(poison, factor=3.0)),
    Fault("rank_1_hangs", "rank 1 sleeps in its sixth step; rank 0 waits in a collective", TRAIN_STEP, hang),
    Fault(
        "term_in_evaluation",
        "rank 1 gets SIGTERM during the evaluation after step 4, the second of the run",
        EVALUATION_BATCHES,
        terminate_in_second_evaluation,
    ),
    Fault(
        "term_in_last_evaluation",
        "rank 1 gets SIGTERM before the evaluation after the last step",
        EVALUATE_IF_DUE,
        partial(send_signal, number=signal.SIGTERM, rank=1, at_call=24),
    ),
    Fault(
        "usr2_while_loading",
        "rank 1 gets SIGUSR2 while it loads the base",
        BUILD_MODEL,
        partial(send_signal, number=signal.SIGUSR2, rank=1, at_call=1),
    ),
    Fault(
        "usr2_in_step",
        "rank 1 gets SIGUSR2 in its 13th step",
        ENGINE_STEP,
        partial(send_signal, number=signal.SIGUSR2, rank=1, at_call=13),
    ),
    Fault(
        "usr2_on_only_rank",
        "the only rank gets SIGUSR2 in its 17th step",
        ENGINE_STEP,
        partial(send_signal, number=signal.SIGUSR2, rank=0, at_call=17),
    ),
    Fault(
        "loaded_complete",
        "at ZeRO 3 every rank reads the complete base first, instead of its slices",
        LOAD_PARTITIONED,
        load_nothing_partitioned,
    ),
    Fault(
        "weight_left_random",
        "one parameter keeps random values, the same on all ranks",
        LOAD_MODEL,
        leave_random,
    ),
    Fault(
        "slice_at_wrong_offset",
        "the last rank has its slice of a parameter shifted by one number",
        LOAD_MODEL,
        shift_last_slice,
    ),
]
FAULTS = {fault.name: fault for fault in TABLE}
