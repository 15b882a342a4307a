"""Set-up of a run on one rank: build and check its parts, then start or resume it."""

from __future__ import annotations

import logging
import tempfile
from functools import partial
from pathlib import Path

import torch

from data_prep.shards import Corpus
from finetune.config.train import DataConfig, TrainConfig
from finetune.data.packs import PackedData
from finetune.data.rows import check_losses
from finetune.distributed import World
from finetune.models import build, checks, kernels, load, save, tokenizer
from finetune.models.packed import PackedModel
from finetune.models.zero3 import gathered
from finetune.runs import base_model
from finetune.runs import inputs as run_inputs
from finetune.runs.base_model import Base
from finetune.runs.folder import RunFolder
from finetune.runs.state import StopReason
from finetune.runs.stop import StopFlag, StopTraining
from finetune.tracking import names
from finetune.tracking.spool import Spool
from finetune.training import throughput
from finetune.training.checkpoint import Checkpoints
from finetune.training.engine import Engine
from finetune.training.guards import StepCheck
from finetune.training.periodic import is_evaluation_due, log_held_out, save_checkpoint
from finetune.training.run import Progress, Run
from finetune.training.schedule import Schedule, describe_lr_jump
from finetune.training.throughput import Clock, Peak
from finetune.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


def set_up_run(
    config: TrainConfig,
    folder: RunFolder,
    world: World,
    watchdog: Watchdog,
    spool: Spool,
    stop_flag: StopFlag,
) -> Run:
    """Build and check the parts of a run: the corpus, its packs, the model and the engine.

    Raises:
        StopTraining: a rank was asked to stop.
        UserError: inputs do not fit together, or differ from those of the submission.
        GuardError: a check of the loaded model failed.
    """
    raise_if_stopping = partial(raise_if_any_rank_stops, watchdog, world, stop_flag)
    corpus = run_inputs.open_corpus(config.data)
    base = base_model.resolve_for_run(config)
    # checked before packs are planned, so that the run folder never holds plans of a changed corpus
    identity = _check_inputs(base, corpus, folder, world)
    if not config.adapter:
        # checkpoints of full fine-tuning hold all weights, and so do not depend on the base
        del identity["base"]
    data, validation = _plan_packs(corpus, config.data, config.seed, folder, world)

    raise_if_stopping()
    model = build.build(config, corpus.manifest.tokenizer, folder.merged_base, world.is_main)
    raise_if_stopping()  # loading a large base takes long
    partitioned = config.zero["stage"] == 3
    kernels_in_use = kernels.install(model, config.model.kernels, world.device, partitioned=partitioned)
    engine = Engine(model, config, world)
    # Until now all ranks drew the same random numbers. From here on, dropout must differ by rank.
    torch.manual_seed(config.seed + world.rank)

    engine.set_eval_mode()
    files = load.match_base_files(model, base)
    if files:
        checks.check_weights(*files, gathered, world)
    raise_if_stopping()
    attention = _check_model(
        engine.packed, config.model.attention, corpus.manifest.tokenizer.vocab_size, world
    )
    peak, flops_per_token = _find_speed_limits(model, load.DTYPES[config.precision], world)
    logger.info("attention: %s; kernels: %s", attention, kernels_in_use)
    raise_if_stopping()
    return Run(
        config=config,
        folder=folder,
        world=world,
        engine=engine,
        data=data,
        validation=validation,
        corpus=corpus.manifest,
        initial_adapter=engine.gather_trainable() if save.is_adapter(model) else None,
        checkpoints=Checkpoints(
            folder.checkpoints,
            config.keep_checkpoints,
            {"zero_stage": config.zero["stage"], **identity},
            world,
        ),
        spool=spool,
        stop_flag=stop_flag,
        raise_if_stopping=raise_if_stopping,
        watchdog=watchdog,
        clock=Clock(world.device),
        peak=peak,
        flops_per_token=flops_per_token,
        schedule=Schedule.of(config, data.num_packs),
        skipped_batches=folder.skipped_batches(),
    )


def raise_if_any_rank_stops(watchdog: Watchdog, world: World, stop_flag: StopFlag) -> None:
    """Raise StopTraining on all ranks if at least one was asked to stop.

    All ranks must call it. It also restarts the watchdog's timer.
    """
    watchdog.beat()
    reason = StopReason(world.all_reduce_max(stop_flag.reason()))
    if reason:
        raise StopTraining(reason)


def _check_inputs(
    base: Base | None, corpus: Corpus, folder: RunFolder, world: World
) -> dict[str, str | None]:
    """Check that base and corpus are unchanged since the submission; return their digests."""
    # computed on every rank, so that all ranks raise the error if a file cannot be read
    digests = run_inputs.compute_digests(base, corpus)
    noted = run_inputs.record_inputs(folder, digests) if world.is_main else None
    return dict(world.broadcast_object(noted))


