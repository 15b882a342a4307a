"""Data for training: a global batch has the same content on any number of ranks."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_prep.shards import Corpus, Manifest, ShardWriter
from finetune.config.train import DataConfig
from finetune.data.packs import PADDING, MicroBatch, PackedData
from finetune.data.rows import Fate, check_losses, read_training_account
from finetune.models.loss import IGNORE, normalise_loss
from tests.corpora import write_corpus
from tests.worlds import IsolatedWorld

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
    world = IsolatedWorld(rank, size, rank)
    return PackedData(Corpus(corpus), split, plan_folder=plan, world=world, **settings)  # type: ignore[arg-type]


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


def packs_of(batches: list[MicroBatch]) -> list[tuple[bytes, ...]]:
    """Return each pack's content as bytes, so that packs can be sorted."""
    packs = []
    for batch in batches:
        for row in range(len(batch.documents)):
            tensors = (batch.input_ids[row], batch.position_ids[row], batch.labels[row])
            content = [tensor.numpy().tobytes() for tensor in tensors]
            packs.append((*content, batch.documents[row].tobytes()))
    return packs


def load_micro_batches(data: PackedData, index: int, micro_batch_size: int) -> list[MicroBatch]:
    return list(data.load_batch(index, 8, micro_batch_size).micro_batches)


