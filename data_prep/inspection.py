"""Inspection of a prepared corpus for `finetune inspect`: changes, drops, targets, lengths.

Everything is read from the corpus folder, and from the folder with the stages' files next to it
(`.NAME.stages`). The output contains raw text of the first stages, so it is only for people who may
see personal data.
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

QUARANTINED = "quarantined"  # reason under which --dropped lists quarantined records

FIELDS = ("language", "title", "group", "split")  # changes of these fields are shown
# Suffixes of ids: "@2" for a copy that stage mixture makes of a document, "#1" for a row of a
# conversation.
_ID_SUFFIX = re.compile(r"(@\d+)?(#\d+)?$")


@dataclass
class View:
    """The change that one stage made to a document.

    Attributes:
        outcome: `read`, `unchanged`, `changed`, `dropped`, or `gone`. `gone` means that the stage
            neither kept the document nor recorded a drop with its id.
        text: the whole text, if the outcome is `read`.
        diff: lines of a unified diff from the text before the stage to the text after it.
        fields: other fields that the stage changed, as (value before, value after) by name.
        drop: the drop, if the outcome is `dropped`.
    """

    stage: str
    outcome: str
    text: str = ""
    diff: list[str] = field(default_factory=list)
    fields: dict[str, tuple[str, str]] = field(default_factory=dict)
    drop: Drop | None = None


@dataclass
class TokenView:
    """A row of a corpus, divided into pieces of text.

    Attributes:
        pieces: for each piece, the text, its token ids, and whether these tokens are targets.
    """

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
    """A corpus, and the files of its stages if they still exist.

    Raises:
        NotFoundError: there is no corpus in `folder`.
        UserError: the manifest is broken, or a shard is missing or has a wrong size.
    """

    def __init__(self, folder: Path) -> None:
        self.corpus = Corpus(folder)
        self.work = folder.with_name(f".{folder.name}.stages")
        folders = [path for path in self.work.glob("[0-9]*-*") if not path.name.endswith("-tokenise")]
        folders.sort(key=lambda path: int(path.name.partition("-")[0]))
        self.stages = [StageFolder(path) for path in folders]

    # --- documents -------------------------------------------------------------------------------

    def sample(self, number: int, seed: int = 0) -> list[tuple[str, str]]:
        """Return (source, id) for a random sample of the corpus' rows."""
        rows = (
            (row["source"], row["id"])
            for split in SPLITS
            for row in self.corpus.split(split).select_columns(["source", "id"])
        )
        return heapq.nsmallest(number, set(rows), key=lambda name: _hash(seed, *name))

    def find(self, wanted: str) -> list[tuple[str, str]]:
        """Return (source, id) of each document that was read with the id `wanted`, from any source.

        Args:
            wanted: the id, or `<source>/<id>`. If no document has this id, its suffix is removed
                ("@2" of a document's copy, "#1" of a conversation's row).

        Raises:
            UserError: no document with this id was read, or the stages' files do not exist.
        """
        read = self._read_stage()
        found = {(row["source"], row["id"]) for row in _rows(read, wanted)}
        source, _, rest = wanted.partition("/")
        if source in self.corpus.manifest.sources and rest:
            rows = _rows(read, rest)
            found |= {(row["source"], row["id"]) for row in rows if row["source"] == source}
        if found:
            return sorted(found)
        without_suffix = _ID_SUFFIX.sub("", wanted)
        if without_suffix != wanted:
            return self.find(without_suffix)
        raise UserError(
            f"corpus {self.corpus.folder}: no document with the id '{wanted}' was read; give a document's "
            "id, or <source>/<id>"
        )

    def trace(self, source: str, document_id: str) -> list[View]:
        """Return the change that each stage made to a document, up to the stage that dropped it.

        Raises:
            UserError: the stages' files do not exist.
        """
        views: list[View] = []
        before: Document | None = None
        if _find_document(self._read_stage(), source, document_id) is None:
            document_id = _ID_SUFFIX.sub("", document_id)
        for stage in self._require_stages():
            after = _find_document(stage, source, document_id)
            if after is None:
                drops = (drop for drop in stage.drops() if (drop.source, drop.id) == (source, document_id))
                drop = next(drops, None)
                views.append(View(stage.name, "dropped" if drop else "gone", drop=drop))
                break
            views.append(_compare(stage.name, before, after))
            before = after
        return views

    def dropped(self, reason: str | None, number: int, seed: int = 0) -> list[tuple[Drop, str, str]]:
        """Return a random sample of drops, as (drop, stage, text of the document before the stage).

        Args:
            reason: the reason of the drops; None for all reasons.

        Raises:
            UserError: nothing was dropped for this reason, or the stages' files do not exist.
        """
        found = [(drop, stage) for stage in self._require_stages() for drop in stage.drops()]
        reasons = {drop.reason for drop, _ in found}
        if reason is not None and reason not in reasons:
            if self.quarantine_counts():
                reasons.add(QUARANTINED)
            if not reasons:
                raise UserError(f"nothing was dropped for '{reason}'; the corpus has no drops")
            known = ", ".join(sorted(reasons))
            raise UserError(f"nothing was dropped for '{reason}'; choose one of {known}")
        chosen = [(drop, stage) for drop, stage in found if reason in (None, drop.reason)]
        some = heapq.nsmallest(number, chosen, key=lambda item: _hash(seed, item[0].source, item[0].id))
        return [(drop, stage.name, self._text_before(stage, drop)) for drop, stage in some]

    def quarantine_counts(self) -> dict[str, int]:
        """Return the number of quarantined records of each source."""
        return quarantine.count_by_source(self._read_stage())

    def quarantined(self, number: int, seed: int = 0) -> list[Quarantined]:
        """Return a random sample of the quarantined records, with excerpts of their raw text."""
        records = self._read_stage().quarantined()
        some = heapq.nsmallest(
            number, records, key=lambda record: _hash(seed, record.file, record.member, record.at)
        )
        return list(quarantine.read_excerpts(self.work, some))

    def search(self, text: str, number: int) -> Found:
        """Search for a text in the documents of every stage.

        If the stages' files do not exist, the corpus' decoded rows are searched instead.

        Args:
            number: maximum number of hits that are returned.
        """
        if self.stages:
            return search_stages(self.work, self.stages, text, number)
        return search_tokens(self.corpus, text, number)

    def cuts(self, wanted: str | None = None) -> list[tuple[str, Cut]]:
        """Return (stage, cut) for each cut line or paragraph.

        The list is sorted by stage, source, reason and number of documents.

        Args:
            wanted: a stage, a source, or a part of a reason, such as a host. Only cuts with this
                stage, source or reason are returned. None for all cuts.

        Raises:
            UserError: nothing was cut for `wanted`, or the stages' files do not exist.
        """
        found = [(stage.name, cut) for stage in self._require_stages() for cut in stage.cuts()]
        found.sort(
            key=lambda item: (item[0], item[1].source, item[1].reason, -item[1].documents, item[1].text)
        )
        if wanted is None:
            return found
        chosen = [
            (stage, cut) for stage, cut in found if wanted in (stage, cut.source) or wanted in cut.reason
        ]
        if not chosen:
            reasons = ", ".join(sorted({cut.reason for _, cut in found}))
            known = f"choose one of {reasons}" if found else "no text was cut from any document"
            raise UserError(f"nothing was cut for '{wanted}'; {known}")
        return chosen

    def _text_before(self, stage: StageFolder, drop: Drop) -> str:
        """Return the text that a dropped document had before the stage that dropped it.

        Return "" for a record that reading dropped, and for a document that is not on disk.
        """
        number = self.stages.index(stage)
        if number == 0:
            return ""
        document = _find_document(self.stages[number - 1], drop.source, drop.id)
        return _full_text(document) if document else ""

    def _read_stage(self) -> StageFolder:
        return self._require_stages()[0]

    def _require_stages(self) -> list[StageFolder]:
        """Return the stages' folders. Raise UserError if there are none."""
        if not self.stages:
            raise UserError(
                f"{self.work} does not exist: views of named documents, --dropped and --cut need the "
                "stages' files in it; use --find, --lengths, or --tokens without document ids"
            )
        return self.stages

    # --- tokens ----------------------------------------------------------------------------------

    def tokens(self, source: str, document_id: str) -> list[TokenView]:
        """Return the rows of a document. A conversation may have a row for each turn."""
        column = self.corpus.manifest.mask_column
        tokenizer = Tokenizer.from_file(str(self.corpus.tokenizer_folder / "tokenizer.json"))
        views = []
        for split in SPLITS:
            rows = self.corpus.split(split)
            sources = rows.data.column("source").to_pylist()
            names = rows.data.column("id").to_pylist()
            for number, (row_source, name) in enumerate(zip(sources, names, strict=True)):
                if row_source == source and document_id in (name, name.rpartition("#")[0]):
                    row = rows[number]
                    mask = row[column] if column else [1] * len(row["input_ids"])
                    mask = [0, *mask[1:]]  # the first token of a row is never predicted
                    pieces = split_into_pieces(tokenizer, row["input_ids"], mask)
                    views.append(TokenView(name, source, split, pieces))
        return views

    def lengths(self) -> dict[str, NDArray[np.int64]]:
        """Return, for each source, the number of tokens in each of its rows."""
        parts: dict[str, list[NDArray[np.int64]]] = {}
        for split in SPLITS:
            table = self.corpus.split(split).data
            sources = np.asarray(table.column("source").to_pylist(), dtype=object)
            lengths = pc.list_value_length(table.column("input_ids")).to_numpy()
            for source in set(sources.tolist()):
                parts.setdefault(source, []).append(lengths[sources == source].astype(np.int64))
        return {source: np.concatenate(parts[source]) for source in sorted(parts)}


