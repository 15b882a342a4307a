"""From a corpus folder and a pack plan to the micro-batches of a step, filled up with padding. The step is
the position in the data: a resume needs nothing else."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.shards import Corpus
from data_prep.user_error import UserError
from finetune.data import packing
from finetune.data.packing import Segments
from finetune.data.rows import Fate, ListColumn, LongRows, Rows, account, count_documents, groups_of, rows_of
from finetune.distributed import World
from finetune.models.loss import IGNORE
from finetune.models.packed import PackInputs
from finetune.runs import layout

PADDING = -1

logger = logging.getLogger(__name__)


@dataclass
class MicroBatch:
    """Packs of one forward pass on one rank, [packs, length] each.

    Attributes:
        input_ids: token ids; padding is 0.
        position_ids: start at 0 with every document, which is what keeps documents apart; padding counts as
            one.
        labels: the next token where it is a target, else IGNORE: at the last token of a document, at masked
            tokens, at padding.
        documents: index of the token's document in the split, PADDING at padding.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    documents: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.documents != PADDING).sum())

    @property
    def checksum(self) -> int:
        """Sum of a CRC over each pack's tokens and documents: equal sums over a step mean the same data went
        in."""
        return sum(
            zlib.crc32(d.tobytes(), zlib.crc32(t.tobytes()))
            for t, d in zip(self.input_ids.numpy(), self.documents, strict=True)
        )

    @property
    def num_targets(self) -> int:
        """Tokens that have a target: those that the loss is computed of."""
        return int((self.labels != IGNORE).sum())

    @property
    def target_positions(self) -> torch.Tensor:
        """[targets] positions in the flattened packs that have a target."""
        return (self.labels.flatten() != IGNORE).nonzero()[:, 0]

    def to(self, device: torch.device) -> PackInputs:
        """Return what PackedModel.losses takes, on a device."""
        positions = self.target_positions
        return PackInputs(
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            target_positions=positions.to(device),
            targets=self.labels.flatten()[positions].to(device),
        )


@dataclass
class StepData:
    """The data of one optimizer step for one rank. `num_targets` counts supervised tokens of the whole global
    step."""

    segments: Segments
    num_targets: int
    micro_batches: Iterator[MicroBatch]