def _plan_packs(
    corpus: Corpus, settings: DataConfig, seed: int, folder: RunFolder, world: World
) -> tuple[PackedData, PackedData]:
    """Assign the training and validation documents to packs.

    If the run resumes, check that the packs are those of its first attempt. If it starts, check
    that not too many tokens are left out.

    Returns:
        The training packs and the validation packs.
    """
    plan_split = partial(
        PackedData,
        corpus,
        sequence_length=settings.sequence_length,
        long_documents=settings.long_documents,
        long_conversations=settings.long_conversations,
        plan_folder=folder.plan,
        world=world,
    )
    data = plan_split(
        "train", sources=run_inputs.select_training_sources(settings, corpus), shuffle_seed=seed
    )
    validation = plan_split("validation", sources=list(corpus.manifest.sources), shuffle_seed=None)
    if folder.has_checkpoint:
        data.check_plan()
        validation.check_plan()
    else:
        check_losses(data.account, settings)
    return data, validation


def _check_model(packed: PackedModel, requested: str, vocab_size: int, world: World) -> str:
    """Choose an attention implementation that isolates packed documents; return its name.

    Also check the losses that the LM head returns.
    """
    attention = checks.choose_attention(packed, requested, vocab_size, world.device)
    checks.check_target_losses(packed, vocab_size, world.device)
    return attention


def _find_speed_limits(model: torch.nn.Module, dtype: torch.dtype, world: World) -> tuple[Peak, float | None]:
    """Return the device's peak FLOP/s and the model FLOPs per token (None if they are unknown)."""
    world.barrier()  # ranks that share a CPU must measure at the same time
    peak = throughput.find_peak(world.device, dtype)
    logger.info("peak: %.2f TFLOP/s per rank (%s)", peak.flops / 1e12, peak.origin)
    try:
        return peak, throughput.flops_per_token(model)
    except ValueError as fault:
        logger.info("model FLOPs utilisation is not measured: %s", fault)
        return peak, None


# --- start or resume ---


def start_or_resume(run: Run) -> Progress:
    """Start the run, or resume it from its newest checkpoint; return its progress.

    An evaluation that was due at the checkpoint's step, but was prevented by an interruption, runs
    now.
    """
    progress, seconds_by_phase = load_latest_checkpoint(run)
    run.clock.add_breakdown(seconds_by_phase)
    if progress.step == 0:
        _start(run, progress)
        return progress
    jump = describe_lr_jump(progress.step, progress.num_steps or run.num_steps, run.schedule)
    if jump:
        run.warn(jump)
    if is_evaluation_due(run, progress.step) and not run.checkpoints.is_evaluated(progress.step):
        progress.held_out = log_held_out(run, progress.step)
        if progress.held_out:
            run.checkpoints.note_held_out_loss(progress.step, progress.held_out.loss)
    return progress


def load_latest_checkpoint(run: Run) -> tuple[Progress, dict[str, float]]:
    """Load the newest checkpoint into the engine, if there is one.

    Returns:
        The progress, which has 0 steps if there is no checkpoint; and the seconds that the run has
        spent so far in each phase, by the phase's name.
    """
    state = run.checkpoints.load_newest(run.engine)
    loop_state = state.loop_state
    progress = Progress(
        step=state.step,
        step_check=StepCheck(run.config.spike_stds, loop_state.losses),
        tokens=loop_state.tokens,
        targets=loop_state.targets,
        seconds=loop_state.seconds,
        rank_seconds=loop_state.rank_seconds,
        num_steps=loop_state.num_steps,
    )
    return progress, loop_state.clock


def _start(run: Run, progress: Progress) -> None:
    """Check that the result can be saved, and evaluate the initial model.

    If bad steps are to be rewound, also save the initial model as the first checkpoint.
    """
    if run.initial_adapter is not None and run.world.is_main:
        # if PEFT cannot restore the adapter, the run must fail now, not at its end
        with tempfile.TemporaryDirectory() as name:
            save.save(run.engine.model, run.initial_adapter.items(), Path(name))
            checks.check_reloads(Path(name), run.engine.model, run.initial_adapter)
    if run.world.is_main:
        tokenizer.check(run.config)
    run.spool.log(0, {names.DATA_COUNT.of(name): count for name, count in run.data.counts.items()})
    progress.held_out = log_held_out(run, 0)
    if run.config.on_bad_step == "rewind" and not run.checkpoints.has_step(0):
        save_checkpoint(run, progress)
