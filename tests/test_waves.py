"""The points of a sweep are submitted when Slurm's queue has room, and each starts only once.

This must hold even if a process is killed at any moment. Slurm is an object in memory here;
tests/slurm/test_waves.py uses the real one.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune.config.cluster import ClusterConfig
from finetune.config.site import QueueLimits, SiteConfig
from finetune.job import slurm_queue, wave_files, waves
from finetune.job.slurm_command import CommandError
from finetune.job.slurm_queue import QueuedJob
from finetune.job.wave_files import Limit, Plan, SweepSubmission
from finetune.launch import places
from finetune.runs import layout

REFUSAL = (
    "sbatch: error: QOSMaxSubmitJobPerUserLimit sbatch: error: Batch job submission failed: "
    "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)


class Killed(BaseException):
    """An exception that stands in for kill -9."""


class Slurm:
    """A simulated queue that takes `limit` jobs, and records the run of each job that starts."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.jobs: dict[str, QueuedJob] = {}
        self.started: list[str] = []
        self.calls = 0
        self.dependencies: list[str] = []
        self.states = {"77": "PENDING"}  # jobs that are not points of the sweep
        self.kill_before = self.kill_after = -1
        self._lock = threading.Lock()

    def __call__(self, *command: str) -> str:
        with self._lock:
            self.calls += 1
            if self.calls == self.kill_before:
                raise Killed
            answer = str(getattr(self, f"_{command[0]}")(*command[1:]))
            if self.calls == self.kill_after:
                raise Killed
            return answer

    def _squeue(self, *options: str) -> str:
        if "--jobs" in options:
            return self.states[options[options.index("--jobs") + 1]]
        return "\n".join("|".join(vars(job).values()) for job in self.jobs.values())

    def _sbatch(self, *options: str) -> str:
        self.dependencies = [option for option in options if "dep" in option]
        (spec,) = (option.partition("=")[2] for option in options if option.startswith("--array="))
        indices = []
        for span in spec.split(","):
            first, _, last = span.partition("-")
            indices += range(int(first), int(last or first) + 1)
        if len(self.jobs) + len(indices) > self.limit:
            raise CommandError(REFUSAL)
        array = str(100 + self.calls)
        for index in indices:
            job = QueuedJob(array, str(index), "PENDING", "0", "debug", "few", "nn1k", "sweep", options[-1])
            self.jobs[job.id] = job
        return array

    def _scontrol(self, verb: str, array: str) -> str:
        assert verb == "release"
        for job in [job for job in self.jobs.values() if job.array == array]:
            self.jobs[job.id] = QueuedJob(**{**vars(job), "priority": "1"})
        return ""

    def _scancel(self, *tasks: str) -> str:
        for task in tasks:
            self.jobs.pop(task, None)
        return ""

    def run_released(self, sweep: Sweep) -> list[str]:
        """Start the jobs of the sweep that are not on hold; return the ids of its running jobs."""
        for task in [job.id for job in self.jobs.values() if job.name == "sweep" and job.priority != "0"]:
            if self.jobs[task].state == "RUNNING":
                continue
            run = sweep.submission.run(int(task.partition("_")[2]))
            assert (run / "jobs" / f"{task}_submitted.pkl").is_file(), (
                "the job runs before its point is in place"
            )
            assert f'"{task}"' in (run / "submission.json").read_text()
            with (run / "attempts.jsonl").open("a") as file:
                file.write(f'{{"job": "{task}"}}\n')
            self.started.append(run.name)
            self.jobs[task] = QueuedJob(**{**vars(self.jobs[task]), "state": "RUNNING"})
        return [job.id for job in self.jobs.values() if job.name == "sweep" and job.state == "RUNNING"]


class Sweep:
    """A folder of runs, and a submitted sweep. All its points wait; none is a job yet."""

    def __init__(
        self, runs_dir: Path, num_points: int, limit: int, parallel: int = 99, after: str = ""
    ) -> None:
        self.runs_dir = runs_dir
        self.submission = SweepSubmission(runs_dir / "sweeps" / "s" / "0")
        points = self.submission.folder / "points"
        points.mkdir(parents=True)
        (self.submission.folder / "submit.sh").touch()
        for index in range(num_points):
            jobs = runs_dir / f"run-{index}" / "jobs"
            jobs.mkdir(parents=True)
            (jobs / layout.WAITING_PICKLE).touch()
            (points / str(index)).symlink_to(os.path.relpath(jobs, points))
        plan = Plan("sweep", parallel, [Limit(limit, "qos few", qos="few")], "ab", after, os.getuid())
        self.submission.set_up(plan, list(range(num_points)), [])

    @property
    def names(self) -> list[str]:
        return sorted(f"run-{path.name}" for path in (self.submission.folder / "points").iterdir())


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    queue = Slurm(limit=4)
    monkeypatch.setattr(slurm_queue, "run_slurm", queue)
    monkeypatch.setattr(waves, "PAUSE", 0.01)
    return queue


