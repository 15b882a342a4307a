"""The work between optimizer steps: metrics, evaluations and checkpoints."""

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


def log_step(run: Run, num_done: int, result: StepResult, lr: float) -> None:
    """Log the metrics of a step.

    Args:
        num_done: number of steps done, including this one.
    """
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
    run.spool.log(num_done, values)


def is_evaluation_due(run: Run, num_done: int) -> bool:
    """Return whether an evaluation is due after `num_done` steps."""
    every = run.config.evaluate_every
    return num_done == run.num_steps or bool(every and num_done % every == 0)


def evaluate_if_due(run: Run, progress: Progress) -> None:
    """Evaluate the current weights if an evaluation is due and no rank was asked to stop.

    If a rank was asked to stop, the evaluation is skipped or ended, because the remaining time may
    be enough for a checkpoint only. It is made up for when the run is resumed.
    """
    if progress.stop_reason or not is_evaluation_due(run, progress.step):
        return
    try:
        progress.held_out = log_held_out(run, progress.step)
    except StopTraining as request:
        progress.stop_reason = request.reason


def log_held_out(run: Run, num_done: int) -> HeldOut | None:
    """Evaluate the current weights, log the held-out loss and check document isolation.

    Isolation is checked at every evaluation, because random initial weights can hide a leak between
    documents.

    Args:
        num_done: number of steps done.

    Returns:
        The evaluation; None if the corpus has no validation documents.

    Raises:
        StopTraining: a rank was asked to stop. All ranks end the evaluation after the same batch.
        GuardError: the loss is NaN or Inf, or packed documents attend to each other.
    """
    held_out = evaluate(run)
    if held_out:
        if not math.isfinite(held_out.loss):
            raise GuardError(
                f"step {num_done}: the held-out loss is {held_out.loss}; lower lr, or check the base"
            )
        run.spool.log(num_done, to_metrics(held_out))
        if num_done == 0 and run.world.is_main:
            run.folder.write_json(layout.BEFORE, asdict(held_out))
    check_isolation(run.engine.packed.logits, run.vocab_size, run.world.device)
    return held_out


def evaluate(run: Run) -> HeldOut | None:
    """Return the held-out loss of the weights in the engine; None without validation documents.

    Raises:
        StopTraining: a rank was asked to stop. All ranks end the evaluation after the same batch.
    """
    run.engine.set_eval_mode()
    with run.clock.host_phase("evaluation"):
        return evaluate_held_out_loss(
            run.engine.packed,
            run.validation,
            run.config.micro_batch_size,
            run.corpus.unigram_loss,
            run.world,
            run.raise_if_stopping,
        )


def is_checkpoint_due(run: Run, progress: Progress) -> bool:
    """Return whether to save a checkpoint now.

    A checkpoint is saved after the last step, when the run is about to stop, and every
    checkpoint_every steps. With result=best, it is also saved at a new best held-out loss.
    """
    if progress.step == run.num_steps or progress.stop_reason:
        return True
    every = run.config.checkpoint_every
    if every and progress.step % every == 0:
        return True
    return (
        run.config.result == "best"
        and progress.held_out is not None
        and run.checkpoints.is_best(progress.held_out.loss)
    )


def save_checkpoint(run: Run, progress: Progress, step_seconds: float = 0.0) -> None:
    """Save a checkpoint, and warn if an interrupted job would have too little time for that.

    Args:
        step_seconds: duration of the last step. An interrupted job finishes its step before it
            saves.
    """
    loop_state = LoopState(
        tokens=progress.tokens,
        targets=progress.targets,
        seconds=progress.seconds,
        rank_seconds=progress.rank_seconds,
        num_steps=run.num_steps,
        losses=list(progress.step_check.recent),
        clock=run.clock.breakdown(),
    )
    held_out_loss = progress.held_out.loss if progress.held_out else None
    with run.clock.host_phase("checkpoint"):
        save_seconds = run.checkpoints.save(run.engine, progress.step, loop_state, held_out_loss)
    run.watchdog.beat()
    run.spool.log(progress.step, {names.CHECKPOINT_SECONDS: save_seconds})
    _check_grace_time(run, progress.step, save_seconds + step_seconds)


def _check_grace_time(run: Run, num_done: int, needed: float) -> None:
    """Warn if the scheduler's signal comes less than `needed` seconds before it kills the job."""
    cluster = run.config.cluster
    grace = cluster.signal_lead_s
    if cluster.scheduler == "local" or needed <= grace:
        return
    logger.warning(
        "cluster.signal_lead_s: a job gets a signal %d s before it is killed, but a step and a "
        "checkpoint take %.0f s, so an interruption loses the steps since the last checkpoint; "
        "set cluster.signal_lead_s=%d",
        grace,
        needed,
        math.ceil(2 * needed),
    )
    run.spool.log(num_done, {names.CHECKPOINT_BEYOND_GRACE: needed - grace})
