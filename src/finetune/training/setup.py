"""A run's parts, made and checked on this device before its first step; and where the run starts or
resumes."""

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
from finetune.training.periodic import evaluates_after, log_held_out, save_checkpoint
from finetune.training.run import Progress, Run
from finetune.training.schedule import Schedule, describe_leap
from finetune.training.throughput import Clock, Peak
from finetune.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


def set_up_run(
    config: TrainConfig, folder: RunFolder, world: World, watchdog: Watchdog, spool: Spool, stop: StopFlag
) -> Run:
    """Make the parts of a run and check them: the corpus, its packs, the model on this device, and its
    losses."""
    stop_point = partial(stop_if_asked, watchdog, world, stop)
    corpus = run_inputs.open_corpus(config.data)
    base = base_model.resolve_for_run(config)
    identity = _note_inputs(
        base, corpus, folder, world
    )  # before packs are planned: of another corpus none may be left behind
    if not config.adapter:  # checkpoints hold all that was of the base
        del identity["base"]
    data, validation = _plan_packs(corpus, config.data, config.seed, folder, world)

    stop_point()
    trained = build.build(config, corpus.manifest.tokenizer, folder.merged_base, world.is_main)
    stop_point()  # loading a large base takes long
    kernels_in_use = kernels.install(
        trained, config.model.kernels, world.device, partitioned=config.zero["stage"] == 3
    )
    engine = Engine(trained, config, world)
    torch.manual_seed(config.seed + world.rank)  # dropout: until here all ranks drew alike
    engine.set_eval_mode()
    if compared := load.files_to_compare(trained, base):
        checks.check_weights(*compared, gathered, world)
    stop_point()
    attention = _check_model(
        engine.packed, config.model.attention, corpus.manifest.tokenizer.vocab_size, world
    )
    peak, flops_per_token = _speed_limit(trained, load.DTYPES[config.precision], world)
    logger.info(
        "attention: %s; kernels: %s; peak %.2f TFLOP/s a rank (%s)",
        attention,
        kernels_in_use,
        peak.flops / 1e12,
        peak.origin,
    )
    stop_point()
    return Run(
        config=config,
        folder=folder,
        world=world,
        engine=engine,
        data=data,
        validation=validation,
        corpus=corpus.manifest,
        at_start=engine.state_on_main() if save.is_adapter(trained) else None,
        checkpoints=Checkpoints(
            folder.checkpoints,
            config.keep_checkpoints,
            {"zero_stage": config.zero["stage"], **identity},
            world,
        ),
        spool=spool,
        stop=stop,
        stop_point=stop_point,
        watchdog=watchdog,
        clock=Clock(world.device),
        peak=peak,
        flops_per_token=flops_per_token,
        schedule=Schedule.of(config, data.num_packs),
        skipped=folder.skipped_batches(),
    )


def stop_if_asked(watchdog: Watchdog, world: World, stop: StopFlag) -> None:
    """Raise StopTraining on all ranks if one of them was asked to stop; all ranks call it at the same
    place."""
    watchdog.beat()
    reason = StopReason(world.all_reduce_max(stop.reason()))
    if reason:
        raise StopTraining(reason)


def _plan_packs(
    corpus: Corpus, settings: DataConfig, seed: int, folder: RunFolder, world: World
) -> tuple[PackedData, PackedData]:
    """Plan the training and validation packs; check the plans of a run that is resumed."""
    pack = partial(
        PackedData,
        corpus,
        sequence_length=settings.sequence_length,
        long_documents=settings.long_documents,
        long_conversations=settings.long_conversations,
        plan_folder=folder.plan,
        world=world,
    )
    data = pack("train", sources=run_inputs.select_training_sources(settings, corpus), shuffle_seed=seed)
    validation = pack("validation", sources=list(corpus.manifest.sources), shuffle_seed=None)
    if folder.has_checkpoint:
        data.check_plan()
        validation.check_plan()
    else:
        check_losses(data.account, settings)
    return data, validation


def _note_inputs(base: Base | None, corpus: Corpus, folder: RunFolder, world: World) -> dict[str, str | None]:
    """Compare what the run is trained on with what its submission noted; return the digests."""
    digests = run_inputs.compute_digests(
        base, corpus
    )  # on every rank, so that all of them raise what is wrong with the files
    noted = run_inputs.record_inputs(folder, digests) if world.is_main else None
    return dict(world.broadcast_object(noted))


def _check_model(packed: PackedModel, requested: str, vocab_size: int, world: World) -> str:
    """Choose the attention that keeps packed documents apart and check the losses of the LM head; return the
    attention."""
    attention = checks.choose_attention(packed, requested, vocab_size, world.device)
    checks.check_target_losses(packed, vocab_size, world.device)
    return attention


def _speed_limit(trained: torch.nn.Module, dtype: torch.dtype, world: World) -> tuple[Peak, float | None]:
    """Return the device's peak, and the FLOPs of a token (None where no formula holds)."""
    world.barrier()  # ranks that share a CPU measure together
    peak = throughput.peak_of(world.device, dtype)
    try:
        return peak, throughput.flops_per_token(trained)
    except ValueError as fault:
        logger.info("no model FLOPs utilisation: %s", fault)
        return peak, None


# --- start or resume
# --------------------------------------------------------------------------------------------------


def start_or_resume(run: Run) -> Progress:
    """Start, or resume from the newest checkpoint. An evaluation that was cut short is made up for."""
    progress, seconds_by_phase = load_latest_checkpoint(run)
    run.clock.count(seconds_by_phase)
    if progress.step == 0:
        _start(run, progress)
        return progress
    if message := describe_leap(progress.step, progress.num_steps or run.num_steps, run.schedule):
        run.warn(message)
    if evaluates_after(run, progress.step) and not run.checkpoints.evaluated(progress.step):
        progress.held_out = log_held_out(run, progress.step)
        if progress.held_out:
            run.checkpoints.note_held_out_loss(progress.step, progress.held_out.loss)
    return progress


def load_latest_checkpoint(run: Run) -> tuple[Progress, dict[str, float]]:
    """Load the newest checkpoint, if there is one: how far the run is with it, and its seconds by phase so
    far."""
    state = run.checkpoints.load_newest(run.engine)
    seen = state.seen
    progress = Progress(
        step=state.step,
        check=StepCheck(run.config.spike_stds, seen.losses),
        tokens=seen.tokens,
        targets=seen.targets,
        seconds=seen.seconds,
        rank_seconds=seen.rank_seconds,
        num_steps=seen.num_steps,
    )
    return progress, seen.clock


def _start(run: Run, progress: Progress) -> None:
    """Check that adapter and tokenizer can be saved, evaluate the untrained model, and save what a rewind may
    need."""
    if run.at_start is not None and run.world.is_main:
        with (
            tempfile.TemporaryDirectory() as name
        ):  # a method that PEFT cannot restore must not be found out at the end
            save.save(run.engine.model, run.at_start.items(), Path(name))
            checks.check_reloads(Path(name), run.engine.model, run.at_start)
    if run.world.is_main:
        tokenizer.check(run.config)
    run.spool.log(0, {names.DATA_COUNT.of(name): count for name, count in run.data.counts.items()})
    progress.held_out = log_held_out(run, 0)
    if run.config.on_bad_step == "rewind" and not run.checkpoints.holds(0):
        save_checkpoint(run, progress)
