"""The states of runs as any shell can observe them, from their folders and from Slurm.

The folder knows what the ranks said; Slurm knows what is queued and what was killed without a word. Slurm
forgets (minutes after the end where there is no accounting), so how a job ended is written into the folder by
whoever sees it first.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass

from data_prep.user_error import UserError
from finetune.job import wave_files
from finetune.job.slurm_command import Refused, run_command
from finetune.runs.folder import RunFolder
from finetune.runs.records import Started
from finetune.runs.state import (
    ALIVE_STATES,
    FAILED_STATES,
    PENDING_JOB_STATES,
    RUNNING_JOB_STATES,
    JobState,
    RunState,
)

UNKNOWN = ""
CANCELLED = str(RunState.CANCELLED)  # the reason where Slurm alone knows that a run was cancelled
SECONDS = 15  # that a Slurm command may take


@dataclass(frozen=True)
class Job:
    """One job, or task of an array, as Slurm tells it."""

    state: str
    reason: str = ""
    restarts: int = 0
    nodes: str = ""
    start: str = ""
    name: str = ""


@dataclass(frozen=True)
class Observed:
    """A run now. `alive`: a job of it runs, or will."""

    run: RunFolder
    state: RunState
    alive: bool
    reason: str = ""
    restarts: int = 0
    nodes: str = ""
    job_id: str = ""

    def describe(self) -> str:
        return f"{self.state} as job {self.job_id}" if self.job_id else self.state


def observe(runs: list[RunFolder]) -> list[Observed]:
    """One for each run, in their order. Slurm is asked once for all of them, if any was given to it."""
    points: dict[str, wave_files.Point] = {}
    for folder in {run.path.parent for run in runs}:
        points.update(wave_files.waiting_points(folder))
    ours = {run.id: (points[run.id].task or None) if run.id in points else _job_of(run) for run in runs}
    jobs = _squeue() if any(job is not None for job in ours.values()) else {}
    if jobs is not None:
        for run in runs:
            if ours[run.id] == UNKNOWN:
                ours[run.id] = _left_behind(run, jobs)
        left = [job for run in runs if (job := ours[run.id]) and job not in jobs and not run.outcome()]
        jobs = {**(_sacct(left) if left else {}), **jobs}
    return [_one(run, ours[run.id], points.get(run.id), jobs) for run in runs]


def _one(
    run: RunFolder, job: str | None, point: wave_files.Point | None, jobs: dict[str, Job] | None
) -> Observed:
    if point is not None and job not in (jobs or {}):
        return Observed(run, RunState.QUEUED, True, _why_no_place(point))
    return _of_slurm(run, job, jobs) if job else _of_this_machine(run)


def _why_no_place(point: wave_files.Point) -> str:
    sweep = point.submission.folder.parent.name
    problem = point.submission.problem()
    if point.submission.is_paused:
        return f"waits: {problem or 'all jobs before it were cancelled'}; `finetune retry {sweep}` submits it"
    return (
        f"waits for a place; Slurm refused the last time: {problem}"
        if problem
        else "waits for a place in the queue"
    )


def _job_of(run: RunFolder) -> str | None:
    """Its job's id in Slurm; UNKNOWN if its submission was interrupted, perhaps after Slurm had taken it;
    None if it has none."""
    submission = run.submission()
    if submission is None:
        interrupted = run.planned_scheduler() == "slurm" and not run.outcome()
        return UNKNOWN if interrupted else None
    return submission.job_id if submission.is_on_slurm else None


def _left_behind(run: RunFolder, jobs: dict[str, Job]) -> str | None:
    """The held job, or whole array, that an interrupted submission left in the queue; it has the run's name,
    or the sweep's."""
    names = {run.id, run.sweep()}
    for job_id, job in list(jobs.items()):
        if job.name in names and job.state in PENDING_JOB_STATES:
            jobs.setdefault(_array(job_id), job)
            return _array(job_id)
    return None


def states(job_ids: list[str]) -> dict[str, str]:
    """Slurm's word for each job; of an array that of its last task to end. "" where it has forgotten.

    Raises:
        UserError: Slurm does not answer.
    """
    queue = _squeue()
    if queue is None:
        raise UserError("Slurm does not answer: try again later")
    known = {**_sacct([job for job in job_ids if not any(_array(key) == job for key in queue)]), **queue}
    found = {}
    for job_id in job_ids:
        tasks = {job.state for key, job in known.items() if _array(key) == job_id}
        order = (
            *RUNNING_JOB_STATES,
            *PENDING_JOB_STATES,
            *sorted(tasks - {JobState.COMPLETED}),
            JobState.COMPLETED,
        )
        found[job_id] = next((str(state) for state in order if state in tasks), "")
    return found


def _array(job_id: str) -> str:
    return job_id.partition("_")[0]


