"""Tables of a run's result: its summary, held-out losses, and the tokens that were not used."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.config.points import describe
from finetune.config.train import DataConfig, TrainConfig
from finetune.runs.folder import RunFolder
from finetune.runs.summary import HeldOut, Summary, TokenUse
from finetune.terminal import console, short_path


def print_summary(run: RunFolder) -> None:
    """Print a run's model, speed, losses, unused tokens, warnings and the path of its result."""
    summary = run.summary()
    config = run.config()
    assert summary is not None
    out = console()
    point = f" ({describe(run.point())})" if run.point() else ""
    out.print(Text.assemble("\n", (run.id, "bold"), f"{point}: {_describe_training(config)}"))
    _print_speed(out, summary)
    print_held_out(summary.before, summary.after, config.data)
    print_losses(summary.token_use)
    saved = _describe_saved_step(summary)
    if saved:
        out.print(Text(f"  {saved}"), soft_wrap=True)
    warnings = run.warnings() or summary.warnings
    for message in warnings[:10]:
        out.print(Text(f"  warning: {message}", style="yellow"), soft_wrap=True)
    is_adapter = bool(config.adapter)
    if summary.new_stop:
        out.print(Text(f"  {_describe_new_stop(summary.new_stop, is_adapter)}"), soft_wrap=True)
    label = "adapter" if is_adapter else "model"
    out.print(f"  {label}: {short_path(summary.result)}")


def _describe_training(config: TrainConfig) -> str:
    """Return the kind of training and the model's origin, such as `LORA adapter, from FOLDER`."""
    kind = "full fine-tuning"
    if config.adapter:
        kind = f"{config.adapter['peft_type']} adapter"
    if config.model.from_scratch:
        return f"{kind}, from scratch (random weights)"
    return f"{kind}, from {config.model.path}"


def _print_speed(out: Console, summary: Summary) -> None:
    """Print the model's size, the number of steps, the throughput, and the time by activity."""
    speed = "no step left to do"
    if summary.tokens_per_second:
        speed = f"{summary.tokens_per_second:,.0f} tokens/s"
    parameters = f"trained {summary.trainable_parameters:,} of {summary.parameters:,} parameters"
    out.print(f"  {parameters}, {summary.steps} steps, {speed}")
    if summary.mfu is not None:
        peak = f"{summary.peak_flops_per_rank / 1e12:.2f} TFLOP/s per rank ({summary.peak_flops_origin})"
        memory = f"{summary.peak_memory_bytes / 2**30:.2f} GiB"
        out.print(f"  MFU {summary.mfu:.0%} of a peak of {peak}; peak memory per rank {memory}")
    total = summary.seconds["total"]
    parts = sorted(((s, n) for n, s in summary.seconds.items() if n != "total"), reverse=True)
    shares = ", ".join(f"{name} {seconds / total:.0%}" for seconds, name in parts if seconds > total / 200)
    out.print(f"  {total:.0f} s: {shares}")


def _describe_new_stop(token: str, is_adapter: bool) -> str:
    """Return a note that a token was added to those that end generation.

    Args:
        is_adapter: the note also says to pass the adapter's generation config to generate().
    """
    line = f"{token} ends a turn and is now an end-of-sequence token in generation_config.json"
    if is_adapter:
        return (
            f"{line} beside the adapter; PEFT loads the base's generation_config.json instead, so pass "
            "the adapter's to generate() (GenerationConfig.from_pretrained)"
        )
    return f"{line} and config.json"


def print_held_out(before: HeldOut | None, after: HeldOut | None, data: DataConfig | None = None) -> None:
    """Print the held-out losses before and after training.

    Args:
        data: the run's data settings. If they exclude sources, the sources trained on are marked.
            None: no source is marked.
    """
    if after is None:
        console().print(
            "  no held-out loss: the corpus has no validation documents (corpus.split.validation_share)"
        )
        return
    marked = {source for source in after.by_source if data and data.trains_on(source)}
    if marked == set(after.by_source):
        marked = set()
    loss_before: float | None = None
    languages_before: dict[str, float] = {}
    sources_before: dict[str, float] = {}
    if before is not None:
        loss_before = before.loss
        languages_before = before.by_language
        sources_before = before.by_source
    table = Table("  held-out loss (nats per token)", "before", "after", box=None)
    table.add_row("  all", _format_loss(loss_before), _format_loss(after.loss))
    for name, loss in after.by_language.items():
        table.add_row(f"  {name}", _format_loss(languages_before.get(name)), _format_loss(loss))
    for name, loss in after.by_source.items():
        label = f"  {name} (trained on)" if name in marked else f"  {name}"
        table.add_row(label, _format_loss(sources_before.get(name)), _format_loss(loss))
    table.add_row("  unigram baseline (token frequencies)", "", _format_loss(after.unigram_loss))
    console().print(table)


def print_losses(token_use: dict[str, TokenUse]) -> None:
    """Print how many documents and tokens are not used, by split, reason and source.

    Nothing is printed if all are used.
    """
    table = Table(
        "  not used", "source", "written standard", "documents", "tokens", "share", "changed by", box=None
    )
    for split, use in token_use.items():
        for loss in use.losses:
            numbers = f"{loss.documents:,}", f"{loss.tokens:,}", f"{loss.tokens / use.tokens:.1%}"
            table.add_row(f"  {split}: {loss.reason}", loss.source, loss.language, *numbers, loss.setting)
    if table.row_count:
        console().print(table)


def _describe_saved_step(summary: Summary) -> str:
    """Return a note on the step whose weights were saved; "" if the best step is the last one."""
    best = summary.best
    last = summary.last
    step = summary.result_step
    if best is None or last is None or best.step == last.step:
        return ""
    alternative = "result=last saves the last" if step == best.step else "result=best saves the best"
    losses = (
        f"best held-out loss {best.loss:.3f} at step {best.step}, {last.loss:.3f} at the last, {last.step}"
    )
    return f"saved: step {step} ({losses}; {alternative})"


def _format_loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
