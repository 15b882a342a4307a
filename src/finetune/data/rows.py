"""Decide how much of each row of a corpus is trained on, and count the tokens that are lost.

A row is one document or one conversation. It may be longer than a pack. If all its tokens are
targets, it is running text and may be split anywhere. If it has masked tokens, it is a
conversation, or a prompt with its completion. A piece from its middle would be an answer without
its question, so the row is cut after a complete answer or left out. Tokens that a run does not
train on because their row was shortened or left out are called lost.

This module does not import torch, because `finetune train` counts the lost tokens before it submits
a job.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.shards import Corpus
from data_prep.user_error import UserError
from finetune.config.train import DataConfig
from finetune.runs.summary import LostTokens, TokenUse, UsedGroup

ROW = np.dtype([("length", "<i8"), ("kept", "<i8"), ("targets", "<i8"), ("fate", "u1")])

Rows = NDArray[np.void]
MaskOf = Callable[[int], NDArray[np.int32]]


class Fate(IntEnum):
    """How a row is treated: kept whole, split, shortened or left out.

    The numbers are stored in a run's files, so they must not change.
    """

    WHOLE = 0
    SPLIT = 1
    EXCLUDED = 2
    TRUNCATED = 3
    DROPPED = 4
    CUT = 5
    CONVERSATION_DROPPED = 6
    NO_ANSWER_FITS = 7
    NO_TARGET = 8


# Treatments that lose tokens: the reason shown in tables, and the setting that changes it.
LOSSES = {
    Fate.TRUNCATED: ("running text truncated to one pack", "data.long_documents=split"),
    Fate.DROPPED: ("running text longer than a pack, dropped", "data.long_documents=split"),
    Fate.CUT: ("conversations cut after the last answer that fits", "a larger data.sequence_length"),
    Fate.CONVERSATION_DROPPED: ("conversations longer than a pack, dropped", "data.long_conversations=cut"),
    Fate.NO_ANSWER_FITS: (
        "conversations without a complete answer that fits, dropped",
        "a larger data.sequence_length",
    ),
    Fate.NO_TARGET: ("rows without any target", "corpus.chat.targets of `finetune prepare`"),
}


@dataclass(frozen=True)
class LongRows:
    """The settings for rows longer than a pack.

    Attributes:
        sequence_length: number of tokens in a pack.
        documents: how running text is treated: "split" (also "auto"), "truncate" to the first pack,
            or "drop".
        conversations: how conversations are treated: "cut" after the last complete answer that
            fits, or "drop".
    """

    sequence_length: int
    documents: str
    conversations: str

    @classmethod
    def of(cls, data: DataConfig) -> LongRows:
        return cls(data.sequence_length, data.long_documents, data.long_conversations)


@dataclass(frozen=True)
class Loss:
    """Tokens of one source and language that a run does not train on, for one reason.

    Attributes:
        language: code of the language; Bokmål and Nynorsk are two languages.
        fate: how these rows are treated, such as truncated or dropped.
        documents: number of rows treated so.
        tokens: number of their tokens that are not trained on.
    """

    source: str
    language: str
    fate: Fate
    documents: int
    tokens: int

    @property
    def reason(self) -> str:
        return LOSSES[self.fate][0]

    @property
    def setting(self) -> str:
        return LOSSES[self.fate][1]


@dataclass(frozen=True)
class Account:
    """Numbers of tokens of a split that a run trains on, and that it loses.

    Only the sources in use are counted. A token is lost if its row is left out, or if it is cut off
    from its row.

    Attributes:
        groups: numbers of all tokens and of used tokens, by source and language.
        losses: numbers of lost tokens, by source, language and fate.
    """

    groups: list[UsedGroup]
    losses: list[Loss]

    @property
    def tokens(self) -> int:
        return sum(group.tokens for group in self.groups)

    @property
    def lost(self) -> int:
        return sum(loss.tokens for loss in self.losses)

    @property
    def lost_share(self) -> float:
        if not self.tokens:
            return 0.0
        return self.lost / self.tokens

    def token_use(self) -> TokenUse:
        """Return the account in the format of a run's summary."""
        losses = [
            LostTokens(
                source=loss.source,
                language=loss.language,
                fate=loss.fate.name.lower(),
                documents=loss.documents,
                tokens=loss.tokens,
                reason=loss.reason,
                setting=loss.setting,
            )
            for loss in self.losses
        ]
        used = self.tokens - self.lost
        return TokenUse(tokens=self.tokens, used=used, lost=self.lost, groups=self.groups, losses=losses)


