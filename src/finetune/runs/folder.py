"""A run folder: its paths, records and state, which any process can read from files at any time."""

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
    read_failures,
    read_submission,
    remove_submission,
)
from finetune.runs.state import FailureKind, RunState
from finetune.runs.summary import Summary

if TYPE_CHECKING:
    from finetune.runs.layout import Json

SUBMISSION_SECONDS = 5.0  # time to wait while another process starts the run


@dataclass(frozen=True)
class RunFolder:
    """The folder `runs/<run id>/`; layout.py lists its files."""

    path: Path

    @classmethod
    def find(cls, run_id: str, runs_dir: str | Path) -> RunFolder:
        """Return the run that an id or a path denotes.

        Args:
            run_id: id of a run in runs_dir, or path of a run folder.

        Raises:
            NotFoundError: there is no such run.
        """
        for path in (Path(runs_dir) / run_id, Path(run_id)):
            if (path / layout.CONFIG).is_file():
                return cls(path.resolve())
        known = [path.parent.name for path in Path(runs_dir).glob(f"*/{layout.CONFIG}")]
        sweeps = [path.name for path in (Path(runs_dir) / layout.SWEEPS).glob("*") if path.is_dir()]
        hint = did_you_mean(run_id, [*known, *sweeps]) or "; `finetune status` lists the runs"
        raise NotFoundError(f"no run '{run_id}' in {runs_dir}{hint}")

    @classmethod
    def all(cls, runs_dir: str | Path) -> list[RunFolder]:
        """Return all runs in a runs folder, oldest first."""
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
        """Folder of the base with earlier adapters merged into it.

        It exists only if the run trains a new adapter on a base that already has adapters.
        """
        return self.path / layout.MERGED_BASE

    @property
    def exports(self) -> Path:
        return self.path / layout.EXPORTS

    @property
    def sent(self) -> Path:
        """The file that records how much of the metrics was sent to MLflow."""
        return self.path / layout.SENT

    def export(self, step: int) -> Path:
        """Return the folder of a checkpoint's weights as a model or adapter.

        base_model.resolve writes it on first use.
        """
        return self.exports / layout.checkpoint_name(step)

    @property
    def stop_file(self) -> Path:
        return self.path / layout.STOP

    @property
    def lock(self) -> FileLock:
        """The lock that rank 0 holds while the run trains."""
        return FileLock(self.path / layout.LOCK, timeout=0)

    @property
    def submission_lock(self) -> FileLock:
        """The lock held while the run is started on this machine, or cancelled in the queue."""
        return FileLock(self.path / layout.SUBMIT_LOCK, timeout=SUBMISSION_SECONDS)

    @property
    def export_lock(self) -> FileLock:
        """The lock held while a checkpoint is exported as a model or adapter."""
        return FileLock(self.path / layout.EXPORT_LOCK)

    def config(self) -> TrainConfig:
        return configuration.load(self.config_file)

    def summary(self) -> Summary | None:
        """Return the result of the run; None if it has not completed."""
        body = self.read_json(layout.SUMMARY)
        return None if body is None else Summary.from_json(body)

    def read_json(self, name: str) -> Json | None:
        return layout.read_json(self.path / name)

    def write_json(self, name: str, body: Mapping[str, object]) -> None:
        """Write a JSON file atomically."""
        layout.write_json(self.path / name, body)

    def stacks(self, rank: int) -> Path:
        """Return the file for the stack traces of a rank that hung."""
        return self.jobs / layout.stacks_of(rank)

    def clear_attempt_files(self) -> None:
        """Remove the files of the last attempt, such as its submission, warnings and outcome."""
        rank_warnings.remove(self.jobs)
        remove_submission(self.path)
        files = (self.stop_file, self.path / layout.STARTED, self.jobs / layout.EXITS)
        for path in (*files, *layout.list_attempt_files(self.path)):
            path.unlink(missing_ok=True)

    def record_turn(self) -> None:
        """Record that this process will start the run when the runs before it have ended."""
        this_process = psutil.Process()
        turn = Turn(socket.gethostname(), this_process.pid, this_process.create_time())
        turn.write(self.path / layout.TURN)

    def remove_turn(self) -> None:
        (self.path / layout.TURN).unlink(missing_ok=True)

    def turn_holder(self) -> str | None:
        """Return the process that watches this run, or that waits to start it after other runs.

        Returns:
            `process 123`, or `another process on HOST`; None if there is no such process, or it was
            killed.
        """
        turn = Turn.read(self.path / layout.TURN)
        if turn is None:
            return None
        if turn.host != socket.gethostname():
            return f"another process on {turn.host}"
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(turn.pid)
            is_same = abs(process.create_time() - turn.started) < 1  # else the id was reused
            if is_same and process.status() != psutil.STATUS_ZOMBIE:
                return f"process {turn.pid}"
        return None

    def has_lost_its_shell(self) -> bool:
        """Return True if the process that watched the run was killed before the run ended."""
        return (self.path / layout.TURN).exists() and self.turn_holder() is None

    def record_submission(self, job_id: str, scheduler: str = "local", code: str | None = None) -> None:
        """Record the job that executes the run.

        Args:
            job_id, scheduler, code: as in Submission.
        """
        submission = Submission(job_id, socket.gethostname(), scheduler, code)
        submission.write(self.path / layout.SUBMISSION)

    def submission(self) -> Submission | None:
        """Return the job that executes the run; None before its submission."""
        return read_submission(self.path)

    def provenance(self) -> Provenance:
        """Return the origin of the submission; an empty record if there is none."""
        return Provenance.read(self.path / layout.PROVENANCE) or Provenance()

    def started(self) -> Started | None:
        """Return the record of rank 0's start; None before it."""
        return Started.read(self.path / layout.STARTED)

    def outcome(self) -> Outcome | None:
        """Return the record of the run's end; None if there is none."""
        return Outcome.read(self.path / layout.OUTCOME)

    def record_start(self) -> None:
        """Record that rank 0 has started, and remove the previous outcome.

        Rank 0 calls it at each start of its job.
        """
        (self.path / layout.OUTCOME).unlink(missing_ok=True)
        started = Started(restart_count(), socket.gethostname(), time.time())
        started.write(self.path / layout.STARTED)

    def record_outcome(self, state: RunState, reason: str | None = None, asked_by: str | None = None) -> None:
        """Record the state in which the run ended; `reason` and `asked_by` as in Outcome."""
        Outcome(state, reason, asked_by).write(self.path / layout.OUTCOME)

    def record_failure(
        self, rank: int, error: str, kind: str = FailureKind.CRASH, nodes: Sequence[str] = ()
    ) -> None:
        """Record why a rank failed.

        Args:
            error: the message, in one line.
            kind: a FailureKind.
            nodes: names of the nodes at fault.
        """
        failure = Failure(time.time(), rank, error, restart_count(), kind, list(nodes))
        failure.write(self.path / layout.failure_of(rank))

    def failure(self) -> str | None:
        """Return why the run failed; None if no failure is recorded.

        This is the batch script's diagnosis, or else the cause of the ranks' failures (causes.py).
        """
        diagnosis = Diagnosis.read(self.path / layout.FAILURE)
        if diagnosis:
            return diagnosis.error
        failures = self.failures()
        return self.cause_of_death(failures=failures) if failures else None

    def failures(self) -> list[Failure]:
        """Return the failures that ranks recorded in the newest start of the job."""
        failures = read_failures(self.path)
        started = self.started() or Started()
        newest = max([started.restart, *(failure.restart for failure in failures)])
        return [failure for failure in failures if failure.restart == newest]

    def skipped_batches(self) -> list[int]:
        """Return the indices of the batches that are skipped, because they led to bad steps."""
        return list((self.read_json(layout.SKIPPED) or {"batches": []})["batches"])

    def record_skipped_batches(self, batches: Sequence[int]) -> None:
        """Record the indices of the batches that are skipped, because they led to bad steps."""
        self.write_json(layout.SKIPPED, {"batches": list(batches)})

    def command(self, verb: str, name: str | None = None) -> str:
        """Return a `finetune` command to paste into a shell in the current directory.

        Args:
            name: a run or sweep in the same runs folder; None: this run.
        """
        current = Path.cwd()
        runs_dir = self.path.parent
        shown = runs_dir.relative_to(current) if runs_dir.is_relative_to(current) else runs_dir
        option = [] if str(shown) == "runs" else ["--runs-dir", str(shown)]
        return shlex.join(["finetune", verb, *option, name or self.id])

    def cause_of_death(self, state: str = "", failures: Sequence[Failure] = ()) -> str | None:
        """Return why the newest attempt died, found in its logs and exit statuses.

        Args:
            state: Slurm's state of the job; "" if it is not known.
            failures: the failures that the attempt's ranks recorded.

        Returns:
            the cause in one sentence; None if there is no evidence.
        """
        world_size = self.config().cluster.world_size
        return causes.explain(causes.collect_evidence(self.path, failures, world_size, state=state))

    def warnings(self) -> list[str]:
        """Return the warnings of all ranks since the run was submitted, one per line."""
        return rank_warnings.describe(self.jobs, self.config().cluster.world_size)

    def state(self) -> RunState:
        """Return the state of the run that its files show.

        Files cannot show that a Slurm job was requeued or has died; launch.observe asks Slurm too.
        """
        if self.is_running():
            return RunState.RUNNING
        outcome = self.outcome()
        if outcome:
            return RunState(outcome.state)
        if self.failure():
            return RunState.FAILED
        submission = self.submission()
        if submission is None:
            return RunState.QUEUED
        if submission.is_on_slurm:
            return RunState.RUNNING if (self.path / layout.STARTED).exists() else RunState.QUEUED
        # ranks may outlive submitit's controller
        return RunState.RUNNING if self.find_ranks() else RunState.DEAD

    def sweep(self) -> str | None:
        """Return the id of the sweep that the run belongs to; None without a sweep."""
        return self.provenance().sweep

    def point(self) -> dict[str, str]:
        """Return the run's values of the swept settings, as they were typed; {} without a sweep."""
        return self.provenance().point or {}

    def code(self) -> str | None:
        """Return the digest of the code snapshot that the job imports (launch/freeze.py).

        Return None if the job imports the installed code.
        """
        submission = self.submission()
        return None if submission is None else submission.code

    def log(self, rank: int) -> Path | None:
        """Return a rank's log in the newest job of the run; None if there is none."""
        found = [(path.stat().st_mtime, path) for path in self.jobs.glob(layout.log_of("*", rank))]
        return max(found)[1] if found else None

    def scheduler(self) -> str | None:
        """Return the scheduler of the submission, local or slurm; None before it."""
        submission = self.submission()
        return None if submission is None else submission.scheduler

    def planned_scheduler(self) -> str:
        """Return the scheduler that executes the run, or will execute it: local or slurm.

        The config is read only if the provenance does not name the scheduler; reading it is slower.
        """
        return self.provenance().scheduler or self.config().cluster.scheduler

    def is_running(self) -> bool:
        """Return True if a local run's processes are running.

        The run's lock is not used for this, since a rank may be about to acquire it.

        A local run on another machine counts as running if its metrics were written to in the last
        ten minutes.
        """
        if self.find_other_host() is not None:
            return self.metrics.exists() and time.time() - self.metrics.stat().st_mtime < 600
        return self.find_controller() is not None

    def find_other_host(self) -> str | None:
        """Return the other machine on which this local run may still be running; None without one.

        It is the machine that started the run, if that is not this one and no end is recorded. The
        run may be alive even if it has written nothing for a long time.
        """
        submission = self.submission()
        if submission is None or submission.is_on_slurm or submission.host == socket.gethostname():
            return None
        ended = (self.path / layout.OUTCOME).exists() or self.failure() is not None
        return None if ended else submission.host

    def find_controller(self) -> psutil.Process | None:
        """Return the process on this machine that controls a local run (launch/follow.py).

        Return None if it has ended. The command line is compared, since another process may have
        the same process id by now.
        """
        submission = self.submission()
        if submission is None or submission.is_on_slurm or submission.host != socket.gethostname():
            return None
        try:
            process = psutil.Process(int(submission.job_id))
            # within an allocation, the controller is the script that executes srun
            # (launch/local.py)
            arguments = {str(self.jobs), str(self.jobs / layout.ATTACHED)}
            return process if arguments & set(process.cmdline()) else None
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            return None

    def find_ranks(self) -> list[psutil.Process]:
        """Return the run's ranks on this machine: processes with its folder in their command lines."""
        arguments = {"submitit.core._submit", str(self.jobs)}
        processes = psutil.process_iter(["cmdline"])
        return [process for process in processes if arguments <= set(process.info["cmdline"] or [])]


def restart_count() -> int:
    """Return the number of earlier starts of this job by Slurm; 0 outside of Slurm."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))
