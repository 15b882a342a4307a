"""Laws of a run over several attempts: it meets the same spike, learns from the same base, and its summary is
of them all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from data_prep.shards import sha256_file
from finetune.config.train import ClusterConfig, ModelConfig
from finetune.runs.folder import RunFolder
from finetune.tracking import names
from tests.corpora import write_corpus
from tests.distributed import worker
from tests.distributed.faults import POISONED
from tests.distributed.laws import assert_same, law_config, make_run, runs_by_name, steps
from tests.models import LORA

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def runs(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """By name, after their last attempts, one rank each. What an attempt left is beside it as
    `attempt-<number>`."""
    folder = tmp_path_factory.mktemp("attempts")
    settings: dict[str, Any] = {
        "cluster": ClusterConfig(ranks_per_node=1),
        "micro_batch_size": 4,
        "spike_stds": 4.0,
        "on_bad_step": "rewind",
    }
    whole = make_run(folder, "whole", law_config(law_corpus, **settings))
    cut = make_run(folder, "cut", law_config(law_corpus, **settings))
    stopping = make_run(folder, "stopping", law_config(law_corpus, **{**settings, "on_bad_step": "stop"}))
    shutil.copytree(law_corpus.parent / "base", folder / "base")
    adapted = {**settings, "adapter": LORA, "model": ModelConfig(path=str(folder / "base"))}
    moved = make_run(folder, "moved", law_config(law_corpus, **adapted))
    older = make_run(folder, "older", law_config(law_corpus, **settings))
    corpus = shutil.copytree(law_corpus, folder / "corpus")
    swapped = make_run(folder, "swapped", law_config(corpus, **settings))
    spiked = [replace(whole, fault="spike"), replace(stopping, fault="spike", refused=True)]
    interrupted = [replace(case, fault="usr2_alone") for case in (cut, moved, older, swapped)]
    worker.run(folder / "first", [*spiked, *interrupted], 1)
    for case in (cut, stopping, moved):
        case.run.write_json("first.json", case.run.read_json("outcome.json") or {})
    forget(older.run)
    file = folder / "base" / "model.safetensors"
    save_file(
        {name: 1.001 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"}
    )
    spiked = [replace(cut, fault="spike"), replace(stopping, fault="spike", refused=True)]
    corpus.rename(folder / "put aside")
    write_corpus(corpus, num_documents=60, longest=100, seed=7)
    refused = [replace(case, refused=True) for case in (moved, swapped)]
    worker.run(folder / "second", [older, *spiked, *refused], 1)
    swapped.run.write_json("second.json", swapped.run.read_json("outcome.json") or {})
    shutil.rmtree(corpus)
    (folder / "put aside").rename(corpus)
    worker.run(folder / "third", [swapped], 1)
    return runs_by_name(folder)


def forget(run: RunFolder) -> None:
    """Make a run, and its newest checkpoint, one of a version that noted neither what it saw nor what it
    learns from."""
    (run.path / "inputs.json").unlink()
    folder = max(run.checkpoints.glob("step-*"))
    state, manifest = (json.loads((folder / name).read_text()) for name in ("state.json", "manifest.json"))
    (folder / "state.json").write_text(
        json.dumps({key: state[key] for key in state.keys() - {"seen", "base"}})
    )
    manifest["state.json"] = {
        "bytes": (folder / "state.json").stat().st_size,
        "sha256": sha256_file(folder / "state.json"),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_an_interrupted_run_rewinds_at_the_same_spike(runs: dict[str, RunFolder]) -> None:
    assert runs["cut"].read_json("first.json") == {"state": "interrupted"}
    assert runs["cut"].summary().skipped_batches == [POISONED]  # type: ignore[index]
    assert_same(runs["cut"], runs["whole"])


def test_a_run_that_stopped_at_a_spike_stops_there_again(runs: dict[str, RunFolder]) -> None:
    first, second = (runs["stopping"].read_json(name) for name in ("first.json", "outcome.json"))
    assert first == second
    assert f"step {POISONED + 1}: a loss spike" in first["error"]  # type: ignore[index]
    assert f"over {POISONED} steps" in first["error"]  # type: ignore[index]


@pytest.mark.parametrize("name", ["whole", "cut"])
def test_the_summary_is_that_of_all_attempts(runs: dict[str, RunFolder], name: str) -> None:
    """Of the steps that made the weights: those before a rewind, and those of an attempt that was killed
    before it saved, are no part of them."""
    summary, done = runs[name].summary(), steps(runs[name])
    assert summary is not None
    assert summary.tokens == sum(step["train/tokens"] for step in done)
    assert summary.supervised_tokens == sum(step["train/supervised_tokens"] for step in done)
    seconds = sum(step["train/tokens"] / step["train/tokens_per_second"] for step in done)
    assert summary.tokens / summary.tokens_per_second == pytest.approx(seconds)


def test_every_metric_that_a_run_logs_is_described(runs: dict[str, RunFolder]) -> None:
    logged = {
        name
        for run in runs.values()
        for line in run.metrics.read_text().splitlines()
        for name in json.loads(line)["values"]
    }
    assert len(logged) > 20
    assert [name for name in sorted(logged) if names.describe(name) is None] == []


def test_a_checkpoint_of_before_totals_were_kept_resumes(runs: dict[str, RunFolder]) -> None:
    assert runs["older"].summary().tokens == sum(step["train/tokens"] for step in steps(runs["older"])[17:])  # type: ignore[index]
    assert len(steps(runs["older"])) == 24


def test_a_base_that_changed_between_attempts_is_refused(runs: dict[str, RunFolder]) -> None:
    """An adapter's checkpoint leaves the base out: on other weights it would be another model."""
    assert runs["moved"].read_json("first.json") == {"state": "interrupted"}
    error = runs["moved"].read_json("outcome.json")["error"]  # type: ignore[index]
    assert error.startswith(
        f"base {runs['moved'].config().model.path} has changed since run moved was submitted"
    )
    assert len(steps(runs["moved"])) == 17


def test_a_corpus_that_changed_between_attempts_is_refused_and_resumes_once_it_is_put_back(
    runs: dict[str, RunFolder],
) -> None:
    """The refusal leaves nothing of the other corpus behind, such as its pack plan."""
    run = runs["swapped"]
    error = run.read_json("second.json")["error"]  # type: ignore[index]
    assert error.startswith(f"corpus {run.config().data.corpus} has changed since run swapped was submitted")
    assert run.read_json("outcome.json") == {"state": "completed"}
    assert len(steps(run)) == 24
    assert len(list(run.plan.glob("train-*-epoch-000.npy"))) == 1
