"""Runs that are interrupted or stopped, and continued by further attempts.

Such a run goes back to a checkpoint at the same loss spike as an uninterrupted run. An attempt is
refused if the base or the corpus has changed. The run's summary covers all attempts.
"""

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
    """Train runs of one rank in several attempts; return the runs by name.

    Outcomes of earlier attempts that tests need are in the run's first.json and second.json.
    """
    folder = tmp_path_factory.mktemp("attempts")
    settings: dict[str, Any] = {
        "cluster": ClusterConfig(ranks_per_node=1),
        "micro_batch_size": 4,
        "spike_stds": 4.0,
        "on_bad_step": "rewind",
    }
    uninterrupted = make_run(folder, "uninterrupted", law_config(law_corpus, **settings))
    interrupted = make_run(folder, "interrupted", law_config(law_corpus, **settings))
    with_stop = {**settings, "on_bad_step": "stop"}
    stopping = make_run(folder, "stopping", law_config(law_corpus, **with_stop))
    shutil.copytree(law_corpus.parent / "base", folder / "base")
    adapter = {**settings, "adapter": LORA, "model": ModelConfig(path=str(folder / "base"))}
    base_changed = make_run(folder, "base-changed", law_config(law_corpus, **adapter))
    older = make_run(folder, "older", law_config(law_corpus, **settings))
    corpus = shutil.copytree(law_corpus, folder / "corpus")
    corpus_changed = make_run(folder, "corpus-changed", law_config(corpus, **settings))

    stopping_at_spike = replace(stopping, fault="spike", refused=True)
    first = [replace(uninterrupted, fault="spike"), stopping_at_spike]
    for case in (interrupted, base_changed, older, corpus_changed):
        first.append(replace(case, fault="usr2_on_only_rank"))
    worker.run(folder / "first", first, 1)
    for case in (interrupted, stopping, base_changed):
        case.run.write_json("first.json", case.run.read_json("outcome.json") or {})
    make_older(older.run)
    file = folder / "base" / "model.safetensors"
    changed = {name: 1.001 * tensor for name, tensor in load_file(file).items()}
    save_file(changed, file, metadata={"format": "pt"})
    corpus.rename(folder / "original corpus")
    write_corpus(corpus, num_documents=60, longest=100, seed=7)

    second = [older, replace(interrupted, fault="spike"), stopping_at_spike]
    second += [replace(case, refused=True) for case in (base_changed, corpus_changed)]
    worker.run(folder / "second", second, 1)
    corpus_changed.run.write_json("second.json", corpus_changed.run.read_json("outcome.json") or {})
    shutil.rmtree(corpus)
    (folder / "original corpus").rename(corpus)

    worker.run(folder / "third", [corpus_changed], 1)
    return runs_by_name(folder)


def make_older(run: RunFolder) -> None:
    """Make a run look like an old version's: remove totals and digests from its newest files."""
    (run.path / "inputs.json").unlink()
    checkpoint = max(run.checkpoints.glob("step-*"))
    state_file = checkpoint / "state.json"
    state = json.loads(state_file.read_text())
    state_file.write_text(json.dumps({key: state[key] for key in state.keys() - {"seen", "base"}}))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["state.json"] = {"bytes": state_file.stat().st_size, "sha256": sha256_file(state_file)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_an_interrupted_run_rewinds_at_the_same_spike(runs: dict[str, RunFolder]) -> None:
    run = runs["interrupted"]
    assert run.read_json("first.json") == {"state": "interrupted"}
    assert run.summary().skipped_batches == [POISONED]  # type: ignore[index]
    assert_same(run, runs["uninterrupted"])


def test_a_run_that_stopped_at_a_spike_stops_there_again(runs: dict[str, RunFolder]) -> None:
    first, second = (runs["stopping"].read_json(name) for name in ("first.json", "outcome.json"))
    assert first == second
    assert f"step {POISONED + 1}: a loss spike" in first["error"]  # type: ignore[index]
    assert f"over {POISONED} steps" in first["error"]  # type: ignore[index]


@pytest.mark.parametrize("name", ["uninterrupted", "interrupted"])
def test_the_summary_is_that_of_all_attempts(runs: dict[str, RunFolder], name: str) -> None:
    """The summary counts only steps that contributed to the final weights.

    A step is not counted if it was undone by a kill or by a return to a checkpoint.
    """
    summary = runs[name].summary()
    done = steps(runs[name])
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


def test_a_checkpoint_of_a_version_without_totals_resumes(runs: dict[str, RunFolder]) -> None:
    done = steps(runs["older"])
    tokens_after_resume = sum(step["train/tokens"] for step in done[17:])
    assert runs["older"].summary().tokens == tokens_after_resume  # type: ignore[index]
    assert len(done) == 24


def test_a_base_that_changed_between_attempts_is_rejected(runs: dict[str, RunFolder]) -> None:
    """An adapter's checkpoint does not contain the base. On a changed base, the model would differ."""
    run = runs["base-changed"]
    assert run.read_json("first.json") == {"state": "interrupted"}
    error = run.read_json("outcome.json")["error"]  # type: ignore[index]
    expected = f"base {run.config().model.path} has changed since run {run.id} was submitted"
    assert error.startswith(expected)
    assert len(steps(run)) == 17


def test_a_corpus_that_changed_between_attempts_is_rejected_until_it_is_restored(
    runs: dict[str, RunFolder],
) -> None:
    """The rejected attempt leaves nothing of the other corpus behind, such as its pack plan."""
    run = runs["corpus-changed"]
    error = run.read_json("second.json")["error"]  # type: ignore[index]
    expected = f"corpus {run.config().data.corpus} has changed since run {run.id} was submitted"
    assert error.startswith(expected)
    assert run.read_json("outcome.json") == {"state": "completed"}
    assert len(steps(run)) == 24
    assert len(list(run.plan.glob("train-*-epoch-000.npy"))) == 1
