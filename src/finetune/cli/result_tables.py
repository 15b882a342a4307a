"""What is printed of a run's result: its summary, held-out losses, and the tokens that were not used."""

from __future__ import annotations

import os

from rich.table import Table
from rich.text import Text

from finetune.config.points import describe
from finetune.config.train import DataConfig
from finetune.runs.folder import RunFolder
from finetune.runs.summary import HeldOut, Summary, TokenUse
from finetune.terminal import console


def print_summary(run: RunFolder) -> None:
    """Print what came of a run: its model, speed, losses, what was lost of its tokens, and where the result
    lies."""
    summary, config = run.summary(), run.config()
    assert summary is not None
    out = console()
    kind = f"{config.adapter['peft_type']} adapter" if config.adapter else "full fine-tuning"
    origin = "from scratch (random weights)" if config.model.from_scratch else f"from {config.model.path}"
    speed = (
        f"{summary.tokens_per_second:,.0f} tokens/s" if summary.tokens_per_second else "no step left to do"
    )
    point = f" ({describe(run.point())})" if run.point() else ""
    out.print(Text.assemble("\n", (run.id, "bold"), f"{point}: {kind}, {origin}"))
    out.print(
        f"  {summary.trainable_parameters:,} of {summary.parameters:,} parameters, {summary.steps} steps, {speed}"
    )
    if summary.mfu is not None:
        limit = f"{summary.peak_flops_per_rank / 1e12:.2f} TFLOP/s a rank ({summary.peak_flops_origin})"
        out.print(
            f"  {summary.mfu:.0%} of {limit}, peak memory of a rank {summary.peak_memory_bytes / 2**30:.2f} GiB"
        )
    total = summary.seconds["total"]
    parts = sorted(((s, n) for n, s in summary.seconds.items() if n != "total"), reverse=True)
    shares = ", ".join(f"{name} {seconds / total:.0%}" for seconds, name in parts if seconds > total / 200)
    out.print(f"  {total:.0f} s: {shares}")
    print_held_out(summary.before, summary.after, config.data)
    print_losses(summary.token_use)
    warnings = run.warnings() or summary.warnings
    for line in [*_result_lines(summary), *(f"warning: {message}" for message in warnings[:10])]:
        out.print(Text(f"  {line}", style="yellow" if line.startswith("warning") else ""), soft_wrap=True)
    if summary.new_stop:
        out.print(Text(f"  {_new_stop(summary.new_stop, bool(config.adapter))}"), soft_wrap=True)
    result = os.path.relpath(summary.result)
    shown = summary.result if result.startswith("..") else result
    out.print(f"  {'adapter' if config.adapter else 'model'}: {shown}")


def _new_stop(token: str, is_adapter: bool) -> str:
    """Report that generation stops at the end of a turn now, and what a user of an adapter must do for it."""
    line = f"{token} ends a turn, and is an end of sequence now in generation_config.json"
    if is_adapter:
        return f"{line} beside the adapter: PEFT loads the base's, so give generate() this one (GenerationConfig.from_pretrained)"
    return f"{line} and config.json"


def print_held_out(before: HeldOut | None, after: HeldOut | None, data: DataConfig | None = None) -> None:
    """Print losses before and after; with `data`, the sources that were trained on are marked if not all
    were."""
    if after is None:
        console().print(
            "  no held-out loss: the corpus has no validation documents (corpus.split.validation_share)"
        )
        return
    trained = {source for source in after.by_source if data and data.trains_on(source)}
    mark = trained if trained != set(after.by_source) else set()
    table = Table("  held-out loss (nats a token)", "before", "after", box=None)
    table.add_row("  all", _loss(before.loss if before else None), _loss(after.loss))
    for name, loss in after.by_language.items():
        table.add_row(f"  {name}", _loss(before.by_language.get(name) if before else None), _loss(loss))
    for name, loss in after.by_source.items():
        label = f"  {name} (trained on)" if name in mark else f"  {name}"
        table.add_row(label, _loss(before.by_source.get(name) if before else None), _loss(loss))
    table.add_row("  what token frequencies alone score", "", _loss(after.unigram_loss))
    console().print(table)


def print_losses(token_use: dict[str, TokenUse]) -> None:
    """Print what was dropped, cut off or left without any target, by split; nothing where all tokens are
    used."""
    table = Table(
        "  not used", "source", "written standard", "documents", "tokens", "share", "changed by", box=None
    )
    for split, use in token_use.items():
        for loss in use.losses:
            numbers = f"{loss.documents:,}", f"{loss.tokens:,}", f"{loss.tokens / use.tokens:.1%}"
            table.add_row(f"  {split}: {loss.reason}", loss.source, loss.language, *numbers, loss.setting)
    if table.row_count:
        console().print(table)


def _result_lines(summary: Summary) -> list[str]:
    """Name the step that was saved, where it is not simply the last."""
    best, last, step = summary.best, summary.last, summary.result_step
    if best is None or last is None or best.step == last.step:
        return []
    other = "result=last saves the last" if step == best.step else "result=best saves the best"
    steps = (
        f"best held-out loss {best.loss:.3f} at step {best.step}, {last.loss:.3f} at the last, {last.step}"
    )
    return [f"saved: step {step} ({steps}; {other})"]


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
