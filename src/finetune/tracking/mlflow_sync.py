"""`sync`: fill MLflow from the spools of runs. Idempotent: our run id, a tag, is a run's identity, and each
step is sent once.

A resumed run repeats the steps since its last checkpoint, exactly: those already sent are skipped. Where we
stopped reading is kept beside the spool; if that note is lost with the process, the same lines are sent again
with the same timestamps, which MLflow stores once.
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
    """.sent.json: how much of a run's metrics an MLflow run has.

    Attributes:
        offset: bytes of the metrics that were read.
        last_step: of each metric.
    """

    mlflow_run_id: str
    offset: int = 0
    last_step: dict[str, int] = field(default_factory=dict)


def default_uri(runs_dir: str | Path) -> str:
    return f"sqlite:///{Path(runs_dir).resolve() / layout.MLFLOW_DATABASE}"


def sync(run: RunFolder) -> None:
    """Send what the run has said since the last time. One writer at a time a runs folder: SQLite takes no
    more."""
    config = run.config()
    with FileLock(run.path.parent / layout.MLFLOW_LOCK, timeout=60):
        client = _client(config.tracking_uri or default_uri(run.path.parent))
        mlflow_run = _get_or_create(client, run, config.experiment)
        sent = _read_sent(run, mlflow_run.info.run_id)
        for batch, offset in _batches(run.metrics, sent):
            client.log_batch(mlflow_run.info.run_id, metrics=batch)
            sent.offset = offset
            layout.write_text(run.sent, json.dumps(asdict(sent)))
        _finish(client, mlflow_run, run)


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # every byte stays inside the cluster
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    from mlflow.tracking import MlflowClient

    for chatty in ("mlflow", "alembic"):  # after the import, which sets them up
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _get_or_create(client: Any, run: RunFolder, experiment_name: str) -> Any:
    experiment_id = _experiment(client, run.path.parent, experiment_name)
    found = _find(client, experiment_id, RUN_ID_TAG, run.id)
    if found and found.data.params:
        return found
    from mlflow.entities import Param

    tags = {RUN_ID_TAG: run.id, "finetune.folder": str(run.path)}
    if sweep := run.sweep():
        parent = _find(client, experiment_id, SWEEP_TAG, sweep) or client.create_run(
            experiment_id, run_name=sweep, tags={SWEEP_TAG: sweep}
        )
        tags["mlflow.parentRunId"] = parent.info.run_id
    created = found or client.create_run(experiment_id, run_name=describe(run.point()) or run.id, tags=tags)
    params = [Param(key, value[:6000]) for key, value in _flatten(run) if key != "cluster.site.sources"]
    for first in range(0, len(params), PARAMS_PER_BATCH):
        client.log_batch(created.info.run_id, params=params[first : first + PARAMS_PER_BATCH])
    client.log_artifact(created.info.run_id, str(run.config_file))
    return created


def _experiment(client: Any, runs_dir: Path, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    return str(
        client.create_experiment(name, artifact_location=(runs_dir / layout.MLFLOW_ARTIFACTS).as_uri())
    )


def _find(client: Any, experiment_id: str, tag: str, value: str) -> Any | None:
    found = client.search_runs([experiment_id], filter_string=f"tags.`{tag}` = '{value}'", max_results=1)
    return found[0] if found else None


def finish_sweep(points: list[RunFolder]) -> None:
    """Say of a sweep's parent run how it stands: RUNNING while a point is queued or runs, FAILED if one did
    not complete.

    Args:
        points: all runs of the sweep, each of which has been synced.
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
    places = {(config.tracking_uri or default_uri(run.path.parent), config.experiment) for config in configs}
    with FileLock(run.path.parent / layout.MLFLOW_LOCK, timeout=60):
        for uri, experiment in sorted(places):  # a sweep over experiments has a parent in each
            client = _client(uri)
            parent = _find(
                client, _experiment(client, run.path.parent, experiment), SWEEP_TAG, str(run.sweep())
            )
            if parent is not None and parent.info.status != status:
                if status == MlflowStatus.RUNNING:
                    client.update_run(parent.info.run_id, str(status))
                else:
                    client.set_terminated(parent.info.run_id, str(status))


def _flatten(run: RunFolder) -> Iterator[tuple[str, str]]:
    """The run's config as dotted keys."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            yield prefix, str(value)

    return walk("", asdict(run.config()))


def _batches(spool: Path, sent: Sent) -> Iterator[tuple[list[Any], int]]:
    """Yield unsent metrics in batches, each with the offset in the spool after it; updates sent.last_step."""
    from mlflow.entities import Metric

    if not spool.exists():
        return
    last_step, batch, offset = sent.last_step, [], sent.offset
    with spool.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break  # still being written, or cut off by a kill: read again next time
            offset += len(line)
            record = _parse(line)
            for key, value in record.values.items():
                if record.step > last_step.get(key, -1):
                    last_step[key] = record.step
                    batch.append(Metric(key, float(value), record.time_ms, record.step))
            if len(batch) > METRICS_PER_BATCH - 100:
                yield batch, offset
                batch = []
    if offset > sent.offset or batch:
        yield batch, offset


def _parse(line: bytes) -> Metrics:
    """Return the record of a spool's line; an empty one for a line that a kill cut short in the middle of the
    file."""
    record = layout.parse_json_line(line)
    return Metrics(step=0, time_ms=0, values={}) if record is None else Metrics.from_json(record)


def _read_sent(run: RunFolder, mlflow_run_id: str) -> Sent:
    """Return how much that MLflow run has; nothing if it is another one, as after a deletion or a move."""
    body = layout.read_json(run.sent)
    if body is not None and body["mlflow_run_id"] == mlflow_run_id:
        return Sent(**body)
    return Sent(mlflow_run_id)


def _finish(client: Any, mlflow_run: Any, run: RunFolder) -> None:
    status = MLFLOW_STATUS[run.state()]
    if mlflow_run.info.status == status:
        return
    if status in (MlflowStatus.RUNNING, MlflowStatus.SCHEDULED):
        client.update_run(mlflow_run.info.run_id, str(status))
        return
    client.set_terminated(mlflow_run.info.run_id, str(status))
    if run.summary_file.exists():
        client.log_artifact(mlflow_run.info.run_id, str(run.summary_file))
