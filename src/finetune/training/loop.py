"""The training loop: start reading here.

`train_steps` runs the optimizer steps of a run: it loads the data of a step, trains on it, checks
the result, logs, evaluates and saves checkpoints. `train_step` is one optimizer step over all
ranks: forward, backward, update. `rewind` handles a bad step.
"""

from __future__ import annotations

import logging

import torch

from finetune.data.packs import StepData
from finetune.distributed import World
from finetune.models.checks import GuardError
from finetune.models.loss import normalise_loss
from finetune.runs.state import StopReason
from finetune.tracking import names
from finetune.training import guards, throughput
from finetune.training.periodic import evaluate_if_due, is_checkpoint_due, log_step, save_checkpoint
from finetune.training.run import Progress, Run, StepResult
from finetune.training.setup import load_latest_checkpoint

logger = logging.getLogger(__name__)


def train_steps(run: Run, progress: Progress) -> Progress:
    """Train from `progress.step` to the last step, or until a rank is asked to stop.

    The code numbers steps from 0; metrics and messages number them from 1.

    Returns:
        The progress at the end. After a rewind it is a new object, not the argument.
    """
    config = run.config
    while progress.step < run.num_steps and not progress.stop_reason:
        step = progress.step
        with run.clock.host_phase("data"):
            batch = run.batch_index(step)
            data = run.data.load_batch(batch, config.global_batch_size, config.micro_batch_size)
        guards.check_planned_targets(data.num_targets, step + 1)
        lr = run.schedule.learning_rate(step)

        result = train_step(run, data, lr)

        run.watchdog.beat()
        guards.check_counted_targets(result.targets, data.num_targets, step + 1)
        if step == 0 and config.model.path and config.check_first_loss:
            guards.check_first_loss(result.loss, run.vocab_size, config.model.path)
        fault = progress.step_check.find_fault(result.loss, result.grad_norm, result.skipped)
        if fault:
            progress = rewind(run, step, fault)
            continue
        log_step(run, step + 1, result, lr)
        progress.add(result, run.world.size)
        evaluate_if_due(run, progress)
        if is_checkpoint_due(run, progress):
            save_checkpoint(run, progress, result.seconds)
    if progress.stop_reason:
        cause = run.stop_flag.describe() or "another rank was asked to stop"
        logger.info("stopping after step %d (%s): %s", progress.step, progress.stop_reason.state, cause)
    return progress


def train_step(run: Run, data: StepData, lr: float) -> StepResult:
    """Run the forward and backward passes of this rank's micro-batches, then update the weights.

    One collective at the end combines the measurements and the stop reasons of all ranks, so that
    they all stop after the same step.
    """
    clock = run.clock
    device = run.world.device
    began = clock.now()
    data_seconds_before = clock.seconds["data"]
    run.engine.set_train_mode()
    run.engine.set_learning_rate(lr)
    # The sum stays on the device until the end of the step: reading it makes the host wait for the
    # GPU.
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    targets = 0
    tokens = 0
    checksum = 0

    for batch in clock.time_items("data", data.micro_batches):
        with clock.device_phase("forward"):
            losses = run.engine.packed.losses(batch.to(device))
        with clock.device_phase("backward"):
            run.engine.backward(normalise_loss(losses.total, data.num_targets, run.world.size))
        loss_sum += losses.per_token.sum(dtype=torch.float64)
        targets += batch.num_targets
        tokens += batch.num_tokens
        checksum += batch.checksum
    with clock.device_phase("optimizer"):
        update = run.engine.step()

    sums = {"loss": float(loss_sum), "targets": targets, "tokens": tokens, "checksum": checksum}
    clock.read_events()
    maxima = {
        "stop_reason": run.stop_flag.reason(),
        "data_seconds": clock.seconds["data"] - data_seconds_before,
        "seconds": clock.now() - began,
        "peak_memory": throughput.peak_memory(device),
    }
    combined = _combine_over_ranks(run.world, sums, maxima)
    return StepResult(
        loss=combined["loss"] / max(combined["targets"], 1),
        targets=int(combined["targets"]),
        tokens=int(combined["tokens"]),
        checksum=int(combined["checksum"]),
        grad_norm=update.grad_norm,
        skipped=update.skipped,
        stop_reason=StopReason(int(combined["stop_reason"])),
        seconds=combined["seconds"],
        data_seconds=combined["data_seconds"],
        peak_memory=int(combined["peak_memory"]),
    )


def _combine_over_ranks(world: World, sums: dict[str, float], maxima: dict[str, float]) -> dict[str, float]:
    """Combine values of all ranks by name, with one collective.

    The values are sent as float64, which holds integers below 2^53 exactly. The sum of the packs'
    checksums (CRC-32) stays below this bound for up to two million packs per step.

    Args:
        sums: values of this rank that are added up over the ranks.
        maxima: values of this rank; the largest over the ranks is taken.
    """
    own = torch.tensor([*sums.values(), *maxima.values()], dtype=torch.float64, device=world.device)
    by_rank = world.all_gather(own)
    summed = by_rank[:, : len(sums)].sum(0).tolist()
    maximised = by_rank[:, len(sums) :].amax(0).tolist()
    return dict(zip([*sums, *maxima], [*summed, *maximised], strict=True))


def rewind(run: Run, step: int, fault: str) -> Progress:
    """Load the newest checkpoint, and skip the batch of a bad step from now on.

    Args:
        step: the bad step, counted from 0.
        fault: the reason why the step is bad.

    Returns:
        The progress that the checkpoint restores.

    Raises:
        GuardError: on_bad_step is "stop", or the run was already rewound max_rewinds times.
        UserError: all checkpoints are damaged.
    """
    if run.config.on_bad_step == "stop":
        raise GuardError(
            f"step {step + 1}: {fault}; the newest checkpoint is from an earlier step; lower lr, "
            "inspect the data, or set on_bad_step=rewind"
        )
    if len(run.skipped_batches) >= run.config.max_rewinds:
        raise GuardError(
            f"step {step + 1}: {fault}; the run was already rewound {len(run.skipped_batches)} times; "
            "lower lr, inspect the data, or raise max_rewinds"
        )
    batch = run.batch_index(step)
    run.skipped_batches.append(batch)
    if run.world.is_main:
        # recorded before the checkpoint is loaded, so that a kill in between does not lose it
        run.folder.record_skipped_batches(run.skipped_batches)
    progress, _ = load_latest_checkpoint(run)
    logger.warning(
        "step %d: %s; rewinding to step %d and skipping batch %d", step + 1, fault, progress.step, batch
    )
    run.spool.log(step + 1, {names.REWINDS: len(run.skipped_batches)})
    return progress
