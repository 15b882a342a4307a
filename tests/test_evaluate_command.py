"""`finetune evaluate` measures the loss of several models on the same text.

It prints how each differs from the first model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from finetune.cli import evaluate as evaluate_command
from finetune.cli import main as cli
from finetune.config import train as configuration
from finetune.config.train import DataConfig, ModelConfig, TrainConfig
from finetune.runs.folder import RunFolder
from tests.corpora import write_corpus
from tests.models import LORA, write_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a corpus, two models, and a run. Its base equals one model, its result the other."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_corpus(folder / "corpora" / "laws", num_documents=40, longest=100, seed=1)
    for seed, name in enumerate(("small", "other")):
        write_base(folder / name, seed=seed)
    run = RunFolder(folder / "runs" / "mine-1")
    run.path.mkdir(parents=True)
    data = DataConfig(corpus="laws", corpora_dir=str(folder / "corpora"), sequence_length=64)
    model = ModelConfig(path=str(folder / "small"))
    config = TrainConfig(data=data, model=model, runs_dir=str(folder / "runs"), adapter={}, lr=1e-3)
    configuration.save(config, run.config_file)
    run.write_json("provenance.json", {})
    run.write_json("outcome.json", {"state": "completed"})
    run.write_json("summary.json", {"result_step": 3})
    write_base(run.model, seed=1)
    return folder


def options(folder: Path, *models: str, **changes: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate_command.add_arguments(parser)
    found = parser.parse_args([*models, "--corpora-dir", str(folder / "corpora"), "--json"])
    return argparse.Namespace(**{**vars(found), "runs_dir": str(folder / "runs"), **changes})


def evaluate(arguments: argparse.Namespace) -> Any:
    """Return the result of `finetune evaluate --json`."""
    return json.loads(evaluate_command.evaluate_models(arguments) or "")


def test_a_run_is_compared_with_its_base_on_the_same_rows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = evaluate(options(folder, "run:mine-1", against="base"))
    base, mine = body["models"]
    assert (base["model"], mine["model"], body["sequence_length"]) == ("base small", "mine-1", 64)
    assert (
        base["tokens"]
        == mine["tokens"]
        == sum(mine["tokens_by_source"].values())
        == sum(mine["tokens_by_language"].values())
    )
    assert mine["difference"]["loss"] == mine["loss"] - base["loss"] != 0
    by_source = mine["difference"]["by_source"]
    assert by_source["laws"] == mine["by_source"]["laws"] - base["by_source"]["laws"]
    printed = capsys.readouterr().err
    assert "difference" in printed
    assert f"{mine['difference']['loss']:+.3f}" in printed
    single = evaluate(options(folder, "mine-1"))
    assert single["loss"] == mine["loss"], "a model has the same loss in a comparison"


def test_a_model_has_no_difference_to_itself(folder: Path) -> None:
    """Name one model in three ways: as a run, as run:ID, and as the folder of the run's result."""
    names = ["mine-1", "run:mine-1", str(folder / "runs" / "mine-1" / "model")]
    body = evaluate(options(folder, *names))
    assert [model["model"] for model in body["models"]] == ["mine-1", "mine-1", "model"]
    for model in body["models"]:
        assert model["difference"]["loss"] == 0
        assert set(model["difference"]["by_source"].values()) == {0.0}


def test_a_model_with_another_tokenizer_is_rejected(folder: Path) -> None:
    model = write_base(folder / "strange", seed=2)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["other"] = tokenizer["model"]["vocab"].pop("w3")
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        ValueError, match=r"strange: its tokenizer is not that of corpus .*cannot be compared"
    ):
        evaluate_command.evaluate_models(options(folder, "mine-1", str(model)))


# by case: the arguments, and a part of the expected error
MISTAKES = {
    "an unknown run": (["nobody"], "no run 'nobody' in"),
    "a checkpoint that is not kept": (["mine-1@2"], "run mine-1 has no checkpoint of step 2"),
    "a hub id that is not in the cache": (
        ["norallm/none-such"],
        "model norallm/none-such is neither a folder nor in the",
    ),
    "the base of a model folder": (
        ["{folder}/small", "--against", "base", "--corpus", "laws"],
        "small is a model, not a run",
    ),
    "a model folder without a corpus": (["{folder}/small"], "--corpus is missing"),
    "an adapter without its base": (
        ["{folder}/adapter"],
        "is an adapter folder, which does not contain the base model",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_reported_in_one_line(
    folder: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(LORA))
    arguments, expected = MISTAKES[case]
    folders = ["--runs-dir", str(folder / "runs"), "--corpora-dir", str(folder / "corpora")]
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", *(argument.format(folder=folder) for argument in arguments), *folders])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert expected in error
    assert len(error.splitlines()) == 1
