"""Waves: a sweep with more points than Slurm takes at a time is submitted in parts, as places become free.

    runs/sweeps/<id>/<n>/waves.json                the limits that hold; it exists while points wait
    runs/sweeps/<id>/<n>/waiting/<index>           a point that waits for a place; it holds its run's id
    runs/sweeps/<id>/<n>/claimed/<job>_<index>     the same file: a held job is being prepared for the point
    runs/sweeps/<id>/<n>/submitted/<job>_<index>   the same file: that job was released

`submit_waiting` moves points along. Every job of the runs folder calls it when it ends (job/batch_script.py),
and so do `finetune status`, `retry`, `cancel` and `wait=true`. A point changes hands by renaming its file,
which succeeds exactly once, on whatever node; a job is held until all its points have their files. So a
process that is killed at any moment leaves a held job, and the next caller completes it. The lock below only
keeps callers from counting the same free place twice.

Only the standard library, from Python 3.8 on: it runs on the batch host, outside of a container.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from finetune.job.slurm_command import Refused, run_command
from finetune.runs.json_files import write_json

PLAN, SCRIPT, POINTS = "waves.json", "submit.sh", "points"
PAUSED = "paused.json"  # the plan of a sweep that nobody moves on until a person retries it
WAITING, CLAIMED, SUBMITTED = "waiting", "claimed", "submitted"
PICKLE = "waiting.pkl"  # in a run's jobs/: becomes <job id>_submitted.pkl
PROBLEM = "problem.txt"  # why Slurm refused the last wave
LOCK, ENDING = ".waves.lock", ".ending"  # in runs/sweeps
TOO_MANY = re.compile(r"job submit limit|Invalid job array specification")  # Slurm's words for "fewer, perhaps"
COMMAND_SECONDS = 60.0
LOCK_SECONDS = 120.0  # that a caller waits for the lock
LEASE_SECONDS = 300.0  # after which a lock is taken for that of a process that was killed
LAST_SECONDS, PAUSE = 60.0, 2.0  # that the last job waits for jobs that are ending beside it
ENDED_BADLY = {
    "BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip
BLIND_POINTS = 2  # that a job submits at its end where no limit is known: its own place, and one more
NONE = ""


@dataclass(frozen=True)
class QueuedJob:
    """A job of this user, or a task of an array, that waits or runs."""

    array: str
    index: str
    state: str
    priority: str
    partition: str
    qos: str
    account: str
    name: str
    command: str

    @property
    def id(self) -> str:
        return f"{self.array}_{self.index}" if self.index.isdigit() else self.array

    @property
    def is_held(self) -> bool:
        return self.state == "PENDING" and self.priority == "0"

    @property
    def can_end(self) -> bool:
        """Whether the last lines of its batch script are still to come."""
        return self.state != "COMPLETING" and not self.is_held


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
            job.state != "COMPLETING"
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
            ending: the job that asks, at its end. It still counts for Slurm. Any other caller leaves one place
                free, so that a job that ends can submit the next point while it counts itself, unless the sweep
                would have no job then.
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
class Submission:
    """One folder runs/sweeps/<id>/<n> of which points wait."""

    folder: Path

    @property
    def plan(self) -> Plan:
        return Plan.read(self.folder / PLAN)

    @property
    def script(self) -> Path:
        return self.folder / SCRIPT

    def waiting(self) -> list[int]:
        return sorted(int(path.name) for path in _listed(self.folder / WAITING))

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
            (self.folder / CLAIMED / task).write_text(f"{self.run(_index(task)).name}\n", encoding="utf-8")
        write_json(self.folder / PLAN, asdict(plan))

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
                job = run_slurm(*sbatch_held(self.script, indices, dependencies)).partition(";")[0]
            except Refused as refusal:
                (self.folder / PROBLEM).write_text(f"{refusal}\n", encoding="utf-8")
                indices = indices[: len(indices) // 2] if TOO_MANY.search(str(refusal)) else []
                continue
            (self.folder / PROBLEM).unlink(missing_ok=True)
            return self.complete(job, indices)
        return 0

    def _has_run(self, index: int) -> bool:
        """Return whether the point's folder is there; take the point out if somebody has removed it."""
        found = (self.run(index) / "jobs" / PICKLE).is_file()
        if not found:
            self.withdraw(index)
        return found

    def complete(self, job: str, indices: list[int]) -> int:
        """Give each task of a held array what it needs, release the array, and return the number of its points.
        Any process may do this, also two at a time."""
        code = self.plan.code
        mine = [index for index in indices if self._claim(job, index)]
        if lost := [f"{job}_{index}" for index in indices if index not in mine]:
            with contextlib.suppress(Refused):
                run_slurm("scancel", *lost)
        for index in mine:
            self._equip(index, f"{job}_{index}", code)
        if mine:
            run_slurm("scontrol", "release", job)
        self.settle(job)
        return len(mine)

    def settle(self, job: str) -> None:
        """Write that a job was released."""
        for path in _listed(self.folder / CLAIMED):
            if path.name.startswith(f"{job}_"):
                _rename(path, self.folder / SUBMITTED / path.name)

    def _claim(self, job: str, index: int) -> bool:
        task = f"{job}_{index}"
        if _rename(self.folder / WAITING / str(index), self.folder / CLAIMED / task):
            return True
        return any((self.folder / name / task).exists() for name in (CLAIMED, SUBMITTED))

    def _equip(self, index: int, task: str, code: str) -> None:
        run = self.run(index)
        pickle = run / "jobs" / f"{task}_submitted.pkl"
        temporary = pickle.with_name(f".{pickle.name}.{os.getpid()}")
        shutil.copyfile(str(run / "jobs" / PICKLE), str(temporary))
        os.replace(temporary, pickle)
        attempt = {"job_id": task, "host": socket.gethostname(), "scheduler": "slurm", "code": code}
        write_json(run / "attempt.json", attempt)

    def recover(self, jobs: list[QueuedJob]) -> None:
        """Complete the jobs that a killed process left behind, and take back points whose job is gone."""
        claimed = {path.name for path in _listed(self.folder / CLAIMED)}
        held: dict[str, list[int]] = {}
        for job in jobs:
            if job.is_held and job.index.isdigit() and _is_same(job.command, self.script):
                held.setdefault(job.array, []).append(int(job.index))
        waiting = set(self.waiting())
        for array, indices in held.items():
            if any(index in waiting or f"{array}_{index}" in claimed for index in indices):  # else a person holds it
                with contextlib.suppress(Refused):  # it stays held: the next caller tries again
                    self.complete(array, indices)
        claimed = {path.name for path in _listed(self.folder / CLAIMED)}
        # after the look at claims: a job is there before its claims are
        now = {job.id: job for job in queue()} if claimed else {}
        for task in claimed:
            run = self.run(_index(task))
            if task in now and now[task].is_held:
                continue
            if task in now or _has_begun(run, task):
                _rename(self.folder / CLAIMED / task, self.folder / SUBMITTED / task)
            else:
                (run / "attempt.json").unlink(missing_ok=True)
                _rename(self.folder / CLAIMED / task, self.folder / WAITING / str(_index(task)))

    def withdraw_all(self, indices: list[int]) -> list[int]:
        """Take points out, with the jobs that a killed process left on hold for them; return those that waited."""
        withdrawn = [index for index in indices if self.withdraw(index)]
        ids = {str(index) for index in withdrawn}
        with contextlib.suppress(Refused):
            held = [job for job in queue() if job.is_held and job.index in ids and _is_same(job.command, self.script)]
            if held:
                run_slurm("scancel", *(job.id for job in held))
        return withdrawn

    def pause(self, reason: str = NONE) -> None:
        """Let nobody submit the points that wait until `go_on`.

        Args:
            reason: for people; "": all jobs before were cancelled.
        """
        (self.folder / PROBLEM).write_text(f"{reason}\n", encoding="utf-8")
        _rename(self.folder / PLAN, self.folder / PAUSED)

    def go_on(self) -> None:
        _rename(self.folder / PAUSED, self.folder / PLAN)

    def awaits_failed_job(self) -> bool:
        """Return whether the job that the points were to start after has failed."""
        plan = Plan.read(self.folder / (PAUSED if self.is_paused else PLAN))
        return bool(plan.after and states_of(plan.after) & ENDED_BADLY)

    def start_without_awaiting(self) -> None:
        """Take the job that the points were to start after out of the plan."""
        path = self.folder / (PAUSED if self.is_paused else PLAN)
        write_json(path, asdict(replace(Plan.read(path), after=NONE)))

    @property
    def is_paused(self) -> bool:
        return (self.folder / PAUSED).exists()

    def last_wave(self) -> list[Path]:
        """Return the folders of the runs that were submitted last."""
        tasks = [path.name for path in _listed(self.folder / SUBMITTED)]
        newest = max((int(task.partition("_")[0]) for task in tasks), default=0)
        return [self.run(_index(task)) for task in tasks if task.startswith(f"{newest}_")]

    def problem(self) -> str:
        """Return why Slurm refused the last wave; "" if it did not."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / PROBLEM).read_text(encoding="utf-8").strip()
        return ""

    def close(self) -> None:
        """Forget the plan once no point waits."""
        if not self.waiting() and not _listed(self.folder / CLAIMED):
            for name in (PLAN, PAUSED):
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


def open_submissions(runs_dir: Path) -> list[Submission]:
    """Return this user's submissions of which points wait, oldest first."""
    found = []
    for path in (runs_dir / "sweeps").glob(f"*/*/{PLAN}"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # closed in this moment, or of another version
            if Plan.read(path).user == os.getuid():
                found.append((path.stat().st_mtime, Submission(path.parent)))
    return [submission for _, submission in sorted(found, key=lambda pair: (pair[0], str(pair[1].folder)))]


@dataclass(frozen=True)
class Point:
    """A point that waits for a place, or that a held job is being prepared for.

    Attributes:
        task: that job's; "": none yet.
    """

    submission: Submission
    index: int
    task: str = NONE


def waiting_points(runs_dir: Path) -> dict[str, Point]:
    """Return the points that have no job yet, or no released one, by run id; of paused sweeps too."""
    found = {}
    for name in (PLAN, PAUSED):
        for path in (runs_dir / "sweeps").glob(f"*/*/{name}"):
            submission = Submission(path.parent)
            for index in submission.waiting():
                found[submission.run(index).name] = Point(submission, index)
            for task in _listed(submission.folder / CLAIMED):  # after those that wait, whose next state this is
                found[submission.run(_index(task.name)).name] = Point(submission, _index(task.name), task.name)
    return found


# --- moving on -------------------------------------------------------------------------------------------------------


def submit_waiting(runs_dir: Path, ending: str = NONE) -> int:
    """Submit as many waiting points of a runs folder's sweeps as there are places for; return their number.

    Args:
        ending: the job that calls this in its last lines. If no other job of the runs folder is left to move the
            sweeps on, it waits a little for places of jobs that are ending at the same time.

    Raises:
        Refused: Slurm does not answer.
        OSError: the folder cannot be written, or another process holds the lock.
    """
    total, deadline = 0, time.monotonic() + LAST_SECONDS
    while open_submissions(runs_dir):
        with lock(runs_dir):
            submitted, is_last = _submit_once(runs_dir, ending)
        total += submitted
        if submitted or not is_last or time.monotonic() > deadline:
            break
        time.sleep(PAUSE)
    return total


def _submit_once(runs_dir: Path, ending: str) -> tuple[int, bool]:
    """Submit what there is room for; return its number, and whether to try again, as ending jobs keep places."""
    jobs = queue()
    leaving = _note_ending(runs_dir, ending, jobs) if ending else set()
    total = 0
    for submission in open_submissions(runs_dir):
        submission.recover(jobs)
        plan = submission.plan
        count = min(len(submission.waiting()), plan.places(jobs, ending))
        awaited = states_of(plan.after) if count and plan.after else set()
        if awaited & ENDED_BADLY:
            submission.pause(f"job {plan.after}, which was to make the corpus, has failed")
            continue
        if count:
            dependencies = [f"afterany:{ending}"] if ending else []  # so that parallel points stay as many as allowed
            if awaited - {"COMPLETED"}:  # a job of another run or sweep may be the one that calls this
                dependencies.append(f"afterok:{plan.after}")
            total += submission.submit(count, dependencies)
            jobs = queue()
        submission.close()
    others = [job for job in movers(jobs, runs_dir) if job.id not in leaving]
    return total, bool(leaving - {ending}) and not others and bool(open_submissions(runs_dir))


def states_of(job: str) -> set[str]:
    """Return Slurm's states of a job, which may be an array; none if Slurm has forgotten it."""
    in_queue = ("squeue", "--noheader", "--states=all", "--jobs", job, "--format", "%T")
    accounted = ("sacct", "--noheader", "--parsable2", "--allocations", "--format", "State", "--jobs", job)
    for command in (in_queue, accounted):
        with contextlib.suppress(Refused):
            if lines := run_slurm(*command).splitlines():
                return {line.split()[0] for line in lines if line.strip()}  # of "CANCELLED by 1000" the first
    return set()


def movers(jobs: list[QueuedJob], runs_dir: Path) -> list[QueuedJob]:
    """Return the jobs of a runs folder that submit waiting points when they end."""
    return [job for job in jobs if job.can_end and _is_under(job.command, runs_dir)]


def _note_ending(runs_dir: Path, ending: str, jobs: list[QueuedJob]) -> set[str]:
    """Note that this job has had its turn; return all jobs in the queue that have had theirs."""
    folder = runs_dir / "sweeps" / ENDING
    folder.mkdir(exist_ok=True)
    (folder / ending).touch()
    queued = {job.id for job in jobs}
    leaving = set()
    for path in _listed(folder):
        if path.name in queued:
            leaving.add(path.name)
        else:
            path.unlink(missing_ok=True)
    return leaving


@contextlib.contextmanager
def lock(runs_dir: Path) -> Iterator[None]:
    """Hold the lock of a runs folder's sweeps: a file that only one process can create, on whatever node.

    Raises:
        TimeoutError: another process has it for longer than LOCK_SECONDS.
    """
    path = runs_dir / "sweeps" / LOCK
    deadline = time.monotonic() + LOCK_SECONDS
    while not _create(path):
        _break_stale(path)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} is held by another process")
        time.sleep(0.1)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    try:
        descriptor = os.open(str(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{socket.gethostname()} {os.getpid()}\n")
    return True


def _break_stale(path: Path) -> None:
    """Remove the lock of a killed process: at once where it can be seen to be gone, else after LEASE_SECONDS. A
    lock broken by mistake costs a refusal by Slurm, not a point: renames decide who submits those."""
    with contextlib.suppress(OSError, ValueError):
        host, pid = path.read_text().split()
        is_gone = host == socket.gethostname() and not Path(f"/proc/{pid}").exists()
        probe = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
        probe.touch()  # its time is the file server's, as the lock's is
        age = probe.stat().st_mtime - path.stat().st_mtime
        if is_gone or age > LEASE_SECONDS:
            os.replace(path, probe)
        probe.unlink(missing_ok=True)


# --- Slurm and files ---------------------------------------------------------------------------------------------------


def queue() -> list[QueuedJob]:
    """Return this user's jobs that wait or run, each task of an array as one.

    Raises:
        Refused: Slurm does not answer.
    """
    columns = "%F|%K|%T|%Q|%P|%q|%a|%j|%o"
    lines = run_slurm("squeue", "--noheader", "--array", "--user", str(os.getuid()), "--format", columns).splitlines()
    return [QueuedJob(*line.split("|", 8)) for line in lines if line.count("|") >= 8]


def run_slurm(*command: str) -> str:
    """Run one of Slurm's commands; return its output.

    Raises:
        Refused: it failed, is not on PATH, or does not answer.
    """
    return run_command(*command, seconds=COMMAND_SECONDS, environment=submission_environment())


def submission_environment() -> dict[str, str]:
    """Return the environment for a job that this process submits: in a batch script that in which the script was
    started, not what the script has made of it, or PYTHONPATH would grow by a folder with every wave."""
    inherited = dict(os.environ)
    if "SLURM_JOB_ID" in inherited:
        with contextlib.suppress(OSError, ValueError):
            raw = Path(f"/proc/{os.getppid()}/environ").read_bytes().decode(errors="surrogateescape")
            script = dict(item.split("=", 1) for item in raw.split("\0") if "=" in item)
            if script.get("SLURM_JOB_ID") == inherited["SLURM_JOB_ID"]:
                inherited = script
    own = ("SLURM_", "SBATCH_EXPORT")
    return {key: value for key, value in inherited.items() if not key.startswith(own) or key == "SLURM_CONF"}


def _index(task: str) -> int:
    return int(task.partition("_")[2])


def _has_begun(run: Path, task: str) -> bool:
    """Whether the task has started the run, or a person has cancelled it."""
    if (run / "outcome.json").exists():
        return True
    with contextlib.suppress(FileNotFoundError):
        return f'"{task}"' in (run / "attempts.jsonl").read_text(encoding="utf-8")
    return False


def _is_same(command: str, script: Path) -> bool:
    return os.path.realpath(command) == os.path.realpath(str(script))


def _is_under(command: str, folder: Path) -> bool:
    return os.path.realpath(command).startswith(os.path.realpath(str(folder)) + os.sep)


def _rename(source: Path, target: Path) -> bool:
    """Rename a file; return whether this process was the one to do it."""
    try:
        source.rename(target)
    except FileNotFoundError:
        return False
    return True


def _listed(folder: Path) -> list[Path]:
    """Return the files of a folder; none if it is not there. NFS leaves .nfs… in the place of open files that are removed."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []
