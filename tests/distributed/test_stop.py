"""Stopping early: if one of two ranks is asked to stop, both stop after the same step or batch.

No finished step is lost, and the resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.config import train as configuration
from finetune.config.train import ClusterConfig
from finetune.runs.folder import RunFolder
from tests.distributed import worker
from tests.distributed.laws import assert_same, law_config, make_run, runs_by_name, spool

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

# Number of steps in the newest checkpoint after each fault has stopped its run.
FAULTS = {
    "term_in_evaluation": 4,
    "term_in_last_evaluation": 24,
    "usr2_while_loading": 0,
    "usr2_in_step": 13,
}
STOPPED = [*FAULTS, "deadline", "stop_file", "stop_file_and_deadline"]


@pytest.fixture(scope="module")
def runs(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Train runs that are stopped once and then resumed; return them by name."""
    folder = tmp_path_factory.mktemp("stopped")
    config = law_config(law_corpus, evaluate_every=4, checkpoint_every=50)
    cases = {name: make_run(folder, name, config) for name in ("uninterrupted", *STOPPED)}
    # every checkpoint takes longer than this signal lead
    cluster = ClusterConfig(scheduler="slurm", ranks_per_node=2, signal_lead_s=0)
    configuration.save(replace(config, cluster=cluster), cases["usr2_in_step"].run.config_file)
    first = dict(cases)
    for name in FAULTS:
        first[name] = replace(cases[name], fault=name)
    for name in ("deadline", "stop_file_and_deadline"):
        first[name] = replace(cases[name], deadline=time.time() - 1)
    for name in ("stop_file", "stop_file_and_deadline"):
        cases[name].run.stop_file.touch()
    worker.run(folder / "first", list(first.values()), 2)
    for name in STOPPED:
        run = cases[name].run
        state = (run.read_json("outcome.json") or {})["state"]
        run.write_json("first.json", {"state": state, "checkpoints": checkpoints(run)})
        run.stop_file.unlink(missing_ok=True)
    worker.run(folder / "second", [cases[name] for name in STOPPED], 2)
    return runs_by_name(folder)


def checkpoints(run: RunFolder) -> list[int]:
    return sorted(int(path.name[5:]) for path in run.checkpoints.glob("step-*"))


@pytest.mark.parametrize("name", STOPPED)
def test_both_ranks_stop_together_and_lose_no_finished_step(runs: dict[str, RunFolder], name: str) -> None:
    first = runs[name].read_json("first.json")
    assert first is not None
    assert first["state"] == ("stopped" if "stop_file" in name else "interrupted")
    steps = FAULTS.get(name, 0)
    newest = first["checkpoints"][-1:]
    assert newest == ([steps] if steps else []), "the newest checkpoint lacks finished steps"
    assert len(first["checkpoints"]) <= 2, "more than the newest and the best checkpoint are kept"


@pytest.mark.parametrize("name", STOPPED)
def test_a_resumed_run_equals_an_uninterrupted_one(runs: dict[str, RunFolder], name: str) -> None:
    assert_same(runs[name], runs["uninterrupted"])


@pytest.mark.parametrize("name", STOPPED)
def test_an_interrupted_evaluation_is_made_up_for(runs: dict[str, RunFolder], name: str) -> None:
    expected = metric_by_step(runs["uninterrupted"], "validation/loss")
    assert metric_by_step(runs[name], "validation/loss") == pytest.approx(expected, abs=1e-6)


def test_a_signal_lead_that_is_too_short_is_logged(runs: dict[str, RunFolder]) -> None:
    metric = "checkpoint/seconds_beyond_grace"
    assert {name for name, run in runs.items() if metric_by_step(run, metric)} == {"usr2_in_step"}


def metric_by_step(run: RunFolder, metric: str) -> dict[int, float]:
    values = {}
    for record in spool(run):
        if metric in record["values"]:
            values[record["step"]] = record["values"][metric]
    return values
