"""Training data: the micro-batches of each optimizer step, from a corpus and a plan of its packs.

The index of a batch determines its data, so a resumed run needs no other state.
"""

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
from finetune.data.rows import (
    Fate,
    ListColumn,
    LongRows,
    Rows,
    build_account,
    count_documents,
    decide_rows,
    read_groups,
)
from finetune.distributed import World
from finetune.models.loss import IGNORE
from finetune.models.packed import PackInputs
from finetune.runs import layout

# document index of padding
PADDING = -1

logger = logging.getLogger(__name__)


@dataclass
class MicroBatch:
    """The packs of one forward pass on one rank.

    Attributes:
        input_ids: [packs, length] token ids; padding is 0.
        position_ids: [packs, length]; they start at 0 in every document, so that documents are
            isolated. Padding is a document of its own.
        labels: [packs, length] the next token if it is a target, else IGNORE: at the last token of
            a document, before masked tokens, and in padding.
        documents: [packs, length] index of the token's document in the split; PADDING in padding.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    documents: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """Number of tokens that are not padding."""
        return int((self.documents != PADDING).sum())

    @property
    def checksum(self) -> int:
        """Checksum of the data: the CRC of each pack's tokens and documents, summed over the packs.

        Summed over all ranks and micro-batches of a step, it is equal for steps with equal data.
        """
        total = 0
        for tokens, documents in zip(self.input_ids.numpy(), self.documents, strict=True):
            total += zlib.crc32(documents.tobytes(), zlib.crc32(tokens.tobytes()))
        return total

    @property
    def num_targets(self) -> int:
        """Number of supervised positions."""
        return int((self.labels != IGNORE).sum())

    @property
    def target_positions(self) -> torch.Tensor:
        """Supervised positions in the flattened packs, [targets]."""
        return (self.labels.flatten() != IGNORE).nonzero()[:, 0]

    def to(self, device: torch.device) -> PackInputs:
        """Return the inputs of PackedModel.losses, copied to a device."""
        positions = self.target_positions
        return PackInputs(
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            target_positions=positions.to(device),
            targets=self.labels.flatten()[positions].to(device),
        )


@dataclass
class StepData:
    """The data of one optimizer step.

    Attributes:
        segments: segments of the global batch.
        num_targets: number of supervised tokens in the global batch.
        micro_batches: micro-batches of this rank.
    """

    segments: Segments
    num_targets: int
    micro_batches: Iterator[MicroBatch]


class PackedData:
    """A split of a corpus as packs.

    Training reads the epochs as one endless sequence of packs. With B packs per batch, global batch
    b consists of packs b·B to (b+1)·B - 1, for any number of ranks. Each rank takes its
    micro-batches from these. Evaluation reads one epoch in fixed order.

    Args:
        sources: sources in use; documents of other sources are left out.
        sequence_length: number of tokens in a pack.
        long_documents, long_conversations: how rows longer than a pack are treated; see
            rows.LongRows.
        plan_folder: folder of the plans, one file per epoch. Rank 0 writes a plan when it is first
            needed.
        shuffle_seed: seed of the order of the packs; None keeps them in order, for evaluation.

    Attributes:
        counts: numbers of documents that are used, split, cut and left out, and the number of lost
            tokens (see rows.count_documents).
        account: numbers of used and lost tokens of the split.

    Raises:
        UserError: the training split has no text to train on.
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
        self.split = split
        self.sequence_length = sequence_length
        self.world = world
        self._seed = shuffle_seed
        self._plan_folder = plan_folder
        mask_column = corpus.manifest.mask_column
        text_treatment = "split" if long_documents == "auto" else long_documents
        long_rows = LongRows(sequence_length, text_treatment, long_conversations)
        # The key is part of the plans' file names, so that a plan is used only with its corpus and
        # settings.
        key = [corpus.manifest.digest, sequence_length, text_treatment, shuffle_seed, sorted(sources)]
        if mask_column:
            key.append(long_conversations)
        self._plan_key = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]

        table = corpus.table(split)
        self.tokens = ListColumn(table["input_ids"])
        self._masks = ListColumn(table[mask_column]) if mask_column else None
        self.sources, self.languages = read_groups(table)
        rows_file = plan_folder / layout.pack_rows(split, self._plan_key)
        if world.is_main and not rows_file.exists():
            _save(rows_file, decide_rows(table, mask_column, sources, long_rows))
        world.barrier()
        self._rows: Rows = _load(rows_file)
        self._epochs: dict[int, Segments] = {}
        first_epoch = self._epoch(0)
        self.num_packs = int(first_epoch["pack"][-1]) + 1 if len(first_epoch) else 0
        self.counts = count_documents(self._rows)
        self.account = build_account(self._rows, self.sources, self.languages)
        if world.is_main:
            self._log_counts()
        if not self.num_packs and split == "train":
            raise UserError(self._describe_empty(corpus.folder, sources))

    def check_plan(self) -> None:
        """Check that the run did not start with another plan of this split.

        A plan assigns the documents to packs. With another plan, a resumed run would read some
        documents twice and others never.

        Raises:
            UserError: an earlier version of this program started the run and planned rows longer
                than a pack differently.
        """
        for path in self._plan_folder.glob(layout.pack_plan(self.split, "*", 0)):
            if self._plan_key not in path.name and not np.array_equal(_load(path), self._epoch(0)):
                raise UserError(
                    f"{path}: is the plan of an earlier version, which treated rows longer than a "
                    "pack differently; start a new run, or resume this run with the version that "
                    "started it"
                )

    def load_batch(self, index: int, global_batch_size: int, micro_batch_size: int) -> StepData:
        """Return global batch `index`, with this rank's micro-batches.

        Every rank must load the same batches in the same order.
        """
        first = index * global_batch_size
        packs = [self._pack(number) for number in range(first, first + global_batch_size)]
        segments = np.concatenate(packs)
        stride = micro_batch_size * self.world.size
        offset = self.world.rank * micro_batch_size
        own_packs = [packs[start + offset :][:micro_batch_size] for start in range(0, len(packs), stride)]
        return StepData(
            segments=segments,
            num_targets=int(segments["supervised"].sum()),
            micro_batches=(self._micro_batch(chunk) for chunk in own_packs),
        )

    def iter_epoch(self, micro_batch_size: int) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of one epoch in order.

        All ranks get the same number of micro-batches, as ZeRO-3 requires. The last ones may
        contain packs of padding.
        """
        stride = micro_batch_size * self.world.size
        offset = self.world.rank * micro_batch_size
        padding = np.zeros(0, packing.SEGMENT)
        for first in range(0, self.num_packs, stride):
            start = first + offset
            numbers = range(start, start + micro_batch_size)
            yield self._micro_batch([self._pack(n) if n < self.num_packs else padding for n in numbers])

    def _pack(self, index: int) -> Segments:
        """Return the segments of a pack.

        Args:
            index: number of the pack from 0, continued from one epoch to the next.
        """
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
        """Assign the segments of all documents to the packs of an epoch; write the result to `path`."""
        segments = packing.cut_segments(self._rows["kept"], self.sequence_length)
        fates = self._rows["fate"][segments["document"]]
        in_one_piece = np.isin(fates, (Fate.WHOLE, Fate.CUT))
        segments["supervised"][in_one_piece] = self._rows["targets"][segments["document"][in_one_piece]]
        shuffled_epoch = None if self._seed is None else epoch
        _save(path, packing.pack(segments, self.sequence_length, self._seed or 0, shuffled_epoch))

    def _log_counts(self) -> None:
        counts = {name: count for name, count in self.counts.items() if count and name != "documents"}
        logger.info(
            "%s: %d documents in %d packs of %d tokens%s",
            self.split,
            self.counts["documents"],
            self.num_packs,
            self.sequence_length,
            f"; {_format_counts(counts)}" if counts else "",
        )

    def _describe_empty(self, corpus: Path, sources: list[str]) -> str:
        lost = {name: n for name, n in self.counts.items() if n and name.startswith("documents")}
        message = f"corpus {corpus}: no training text in {', '.join(sources)}"
        if lost:
            message += f" ({_format_counts(lost)}; sequence_length {self.sequence_length})"
        return message + "; choose other sources, or another data.sequence_length"

    def _micro_batch(self, packs: list[Segments]) -> MicroBatch:
        shape = (len(packs), self.sequence_length)
        input_ids = np.zeros(shape, np.int64)
        position_ids = np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORE, np.int64)
        documents = np.full(shape, PADDING, np.int64)
        for row, segments in enumerate(packs):
            end = 0
            for _pack, document, start, length, _supervised in segments.tolist():
                place = slice(end, end + length)
                tokens = self.tokens.row(document)[start : start + length]
                input_ids[row, place] = tokens
                position_ids[row, place] = np.arange(length)
                documents[row, place] = document
                targets = tokens[1:].astype(np.int64)
                if self._masks is not None:
                    targets[self._masks.row(document)[start + 1 : start + length] == 0] = IGNORE
                labels[row, end : end + length - 1] = targets
                end += length
            position_ids[row, end:] = np.arange(self.sequence_length - end)
        return MicroBatch(
            input_ids=torch.from_numpy(input_ids),
            position_ids=torch.from_numpy(position_ids),
            labels=torch.from_numpy(labels),
            documents=documents,
        )


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())


def _save(path: Path, array: NDArray[np.void]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with layout.replace_atomically(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def _load(path: Path) -> NDArray[np.void]:
    """Load an array; it is memory-mapped unless it is empty, as empty files cannot be mapped."""
    try:
        array: NDArray[np.void] = np.load(path, mmap_mode="r")
    except ValueError:
        array = np.load(path)
    return array
