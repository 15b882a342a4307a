"""The training loop: `train_steps` goes from step to step, `train_step` is forward, backward and update over
all ranks."""

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
from finetune.training.periodic import evaluate_if_due, log_step, save_checkpoint, saves_after
from finetune.training.run import Progress, Run, StepResult
from finetune.training.setup import load_latest_checkpoint

logger = logging.getLogger(__name__)


def train_steps(run: Run, progress: Progress) -> Progress:
    """Train from where `progress` is to the last step, or until a rank is asked to stop; return the progress
    then.

    Steps are numbered from 0; `step + 1` of them are done after one.
    """
    config = run.config
    while (step := progress.step) < run.num_steps and not progress.stop:
        with run.clock.waiting("data"):
            data = run.data.step(run.batch_of(step), config.global_batch_size, config.micro_batch_size)
        guards.check_planned(data.num_targets, step + 1)
        lr = run.schedule.learning_rate(step)
        result = train_step(run, data, lr)
        run.watchdog.beat()
        guards.check_targets(result.targets, data.num_targets, step + 1)
        if step == 0 and config.model.path and config.check_first_loss:
            guards.check_first_loss(result.loss, run.vocab_size, config.model.path)
        if fault := progress.check.fault(result.loss, result.grad_norm, result.skipped):
            progress = rewind(run, step, fault)
            continue
        log_step(run, step + 1, result, lr)
        _count(progress, result, run.world.size)
        evaluate_if_due(run, progress)
        if saves_after(run, progress):
            save_checkpoint(run, progress, result.seconds)
    if progress.stop:
        why = run.stop.describe() or "another rank was asked to"
        logger.info("stopping after step %d (%s): %s", progress.step, progress.stop.state, why)
    return progress


def train_step(run: Run, data: StepData, lr: float) -> StepResult:
    """Forward and backward over this rank's micro-batches, then one update.

    One collective at the end gathers what the ranks measured, and whether any of them was asked to stop: so
        all of them stop
    after the same step.
    """
    clock, device = run.clock, run.world.device
    began = clock.now()
    waited = clock.seconds["data"]
    run.engine.set_train_mode()
    run.engine.set_learning_rate(lr)
    loss_sum = torch.zeros(
        (), dtype=torch.float64, device=device
    )  # read once, at the end: reading makes the GPU's host wait
    targets, tokens, checksum = 0, 0, 0
    for batch in clock.timed("data", data.micro_batches):
        with clock.phase("forward"):
            losses = run.engine.packed.losses(batch.to(device))
        with clock.phase("backward"):
            run.engine.backward(normalise_loss(losses.total, data.num_targets, run.world.size))
        loss_sum += losses.each.sum(dtype=torch.float64)
        targets += batch.num_targets
        tokens += batch.num_tokens
        checksum += batch.checksum
    with clock.phase("optimizer"):
        update = run.engine.step()
    summed = {"loss_sum": float(loss_sum), "targets": targets, "tokens": tokens, "checksum": checksum}
    clock.read_events()
    maximised = {
        "stop": run.stop.reason(),
        "data_seconds": clock.seconds["data"] - waited,
        "seconds": clock.now() - began,
        "peak_memory": throughput.peak_memory(device),
    }
    over_ranks = _reduce(run.world, summed, maximised)
    return StepResult(
        loss=over_ranks["loss_sum"] / max(over_ranks["targets"], 1),
        targets=int(over_ranks["targets"]),
        tokens=int(over_ranks["tokens"]),
        checksum=int(over_ranks["checksum"]),
        grad_norm=update.grad_norm,
        skipped=update.skipped,
        stop=StopReason(int(over_ranks["stop"])),
        seconds=over_ranks["seconds"],
        data_seconds=over_ranks["data_seconds"],
        peak_memory=int(over_ranks["peak_memory"]),
    )


def _reduce(world: World, summed: dict[str, float], maximised: dict[str, float]) -> dict[str, float]:
    """Sum some values over the ranks and take the largest of others, by name, in one collective.

    float64 holds every one of them exactly: a sum of CRCs stays below 2^53 for two million packs a step.
    """
    values = [*summed.values(), *maximised.values()]
    ranks = world.all_gather(torch.tensor(values, dtype=torch.float64, device=world.device))
    sums = ranks[:, : len(summed)].sum(0).tolist()
    maxima = ranks[:, len(summed) :].amax(0).tolist()
    return dict(zip([*summed, *maximised], [*sums, *maxima], strict=True))


def _count(progress: Progress, result: StepResult, world_size: int) -> None:
    """Count a step that is done."""
    progress.step += 1
    progress.tokens += result.tokens
    progress.targets += result.targets
    progress.seconds += result.seconds
    progress.rank_seconds += result.seconds * world_size
    progress.stop = result.stop
    progress.held_out = None


def rewind(run: Run, step: int, fault: str) -> Progress:
    """Load the last good checkpoint and leave the batch of step `step` out from now on; return the progress
    to go on from.

    Raises:
        GuardError: the run is to stop on a bad step, or has rewound often enough.
    """
    if run.config.on_bad_step == "stop":
        raise GuardError(
            f"step {step + 1}: {fault}: the last checkpoint is older; lower lr, look at the data, or set on_bad_step=rewind"
        )
    if len(run.skipped) >= run.config.max_rewinds:
        raise GuardError(
            f"step {step + 1}: {fault}, after {len(run.skipped)} rewinds: lower lr, or look at the data"
        )
    run.skipped.append(run.batch_of(step))
    if run.world.is_main:
        run.folder.record_skipped_batches(run.skipped)  # before anything else: a kill must not forget it
    progress, _ = load_latest_checkpoint(run)
    logger.warning(
        "step %d: %s: going back to step %d without batch %d", step + 1, fault, progress.step, run.skipped[-1]
    )
    run.spool.log(step + 1, {names.REWINDS: len(run.skipped)})
    return progress
