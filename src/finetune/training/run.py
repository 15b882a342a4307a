"""One training run, from config to saved result. Read `train`, then `run_steps` (the loop)."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_prep.shards import Manifest
from finetune.config.train import TrainConfig
from finetune.data.packs import PackedData, Step
from finetune.data.rows import check_losses
from finetune.distributed import World
from finetune.evaluation.held_out import HeldOut, held_out_loss
from finetune.models import build as model
from finetune.models import end_of_turn, kernels, tokenizer
from finetune.models import load as pretrained
from finetune.models.loss import normalised
from finetune.models.zero3 import gathered
from finetune.runs import inputs as run_inputs
from finetune.runs import rank_warnings
from finetune.runs.folder import RunFolder
from finetune.runs.state import RunState, StopReason
from finetune.runs.stop import StopFlag, StopTraining
from finetune.tracking.spool import Spool
from finetune.training import guards
from finetune.training import throughput as metrics
from finetune.training.checkpoint import Checkpoints
from finetune.training.engine import Engine
from finetune.training.schedule import describe_leap, learning_rate, num_steps_of
from finetune.training.throughput import Clock

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
    corpus: Manifest
    at_start: dict[str, torch.Tensor] | None
    checkpoints: Checkpoints
    spool: Spool
    stop: StopFlag
    stop_point: Callable[[], None]
    watchdog: guards.Watchdog
    clock: Clock
    peak: metrics.Peak
    flops_per_token: float | None
    num_steps: int
    skipped: list[int]

    def warn(self, message: str) -> None:
        """Log a warning that concerns the run as a whole, once."""
        if self.world.is_main:
            logger.warning(message)


@dataclass
class StepResult:
    """One optimizer step, over all ranks. `checksum` tells the data of the step: equal data, equal checksum."""

    loss: float
    targets: int
    tokens: int
    checksum: int
    grad_norm: float
    skipped: bool
    stop: int
    seconds: float
    data_seconds: float
    peak_memory: int


@dataclass
class Progress:
    """Where the loop ended and why (a reason of stop.py), and what it saw on the way, in all attempts of the run: the last losses
    (in `check`), tokens that are not padding, seconds of training steps alone, the same times ranks, the steps that the run
    was to take when its checkpoint was saved (0: unknown), and the evaluation of the weights it ended with, if there was one."""

    step: int
    check: guards.StepCheck
    stop: int = StopReason.NONE
    tokens: int = 0
    targets: int = 0
    seconds: float = 0.0
    rank_seconds: float = 0.0
    num_steps: int = 0
    held_out: HeldOut | None = None


@dataclass
class Result:
    """The weights that are saved, by optimizer step, and what is known of them and of the last ones.

    Attributes:
        step: the step whose weights they are; the last, or the one with the best held-out loss.
        held_out: their evaluation; None without validation documents.
        last: that of the last step.
    """

    step: int
    held_out: HeldOut | None
    last: HeldOut | None


@dataclass(frozen=True)
class Regression:
    """A comparison that a result loses: the name of its metric, and a warning."""

    name: str
    message: str


def train(config: TrainConfig, folder: RunFolder, world: World, stop: StopFlag) -> RunState:
    """Train, or go on training, the run in `folder`; all ranks call it.

    Args:
        stop: asked whether to leave, on every rank, wherever all of them can leave together.

    Returns:
        "completed"; "stopped" if a person asked for it; "interrupted" if the scheduler did, or the job's time was up. Whatever
        was trained is in a checkpoint then.

    Raises:
        ValueError: the user's mistake, or a guard's finding, in one line.
    """
    folder.jobs.mkdir(exist_ok=True)

    def record(fault: str) -> None:
        folder.record_failure(world.rank, fault, "hang")

    with (
        rank_warnings.collect(folder.jobs, world.rank),
        guards.Watchdog(folder.stacks(world.rank), config.hang_timeout_min * 60, record) as watchdog,
        Spool(folder.metrics, enabled=world.is_main) as spool,
    ):

        def stop_point() -> None:
            watchdog.beat()
            if reason := world.highest(stop.reason()):
                raise StopTraining(StopReason(reason))

        try:
            run = put_together(config, folder, world, watchdog, spool, stop, stop_point)
            progress = run_steps(run, begin_or_go_on(run))
            if not progress.stop:
                result = choose_result(run, progress)
                save_result(run)
                summarise(run, progress, result)
            run.engine.close()
        except StopTraining as leave:  # before the first step, or in an evaluation of what a checkpoint holds
            logger.info("leaving (%s): %s", leave.reason.state, stop.describe() or "another rank was asked to")
            return leave.reason.state
    return StopReason(progress.stop).state


def put_together(
    config: TrainConfig, folder: RunFolder, world: World, watchdog: guards.Watchdog, spool: Spool, stop: StopFlag,
    stop_point: Callable[[], None],
) -> Run:  # fmt: skip
    """The parts of a run, checked on this device: the model's packed documents are apart, its losses are those of its logits."""
    corpus = run_inputs.open_corpus(config)
    inputs = run_inputs.compute_digests(config, corpus)  # on every rank, so that all of them raise what is wrong with the files
    noted = run_inputs.note_inputs(folder, inputs) if world.is_main else None
    identity = {"zero_stage": config.zero["stage"], **world.from_main(noted)}
    if not config.adapter:  # checkpoints hold all that was of the base
        del identity["base"]
    packing: dict[str, Any] = {
        "sequence_length": config.data.sequence_length, "long_documents": config.data.long_documents,
        "long_conversations": config.data.long_conversations, "plan_folder": folder.plan, "world": world,
    }  # fmt: skip
    data = PackedData(corpus, "train", sources=run_inputs.training_sources(config, corpus), shuffle_seed=config.seed, **packing)
    validation = PackedData(corpus, "validation", sources=list(corpus.manifest.sources), shuffle_seed=None, **packing)
    if any(folder.checkpoints.glob("step-*")):
        data.check_plan()
        validation.check_plan()
    else:
        check_losses(data.account, config.data)

    stop_point()
    trained = model.build(config, corpus.manifest.tokenizer, folder.path / "merged_base", world.is_main)
    stop_point()  # loading a large base takes long
    in_use = kernels.install(trained, config.model.kernels, world.device, partitioned=config.zero["stage"] == 3)
    engine = Engine(trained, config, world)
    torch.manual_seed(config.seed + world.rank)  # dropout: until here all ranks drew alike
    engine.eval()
    if compared := pretrained.files_to_compare(trained, config):
        guards.check_weights(*compared, gathered, world)
    stop_point()
    vocab_size = corpus.manifest.tokenizer["vocab_size"]
    attention = guards.choose_attention(engine.packed, config.model.attention, vocab_size, world.device)
    guards.check_target_losses(engine.packed, vocab_size, world.device)
    peak, flops = _speed_limit(trained, config, world)
    logger.info("attention: %s; kernels: %s; peak %.2f TFLOP/s a rank (%s)", attention, in_use, peak.flops / 1e12, peak.origin)

    stop_point()
    return Run(
        config=config, folder=folder, world=world, engine=engine, data=data, validation=validation, corpus=corpus.manifest,
        at_start=engine.state_on_main() if model.is_adapter(trained) else None,
        checkpoints=Checkpoints(folder.checkpoints, config.keep_checkpoints, identity, world),
        spool=spool, stop=stop, stop_point=stop_point, watchdog=watchdog,
        clock=Clock(world.device), peak=peak, flops_per_token=flops,
        num_steps=num_steps_of(data.num_packs, config),
        skipped=(folder.read_json("skipped.json") or {"batches": []})["batches"],
    )  # fmt: skip


