"""Tables of preparations and corpora: their steps, stages, sources and lengths."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.runs.state import JobState
from finetune.terminal import console, format_count

if TYPE_CHECKING:
    from finetune.launch.prepare_jobs import PrepareRun


def print_steps(preparations: list[PrepareRun]) -> None:
    """Print the Slurm jobs of preparations, with their steps and states."""
    table = Table("prepare run", "step", "job", "state", box=None)
    failed = []
    for run in preparations:
        states = run.states()
        for steps, job in run.jobs.items():
            state = states[job].lower() or "no longer known to Slurm"
            if states[job] == JobState.RUNNING:
                current = run.current_step()
                if current not in (None, steps):
                    state = f"{state}: {current}"
            table.add_row(run.id, steps, job, state)
        if {*states.values()} & {JobState.FAILED, JobState.OUT_OF_MEMORY, JobState.TIMEOUT}:
            failed.append(run.id)
    console(stderr=False).print(table)
    for run_id in failed:
        console().print(f"{run_id} failed; its logs: finetune logs {run_id}")


def print_corpus(prepared: Any) -> None:
    """Print the stages, sources and splits of a corpus that has just been prepared."""
    out = console()
    out.print(_stage_table(prepared.manifest, prepared.skipped))
    _print_sources(out, prepared.manifest)
    out.print(_split_line(prepared.folder, prepared.manifest))


def print_corpus_overview(corpus: Any) -> None:
    """Print the stages, sources and splits of a corpus, and the options of `finetune inspect`."""
    manifest = corpus.manifest
    out = console(stderr=False)
    out.print(_stage_table(manifest, []))
    _print_sources(out, manifest)
    out.print(_split_line(corpus.folder, manifest))
    options = "--sample 3, --dropped, --cut, --find TEXT, --tokens or --lengths"
    more = f"details: finetune inspect {corpus.folder} with {options}; description: {corpus.folder}/README.md"
    out.print(Text(more), soft_wrap=True)


def _stage_table(manifest: Any, skipped: list[str]) -> Table:
    stages = Table("stage", "in", "out", "dropped", "counted", box=None)
    for info in manifest.stages:
        name = info.name
        if name in skipped:
            name += " (done before)"
        documents = (str(info.documents_in), str(info.documents_out))
        stages.add_row(name, *documents, _format_counts(info.dropped), _format_counts(info.counts))
    return stages


def _print_sources(out: Console, manifest: Any) -> None:
    """Print a table of documents and tokens, a table of removed text by source, and warnings."""
    out.print(_source_table(manifest))
    if any(stage.losses for stage in manifest.stages):
        out.print(_loss_table(manifest))
    for line in manifest.warnings():
        out.print(Text(line, style="yellow"), soft_wrap=True)


def _loss_table(manifest: Any) -> Table:
    """Return a table with the share of text that was removed, for each source and reason."""
    table = Table("source", "characters read", "text removed, by reason", box=None)
    for name, source in manifest.sources.items():
        shares: Counter[str] = Counter()
        for loss in (loss for stage in manifest.stages for loss in stage.losses if loss.source == name):
            shares[loss.reason] += loss.characters / max(source.characters_read, 1)
        removed = "none"
        if shares:
            reasons = ", ".join(f"{reason} {share:.1%}" for reason, share in shares.most_common())
            removed = f"{sum(shares.values()):.1%}: {reasons}"
        table.add_row(name, f"{source.characters_read:,}", removed)
    return table


def _source_table(manifest: Any) -> Table:
    sources = Table("source", "licence", "documents (tokens) by split and written standard", box=None)
    for name, source in manifest.sources.items():
        keys = sorted(source.documents)
        parts = [f"{key} {source.documents[key]} ({_format_tokens(source, key)})" for key in keys]
        sources.add_row(name, source.license, "  ".join(parts))
    return sources


def _split_line(folder: Any, manifest: Any) -> Text:
    parts = []
    for split in manifest.splits:
        documents = format_count(manifest.documents(split), "document")
        parts.append(f"{split} {documents}, {manifest.tokens(split):,} tokens")
    parts.append(f"vocabulary {manifest.tokenizer.vocab_size}")
    return Text(f"corpus {folder}: {'; '.join(parts)}")


def _format_tokens(source: Any, key: str) -> str:
    """Return a source's number of tokens, followed by its number of training targets.

    The number of targets is left out if all tokens but the first of each document are targets.

    Args:
        key: the manifest's key of a split and written standard.
    """
    tokens = source.tokens[key]
    targets = source.supervised_tokens[key]
    if targets == tokens - source.documents[key]:
        return f"{tokens:,}"
    return f"{tokens:,}, {targets:,} targets"


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def print_lengths(sources: dict[str, list[tuple[int, int, int]]]) -> None:
    """Print a histogram of tokens per document for each source.

    The documents are counted as rows of the corpus; a conversation may have a row for each turn.

    Args:
        sources: for each source its bins, as (lowest length, highest length, number of rows).
    """
    out = console(stderr=False)
    for source, rows in sources.items():
        most = max((count for _, _, count in rows), default=1)
        out.print(Text(f"{source}: tokens per document", style="bold"))
        for low, high, count in rows:
            length = max(1, round(40 * count / most)) if count else 0
            out.print(Text(f" {f'{low:,}–{high:,}':>20} {count:>9,} {'█' * length}"))
