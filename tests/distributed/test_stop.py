"""Laws of leaving early, on two real ranks of which one is told: both leave after the same step or batch,
nothing is lost, and the run that goes on is the run that was never interrupted."""

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

# where each leaves, and with how many steps in its checkpoint
FAULTS = {"term_in_evaluation": 4, "term_in_last_evaluation": 24, "usr2_while_loading": 0, "usr2_in_step": 13}
LEFT = {**FAULTS, "deadline": 0, "stop_file": 0, "stop_file_and_deadline": 0}


@pytest.fixture(scope="module")
def left(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Every case left once, then gone on with to its end."""
    folder = tmp_path_factory.mktemp("left")
    config = law_config(law_corpus, evaluate_every=4, checkpoint_every=50)
    cases = {name: make_run(folder, name, config) for name in ("whole", *LEFT)}
    hurried = ClusterConfig(
        scheduler="slurm", ranks_per_node=2, signal_lead_s=0
    )  # less than any checkpoint takes
    configuration.save(replace(config, cluster=hurried), folder / "runs" / "usr2_in_step" / "config.yaml")
    first = dict(cases)
    for name in FAULTS:
        first[name] = replace(cases[name], fault=name)
    for name in ("deadline", "stop_file_and_deadline"):
        first[name] = replace(cases[name], deadline=time.time() - 1)
    for name in ("stop_file", "stop_file_and_deadline"):
        cases[name].run.stop_file.touch()
    worker.run(folder / "first", list(first.values()), 2)
    for name in LEFT:
        run = cases[name].run
        run.write_json(
            "first.json", {"state": run.read_json("outcome.json")["state"], "checkpoints": checkpoints(run)}
        )  # type: ignore[index]
        run.stop_file.unlink(missing_ok=True)
    worker.run(folder / "second", [cases[name] for name in LEFT], 2)
    return runs_by_name(folder)


def checkpoints(run: RunFolder) -> list[int]:
    return sorted(int(path.name[5:]) for path in run.checkpoints.glob("step-*"))


@pytest.mark.parametrize("name", LEFT)
def test_both_ranks_leave_together_with_all_they_did(left: dict[str, RunFolder], name: str) -> None:
    first = left[name].read_json("first.json")
    assert first is not None
    assert first["state"] == ("stopped" if "stop_file" in name else "interrupted")
    steps = FAULTS.get(name, 0)
    newest = first["checkpoints"][-1:]
    assert newest == ([steps] if steps else []), "not the steps that were done"
    assert len(first["checkpoints"]) <= 2, "beside the newest, the best alone is kept"


@pytest.mark.parametrize("name", LEFT)
def test_the_run_that_goes_on_was_never_interrupted(left: dict[str, RunFolder], name: str) -> None:
    assert_same(left[name], left["whole"])


@pytest.mark.parametrize("name", LEFT)
def test_an_evaluation_that_was_cut_short_is_made_up_for(left: dict[str, RunFolder], name: str) -> None:
    assert evaluations(left[name]) == pytest.approx(evaluations(left["whole"]), abs=1e-6)


def test_too_short_a_grace_time_is_logged(left: dict[str, RunFolder]) -> None:
    said = {
        name
        for name, run in left.items()
        if any("checkpoint/seconds_beyond_grace" in r["values"] for r in spool(run))
    }
    assert said == {"usr2_in_step"}


def evaluations(run: RunFolder) -> dict[int, float]:
    return {r["step"]: r["values"]["validation/loss"] for r in spool(run) if "validation/loss" in r["values"]}