def run_to_end(slurm: Slurm, sweep: Sweep) -> None:
    """Run jobs until none is left. Each job submits waiting points before it ends."""
    waves.submit_waiting(sweep.runs_dir)
    while ids := slurm.run_released(sweep):
        for task in ids:
            waves.submit_waiting(sweep.runs_dir, ending=task)
            slurm("scancel", task)


@pytest.mark.parametrize("how", ["before", "after", "rename"])
@pytest.mark.parametrize("moment", range(1, 9))
def test_each_point_starts_once_whichever_submitter_is_killed_at_whichever_moment(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, moment: int
) -> None:
    sweep = Sweep(tmp_path, num_points=9, limit=4)
    if how == "rename":
        left = [moment]
        rename = wave_files._rename

        def rename_or_die(source: Path, target: Path) -> bool:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return rename(source, target)

        monkeypatch.setattr(wave_files, "_rename", rename_or_die)
    else:
        setattr(slurm, f"kill_{how}", moment)
    try:
        run_to_end(slurm, sweep)
        raise AssertionError("nothing was killed")
    except Killed:
        pass
    for task in slurm.run_released(sweep):  # these jobs run, but do not submit others
        slurm("scancel", task)
    run_to_end(slurm, sweep)
    assert sorted(slurm.started) == sweep.names
    assert not slurm.jobs
    assert not wave_files.open_submissions(tmp_path)


@pytest.mark.parametrize("found_out", [True, False])
def test_a_point_that_is_cancelled_after_its_submitter_was_killed_never_starts(
    slurm: Slurm, tmp_path: Path, found_out: bool
) -> None:
    sweep = Sweep(tmp_path, num_points=3, limit=4)
    slurm.kill_after = 2  # Slurm accepts the array, but its id is lost
    with pytest.raises(Killed):
        waves.submit_waiting(tmp_path)
    assert len(slurm.jobs) == 3
    if found_out:
        assert sweep.submission.withdraw_all([1, 2]) == [1, 2]
    else:
        assert sweep.submission.withdraw(1)
        assert sweep.submission.withdraw(2)
    assert sweep.submission.withdraw_all([1, 2]) == []
    run_to_end(slurm, sweep)
    assert slurm.started == ["run-0"]
    assert not slurm.jobs


def test_a_job_starts_after_the_job_that_made_room_for_it_and_after_its_corpus_is_built(
    slurm: Slurm, tmp_path: Path
) -> None:
    sweep = Sweep(tmp_path, num_points=4, limit=3, after="77")
    waves.submit_waiting(tmp_path)
    assert slurm.dependencies == ["--dependency=afterok:77", "--kill-on-invalid-dep=yes"]
    # Job 7 belongs to another run in the folder, which did not wait for the corpus.
    waves.submit_waiting(tmp_path, ending="7")
    assert slurm.dependencies == ["--dependency=afterany:7,afterok:77", "--kill-on-invalid-dep=yes"]
    slurm.states["77"] = "COMPLETED"
    left, ending, _ = slurm.run_released(sweep)
    del slurm.jobs[left]
    waves.submit_waiting(tmp_path, ending=ending)
    assert slurm.dependencies == [f"--dependency=afterany:{ending}"]


def test_after_the_corpus_has_failed_no_point_starts_until_a_retry(slurm: Slurm, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, num_points=2, limit=9, after="77")
    slurm.states["77"] = "FAILED"
    assert waves.submit_waiting(tmp_path, ending="7") == 0
    assert sweep.submission.problem() == "job 77, which should have built the corpus, failed"
    assert sweep.submission.is_paused
    assert sweep.submission.awaits_failed_job()
    sweep.submission.start_without_awaiting()
    sweep.submission.resume()
    assert waves.submit_waiting(tmp_path) == 2
    assert slurm.dependencies == []


