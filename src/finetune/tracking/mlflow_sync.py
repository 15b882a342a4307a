"""Sends the metrics of runs to MLflow, from their spools (metrics.jsonl).

This can be repeated safely. A tag with the run id shows which MLflow run belongs to a run, and
MLflow stores each step once:

- A resumed run repeats the steps since its last checkpoint exactly, so steps that were already sent
  are skipped.
- The offset reached in the spool is saved in a file beside it. If a process ends before it saves
  the offset, the next process sends the same lines again. Their timestamps are the same, so MLflow
  stores them once.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from finetune.config.points import describe
from finetune.runs import layout
from finetune.runs.folder import RunFolder
from finetune.runs.records import Metrics
from finetune.runs.state import MLFLOW_STATUS, MlflowStatus

RUN_ID_TAG = "finetune.run_id"
SWEEP_TAG = "finetune.sweep"
METRICS_PER_BATCH = 1000  # MLflow's limit for one log_batch
PARAMS_PER_BATCH = 100


@dataclass
class Sent:
    """.sent.json: the amount of a run's metrics that was sent to an MLflow run.

    Attributes:
        offset: number of bytes of metrics.jsonl that were read.
        last_step: for each metric the last step of which a value was sent.
    """

    mlflow_run_id: str
    offset: int = 0
    last_step: dict[str, int] = field(default_factory=dict)


def default_uri(runs_dir: str | Path) -> str:
    return f"sqlite:///{Path(runs_dir).resolve() / layout.MLFLOW_DATABASE}"


def sync(run: RunFolder) -> None:
    """Send the run's new metrics and its status to MLflow.

    A lock on the runs folder admits one sender at a time, because MLflow's SQLite database does not
    support several writers.
    """
    config = run.config()
    with FileLock(run.path.parent / layout.MLFLOW_LOCK, timeout=60):
        client = _create_client(config.tracking_uri or default_uri(run.path.parent))
        mlflow_run = _get_or_create_run(client, run, config.experiment)
        sent = _read_sent(run, mlflow_run.info.run_id)
        for batch, offset in _read_batches(run.metrics, sent):
            client.log_batch(mlflow_run.info.run_id, metrics=batch)
            sent.offset = offset
            layout.write_text(run.sent, json.dumps(asdict(sent)))
        _update_status(client, mlflow_run, run)


def _create_client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # no data may leave the cluster
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which configures these loggers
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _get_or_create_run(client: Any, run: RunFolder, experiment_name: str) -> Any:
    experiment_id = _get_or_create_experiment(client, run.path.parent, experiment_name)
    found = _find_run(client, experiment_id, RUN_ID_TAG, run.id)
    if found and found.data.params:
        return found
    from mlflow.entities import Param

    tags = {RUN_ID_TAG: run.id, "finetune.folder": str(run.path)}
    sweep = run.sweep()
    if sweep:
        parent = _find_run(client, experiment_id, SWEEP_TAG, sweep)
        if parent is None:
            parent = client.create_run(experiment_id, run_name=sweep, tags={SWEEP_TAG: sweep})
        tags["mlflow.parentRunId"] = parent.info.run_id
    name = describe(run.point()) or run.id
    created = found or client.create_run(experiment_id, run_name=name, tags=tags)
    settings = [(key, value) for key, value in _flatten(run) if key != "cluster.site.sources"]
    params = [Param(key, value[:6000]) for key, value in settings]  # 6000: MLflow's limit
    for first in range(0, len(params), PARAMS_PER_BATCH):
        client.log_batch(created.info.run_id, params=params[first : first + PARAMS_PER_BATCH])
    client.log_artifact(created.info.run_id, str(run.config_file))
    return created


def _get_or_create_experiment(client: Any, runs_dir: Path, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    artifacts = (runs_dir / layout.MLFLOW_ARTIFACTS).as_uri()
    return str(client.create_experiment(name, artifact_location=artifacts))


def _find_run(client: Any, experiment_id: str, tag: str, value: str) -> Any | None:
    has_tag = f"tags.`{tag}` = '{value}'"
    found = client.search_runs([experiment_id], filter_string=has_tag, max_results=1)
    return next(iter(found), None)


def update_sweep_status(points: list[RunFolder]) -> None:
    """Set the status of a sweep's parent run in MLflow.

    It is RUNNING while a point is queued, interrupted or running; then FINISHED if all points
    completed, else FAILED.

    Args:
        points: all runs of the sweep; `sync` must have been called for each.
    """
    run = points[0]
    statuses = {MLFLOW_STATUS[point.state()] for point in points}
    if statuses & {MlflowStatus.RUNNING, MlflowStatus.SCHEDULED}:
        status = MlflowStatus.RUNNING
    elif statuses == {MlflowStatus.FINISHED}:
        status = MlflowStatus.FINISHED
    else:
        status = MlflowStatus.FAILED
    configs = [point.config() for point in points]
    default = default_uri(run.path.parent)
    places = {(config.tracking_uri or default, config.experiment) for config in configs}
    with FileLock(run.path.parent / layout.MLFLOW_LOCK, timeout=60):
        for uri, experiment in sorted(places):  # a sweep over experiments has a parent in each
            client = _create_client(uri)
            experiment_id = _get_or_create_experiment(client, run.path.parent, experiment)
            parent = _find_run(client, experiment_id, SWEEP_TAG, str(run.sweep()))
            if parent is not None and parent.info.status != status:
                if status == MlflowStatus.RUNNING:
                    client.update_run(parent.info.run_id, str(status))
                else:
                    client.set_terminated(parent.info.run_id, str(status))


def _flatten(run: RunFolder) -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the value of each setting in a run's config."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            yield prefix, str(value)

    return walk("", asdict(run.config()))


def _read_batches(spool: Path, sent: Sent) -> Iterator[tuple[list[Any], int]]:
    """Yield batches of unsent metrics, each with the offset in the spool at which it ends.

    This function updates `sent.last_step`. The caller sets `sent.offset` when it has sent a batch.
    """
    from mlflow.entities import Metric

    if not spool.exists():
        return
    last_step = sent.last_step
    offset = sent.offset
    batch = []
    with spool.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break  # incomplete: it is being written, or a kill interrupted it
            offset += len(line)
            record = _parse_line(line)
            for key, value in record.values.items():
                if record.step > last_step.get(key, -1):
                    last_step[key] = record.step
                    batch.append(Metric(key, float(value), record.time_ms, record.step))
            if len(batch) > METRICS_PER_BATCH - 100:
                yield batch, offset
                batch = []
    if offset > sent.offset or batch:
        yield batch, offset


def _parse_line(line: bytes) -> Metrics:
    """Return the record in a line of a spool; a record without values if the line is incomplete."""
    record = layout.parse_json_line(line)
    if record is None:
        return Metrics(step=0, time_ms=0, values={})
    return Metrics.from_json(record)


def _read_sent(run: RunFolder, mlflow_run_id: str) -> Sent:
    """Return how much of a run's metrics was sent to an MLflow run.

    If .sent.json names another MLflow run, nothing was sent to this one. This happens after the
    other was deleted in MLflow, or the run folder was moved.
    """
    body = layout.read_json(run.sent)
    if body is not None and body["mlflow_run_id"] == mlflow_run_id:
        return Sent(**body)
    return Sent(mlflow_run_id)


def _update_status(client: Any, mlflow_run: Any, run: RunFolder) -> None:
    status = MLFLOW_STATUS[run.state()]
    if mlflow_run.info.status == status:
        return
    if status in (MlflowStatus.RUNNING, MlflowStatus.SCHEDULED):
        client.update_run(mlflow_run.info.run_id, str(status))
        return
    client.set_terminated(mlflow_run.info.run_id, str(status))
    if run.summary_file.exists():
        client.log_artifact(mlflow_run.info.run_id, str(run.summary_file))