def decide_rows(table: pa.Table, mask_column: str | None, sources: list[str], long: LongRows) -> Rows:
    """Decide how each row of a split is treated.

    Args:
        mask_column: column that marks the target tokens; None if all tokens are targets.
        sources: sources in use; rows of other sources are left out.

    Returns:
        [rows] of dtype ROW, in the order of `table`.
    """
    lengths = ListColumn(table["input_ids"]).lengths
    if mask_column is None:
        mask = None
        num_marked = lengths
        first = np.minimum(lengths, 1)
    else:
        mask = ListColumn(table[mask_column])
        num_marked, first = mask.sums_and_first_values()
    rows = np.zeros(len(lengths), ROW)
    rows["length"] = lengths
    rows["kept"] = lengths
    rows["targets"] = num_marked - first  # a row's first token is not predicted
    is_long = lengths > long.sequence_length
    is_text = num_marked == lengths
    _decide_text(rows, is_long & is_text, long)
    _decide_conversations(rows, is_long & ~is_text, long, mask.row if mask else None)
    fate = rows["fate"]
    is_dropped = np.isin(fate, [Fate.DROPPED, Fate.CONVERSATION_DROPPED, Fate.NO_ANSWER_FITS])
    has_no_target = rows["targets"] <= 0
    fate[has_no_target & ~is_dropped] = Fate.NO_TARGET
    sources_of_rows = np.asarray(table["source"].to_pylist(), dtype=str)
    fate[~np.isin(sources_of_rows, sources)] = Fate.EXCLUDED
    is_unused = np.isin(
        fate, [Fate.EXCLUDED, Fate.DROPPED, Fate.CONVERSATION_DROPPED, Fate.NO_ANSWER_FITS, Fate.NO_TARGET]
    )
    rows["kept"][is_unused] = 0
    rows["targets"][is_unused] = 0
    return rows


def _decide_text(rows: Rows, is_long_text: NDArray[np.bool_], long: LongRows) -> None:
    fates = {"split": Fate.SPLIT, "truncate": Fate.TRUNCATED, "drop": Fate.DROPPED}
    rows["fate"][is_long_text] = fates["split" if long.documents == "auto" else long.documents]
    if long.documents == "truncate":
        rows["kept"][is_long_text] = long.sequence_length
        rows["targets"][is_long_text] = long.sequence_length - 1


def _decide_conversations(
    rows: Rows, is_long: NDArray[np.bool_], long: LongRows, mask_of: MaskOf | None
) -> None:
    if long.conversations == "drop":
        rows["fate"][is_long] = Fate.CONVERSATION_DROPPED
        return
    for index in np.flatnonzero(is_long):
        assert mask_of is not None
        mask = mask_of(int(index))
        end = end_of_last_answer(mask, long.sequence_length)
        rows["kept"][index] = end
        rows["targets"][index] = mask[1:end].sum()
        rows["fate"][index] = Fate.CUT if rows["targets"][index] else Fate.NO_ANSWER_FITS


def end_of_last_answer(mask: NDArray[np.integer[Any]], sequence_length: int) -> int:
    """Return the number of tokens that are kept if a row is cut after a complete answer.

    The cut is after the last answer that ends within the first `sequence_length` tokens. Return 0
    if there is none. An answer ends where the mask changes from 1 to 0, or at the row's end.

    Args:
        mask: [tokens] 1 at tokens of answers, else 0.
        sequence_length: number of tokens in a pack.
    """
    head = np.append(mask, 0)[: sequence_length + 1]
    ends = np.flatnonzero((head[:-1] == 1) & (head[1:] == 0)) + 1
    return int(ends[-1]) if len(ends) else 0


def build_account(rows: Rows, sources: NDArray[np.object_], languages: NDArray[np.object_]) -> Account:
    """Count all, used and lost tokens of the rows, by source and language.

    Args:
        rows: [rows] of dtype ROW, from decide_rows.
        sources: [rows] source of each row.
        languages: [rows] language of each row; Bokmål and Nynorsk are two languages.
    """
    groups = []
    losses = []
    lost = rows["length"] - rows["kept"]
    pairs = set(zip(sources.tolist(), languages.tolist(), strict=True))
    for source, language in sorted(pairs):
        of_group = (sources == source) & (languages == language) & (rows["fate"] != Fate.EXCLUDED)
        if not of_group.any():
            continue
        group = UsedGroup(
            source=source,
            language=language,
            documents=int(of_group.sum()),
            tokens=int(rows["length"][of_group].sum()),
            used=int(rows["kept"][of_group].sum()),
        )
        groups.append(group)
        for fate in LOSSES:
            of_fate = of_group & (rows["fate"] == fate)
            if of_fate.any():
                num_tokens = int(lost[of_fate].sum())
                losses.append(Loss(source, language, fate, documents=int(of_fate.sum()), tokens=num_tokens))
    return Account(groups, losses)


def count_documents(rows: Rows) -> dict[str, int]:
    """Return the numbers of documents treated in each way, and of lost tokens, by name."""
    number = {fate: int((rows["fate"] == fate).sum()) for fate in Fate}
    num_dropped = number[Fate.DROPPED] + number[Fate.CONVERSATION_DROPPED] + number[Fate.NO_ANSWER_FITS]
    in_use = rows["fate"] != Fate.EXCLUDED
    return {
        "documents": int((rows["kept"] > 0).sum()),
        "documents_split": number[Fate.SPLIT],
        "documents_truncated": number[Fate.TRUNCATED],
        "documents_cut": number[Fate.CUT],
        "documents_too_long": num_dropped,
        "documents_without_targets": number[Fate.NO_TARGET],
        "tokens_lost": int((rows["length"] - rows["kept"])[in_use].sum()),
    }


def read_account(corpus: Corpus, split: str, sources: list[str], long: LongRows) -> Account:
    """Return how many tokens of a split are used and lost, without planning its packs.

    Args:
        split: name of the split, such as "train".
        sources: sources in use; rows of other sources are not counted.
        long: how rows longer than a pack are treated.
    """
    table = corpus.table(split)
    rows = decide_rows(table, corpus.manifest.mask_column, sources, long)
    sources_of_rows, languages_of_rows = read_groups(table)
    return build_account(rows, sources_of_rows, languages_of_rows)


def read_training_account(corpus: Corpus, data: DataConfig) -> Account:
    """Return how many training tokens a run with these settings would use and lose."""
    sources = [source for source in corpus.manifest.sources if data.trains_on(source)]
    return read_account(corpus, "train", sources, LongRows.of(data))


def check_losses(training: Account, data: DataConfig) -> None:
    """Check that a run does not lose more of its training tokens than data.max_lost_share.

    Raises:
        UserError: it loses more. The message names the reasons and the settings that change them.
    """
    if training.lost_share <= data.max_lost_share:
        return
    reasons = "; ".join(_describe_losses(training))
    raise UserError(
        f"data.max_lost_share is {data.max_lost_share:g}, but {training.lost_share:.0%} of the "
        f"{training.tokens:,} training tokens of corpus {data.corpus} would be left out at "
        f"data.sequence_length={data.sequence_length}: {reasons}; change these settings, or accept "
        f"the loss with data.max_lost_share={_round_up(training.lost_share)}"
    )


def read_groups(table: pa.Table) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Return the source and the language of each row; Bokmål and Nynorsk are two languages."""
    sources = np.asarray(table["source"].to_pylist(), dtype=object)
    languages = np.asarray(table["language"].to_pylist(), dtype=object)
    return sources, languages


def _describe_losses(training: Account) -> Iterator[str]:
    for fate, (reason, setting) in LOSSES.items():
        losses = [loss for loss in training.losses if loss.fate == fate]
        if losses:
            num_tokens = sum(loss.tokens for loss in losses)
            num_documents = sum(loss.documents for loss in losses)
            yield f"{num_tokens:,} in {num_documents} {reason} (changed by {setting})"


def _round_up(share: float) -> float:
    return min(1.0, math.ceil(share * 100) / 100)


class ListColumn:
    """A list column of a memory-mapped table; its rows are read as numpy views, without a copy.

    Attributes:
        lengths: [rows] number of values in each row.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._offsets = [np.asarray(chunk.offsets) for chunk in column.chunks]
        self._values = [chunk.values.to_numpy(zero_copy_only=True) for chunk in column.chunks]
        self._first_row = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])
        lengths = [np.diff(offsets) for offsets in self._offsets] or [np.zeros(0)]
        self.lengths = np.concatenate(lengths).astype(np.int64)

    def row(self, index: int) -> NDArray[np.int32]:
        chunk = int(np.searchsorted(self._first_row, index, side="right")) - 1
        index_in_chunk = index - self._first_row[chunk]
        start, stop = self._offsets[chunk][index_in_chunk:][:2]
        row: NDArray[np.int32] = self._values[chunk][start:stop]
        return row

    def sums_and_first_values(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the sums of the rows' values and their first values; 0 for empty rows."""
        chunks = [_sums_and_first_values(*chunk) for chunk in zip(self._offsets, self._values, strict=True)]
        both = np.concatenate([*chunks, np.zeros((2, 0), np.int64)], axis=1)
        return both[0], both[1]


def _sums_and_first_values(offsets: NDArray[np.int32], values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the sum and the first value of each row in one chunk of an Arrow list column.

    Args:
        offsets: [rows + 1] index in `values` at which each row starts, and the end of the last row.
        values: the values of all rows, one after the other.

    Returns:
        [2, rows] sums and first values; 0 for empty rows.
    """
    result = np.zeros((2, len(offsets) - 1), np.int64)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        # Empty rows have no values, so each filled row ends where the next filled one starts.
        starts = offsets[:-1][filled]
        result[0, filled] = np.add.reduceat(values[: offsets[-1]], starts, dtype=np.int64)
        result[1, filled] = values[starts]
    return result
