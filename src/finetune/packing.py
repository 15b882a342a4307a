"""Which piece of which document goes in which pack. Pure functions of lengths and seeds: no files, no tensors, no ranks.

Documents become segments of at most `sequence_length` tokens, packed by best fit decreasing (the bin-packing
heuristic of Johnson 1973; for language models Ding et al. 2024, "Fewer Truncations Improve Language Modeling"). A segment
is never cut again, and packed documents never see each other: each starts at position 0, which is what isolates them.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEGMENT = np.dtype([("pack", "<i8"), ("document", "<i8"), ("start", "<i8"), ("length", "<i8"), ("supervised", "<i8")])

Segments = NDArray[np.void]

LONG_DOCUMENTS = ("split", "truncate", "drop")


def segments_of(lengths: NDArray[np.int64], sequence_length: int, long_documents: str = "split") -> Segments:
    """Cut documents into segments.

    Of a document that is split, the next segment starts at the last token of the one before: that token is context in both
    and a target only once, so every token but a document's first is predicted exactly once, whatever the sequence length.

    Args:
        lengths: [documents] tokens a document. Documents of fewer than 2 tokens have nothing to predict and are left out.
        long_documents: what becomes of those longer than `sequence_length`: "split"; "truncate" to its first tokens; "drop".
    """
    assert long_documents in LONG_DOCUMENTS
    if long_documents == "truncate":
        lengths = np.minimum(lengths, sequence_length)
    elif long_documents == "drop":
        lengths = np.where(lengths > sequence_length, 0, lengths)
    stride = sequence_length - 1
    count = np.maximum(0, -(-(lengths - 1) // stride))
    segments = np.zeros(int(count.sum()), dtype=SEGMENT)
    segments["document"] = np.repeat(np.arange(len(lengths)), count)
    first = np.repeat(np.cumsum(count) - count, count)
    segments["start"] = (np.arange(len(segments)) - first) * stride
    segments["length"] = np.minimum(sequence_length, lengths[segments["document"]] - segments["start"])
    segments["supervised"] = segments["length"] - 1
    return segments


def pack(segments: Segments, sequence_length: int, seed: int, epoch: int | None) -> Segments:
    """Assign every segment to a pack; returned sorted by pack.

    The number of packs depends on the lengths alone, so it is the same in every epoch. Which segments of equal length share
    a pack, and the order of the packs, change with (seed, epoch); `epoch=None` keeps the order as it is, for evaluation.
    """
    rng = None if epoch is None else np.random.default_rng([seed, epoch])
    order = np.arange(len(segments)) if rng is None else rng.permutation(len(segments))
    by_length = order[np.argsort(-segments["length"][order], kind="stable")]
    packs = np.empty(len(segments), dtype=np.int64)
    num_packs = 0
    open_packs: list[list[int]] = [[] for _ in range(sequence_length + 1)]  # by free space
    free_spaces: list[int] = []  # sorted; the spaces for which open_packs is not empty
    for index in by_length:
        length = int(segments["length"][index])
        position = bisect.bisect_left(free_spaces, length)
        if position < len(free_spaces):
            space = free_spaces[position]
            number = open_packs[space].pop()
            if not open_packs[space]:
                free_spaces.pop(position)
        else:
            number, space, num_packs = num_packs, sequence_length, num_packs + 1
        packs[index] = number
        left = space - length
        if left >= 2:  # the shortest segment has two tokens
            if not open_packs[left]:
                bisect.insort(free_spaces, left)
            open_packs[left].append(number)
    if rng is not None:
        packs = rng.permutation(num_packs)[packs]
    packed = segments.copy()
    packed["pack"] = packs
    return packed[np.argsort(packs, kind="stable")]


def supervised_only(segments: Segments, mask_of: Callable[[int], NDArray[np.integer[Any]]]) -> Segments:
    """Segments with the number of their targets as the documents' masks say; those without any are left out: they teach
    nothing, and would fill packs.

    Args:
        mask_of: document -> [tokens] 1 where the token is a target. A segment's first token never is one.
    """
    counted = segments.copy()
    document, mask = -1, mask_of(0)[:0]
    for segment in counted:
        if segment["document"] != document:
            document = int(segment["document"])
            mask = mask_of(document)
        segment["supervised"] = mask[segment["start"] + 1 : segment["start"] + segment["length"]].sum()
    return counted[counted["supervised"] > 0]


def count_documents(lengths: NDArray[np.int64], sequence_length: int, long_documents: str, plan: Segments) -> dict[str, int]:
    """What became of the documents in a plan.

    Args:
        lengths, sequence_length, long_documents: what the plan's segments were cut with.
    """
    usable, long = lengths >= 2, lengths > sequence_length
    planned = np.zeros(len(lengths), np.bool_)
    planned[plan["document"]] = True
    return {
        "documents": int(planned.sum()),
        "documents_split": int((long & planned).sum()) if long_documents == "split" else 0,
        "documents_truncated": int((long & planned).sum()) if long_documents == "truncate" else 0,
        "documents_too_long": int(long.sum()) if long_documents == "drop" else 0,
        "documents_without_targets": int((usable & ~planned & ~(long & (long_documents == "drop"))).sum()),
        "segments_without_targets": len(segments_of(lengths, sequence_length, long_documents)) - len(plan),
    }
