"""One training run, from config to saved result. Read `train` (what is put together), then `run_steps` (the loop)."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from finetune import base, guards, model
from finetune.checkpoint import Checkpoints
from finetune.config import TrainConfig
from finetune.data import PackedData, Step
from finetune.distributed import StopFlag, World
from finetune.engine import Engine
from finetune.evaluate import HeldOut, held_out_loss
from finetune.loss import IGNORE, normalised, token_losses
from finetune.partition import gathered
from finetune.run_folder import RunFolder
from finetune.schedule import learning_rate
from finetune.tracking.spool import Spool

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """Everything a run is put together from."""

    config: TrainConfig
    folder: RunFolder
    world: World
    engine: Engine
    data: PackedData
    validation: PackedData
    unigram_loss: float | None
    checkpoints: Checkpoints
    spool: Spool
    stop: StopFlag
    num_steps: int


@dataclass
class StepResult:
    """One optimizer step, over all ranks. `checksum` tells the data of the step: equal data, equal checksum."""

    loss: float
    targets: int
    tokens: int
    checksum: int
    grad_norm: float
    stop: bool


@dataclass
class Progress:
    """Where the loop ended, and how fast it was: tokens that are not padding, seconds of training steps alone."""

    step: int
    tokens: int
    seconds: float


def train(config: TrainConfig, folder: RunFolder, world: World) -> str:
    """Train, or go on training, the run in `folder`; all ranks call it. "completed", or "stopped" if it was asked to.

    Raises:
        ValueError: the user's mistake, or a guard's finding, in one line.
    """
    corpus = base.open_corpus(config)
    sources = base.training_sources(config, corpus)
    packing: dict[str, Any] = {"sequence_length": config.data.sequence_length, "plan_folder": folder.plan, "world": world}
    data = PackedData(corpus, "train", sources=sources, shuffle_seed=config.seed, **packing)
    validation = PackedData(corpus, "validation", sources=list(corpus.manifest.sources), shuffle_seed=None, **packing)

    trained = model.build(config, corpus.manifest.tokenizer, folder.path / "merged_base", world.is_main)
    engine = Engine(trained, config, world)
    engine.eval()
    if compared := model.files_to_compare(trained, config):
        guards.check_weights(*compared, gathered, world)
    guards.check_isolation(engine.logits, corpus.manifest.tokenizer["vocab_size"], world.device)
    at_start = engine.state_on_main() if model.is_adapter(trained) else None

    identity = {"world_size": world.size, "zero_stage": config.zero["stage"], "corpus": corpus.manifest.digest}
    checkpoints = Checkpoints(folder.checkpoints, config.keep_checkpoints, identity, world)
    num_steps = config.max_steps or data.num_steps(config.global_batch_size, config.num_epochs)
    stop = StopFlag(folder.stop_file)
    stop.listen()
    with Spool(folder.metrics, enabled=world.is_main) as spool:
        run = Run(
            config, folder, world, engine, data, validation, corpus.manifest.unigram_loss, checkpoints, spool, stop, num_steps
        )
        done = checkpoints.load_newest(engine)
        if done == 0:
            log_held_out(run, 0)
        progress = run_steps(run, done)
        if progress.step < num_steps:
            engine.close()
            return "stopped"
        after = log_held_out(run, num_steps)
        save_result(run, at_start)
        summarise(run, progress, after)
    engine.close()
    return "completed"


def run_steps(run: Run, step: int) -> Progress:
    """The training loop, from `step` on. Steps are numbered from 0; `step + 1` of them are done after one."""
    config, tokens, seconds = run.config, 0, 0.0
    while step < run.num_steps:
        began = time.monotonic()
        data = run.data.step(step, config.global_batch_size, config.micro_batch_size)
        guards.check_planned(data.num_targets, step + 1)
        lr = learning_rate(
            step, num_steps=run.num_steps, peak=config.lr, warmup_ratio=config.warmup_ratio, min_lr_ratio=config.min_lr_ratio
        )
        result = train_step(run, data, lr)
        guards.check_targets(result.targets, data.num_targets, step + 1)
        guards.check_step(result.loss, result.grad_norm, step + 1)
        step += 1
        elapsed = time.monotonic() - began
        tokens, seconds = tokens + result.tokens, seconds + elapsed
        log_step(run, step, result, lr, elapsed)
        last = step == run.num_steps
        if config.evaluate_every and step % config.evaluate_every == 0 and not last:
            log_held_out(run, step)
        if last or result.stop or (config.checkpoint_every and step % config.checkpoint_every == 0):
            stalled = run.checkpoints.save(run.engine, step)
            run.spool.log(step, {"checkpoint/seconds": stalled})
        if result.stop and not last:
            logger.info("stopping after step %d, as asked", step)
            break
    return Progress(step, tokens, seconds)


def train_step(run: Run, data: Step, lr: float) -> StepResult:
    """Forward and backward over this rank's micro-batches, then one update. One collective at the end sums what the ranks
    saw, and whether any of them was asked to stop: so all of them stop after the same step."""
    run.engine.train()
    loss_sum, targets, tokens, checksum = 0.0, 0, 0, 0
    for batch in data.micro_batches:
        on_device = batch.to(run.world.device)
        losses = token_losses(run.engine.logits(on_device.input_ids, on_device.position_ids), on_device.labels)
        run.engine.backward(normalised(losses.sum(), data.num_targets, run.world.size))
        loss_sum += float(losses.detach().sum(dtype=torch.float64))
        targets += int((batch.labels != IGNORE).sum())
        tokens += batch.num_tokens
        checksum += batch.checksum
    grad_norm = run.engine.step(lr)
    # float64 holds every one of these exactly: a CRC sum stays below 2^53 for two million packs a step
    mine = torch.tensor([loss_sum, targets, tokens, checksum, run.stop.is_set()], dtype=torch.float64, device=run.world.device)
    loss_sum, targets, tokens, checksum, stop = run.world.sum(mine).tolist()
    return StepResult(loss_sum / max(targets, 1), int(targets), int(tokens), int(checksum), grad_norm, stop > 0)


def log_step(run: Run, step: int, result: StepResult, lr: float, seconds: float) -> None:
    run.spool.log(
        step,
        {
            "train/loss": result.loss,
            "train/grad_norm": result.grad_norm,
            "train/lr": lr,
            "train/tokens": result.tokens,
            "train/supervised_tokens": result.targets,
            "train/tokens_per_second": result.tokens / seconds,
            "train/num_steps": run.num_steps,
            "data/checksum": result.checksum,
        },
    )


def log_held_out(run: Run, step: int) -> HeldOut | None:
    """Evaluate after `step` steps, and say so in the spool."""
    run.engine.eval()
    held_out = held_out_loss(run.engine.logits, run.validation, run.config.micro_batch_size, run.unigram_loss, run.world)
    if held_out:
        run.spool.log(step, held_out.as_metrics())
        if step == 0 and run.world.is_main:
            run.folder.write_json("before.json", held_out.as_dict())
    return held_out


def save_result(run: Run, at_start: dict[str, torch.Tensor] | None) -> None:
    """Write model/ (full fine-tuning) or adapter/, with the tokenizer, and check what was written."""
    trained, is_main = run.engine.model, run.world.is_main
    adapter = model.is_adapter(trained)
    final = run.folder.adapter if adapter else run.folder.model
    temporary = final.with_name(f".{final.name}.tmp")
    if is_main:
        shutil.rmtree(temporary, ignore_errors=True)  # of an attempt that was killed here
    written: dict[str, torch.Tensor] = {}
    state = model.weights(trained, trainable_only=adapter)
    model.save(trained, _remembered(state, written, keep=adapter), temporary, is_main)
    if is_main:
        guards.check_saved(temporary, written, at_start)
        shutil.copytree(run.config.data.corpus_folder / "tokenizer", temporary, dirs_exist_ok=True)
        shutil.rmtree(final, ignore_errors=True)  # of an attempt that was killed after this point
        temporary.rename(final)
    run.world.barrier()


def _remembered(
    state: Iterable[tuple[str, torch.Tensor]], written: dict[str, torch.Tensor], keep: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass tensors on, and note them for check_saved: an adapter's whole, a model's by shape alone."""
    for name, tensor in state:
        written[name] = tensor if keep else tensor.to("meta")
        yield name, tensor


def summarise(run: Run, progress: Progress, after: HeldOut | None) -> None:
    """summary.json: what `finetune train` prints at the end, and what MLflow keeps beside the curves."""
    if not run.world.is_main:
        return
    trainable = sum(_num_elements(p) for p in run.engine.model.parameters() if p.requires_grad)
    run.folder.write_json(
        "summary.json",
        {
            "run_id": run.folder.id,
            "steps": progress.step,
            "device": str(run.world.device),
            "parameters": sum(_num_elements(p) for p in run.engine.model.parameters()),
            "trainable_parameters": trainable,
            "tokens_per_second": progress.tokens / progress.seconds if progress.seconds else None,
            "before": run.folder.read_json("before.json"),
            "after": dataclasses.asdict(after) if after else None,
            "result": str(run.folder.adapter if model.is_adapter(run.engine.model) else run.folder.model),
        },
    )


def _num_elements(parameter: torch.nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # under ZeRO-3 a rank holds only its slice