def split_into_pieces(
    tokenizer: Tokenizer, ids: list[int], mask: list[int]
) -> list[tuple[str, list[int], bool]]:
    """Divide a row into pieces, and return (text, token ids, whether they are targets) for each.

    A piece is one token, or several tokens that encode one character together.

    Args:
        ids: token ids of the row.
        mask: 1 for each token that is a target, else 0.
    """
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


def bin_lengths(lengths: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return a histogram of lengths, as (lowest length, highest length, count) for each bin.

    A bin is twice as wide as the bin before it.
    """
    if not len(lengths):
        return []
    powers = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = Counter(powers.tolist())
    all_powers = range(min(counts), max(counts) + 1)
    return [(2**power, 2 ** (power + 1) - 1, counts[power]) for power in all_powers]


def draw_lengths(lengths: dict[str, NDArray[np.int64]], path: Path) -> Path:
    """Draw a histogram of each source's row lengths to `path`, and return the path.

    The suffix of the path determines the format, such as PNG or SVG.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError(
            "--picture: matplotlib is not installed; run `pip install matplotlib`, or use --lengths"
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


def _compare(stage: str, before: Document | None, after: Document) -> View:
    """Return the change that a stage made to a document.

    Args:
        before: the document before the stage; None for stage read.
        after: the document after the stage.
    """
    text = _full_text(after)
    fields: dict[str, tuple[str, str]] = {}
    for name in FIELDS:
        old_value = getattr(before, name) if before else ""
        new_value = getattr(after, name)
        if new_value != old_value:
            fields[name] = (old_value, new_value)
    if before is None:
        return View(stage, "read", text=text, fields=fields)
    old_text = _full_text(before)
    diff: list[str] = []
    if text != old_text:
        diff = list(difflib.unified_diff(old_text.split("\n"), text.split("\n"), lineterm="", n=0))[2:]
    return View(stage, "changed" if diff or fields else "unchanged", diff=diff, fields=fields)


def _full_text(document: Document) -> str:
    if not document.turns:
        return document.text
    return "\n\n".join(f"[{turn.role or 'text'}] {turn.content}" for turn in document.turns)


def _rows(stage: StageFolder, document_id: str) -> Iterator[dict[str, str]]:
    """Yield the source and id of each document that a stage kept and that has this id."""
    for shard in stage.shards():
        path = stage.part_path(shard)
        with explain_damage(path):
            table = pq.read_table(path, columns=["source", "id"], filters=[("id", "==", document_id)])
            rows = table.to_pylist()
        yield from rows


def _find_document(stage: StageFolder, source: str, document_id: str) -> Document | None:
    """Return a document as a stage left it, or None if the stage did not keep it."""
    filters = [("id", "==", document_id), ("source", "==", source)]
    for shard in stage.shards():
        path = stage.part_path(shard)
        with explain_damage(path):
            found = pq.read_table(path, columns=["id"], filters=filters)
        if found.num_rows:
            return next(d for d in read_documents(path) if (d.source, d.id) == (source, document_id))
    return None


def _hash(*parts: object) -> bytes:
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
