"""The records in the JSON files of a run folder: submission, start, outcome, failures and others.

Standard library only, Python 3.8 or newer: the batch script's helper, which runs outside of a
container, reads and writes some of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar, TypeVar

from finetune.runs import layout
from finetune.runs.state import FailureKind

R = TypeVar("R", bound="Record")


class Record:
    """A JSON object with known keys; subclasses are dataclasses with a field per key.

    Attributes:
        OMITTED: keys that are left out of the file if their value is None.
    """

    OMITTED: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_json(cls: type[R], body: Mapping[str, object]) -> R:
        """Return the record in a JSON object. Unknown keys, such as those of another version, are
        dropped.

        Raises:
            ValueError: `body` is not a JSON object, or lacks a key.
        """
        if not isinstance(body, dict):
            raise ValueError(f"not a JSON object with the keys of {cls.__name__}")
        known = {one.name for one in fields(cls)}  # type: ignore[arg-type]
        try:
            return cls(**{key: value for key, value in body.items() if key in known})
        except TypeError as fault:
            raise ValueError(f"a key of {cls.__name__} is missing: {fault}") from None

    @classmethod
    def read(cls: type[R], path: Path) -> R | None:
        """Return the record in a file; None if there is no such file.

        Raises:
            ValueError: the file is not valid JSON, or lacks a key.
        """
        body = layout.read_json(path)
        if body is None:
            return None
        try:
            return cls.from_json(body)
        except ValueError as fault:
            raise ValueError(f"{path}: {fault}") from None

    @classmethod
    def read_or_none(cls: type[R], path: Path) -> R | None:
        """Return the record in a file; None if the file is missing or invalid."""
        try:
            return cls.read(path)
        except ValueError:
            return None

    def write(self, path: Path) -> None:
        layout.write_json(path, self.to_json())

    def to_json(self) -> Mapping[str, object]:
        """Return the JSON object; its values are not copied."""
        names = [one.name for one in fields(self)]  # type: ignore[arg-type]
        body = {name: getattr(self, name) for name in names}
        omitted = [name for name in self.OMITTED if body[name] is None]
        return {key: value for key, value in body.items() if key not in omitted}


@dataclass(frozen=True)
class Submission(Record):
    """submission.json: the job that executes the run.

    Attributes:
        job_id: Slurm's job id; for a local run, the id of the process that starts its ranks.
        host: the machine on which the job was submitted.
        scheduler: local or slurm.
        code: digest of the code snapshot that the job imports (launch/freeze.py); None if it
            imports the installed code.
    """

    job_id: str
    host: str = ""
    scheduler: str = "local"
    code: str | None = None

    @property
    def is_on_slurm(self) -> bool:
        return self.scheduler == "slurm"


@dataclass(frozen=True)
class Started(Record):
    """started.json: the start of rank 0.

    Attributes:
        restart: number of earlier starts of the job by Slurm.
        time: seconds since the epoch.
    """

    restart: int = 0
    host: str = ""
    time: float = 0.0


@dataclass(frozen=True)
class Outcome(Record):
    """outcome.json: the state in which the run ended.

    Attributes:
        reason: why the run ended, as shown to users; None if the ranks wrote the file.
        asked_by: what asked the run to stop early, such as a signal or a stop file; "" or None if
            nothing did.
    """

    OMITTED: ClassVar[tuple[str, ...]] = ("reason", "asked_by")

    state: str
    reason: str | None = None
    asked_by: str | None = None


@dataclass(frozen=True)
class Failure(Record):
    """failure-rank-<rank>.json: the failure of a rank.

    Attributes:
        time: seconds since the epoch.
        error: the message, in one line.
        restart: number of earlier starts of the job by Slurm.
        kind: a state.FailureKind.
        nodes: names of the nodes at fault.
    """

    time: float = 0.0
    rank: int = 0
    error: str = ""
    restart: int = 0
    kind: str = FailureKind.CRASH
    nodes: Sequence[str] = ()


@dataclass(frozen=True)
class Diagnosis(Record):
    """failure.json: the batch script's diagnosis of why the run failed and is not restarted."""

    time: float
    error: str


