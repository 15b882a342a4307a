"""Files of a sweep that has more points (runs) than Slurm accepts at a time.

    runs/sweeps/<id>/<n>/waves.json                rules for submission; exists while points wait
    runs/sweeps/<id>/<n>/waiting/<index>           a point that waits; contains its run's id
    runs/sweeps/<id>/<n>/claimed/<job>_<index>     the same file, while the point's job is held
    runs/sweeps/<id>/<n>/submitted/<job>_<index>   the same file, after the job's release

A process submits points in four steps. It submits a held job, that is, one that Slurm does not
start. It claims the job's points by renaming their files; of several processes, on any nodes, only
one can rename a file. It writes the files that the job needs. It releases the job. So a process
that is killed leaves at worst a held job, which the next process releases (`recover`).

This module also runs on the batch host, outside any container. It uses only the standard library
and Python 3.8.
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
from finetune.job.slurm_command import CommandError
from finetune.job.slurm_queue import TOO_MANY, QueuedJob
from finetune.runs import layout, records
from finetune.runs.layout import CLAIMED, PAUSED, POINTS, PROBLEM, SCRIPT, SUBMITTED, WAITING
from finetune.runs.state import FAILED_JOB_STATES, JobState

# An ending job submits this many points if no limit is known: one for its own place, and one more.
POINTS_WITHOUT_LIMITS = 2
NONE = ""


@dataclass(frozen=True)
class Limit:
    """A limit on the number of this user's jobs in Slurm's queue.

    Attributes:
        most: largest number of jobs.
        source: origin of the number, for messages.
        partition, qos, account: only jobs with these values count; "" for any value.
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
    """Rules for submitting the waiting points of a sweep: the content of waves.json.

    Attributes:
        name: the jobs' name in Slurm's queue; all jobs of a sweep share it.
        parallel: cluster.array_parallelism. While points wait, at most this many points of the
            sweep are in the queue.
        limits: Slurm's limits on the user's jobs, as far as they are known.
        code: digest of the code that the jobs import.
        after: id of a job that must complete before a point starts; "": none.
        user: id of the user who submitted the sweep.
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

    def free_places(self, jobs: list[QueuedJob], ending: str = NONE) -> int:
        """Return how many points may be submitted now.

        A job that is about to end submits a point while Slurm still counts the job itself. For this
        point, all other callers leave one place in the queue free. They use the last free place
        only if the sweep has no job in the queue.

        Args:
            jobs: this user's jobs in the queue.
            ending: id of the calling job if it is about to end; "" for other callers.
        """
        in_queue = sum(job.name == self.name and job.id != ending for job in jobs)
        if not self.limits:
            free = POINTS_WITHOUT_LIMITS if in_queue or ending else self.parallel
        else:
            free = min(limit.free(jobs) for limit in self.limits)
            if not ending:
                free = max(0 if in_queue else min(free, 1), free - 1)
        return max(0, min(free, self.parallel - in_queue))


@dataclass(frozen=True)
class SweepSubmission:
    """The points of a sweep that share a batch script. Some are submitted, the others wait.

    Attributes:
        folder: runs/sweeps/<id>/<n>, with the script and the files that show which points wait.
    """

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
        """Record that points wait. After this, any process may submit them.

        Args:
            indices: indices of the points that wait.
            tasks: ids, <job>_<index>, of the points whose job is submitted already, but still held.
        """
        for name in (WAITING, CLAIMED, SUBMITTED):
            (self.folder / name).mkdir()
        for index in indices:
            (self.folder / WAITING / str(index)).write_text(f"{self.run(index).name}\n", encoding="utf-8")
        for task in tasks:
            (self.folder / CLAIMED / task).write_text(f"{self.run(index_of(task)).name}\n", encoding="utf-8")
        layout.write_json(self.folder / layout.WAVES, asdict(plan))

    def withdraw(self, index: int) -> bool:
        """Withdraw a waiting point, so that no process submits it; return False if it does not wait."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / WAITING / str(index)).unlink()
            return True
        return False

    def submit(self, count: int, dependencies: list[str]) -> int:
        """Submit waiting points as one job array, and return the number of submitted points.

        If Slurm refuses the array because it has too many points, half as many are tried, and so
        on. After any other refusal, 0 is returned. Slurm's message is written into problem.txt.

        Args:
            count: largest number of points to submit.
            dependencies: Slurm's conditions for the start of the job, such as afterany:123.
        """
        indices = list(islice((index for index in self.waiting() if self._has_run(index)), count))
        while indices:
            command = sbatch_held(self.script, indices, dependencies)
            try:
                job = slurm_queue.run_slurm(*command).partition(";")[0]
            except CommandError as refusal:
                (self.folder / PROBLEM).write_text(f"{refusal}\n", encoding="utf-8")
                indices = indices[: len(indices) // 2] if TOO_MANY.search(str(refusal)) else []
                continue
            (self.folder / PROBLEM).unlink(missing_ok=True)
            return self.release_array(job, indices)
        return 0

    def _has_run(self, index: int) -> bool:
        """Return whether the run folder of a point is complete; if not, withdraw the point."""
        found = (self.run(index) / layout.JOBS / layout.WAITING_PICKLE).is_file()
        if not found:
            self.withdraw(index)
        return found

    def release_array(self, job: str, indices: list[int]) -> int:
        """Claim the points of a held array, write their job files, and release the array.

        Several processes may call this at once, since each claims points before it writes their
        files. If a point is already claimed for another job, its task in this array is cancelled.

        Returns:
            the number of claimed points.
        """
        code = self.plan.code
        mine = [index for index in indices if self._claim(job, index)]
        lost = [f"{job}_{index}" for index in indices if index not in mine]
        if lost:
            with contextlib.suppress(CommandError):
                slurm_queue.run_slurm("scancel", *lost)
        for index in mine:
            self._write_job_files(index, f"{job}_{index}", code)
        if mine:
            slurm_queue.run_slurm("scontrol", "release", job)
        self.mark_released(job)
        return len(mine)

    def mark_released(self, job: str) -> None:
        """Record that a job was released: move its points from `claimed` to `submitted`."""
        for path in list_files(self.folder / CLAIMED):
            if path.name.startswith(f"{job}_"):
                _rename(path, self.folder / SUBMITTED / path.name)

    def _claim(self, job: str, index: int) -> bool:
        task = f"{job}_{index}"
        if _rename(self.folder / WAITING / str(index), self.folder / CLAIMED / task):
            return True
        return any((self.folder / name / task).exists() for name in (CLAIMED, SUBMITTED))

    def _write_job_files(self, index: int, task: str, code: str) -> None:
        run = self.run(index)
        jobs = run / layout.JOBS
        with layout.replace_atomically(jobs / layout.pickle_of(task)) as temporary:
            shutil.copyfile(str(jobs / layout.WAITING_PICKLE), str(temporary))
        records.Submission(task, socket.gethostname(), "slurm", code).write(run / layout.SUBMISSION)

    def recover(self, jobs: list[QueuedJob]) -> None:
        """Repair the state that a killed process has left.

        A held job that contains waiting or claimed points is released. If a claimed point's job
        has left the queue without starting the point's run, the point waits again.

        Args:
            jobs: this user's jobs in the queue.
        """
        claimed = {path.name for path in list_files(self.folder / CLAIMED)}
        waiting = set(self.waiting())
        for array, indices in self._held_arrays(jobs).items():
            # If no point of an array is waiting or claimed, a person has held the array.
            if any(index in waiting or f"{array}_{index}" in claimed for index in indices):
                with contextlib.suppress(CommandError):  # the next caller tries again
                    self.release_array(array, indices)
        claimed = {path.name for path in list_files(self.folder / CLAIMED)}
        # The queue is read after the claims. As a job is submitted before its points are claimed, a
        # job that is missing from the queue has ended.
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

    def _held_arrays(self, jobs: list[QueuedJob]) -> dict[str, list[int]]:
        """Return, by job id, the indices of the points in each held array that runs this script."""
        held: dict[str, list[int]] = {}
        for job in jobs:
            if job.is_held and job.index.isdigit() and _is_same(job.command, self.script):
                held.setdefault(job.array, []).append(int(job.index))
        return held

    def withdraw_all(self, indices: list[int]) -> list[int]:
        """Withdraw all points in `indices` that still wait; return their indices.

        If a killed process has left held tasks of these points in the queue, cancel the tasks.
        """
        withdrawn = [index for index in indices if self.withdraw(index)]
        ids = {str(index) for index in withdrawn}
        with contextlib.suppress(CommandError):
            held = [
                job.id
                for job in slurm_queue.queue()
                if job.is_held and job.index in ids and _is_same(job.command, self.script)
            ]
            if held:
                slurm_queue.run_slurm("scancel", *held)
        return withdrawn

    def pause(self, reason: str = NONE) -> None:
        """Prevent all processes from submitting the waiting points until `resume` is called.

        Args:
            reason: the reason, as shown to users; "" if all earlier jobs were cancelled.
        """
        (self.folder / PROBLEM).write_text(f"{reason}\n", encoding="utf-8")
        _rename(self.folder / layout.WAVES, self.folder / PAUSED)

    def resume(self) -> None:
        _rename(self.folder / PAUSED, self.folder / layout.WAVES)

    def awaits_failed_job(self) -> bool:
        """Return whether the job that must complete before the points start has failed."""
        plan = Plan.read(self._plan_file())
        return bool(plan.after and slurm_queue.states_of(plan.after) & FAILED_JOB_STATES)

    def start_without_awaiting(self) -> None:
        """Let the points start without waiting for the job that their plan names (Plan.after)."""
        path = self._plan_file()
        layout.write_json(path, asdict(replace(Plan.read(path), after=NONE)))

    def _plan_file(self) -> Path:
        return self.folder / (PAUSED if self.is_paused else layout.WAVES)

    @property
    def is_paused(self) -> bool:
        return (self.folder / PAUSED).exists()

    def last_wave(self) -> list[Path]:
        """Return the run folders of the most recently submitted array."""
        tasks = [path.name for path in list_files(self.folder / SUBMITTED)]
        newest = max((int(task.partition("_")[0]) for task in tasks), default=0)
        return [self.run(index_of(task)) for task in tasks if task.startswith(f"{newest}_")]

    def problem(self) -> str:
        """Return why Slurm refused the last array, or why the points are paused; "" if unknown."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / PROBLEM).read_text(encoding="utf-8").strip()
        return ""

    def close(self) -> None:
        """Remove the plan if no point is waiting or claimed any more."""
        if not self.waiting() and not list_files(self.folder / CLAIMED):
            for name in (layout.WAVES, PAUSED):
                (self.folder / name).unlink(missing_ok=True)


def sbatch_held(script: Path, indices: list[int], dependencies: list[str]) -> list[str]:
    """Return the sbatch command that submits tasks `indices` of an array's script as a held job."""
    wait = [f"--dependency={','.join(dependencies)}"] if dependencies else []
    if any(dependency.startswith("afterok:") for dependency in dependencies):
        wait.append("--kill-on-invalid-dep=yes")
    return ["sbatch", "--parsable", "--hold", f"--array={_spans(indices)}", *wait, str(script)]


def _spans(indices: list[int]) -> str:
    """Return indices in Slurm's array notation, such as 3-5,9."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    return ",".join(texts)


def open_submissions(runs_dir: Path) -> list[SweepSubmission]:
    """Return this user's submissions with waiting points, oldest first, without paused ones."""
    found = []
    for path in (runs_dir / layout.SWEEPS).glob(f"*/*/{layout.WAVES}"):
        # Another process may just have removed the plan, or another version has written it.
        with contextlib.suppress(OSError, ValueError, TypeError):
            if Plan.read(path).user == os.getuid():
                found.append((path.stat().st_mtime, SweepSubmission(path.parent)))
    return [submission for _, submission in sorted(found, key=lambda pair: (pair[0], str(pair[1].folder)))]


@dataclass(frozen=True)
class Point:
    """A sweep point that is not submitted yet, or whose job is still held.

    Attributes:
        index: the point's index in the submission.
        task: id of the point's task in the held job; "" if it is not submitted yet.
    """

    submission: SweepSubmission
    index: int
    task: str = NONE


def waiting_points(runs_dir: Path) -> dict[str, Point]:
    """Return all sweep points without a released job, by run id. Paused sweeps are included."""
    found = {}
    for name in (layout.WAVES, PAUSED):
        for path in (runs_dir / layout.SWEEPS).glob(f"*/*/{name}"):
            submission = SweepSubmission(path.parent)
            for index in submission.waiting():
                found[submission.run(index).name] = Point(submission, index)
            # Claimed points are read after waiting ones. A point that is claimed in between is then
            # found twice rather than not at all.
            for file in list_files(submission.folder / CLAIMED):
                index = index_of(file.name)
                found[submission.run(index).name] = Point(submission, index, file.name)
    return found


def index_of(task: str) -> int:
    return int(task.partition("_")[2])


def _has_begun(run: Path, task: str) -> bool:
    """Return whether a task has started its run, or the run has a recorded end."""
    if (run / layout.OUTCOME).exists():
        return True
    with contextlib.suppress(FileNotFoundError):
        return f'"{task}"' in (run / layout.ATTEMPTS).read_text(encoding="utf-8")
    return False


def _is_same(command: str, script: Path) -> bool:
    return os.path.realpath(command) == os.path.realpath(str(script))


def _rename(source: Path, target: Path) -> bool:
    """Rename a file; return False if it is missing, because another process has renamed it."""
    try:
        source.rename(target)
    except FileNotFoundError:
        return False
    return True


def list_files(folder: Path) -> list[Path]:
    """Return the files of a folder; none if it does not exist.

    Hidden files are left out: NFS keeps a removed file under a name such as .nfs… while it is open.
    """
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []
