"""The end of a run: which weights are its result, saved and checked, and the summary of the run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from finetune.models import checks, end_of_turn, save, tokenizer
from finetune.runs import layout
from finetune.runs.summary import HeldOut, StepLoss, Summary
from finetune.tracking import names
from finetune.training import guards, throughput
from finetune.training.periodic import evaluate, log_held_out
from finetune.training.run import Progress, Run


@dataclass
class Result:
    """The weights that are saved, by optimizer step, and their evaluation.

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
    """A comparison that a result loses: the metric that says so, and a warning."""

    metric: names.Metric
    message: str


def choose_result(run: Run, progress: Progress) -> Result:
    """Bring the weights that are to be saved into the engine: with result=best those with the best held-out
    loss.

    Raises:
        GuardError: a checkpoint does not restore the weights that were evaluated.
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
        run.spool.log(progress.step, {regression.metric: 1})
    if result.held_out:
        run.spool.log(
            progress.step, {names.RESULT_STEP: result.step, names.RESULT_LOSS: result.held_out.loss}
        )
    return result


def find_regressions(run: Run, result: Result) -> Iterator[Regression]:
    """Yield the comparisons that the result loses: with the start, and with token frequencies."""
    if result.held_out is None:
        return
    before, unigram = held_out_before(run), result.held_out.unigram_loss
    measured = f"held-out loss {result.held_out.loss:.3f} after step {result.step}"
    if before and result.held_out.loss > before.loss:
        message = f"the result is worse than the start: {measured}, {before.loss:.3f} before the first: "
        yield Regression(names.WORSE_THAN_START, message + "lower lr, train less, or look at the data")
    if unigram is not None and result.held_out.loss > unigram:
        message = f"the result is worse than token frequencies alone: {measured}, they score {unigram:.3f}: "
        yield Regression(names.WORSE_THAN_UNIGRAM, message + "train longer, or look at lr and the data")


def save_result(run: Run) -> None:
    """Write model/ (full fine-tuning) or adapter/, with the tokenizer, and check what was written."""
    trained, is_main = run.engine.model, run.world.is_main
    adapter = save.is_adapter(trained)
    final = run.folder.adapter if adapter else run.folder.model
    temporary = layout.temporary_folder(final)
    if is_main:
        shutil.rmtree(temporary, ignore_errors=True)  # of an attempt that was killed here
    written: dict[str, torch.Tensor] = {}
    state = save.weights(trained, trainable_only=adapter)
    save.save(trained, _note_tensors(state, written, keep=adapter), temporary, is_main)
    if is_main:
        checks.check_saved(temporary, written, run.at_start)
        if adapter:
            checks.check_reloads(temporary, trained, written)
        tokenizer.place(run.config.data.corpus_folder / "tokenizer", temporary)
        end_of_turn.declare(temporary, run.corpus.tokenizer, trained)
        shutil.rmtree(final, ignore_errors=True)  # of an attempt that was killed after this point
        temporary.rename(final)
    run.world.barrier()


def _note_tensors(
    state: Iterable[tuple[str, torch.Tensor]], written: dict[str, torch.Tensor], keep: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass tensors on, and note them for check_saved: an adapter's whole, a model's by shape alone."""
    for name, tensor in state:
        checks.check_finite(name, tensor)
        written[name] = tensor if keep else tensor.to("meta")
        yield name, tensor


def write_summary(run: Run, progress: Progress, result: Result) -> None:
    """Write summary.json: what `finetune train` prints at the end, and what MLflow keeps beside the
    curves."""
    seconds = {name: round(value, 3) for name, value in run.clock.breakdown().items()}
    run.spool.log(progress.step, {names.TIME.of(name): value for name, value in seconds.items()})
    if not run.world.is_main:
        return
    trained = run.engine.model
    parameters = list(trained.parameters())
    summary = Summary(
        run_id=run.folder.id,
        steps=progress.step,
        result_step=result.step,
        data=run.data.counts,
        token_use={"train": run.data.account.token_use(), "validation": run.validation.account.token_use()},
        device=str(run.world.device),
        parameters=sum(_num_elements(parameter) for parameter in parameters),
        trainable_parameters=sum(
            _num_elements(parameter) for parameter in parameters if parameter.requires_grad
        ),
        tokens=progress.tokens,
        supervised_tokens=progress.targets,
        tokens_per_second=progress.tokens / progress.seconds if progress.seconds else None,
        mfu=_utilisation(run, progress),
        peak_flops_per_rank=run.peak.flops,
        peak_flops_origin=run.peak.origin,
        peak_memory_bytes=throughput.peak_memory(run.world.device),
        seconds=seconds,
        skipped_batches=run.skipped,
        before=held_out_before(run),
        after=result.held_out,
        best=run.checkpoints.best_loss(),
        last=StepLoss(step=progress.step, loss=result.last.loss) if result.last else None,
        new_stop=end_of_turn.new_stop(run.corpus.tokenizer, trained),
        warnings=run.folder.warnings(),
        result=str(run.folder.adapter if save.is_adapter(trained) else run.folder.model),
    )
    run.folder.write_json(layout.SUMMARY, summary.to_json())


def held_out_before(run: Run) -> HeldOut | None:
    """Return the evaluation of the untrained model; None without validation documents."""
    before = run.folder.read_json(layout.BEFORE)
    return None if before is None else HeldOut(**before)


def _utilisation(run: Run, progress: Progress) -> float | None:
    """Return the model FLOPs utilisation over all steps; None where no formula holds or no step was taken."""
    if not (progress.tokens and progress.seconds and run.flops_per_token):
        return None
    return progress.tokens / progress.rank_seconds * run.flops_per_token / run.peak.flops


def _num_elements(parameter: torch.nn.Parameter) -> int:
    if (quantized := getattr(parameter, "quant_state", None)) is not None:
        return int(math.prod(quantized.shape))  # two 4-bit numbers share a byte
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # under ZeRO-3 a rank holds only its slice
