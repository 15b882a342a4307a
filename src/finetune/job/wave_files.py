"""The files of a sweep of which points wait for a place in Slurm's queue: its plan, and the job of each
point.

    runs/sweeps/<id>/<n>/waves.json                the limits that hold; it exists while points wait
    runs/sweeps/<id>/<n>/waiting/<index>           a point that waits for a place; it holds its run's id
    runs/sweeps/<id>/<n>/claimed/<job>_<index>     the same file: a held job is being prepared for the point
    runs/sweeps/<id>/<n>/submitted/<job>_<index>   the same file: that job was released

A point changes hands by renaming its file, which succeeds exactly once, on whatever node; a job is held until
all its points have their files. So a process that is killed at any moment leaves a held job, and the next
caller completes it.

It runs on the batch host too, outside of a container: the standard library alone, from Python 3.8 on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from finetune.job import slurm_queue
from finetune.job.slurm_command import Refused
from finetune.job.slurm_queue import TOO_MANY, QueuedJob
from finetune.runs import layout, records
from finetune.runs.layout import CLAIMED, PAUSED, POINTS, PROBLEM, SCRIPT, SUBMITTED, WAITING
from finetune.runs.state import FAILED_JOB_STATES, JobState

BLIND_POINTS = 2  # that a job submits at its end where no limit is known: its own place, and one more
NONE = ""


@dataclass(frozen=True)
class Limit:
    """How many jobs of this user Slurm takes at a time.

    Attributes:
        source: where the number is from, for messages.
        partition, qos, account: which jobs count; "": all.
    """

    most: int
    source: str
    partition: str = NONE
    qos: str = NONE
    account: str = NONE

    def counts(self, job: QueuedJob) -> bool:
        return (
            job.state != JobState.COMPLETING
            and (not self.partition or self.partition in job.partition.split(","))
            and self.qos in (NONE, job.qos)
            and self.account in (NONE, job.account)
        )

    def free(self, jobs: list[QueuedJob]) -> int:
        return max(0, self.most - sum(self.counts(job) for job in jobs))


@dataclass(frozen=True)
class Plan:
    """waves.json.

    Attributes:
        name: of the jobs in Slurm's queue; all submissions of a sweep share it.
        parallel: cluster.array_parallelism, most points of the sweep in the queue while some wait.
        code: digest of the code that the jobs import.
        after: a job that must have ended well before a point starts; "": none.
        user: id of the user whose sweep it is.
    """

    name: str
    parallel: int
    limits: list[Limit]
    code: str
    after: str
    user: int

    @classmethod
    def read(cls, path: Path) -> Plan:
        body = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**body, "limits": [Limit(**limit) for limit in body["limits"]]})

    def places(self, jobs: list[QueuedJob], ending: str = NONE) -> int:
        """Count the points that may be submitted now.

        Args:
            ending: the job that asks, at its end. It still counts for Slurm. Any other caller leaves one
                place free, so that a job that ends can submit the next point while it counts itself, unless
                the sweep would have no job then.
        """
        in_queue = sum(job.name == self.name and job.id != ending for job in jobs)
        if not self.limits:
            free = BLIND_POINTS if in_queue or ending else self.parallel
        else:
            free = min(limit.free(jobs) for limit in self.limits)
            if not ending:
                free = max(0 if in_queue else min(free, 1), free - 1)
        return max(0, min(free, self.parallel - in_queue))


@dataclass(frozen=True)
class SweepSubmission:
    """One folder runs/sweeps/<id>/<n> of which points wait."""

    folder: Path

    @property
    def plan(self) -> Plan:
        return Plan.read(self.folder / layout.WAVES)

    @property
    def script(self) -> Path:
        return self.folder / SCRIPT

    def waiting(self) -> list[int]:
        return sorted(int(path.name) for path in list_files(self.folder / WAITING))

    def run(self, index: int) -> Path:
        """Return the folder of a point's run."""
        return (self.folder / POINTS / str(index)).resolve().parent

    def set_up(self, plan: Plan, indices: list[int], tasks: list[str]) -> None:
        """Write that these points wait, so that anybody may submit them from now on.

        Args:
            tasks: of a held job, which have all they need.
        """
        for name in (WAITING, CLAIMED, SUBMITTED):
            (self.folder / name).mkdir()
        for index in indices:
            (self.folder / WAITING / str(index)).write_text(f"{self.run(index).name}\n", encoding="utf-8")
        for task in tasks:
            (self.folder / CLAIMED / task).write_text(f"{self.run(index_of(task)).name}\n", encoding="utf-8")
        layout.write_json(self.folder / layout.WAVES, asdict(plan))

    def withdraw(self, index: int) -> bool:
        """Take a point out; False if it does not wait any more."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / WAITING / str(index)).unlink()
            return True
        return False

    def submit(self, count: int, dependencies: list[str]) -> int:
        """Submit the next points, as many of `count` as Slurm takes, and return their number. The reason of a
        refusal is in problem.txt."""
        indices = list(islice((index for index in self.waiting() if self._has_run(index)), count))
        while indices:
            try:
                job = slurm_queue.run_slurm(*sbatch_held(self.script, indices, dependencies)).partition(";")[
                    0
                ]
            except Refused as refusal:
                (self.folder / PROBLEM).write_text(f"{refusal}\n", encoding="utf-8")
                indices = indices[: len(indices) // 2] if TOO_MANY.search(str(refusal)) else []
                continue
            (self.folder / PROBLEM).unlink(missing_ok=True)
            return self.complete(job, indices)
        return 0

    def _has_run(self, index: int) -> bool:
        """Return whether the point's folder is there; take the point out if somebody has removed it."""
        found = (self.run(index) / layout.JOBS / layout.WAITING_PICKLE).is_file()
        if not found:
            self.withdraw(index)
        return found

    def complete(self, job: str, indices: list[int]) -> int:
        """Give each task of a held array what it needs, release the array, and return the number of its
        points. Any process may do this, also two at a time."""
        code = self.plan.code
        mine = [index for index in indices if self._claim(job, index)]
        if lost := [f"{job}_{index}" for index in indices if index not in mine]:
            with contextlib.suppress(Refused):
                slurm_queue.run_slurm("scancel", *lost)
        for index in mine:
            self._equip(index, f"{job}_{index}", code)
        if mine:
            slurm_queue.run_slurm("scontrol", "release", job)
        self.settle(job)
        return len(mine)

    def settle(self, job: str) -> None:
        """Write that a job was released."""
        for path in list_files(self.folder / CLAIMED):
            if path.name.startswith(f"{job}_"):
                _rename(path, self.folder / SUBMITTED / path.name)

    def _claim(self, job: str, index: int) -> bool:
        task = f"{job}_{index}"
        if _rename(self.folder / WAITING / str(index), self.folder / CLAIMED / task):
            return True
        return any((self.folder / name / task).exists() for name in (CLAIMED, SUBMITTED))

    def _equip(self, index: int, task: str, code: str) -> None:
        run = self.run(index)
        jobs = run / layout.JOBS
        with layout.replace_atomically(jobs / layout.pickle_of(task)) as temporary:
            shutil.copyfile(str(jobs / layout.WAITING_PICKLE), str(temporary))
        records.Submission(task, socket.gethostname(), "slurm", code).write(run / layout.SUBMISSION)

    def recover(self, jobs: list[QueuedJob]) -> None:
        """Complete the jobs that a killed process left behind, and take back points whose job is gone."""
        claimed = {path.name for path in list_files(self.folder / CLAIMED)}
        held: dict[str, list[int]] = {}
        for job in jobs:
            if job.is_held and job.index.isdigit() and _is_same(job.command, self.script):
                held.setdefault(job.array, []).append(int(job.index))
        waiting = set(self.waiting())
        for array, indices in held.items():
            if any(
                index in waiting or f"{array}_{index}" in claimed for index in indices
            ):  # else a person holds it
                with contextlib.suppress(Refused):  # it stays held: the next caller tries again
                    self.complete(array, indices)
        claimed = {path.name for path in list_files(self.folder / CLAIMED)}
        # after the look at claims: a job is there before its claims are
        now = {job.id: job for job in slurm_queue.queue()} if claimed else {}
        for task in claimed:
            run = self.run(index_of(task))
            if task in now and now[task].is_held:
                continue
            if task in now or _has_begun(run, task):
                _rename(self.folder / CLAIMED / task, self.folder / SUBMITTED / task)
            else:
                records.remove_submission(run)
                _rename(self.folder / CLAIMED / task, self.folder / WAITING / str(index_of(task)))

    def withdraw_all(self, indices: list[int]) -> list[int]:
        """Take points out, with the jobs that a killed process left on hold for them; return those that
        waited."""
        withdrawn = [index for index in indices if self.withdraw(index)]
        ids = {str(index) for index in withdrawn}
        with contextlib.suppress(Refused):
            held = [
                job
                for job in slurm_queue.queue()
                if job.is_held and job.index in ids and _is_same(job.command, self.script)
            ]
            if held:
                slurm_queue.run_slurm("scancel", *(job.id for job in held))
        return withdrawn

    def pause(self, reason: str = NONE) -> None:
        """Let nobody submit the points that wait until `go_on`.

        Args:
            reason: for people; "": all jobs before were cancelled.
        """
        (self.folder / PROBLEM).write_text(f"{reason}\n", encoding="utf-8")
        _rename(self.folder / layout.WAVES, self.folder / PAUSED)

    def go_on(self) -> None:
        _rename(self.folder / PAUSED, self.folder / layout.WAVES)

    def awaits_failed_job(self) -> bool:
        """Return whether the job that the points were to start after has failed."""
        plan = Plan.read(self.folder / (PAUSED if self.is_paused else layout.WAVES))
        return bool(plan.after and slurm_queue.states_of(plan.after) & FAILED_JOB_STATES)

    def start_without_awaiting(self) -> None:
        """Take the job that the points were to start after out of the plan."""
        path = self.folder / (PAUSED if self.is_paused else layout.WAVES)
        layout.write_json(path, asdict(replace(Plan.read(path), after=NONE)))

    @property
    def is_paused(self) -> bool:
        return (self.folder / PAUSED).exists()

    def last_wave(self) -> list[Path]:
        """Return the folders of the runs that were submitted last."""
        tasks = [path.name for path in list_files(self.folder / SUBMITTED)]
        newest = max((int(task.partition("_")[0]) for task in tasks), default=0)
        return [self.run(index_of(task)) for task in tasks if task.startswith(f"{newest}_")]

    def problem(self) -> str:
        """Return why Slurm refused the last wave; "" if it did not."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / PROBLEM).read_text(encoding="utf-8").strip()
        return ""

    def close(self) -> None:
        """Forget the plan once no point waits."""
        if not self.waiting() and not list_files(self.folder / CLAIMED):
            for name in (layout.WAVES, PAUSED):
                (self.folder / name).unlink(missing_ok=True)


def sbatch_held(script: Path, indices: list[int], dependencies: list[str]) -> list[str]:
    """Return the command that submits tasks of an array's script on hold."""
    wait = [f"--dependency={','.join(dependencies)}"] if dependencies else []
    if any(dependency.startswith("afterok:") for dependency in dependencies):
        wait.append("--kill-on-invalid-dep=yes")
    return ["sbatch", "--parsable", "--hold", f"--array={_spans(indices)}", *wait, str(script)]