def begin_or_go_on(run: Run) -> Progress:
    """From the newest checkpoint, or from the start. An evaluation that was cut short is made up for."""
    progress, clock = restored(run)
    run.clock.count(clock)
    if progress.step == 0:
        begin(run, progress)
        return progress
    warn_of_leap(run, progress)
    if _evaluates_after(run, progress.step) and not run.checkpoints.evaluated(progress.step):
        progress.held_out = log_held_out(run, progress.step)
        if progress.held_out:
            run.checkpoints.note_held_out_loss(progress.step, progress.held_out.loss)
    return progress


def warn_of_leap(run: Run, progress: Progress) -> None:
    """Warn where a run that goes on with another number of steps gets another learning rate at once."""
    if message := describe_leap(progress.step, progress.num_steps or run.num_steps, run.num_steps, run.config):
        run.warn(message)


def restored(run: Run) -> tuple[Progress, dict[str, float]]:
    """Load the newest checkpoint, if there is one: how far the run is with it, and the breakdown of its time so far."""
    state = run.checkpoints.load_newest(run.engine)
    seen = {"losses": [], "clock": {}, **state.get("seen", {})}  # older checkpoints lack it
    check, clock = guards.StepCheck(run.config.spike_stds, seen.pop("losses")), seen.pop("clock")
    return Progress(state["step"], check, **seen), clock


def begin(run: Run, progress: Progress) -> None:
    """Before the first step of all: that adapter and tokenizer can be saved, what the model knows already, and somewhere to
    rewind to."""
    if run.at_start is not None and run.world.is_main:
        with tempfile.TemporaryDirectory() as folder:  # a method that PEFT cannot restore must not be found out at the end
            model.save(run.engine.model, run.at_start.items(), Path(folder))
            guards.check_reloads(Path(folder), run.engine.model, run.at_start)
    if run.world.is_main:
        tokenizer.check(run.config)
    run.spool.log(0, {f"data/{name}": count for name, count in run.data.counts.items()})
    progress.held_out = log_held_out(run, 0)
    if run.config.on_bad_step == "rewind" and not run.checkpoints.holds(0):
        save_checkpoint(run, progress)


def run_steps(run: Run, progress: Progress) -> Progress:
    """The training loop, from where `progress` is. Steps are numbered from 0; `step + 1` of them are done after one."""
    config = run.config
    while (step := progress.step) < run.num_steps and not progress.stop:
        with run.clock.waiting("data"):
            data = run.data.step(_batch_of(step, run.skipped), config.global_batch_size, config.micro_batch_size)
        guards.check_planned(data.num_targets, step + 1)
        lr = learning_rate(step, run.num_steps, config)
        result = train_step(run, data, lr)
        run.watchdog.beat()
        guards.check_targets(result.targets, data.num_targets, step + 1)
        if step == 0 and config.model.path and config.check_first_loss:
            guards.check_first_loss(result.loss, run.corpus.tokenizer["vocab_size"], config.model.path)
        if fault := progress.check.fault(result.loss, result.grad_norm, result.skipped):
            progress = rewind(run, step, fault)
            continue
        step += 1
        progress.tokens, progress.targets = progress.tokens + result.tokens, progress.targets + result.targets
        progress.seconds += result.seconds
        progress.rank_seconds += result.seconds * run.world.size
        log_step(run, step, result, lr)
        progress.step, progress.stop, progress.held_out = step, result.stop, None
        evaluate_unless_asked_to_leave(run, progress)
        if _saves_after(run, progress):
            save_checkpoint(run, progress, result.seconds)
    if progress.stop:
        why = run.stop.describe() or "another rank was asked to"
        logger.info("leaving after step %d (%s): %s", progress.step, StopReason(progress.stop).state, why)
    return progress


def evaluate_unless_asked_to_leave(run: Run, progress: Progress) -> None:
    """The evaluation that is due after a step, if one is. A wish to leave, before or amid it, comes first: there is time for a
    checkpoint alone, and the run evaluates when it goes on."""
    if progress.stop or not _evaluates_after(run, progress.step):
        return
    try:
        progress.held_out = log_held_out(run, progress.step)
    except StopTraining as leave:
        progress.stop = leave.reason


def _evaluates_after(run: Run, step: int) -> bool:
    every = run.config.evaluate_every
    return step == run.num_steps or bool(every and step % every == 0)


