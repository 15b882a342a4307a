"""Laws of the data path: what a step contains does not depend on how many ranks share it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_prep.shards import Corpus, ShardWriter
from finetune.config.train import DataConfig
from finetune.data.packs import PADDING, MicroBatch, PackedData
from finetune.data.rows import Fate, check_losses, training_account
from finetune.models.loss import IGNORE, normalise_loss
from tests.corpora import write_corpus
from tests.worlds import Alone

SOURCES = ["letters", "laws"]


def open_data(
    corpus: Path, plan: Path, rank: int = 0, size: int = 1, split: str = "train", **changes: object
) -> PackedData:
    settings: dict[str, object] = {
        "sources": SOURCES,
        "sequence_length": 64,
        "long_documents": "split",
        "shuffle_seed": 1,
    }
    settings |= changes
    return PackedData(Corpus(corpus), split, plan_folder=plan, world=Alone(rank, size, rank), **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "mine", num_documents=60, longest=200, seed=4)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(
        tmp_path_factory.mktemp("data") / "masked",
        num_documents=60,
        longest=200,
        seed=4,
        mask_column="completion_mask",
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
def test_a_global_step_is_the_same_packs_on_any_number_of_ranks(
    corpus: Path, tmp_path: Path, size: int, micro: int
) -> None:
    for step in (0, 1, 5, 9):  # over the end of the first epoch
        whole = rows(list(open_data(corpus, tmp_path).load_batch(step, 8, 8).micro_batches))
        shared = [
            list(open_data(corpus, tmp_path, rank, size).load_batch(step, 8, micro).micro_batches)
            for rank in range(size)
        ]
        assert sorted(row for batches in shared for row in rows(batches)) == sorted(whole)
        checksums = sum(batch.checksum for batches in shared for batch in batches)
        assert checksums == sum(
            b.checksum for b in open_data(corpus, tmp_path).load_batch(step, 8, 1).micro_batches
        )


def test_an_epoch_trains_every_token_but_first_ones_once(corpus: Path, tmp_path: Path) -> None:
    data = open_data(corpus, tmp_path)
    step = data.load_batch(0, data.num_packs, 1)
    seen: dict[int, int] = {}
    for batch in step.micro_batches:
        for document in batch.documents[(batch.labels != IGNORE).numpy()]:
            seen[int(document)] = seen.get(int(document), 0) + 1
    lengths = [len(ids) for ids in Corpus(corpus).split("train")["input_ids"]]
    assert seen == {document: length - 1 for document, length in enumerate(lengths)}
    assert step.num_targets == sum(seen.values())


def test_labels_are_the_next_token_of_the_same_document(corpus: Path, tmp_path: Path) -> None:
    for batch in open_data(corpus, tmp_path).load_batch(0, 4, 4).micro_batches:
        ids, labels, positions = batch.input_ids.numpy(), batch.labels.numpy(), batch.position_ids.numpy()
        rows_, columns = np.nonzero(labels != IGNORE)
        assert (labels[rows_, columns] == ids[rows_, columns + 1]).all()
        assert (batch.documents[rows_, columns] == batch.documents[rows_, columns + 1]).all()
        assert (positions[rows_, columns + 1] == positions[rows_, columns] + 1).all()
        assert (labels[batch.documents == PADDING] == IGNORE).all()
        assert (positions[batch.documents == PADDING] == 0).all()


def test_a_loss_mask_removes_targets(corpus: Path, masked: Path, tmp_path: Path) -> None:
    full, part = (
        open_data(corpus, tmp_path / "a", sequence_length=200),
        open_data(masked, tmp_path / "b", sequence_length=200),
    )
    masks = Corpus(masked).split("train")["completion_mask"]
    expected = {(document, place) for document, place in targets_of(full) if masks[document][place]}
    assert targets_of(part) == expected
    assert part.load_batch(0, part.num_packs, 1).segments["supervised"].min() > 0


def targets_of(data: PackedData) -> set[tuple[int, int]]:
    """(document, place) of every target of an epoch."""
    found = set()
    step = data.load_batch(0, data.num_packs, 1)
    for segment, start, length in step.segments[["document", "start", "length"]].tolist():
        found |= {
            (segment, place)
            for place in range(start + 1, start + length)
            if data._targets is None or data._targets.row(segment)[place]
        }
    assert (
        sum(int((batch.labels != IGNORE).sum()) for batch in step.micro_batches)
        == len(found)
        == step.num_targets
    )
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
def test_evaluation_sees_every_document_once_and_ranks_take_equally_many_batches(
    corpus: Path, tmp_path: Path, size: int
) -> None:
    ranks = [
        list(open_data(corpus, tmp_path, rank, size, "validation", shuffle_seed=None).iter_epoch(2))
        for rank in range(size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    targets = sum(int((batch.labels != IGNORE).sum()) for batches in ranks for batch in batches)
    assert targets == sum(len(ids) - 1 for ids in Corpus(corpus).split("validation")["input_ids"])


def test_left_out_sources_are_left_out(corpus: Path, tmp_path: Path) -> None:
    data = open_data(corpus, tmp_path, sources=["laws"])
    step = data.load_batch(0, data.num_packs, 4)
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


def test_text_is_split_whatever_else_the_corpus_holds(corpus: Path, tmp_path: Path) -> None:
    """A mask that is all ones is running text, beside conversations too."""
    lengths = [len(ids) for ids in Corpus(corpus).split("train")["input_ids"]]
    mixed = mask_some(corpus, tmp_path / "mixed", lambda length: [1] * length)
    text, same = (
        open_data(corpus, tmp_path / "a", long_documents="auto"),
        open_data(mixed, tmp_path / "b", long_documents="auto"),
    )
    assert targets_of(text) == targets_of(same)
    assert same.counts["documents_split"] == sum(length > 64 for length in lengths) > 5
    assert same.account.lost == 0


def test_a_conversation_is_cut_after_its_last_whole_answer_or_dropped(corpus: Path, tmp_path: Path) -> None:
    """Turns of 20 tokens: ten asked, ten answered. Of 64 tokens three turns fit."""
    chats = mask_some(
        corpus, tmp_path / "chats", lambda length: [int(place % 20 >= 10) for place in range(length)]
    )
    long = [i for i, ids in enumerate(Corpus(corpus).split("train")["input_ids"]) if len(ids) > 64]
    cut = open_data(chats, tmp_path / "a", long_documents="auto")
    assert cut.counts["documents_cut"] == len(long)
    assert {max(place for document, place in targets_of(cut) if document == i) for i in long} == {59}
    dropped = open_data(chats, tmp_path / "b", long_documents="auto", long_conversations="drop")
    assert not {document for document, _ in targets_of(dropped)} & set(long)
    assert dropped.counts["documents_too_long"] == len(long)
    assert dropped.account.lost > cut.account.lost > 0
    groups = {(loss.source, loss.language) for loss in cut.account.losses if loss.fate is Fate.CUT}
    assert groups == {("letters", "nob"), ("laws", "nob"), ("laws", "nno")}


def mask_some(corpus: Path, folder: Path, mask: Callable[[int], list[int]]) -> Path:
    """Copy a corpus with a loss mask, which `mask` makes of a row's length; without validation documents."""
    source, writer = Corpus(corpus), ShardWriter(folder, "train", "assistant_masks", shard_tokens=4000)
    rows = [{**row, "assistant_masks": mask(len(row["input_ids"]))} for row in source.split("train")]
    shutil.copytree(corpus / "tokenizer", folder / "tokenizer")
    writer.write(pa.RecordBatch.from_pylist(rows, schema=writer.schema))
    splits = {"train": writer.close(), "validation": []}
    dataclasses.replace(source.manifest, mask_column="assistant_masks", splits=splits).write(folder)
    return folder


