"""The end of a run: choose the weights that are its result, save them, and write the summary."""

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
    """The weights that are saved as the result of a run.

    Attributes:
        step: step of these weights: the last one or, with result=best, the one with the best
            held-out loss.
        held_out: evaluation of these weights; None without validation documents.
        last: evaluation of the weights after the last step.
    """

    step: int
    held_out: HeldOut | None
    last: HeldOut | None


@dataclass(frozen=True)
class Regression:
    """A baseline that is better than the result.

    Attributes:
        metric: name of the metric that choose_result logs with the value 1.
        message: warning to log.
    """

    metric: names.Metric
    message: str


def choose_result(run: Run, progress: Progress) -> Result:
    """Choose the weights that are the run's result, and load them into the engine.

    They are the last ones or, with result=best, those with the best held-out loss.

    Raises:
        GuardError: the best checkpoint has another held-out loss after loading than when it was
            saved.
    """
    last = progress.held_out or log_held_out(run, progress.step)
    result = Result(progress.step, last, last)
    if run.config.result == "best" and last is not None:
        step = run.checkpoints.load_best(run.engine, progress.step)
        if step is not None and step != progress.step:
            restored = evaluate(run)
            assert restored is not None
            guards.check_restored(step, restored.loss, run.checkpoints.held_out_loss(step))
            result = Result(step, restored, last)
    for regression in find_regressions(run, result):
        run.warn(regression.message)
        run.spool.log(progress.step, {regression.metric: 1})
    if result.held_out:
        metrics: dict[str, float] = {names.RESULT_STEP: result.step, names.RESULT_LOSS: result.held_out.loss}
        run.spool.log(progress.step, metrics)
    return result


def find_regressions(run: Run, result: Result) -> Iterator[Regression]:
    """Yield each baseline whose held-out loss is lower than the result's.

    The baselines are the initial model, and a prediction of tokens by their frequency.
    """
    if result.held_out is None:
        return
    loss = result.held_out.loss
    unigram_loss = result.held_out.unigram_loss
    initial = read_initial_evaluation(run)
    measured = f"held-out loss {loss:.3f} after step {result.step}"
    if initial and loss > initial.loss:
        message = f"the result is worse than the start: {measured}, but {initial.loss:.3f} before step 1; "
        yield Regression(names.WORSE_THAN_START, message + "lower lr, train less, or check the data")
    if unigram_loss is not None and loss > unigram_loss:
        message = (
            f"the result is worse than token frequencies alone: {measured}, but {unigram_loss:.3f} "
            "if tokens are predicted by their frequency; "
        )
        yield Regression(names.WORSE_THAN_UNIGRAM, message + "train longer, or check lr and the data")


def save_result(run: Run) -> None:
    """Save the result and its tokenizer in model/ (full fine-tuning) or adapter/; check the files.

    Raises:
        GuardError: a weight contains NaN or Inf, or the files differ from the trained weights.
        UserError: PEFT cannot save the adapter, or the tokenizer does not fit the model.
    """
    model = run.engine.model
    is_main = run.world.is_main
    is_adapter = save.is_adapter(model)
    final = run.folder.adapter if is_adapter else run.folder.model
    temporary = layout.temporary_folder(final)
    if is_main:
        shutil.rmtree(temporary, ignore_errors=True)  # of an attempt that was killed while saving
    written: dict[str, torch.Tensor] = {}
    state = save.gather_weights(model, trainable_only=is_adapter)
    save.save(model, _record_tensors(state, written, keep_values=is_adapter), temporary, is_main)
    if is_main:
        checks.check_saved(temporary, written, run.initial_adapter)
        if is_adapter:
            checks.check_reloads(temporary, model, written)
        tokenizer.copy_files(run.config.data.corpus_folder / "tokenizer", temporary)
        end_of_turn.declare(temporary, run.corpus.tokenizer, model)
        shutil.rmtree(final, ignore_errors=True)  # of an attempt that was killed after its rename
        temporary.rename(final)
    run.world.barrier()


def _record_tensors(
    state: Iterable[tuple[str, torch.Tensor]], written: dict[str, torch.Tensor], keep_values: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of `state`, and add each to `written`.

    Args:
        keep_values: add the tensors themselves; otherwise meta tensors of their shapes.

    Raises:
        GuardError: a tensor contains NaN or Inf.
    """
    for name, tensor in state:
        checks.check_finite(name, tensor)
        written[name] = tensor if keep_values else tensor.to("meta")
        yield name, tensor


def write_summary(run: Run, progress: Progress, result: Result) -> None:
    """Write summary.json, which `finetune train` prints at the end and MLflow stores."""
    seconds = {name: round(value, 3) for name, value in run.clock.breakdown().items()}
    run.spool.log(progress.step, {names.TIME.of(name): value for name, value in seconds.items()})
    if not run.world.is_main:
        return
    model = run.engine.model
    parameters = list(model.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    summary = Summary(
        run_id=run.folder.id,
        steps=progress.step,
        result_step=result.step,
        data=run.data.counts,
        token_use={"train": run.data.account.token_use(), "validation": run.validation.account.token_use()},
        device=str(run.world.device),
        parameters=sum(_num_elements(parameter) for parameter in parameters),
        trainable_parameters=sum(_num_elements(parameter) for parameter in trainable),
        tokens=progress.tokens,
        supervised_tokens=progress.targets,
        tokens_per_second=progress.tokens / progress.seconds if progress.seconds else None,
        mfu=_utilisation(run, progress),
        peak_flops_per_rank=run.peak.flops,
        peak_flops_origin=run.peak.origin,
        peak_memory_bytes=throughput.peak_memory(run.world.device),
        seconds=seconds,
        skipped_batches=run.skipped_batches,
        before=read_initial_evaluation(run),
        after=result.held_out,
        best=run.checkpoints.find_best_loss(),
        last=StepLoss(step=progress.step, loss=result.last.loss) if result.last else None,
        new_stop=end_of_turn.find_new_stop(run.corpus.tokenizer, model),
        warnings=run.folder.warnings(),
        result=str(run.folder.adapter if save.is_adapter(model) else run.folder.model),
    )
    run.folder.write_json(layout.SUMMARY, summary.to_json())


def read_initial_evaluation(run: Run) -> HeldOut | None:
    """Return the evaluation before the first step; None without validation documents."""
    evaluation = run.folder.read_json(layout.BEFORE)
    return None if evaluation is None else HeldOut(**evaluation)


def _utilisation(run: Run, progress: Progress) -> float | None:
    """Return the model FLOPs utilisation over all steps.

    Return None if the model FLOPs are unknown or no step was trained.
    """
    if not (progress.tokens and progress.seconds and run.flops_per_token):
        return None
    return progress.tokens / progress.rank_seconds * run.flops_per_token / run.peak.flops


def _num_elements(parameter: torch.nn.Parameter) -> int:
    quantized = getattr(parameter, "quant_state", None)
    if quantized is not None:
        return int(math.prod(quantized.shape))  # the tensor itself has two 4-bit numbers per byte
    # under ZeRO-3 the tensor itself is empty
    return int(getattr(parameter, "ds_numel", parameter.numel()))
