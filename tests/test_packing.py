"""The plan that packs documents into rows.

Every token of a document except its first is a target exactly once. The plan depends on seed and
epoch alone, and rows are nearly full.
"""

from __future__ import annotations

import numpy as np
import pytest

from finetune.data.packing import cut_segments, pack


def random_lengths(seed: int, count: int = 400, longest: int = 700) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, longest, count)


@pytest.mark.parametrize("sequence_length", [2, 3, 64, 512])
def test_every_token_but_a_documents_first_is_a_target_once(sequence_length: int) -> None:
    lengths = random_lengths(1)
    segments = cut_segments(lengths, sequence_length)
    for document, length in enumerate(lengths):
        of_document = segments[segments["document"] == document]
        targets = [t for s in of_document for t in range(s["start"] + 1, s["start"] + s["length"])]
        assert targets == list(range(1, length))
    assert (segments["length"] <= sequence_length).all()
    assert segments["supervised"].sum() == np.maximum(lengths - 1, 0).sum()


@pytest.mark.parametrize("epoch", [None, 0, 1, 7])
def test_a_plan_has_every_segment_once_and_no_pack_overflows(epoch: int | None) -> None:
    segments = cut_segments(random_lengths(2), 128)
    plan = pack(segments, 128, seed=5, epoch=epoch)
    fields = ["document", "start", "length", "supervised"]
    assert sorted(plan[fields].tolist()) == sorted(segments[fields].tolist())
    filled = np.bincount(plan["pack"], weights=plan["length"])
    assert filled.max() <= 128
    assert filled.min() > 0
    assert (np.diff(plan["pack"]) >= 0).all()


def test_every_epoch_has_the_same_number_of_packs_in_another_order() -> None:
    segments = cut_segments(random_lengths(3), 128)
    plans = [pack(segments, 128, seed=5, epoch=epoch) for epoch in range(4)]
    assert len({plan["pack"].max() for plan in plans}) == 1
    assert plans[0]["document"].tolist() != plans[1]["document"].tolist()


def test_a_plan_is_a_pure_function_of_seed_and_epoch() -> None:
    segments = cut_segments(random_lengths(4), 128)
    assert pack(segments, 128, 1, 2).tolist() == pack(segments, 128, 1, 2).tolist()
    assert pack(segments, 128, 1, 2).tolist() != pack(segments, 128, 2, 2).tolist()


def test_packs_are_nearly_full() -> None:
    plan = pack(cut_segments(random_lengths(5, count=5000), 512), 512, 0, 0)
    assert plan["length"].sum() / ((plan["pack"].max() + 1) * 512) > 0.97
