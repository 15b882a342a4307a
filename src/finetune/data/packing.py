"""Packing: documents are cut into segments, and the segments are assigned to packs.

A segment has at most `sequence_length` tokens and is never split again. Segments are packed by best
fit decreasing (the bin-packing heuristic of Johnson 1973; for language models Ding et al. 2024,
"Fewer Truncations Improve Language Modeling"). The result depends only on lengths and seeds.
rows.py decides beforehand how much of each document is kept. Packed documents do not attend to each
other, because the positions of each start at 0 (models/attention.py).

This module does not import torch.
"""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

SEGMENT = np.dtype(
    [("pack", "<i8"), ("document", "<i8"), ("start", "<i8"), ("length", "<i8"), ("supervised", "<i8")]
)

Segments = NDArray[np.void]


def cut_segments(lengths: NDArray[np.int64], sequence_length: int) -> Segments:
    """Cut documents into segments of at most `sequence_length` tokens.

    A document's next segment starts at the last token of the segment before it. In the earlier
    segment this token is a target, in the later one only context. So every token but a document's
    first is predicted exactly once, at any sequence length.

    Args:
        lengths: [documents] number of tokens to train on in each document (see rows.py). Documents
            of fewer than 2 tokens get no segment, because they have nothing to predict.

    Returns:
        [segments] of dtype SEGMENT, whose field `pack` is not set.
    """
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
    """Assign every segment to a pack; return the segments sorted by pack.

    The number of packs depends on the lengths alone, so it is the same in every epoch. Seed and
    epoch change the order of the packs, and exchange segments of equal length between packs.

    Args:
        epoch: number of the epoch; None keeps segments and packs in order, for evaluation.
    """
    rng = None
    order = np.arange(len(segments))
    if epoch is not None:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(segments))
    by_length = order[np.argsort(-segments["length"][order], kind="stable")]
    packs = np.empty(len(segments), dtype=np.int64)
    num_packs = 0
    # packs that are not full, by their free space
    open_packs: list[list[int]] = [[] for _ in range(sequence_length + 1)]
    # free spaces for which open_packs is not empty, sorted
    free_spaces: list[int] = []
    for index in by_length:
        length = int(segments["length"][index])
        position = bisect.bisect_left(free_spaces, length)
        if position < len(free_spaces):
            space = free_spaces[position]
            number = open_packs[space].pop()
            if not open_packs[space]:
                free_spaces.pop(position)
        else:
            number = num_packs
            space = sequence_length
            num_packs += 1
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
