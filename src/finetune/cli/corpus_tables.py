"""What is printed of preparations and of corpora: their steps, stages, sources and lengths."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.runs.state import JobState
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
            at_work = run.current_step() if states[job] == JobState.RUNNING else None
            table.add_row(
                run.id, steps, job, f"{state}: {at_work}" if at_work not in (None, steps) else state
            )
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


def _stage_table(manifest: Any, skipped: list[str]) -> Table:
    stages = Table("stage", "in", "out", "dropped", "counted", box=None)
    for info in manifest.stages:
        name = f"{info.name} (done before)" if info.name in skipped else info.name
        stages.add_row(
            name, str(info.documents_in), str(info.documents_out), _counts(info.dropped), _counts(info.counts)
        )
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
        table.add_row(
            name,
            f"{source.characters_read:,}",
            f"{sum(shares.values()):.1%}: {reasons}" if reasons else "none",
        )
    return table


def _source_table(manifest: Any) -> Table:
    sources = Table("source", "licence", "documents (tokens) by split and written standard", box=None)
    for name, source in manifest.sources.items():
        parts = [
            f"{key} {source.documents[key]} ({_tokens(source, key)})" for key in sorted(source.documents)
        ]
        sources.add_row(name, source.license, "  ".join(parts))
    return sources


def _split_line(folder: Any, manifest: Any) -> Text:
    splits = ", ".join(
        f"{s} {manifest.documents(s)} documents, {manifest.tokens(s):,} tokens" for s in manifest.splits
    )
    return Text(f"corpus {folder}: {splits}; vocabulary {manifest.tokenizer.vocab_size}")


def _tokens(source: Any, key: str) -> str:
    """Tokens, and how many of them are targets where not all are; a row's first token never is."""
    tokens, targets = source.tokens[key], source.supervised_tokens[key]
    return f"{tokens:,}" if targets == tokens - source.documents[key] else f"{tokens:,}, {targets:,} to learn"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def print_lengths(sources: dict[str, list[tuple[int, int, int]]]) -> None:
    """Tokens a row, by source, as bars."""
    out = console(stderr=False)
    for source, rows in sources.items():
        most = max((count for _, _, count in rows), default=1)
        out.print(Text(f"{source}: tokens a row", style="bold"))
        for low, high, count in rows:
            out.print(
                Text(
                    f" {f'{low:,}–{high:,}':>20} {count:>9,} {'█' * max(1, round(40 * count / most)) if count else ''}"
                )
            )