class PackedData:
    """A split of a corpus as packs.

    Training draws an endless row of epochs: global step s is packs [s·B, (s+1)·B) of that row, whatever the
        world size, and
    rank r takes its micro-batches from it by index. Evaluation walks one epoch in fixed order.

    Args:
        sources: documents of other sources are left out.
        long_documents, long_conversations: what becomes of rows longer than a pack; see rows.LongRows.
        plan_folder: where the plan is kept, one memory-mapped file an epoch, made by rank 0 when first
            needed.
        shuffle_seed: None walks the documents in their own order.

    Attributes:
        counts: documents in the plan, and how many were split, cut or left out (see rows.count_documents).
        account: the split's tokens, and those that are not used, by source, written standard and reason.

    Raises:
        UserError: nothing is left to train on.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        *,
        sources: list[str],
        sequence_length: int,
        long_documents: str,
        shuffle_seed: int | None,
        plan_folder: Path,
        world: World,
        long_conversations: str = "cut",
    ) -> None:
        self.split, self.sequence_length, self.world = split, sequence_length, world
        self._seed, self._plan_folder = shuffle_seed, plan_folder
        mask_column = corpus.manifest.mask_column
        text = "split" if long_documents == "auto" else long_documents
        self._long = LongRows(sequence_length, text, long_conversations)
        inputs = [corpus.manifest.digest, sequence_length, text, shuffle_seed, sorted(sources)]
        inputs += [long_conversations] if mask_column else []
        self._plan_key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[
            :12
        ]  # another corpus never meets this plan
        table = corpus.table(split)
        self.tokens = ListColumn(table["input_ids"])
        self._targets = ListColumn(table[mask_column]) if mask_column else None
        self.sources, self.languages = groups_of(table)
        rows = plan_folder / layout.pack_rows(split, self._plan_key)
        if world.is_main and not rows.exists():
            _save(rows, rows_of(table, mask_column, sources, self._long))
        world.barrier()
        self._rows: Rows = _load(rows)
        self._epochs: dict[int, Segments] = {}
        self.num_packs = int(self._epoch(0)["pack"][-1]) + 1 if len(self._epoch(0)) else 0
        self.counts = count_documents(self._rows)
        self.account = account(self._rows, self.sources, self.languages)
        if world.is_main:
            self._log_counts()
        if not self.num_packs and split == "train":
            lost = {
                name: count for name, count in self.counts.items() if count and name.startswith("documents")
            }
            raise UserError(
                f"corpus {corpus.folder} has no training text in {', '.join(sources)}: nothing to learn from"
                + (f" ({_words(lost)}; sequence_length {sequence_length})" if lost else "")
            )

    def check_plan(self) -> None:
        """Raise if the folder holds another plan of this split: an earlier version cut long rows in another
        way.

        Raises:
            UserError: a run that goes on would see some documents twice and others never.
        """
        for path in self._plan_folder.glob(layout.pack_plan(self.split, "*", 0)):
            if self._plan_key not in path.name and not np.array_equal(_load(path), self._epoch(0)):
                raise UserError(
                    f"{path} is the plan of an earlier version, which treated rows longer than a pack in another way: "
                    f"start a new run, or resume this one with the version that began it"
                )

    def step(self, step: int, global_batch_size: int, micro_batch_size: int) -> StepData:
        """The data of optimizer step `step` (0-based). Every rank must ask for the same steps in the same
        order."""
        first = step * global_batch_size
        packs = [self._pack(index) for index in range(first, first + global_batch_size)]
        segments = np.concatenate(packs)
        stride = micro_batch_size * self.world.size
        mine = [
            packs[i + self.world.rank * micro_batch_size :][:micro_batch_size]
            for i in range(0, len(packs), stride)
        ]
        return StepData(
            segments, int(segments["supervised"].sum()), (self._micro_batch(chunk) for chunk in mine)
        )

    def iter_epoch(self, micro_batch_size: int) -> Iterator[MicroBatch]:
        """Yield one epoch in order, dealt to the ranks.

        All ranks get equally many batches, as ZeRO-3 needs it; the last ones may be padding.
        """
        stride = micro_batch_size * self.world.size
        for first in range(0, self.num_packs, stride):
            mine = range(
                first + self.world.rank * micro_batch_size, first + (self.world.rank + 1) * micro_batch_size
            )
            yield self._micro_batch(
                [self._pack(i) if i < self.num_packs else np.zeros(0, packing.SEGMENT) for i in mine]
            )

    def _pack(self, index: int) -> Segments:
        """Pack `index` of the endless row of epochs."""
        epoch, number = divmod(index, self.num_packs)
        segments = self._epoch(epoch)
        start, stop = np.searchsorted(segments["pack"], [number, number + 1])
        return segments[start:stop]

    def _epoch(self, epoch: int) -> Segments:
        if epoch not in self._epochs:
            path = self._plan_folder / layout.pack_plan(self.split, self._plan_key, epoch)
            if self.world.is_main and not path.exists():
                self._plan(epoch, path)
            self.world.barrier()
            self._epochs[epoch] = _load(path)
        return self._epochs[epoch]

    def _plan(self, epoch: int, path: Path) -> None:
        segments = packing.segments_of(self._rows["kept"], self.sequence_length)
        in_one_piece = np.isin(self._rows["fate"], (Fate.WHOLE, Fate.CUT))[segments["document"]]
        segments["supervised"][in_one_piece] = self._rows["targets"][segments["document"][in_one_piece]]
        _save(
            path,
            packing.pack(
                segments, self.sequence_length, self._seed or 0, epoch if self._seed is not None else None
            ),
        )

    def _log_counts(self) -> None:
        changed = {name: count for name, count in self.counts.items() if count and name != "documents"}
        logger.info(
            "%s: %d documents in %d packs of %d tokens%s",
            self.split,
            self.counts["documents"],
            self.num_packs,
            self.sequence_length,
            f"; {_words(changed)}" if changed else "",
        )

    def _micro_batch(self, packs: list[Segments]) -> MicroBatch:
        shape = (len(packs), self.sequence_length)
        input_ids, position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        labels, documents = np.full(shape, IGNORE, np.int64), np.full(shape, PADDING, np.int64)
        for row, segments in enumerate(packs):
            at = 0
            for _pack, document, start, length, _supervised in segments.tolist():
                here, tokens = slice(at, at + length), self.tokens.row(document)[start : start + length]
                input_ids[row, here] = tokens
                position_ids[row, here] = np.arange(length)
                documents[row, here] = document
                targets = tokens[1:].astype(np.int64)
                if self._targets is not None:
                    targets[self._targets.row(document)[start + 1 : start + length] == 0] = IGNORE
                labels[row, at : at + length - 1] = targets
                at += length
            position_ids[row, at:] = np.arange(self.sequence_length - at)
        return MicroBatch(
            torch.from_numpy(input_ids), torch.from_numpy(position_ids), torch.from_numpy(labels), documents
        )


def _words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())


def _save(path: Path, array: NDArray[np.void]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with layout.replace_atomically(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def _load(path: Path) -> NDArray[np.void]:
    """Memory-mapped; an empty array cannot be mapped."""
    try:
        array: NDArray[np.void] = np.load(path, mmap_mode="r")
    except ValueError:
        array = np.load(path)
    return array
