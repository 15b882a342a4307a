"""Rows longer than a pack: which are split, cut or dropped, and how many tokens that costs.

A row whose mask marks every token as a target is running text: it may be split anywhere. A row with masked
tokens is a conversation (or a prompt with its completion): a piece from its middle would be an answer without
its question, so it is cut after a whole answer or left out. No torch here: a submission counts the lost
tokens before anything is queued.
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
    """What becomes of a row; the values are written to plan files."""

    WHOLE = 0
    SPLIT = 1
    EXCLUDED = 2
    TRUNCATED = 3
    DROPPED = 4
    CUT = 5
    CONVERSATION_DROPPED = 6
    NO_ANSWER_FITS = 7
    NO_TARGET = 8


# Reasons for lost tokens: the heading in tables, and the setting that changes it.
LOSSES = {
    Fate.TRUNCATED: ("running text cut off after one pack", "data.long_documents=split"),
    Fate.DROPPED: ("running text longer than a pack, dropped", "data.long_documents=split"),
    Fate.CUT: ("conversations cut after the last answer that fits", "a larger data.sequence_length"),
    Fate.CONVERSATION_DROPPED: ("conversations longer than a pack, dropped", "data.long_conversations=cut"),
    Fate.NO_ANSWER_FITS: (
        "conversations of which no whole answer fits, dropped",
        "a larger data.sequence_length",
    ),
    Fate.NO_TARGET: ("rows without any target", "corpus.chat.targets of `finetune prepare`"),
}


@dataclass(frozen=True)
class LongRows:
    """What to do with rows longer than a pack.

    Attributes:
        documents: running text: "split", "truncate" to its first tokens, or "drop".
        conversations: "cut" after the last whole answer that fits, or "drop".
    """

    sequence_length: int
    documents: str
    conversations: str

    @classmethod
    def of(cls, data: DataConfig) -> LongRows:
        return cls(data.sequence_length, data.long_documents, data.long_conversations)


@dataclass(frozen=True)
class Loss:
    """Tokens of one source and written standard that are not used, for one reason."""

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
    """Tokens of a split, of the sources in use: all those that came in by group, and what was lost of them by
    reason."""

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
        return self.lost / self.tokens if self.tokens else 0.0

    def token_use(self) -> TokenUse:
        """Return the account as a summary holds it."""
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
        return TokenUse(
            tokens=self.tokens,
            used=self.tokens - self.lost,
            lost=self.lost,
            groups=self.groups,
            losses=losses,
        )


def rows_of(table: pa.Table, mask_column: str | None, sources: list[str], long: LongRows) -> Rows:
    """Decide what becomes of each row of a split, in the order of `table`.

    Args:
        sources: rows of other sources are left out.
    """
    lengths = ListColumn(table["input_ids"]).lengths
    mask = ListColumn(table[mask_column]) if mask_column else None
    marked, first = (lengths, np.minimum(lengths, 1)) if mask is None else mask.sums()
    rows = np.zeros(len(lengths), ROW)
    rows["length"] = rows["kept"] = lengths
    rows["targets"] = marked - first  # a row's first token has nothing to be predicted from
    fate = rows["fate"]
    is_long = lengths > long.sequence_length
    is_text = marked == lengths
    _decide_text(rows, is_long & is_text, long)
    _decide_conversations(rows, is_long & ~is_text, long, mask.row if mask else None)
    fate[
        (rows["targets"] <= 0)
        & ~np.isin(fate, [Fate.DROPPED, Fate.CONVERSATION_DROPPED, Fate.NO_ANSWER_FITS])
    ] = Fate.NO_TARGET
    fate[~np.isin(np.asarray(table["source"].to_pylist(), dtype=str), sources)] = Fate.EXCLUDED
    gone = np.isin(
        fate, [Fate.EXCLUDED, Fate.DROPPED, Fate.CONVERSATION_DROPPED, Fate.NO_ANSWER_FITS, Fate.NO_TARGET]
    )
    rows["kept"][gone] = 0
    rows["targets"][gone] = 0
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
        rows["kept"][index], rows["targets"][index] = end, mask[1:end].sum()
        rows["fate"][index] = Fate.CUT if rows["targets"][index] else Fate.NO_ANSWER_FITS


def end_of_last_answer(mask: NDArray[np.integer[Any]], sequence_length: int) -> int:
    """Return the tokens up to the end of the last whole answer within `sequence_length`; 0 if no answer ends
    there.

    An answer ends where the mask goes from 1 to 0, or with the row.
    """
    head = np.append(mask, 0)[: sequence_length + 1]
    ends = np.flatnonzero((head[:-1] == 1) & (head[1:] == 0)) + 1
    return int(ends[-1]) if len(ends) else 0


def account(rows: Rows, sources: NDArray[np.object_], languages: NDArray[np.object_]) -> Account:
    """Add up the tokens of the rows by source and written standard, and those lost by reason too."""
    groups, losses = [], []
    lost = rows["length"] - rows["kept"]
    for source, language in sorted({*zip(sources.tolist(), languages.tolist(), strict=True)}):
        of_group = (sources == source) & (languages == language) & (rows["fate"] != Fate.EXCLUDED)
        if not of_group.any():
            continue
        tokens, used = int(rows["length"][of_group].sum()), int(rows["kept"][of_group].sum())
        groups.append(
            UsedGroup(
                source=source, language=language, documents=int(of_group.sum()), tokens=tokens, used=used
            )
        )
        for fate in LOSSES:
            of_fate = of_group & (rows["fate"] == fate)
            if of_fate.any():
                losses.append(Loss(source, language, fate, int(of_fate.sum()), int(lost[of_fate].sum())))
    return Account(groups, losses)


def count_documents(rows: Rows) -> dict[str, int]:
    """Count the documents of a plan, what became of the long ones, and the tokens that this costs."""
    number = {fate: int((rows["fate"] == fate).sum()) for fate in Fate}
    in_use = rows["fate"] != Fate.EXCLUDED
    return {
        "documents": int((rows["kept"] > 0).sum()),
        "documents_split": number[Fate.SPLIT],
        "documents_truncated": number[Fate.TRUNCATED],
        "documents_cut": number[Fate.CUT],
        "documents_too_long": number[Fate.DROPPED]
        + number[Fate.CONVERSATION_DROPPED]
        + number[Fate.NO_ANSWER_FITS],
        "documents_without_targets": number[Fate.NO_TARGET],
        "tokens_lost": int((rows["length"] - rows["kept"])[in_use].sum()),
    }


def account_of(corpus: Corpus, split: str, sources: list[str], long: LongRows) -> Account:
    """Account for the tokens of a split without a plan."""
    table = corpus.table(split)
    return account(rows_of(table, corpus.manifest.mask_column, sources, long), *groups_of(table))


def training_account(corpus: Corpus, data: DataConfig) -> Account:
    """Account for the training tokens of a run before it starts."""
    sources = [source for source in corpus.manifest.sources if data.trains_on(source)]
    return account_of(corpus, "train", sources, LongRows.of(data))


def check_losses(training: Account, data: DataConfig) -> None:
    """Refuse a run that leaves out more of its training tokens than `data.max_lost_share`.

    Raises:
        UserError: it does; the line names the reasons and the settings that change them.
    """
    if training.lost_share <= data.max_lost_share:
        return
    raise UserError(
        f"data.max_lost_share is {data.max_lost_share:g}, but {training.lost_share:.0%} of the {training.tokens:,} training "
        f"tokens of corpus {data.corpus} would be left out at data.sequence_length={data.sequence_length}: "
        f"{'; '.join(_by_reason(training))}; change that, or accept it with "
        f"data.max_lost_share={_rounded_up(training.lost_share)}"
    )


def groups_of(table: pa.Table) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Return the source and the written standard of each row."""
    sources, languages = (
        np.asarray(table[name].to_pylist(), dtype=object) for name in ("source", "language")
    )
    return sources, languages


def _by_reason(lost: Account) -> Iterator[str]:
    for fate, (reason, setting) in LOSSES.items():
        of_it = [loss for loss in lost.losses if loss.fate == fate]
        if of_it:
            tokens, documents = sum(loss.tokens for loss in of_it), sum(loss.documents for loss in of_it)
            yield f"{tokens:,} in {documents} {reason} (changed by {setting})"


def _rounded_up(share: float) -> float:
    return min(1.0, math.ceil(share * 100) / 100)


class ListColumn:
    """A list column of a memory-mapped table, row by row as numpy views: nothing is copied, nothing becomes
    Python objects."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._offsets = [np.asarray(chunk.offsets) for chunk in column.chunks]
        self._values = [chunk.values.to_numpy(zero_copy_only=True) for chunk in column.chunks]
        self._first_row = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])
        self.lengths = np.concatenate(
            [np.diff(offsets) for offsets in self._offsets] or [np.zeros(0)]
        ).astype(np.int64)

    def row(self, index: int) -> NDArray[np.int32]:
        chunk = int(np.searchsorted(self._first_row, index, side="right")) - 1
        start, stop = self._offsets[chunk][index - self._first_row[chunk] :][:2]
        row: NDArray[np.int32] = self._values[chunk][start:stop]
        return row

    def sums(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the sum of each row's values, and its first value (0 of an empty row)."""
        chunks = [_sums(*chunk) for chunk in zip(self._offsets, self._values, strict=True)]
        both = np.concatenate([*chunks, np.zeros((2, 0), np.int64)], axis=1)
        return both[0], both[1]


def _sums(offsets: NDArray[np.int32], values: NDArray[Any]) -> NDArray[np.int64]:
    """[2, rows] sums and first values of one chunk."""
    sums = np.zeros((2, len(offsets) - 1), np.int64)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):  # empty rows take no place between the others
        starts = offsets[:-1][filled]
        sums[0, filled] = np.add.reduceat(values[: offsets[-1]], starts, dtype=np.int64)
        sums[1, filled] = values[starts]
    return sums