def _of_this_machine(run: RunFolder) -> Observed:
    state = run.state()
    if state == RunState.QUEUED:
        holder = run.turn_holder()  # else the shell that was to start it is gone
        return Observed(
            run, state, alive=holder is not None, reason=f"waits for its turn in {holder}" if holder else ""
        )
    reason = ""
    if state in FAILED_STATES:
        reason = run.failure() or run.cause_of_death() or ""
    return Observed(run, state, alive=state == RunState.RUNNING, reason=reason)


def _of_slurm(run: RunFolder, job_id: str, jobs: dict[str, Job] | None) -> Observed:
    """The queue's word holds while a job is in it; then the folder's; then the accounting's."""
    state, job = run.state(), (jobs or {}).get(job_id)
    restarts = max(job.restarts if job else 0, (run.started() or Started()).restart)
    if jobs is None:
        alive = state in ALIVE_STATES
        return Observed(
            run, state, alive, "Slurm does not answer: this is what the files say", restarts, "", job_id
        )
    if job is not None and job.state in PENDING_JOB_STATES:
        return Observed(run, RunState.QUEUED, True, _why(job), restarts, "", job_id)
    if job is not None and job.state in RUNNING_JOB_STATES:
        # its ranks have ended, its batch script has not: what the folder says comes true in a moment
        return Observed(run, RunState.RUNNING, True, "", restarts, job.nodes, job_id)
    cancelled = job is not None and job.state == JobState.CANCELLED and state != RunState.COMPLETED
    # the ranks wrote nothing of such an end
    if state in ALIVE_STATES or (cancelled and state != RunState.CANCELLED):
        state, reason = _silent_end(run, job)
        run.record_outcome(state, reason)
    outcome = run.outcome()
    reason = (outcome.reason if outcome else None) or ""
    if not reason and state == RunState.FAILED:
        reason = run.failure() or ""
    return Observed(run, state, False, reason, restarts, "", job_id)


def _silent_end(run: RunFolder, job: Job | None) -> tuple[RunState, str]:
    if job is not None and job.state == JobState.CANCELLED:
        return RunState.CANCELLED, CANCELLED
    cause = run.cause_of_death(state=job.state if job else "")
    if job is None:
        return RunState.DEAD, f"Slurm does not know its job any more: {cause or 'it left no log'}"
    where = f" on {job.nodes}" if job.nodes and job.nodes != "None assigned" else ""
    return RunState.FAILED, f"Slurm ended the job{where}: {job.state}: {cause or 'it left no log'}"


def _why(job: Job) -> str:
    """Why a job waits, in words where Slurm's are not enough."""
    if job.reason in ("JobHeldUser", "JobHeldAdmin"):
        return f"held ({job.reason}: its submission was interrupted, or somebody holds it): finetune cancel, then retry"
    starts = f", starts about {job.start}" if job.start not in ("", "N/A") else ""
    return f"{job.reason}{starts}" if job.reason not in ("", "None") else "about to start"


def _squeue() -> dict[str, Job] | None:
    """All jobs of this user that Slurm still knows, by job id (<array id>_<index>); None where it does not
    answer."""
    fields = (
        "JobArrayID:64",
        "State:24",
        "Reason:96",
        "StartTime:24",
        "RestartCnt:8",
        "NodeList:200",
        "Name:200",
    )
    columns = ",".join(f"{field}|" for field in fields)
    lines = slurm_lines(
        "squeue", "--noheader", "--array", "--states=all", "--user", getpass.getuser(), "-O", columns
    )
    if lines is None:
        return None
    jobs = {}
    for line in lines:
        values = [value.strip() for value in line.split("|")]
        if len(values) >= len(fields):
            job_id, state, reason, start, restarts, nodes, name = values[: len(fields)]
            jobs[job_id] = Job(state, reason, int(restarts) if restarts.isdigit() else 0, nodes, start, name)
    return jobs


def _sacct(job_ids: list[str]) -> dict[str, Job]:
    """What accounting knows of jobs that have left the queue; nothing where there is none."""
    found = {}
    for first in range(0, len(job_ids), 500):  # a command line has an end
        wanted = ",".join(job_ids[first : first + 500])
        command = [
            "sacct",
            "--noheader",
            "--parsable2",
            "--allocations",
            "-o",
            "JobID,State,NodeList",
            "-j",
            wanted,
        ]
        for line in slurm_lines(*command) or []:
            job_id, state, nodes = [*line.split("|"), "", ""][:3]
            found[job_id] = Job(state.partition(" ")[0], nodes=nodes)  # "CANCELLED by 1000"
    return found


def slurm_lines(*command: str) -> list[str] | None:
    """What the command printed, or None if it failed, is not there, or does not answer."""
    try:
        return run_command(*command, seconds=SECONDS).splitlines()
    except Refused:
        return None