def _spans(indices: list[int]) -> str:
    """Write indices as Slurm's array specification: 3-5,9."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def open_submissions(runs_dir: Path) -> list[SweepSubmission]:
    """Return this user's submissions of which points wait, oldest first."""
    found = []
    for path in (runs_dir / layout.SWEEPS).glob(f"*/*/{layout.WAVES}"):
        with contextlib.suppress(
            OSError, ValueError, TypeError
        ):  # closed in this moment, or of another version
            if Plan.read(path).user == os.getuid():
                found.append((path.stat().st_mtime, SweepSubmission(path.parent)))
    return [submission for _, submission in sorted(found, key=lambda pair: (pair[0], str(pair[1].folder)))]


@dataclass(frozen=True)
class Point:
    """A point that waits for a place, or that a held job is being prepared for.

    Attributes:
        task: that job's; "": none yet.
    """

    submission: SweepSubmission
    index: int
    task: str = NONE


def waiting_points(runs_dir: Path) -> dict[str, Point]:
    """Return the points that have no job yet, or no released one, by run id; of paused sweeps too."""
    found = {}
    for name in (layout.WAVES, PAUSED):
        for path in (runs_dir / layout.SWEEPS).glob(f"*/*/{name}"):
            submission = SweepSubmission(path.parent)
            for index in submission.waiting():
                found[submission.run(index).name] = Point(submission, index)
            for task in list_files(
                submission.folder / CLAIMED
            ):  # after those that wait, whose next state this is
                found[submission.run(index_of(task.name)).name] = Point(
                    submission, index_of(task.name), task.name
                )
    return found


def index_of(task: str) -> int:
    return int(task.partition("_")[2])


def _has_begun(run: Path, task: str) -> bool:
    """Whether the task has started the run, or a person has cancelled it."""
    if (run / layout.OUTCOME).exists():
        return True
    with contextlib.suppress(FileNotFoundError):
        return f'"{task}"' in (run / layout.ATTEMPTS).read_text(encoding="utf-8")
    return False


def _is_same(command: str, script: Path) -> bool:
    return os.path.realpath(command) == os.path.realpath(str(script))


def _rename(source: Path, target: Path) -> bool:
    """Rename a file; return whether this process was the one to do it."""
    try:
        source.rename(target)
    except FileNotFoundError:
        return False
    return True


def list_files(folder: Path) -> list[Path]:
    """Return the files of a folder; none if it is not there. NFS leaves .nfs… in the place of open files that
    are removed."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []
