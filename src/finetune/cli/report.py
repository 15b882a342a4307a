"""What people read: tables of corpora, runs and losses. On stderr, but for what was asked for by name."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.config.points import describe
from finetune.config.train import DataConfig
from finetune.runs.folder import RunFolder
from finetune.runs.state import JobState
from finetune.runs.summary import HeldOut, Summary, TokenUse
from finetune.terminal import console

if TYPE_CHECKING:
    from finetune.launch.prepare_jobs import PrepareRun


def print_steps(preparations: list[PrepareRun]) -> None:
    """Print the jobs of preparations on Slurm: which steps each does, and its state."""
    table = Table("prepare run", "step", "job", "state", box=None)
    failed = []
    for run in preparations:
        states = run.states()
        for steps, job in run.jobs.items():
            state = states[job].lower() or "unknown to Slurm by now"
            at_work = run.step_at_work() if states[job] == JobState.RUNNING else None
            table.add_row(run.id, steps, job, f"{state}: {at_work}" if at_work not in (None, steps) else state)
        if {*states.values()} & {JobState.FAILED, JobState.OUT_OF_MEMORY, JobState.TIMEOUT}:
            failed.append(run.id)
    console(stderr=False).print(table)
    for run_id in failed:
        console().print(f"why it failed: finetune logs {run_id}")


def print_corpus(prepared: Any) -> None:
    out = console()
    out.print(_stage_table(prepared.manifest, prepared.skipped))
    _print_sources(out, prepared.manifest)
    out.print(_split_line(prepared.folder, prepared.manifest))


def _stage_table(manifest: Any, skipped: list[str]) -> Table:
    stages = Table("stage", "in", "out", "dropped", "counted", box=None)
    for info in manifest.stages:
        name = f"{info.name} (done before)" if info.name in skipped else info.name
        stages.add_row(name, str(info.documents_in), str(info.documents_out), _counts(info.dropped), _counts(info.counts))
    return stages


def _print_sources(out: Console, manifest: Any) -> None:
    """What each source gave and lost, and what should be known of it."""
    out.print(_source_table(manifest))
    if any(stage.losses for stage in manifest.stages):
        out.print(_loss_table(manifest))
    for line in manifest.warnings():
        out.print(Text(line, style="yellow"), soft_wrap=True)


def _loss_table(manifest: Any) -> Table:
    """The share of each source's text that stages took, by reason, largest first."""
    table = Table("source", "characters read", "text taken, by reason", box=None)
    for name, source in manifest.sources.items():
        shares: Counter[str] = Counter()
        for loss in (loss for stage in manifest.stages for loss in stage.losses if loss.source == name):
            shares[loss.reason] += loss.characters / max(source.characters_read, 1)
        reasons = ", ".join(f"{reason} {share:.1%}" for reason, share in shares.most_common())
        table.add_row(name, f"{source.characters_read:,}", f"{sum(shares.values()):.1%}: {reasons}" if reasons else "none")
    return table


def _source_table(manifest: Any) -> Table:
    sources = Table("source", "licence", "documents (tokens) by split and written standard", box=None)
    for name, source in manifest.sources.items():
        parts = [f"{key} {source.documents[key]} ({_tokens(source, key)})" for key in sorted(source.documents)]
        sources.add_row(name, source.license, "  ".join(parts))
    return sources


def _split_line(folder: Any, manifest: Any) -> Text:
    splits = ", ".join(f"{s} {manifest.documents(s)} documents, {manifest.tokens(s):,} tokens" for s in manifest.splits)
    return Text(f"corpus {folder}: {splits}; vocabulary {manifest.tokenizer.vocab_size}")


def _tokens(source: Any, key: str) -> str:
    """Tokens, and how many of them are targets where not all are; a row's first token never is."""
    tokens, targets = source.tokens[key], source.supervised_tokens[key]
    return f"{tokens:,}" if targets == tokens - source.documents[key] else f"{tokens:,}, {targets:,} to learn"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def print_corpus_overview(corpus: Any) -> None:
    """What a corpus holds and lost, for whoever opens it."""
    manifest = corpus.manifest
    out = console(stderr=False)
    out.print(_stage_table(manifest, []))
    _print_sources(out, manifest)
    out.print(_split_line(corpus.folder, manifest))
    name = Text(
        f"more: finetune inspect {corpus.folder} --sample 3, --dropped, --cut, --find TEXT, --tokens, --lengths; "
        f"{corpus.folder}/README.md"
    )
    out.print(name, soft_wrap=True)


