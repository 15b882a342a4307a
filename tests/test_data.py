"""Laws of the data path: what a step contains does not depend on how many ranks share it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.shards import Corpus
from finetune.data import PADDING, MicroBatch, PackedData
from finetune.distributed import World
from finetune.loss import IGNORE, normalised
from tests.corpora import write_corpus

SOURCES = ["letters", "laws"]


class Alone(World):
    """A rank that shares the plan folder and needs no peers to agree."""

    def barrier(self) -> None:
        pass


def open_data(corpus: Path, plan: Path, rank: int = 0, size: int = 1, split: str = "train", **changes: object) -> PackedData:
    settings: dict[str, object] = {"sources": SOURCES, "sequence_length": 64, "long_documents": "split", "shuffle_seed": 1}
    settings |= changes
    return PackedData(Corpus(corpus), split, plan_folder=plan, world=Alone(rank, size, rank), **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "mine", num_documents=60, longest=200, seed=4)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(
        tmp_path_factory.mktemp("data") / "masked", num_documents=60, longest=200, seed=4, mask_column="completion_mask"
    )


def rows(batches: list[MicroBatch]) -> list[tuple[bytes, ...]]:
    return [
        (ids.numpy().tobytes(), positions.numpy().tobytes(), labels.numpy().tobytes(), documents.tobytes())
        for batch in batches
        for ids, positions, labels, documents in zip(
            batch.input_ids, batch.position_ids, batch.labels, batch.documents, strict=True
        )
    ]


@pytest.mark.parametrize(("size", "micro"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_a_global_step_is_the_same_packs_on_any_number_of_ranks(corpus: Path, tmp_path: Path, size: int, micro: int) -> None:
    for step in (0, 1, 5, 9):  # over the end of the first epoch
        whole = rows(list(open_data(corpus, tmp_path).step(step, 8, 8).micro_batches))
        shared = [list(open_data(corpus, tmp_path, rank, size).step(step, 8, micro).micro_batches) for rank in range(size)]
        assert sorted(row for batches in shared for row in rows(batches)) == sorted(whole)
        checksums = sum(batch.checksum for batches in shared for batch in batches)
        assert checksums == sum(b.checksum for b in open_data(corpus, tmp_path).step(step, 8, 1).micro_batches)


def test_an_epoch_trains_every_token_but_first_ones_once(corpus: Path, tmp_path: Path) -> None:
    data = open_data(corpus, tmp_path)
    step = data.step(0, data.num_packs, 1)
    seen: dict[int, int] = {}
    for batch in step.micro_batches:
        for document in batch.documents[(batch.labels != IGNORE).numpy()]:
            seen[int(document)] = seen.get(int(document), 0) + 1
    lengths = [len(ids) for ids in Corpus(corpus).split("train")["input_ids"]]
    assert seen == {document: length - 1 for document, length in enumerate(lengths)}
    assert step.num_targets == sum(seen.values())


def test_labels_are_the_next_token_of_the_same_document(corpus: Path, tmp_path: Path) -> None:
    for batch in open_data(corpus, tmp_path).step(0, 4, 4).micro_batches:
        ids, labels, positions = batch.input_ids.numpy(), batch.labels.numpy(), batch.position_ids.numpy()
        rows_, columns = np.nonzero(labels != IGNORE)
        assert (labels[rows_, columns] == ids[rows_, columns + 1]).all()
        assert (batch.documents[rows_, columns] == batch.documents[rows_, columns + 1]).all()
        assert (positions[rows_, columns + 1] == positions[rows_, columns] + 1).all()
        assert (labels[batch.documents == PADDING] == IGNORE).all()
        assert (positions[batch.documents == PADDING] == 0).all()


def test_a_loss_mask_removes_targets_and_segments_without_any(corpus: Path, masked: Path, tmp_path: Path) -> None:
    full, part = open_data(corpus, tmp_path / "a"), open_data(masked, tmp_path / "b")
    targets = {kind: targets_of(data) for kind, data in (("full", full), ("part", part))}
    masks = Corpus(masked).split("train")["completion_mask"]
    expected = {(document, place) for document, place in targets["full"] if masks[document][place]}
    assert targets["part"] == expected
    plan = part.step(0, part.num_packs, 1).segments
    assert plan["supervised"].min() > 0
    assert part.counts["segments_without_targets"] == len(full.step(0, full.num_packs, 1).segments) - len(plan) > 0
    assert part.num_packs < full.num_packs


def targets_of(data: PackedData) -> set[tuple[int, int]]:
    """(document, place) of every target of an epoch."""
    found = set()
    step = data.step(0, data.num_packs, 1)
    for segment, start, length in step.segments[["document", "start", "length"]].tolist():
        found |= {
            (segment, place)
            for place in range(start + 1, start + length)
            if data._targets is None or data._targets.row(segment)[place]
        }
    assert sum(int((batch.labels != IGNORE).sum()) for batch in step.micro_batches) == len(found) == step.num_targets
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
def test_evaluation_sees_every_document_once_and_ranks_take_equally_many_batches(corpus: Path, tmp_path: Path, size: int) -> None:
    ranks = [list(open_data(corpus, tmp_path, rank, size, "validation", shuffle_seed=None).once(2)) for rank in range(size)]
    assert len({len(batches) for batches in ranks}) == 1
    targets = sum(int((batch.labels != IGNORE).sum()) for batches in ranks for batch in batches)
    assert targets == sum(len(ids) - 1 for ids in Corpus(corpus).split("validation")["input_ids"])


def test_left_out_sources_are_left_out(corpus: Path, tmp_path: Path) -> None:
    data = open_data(corpus, tmp_path, sources=["laws"])
    step = data.step(0, data.num_packs, 4)
    assert set(data.sources[np.unique(step.segments["document"])]) == {"laws"}


def test_a_corpus_without_validation_documents_can_be_opened(tmp_path: Path, corpus: Path) -> None:
    import shutil

    from data_prep.shards import Manifest

    folder = tmp_path / "none"
    shutil.copytree(corpus, folder)
    manifest = Manifest.read(folder)
    manifest.splits["validation"] = []
    manifest.write(folder)
    assert open_data(folder, tmp_path / "plan", split="validation", shuffle_seed=None).num_packs == 0


def test_auto_splits_text_and_drops_what_has_a_mask(corpus: Path, masked: Path, tmp_path: Path) -> None:
    longer = sum(len(ids) > 64 for ids in Corpus(corpus).split("train")["input_ids"])
    assert longer > 5
    text = open_data(corpus, tmp_path, long_documents="auto")
    assert (text.counts["documents_split"], text.counts["documents_too_long"]) == (longer, 0)
    chats = open_data(masked, tmp_path, long_documents="auto")
    assert (chats.counts["documents_split"], chats.counts["documents_too_long"]) == (0, longer)
    assert chats.counts["documents"] == 60 - longer
    assert targets_of(chats) < targets_of(open_data(masked, tmp_path, long_documents="split"))


def test_another_policy_is_another_plan_in_the_same_folder(corpus: Path, tmp_path: Path) -> None:
    kept = {p: open_data(corpus, tmp_path, long_documents=p).counts["documents"] for p in ("split", "drop", "truncate", "split")}
    assert kept["split"] == kept["truncate"] == 60 > kept["drop"]


def test_nothing_left_to_learn_from_is_one_line(masked: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"nothing to learn from \(60 documents too long; sequence_length 2, long_documents drop\)"
    ):
        open_data(masked, tmp_path, sequence_length=2, long_documents="auto")


def test_the_normaliser_makes_one_mean_of_a_step() -> None:
    """Unequal micro-batches on unequal ranks: DeepSpeed's average over ranks gives the mean over all targets."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 11, generator=generator)
    labels = torch.randint(11, (4, 6), generator=generator)
    labels[0, 1:], labels[1, :4] = IGNORE, IGNORE
    targets = int((labels != IGNORE).sum())
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    ranks = [[0, 1], [2, 3]]
    sums = [torch.nn.functional.cross_entropy(logits[i], labels[i], ignore_index=IGNORE, reduction="sum") for i in range(4)]
    summed = [sum(normalised(sums[i], targets, 2) for i in rank) for rank in ranks]
    assert sum(summed) / 2 == pytest.approx(float(expected), abs=1e-6)
