"""Prints documents: their tokens, the changes that stages made, and cut, dropped or found text."""

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
    """Print how each stage changed a document.

    Args:
        views: the change that each stage made, in order. The list ends with the stage that dropped
            the document, if one did.
        name: source and id of the document.
        characters: largest number of characters of a text to print; 0 for all.
    """
    out = console(stderr=False)
    out.print(Text("/".join(name), style="bold"), soft_wrap=True)
    for view in views:
        style = {"dropped": "red", "gone": "red", "changed": "yellow"}.get(view.outcome, "")
        out.print(Text(_describe_outcome(view), style=style), soft_wrap=True)
        if view.text:
            out.print(Text(_clip(view.text, characters)), soft_wrap=True)
        if not view.diff:
            continue
        for line in _clip("\n".join(view.diff), characters).split("\n"):
            style = {"+": "green", "-": "red"}.get(line[:1], "dim")
            out.print(Text(f"   {line}", style=style), soft_wrap=True)
    out.print()


def _describe_outcome(view: Any) -> str:
    """Return a line with a stage's name, its effect on the document and the changed fields.

    If the stage dropped the document, the line includes the reason.
    """
    line = f" {view.stage:<14} {view.outcome}"
    if view.drop:
        line += f": {_describe_drop(view.drop)}"
    changes = [
        f"{field} {was} → {now}" if was else f"{field} {now}" for field, (was, now) in view.fields.items()
    ]
    if changes:
        line += f"; {', '.join(changes)}"
    return line


def _describe_drop(drop: Any) -> str:
    detail = f" ({drop.detail})" if drop.detail else ""
    return f"{drop.reason}{detail}"


def print_tokens(views: list[Any], name: tuple[str, str], characters: int) -> None:
    """Print a document's tokens, separated by bars. Training targets are green, between « and ».

    Args:
        views: the document's rows in the corpus; none if it has no tokens. A conversation may have a
            row for each turn.
        name: source and id of the document.
        characters: each text ends after the token with which it exceeds this number of characters;
            0 for all tokens.
    """
    out = console(stderr=False)
    if not views:
        message = f"{'/'.join(name)} has no tokens: it was dropped, or its id was masked"
        out.print(Text(message, style="red"), soft_wrap=True)
    for view in views:
        title = f"{view.source}/{view.id} ({view.split}): {view.tokens} tokens, {view.targets} targets"
        out.print(Text(title, style="bold"))
        out.print(_render_tokens(view.pieces, characters), soft_wrap=True)
        out.print()


def _render_tokens(pieces: list[tuple[str, Any, bool]], characters: int) -> Text:
    """Return a document's tokens, separated by bars, with training targets between « and ».

    Args:
        pieces: for each piece its text, its token ids, and whether it is a training target.
        characters: the text ends with the piece in which it exceeds this number of characters; 0
            for all.
    """
    line = Text()
    shown = 0
    inside = False
    for text, _, target in pieces:
        if target != inside:
            line.append("«" if target else "»", style="dim")
            inside = target
        elif shown:
            line.append("|", style="dim")
        line.append(text, style="green" if target else "")
        shown += len(text)
        if characters and shown > characters:
            line.append(" …", style="dim")
            return line
    if inside:
        line.append("»", style="dim")
    return line


def print_cuts(cuts: list[tuple[str, Any]], number: int, characters: int) -> None:
    """Print lines and paragraphs that stages cut from documents.

    Each is printed with the number of documents that lost it, and the id of one of them.

    Args:
        cuts: pairs of a stage's name and a text that it cut.
        number: largest number of texts to print for each stage, source and reason; 0 for all.
        characters: largest number of characters of a text to print; 0 for all.
    """
    out = console(stderr=False)
    if not cuts:
        out.print("no line was cut from a document")
    places: dict[tuple[str, str, str], list[Any]] = {}
    for stage, cut in cuts:
        places.setdefault((stage, cut.source, cut.reason), []).append(cut)
    for (stage, source, reason), found in places.items():
        title = f"{stage}: {source}: {reason}: {len(found):,} different lines"
        out.print(Text(title, style="bold"), soft_wrap=True)
        shown = found[: number or None]
        for cut in shown:
            place = f"{cut.documents:>7,} documents, as {cut.source}/{cut.example}: "
            out.print(Text(f" {place}{_clip(cut.text, characters)}"), soft_wrap=True)
        if len(shown) < len(found):
            out.print(f" … and {len(found) - len(shown):,} more")
        out.print()


def print_dropped(
    inspection: Inspection, reason: str | None, number: int, seed: int, characters: int
) -> None:
    """Print examples of dropped documents, as they were before the drop, and unreadable records.

    Args:
        reason: the reason of the dropped documents that are printed; `quarantined` prints only
            unreadable records; None prints both, for any reason.
        number: largest number of dropped documents, and of unreadable records, to print.
        seed: seed of the random selection of examples.
        characters: largest number of characters of a text to print; 0 for all.
    """
    out = console(stderr=False)
    counts: dict[str, int] = {}
    if reason in (None, QUARANTINED):
        counts = inspection.quarantine_counts()
    dropped = []
    if reason != QUARANTINED or not counts:
        dropped = inspection.dropped(reason, number, seed)
    for drop, stage, text in dropped:
        title = f"{drop.source}/{drop.id}: {stage}: {_describe_drop(drop)}"
        out.print(Text(title, style="bold red"), soft_wrap=True)
        out.print(Text(_clip(text, characters) or "(no text)"), soft_wrap=True)
        out.print()
    if not counts:
        return
    for record in inspection.quarantined(number, seed):
        _print_quarantined(out, record, characters)
    listed = ", ".join(f"{source} {count:,}" for source, count in counts.items())
    total = sum(counts.values())
    shown = min(number, total)
    line = f"{total:,} records are quarantined, {shown:,} shown (--sample N): {listed}"
    out.print(Text(line), soft_wrap=True)


def _print_quarantined(out: Console, quarantined: Quarantined, characters: int) -> None:
    record = quarantined.record
    place = ":".join(part for part in (record.file, record.member, record.at) if part)
    title = f"{record.source}: {place}: {QUARANTINED}: {record.error}"
    out.print(Text(title, style="bold red"), soft_wrap=True)
    out.print(Text(_clip(quarantined.raw, characters) or "(its raw text cannot be read)"), soft_wrap=True)
    out.print()


def print_found(found: Found, text: str, characters: int) -> None:
    """Print the documents that contain a text, with the text around it and whether they were kept.

    Unreadable records that contain it are printed too.

    Args:
        text: the text that was searched for.
        characters: largest number of characters of a record to print; 0 for all.

    Raises:
        UserError: no document or unreadable record contains the text.
    """
    if not found.documents and not found.quarantined:
        raise UserError(f"--find: no document contains '{text}' at any stage")
    out = console(stderr=False)
    for hit in found.hits:
        out.print(Text(f"{hit.source}/{hit.id}: {_describe_fate(hit)}", style="bold"), soft_wrap=True)
        context = Text(f"  {hit.before}")
        context.append(hit.match, style="green")
        context.append(hit.after)
        out.print(context, soft_wrap=True)
    for record in found.quarantined[: max(5, len(found.hits))]:
        _print_quarantined(out, record, characters)
    documents = "document contains" if found.documents == 1 else "documents contain"
    line = f"{found.documents:,} {documents} '{text}'"
    if len(found.hits) < found.documents:
        line += f", {len(found.hits):,} shown (--sample N)"
    if found.quarantined:
        noun = "record" if len(found.quarantined) == 1 else "records"
        line += f", and {len(found.quarantined):,} quarantined {noun}"
    out.print(Text(line), soft_wrap=True)


def _describe_fate(hit: Hit) -> str:
    """Return which stages' outputs contain a found text, and which stage removed it, or `kept`."""
    first = hit.stages[0]
    last = hit.stages[-1]
    stages = first if first == last else f"{first} to {last}"
    if hit.drop is not None:
        stage, drop = hit.drop
        cut = f", cut by {hit.cut_by}" if hit.cut_by else ""
        return f"{stages}{cut}, dropped by {stage}: {_describe_drop(drop)}"
    if hit.cut_by:
        return f"{stages}, cut or changed by {hit.cut_by}"
    return f"{stages}, kept"


def _clip(text: str, characters: int) -> str:
    """Return the first `characters` characters of a text, and its length if it is longer.

    Return the whole text if `characters` is 0.
    """
    if not characters or len(text) <= characters:
        return text
    return f"{text[:characters]} … ({len(text):,} characters)"
