"""The records in the JSON files of a run folder: its job, when it started, how it ended, why it failed.

Every process reads or writes some of them, also the batch script's helper outside of a container: the
standard library alone, from Python 3.8 on.
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
    """A JSON object of known keys.

    Attributes:
        OMITTED: keys that are left out of the file where they have no value.
    """

    OMITTED: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_json(cls: type[R], body: Mapping[str, object]) -> R:
        """Return the record of a JSON object; keys that another version wrote are dropped.

        Raises:
            ValueError: it is no object, or lacks a key.
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
        """Return the record in a file; None if there is none.

        Raises:
            ValueError: the file is broken.
        """
        body = layout.read_json(path)
        if body is None:
            return None
        try:
            return cls.from_json(body)
        except ValueError as fault:
            raise ValueError(f"{path}: {fault}") from None

    @classmethod
    def read_if_whole(cls: type[R], path: Path) -> R | None:
        """Return the record in a file; None if there is none, or it is broken."""
        try:
            return cls.read(path)
        except ValueError:
            return None

    def write(self, path: Path) -> None:
        layout.write_json(path, self.to_json())

    def to_json(self) -> Mapping[str, object]:
        """Return the object that is written; its values are not copied."""
        names = [one.name for one in fields(self)]  # type: ignore[arg-type]
        body = {name: getattr(self, name) for name in names}
        return {key: value for key, value in body.items() if value is not None or key not in self.OMITTED}


@dataclass(frozen=True)
class Submission(Record):
    """submission.json: the job that works on the run.

    Attributes:
        job_id: Slurm's; of a run on this machine the process id of submitit's controller.
        host: where it was submitted.
        scheduler: local or slurm.
        code: digest of the code that the job imports (launch/freeze.py); None: what is installed.
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
    """started.json: when and where rank 0 began, and how often Slurm has started the job before."""

    restart: int = 0
    host: str = ""
    time: float = 0.0


@dataclass(frozen=True)
class Outcome(Record):
    """outcome.json: how the run ended.

    Attributes:
        reason: for people, where somebody else than the ranks wrote it.
        asked_by: what asked the ranks to leave; "": nothing.
    """

    OMITTED: ClassVar[tuple[str, ...]] = ("reason", "asked_by")

    state: str
    reason: str | None = None
    asked_by: str | None = None


@dataclass(frozen=True)
class Failure(Record):
    """failure-rank-<rank>.json: why a rank failed.

    Attributes:
        error: the message, in one line.
        restart: how often Slurm had started the job before.
        kind: what it means for the run: state.FailureKind.
        nodes: those to blame.
    """

    time: float = 0.0
    rank: int = 0
    error: str = ""
    restart: int = 0
    kind: str = FailureKind.CRASH
    nodes: Sequence[str] = ()


@dataclass(frozen=True)
class Diagnosis(Record):
    """failure.json: why the run has ended for good, as its batch script found."""

    time: float
    error: str


@dataclass(frozen=True)
class Turn(Record):
    """turn.json: the process that starts the run in its turn, or follows it."""

    host: str
    pid: int
    started: float


@dataclass(frozen=True)
class Staged(Record):
    """staged.json: the folder with copies of the corpus on the nodes' own disks."""

    folder: str


@dataclass(frozen=True)
class Provenance(Record):
    """provenance.json: where a submission comes from.

    Attributes:
        packages: their versions; None for one that is not installed where the run was submitted.
        sweep: id of the sweep that the run is a point of.
        point: its swept settings, as they were typed.
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
    """exits.json: the exit status of a local run's ranks, in the order of their ends.

    Attributes:
        ranks: status by rank, as subprocess gives it: -9 is SIGKILL.
        oom_kills: processes that the kernel ended in the run's memory cgroup meanwhile.
    """

    ranks: Mapping[int, int] = field(default_factory=dict)
    oom_kills: int = 0


@dataclass(frozen=True)
class Metrics(Record):
    """A line of metrics.jsonl: what was measured after so many optimizer steps."""

    step: int
    time_ms: int
    values: dict[str, float]


def read_submission(run: Path) -> Submission | None:
    """Return the job that works on a run, also where an earlier version submitted it; None before its
    submission.

    A job that was queued with the code of an earlier version writes the earlier name when it resubmits
        itself: the newer file
    of the two holds.

    Raises:
        ValueError: the file is broken.
    """
    earlier = Submission.read(run / layout.EARLIER_SUBMISSION)
    submission = Submission.read(run / layout.SUBMISSION)
    if submission is None or earlier is None:
        return submission or earlier
    newer, older = (
        (run / name).stat().st_mtime_ns for name in (layout.EARLIER_SUBMISSION, layout.SUBMISSION)
    )
    return replace(submission, job_id=earlier.job_id) if newer > older else submission


def move_submission(run: Path, job: str, host: str) -> None:
    """Note that another Slurm job goes on with the run."""
    known = None
    with suppress(ValueError):  # a broken note is replaced
        known = read_submission(run)
    submission = replace(known, job_id=job) if known else Submission(job, host, scheduler="slurm")
    submission.write(run / layout.SUBMISSION)


def forget_submission(run: Path) -> None:
    """Remove the note of the job that worked on the run."""
    for name in (layout.SUBMISSION, layout.EARLIER_SUBMISSION):
        (run / name).unlink(missing_ok=True)


def read_exits(path: Path) -> Exits:
    """Return the exit statuses in a file; none if it cannot be read."""
    try:
        found = Exits.read(path) or Exits()
    except (OSError, ValueError):
        return Exits()
    return Exits({int(rank): int(status) for rank, status in found.ranks.items()}, int(found.oom_kills))


def read_failures(run: Path) -> list[Failure]:
    """Return what ranks wrote of their failures, in all starts of the job; broken files are left out."""
    found = (Failure.read_if_whole(path) for path in sorted(run.glob(layout.failure_of("*"))))
    return [failure for failure in found if failure is not None]
