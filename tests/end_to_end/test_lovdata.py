"""Two ranks train on real law texts of Lovdata; skipped if the texts are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep.shards import Manifest
from finetune.runs.folder import RunFolder
from tests.end_to_end.commands import command

pytestmark = pytest.mark.end_to_end

# nats per token by which the loss must be below the unigram baseline; 0.66 was measured after
# 100 small steps from random weights
MARGIN = 0.4


@pytest.fixture(scope="module")
def lovdata(real_corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lovdata")
    path = real_corpora / "lovdata"
    command(folder, "prepare", "corpus=lovdata", f"corpus.sources.lovdata.path={path}")
    return folder


def documents(folder: Path, stage: str) -> list[dict[str, str]]:
    parts = sorted((folder / "corpora" / ".lovdata.stages" / stage).glob("part-*"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_every_file_becomes_a_document_with_its_structure(lovdata: Path) -> None:
    manifest = Manifest.read(lovdata / "corpora" / "lovdata")
    assert manifest.stages[0].documents_out == 1272 + 15
    assert manifest.stages[0].dropped == {}
    texts = {row["id"]: row["text"] for row in documents(lovdata, "0-read")}
    hevdslova = texts["NL/lov/1966-12-09-1"]
    assert hevdslova.startswith(
        "Lov om hevd [hevdslova]\n\nKva lova gjeld.\n\n§ 1.\n\nEtter denne lova kan det vinnast hevd"
    )
    assert "\na. ved tjuveri, brukstjuveri, ran" in hevdslova
    assert "Endra med" not in hevdslova
    assert all(texts.values()), "a document without text"


def test_no_act_is_in_both_splits(lovdata: Path) -> None:
    splits: dict[str, set[str]] = {}
    for row in documents(lovdata, "8-split"):
        act = row["id"].partition("/")[2]  # NL/lov/2005-… and LTI/lov/2005-… are one act
        splits.setdefault(act, set()).add(row["split"])
    assert len(splits) > 1000
    assert [act for act, split in splits.items() if len(split) > 1] == []


def test_no_real_identity_number_in_law_text(lovdata: Path) -> None:
    manifest = Manifest.read(lovdata / "corpora" / "lovdata")
    (stage,) = [stage for stage in manifest.stages if stage.name == "deidentify"]
    assert stage.counts == {}, "law text contains none, so a hit would be a false positive"


def test_held_out_loss_falls_below_the_unigram_baseline(lovdata: Path) -> None:
    settings = ["max_steps=100", "global_batch_size=8", "micro_batch_size=4", "checkpoint_every=0"]
    settings.append("model.from_scratch.num_hidden_layers=2")
    run = RunFolder.find(
        command(lovdata, "train", "recipe=lovdata_base", *settings).stdout.strip(), lovdata / "runs"
    )
    summary = json.loads(run.summary_file.read_text())
    assert run.config().cluster.world_size == 2
    assert summary["after"]["loss"] < summary["before"]["loss"] - 1
    assert summary["after"]["loss"] < summary["after"]["unigram_loss"] - MARGIN
