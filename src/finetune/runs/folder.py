"""A run folder: its paths, records and state, read from files alone, by any process, at any time."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock

from data_prep.user_error import NotFoundError
from finetune.config import train as configuration
from finetune.config.suggestions import did_you_mean
from finetune.config.train import TrainConfig
from finetune.runs import causes, layout, rank_warnings
from finetune.runs.records import (
    Diagnosis,
    Failure,
    Outcome,
    Provenance,
    Started,
    Submission,
    Turn,
    forget_submission,
    read_failures,
    read_submission,
)
from finetune.runs.state import FailureKind, RunState
from finetune.runs.summary import Summary

if TYPE_CHECKING:
    from finetune.runs.layout import Json

SUBMISSION_SECONDS = 5.0  # that a run may take to be started by another shell


@dataclass(frozen=True)
class RunFolder:
    """The folder `runs/<run id>/`; layout.py lists what is in it."""

    path: Path

    @classmethod
    def find(cls, run_id: str, runs_dir: str | Path) -> RunFolder:
        """The run with this id (or its folder's path).

        Raises:
            NotFoundError: there is none.
        """
        for path in (Path(runs_dir) / run_id, Path(run_id)):
            if (path / layout.CONFIG).is_file():
                return cls(path.resolve())
        known = [path.parent.name for path in Path(runs_dir).glob(f"*/{layout.CONFIG}")]
        sweeps = [path.name for path in (Path(runs_dir) / layout.SWEEPS).glob("*") if path.is_dir()]
        close = did_you_mean(run_id, [*known, *sweeps])
        raise NotFoundError(
            f"no run '{run_id}' in {runs_dir}{close or ': `finetune status` lists the runs there'}"
        )

    @classmethod
    def all(cls, runs_dir: str | Path) -> list[RunFolder]:
        """Oldest first."""
        found = [cls(path.parent.resolve()) for path in Path(runs_dir).glob(f"*/{layout.CONFIG}")]
        return sorted(found, key=lambda run: ((run.path / layout.PROVENANCE).stat().st_mtime_ns, run.id))

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def config_file(self) -> Path:
        return self.path / layout.CONFIG

    @property
    def plan(self) -> Path:
        return self.path / layout.PLAN

    @property
    def checkpoints(self) -> Path:
        return self.path / layout.CHECKPOINTS

    @property
    def has_checkpoint(self) -> bool:
        return bool(layout.list_checkpoints(self.checkpoints))

    @property
    def metrics(self) -> Path:
        return self.path / layout.METRICS

    @property
    def summary_file(self) -> Path:
        return self.path / layout.SUMMARY

    @property
    def model(self) -> Path:
        return self.path / layout.MODEL

    @property
    def adapter(self) -> Path:
        return self.path / layout.ADAPTER

    @property
    def jobs(self) -> Path:
        return self.path / layout.JOBS

    @property
    def merged_base(self) -> Path:
        """The base with adapters merged into it, of a run that trains a further one."""
        return self.path / layout.MERGED_BASE

    @property
    def exports(self) -> Path:
        return self.path / layout.EXPORTS

    @property
    def sent(self) -> Path:
        """How far the metrics are in MLflow."""
        return self.path / layout.SENT

    def export(self, step: int) -> Path:
        """Where the weights of a checkpoint lie as a model or adapter, once somebody has named them
        (base_model.resolve)."""
        return self.exports / layout.checkpoint_name(step)

    @property
    def stop_file(self) -> Path:
        return self.path / layout.STOP

    @property
    def lock(self) -> FileLock:
        """Held by rank 0 for as long as the run trains."""
        return FileLock(self.path / layout.LOCK, timeout=0)

    @property
    def submission_lock(self) -> FileLock:
        """Held for the moment in which the run is started here, or cancelled in the queue."""
        return FileLock(self.path / layout.SUBMIT_LOCK, timeout=SUBMISSION_SECONDS)

    @property
    def export_lock(self) -> FileLock:
        """Held while a checkpoint is written as a model or adapter."""
        return FileLock(self.path / layout.EXPORT_LOCK)

    def config(self) -> TrainConfig:
        return configuration.load(self.config_file)

    def summary(self) -> Summary | None:
        """Return what came of the run; None while it has not ended well."""
        body = self.read_json(layout.SUMMARY)
        return None if body is None else Summary.from_json(body)

    def read_json(self, name: str) -> Json | None:
        return layout.read_json(self.path / name)

    def write_json(self, name: str, body: Mapping[str, object]) -> None:
        """Write a JSON file that is always whole."""
        layout.write_json(self.path / name, body)

    def stacks(self, rank: int) -> Path:
        """Where a rank that hangs leaves its stack."""
        return self.jobs / layout.stacks_of(rank)

    def begin_attempt(self) -> None:
        """Forget how the last attempt ended."""
        rank_warnings.forget(self.jobs)
        forget_submission(self.path)
        files = (self.stop_file, self.path / layout.STARTED, self.jobs / layout.EXITS)
        for path in (*files, *layout.traces_of_end(self.path)):
            path.unlink(missing_ok=True)

    def join_turn(self) -> None:
        """Note that this process starts the run when those before it have ended."""
        me = psutil.Process()
        Turn(socket.gethostname(), me.pid, me.create_time()).write(self.path / layout.TURN)

    def leave_turn(self) -> None:
        (self.path / layout.TURN).unlink(missing_ok=True)

    def turn_holder(self) -> str | None:
        """Return which process is to start this run in its turn, or follows it: `process 123`, or `another
        process on HOST`; None if nobody is. A process that was killed leaves its note behind, and is not
        taken for alive."""
        turn = Turn.read(self.path / layout.TURN)
        if turn is None:
            return None
        if turn.host != socket.gethostname():
            return f"another process on {turn.host}"
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(turn.pid)
            if abs(process.create_time() - turn.started) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                return f"process {turn.pid}"
        return None

    def has_lost_its_shell(self) -> bool:
        """Whether the run was followed by a process that ended before it, as in a shell that was killed."""
        return (self.path / layout.TURN).exists() and self.turn_holder() is None

    def record_submission(self, job_id: str, scheduler: str = "local", code: str | None = None) -> None:
        """Note the job that works on the run from now on; its id is Slurm's, or locally that of submitit's
        controller."""
        Submission(job_id, socket.gethostname(), scheduler, code).write(self.path / layout.SUBMISSION)

    def submission(self) -> Submission | None:
        """Return the job that works on the run; None before its submission."""
        return read_submission(self.path)

    def provenance(self) -> Provenance:
        """Return where the submission comes from; it is empty where nobody noted that."""
        return Provenance.read(self.path / layout.PROVENANCE) or Provenance()

    def started(self) -> Started | None:
        """Return when rank 0 began; None before."""
        return Started.read(self.path / layout.STARTED)

    def outcome(self) -> Outcome | None:
        """Return how the run ended; None if nobody wrote that down."""
        return Outcome.read(self.path / layout.OUTCOME)

    def record_start(self) -> None:
        """By rank 0, when its job begins, and each time that Slurm starts the job anew; how it ended before
        is past then."""
        (self.path / layout.OUTCOME).unlink(missing_ok=True)
        Started(restart_count(), socket.gethostname(), time.time()).write(self.path / layout.STARTED)

    def record_outcome(self, state: RunState, reason: str | None = None, asked_by: str | None = None) -> None:
        """Note how the run ended."""
        Outcome(state, reason, asked_by).write(self.path / layout.OUTCOME)

    def record_failure(
        self, rank: int, error: str, kind: str = FailureKind.CRASH, nodes: Sequence[str] = ()
    ) -> None:
        """Note why a rank failed.

        Args:
            kind: a FailureKind.
            nodes: those to blame.
        """
        failure = Failure(time.time(), rank, error, restart_count(), kind, list(nodes))
        failure.write(self.path / layout.failure_of(rank))

    def failure(self) -> str | None:
        """Why the run failed: its batch script's diagnosis, or what its ranks left (causes.py); None if no
        rank failed."""
        if diagnosis := Diagnosis.read(self.path / layout.FAILURE):
            return diagnosis.error
        failures = self.failures()
        return self.cause_of_death(failures=failures) if failures else None

    def failures(self) -> list[Failure]:
        """Return what ranks wrote of their failures in the newest start of the job."""
        failures = read_failures(self.path)
        started = self.started() or Started()
        newest = max([started.restart, *(failure.restart for failure in failures)])
        return [failure for failure in failures if failure.restart == newest]

    def skipped_batches(self) -> list[int]:
        """Return the batches that rewinds left out."""
        return list((self.read_json(layout.SKIPPED) or {"batches": []})["batches"])

    def record_skipped_batches(self, batches: Sequence[int]) -> None:
        """Note the batches that rewinds left out."""
        self.write_json(layout.SKIPPED, {"batches": list(batches)})

    def command(self, verb: str, name: str | None = None) -> str:
        """Return a command on this run, or on `name` beside it, as it can be pasted into this shell."""
        here, folder = Path.cwd(), self.path.parent
        shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
        where = [] if str(shown) == "runs" else ["--runs-dir", str(shown)]
        return shlex.join(["finetune", verb, *where, name or self.id])

    def cause_of_death(self, state: str = "", failures: Sequence[Failure] = ()) -> str | None:
        """Return why the newest attempt died, from its logs and exit statuses; None if it left nothing.

        Args:
            state: Slurm's state of the job, if it is known.
            failures: what its ranks wrote of their failures.
        """
        return causes.explain(
            causes.gather(self.path, failures, self.config().cluster.world_size, state=state)
        )

    def warnings(self) -> list[str]:
        """Return what its ranks warned of since a person started it, a line each."""
        return rank_warnings.describe(self.jobs, self.config().cluster.world_size)

    def state(self) -> RunState:
        """Return the state of the run.

        Of a Slurm job files alone do not say whether it is in the queue again, or dead: launch.observe asks
            Slurm too.
        """
        if self.is_running():
            return RunState.RUNNING
        if outcome := self.outcome():
            return RunState(outcome.state)
        if self.failure():
            return RunState.FAILED
        submission = self.submission()
        if submission is None:
            return RunState.QUEUED
        if submission.is_on_slurm:
            return RunState.RUNNING if (self.path / layout.STARTED).exists() else RunState.QUEUED
        return (
            RunState.RUNNING if self.processes() else RunState.DEAD
        )  # ranks may outlive submitit's controller

    def sweep(self) -> str | None:
        """Id of the sweep that the run is a point of, if it is."""
        return self.provenance().sweep

    def point(self) -> dict[str, str]:
        """Swept settings and this point's values, as they were typed; empty for a run that is no point of a
        sweep."""
        return self.provenance().point or {}

    def code(self) -> str | None:
        """Digest of the code that its job imports (launch/freeze.py); None if it imports what is
        installed."""
        submission = self.submission()
        return None if submission is None else submission.code

    def log(self, rank: int) -> Path | None:
        """What a rank wrote in the newest job of the run."""
        found = [(path.stat().st_mtime, path) for path in self.jobs.glob(layout.log_of("*", rank))]
        return max(found)[1] if found else None

    def scheduler(self) -> str | None:
        """Who was given the run: local or slurm; None before its submission."""
        submission = self.submission()
        return None if submission is None else submission.scheduler

    def planned_scheduler(self) -> str:
        """Return who was to be given the run: local or slurm. Its config is not read where that can be known
        without it."""
        return self.provenance().scheduler or self.config().cluster.scheduler

    def is_running(self) -> bool:
        """Of a run without scheduler, from the start of the job's processes to their end. It does not take
        the run's lock, which a rank may want.

        A run of another machine counts as running while its metrics were written to in the last ten minutes.
        """
        if self.elsewhere() is not None:
            return self.metrics.exists() and time.time() - self.metrics.stat().st_mtime < 600
        return self.controller() is not None

    def elsewhere(self) -> str | None:
        """The other machine where the run was started without scheduler, if it has not said its end there: it
        may be at work, however long it is silent."""
        submission = self.submission()
        if submission is None or submission.is_on_slurm or submission.host == socket.gethostname():
            return None
        ended = (self.path / layout.OUTCOME).exists() or self.failure() is not None
        return None if ended else submission.host

    def controller(self) -> psutil.Process | None:
        """The process on this machine that a run without scheduler hangs on (launch/follow.py), if it is
        there; by its command line, as its id may be another process' by now."""
        submission = self.submission()
        if submission is None or submission.is_on_slurm or submission.host != socket.gethostname():
            return None
        try:
            process = psutil.Process(int(submission.job_id))
            ours = {
                str(self.jobs),
                str(self.jobs / layout.ATTACHED),
            }  # that script becomes srun (launch/local.py)
            return process if ours & set(process.cmdline()) else None
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            return None

    def processes(self) -> list[psutil.Process]:
        """The run's ranks on this machine, found by the folder in their command lines."""
        found = psutil.process_iter(["cmdline"])
        return [p for p in found if {"submitit.core._submit", str(self.jobs)} <= set(p.info["cmdline"] or [])]


def restart_count() -> int:
    """How often Slurm has started this job before; 0 outside of Slurm."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))
