"""A submission saves a copy of the code, and writes no secret to disk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from finetune.config.cluster import ClusterConfig
from finetune.config.train import DataConfig, ModelConfig, TrainConfig
from finetune.launch import freeze
from tests.models import LLAMA


def config(**settings: object) -> TrainConfig:
    model = ModelConfig(from_scratch=dict(LLAMA))
    return TrainConfig(model=model, data=DataConfig(corpus="c"), **settings)  # type: ignore[arg-type]


def test_secrets_are_removed_from_provenance() -> None:
    token = "hf_" + "a1B2" * 8
    password = "hunter2hunter2"
    text = f"""
-TOKEN = "{token}"
+uri: https://me:{password}@mlflow.example.no/
+export WANDB_API_KEY={"0123456789abcdef" * 2}
+password: "{password}"
+max_tokens: 1048576
+tokenizer = load_tokenizer(path, revision2)
"""
    shown = freeze.without_secrets(text)
    assert token not in shown
    assert password not in shown
    assert "0123456789abcdef" not in shown
    assert "max_tokens: 1048576" in shown
    assert "tokenizer = load_tokenizer(path, revision2)" in shown


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"tracking_uri": "https://me:secret@mlflow.example.no"}, "tracking_uri"),
        (
            {"cluster": ClusterConfig(env={"MLFLOW_TRACKING_PASSWORD": "x"})},
            "cluster.env.MLFLOW_TRACKING_PASSWORD",
        ),
        ({"experiment": "ghp_" + "a1B2" * 8}, "experiment"),
    ],
)
def test_a_config_with_a_secret_is_refused(settings: dict[str, object], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(key)}: seems to contain a secret"):
        freeze.check_no_secrets(config(**settings))
    freeze.check_no_secrets(
        config(cluster=ClusterConfig(env={"TOKENIZERS_PARALLELISM": "false", "PASSED": "1"}))
    )


def test_the_code_snapshot_is_shared_and_repaired_after_an_edit(tmp_path: Path) -> None:
    first = freeze.snapshot_code(tmp_path)
    assert freeze.snapshot_code(tmp_path) == first
    assert (first / "finetune" / "training" / "train.py").is_file()
    assert (first / "data_prep" / "shards.py").is_file()
    assert not list(first.rglob("__pycache__"))
    (first / "finetune" / "training" / "train.py").write_text("pass\n")
    assert freeze.snapshot_code(tmp_path) == first
    assert "def train(" in (first / "finetune" / "training" / "train.py").read_text()
    assert not list((tmp_path / ".code").glob(".*[!d]"))
