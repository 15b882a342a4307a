"""What is done between steps: after each its metrics are logged; every so many the held-out loss is measured
and a checkpoint saved."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict

from finetune.evaluation.held_out import evaluate_held_out_loss, to_metrics
from finetune.models.checks import GuardError, check_isolation
from finetune.runs import layout
from finetune.runs.stop import StopTraining
from finetune.runs.summary import HeldOut
from finetune.tracking import names
from finetune.training.checkpoint import LoopState
from finetune.training.run import Progress, Run, StepResult

logger = logging.getLogger(__name__)


def log_step(run: Run, step: int, result: StepResult, lr: float) -> None:
    """Log the metrics of a step; `step` counts those done, it included."""
    tokens_per_second = result.tokens / result.seconds
    per_rank = tokens_per_second / run.world.size
    values: dict[str, float] = {
        names.TRAIN_LOSS: result.loss,
        names.GRAD_NORM: result.grad_norm,
        names.LEARNING_RATE: lr,
        names.TOKENS: result.tokens,
        names.SUPERVISED_TOKENS: result.targets,
        names.TOKENS_PER_SECOND: tokens_per_second,
        names.TOKENS_PER_SECOND_PER_RANK: per_rank,
        names.PEAK_MEMORY: result.peak_memory,
        names.DATA_SECONDS: result.data_seconds,
        names.NUM_STEPS: run.num_steps,
        names.DATA_CHECKSUM: result.checksum,
    }
    if run.flops_per_token:
        values[names.MFU] = per_rank * run.flops_per_token / run.peak.flops
    run.spool.log(step, values)


def evaluates_after(run: Run, step: int) -> bool:
    """Return whether an evaluation is due after `step` steps."""
    every = run.config.evaluate_every
    return step == run.num_steps or bool(every and step % every == 0)


def evaluate_if_due(run: Run, progress: Progress) -> None:
    """Evaluate after a step if that is due. A request to stop, before or amid it, comes first: there is time
    for a checkpoint alone, and the run evaluates when it is resumed."""
    if progress.stop or not evaluates_after(run, progress.step):
        return
    try:
        progress.held_out = log_held_out(run, progress.step)
    except StopTraining as request:
        progress.stop = request.reason


def log_held_out(run: Run, step: int) -> HeldOut | None:
    """Evaluate after `step` steps and log the held-out loss.

    Raises:
        StopTraining: the ranks were asked to stop, and broke the evaluation off after the same batch.
        GuardError: the loss is NaN or Inf; or documents see each other now, which weights that are still
            random can hide.
    """
    held_out = evaluate(run)
    if held_out:
        if not math.isfinite(held_out.loss):
            raise GuardError(
                f"the held-out loss after step {step} is {held_out.loss}: lower lr, or look at the base"
            )
        run.spool.log(step, to_metrics(held_out))
        if step == 0 and run.world.is_main:
            run.folder.write_json(layout.BEFORE, asdict(held_out))
    check_isolation(run.engine.packed.logits, run.vocab_size, run.world.device)
    return held_out


def evaluate(run: Run) -> HeldOut | None:
    """Measure the held-out loss of the weights in the engine.

    Raises:
        StopTraining: the ranks were asked to stop, and broke the evaluation off after the same batch.
    """
    run.engine.set_eval_mode()
    with run.clock.waiting("evaluation"):
        return evaluate_held_out_loss(
            run.engine.packed,
            run.validation,
            run.config.micro_batch_size,
            run.corpus.unigram_loss,
            run.world,
            run.stop_point,
        )


def saves_after(run: Run, progress: Progress) -> bool:
    """Return whether a checkpoint is due: the last one, before a stop, by the interval, or of a new best
    held-out loss."""
    step, every = progress.step, run.config.checkpoint_every
    if step == run.num_steps or progress.stop or (every and step % every == 0):
        return True
    return (
        run.config.result == "best"
        and progress.held_out is not None
        and run.checkpoints.is_best(progress.held_out.loss)
    )


def save_checkpoint(run: Run, progress: Progress, step_seconds: float = 0.0) -> None:
    """Save a checkpoint; warn if finishing a step and saving takes longer than a job is given before it is
    killed."""
    seen = LoopState(
        tokens=progress.tokens,
        targets=progress.targets,
        seconds=progress.seconds,
        rank_seconds=progress.rank_seconds,
        num_steps=run.num_steps,
        losses=list(progress.check.recent),
        clock=run.clock.breakdown(),
    )
    held_out_loss = progress.held_out.loss if progress.held_out else None
    with run.clock.waiting("checkpoint"):
        stalled = run.checkpoints.save(run.engine, progress.step, seen, held_out_loss)
    run.watchdog.beat()
    run.spool.log(progress.step, {names.CHECKPOINT_SECONDS: stalled})
    _check_grace(run, progress.step, stalled + step_seconds)


def _check_grace(run: Run, step: int, needed: float) -> None:
    """Warn if the seconds that a job is warned before it is killed are fewer than a step and a checkpoint
    need."""
    cluster = run.config.cluster
    grace = cluster.signal_lead_s
    if cluster.scheduler == "local" or needed <= grace:
        return
    logger.warning(
        "the grace time is too short: finishing a step and saving takes %.0f s, and a job is warned %d s before it is killed: "
        "an interruption loses the steps since the last checkpoint; raise cluster.signal_lead_s to %d",
        needed,
        grace,
        math.ceil(2 * needed),
    )
    run.spool.log(step, {names.CHECKPOINT_BEYOND_GRACE: needed - grace})