def test_a_masked_corpus_without_validation_documents_can_be_opened(corpus: Path, tmp_path: Path) -> None:
    chats = mask_some(corpus, tmp_path / "chats", lambda length: [0] + [1] * (length - 1))
    assert open_data(chats, tmp_path / "plan", split="validation", shuffle_seed=None).num_packs == 0


def test_a_run_that_would_lose_a_tenth_of_its_tokens_is_refused_unless_told(corpus: Path) -> None:
    """Before anything is queued; the line names the reason and the setting."""
    settings = {"corpus": str(corpus), "sequence_length": 64, "long_documents": "truncate"}
    lost = training_account(Corpus(corpus), DataConfig(**settings))
    assert 0.1 < lost.lost_share < 1
    with pytest.raises(
        ValueError, match=r"truncated|cut off .*data\.long_documents=split.*data\.max_lost_share=0\.\d+"
    ):
        check_losses(lost, DataConfig(**settings))
    check_losses(lost, DataConfig(**settings, max_lost_share=1.0))
    check_losses(
        training_account(Corpus(corpus), DataConfig(**{**settings, "long_documents": "auto"})),
        DataConfig(**settings),
    )


def test_a_run_planned_by_a_version_that_treated_long_rows_otherwise_is_not_gone_on_with(
    corpus: Path, tmp_path: Path
) -> None:
    chats = mask_some(
        corpus, tmp_path / "chats", lambda length: [int(place % 20 >= 10) for place in range(length)]
    )
    open_data(chats, tmp_path / "plan").check_plan()
    with pytest.raises(ValueError, match="plan of an earlier version"):
        open_data(chats, tmp_path / "plan", long_conversations="drop").check_plan()


def test_another_policy_is_another_plan_in_the_same_folder(corpus: Path, tmp_path: Path) -> None:
    kept = {
        p: open_data(corpus, tmp_path, long_documents=p).counts["documents"]
        for p in ("split", "drop", "truncate", "split")
    }
    assert kept["split"] == kept["truncate"] == 60 > kept["drop"]


def test_nothing_left_to_learn_from_is_one_line(masked: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"nothing to learn from \(60 documents too long; sequence_length 2\)"
    ):
        open_data(masked, tmp_path, sequence_length=2, long_documents="auto")


def test_the_normaliser_makes_one_mean_of_a_step() -> None:
    """Unequal micro-batches on unequal ranks: DeepSpeed's average over ranks gives the mean over all
    targets."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 11, generator=generator)
    labels = torch.randint(11, (4, 6), generator=generator)
    labels[0, 1:], labels[1, :4] = IGNORE, IGNORE
    targets = int((labels != IGNORE).sum())
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    ranks = [[0, 1], [2, 3]]
    sums = [
        torch.nn.functional.cross_entropy(logits[i], labels[i], ignore_index=IGNORE, reduction="sum")
        for i in range(4)
    ]
    summed = [sum(normalise_loss(sums[i], targets, 2) for i in rank) for rank in ranks]
    assert sum(summed) / 2 == pytest.approx(float(expected), abs=1e-6)