def _saves_after(run: Run, progress: Progress) -> bool:
    """Whether a checkpoint is due: the last one, on the way out, by the interval, or of a new best held-out loss."""
    step, every = progress.step, run.config.checkpoint_every
    if step == run.num_steps or progress.stop or (every and step % every == 0):
        return True
    return run.config.result == "best" and progress.held_out is not None and run.checkpoints.is_best(progress.held_out.loss)


def train_step(run: Run, data: Step, lr: float) -> StepResult:
    """Forward and backward over this rank's micro-batches, then one update. One collective at the end gathers what the ranks
    saw, and whether any of them was asked to stop: so all of them stop after the same step."""
    clock, device = run.clock, run.world.device
    began, waited = clock.now(), clock.seconds["data"]
    run.engine.train(lr)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)  # read once, at the end: reading makes the GPU's host wait
    targets, tokens, checksum = 0, 0, 0
    micro_batches = iter(data.micro_batches)
    while True:
        with clock.waiting("data"):
            batch = next(micro_batches, None)
        if batch is None:
            break
        with clock.phase("forward"):
            loss, losses = run.engine.packed.losses(*batch.on(device))
        with clock.phase("backward"):
            run.engine.backward(normalised(loss, data.num_targets, run.world.size))
        loss_sum += losses.sum(dtype=torch.float64)
        targets += len(batch.where)
        tokens += batch.num_tokens
        checksum += batch.checksum
    with clock.phase("optimizer"):
        update = run.engine.step()
    # float64 holds every one of these exactly: a CRC sum stays below 2^53 for two million packs a step
    mine = [float(loss_sum), targets, tokens, checksum, run.stop.reason(), clock.seconds["data"] - waited]
    clock.settle()
    mine += [clock.now() - began, metrics.peak_memory(device)]
    ranks = run.world.gather(torch.tensor(mine, dtype=torch.float64, device=device))
    totals, worst = ranks.sum(0).tolist(), ranks.amax(0).tolist()
    return StepResult(
        loss=totals[0] / max(totals[1], 1), targets=int(totals[1]), tokens=int(totals[2]), checksum=int(totals[3]),
        grad_norm=update.grad_norm, skipped=update.skipped, stop=int(worst[4]), data_seconds=worst[5],
        seconds=worst[6], peak_memory=int(worst[7]),
    )  # fmt: skip


def rewind(run: Run, step: int, fault: str) -> Progress:
    """Go back to the last good checkpoint and leave out the batch of step `step` from now on; where to go on from.

    Raises:
        guards.GuardError: the run is to stop on a bad step, or has gone back often enough.
    """
    if run.config.on_bad_step == "stop":
        raise guards.GuardError(
            f"step {step + 1}: {fault}: the last checkpoint is older; lower lr, look at the data, or set on_bad_step=rewind"
        )
    if len(run.skipped) >= run.config.max_rewinds:
        raise guards.GuardError(f"step {step + 1}: {fault}, after {len(run.skipped)} rewinds: lower lr, or look at the data")
    run.skipped.append(_batch_of(step, run.skipped))
    if run.world.is_main:
        run.folder.write_json("skipped.json", {"batches": run.skipped})  # before anything else: a kill must not forget it
    back, _ = restored(run)
    logger.warning("step %d: %s: going back to step %d without batch %d", step + 1, fault, back.step, run.skipped[-1])
    run.spool.log(step + 1, {"guard/rewinds": len(run.skipped)})
    return back


def _batch_of(step: int, skipped: list[int]) -> int:
    """The batch that step `step` trains on: the batches in their order, without those skipped."""
    batch = step
    for left_out in sorted(skipped):
        batch += left_out <= batch
    return batch


def log_step(run: Run, step: int, result: StepResult, lr: float) -> None:
    speed = result.tokens / result.seconds
    values = {
        "train/loss": result.loss,
        "train/grad_norm": result.grad_norm,
        "train/lr": lr,
        "train/tokens": result.tokens,
        "train/supervised_tokens": result.targets,
        "train/tokens_per_second": speed,
        "train/tokens_per_second_per_rank": speed / run.world.size,
        "train/peak_memory_bytes": result.peak_memory,
        "train/data_seconds": result.data_seconds,
        "train/num_steps": run.num_steps,
        "data/checksum": result.checksum,
    }
    if run.flops_per_token:
        values["train/mfu"] = speed / run.world.size * run.flops_per_token / run.peak.flops
    run.spool.log(step, values)


def log_held_out(run: Run, step: int) -> HeldOut | None:
    """Evaluate after `step` steps, and say so in the spool.

    Raises:
        StopTraining: the ranks were asked to, and left the evaluation after the same batch.
        guards.GuardError: the loss is no number; or documents see each other now, which weights that are still random can hide.
    """
    held_out = evaluate(run)
    if held_out:
        if not math.isfinite(held_out.loss):
            raise guards.GuardError(f"the held-out loss after step {step} is {held_out.loss}: lower lr, or look at the base")
        run.spool.log(step, held_out.as_metrics())
        if step == 0 and run.world.is_main:
            run.folder.write_json("before.json", held_out.as_dict())
    guards.check_isolation(run.engine.packed.logits, run.corpus.tokenizer["vocab_size"], run.world.device)
    return held_out


def evaluate(run: Run) -> HeldOut | None:
    """Measure the held-out loss of the weights in the engine.

    Raises:
        StopTraining: the ranks were asked to, and left the evaluation after the same batch.
    """
    run.engine.eval()
    with run.clock.waiting("evaluation"):
        return held_out_loss(
            run.engine.packed, run.validation, run.config.micro_batch_size, run.corpus.unigram_loss, run.world, run.stop_point
        )


def save_checkpoint(run: Run, progress: Progress, step_seconds: float = 0.0) -> None:
    """Save, and say so if that takes longer than a job is given to leave in."""
    step, held_out = progress.step, progress.held_out
    seen = {
        "tokens": progress.tokens, "targets": progress.targets, "seconds": progress.seconds,
        "rank_seconds": progress.rank_seconds, "num_steps": run.num_steps, "losses": list(progress.check.recent),
        "clock": run.clock.breakdown(),
    }  # fmt: skip
    with run.clock.waiting("checkpoint"):
        stalled = run.checkpoints.save(run.engine, step, seen, held_out.loss if held_out else None)
    run.watchdog.beat()
    run.spool.log(step, {"checkpoint/seconds": stalled})
    cluster, needed = run.config.cluster, stalled + step_seconds
    if cluster.scheduler != "local" and needed > (grace := cluster.signal_lead_s):
        logger.warning(
            "the grace time is too short: finishing a step and saving takes %.0f s, and a job is warned %d s before it is "
            "killed: an interruption loses the steps since the last checkpoint; raise cluster.signal_lead_s to %d", needed, grace,
            math.ceil(2 * needed),
        )  # fmt: skip
        run.spool.log(step, {"checkpoint/seconds_beyond_grace": needed - grace})


def choose_result(run: Run, progress: Progress) -> Result:
    """Bring the weights that are to be saved into the engine: with result=best those with the best held-out loss.

    Raises:
        guards.GuardError: a checkpoint does not restore the weights that were evaluated.
    """
    last = progress.held_out or log_held_out(run, progress.step)
    result = Result(progress.step, last, last)
    if run.config.result == "best" and last is not None:
        step = run.checkpoints.load_best(run.engine, progress.step)
        if step is not None and step != progress.step:
            restored_loss = evaluate(run)
            assert restored_loss is not None
            guards.check_restored(step, restored_loss.loss, run.checkpoints.loss_of(step))
            result = Result(step, restored_loss, last)
    for regression in find_regressions(run, result):
        run.warn(regression.message)
        run.spool.log(progress.step, {f"guard/{regression.name}": 1})
    if result.held_out:
        run.spool.log(progress.step, {"result/step": result.step, "result/loss": result.held_out.loss})
    return result


