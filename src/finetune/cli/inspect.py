"""What `finetune inspect` prints of documents that were dropped, quarantined or searched for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from data_prep.inspection import QUARANTINED
from finetune.cli.report import clipped
from finetune.terminal import console

if TYPE_CHECKING:
    from data_prep.inspection import Inspection
    from data_prep.quarantine import Quarantined
    from data_prep.text_search import Found, Hit


def print_dropped(inspection: Inspection, reason: str | None, number: int, seed: int, characters: int) -> None:
    """Print some of what was dropped, with the text as the stage got it, and of the records that could not be read.

    Args:
        reason: of a drop, or `quarantined`; None for all.
    """
    out = console(stderr=False)
    counts = inspection.quarantine_counts() if reason in (None, QUARANTINED) else {}
    dropped = [] if reason == QUARANTINED and counts else inspection.dropped(reason, number, seed)
    for drop, stage, text in dropped:
        detail = f" ({drop.detail})" if drop.detail else ""
        out.print(Text(f"{drop.source}/{drop.id}: {stage}: {drop.reason}{detail}", style="bold red"), soft_wrap=True)
        out.print(Text(clipped(text, characters) or "(no text)"), soft_wrap=True)
        out.print()
    if not counts:
        return
    for record in inspection.quarantined(number, seed):
        _print_quarantined(out, record, characters)
    listed = ", ".join(f"{source} {count:,}" for source, count in counts.items())
    shown = min(number, sum(counts.values()))
    out.print(Text(f"{sum(counts.values()):,} records are quarantined, {shown:,} shown (--sample N): {listed}"), soft_wrap=True)


def _print_quarantined(out: Console, quarantined: Quarantined, characters: int) -> None:
    record = quarantined.record
    place = ":".join(part for part in (record.file, record.member, record.at) if part)
    out.print(Text(f"{record.source}: {place}: {QUARANTINED}: {record.error}", style="bold red"), soft_wrap=True)
    out.print(Text(clipped(quarantined.raw, characters) or "(its raw text cannot be read)"), soft_wrap=True)
    out.print()


def print_found(found: Found, text: str, characters: int) -> None:
    """Print the documents that hold a text: where it is in them, and what became of them.

    Raises:
        ValueError: no document holds it.
    """
    if not found.documents and not found.quarantined:
        raise ValueError(f"--find: no document holds '{text}', at any stage")
    out = console(stderr=False)
    for hit in found.hits:
        out.print(Text(f"{hit.source}/{hit.id}: {_fate(hit)}", style="bold"), soft_wrap=True)
        line = Text(f"  {hit.before}")
        line.append(hit.match, style="green")
        line.append(hit.after)
        out.print(line, soft_wrap=True)
    for record in found.quarantined[: max(5, len(found.hits))]:
        _print_quarantined(out, record, characters)
    noun = "record" if len(found.quarantined) == 1 else "records"
    records = f", and {len(found.quarantined):,} quarantined {noun}" if found.quarantined else ""
    shown = f", {len(found.hits):,} shown (--sample N)" if len(found.hits) < found.documents else ""
    documents = "document holds" if found.documents == 1 else "documents hold"
    out.print(Text(f"{found.documents:,} {documents} '{text}'{shown}{records}"), soft_wrap=True)


def _fate(hit: Hit) -> str:
    """Return after which stages the text is there, and what ended that."""
    first, last = hit.stages[0], hit.stages[-1]
    stages = first if first == last else f"{first} to {last}"
    if hit.drop is not None:
        stage, drop = hit.drop
        detail = f" ({drop.detail})" if drop.detail else ""
        cut = f", cut by {hit.cut_by}" if hit.cut_by else ""
        return f"{stages}{cut}, dropped by {stage}: {drop.reason}{detail}"
    return f"{stages}, cut or changed by {hit.cut_by}" if hit.cut_by else f"{stages}, kept"
