"""What each stage did to a document, why one was dropped, which tokens are targets, how long documents are:
`finetune inspect`.

All of it is read from the corpus folder and from the stages' files beside it (`.NAME.stages`), as they were
written: what is shown is what happened. The first stages hold raw text, which is shown as it is: this is for
eyes that may see it.
"""

from __future__ import annotations

import difflib
import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_prep import quarantine
from data_prep.document import Cut, Document, Drop
from data_prep.quarantine import Quarantined
from data_prep.shards import SPLITS, Corpus, explain_damage
from data_prep.stage_files import StageFolder, read_documents
from data_prep.text_search import Found, search_stages, search_tokens
from data_prep.user_error import UserError

QUARANTINED = "quarantined"  # as a reason of --dropped

FIELDS = ("language", "title", "group", "split")  # of a document, whose changes are shown beside its text's
_ADDED = re.compile(r"(@\d+)?(#\d+)?$")  # to an id: its repetition by the mixture, its row of a conversation


@dataclass
class View:
    """What one stage did to a document.

    Attributes:
        outcome: `read`, `unchanged`, `changed`, `dropped` or `gone` (its id is not there any more, nor among
            what was dropped).
        text: at `read`, all of it.
        diff: lines of the text's unified difference to the stage before.
        fields: name -> (before, after), of what changed beside the text.
        drop: why, of a dropped one.
    """

    stage: str
    outcome: str
    text: str = ""
    diff: list[str] = field(default_factory=list)
    fields: dict[str, tuple[str, str]] = field(default_factory=dict)
    drop: Drop | None = None


@dataclass
class TokenView:
    """A row of a corpus: pieces of text, each with its token ids and whether they are targets."""

    id: str
    source: str
    split: str
    pieces: list[tuple[str, list[int], bool]]

    @property
    def tokens(self) -> int:
        return sum(len(ids) for _, ids, _ in self.pieces)

    @property
    def targets(self) -> int:
        return sum(len(ids) for _, ids, target in self.pieces if target)