def find_regressions(run: Run, result: Result) -> Iterator[Regression]:
    """Yield the comparisons that the result loses: with the start, and with token frequencies."""
    if result.held_out is None:
        return
    before, unigram = run.folder.read_json("before.json"), result.held_out.unigram_loss
    measured = f"held-out loss {result.held_out.loss:.3f} after step {result.step}"
    if before and result.held_out.loss > before["loss"]:
        message = f"the result is worse than the start: {measured}, {before['loss']:.3f} before the first: "
        yield Regression("worse_than_start", message + "lower lr, train less, or look at the data")
    if unigram is not None and result.held_out.loss > unigram:
        message = f"the result is worse than token frequencies alone: {measured}, they score {unigram:.3f}: "
        yield Regression("worse_than_unigram", message + "train longer, or look at lr and the data")


def save_result(run: Run) -> None:
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
        guards.check_saved(temporary, written, run.at_start)
        if adapter:
            guards.check_reloads(temporary, trained, written)
        tokenizer.place(run.config.data.corpus_folder / "tokenizer", temporary)
        end_of_turn.declare(temporary, run.corpus.tokenizer, trained)
        shutil.rmtree(final, ignore_errors=True)  # of an attempt that was killed after this point
        temporary.rename(final)
    run.world.barrier()


def _remembered(
    state: Iterable[tuple[str, torch.Tensor]], written: dict[str, torch.Tensor], keep: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass tensors on, and note them for check_saved: an adapter's whole, a model's by shape alone."""
    for name, tensor in state:
        guards.check_finite(name, tensor)
        written[name] = tensor if keep else tensor.to("meta")
        yield name, tensor


def summarise(run: Run, progress: Progress, result: Result) -> None:
    """summary.json: what `finetune train` prints at the end, and what MLflow keeps beside the curves."""
    seconds = {name: round(value, 3) for name, value in run.clock.breakdown().items()}
    run.spool.log(progress.step, {f"time/{name}": value for name, value in seconds.items()})
    if not run.world.is_main:
        return
    speed = progress.tokens / progress.seconds if progress.seconds else None
    mfu = (
        progress.tokens / progress.rank_seconds * run.flops_per_token / run.peak.flops if speed and run.flops_per_token else None
    )
    trained = run.engine.model
    run.folder.write_json(
        "summary.json",
        {
            "run_id": run.folder.id,
            "steps": progress.step,
            "result_step": result.step,
            "data": run.data.counts,
            "token_use": {"train": run.data.account.as_dict(), "validation": run.validation.account.as_dict()},
            "device": str(run.world.device),
            "parameters": sum(_num_elements(p) for p in trained.parameters()),
            "trainable_parameters": sum(_num_elements(p) for p in trained.parameters() if p.requires_grad),
            "tokens": progress.tokens,
            "supervised_tokens": progress.targets,
            "tokens_per_second": speed,
            "mfu": mfu,
            "peak_flops_per_rank": run.peak.flops,
            "peak_flops_origin": run.peak.origin,
            "peak_memory_bytes": metrics.peak_memory(run.world.device),
            "seconds": seconds,
            "skipped_batches": run.skipped,
            "before": run.folder.read_json("before.json"),
            "after": result.held_out.as_dict() if result.held_out else None,
            "best": run.checkpoints.describe_best(),
            "last": {"step": progress.step, "loss": result.last.loss} if result.last else None,
            "new_stop": end_of_turn.new_stop(run.corpus.tokenizer, trained),
            "warnings": run.folder.warnings(),
            "result": str(run.folder.adapter if model.is_adapter(trained) else run.folder.model),
        },
    )


def _speed_limit(trained: torch.nn.Module, config: TrainConfig, world: World) -> tuple[metrics.Peak, float | None]:
    """The device's peak, and the FLOPs of a token (None where no formula holds)."""
    world.barrier()  # ranks that share a CPU measure together
    peak = metrics.peak_of(world.device, pretrained.DTYPES[config.precision])
    try:
        return peak, metrics.flops_per_token(trained)
    except ValueError as fault:
        logger.info("no model FLOPs utilisation: %s", fault)
        return peak, None


def _num_elements(parameter: torch.nn.Parameter) -> int:
    if (quantized := getattr(parameter, "quant_state", None)) is not None:
        return int(math.prod(quantized.shape))  # two 4-bit numbers share a byte
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # under ZeRO-3 a rank holds only its slice
