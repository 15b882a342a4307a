"""A run on disk: where everything of it lies, and what state it is in. Read from files alone, by any process, at any time."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from data_prep.user_error import NotFoundError
from finetune.config import train as configuration
from finetune.config.suggestions import did_you_mean
from finetune.config.train import TrainConfig
from finetune.runs import causes, rank_warnings
from finetune.runs.json_files import write_json
from finetune.runs.summary import Summary

TURN = "turn.json"
SUBMISSION_SECONDS = 5.0  # that a run may take to be started by another shell


@dataclass(frozen=True)
class RunFolder:
    """`runs/<run id>/`:

    config.yaml       the resolved config, frozen at submission     provenance.json   versions, git revision, git diff
    inputs.json       digests of its corpus and base                checkpoints/      see checkpoint.py
    plan/             the pack plan, one file an epoch
    metrics.jsonl     every metric of every step, append-only       summary.json      what came of it, for people
    model/ | adapter/ the result, as transformers and PEFT load it  jobs/             submitit's files and the ranks' logs
    exports/          checkpoints named as run:ID@STEP, likewise
    """

    path: Path

    @classmethod
    def find(cls, run_id: str, runs_dir: str | Path) -> RunFolder:
        """The run with this id (or its folder's path).

        Raises:
            NotFoundError: there is none.
        """
        for path in (Path(runs_dir) / run_id, Path(run_id)):
            if (path / "config.yaml").is_file():
                return cls(path.resolve())
        known = [path.parent.name for path in Path(runs_dir).glob("*/config.yaml")]
        sweeps = [path.name for path in (Path(runs_dir) / "sweeps").glob("*") if path.is_dir()]
        close = did_you_mean(run_id, [*known, *sweeps])
        raise NotFoundError(f"no run '{run_id}' in {runs_dir}{close or ': `finetune status` lists the runs there'}")

    @classmethod
    def all(cls, runs_dir: str | Path) -> list[RunFolder]:
        """Oldest first."""
        found = [cls(path.parent.resolve()) for path in Path(runs_dir).glob("*/config.yaml")]
        return sorted(found, key=lambda run: ((run.path / "provenance.json").stat().st_mtime_ns, run.id))

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def jobs(self) -> Path:
        return self.path / "jobs"

    def export(self, step: int) -> Path:
        """Where the weights of a checkpoint lie as a model or adapter, once somebody has named them (base.resolve)."""
        return self.path / "exports" / f"step-{step:08d}"

    @property
    def stop_file(self) -> Path:
        return self.path / "stop"

    @property
    def lock(self) -> FileLock:
        """Held by rank 0 for as long as the run trains."""
        return FileLock(self.path / ".lock", timeout=0)

    @property
    def submission_lock(self) -> FileLock:
        """Held for the moment in which the run is started here, or cancelled in the queue."""
        return FileLock(self.path / ".submit.lock", timeout=SUBMISSION_SECONDS)

    def config(self) -> TrainConfig:
        return configuration.load(self.config_file)

    def summary(self) -> Summary | None:
        """Return what came of the run; None while it has not ended well."""
        body = self.read_json("summary.json")
        return None if body is None else Summary.from_json(body)

    def read_json(self, name: str) -> dict[str, Any] | None:
        return _read_json(self.path / name)

    def write_json(self, name: str, body: dict[str, Any]) -> None:
        """Atomically."""
        write_json(self.path / name, body)

    def stacks(self, rank: int) -> Path:
        """Where a rank that hangs leaves its stack."""
        return self.jobs / f"stacks-rank-{rank}.txt"

    def begin_attempt(self) -> None:
        """Forget how the last attempt ended."""
        leftovers = (
            *self.path.glob("failure*.json"), *self.jobs.glob("rendezvous-*"), *self.jobs.glob("stacks-rank-*.txt"),
            self.jobs / causes.EXITS,
        )  # fmt: skip
        rank_warnings.forget(self.jobs)
        for path in (self.stop_file, *(self.path / f"{name}.json" for name in ("outcome", "attempt", "started")), *leftovers):
            path.unlink(missing_ok=True)

    def join_turn(self) -> None:
        """Note that this process starts the run when those before it have ended."""
        me = psutil.Process()
        self.write_json(TURN, {"host": socket.gethostname(), "pid": me.pid, "started": me.create_time()})

    def leave_turn(self) -> None:
        (self.path / TURN).unlink(missing_ok=True)

    def turn_holder(self) -> str | None:
        """Return which process is to start this run in its turn, or follows it: `process 123`, or `another process on HOST`;
        None if nobody is. A process that was killed leaves its note behind, and is not taken for alive."""
        turn = self.read_json(TURN)
        if turn is None:
            return None
        if turn["host"] != socket.gethostname():
            return f"another process on {turn['host']}"
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(turn["pid"])
            if abs(process.create_time() - turn["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                return f"process {turn['pid']}"
        return None

    def has_lost_its_shell(self) -> bool:
        """Whether the run was followed by a process that ended before it, as in a shell that was killed."""
        return (self.path / TURN).exists() and self.turn_holder() is None

    def record_attempt(self, job_id: str, scheduler: str = "local", code: str | None = None) -> None:
        """The job that works on the run from now on; its id is Slurm's, locally the process id of submitit's controller."""
        self.write_json("attempt.json", {"job_id": job_id, "host": socket.gethostname(), "scheduler": scheduler, "code": code})

    def record_start(self) -> None:
        """By rank 0, when its job begins, and each time that Slurm starts the job anew; how it ended before is past then."""
        (self.path / "outcome.json").unlink(missing_ok=True)
        self.write_json("started.json", {"restart": restart_count(), "host": socket.gethostname(), "time": time.time()})

    def record_failure(self, rank: int, error: str, kind: str = "crash", nodes: Sequence[str] = ()) -> None:
        """What a rank failed of. `kind` is mistake, preflight, hang or crash, `nodes` those to blame: see job/batch_script.py."""
        body = {"time": time.time(), "rank": rank, "error": error, "restart": restart_count(), "kind": kind, "nodes": list(nodes)}
        self.write_json(f"failure-rank-{rank}.json", body)

    def failure(self) -> str | None:
        """Why the run failed: its batch script's diagnosis, or what its ranks left (causes.py); None if no rank failed."""
        if verdict := self.read_json("failure.json"):
            return str(verdict["error"])
        failures = self.failures()
        return self.cause_of_death(failures=failures) if failures else None

    def failures(self) -> list[dict[str, Any]]:
        """Return what ranks wrote of their failures in the newest start of the job."""
        failures = [body for path in self.path.glob("failure-rank-*.json") if (body := _read_json(path))]
        newest = max((body.get("restart", 0) for body in (self.read_json("started.json") or {}, *failures)), default=0)
        return [body for body in failures if body.get("restart", 0) == newest]

    def command(self, verb: str, name: str | None = None) -> str:
        """Return a command on this run, or on `name` beside it, as it can be pasted into this shell."""
        here, folder = Path.cwd(), self.path.parent
        shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
        where = [] if str(shown) == "runs" else ["--runs-dir", str(shown)]
        return shlex.join(["finetune", verb, *where, name or self.id])

    def cause_of_death(self, state: str = "", failures: Sequence[dict[str, Any]] = ()) -> str | None:
        """Return why the newest attempt died, from its logs and exit statuses; None if it left nothing.

        Args:
            state: Slurm's state of the job, if it is known.
            failures: what its ranks wrote of their failures.
        """
        return causes.explain(causes.gather(self.path, failures, self.config().cluster.world_size, state=state))

    def warnings(self) -> list[str]:
        """Return what its ranks warned of since a person started it, a line each."""
        return rank_warnings.describe(self.jobs, self.config().cluster.world_size)

    def state(self) -> str:
        """queued, running, completed, failed, cancelled, or stopped (asked to), interrupted (by a signal or its time's end), dead
        (killed); all but the first three can be resumed.

        Of a Slurm job files alone do not say whether it is in the queue again, or dead: launch.observe asks Slurm too.
        """
        if self.is_running():
            return "running"
        if outcome := self.read_json("outcome.json"):
            return str(outcome["state"])
        if self.failure():
            return "failed"
        if self.scheduler() == "slurm":
            return "running" if (self.path / "started.json").exists() else "queued"
        if not (self.path / "attempt.json").exists():
            return "queued"
        return "running" if self.processes() else "dead"  # ranks may outlive submitit's controller

    def sweep(self) -> str | None:
        """Id of the sweep that the run is a point of, if it is."""
        found = (self.read_json("provenance.json") or {}).get("sweep")
        return None if found is None else str(found)

    def point(self) -> dict[str, str]:
        """Swept settings and this point's values, as they were typed; empty for a run that is no point of a sweep."""
        found: dict[str, str] = (self.read_json("provenance.json") or {}).get("point") or {}
        return found

    def code(self) -> str | None:
        """Digest of the code that its job imports (launch/freeze.py); None if it imports what is installed."""
        found = (self.read_json("attempt.json") or {}).get("code")
        return None if found is None else str(found)

    def log(self, rank: int) -> Path | None:
        """What a rank wrote in the newest job of the run."""
        found = [(path.stat().st_mtime, path) for path in self.jobs.glob(f"*_{rank}_log.out")]
        return max(found)[1] if found else None

    def scheduler(self) -> str | None:
        """Who was given the run: local or slurm; None before its submission."""
        attempt = self.read_json("attempt.json")
        return None if attempt is None else str(attempt.get("scheduler", "local"))

    def planned_scheduler(self) -> str:
        """Return who was to be given the run: local or slurm. Its config is not read where that can be known without it."""
        noted = (self.read_json("provenance.json") or {}).get("scheduler")
        return str(noted or self.config().cluster.scheduler)

    def is_running(self) -> bool:
        """Of a run without scheduler, from the start of the job's processes to their end. It does not take the run's lock, which
        a rank may want.

        A run of another machine counts as running while its metrics were written to in the last ten minutes.
        """
        if self.elsewhere() is not None:
            return self.metrics.exists() and time.time() - self.metrics.stat().st_mtime < 600
        return self.controller() is not None

    def elsewhere(self) -> str | None:
        """The other machine where the run was started without scheduler, if it has not said its end there: it may be at work,
        however long it is silent."""
        attempt = self.read_json("attempt.json")
        if attempt is None or self.scheduler() == "slurm" or attempt["host"] == socket.gethostname():
            return None
        ended = (self.path / "outcome.json").exists() or self.failure() is not None
        return None if ended else str(attempt["host"])

    def controller(self) -> psutil.Process | None:
        """The process on this machine that a run without scheduler hangs on (launch/follow.py), if it is there; by its command
        line, as its id may be another process' by now."""
        attempt = self.read_json("attempt.json")
        if attempt is None or self.scheduler() == "slurm" or attempt["host"] != socket.gethostname():
            return None
        try:
            process = psutil.Process(int(attempt["job_id"]))
            ours = {str(self.jobs), str(self.jobs / "attached.sh")}  # that script becomes srun (launch/local.py)
            return process if ours & set(process.cmdline()) else None
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            return None

    def processes(self) -> list[psutil.Process]:
        """The run's ranks on this machine, found by the folder in their command lines."""
        found = psutil.process_iter(["cmdline"])
        return [p for p in found if {"submitit.core._submit", str(self.jobs)} <= set(p.info["cmdline"] or [])]

    def last_metrics(self) -> dict[str, Any]:
        """The newest training step in the spool: its step and its values, and "seconds_a_step" over the last ones since the job
        began, where there are several; empty before the first."""
        if not self.metrics.exists():
            return {}
        with self.metrics.open("rb") as file:
            file.seek(max(0, self.metrics.stat().st_size - 65536))
            lines = file.read().splitlines()
        steps = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line still being written, or begun before what we read
            if "train/loss" in record["values"]:
                steps.append(record)
        if not steps:
            return {}
        last = steps[-1]
        since = 1000 * float((self.read_json("started.json") or {}).get("time", 0))
        first = next((step for step in steps if step["time_ms"] >= since), last)
        pace = {}
        if last["step"] > first["step"]:
            pace = {"seconds_a_step": (last["time_ms"] - first["time_ms"]) / 1000 / (last["step"] - first["step"])}
        return {"step": last["step"], **pace, **last["values"]}


def restart_count() -> int:
    """How often Slurm has started this job before; 0 outside of Slurm."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return body