@dataclass(frozen=True)
class Turn(Record):
    """turn.json: identifies the process that starts a local run and watches the run until it ends.

    Local runs take turns. The process writes this file before it waits for the runs ahead of it.

    Attributes:
        host: the machine of the process.
        started: start time of the process, in seconds since the epoch.
    """

    host: str
    pid: int
    started: float


@dataclass(frozen=True)
class Staged(Record):
    """staged.json: the folder, on the nodes' own disks, into which the corpus was copied."""

    folder: str


@dataclass(frozen=True)
class Provenance(Record):
    """provenance.json: the origin of a submission.

    Attributes:
        packages: version by package; None for a package that was not installed where the run was
            submitted.
        sweep: id of the sweep that the run belongs to.
        point: the run's values of the swept settings, as they were typed.
        scheduler: local or slurm.
    """

    OMITTED: ClassVar[tuple[str, ...]] = ("point", "scheduler")

    command: Sequence[str] = ()
    submitted: str = ""
    python: str = ""
    packages: Mapping[str, str | None] | None = None
    git_revision: str | None = None
    git_diff: str = ""
    sweep: str | None = None
    point: dict[str, str] | None = None
    scheduler: str | None = None


@dataclass(frozen=True)
class Exits(Record):
    """exits.json: the exit statuses of a local run's ranks.

    Attributes:
        ranks: exit status by rank, in the order in which the ranks ended. A negative status is a
            signal, as in subprocess: -9 is SIGKILL.
        oom_kills: number of processes in the run's memory cgroup that the kernel killed during the
            run, because memory ran out.
    """

    ranks: Mapping[int, int] = field(default_factory=dict)
    oom_kills: int = 0


@dataclass(frozen=True)
class Metrics(Record):
    """A line of metrics.jsonl: the values of metrics after an optimizer step.

    Attributes:
        time_ms: milliseconds since the epoch.
        values: values by metric name.
    """

    step: int
    time_ms: int
    values: dict[str, float]


def read_submission(run: Path) -> Submission | None:
    """Return the job that executes a run; None before its submission.

    An earlier version of finetune wrote this record to a file of another name. A queued job of that
    version still writes the old file when it resubmits itself. The job id is therefore read from
    whichever of the two files is newer.

    Raises:
        ValueError: a file is not valid JSON, or lacks a key.
    """
    earlier = Submission.read(run / layout.EARLIER_SUBMISSION)
    submission = Submission.read(run / layout.SUBMISSION)
    if submission is None or earlier is None:
        return submission or earlier
    earlier_time = (run / layout.EARLIER_SUBMISSION).stat().st_mtime_ns
    time = (run / layout.SUBMISSION).stat().st_mtime_ns
    return replace(submission, job_id=earlier.job_id) if earlier_time > time else submission


def move_submission(run: Path, job: str, host: str) -> None:
    """Record that the Slurm job `job` now executes the run.

    Args:
        host: the machine that submitted the run; used only if no earlier record can be read.
    """
    known = None
    with suppress(ValueError):  # an invalid file is replaced
        known = read_submission(run)
    known = known or Submission(job, host, scheduler="slurm")
    replace(known, job_id=job).write(run / layout.SUBMISSION)


def remove_submission(run: Path) -> None:
    """Remove the record of the job that executed the run."""
    for name in (layout.SUBMISSION, layout.EARLIER_SUBMISSION):
        (run / name).unlink(missing_ok=True)


def read_exits(path: Path) -> Exits:
    """Return the exit statuses in a file; an empty record if it cannot be read."""
    try:
        found = Exits.read(path) or Exits()
    except (OSError, ValueError):
        return Exits()
    ranks = {int(rank): int(status) for rank, status in found.ranks.items()}
    return Exits(ranks, int(found.oom_kills))


def read_failures(run: Path) -> list[Failure]:
    """Return the recorded failures of all ranks in all starts of the job, except invalid files."""
    found = (Failure.read_or_none(path) for path in sorted(run.glob(layout.failure_of("*"))))
    return [failure for failure in found if failure is not None]
