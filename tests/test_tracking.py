"""Every step of a run reaches MLflow once, even after kills, resumes and deletions in MLflow."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from finetune.config import train as configuration
from finetune.config.train import DataConfig, ModelConfig, TrainConfig
from finetune.runs.folder import RunFolder
from finetune.tracking import mlflow_sync, names
from finetune.tracking.spool import Spool, last_step, steps_done
from tests.models import LLAMA


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.path.mkdir(parents=True)
    configuration.save(
        TrainConfig(data=DataConfig(corpus="none"), model=ModelConfig(from_scratch=LLAMA), lr=0.25),
        folder.config_file,
    )
    return folder


def log_steps(run: RunFolder, *steps: int) -> None:
    with Spool(run.metrics, enabled=True) as spool:
        for step in steps:
            spool.log(step, {"train/loss": 10.0 - step, "train/lr": 0.1})


def read_mlflow(run: RunFolder) -> tuple[Any, list[tuple[int, float]]]:
    """Return the MLflow run of a run folder, and the steps and values of train/loss in it."""
    client = MlflowClient(mlflow_sync.default_uri(run.path.parent))
    (found,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return found, [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "train/loss")]


def test_steps_that_a_resumed_run_repeats_are_sent_once(run: RunFolder) -> None:
    log_steps(run, 0, 1, 2, 3)
    mlflow_sync.sync(run)
    log_steps(run, 2, 3, 4)  # the run resumes from the checkpoint after step 1
    mlflow_sync.sync(run)
    mlflow_sync.sync(run)
    found, history = read_mlflow(run)
    assert history == [(step, 10.0 - step) for step in range(5)]
    assert found.data.params["lr"] == "0.25"
    assert found.data.params["model.from_scratch.hidden_size"] == "32"


def test_a_point_of_a_sweep_is_named_by_its_values(run: RunFolder) -> None:
    run.write_json("provenance.json", {"point": {"lr": "2e-4", "adapter.r": "16"}})
    mlflow_sync.sync(run)
    assert read_mlflow(run)[0].info.run_name == "lr=2e-4 r=16"


def test_a_sweep_over_experiments_finishes_its_parent_in_each(run: RunFolder) -> None:
    other = RunFolder(run.path.with_name("other"))
    other.path.mkdir()
    configuration.save(replace(run.config(), experiment="Målform"), other.config_file)
    for point in (run, other):
        point.write_json("provenance.json", {"sweep": "grid-1"})
        point.write_json("outcome.json", {"state": "completed"})
        mlflow_sync.sync(point)
    mlflow_sync.update_sweep_status([run, other])
    client = MlflowClient(mlflow_sync.default_uri(run.path.parent))
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [one.info.status for one in found if one.info.run_name == "grid-1"] == ["FINISHED"] * 2


def test_more_steps_than_fit_in_a_batch_are_sent(run: RunFolder) -> None:
    log_steps(run, *range(1500))
    mlflow_sync.sync(run)
    assert [step for step, _ in read_mlflow(run)[1]] == list(range(1500))


def test_an_incomplete_line_loses_no_other_step(run: RunFolder) -> None:
    log_steps(run, 1, 2)
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "time_ms": 1, "val')
    mlflow_sync.sync(run)
    log_steps(run, 3, 4)
    mlflow_sync.sync(run)
    assert [step for step, _ in read_mlflow(run)[1]] == [1, 2, 3, 4]


def test_a_run_deleted_in_mlflow_is_sent_again_in_full(run: RunFolder) -> None:
    log_steps(run, 1, 2, 3)
    mlflow_sync.sync(run)
    client = MlflowClient(mlflow_sync.default_uri(run.path.parent))
    client.delete_run(read_mlflow(run)[0].info.run_id)
    mlflow_sync.sync(run)
    assert [step for step, _ in read_mlflow(run)[1]] == [1, 2, 3]


def test_a_deleted_database_is_filled_again(run: RunFolder) -> None:
    log_steps(run, 1, 2, 3)
    mlflow_sync.sync(run)
    (run.path.parent / "mlflow.db").unlink()
    mlflow_sync.sync(run)
    assert [step for step, _ in read_mlflow(run)[1]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("state", "status"), [("completed", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED")]
)
def test_mlflow_shows_how_a_run_ended(run: RunFolder, state: str, status: str) -> None:
    log_steps(run, 1)
    mlflow_sync.sync(run)
    run.write_json("outcome.json", {"state": state})
    mlflow_sync.sync(run)
    assert read_mlflow(run)[0].info.status == status


def test_nan_does_not_stop_the_sync(run: RunFolder) -> None:
    with Spool(run.metrics, enabled=True) as spool:
        spool.log(1, {"train/loss": float("nan")})
        spool.log(2, {"train/loss": 3.0})
    mlflow_sync.sync(run)
    assert [step for step, _ in read_mlflow(run)[1]] == [1, 2]


def test_a_full_disk_loses_metrics_and_does_not_stop_the_run(caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with Spool(full, enabled=True) as spool:
        spool.log(1, {"train/loss": 1.0})
    assert "metrics of step 1 are lost" in caplog.text


def test_the_last_step_ignores_an_incomplete_line(run: RunFolder) -> None:
    assert last_step(run.path) is None
    log_steps(run, 1, 2)
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "val')
    assert steps_done(run.path) == 2
    assert json.loads(run.metrics.read_text().splitlines()[0])["step"] == 1


def test_a_metric_keeps_its_unit_and_meaning_in_a_pickle() -> None:
    for metric in names.METRICS:
        copied = pickle.loads(pickle.dumps(metric))
        assert (copied, copied.unit, copied.meaning) == (metric, metric.unit, metric.meaning)
        assert metric.unit
        assert metric.meaning
    described = names.describe(names.TIME.of("forward"))
    assert described is not None
    assert described.unit == "s"
    assert names.describe("train/perplexity") is None
