"""The corpus on a node's own disk is copied completely, verified, used, and removed at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_prep.shards import Corpus
from finetune.config.train import ClusterConfig, DataConfig, ModelConfig, TrainConfig
from finetune.distributed import World
from finetune.job.preflight import PreflightError, node_name
from finetune.job.staging import stage_corpus
from finetune.runs.folder import RunFolder

SINGLE = World(rank=0, size=1, local_rank=0)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "run-1" / "jobs").mkdir(parents=True)
    return RunFolder(tmp_path / "run-1")


def config_of(corpus: Path, node_local: str, stage: bool = True) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(corpus=str(corpus), stage=stage),
        cluster=ClusterConfig(node_local=node_local),
        model=ModelConfig(path="x"),
    )


def test_training_reads_the_copy_which_is_removed_afterwards(
    law_corpus: Path, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_DISK", str(tmp_path / "disk"))
    config = config_of(law_corpus, "$JOB_DISK/scratch")
    with stage_corpus(config, run, SINGLE) as local:
        copy = local.data.corpus_folder
        assert copy == tmp_path / "disk" / "scratch" / "finetune-run-1" / node_name()
        Corpus(copy).verify()
        assert Corpus(copy).manifest.digest == Corpus(law_corpus).manifest.digest
        assert (copy / "tokenizer" / "tokenizer.json").is_file()
        assert json.loads((run.path / "staged.json").read_text()) == {"folder": str(copy.parent)}
    assert not copy.parent.exists()
    assert not (run.path / "staged.json").exists()


def test_nodes_that_share_the_folder_have_copies_of_their_own(
    law_corpus: Path, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node copies the corpus into a folder of its own and removes only this copy.

    The folder that is configured as node-local may in fact be shared by a job's nodes, and the
    nodes do not end at the same time.
    """
    config = config_of(law_corpus, str(tmp_path / "scratch"))
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-1-2")
    with stage_corpus(config, run, SINGLE) as slower:
        monkeypatch.setenv("SLURMD_NODENAME", "gpu-1-1")
        with stage_corpus(config, run, SINGLE) as faster:
            assert faster.data.corpus_folder.name == "gpu-1-1"
        Corpus(slower.data.corpus_folder).verify()
    assert not list((tmp_path / "scratch").iterdir())


def test_without_data_stage_nothing_is_copied(law_corpus: Path, run: RunFolder, tmp_path: Path) -> None:
    config = config_of(law_corpus, str(tmp_path / "disk"), stage=False)
    with stage_corpus(config, run, SINGLE) as local:
        assert local is config
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize("damage", ["torn", "another"])
def test_a_damaged_copy_of_a_killed_attempt_is_replaced(
    law_corpus: Path, run: RunFolder, tmp_path: Path, damage: str
) -> None:
    left = tmp_path / "disk" / "finetune-run-1" / node_name()
    shutil.copytree(law_corpus, left)
    shard = next((left / "train").glob("*.arrow"))
    if damage == "torn":
        shard.write_bytes(shard.read_bytes()[:-100] + bytes(100))
    else:
        manifest = json.loads((left / "manifest.json").read_text())
        (left / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "of another corpus"}))
    with stage_corpus(config_of(law_corpus, str(tmp_path / "disk")), run, SINGLE) as local:
        assert Corpus(local.data.corpus_folder).manifest.digest == Corpus(law_corpus).manifest.digest
        Corpus(local.data.corpus_folder).verify()


def test_a_damaged_copy_blames_the_node(
    law_corpus: Path, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n3")
    broken = shutil.copytree(law_corpus, tmp_path / "broken")
    shard = next((broken / "train").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-100] + bytes(100))
    with (
        pytest.raises(PreflightError, match="n3: the corpus could not be copied") as fault,
        stage_corpus(config_of(broken, str(tmp_path / "disk")), run, SINGLE),
    ):
        pass
    assert fault.value.nodes == ("n3",)
    assert not (tmp_path / "disk" / "finetune-run-1").exists()


def test_a_variable_that_the_job_lacks_is_refused(law_corpus: Path, run: RunFolder) -> None:
    with (
        pytest.raises(ValueError, match="NO_SUCH_DISK"),
        stage_corpus(config_of(law_corpus, "/x/$NO_SUCH_DISK"), run, SINGLE),
    ):
        pass


def test_staging_needs_a_node_local_folder(law_corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"cluster\.node_local"):
        TrainConfig(data=DataConfig(corpus=str(law_corpus), stage=True), model=ModelConfig(path="x"))