def test_jobs_that_end_together_neither_strand_the_sweep_nor_submit_a_point_twice(
    slurm: Slurm, tmp_path: Path
) -> None:
    """Job 8, which does not belong to the sweep, takes the free place in the queue.

    A job of the sweep that ends can then submit no point until another job of the sweep has left.
    """
    sweep = Sweep(tmp_path, num_points=12, limit=4)
    other = QueuedJob("7", "N/A", "RUNNING", "1", "debug", "few", "nn1k", "other", "/home/me/job.sh")
    slurm.jobs["7"] = other
    waves.submit_waiting(tmp_path)
    slurm.jobs["8"] = QueuedJob(**{**vars(other), "array": "8"})
    assert len(slurm.jobs) == slurm.limit

    def end(task: str) -> None:
        waves.submit_waiting(tmp_path, ending=task)
        time.sleep(0.05)
        slurm("scancel", task)

    while ids := slurm.run_released(sweep):
        ending = [threading.Thread(target=end, args=(task,)) for task in ids]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join()
    assert sorted(slurm.started) == sweep.names
    assert set(slurm.jobs) == {"7", "8"}


def test_with_a_limit_of_one_a_command_submits_the_next_point(slurm: Slurm, tmp_path: Path) -> None:
    slurm.limit = 1
    sweep = Sweep(tmp_path, num_points=2, limit=1)
    assert waves.submit_waiting(tmp_path) == 1
    (task,) = slurm.run_released(sweep)
    began = time.monotonic()
    assert waves.submit_waiting(tmp_path, ending=task) == 0
    assert time.monotonic() - began < 1, "the job must not wait for a place, as only its own end can free one"
    slurm("scancel", task)
    assert waves.submit_waiting(tmp_path) == 1


def test_fewer_points_are_submitted_if_slurm_takes_less_than_documented(slurm: Slurm, tmp_path: Path) -> None:
    slurm.limit = 3
    sweep = Sweep(tmp_path, num_points=9, limit=50)
    assert waves.submit_waiting(tmp_path) == 2  # arrays of 9 and of 4 points are refused
    slurm.limit = 0
    assert waves.submit_waiting(tmp_path) == 0
    assert "QOSMaxSubmitJobPerUserLimit" in sweep.submission.problem()
    slurm.limit = 99
    assert waves.submit_waiting(tmp_path) == 7
    assert sweep.submission.problem() == ""


def test_a_point_whose_folder_was_removed_is_skipped(slurm: Slurm, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, num_points=3, limit=9)
    (tmp_path / "run-1" / "jobs" / layout.WAITING_PICKLE).unlink()
    assert waves.submit_waiting(tmp_path) == 3 - 1
    assert not wave_files.open_submissions(tmp_path)
    assert sorted(job.index for job in slurm.jobs.values()) == ["0", "2"]
    assert sweep.submission.waiting() == []