@pytest.mark.parametrize(("size", "micro"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_a_global_batch_has_the_same_packs_on_any_number_of_ranks(
    corpus: Path, tmp_path: Path, size: int, micro: int
) -> None:
    on_one_rank = open_data(corpus, tmp_path)
    on_each_rank = [open_data(corpus, tmp_path, rank, size) for rank in range(size)]
    for index in (0, 1, 5, 9):  # the later ones reach into the second epoch
        expected = packs_of(load_micro_batches(on_one_rank, index, 8))
        batches = []
        for data in on_each_rank:
            batches += load_micro_batches(data, index, micro)
        assert sorted(packs_of(batches)) == sorted(expected)
        checksum = sum(batch.checksum for batch in load_micro_batches(on_one_rank, index, 1))
        assert sum(batch.checksum for batch in batches) == checksum


def test_an_epoch_trains_once_on_every_token_but_the_first_of_a_document(
    corpus: Path, tmp_path: Path
) -> None:
    data = open_data(corpus, tmp_path)
    step = data.load_batch(0, data.num_packs, 1)
    num_targets = Counter[int]()
    for batch in step.micro_batches:
        num_targets.update(batch.documents[(batch.labels != IGNORE).numpy()].tolist())
    lengths = [len(ids) for ids in Corpus(corpus).split("train")["input_ids"]]
    assert num_targets == {document: length - 1 for document, length in enumerate(lengths)}
    assert step.num_targets == num_targets.total()


def test_labels_are_the_next_token_of_the_same_document(corpus: Path, tmp_path: Path) -> None:
    for batch in open_data(corpus, tmp_path).load_batch(0, 4, 4).micro_batches:
        ids = batch.input_ids.numpy()
        labels = batch.labels.numpy()
        positions = batch.position_ids.numpy()
        rows, columns = np.nonzero(labels != IGNORE)
        assert (labels[rows, columns] == ids[rows, columns + 1]).all()
        assert (batch.documents[rows, columns] == batch.documents[rows, columns + 1]).all()
        assert (positions[rows, columns + 1] == positions[rows, columns] + 1).all()
        assert (labels[batch.documents == PADDING] == IGNORE).all()
        assert (positions[batch.documents == PADDING] == 0).all()


def test_a_loss_mask_removes_targets(corpus: Path, masked: Path, tmp_path: Path) -> None:
    full = open_data(corpus, tmp_path / "a", sequence_length=200)
    part = open_data(masked, tmp_path / "b", sequence_length=200)
    masks = Corpus(masked).split("train")["completion_mask"]
    expected = {(document, index) for document, index in targets_of(full) if masks[document][index]}
    assert targets_of(part) == expected
    assert part.load_batch(0, part.num_packs, 1).segments["supervised"].min() > 0


def targets_of(data: PackedData) -> set[tuple[int, int]]:
    """Return all targets of an epoch. Each is a document and the index of a token in it."""
    found = set()
    step = data.load_batch(0, data.num_packs, 1)
    for document, start, length in step.segments[["document", "start", "length"]].tolist():
        for index in range(start + 1, start + length):
            if data._masks is None or data._masks.row(document)[index]:
                found.add((document, index))
    num_labels = sum(int((batch.labels != IGNORE).sum()) for batch in step.micro_batches)
    assert num_labels == len(found) == step.num_targets
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_evaluation_has_every_document_once_and_ranks_have_equally_many_batches(
    corpus: Path, tmp_path: Path, size: int
) -> None:
    ranks = [
        list(open_data(corpus, tmp_path, rank, size, "validation", shuffle_seed=None).iter_epoch(2))
        for rank in range(size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    targets = sum(int((batch.labels != IGNORE).sum()) for batches in ranks for batch in batches)
    assert targets == sum(len(ids) - 1 for ids in Corpus(corpus).split("validation")["input_ids"])


def test_documents_of_excluded_sources_are_not_in_the_plan(corpus: Path, tmp_path: Path) -> None:
    data = open_data(corpus, tmp_path, sources=["laws"])
    step = data.load_batch(0, data.num_packs, 4)
    assert set(data.sources[np.unique(step.segments["document"])]) == {"laws"}


def test_a_corpus_without_validation_documents_can_be_opened(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "none"
    shutil.copytree(corpus, folder)
    manifest = Manifest.read(folder)
    manifest.splits["validation"] = []
    manifest.write(folder)
    assert open_data(folder, tmp_path / "plan", split="validation", shuffle_seed=None).num_packs == 0


def test_running_text_is_split_in_a_corpus_with_conversations_too(corpus: Path, tmp_path: Path) -> None:
    """A document is running text if its loss mask has only ones."""
    lengths = [len(ids) for ids in Corpus(corpus).split("train")["input_ids"]]
    mixed = mask_some(corpus, tmp_path / "mixed", lambda length: [1] * length)
    without_masks = open_data(corpus, tmp_path / "a", long_documents="auto")
    with_masks = open_data(mixed, tmp_path / "b", long_documents="auto")
    assert targets_of(without_masks) == targets_of(with_masks)
    assert with_masks.counts["documents_split"] == sum(length > 64 for length in lengths) > 5
    assert with_masks.account.lost == 0


def test_a_long_conversation_is_cut_after_its_last_complete_answer_or_dropped(
    corpus: Path, tmp_path: Path
) -> None:
    """A turn is a question of 10 tokens and an answer of 10, so three turns fit into 64 tokens."""
    chats = mask_some(corpus, tmp_path / "chats", mask_of_turns)
    long = [i for i, ids in enumerate(Corpus(corpus).split("train")["input_ids"]) if len(ids) > 64]
    cut = open_data(chats, tmp_path / "a", long_documents="auto")
    assert cut.counts["documents_cut"] == len(long)
    last_targets = {max(index for document, index in targets_of(cut) if document == i) for i in long}
    assert last_targets == {59}
    dropped = open_data(chats, tmp_path / "b", long_documents="auto", long_conversations="drop")
    assert not {document for document, _ in targets_of(dropped)} & set(long)
    assert dropped.counts["documents_too_long"] == len(long)
    assert dropped.account.lost > cut.account.lost > 0
    groups = {(loss.source, loss.language) for loss in cut.account.losses if loss.fate is Fate.CUT}
    assert groups == {("letters", "nob"), ("laws", "nob"), ("laws", "nno")}


def mask_of_turns(length: int) -> list[int]:
    """Return the mask of a conversation. Questions and answers of 10 tokens alternate in it."""
    return [int(index % 20 >= 10) for index in range(length)]


def mask_some(corpus: Path, folder: Path, mask: Callable[[int], list[int]]) -> Path:
    """Copy a corpus's training documents, and add a loss mask to each.

    Args:
        folder: folder of the copy.
        mask: function that returns a document's mask, given its number of tokens.
    """
    source = Corpus(corpus)
    writer = ShardWriter(folder, "train", "assistant_masks", shard_tokens=4000)
    rows = [{**row, "assistant_masks": mask(len(row["input_ids"]))} for row in source.split("train")]
    shutil.copytree(corpus / "tokenizer", folder / "tokenizer")
    writer.write(pa.RecordBatch.from_pylist(rows, schema=writer.schema))
    splits = {"train": writer.close(), "validation": []}
    dataclasses.replace(source.manifest, mask_column="assistant_masks", splits=splits).write(folder)
    return folder


def test_a_masked_corpus_without_validation_documents_can_be_opened(corpus: Path, tmp_path: Path) -> None:
    chats = mask_some(corpus, tmp_path / "chats", lambda length: [0] + [1] * (length - 1))
    assert open_data(chats, tmp_path / "plan", split="validation", shuffle_seed=None).num_packs == 0


def test_a_run_that_loses_a_tenth_of_its_tokens_is_rejected_unless_that_is_accepted(corpus: Path) -> None:
    """The error says why tokens are left out, and which settings avoid or accept this."""
    settings = {"corpus": str(corpus), "sequence_length": 64, "long_documents": "truncate"}
    lost = read_training_account(Corpus(corpus), DataConfig(**settings))
    assert 0.1 < lost.lost_share < 1
    error = r"truncated to one pack .*data\.long_documents=split.*data\.max_lost_share=0\.\d+"
    with pytest.raises(ValueError, match=error):
        check_losses(lost, DataConfig(**settings))
    check_losses(lost, DataConfig(**settings, max_lost_share=1.0))
    split = DataConfig(**{**settings, "long_documents": "auto"})
    check_losses(read_training_account(Corpus(corpus), split), DataConfig(**settings))


def test_a_run_whose_plan_treated_long_rows_differently_is_not_resumed(corpus: Path, tmp_path: Path) -> None:
    chats = mask_some(corpus, tmp_path / "chats", mask_of_turns)
    open_data(chats, tmp_path / "plan").check_plan()
    with pytest.raises(ValueError, match="plan of an earlier version"):
        open_data(chats, tmp_path / "plan", long_conversations="drop").check_plan()


def test_plans_of_different_settings_share_a_folder(corpus: Path, tmp_path: Path) -> None:
    kept = {}
    for treatment in ("split", "drop", "truncate", "split"):
        data = open_data(corpus, tmp_path, long_documents=treatment)
        kept[treatment] = data.counts["documents"]
    assert kept["split"] == kept["truncate"] == 60 > kept["drop"]


def test_a_corpus_without_training_text_is_an_error_with_the_reason(masked: Path, tmp_path: Path) -> None:
    error = r"no training text in .* \(60 documents too long; sequence_length 2\)"
    with pytest.raises(ValueError, match=error):
        open_data(masked, tmp_path, sequence_length=2, long_documents="auto")


def test_normalised_losses_add_up_to_the_mean_over_the_global_batch() -> None:
    """Micro-batches and ranks have different numbers of targets; DeepSpeed averages over ranks."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 11, generator=generator)
    labels = torch.randint(11, (4, 6), generator=generator)
    labels[0, 1:] = IGNORE
    labels[1, :4] = IGNORE
    targets = int((labels != IGNORE).sum())
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    ranks = [[0, 1], [2, 3]]
    sums = [
        torch.nn.functional.cross_entropy(logits[i], labels[i], ignore_index=IGNORE, reduction="sum")
        for i in range(4)
    ]
    summed = [sum(normalise_loss(sums[i], targets, 2) for i in rank) for rank in ranks]
    assert sum(summed) / 2 == pytest.approx(float(expected), abs=1e-6)