def print_trace(views: list[Any], name: tuple[str, str], characters: int) -> None:
    """What each stage did to one document."""
    out = console(stderr=False)
    out.print(Text("/".join(name), style="bold"), soft_wrap=True)
    for view in views:
        changes = ", ".join(
            f"{field} {was or '–'} → {now}" if was else f"{field} {now}" for field, (was, now) in view.fields.items()
        )
        why = f": {view.drop.reason}" + (f" ({view.drop.detail})" if view.drop.detail else "") if view.drop else ""
        style = {"dropped": "red", "gone": "red", "changed": "yellow"}.get(view.outcome, "")
        out.print(Text(f" {view.stage:<14} {view.outcome}{why}{'; ' + changes if changes else ''}", style=style), soft_wrap=True)
        if view.text:
            out.print(Text(clipped(view.text, characters)), soft_wrap=True)
        for line in clipped("\n".join(view.diff), characters).split("\n") if view.diff else []:
            out.print(Text(f"   {line}", style={"+": "green", "-": "red"}.get(line[:1], "dim")), soft_wrap=True)
    out.print()


def print_tokens(views: list[Any], name: tuple[str, str], characters: int) -> None:
    """The tokens of one document, parted by a thin bar; targets are green (on paper: between « and »)."""
    out = console(stderr=False)
    if not views:
        out.print(Text(f"{'/'.join(name)} has no tokens: it was dropped, or its id was masked", style="red"), soft_wrap=True)
    for view in views:
        out.print(Text(f"{view.source}/{view.id} ({view.split}): {view.tokens} tokens, {view.targets} targets", style="bold"))
        line, shown, inside = Text(), 0, False
        for text, _, target in view.pieces:
            if target != inside:
                line.append("«" if target else "»", style="dim")
                inside = target
            elif shown:
                line.append("|", style="dim")
            line.append(text, style="green" if target else "")
            shown += len(text)
            if characters and shown > characters:
                line.append(" …", style="dim")
                break
        else:
            line.append("»" if inside else "", style="dim")
        out.print(line, soft_wrap=True)
        out.print()


def print_cuts(cuts: list[tuple[str, Any]], number: int, characters: int) -> None:
    """Print what stages cut from documents: in how many, the first of them, and the text.

    Args:
        number: how many lines of each place are shown; 0 for all.
    """
    out = console(stderr=False)
    if not cuts:
        out.print("no line was cut from a document")
    places: dict[tuple[str, str, str], list[Any]] = {}
    for stage, cut in cuts:
        places.setdefault((stage, cut.source, cut.reason), []).append(cut)
    for (stage, source, reason), found in places.items():
        out.print(Text(f"{stage}: {source}: {reason}: {len(found):,} different lines", style="bold"), soft_wrap=True)
        shown = found[:number] if number else found
        for cut in shown:
            where = f"{cut.documents:>7,} documents, as {cut.source}/{cut.example}: "
            out.print(Text(f" {where}{clipped(cut.text, characters)}"), soft_wrap=True)
        if len(shown) < len(found):
            out.print(f" … and {len(found) - len(shown):,} more")
        out.print()


def print_lengths(sources: dict[str, list[tuple[int, int, int]]]) -> None:
    """Tokens a row, by source, as bars."""
    out = console(stderr=False)
    for source, rows in sources.items():
        most = max((count for _, _, count in rows), default=1)
        out.print(Text(f"{source}: tokens a row", style="bold"))
        for low, high, count in rows:
            out.print(Text(f" {f'{low:,}–{high:,}':>20} {count:>9,} {'█' * max(1, round(40 * count / most)) if count else ''}"))


def clipped(text: str, characters: int) -> str:
    return text if not characters or len(text) <= characters else f"{text[:characters]} … ({len(text):,} characters)"


def print_summary(run: RunFolder) -> None:
    """Print what came of a run: its model, speed, losses, what was lost of its tokens, and where the result lies."""
    summary, config = run.summary(), run.config()
    assert summary is not None
    out = console()
    kind = f"{config.adapter['peft_type']} adapter" if config.adapter else "full fine-tuning"
    origin = "from scratch (random weights)" if config.model.from_scratch else f"from {config.model.path}"
    speed = f"{summary.tokens_per_second:,.0f} tokens/s" if summary.tokens_per_second else "no step left to do"
    point = f" ({describe(run.point())})" if run.point() else ""
    out.print(Text.assemble("\n", (run.id, "bold"), f"{point}: {kind}, {origin}"))
    out.print(f"  {summary.trainable_parameters:,} of {summary.parameters:,} parameters, {summary.steps} steps, {speed}")
    if summary.mfu is not None:
        limit = f"{summary.peak_flops_per_rank / 1e12:.2f} TFLOP/s a rank ({summary.peak_flops_origin})"
        out.print(f"  {summary.mfu:.0%} of {limit}, peak memory of a rank {summary.peak_memory_bytes / 2**30:.2f} GiB")
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
    """Print losses before and after; with `data`, the sources that were trained on are marked if not all were."""
    if after is None:
        console().print("  no held-out loss: the corpus has no validation documents (corpus.split.validation_share)")
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
    """Print what was dropped, cut off or left without any target, by split; nothing where all tokens are used."""
    table = Table("  not used", "source", "written standard", "documents", "tokens", "share", "changed by", box=None)
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
    steps = f"best held-out loss {best.loss:.3f} at step {best.step}, {last.loss:.3f} at the last, {last.step}"
    return [f"saved: step {step} ({steps}; {other})"]


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
