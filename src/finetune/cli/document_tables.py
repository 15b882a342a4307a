"""What is printed of single documents: what stages did to them, their tokens, what was cut, dropped,
quarantined or found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from data_prep.inspection import QUARANTINED
from data_prep.user_error import UserError
from finetune.terminal import console

if TYPE_CHECKING:
    from data_prep.inspection import Inspection
    from data_prep.quarantine import Quarantined
    from data_prep.text_search import Found, Hit


def print_trace(views: list[Any], name: tuple[str, str], characters: int) -> None:
    """What each stage did to one document."""
    out = console(stderr=False)
    out.print(Text("/".join(name), style="bold"), soft_wrap=True)
    for view in views:
        changes = ", ".join(
            f"{field} {was or '–'} → {now}" if was else f"{field} {now}"
            for field, (was, now) in view.fields.items()
        )
        why = (
            f": {view.drop.reason}" + (f" ({view.drop.detail})" if view.drop.detail else "")
            if view.drop
            else ""
        )
        style = {"dropped": "red", "gone": "red", "changed": "yellow"}.get(view.outcome, "")
        out.print(
            Text(f" {view.stage:<14} {view.outcome}{why}{'; ' + changes if changes else ''}", style=style),
            soft_wrap=True,
        )
        if view.text:
            out.print(Text(_clip(view.text, characters)), soft_wrap=True)
        for line in _clip("\n".join(view.diff), characters).split("\n") if view.diff else []:
            out.print(
                Text(f"   {line}", style={"+": "green", "-": "red"}.get(line[:1], "dim")), soft_wrap=True
            )
    out.print()


def print_tokens(views: list[Any], name: tuple[str, str], characters: int) -> None:
    """The tokens of one document, parted by a thin bar; targets are green (on paper: between « and »)."""
    out = console(stderr=False)
    if not views:
        out.print(
            Text(f"{'/'.join(name)} has no tokens: it was dropped, or its id was masked", style="red"),
            soft_wrap=True,
        )
    for view in views:
        out.print(
            Text(
                f"{view.source}/{view.id} ({view.split}): {view.tokens} tokens, {view.targets} targets",
                style="bold",
            )
        )
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
        out.print(
            Text(f"{stage}: {source}: {reason}: {len(found):,} different lines", style="bold"), soft_wrap=True
        )
        shown = found[:number] if number else found
        for cut in shown:
            where = f"{cut.documents:>7,} documents, as {cut.source}/{cut.example}: "
            out.print(Text(f" {where}{_clip(cut.text, characters)}"), soft_wrap=True)
        if len(shown) < len(found):
            out.print(f" … and {len(found) - len(shown):,} more")
        out.print()


def print_dropped(
    inspection: Inspection, reason: str | None, number: int, seed: int, characters: int
) -> None:
    """Print some of what was dropped, with the text as the stage got it, and of the records that could not be
    read.

    Args:
        reason: of a drop, or `quarantined`; None for all.
    """
    out = console(stderr=False)
    counts = inspection.quarantine_counts() if reason in (None, QUARANTINED) else {}
    dropped = [] if reason == QUARANTINED and counts else inspection.dropped(reason, number, seed)
    for drop, stage, text in dropped:
        detail = f" ({drop.detail})" if drop.detail else ""
        out.print(
            Text(f"{drop.source}/{drop.id}: {stage}: {drop.reason}{detail}", style="bold red"), soft_wrap=True
        )
        out.print(Text(_clip(text, characters) or "(no text)"), soft_wrap=True)
        out.print()
    if not counts:
        return
    for record in inspection.quarantined(number, seed):
        _print_quarantined(out, record, characters)
    listed = ", ".join(f"{source} {count:,}" for source, count in counts.items())
    shown = min(number, sum(counts.values()))
    out.print(
        Text(f"{sum(counts.values()):,} records are quarantined, {shown:,} shown (--sample N): {listed}"),
        soft_wrap=True,
    )


def _print_quarantined(out: Console, quarantined: Quarantined, characters: int) -> None:
    record = quarantined.record
    place = ":".join(part for part in (record.file, record.member, record.at) if part)
    out.print(
        Text(f"{record.source}: {place}: {QUARANTINED}: {record.error}", style="bold red"), soft_wrap=True
    )
    out.print(Text(_clip(quarantined.raw, characters) or "(its raw text cannot be read)"), soft_wrap=True)
    out.print()


def print_found(found: Found, text: str, characters: int) -> None:
    """Print the documents that hold a text: where it is in them, and what became of them.

    Raises:
        UserError: no document holds it.
    """
    if not found.documents and not found.quarantined:
        raise UserError(f"--find: no document holds '{text}', at any stage")
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


def _clip(text: str, characters: int) -> str:
    """Return the first characters of a text, and how many it has; all of it for 0."""
    return (
        text
        if not characters or len(text) <= characters
        else f"{text[:characters]} … ({len(text):,} characters)"
    )