def test_another_users_sweep_is_not_touched(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Sweep(tmp_path, num_points=3, limit=9)
    monkeypatch.setattr(waves.os, "getuid", lambda: 4711)
    assert waves.submit_waiting(tmp_path) == 0


def test_the_lock_of_a_killed_process_is_taken_over_but_not_that_of_a_live_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweeps").mkdir()
    lock = tmp_path / "sweeps" / layout.WAVES_LOCK
    gone = subprocess.Popen(["true"])
    gone.wait()
    lock.write_text(f"{waves.socket.gethostname()} {gone.pid}\n")
    with waves.lock(tmp_path):
        assert lock.exists()
    monkeypatch.setattr(waves, "LOCK_SECONDS", 0.2)
    lock.write_text("another-node 1\n")
    with pytest.raises(TimeoutError), waves.lock(tmp_path):
        pass
    old = time.time() - waves.LEASE_SECONDS - 5
    os.utime(lock, (old, old))
    with waves.lock(tmp_path):
        pass
    assert list((tmp_path / "sweeps").iterdir()) == []


def job(number: int, **changes: str) -> QueuedJob:
    values = {
        "state": "RUNNING",
        "priority": "1",
        "partition": "gpu",
        "qos": "few",
        "account": "a",
        "name": "sweep",
    }
    return QueuedJob(array=str(number), index="0", command="/runs/x", **{**values, **changes})


QUEUE = [
    job(1),
    job(2),
    job(3, name="other"),
    job(4, qos="many", name="other"),
    job(5, partition="cpu", name="other"),
]


@dataclass(frozen=True)
class Count:
    """Slurm's limits, and the number of points that a sweep may submit while QUEUE is queued.

    Attributes:
        expected: number of points that the sweep may submit.
        parallel: number of the sweep's points that may be queued or run at once.
        ending: id of the job that submits the points before it ends; empty if no job submits
            them.
        name: name of the sweep's jobs.
    """

    limits: list[Limit]
    expected: int
    parallel: int = 99
    ending: str = ""
    name: str = "sweep"


COUNTS = {
    "one place stays free": Count([Limit(20, "")], 14),
    "also if it is the only one": Count([Limit(6, "")], 0),
    "not if the sweep has no job": Count([Limit(6, "")], 1, name="new"),
    "none": Count([Limit(5, "")], 0),
    "fewer than none": Count([Limit(2, "")], 0),
    "a job that ends needs no free one": Count([Limit(6, "")], 1, ending="1_0"),
    "and still counts": Count([Limit(5, "")], 0, ending="1_0"),
    "of a quality of service": Count([Limit(6, "", qos="few")], 2, ending="1_0"),
    "of a partition": Count([Limit(6, "", partition="cpu")], 5, ending="1_0"),
    "the tightest": Count([Limit(99, ""), Limit(3, "", account="a", partition="cpu")], 2, ending="1_0"),
    "points that run at once": Count([Limit(99, "")], 3, parallel=5),
    "the one that ends makes room": Count([Limit(99, "")], 1, parallel=2, ending="1_0"),
    "no limit is known": Count([], wave_files.POINTS_WITHOUT_LIMITS, ending="1_0"),
}


@pytest.mark.parametrize("case", COUNTS.values(), ids=COUNTS)
def test_a_wave_has_as_many_points_as_the_queue_takes(case: Count) -> None:
    plan = Plan(case.name, case.parallel, case.limits, "ab", "", 0)
    assert plan.free_places(QUEUE, case.ending) == case.expected


ANSWERS = {
    "show assoc": ["nn1k||few|30", "nn1k|cpu|few|7"],
    "show qos few": ["20"],
    "show qos gpus": ["10"],
    "show partition": ["PartitionName=gpu", "   AllocNodes=ALL Default=NO QoS=gpus"],
    "show config": ["MaxArraySize            = 1001"],
}


@pytest.mark.parametrize("denied", [False, True])
def test_limits_come_from_the_profile_and_from_slurms_accounting(
    monkeypatch: pytest.MonkeyPatch, denied: bool
) -> None:
    def answer(*command: str) -> list[str] | None:
        if denied:
            return None
        return next((lines for key, lines in ANSWERS.items() if key in " ".join(command)), None)

    monkeypatch.setattr(places, "slurm_lines", answer)
    site = SiteConfig(queues={"gpu": QueueLimits(max_submitted=210)}, max_array_size=500)
    cluster = ClusterConfig(
        name="site", scheduler="slurm", account="nn1k", partition="gpu", site=site, timeout_min=60
    )
    limits = places.submit_limits(cluster)
    found = {(limit.most, limit.partition, limit.qos, limit.account) for limit in limits}
    expected = {(210, "gpu", "", "")}
    if not denied:
        expected |= {(30, "", "", "nn1k"), (20, "", "few", ""), (10, "gpu", "", "")}
    assert found == expected
    assert places.largest_array(cluster) == 500
    site.max_array_size = None
    assert places.largest_array(cluster) == (1000 if denied else 1001)


def test_a_job_is_submitted_with_the_environment_in_which_the_script_started() -> None:
    """If not, each job that submits would add the script's changes to PYTHONPATH again."""
    program = (
        "from finetune.job.slurm_queue import submission_environment as e; "
        "print(e()['ADDED'], [k for k in e() if 'SLURM' in k])"
    )
    script = f"export ADDED=again:$ADDED; {sys.executable} -c {shlex.quote(program)}; true"
    source = str(Path(waves.__file__).parents[2])
    environment = {
        "ADDED": "once",
        "SLURM_JOB_ID": "7",
        "SLURM_CONF": "/x",
        "PYTHONPATH": source,
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "once ['SLURM_CONF']"