class Inspection:
    """A corpus, and the stages that made it if their files are still there.

    Raises:
        NotFoundError: there is no corpus in `folder`.
        UserError: its manifest is broken, or a shard is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.corpus = Corpus(folder)
        work = folder.with_name(f".{folder.name}.stages")
        folders = (path for path in work.glob("[0-9]*-*") if not path.name.endswith("-tokenise"))
        self.stages = [
            StageFolder(path) for path in sorted(folders, key=lambda path: int(path.name.partition("-")[0]))
        ]
        self.work = work

    # --- documents ------------------------------------------------------------------------------------------

    def sample(self, number: int, seed: int = 0) -> list[tuple[str, str]]:
        """(source, id) of some documents of the corpus: those whose hashes with the seed are lowest."""
        rows = (
            (row["source"], row["id"])
            for split in SPLITS
            for row in self.corpus.split(split).select_columns(["source", "id"])
        )
        return heapq.nsmallest(number, set(rows), key=lambda name: _hash(seed, *name))

    def find(self, wanted: str) -> list[tuple[str, str]]:
        """(source, id) of the documents with this id, in any source; `source/id` names one."""
        read = self._read_stage()
        found = {(row["source"], row["id"]) for row in _rows(read, wanted)}
        source, _, rest = wanted.partition("/")
        if source in self.corpus.manifest.sources and rest:
            found |= {(row["source"], row["id"]) for row in _rows(read, rest) if row["source"] == source}
        if not found and (own := _ADDED.sub("", wanted)) != wanted:
            return self.find(own)
        if not found:
            raise UserError(
                f"no document '{wanted}' was read into {self.corpus.folder}: ids are those of its sources"
            )
        return sorted(found)

    def trace(self, source: str, document_id: str) -> list[View]:
        """What each stage did to a document, up to the one that dropped it."""
        views: list[View] = []
        before: Document | None = None
        if _document(self._read_stage(), source, document_id) is None:
            document_id = _ADDED.sub("", document_id)
        for stage in self._needed():
            now = _document(stage, source, document_id)
            if now is None:
                drop = next(
                    (drop for drop in stage.drops() if (drop.source, drop.id) == (source, document_id)), None
                )
                views.append(View(stage.name, "dropped" if drop else "gone", drop=drop))
                break
            views.append(_compare(stage.name, before, now))
            before = now
        return views

    def dropped(self, reason: str | None, number: int, seed: int = 0) -> list[tuple[Drop, str, str]]:
        """Some of what was dropped for a reason (for any): the drop, the stage, and the text as the stage got
        it.

        Raises:
            UserError: nothing was dropped for this reason.
        """
        found = [(drop, stage) for stage in self._needed() for drop in stage.drops()]
        if reason is not None and reason not in {drop.reason for drop, _ in found}:
            reasons = {drop.reason for drop, _ in found} | (
                {QUARANTINED} if self.quarantine_counts() else set()
            )
            known = ", ".join(sorted(reasons)) or "nothing was dropped"
            raise UserError(f"nothing was dropped for '{reason}': the reasons are {known}")
        chosen = [(drop, stage) for drop, stage in found if reason in (None, drop.reason)]
        some = heapq.nsmallest(number, chosen, key=lambda item: _hash(seed, item[0].source, item[0].id))
        return [(drop, stage.name, self._text_before(stage, drop)) for drop, stage in some]

    def quarantine_counts(self) -> dict[str, int]:
        """Return how many records of each source no document could be made of."""
        return quarantine.counts(self._read_stage())

    def quarantined(self, number: int, seed: int = 0) -> list[Quarantined]:
        """Return some of the records that no document could be made of, with their raw text."""
        records = self._read_stage().quarantined()
        some = heapq.nsmallest(
            number, records, key=lambda record: _hash(seed, record.file, record.member, record.at)
        )
        return list(quarantine.with_excerpts(self.work, some))

    def search(self, text: str, number: int) -> Found:
        """Search for a text in all documents, at every stage; in the token shards where the stages' files are
        gone."""
        if self.stages:
            return search_stages(self.work, self.stages, text, number)
        return search_tokens(self.corpus, text, number)

    def cuts(self, wanted: str | None = None) -> list[tuple[str, Cut]]:
        """Return the stage and what it cut from documents, by stage, source and reason, commonest first.

        Args:
            wanted: a stage, a source, or a part of the reason, such as a host.

        Raises:
            UserError: nothing was cut there.
        """
        found = [(stage.name, cut) for stage in self._needed() for cut in stage.cuts()]
        found.sort(key=lambda one: (one[0], one[1].source, one[1].reason, -one[1].documents, one[1].text))
        if wanted is None:
            return found
        chosen = [one for one in found if wanted in (one[0], one[1].source) or wanted in one[1].reason]
        if not chosen:
            places = ", ".join(sorted({cut.reason for _, cut in found}))
            known = f"text was cut for {places}" if found else "no text was cut from a document"
            raise UserError(f"nothing was cut for '{wanted}': {known}")
        return chosen

    def _text_before(self, stage: StageFolder, drop: Drop) -> str:
        """Return the text of a document as a stage was given it; "" of a record that reading dropped."""
        place = self.stages.index(stage)
        document = _document(self.stages[place - 1], drop.source, drop.id) if place else None
        return _all_text(document) if document else ""

    def _read_stage(self) -> StageFolder:
        return self._needed()[0]

    def _needed(self) -> list[StageFolder]:
        if not self.stages:
            raise UserError(
                f"{self.work} is not there: without the stages' files only --tokens, --find and --lengths can be shown"
            )
        return self.stages

    # --- tokens ---------------------------------------------------------------------------------------------

    def tokens(self, source: str, document_id: str) -> list[TokenView]:
        """The rows of a document: one, or, of a conversation whose template rewrites earlier turns, one a
        turn."""
        column = self.corpus.manifest.mask_column
        tokenizer = Tokenizer.from_file(str(self.corpus.tokenizer_folder / "tokenizer.json"))
        views = []
        for split in SPLITS:
            rows = self.corpus.split(split)
            names = zip(
                rows.data.column("source").to_pylist(), rows.data.column("id").to_pylist(), strict=True
            )
            for number, (of, name) in enumerate(names):
                if of == source and document_id in (name, name.rpartition("#")[0]):
                    row = rows[number]
                    mask = row[column] if column else [1] * len(row["input_ids"])
                    mask = [0, *mask[1:]]  # the first token of a row is never predicted
                    views.append(TokenView(name, of, split, pieces(tokenizer, row["input_ids"], mask)))
        return views

    def lengths(self) -> dict[str, NDArray[np.int64]]:
        """Source -> tokens of each of its rows."""
        parts: dict[str, list[NDArray[np.int64]]] = {}
        for split in SPLITS:
            table = self.corpus.split(split).data
            sources = np.asarray(table.column("source").to_pylist(), dtype=object)
            lengths = pc.list_value_length(table.column("input_ids")).to_numpy()
            for source in set(sources.tolist()):
                parts.setdefault(source, []).append(lengths[sources == source].astype(np.int64))
        return {source: np.concatenate(parts[source]) for source in sorted(parts)}


def pieces(tokenizer: Tokenizer, ids: list[int], mask: list[int]) -> list[tuple[str, list[int], bool]]:
    """The text of each token. Tokens that hold a part of a letter each are shown together."""
    found: list[tuple[str, list[int], bool]] = []
    waiting: list[int] = []
    for number, (token, target) in enumerate(zip(ids, mask, strict=True)):
        waiting.append(token)
        text = tokenizer.decode(waiting, skip_special_tokens=False)
        last = number + 1 == len(ids) or mask[number + 1] != target
        if "\ufffd" not in text or last or len(waiting) >= 4:
            found.append((text or str(tokenizer.id_to_token(token)), waiting, bool(target)))
            waiting = []
    return found


def bins(lengths: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(from, to, how many) of lengths, each bin twice as wide as the one before."""
    if not len(lengths):
        return []
    powers = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = Counter(powers.tolist())
    return [(2**power, 2 ** (power + 1) - 1, counts[power]) for power in range(min(counts), max(counts) + 1)]


def draw_lengths(lengths: dict[str, NDArray[np.int64]], path: Path) -> Path:
    """A picture of the lengths of each source, PNG or SVG by the path's suffix.

    Raises:
        UserError: matplotlib is not installed, or draws no such files.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError(
            "pictures need matplotlib: pip install matplotlib; --lengths shows them in the terminal"
        ) from None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 1.6 * len(lengths)), layout="constrained")
    axes = figure.subplots(len(lengths), 1, sharex=True, squeeze=False)
    widest = max((int(values.max()) for values in lengths.values() if len(values)), default=1)
    edges = 2.0 ** np.arange(0, np.ceil(np.log2(max(widest, 2))) + 0.5, 0.5)
    for (name, values), (axis,) in zip(lengths.items(), axes, strict=True):
        axis.hist(values, bins=edges, color="#3b6ea5")
        axis.set_xscale("log", base=2)
        axis.set_title(
            f"{name}: {len(values):,} rows, {int(values.sum()):,} tokens, median {np.median(values):,.0f}",
            fontsize=9,
        )
        axis.set_ylabel("rows", fontsize=8)
    axes[-1][0].set_xlabel("tokens a row")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _compare(stage: str, before: Document | None, now: Document) -> View:
    text = _all_text(now)
    if before is None:
        return View(
            stage,
            "read",
            text=text,
            fields={name: ("", value) for name in FIELDS if (value := getattr(now, name))},
        )
    old = _all_text(before)
    fields = {
        name: (was, value)
        for name in FIELDS
        if (was := getattr(before, name)) != (value := getattr(now, name))
    }
    diff = (
        []
        if text == old
        else list(difflib.unified_diff(old.split("\n"), text.split("\n"), lineterm="", n=0))[2:]
    )
    return View(stage, "changed" if diff or fields else "unchanged", diff=diff, fields=fields)


def _all_text(document: Document) -> str:
    return (
        "\n\n".join(f"[{turn.role or 'text'}] {turn.content}" for turn in document.turns)
        if document.turns
        else document.text
    )


def _rows(stage: StageFolder, document_id: str) -> Iterator[dict[str, str]]:
    for shard in stage.shards():
        path = stage.part(shard)
        with explain_damage(path):
            rows = pq.read_table(
                path, columns=["source", "id"], filters=[("id", "==", document_id)]
            ).to_pylist()
        yield from rows


def _document(stage: StageFolder, source: str, document_id: str) -> Document | None:
    """The document as the stage let it through; None if it did not."""
    for shard in stage.shards():
        path = stage.part(shard)
        with explain_damage(path):
            found = pq.read_table(
                path, columns=["id"], filters=[("id", "==", document_id), ("source", "==", source)]
            )
        if found.num_rows:
            return next(d for d in read_documents(path) if (d.source, d.id) == (source, document_id))
    return None


def _hash(*parts: object) -> bytes:
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
