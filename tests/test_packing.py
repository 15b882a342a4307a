"""Laws of the pack plan."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.packing import count_documents, pack, segments_of, supervised_only


def random_lengths(seed: int, count: int = 400, longest: int = 700) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, longest, count)


@pytest.mark.parametrize("sequence_length", [2, 3, 64, 512])
def test_every_token_but_a_documents_first_is_a_target_once(sequence_length: int) -> None:
    lengths = random_lengths(1)
    segments = segments_of(lengths, sequence_length)
    for document, length in enumerate(lengths):
        mine = segments[segments["document"] == document]
        targets = [t for s in mine for t in range(s["start"] + 1, s["start"] + s["length"])]
        assert targets == list(range(1, length))
    assert (segments["length"] <= sequence_length).all()
    assert segments["supervised"].sum() == np.maximum(lengths - 1, 0).sum()


@pytest.mark.parametrize("epoch", [None, 0, 1, 7])
def test_a_plan_holds_every_segment_once_and_no_pack_overflows(epoch: int | None) -> None:
    segments = segments_of(random_lengths(2), 128)
    plan = pack(segments, 128, seed=5, epoch=epoch)
    fields = ["document", "start", "length", "supervised"]
    assert sorted(plan[fields].tolist()) == sorted(segments[fields].tolist())
    filled = np.bincount(plan["pack"], weights=plan["length"])
    assert filled.max() <= 128
    assert filled.min() > 0
    assert (np.diff(plan["pack"]) >= 0).all()


def test_every_epoch_has_as_many_packs_in_another_order() -> None:
    segments = segments_of(random_lengths(3), 128)
    plans = [pack(segments, 128, seed=5, epoch=epoch) for epoch in range(4)]
    assert len({plan["pack"].max() for plan in plans}) == 1
    assert plans[0]["document"].tolist() != plans[1]["document"].tolist()


def test_a_plan_is_a_pure_function_of_seed_and_epoch() -> None:
    segments = segments_of(random_lengths(4), 128)
    assert pack(segments, 128, 1, 2).tolist() == pack(segments, 128, 1, 2).tolist()
    assert pack(segments, 128, 1, 2).tolist() != pack(segments, 128, 2, 2).tolist()


def test_packs_are_nearly_full() -> None:
    plan = pack(segments_of(random_lengths(5, count=5000), 512), 512, 0, 0)
    assert plan["length"].sum() / ((plan["pack"].max() + 1) * 512) > 0.97


def test_a_loss_mask_decides_what_counts() -> None:
    lengths = np.asarray([10, 3, 300, 300])
    late = np.arange(300) >= 290  # its last segment alone has targets
    masks = [np.asarray([0] * 6 + [1] * 4, np.int8), np.asarray([1, 1, 1], np.int8), np.zeros(300, np.int8), late.astype(np.int8)]
    counted = supervised_only(segments_of(lengths, 128), lambda document: masks[document])
    assert counted["document"].tolist() == [0, 1, 3]
    assert counted["supervised"].tolist() == [4, 2, 10]  # a document's first token is no target even where its mask says 1
    counts = count_documents(lengths, 128, "split", counted)
    assert counts == {
        "documents": 3, "documents_split": 1, "documents_truncated": 0, "documents_too_long": 0,
        "documents_without_targets": 1, "segments_without_targets": 5,
    }  # fmt: skip


@pytest.mark.parametrize("policy", ["truncate", "drop"])
def test_long_documents_are_truncated_or_dropped_and_short_ones_untouched(policy: str) -> None:
    lengths = np.asarray([1, 2, 127, 128, 129, 400])
    segments = segments_of(lengths, 128, policy)
    kept = {"truncate": [(1, 2), (2, 127), (3, 128), (4, 128), (5, 128)], "drop": [(1, 2), (2, 127), (3, 128)]}[policy]
    assert segments[["document", "length"]].tolist() == kept
    assert segments["start"].tolist() == [0] * len(kept)
    counts = count_documents(lengths, 128, policy, segments)
    assert counts["documents"] == len(kept)
    assert (counts["documents_truncated"], counts["documents_too_long"]) == {"truncate": (2, 0), "drop": (0, 2)}[policy]
    assert counts["documents_split"] == counts["documents_without_targets"] == counts["segments_without_targets"] == 0


def test_a_truncated_document_without_a_target_is_dropped_and_counted() -> None:
    lengths = np.asarray([200, 200])
    masks = [(np.arange(200) >= 150).astype(np.int8), (np.arange(200) >= 120).astype(np.int8)]
    segments = supervised_only(segments_of(lengths, 128, "truncate"), lambda document: masks[document])
    assert segments[["document", "length", "supervised"]].tolist() == [(1, 128, 8)]
    counts = count_documents(lengths, 128, "truncate", segments)
    assert (counts["documents_truncated"], counts["documents_without_targets"]) == (1, 1)
