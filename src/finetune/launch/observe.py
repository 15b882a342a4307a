"""Determine the states of runs from their run folders and from Slurm.

The folder holds the records that the ranks wrote. Slurm reports which jobs are queued, and which
were killed before they could write anything. Without accounting, Slurm forgets a job minutes after
its end. So the first process that reads from Slurm how a job ended writes it into the run folder.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass

from data_prep.user_error import UserError
from finetune.job import wave_files
from finetune.job.slurm_command import CommandError, run_command
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
CANCELLED = str(RunState.CANCELLED)  # the reason of a run that was cancelled with Slurm's scancel
SECONDS = 15  # time limit of a Slurm command


@dataclass(frozen=True)
class Job:
    """A job, or a task of a job array, as Slurm reports it.

    Attributes:
        reason: why a queued job waits.
        restarts: how often Slurm has requeued it.
        nodes: its nodes in Slurm's notation, such as node[1-3].
        start: the start time; for a queued job, Slurm's estimate of it.
    """

    state: str
    reason: str = ""
    restarts: int = 0
    nodes: str = ""
    start: str = ""
    name: str = ""


@dataclass(frozen=True)
class Observed:
    """The current state of a run.

    Attributes:
        alive: the run is running, or is queued and will be started.
        reason: why it waits, or why it ended; "" if unknown.
        restarts: how often its job was requeued.
        nodes: the nodes it runs on, in Slurm's notation; "" if it is not running on Slurm.
        job_id: its Slurm job; "" if it has none.
    """

    run: RunFolder
    state: RunState
    alive: bool
    reason: str = ""
    restarts: int = 0
    nodes: str = ""
    job_id: str = ""

    def describe(self) -> str:
        if self.job_id:
            return f"{self.state} as job {self.job_id}"
        return self.state


def observe(runs: list[RunFolder]) -> list[Observed]:
    """Return the state of each run, in the given order.

    If only Slurm reports how a run's job ended, this is recorded in the run folder.
    """
    points: dict[str, wave_files.Point] = {}
    for folder in {run.path.parent for run in runs}:
        points.update(wave_files.waiting_points(folder))
    ours = {run.id: _job_of(run, points.get(run.id)) for run in runs}
    jobs = _squeue() if any(job is not None for job in ours.values()) else {}
    if jobs is not None:
        for run in runs:
            if ours[run.id] == UNKNOWN:
                ours[run.id] = _find_held_job(run, jobs)
        wanted = [ours[run.id] for run in runs if not run.outcome()]
        left = [job for job in wanted if job and job not in jobs]
        jobs = {**_sacct(left), **jobs}
    return [_observe_one(run, ours[run.id], points.get(run.id), jobs) for run in runs]


def _observe_one(
    run: RunFolder, job: str | None, point: wave_files.Point | None, jobs: dict[str, Job] | None
) -> Observed:
    if point is not None and job not in (jobs or {}):
        return Observed(run, RunState.QUEUED, True, _no_place_reason(point))
    if job:
        return _observe_slurm(run, job, jobs)
    return _observe_local(run)


def _no_place_reason(point: wave_files.Point) -> str:
    sweep = point.submission.folder.parent.name
    problem = point.submission.problem()
    if point.submission.is_paused:
        return f"waits: {problem or 'all earlier jobs were cancelled'}; `finetune retry {sweep}` submits it"
    if problem:
        return f"waits for a place in the queue; Slurm refused the last submission: {problem}"
    return "waits for a place in the queue"


def _job_of(run: RunFolder, point: wave_files.Point | None) -> str | None:
    """Return the id of a run's Slurm job; None if it has none.

    Return UNKNOWN if the submission was interrupted, perhaps after Slurm had accepted the job.

    Args:
        point: the run's entry among the sweep points without a released job; None if it has none.
    """
    if point is not None:
        return point.task or None
    submission = run.submission()
    if submission is None:
        interrupted = run.planned_scheduler() == "slurm" and not run.outcome()
        if interrupted:
            return UNKNOWN
        return None
    if submission.is_on_slurm:
        return submission.job_id
    return None


def _find_held_job(run: RunFolder, jobs: dict[str, Job]) -> str | None:
    """Find the job that an interrupted submission of a run has left in Slurm's queue.

    The job's name is the id of the run or of its sweep.

    Args:
        jobs: this user's jobs by id. An array's tasks are separate entries. If the job is an array,
            this function adds an entry with the array's id.

    Returns:
        the id of the job or array; None if there is none.
    """
    names = {run.id, run.sweep()}
    for job_id, job in list(jobs.items()):
        if job.name in names and job.state in PENDING_JOB_STATES:
            jobs.setdefault(_array(job_id), job)
            return _array(job_id)
    return None


def states(job_ids: list[str]) -> dict[str, str]:
    """Return Slurm's state of each job, such as PENDING; "" for a job that Slurm has forgotten.

    An array counts as running or pending while one of its tasks is, and as completed only if all
    its tasks have completed.

    Raises:
        UserError: Slurm does not answer.
    """
    queue = _squeue()
    if queue is None:
        raise UserError("squeue: failed or did not answer; try again later")
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


def _observe_local(run: RunFolder) -> Observed:
    state = run.state()
    if state == RunState.QUEUED:
        holder = run.turn_holder()  # None: the process that was to start it was killed
        reason = f"waits for its turn in {holder}" if holder else ""
        return Observed(run, state, alive=holder is not None, reason=reason)
    reason = ""
    if state in FAILED_STATES:
        reason = run.failure() or run.cause_of_death() or ""
    return Observed(run, state, alive=state == RunState.RUNNING, reason=reason)


def _observe_slurm(run: RunFolder, job_id: str, jobs: dict[str, Job] | None) -> Observed:
    """Return the state of a run with a Slurm job.

    While the job is queued or running, the state comes from Slurm. After that, it comes from the
    run folder, with two exceptions: the folder contains no final state, or Slurm reports that the
    job was cancelled before the run completed. In both cases, the final state comes from Slurm and
    is recorded in the folder.

    Args:
        jobs: Slurm's jobs by id; None if Slurm does not answer.
    """
    state = run.state()
    job = (jobs or {}).get(job_id)
    restarts = max(job.restarts if job else 0, (run.started() or Started()).restart)
    if jobs is None:
        alive = state in ALIVE_STATES
        reason = "Slurm does not answer: this state is from the run folder"
        return Observed(run, state, alive, reason, restarts, "", job_id)
    if job is not None and job.state in PENDING_JOB_STATES:
        return Observed(run, RunState.QUEUED, True, _waiting_reason(job), restarts, "", job_id)
    if job is not None and job.state in RUNNING_JOB_STATES:
        # The folder may hold the end of an attempt already, but the batch script is still running
        # and may restart the run.
        return Observed(run, RunState.RUNNING, True, "", restarts, job.nodes, job_id)
    cancelled = job is not None and job.state == JobState.CANCELLED and state != RunState.COMPLETED
    # The ranks were killed before they could record an end, or Slurm's user has cancelled the job.
    if state in ALIVE_STATES or (cancelled and state != RunState.CANCELLED):
        state, reason = _unrecorded_end(run, job)
        run.record_outcome(state, reason)
    outcome = run.outcome()
    reason = (outcome.reason if outcome else None) or ""
    if not reason and state == RunState.FAILED:
        reason = run.failure() or ""
    return Observed(run, state, False, reason, restarts, "", job_id)


def _unrecorded_end(run: RunFolder, job: Job | None) -> tuple[RunState, str]:
    """Return the final state, and its reason, of a run that has not recorded its end itself.

    Args:
        job: the ended job as Slurm reports it; None if Slurm has forgotten it.
    """
    if job is not None and job.state == JobState.CANCELLED:
        return RunState.CANCELLED, CANCELLED
    cause = run.cause_of_death(state=job.state if job else "") or "it left no log"
    if job is None:
        return RunState.DEAD, f"Slurm no longer lists its job: {cause}"
    where = f" on {job.nodes}" if job.nodes and job.nodes != "None assigned" else ""
    return RunState.FAILED, f"Slurm ended the job{where}: {job.state}: {cause}"


def _waiting_reason(job: Job) -> str:
    """Return why a queued job waits: Slurm's reason, and the estimated start or a remedy if known."""
    if job.reason in ("JobHeldUser", "JobHeldAdmin"):
        return (
            f"held ({job.reason}): its submission was interrupted, or somebody holds it; "
            f"run `finetune cancel`, then `finetune retry`"
        )
    starts = f", starts about {job.start}" if job.start not in ("", "N/A") else ""
    if job.reason not in ("", "None"):
        return f"{job.reason}{starts}"
    return "about to start"


def _squeue() -> dict[str, Job] | None:
    """Return this user's queued, running and recently ended jobs by id; None if squeue fails.

    A task of an array has the id <array id>_<index>.
    """
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
    user = getpass.getuser()
    lines = slurm_lines("squeue", "--noheader", "--array", "--states=all", "--user", user, "-O", columns)
    if lines is None:
        return None
    jobs = {}
    for line in lines:
        values = [value.strip() for value in line.split("|")]
        if len(values) >= len(fields):
            job_id, state, reason, start, restarts, nodes, name = values[: len(fields)]
            num_restarts = int(restarts) if restarts.isdigit() else 0
            jobs[job_id] = Job(state, reason, num_restarts, nodes, start, name)
    return jobs


def _sacct(job_ids: list[str]) -> dict[str, Job]:
    """Return jobs by id, from Slurm's accounting; empty if the site has no accounting."""
    found = {}
    columns = "JobID,State,NodeList"
    for first in range(0, len(job_ids), 500):  # the length of a command line is limited
        wanted = ",".join(job_ids[first : first + 500])
        command = ["sacct", "--noheader", "--parsable2", "--allocations", "-o", columns, "-j", wanted]
        for line in slurm_lines(*command) or []:
            job_id, state, nodes = [*line.split("|"), "", ""][:3]
            found[job_id] = Job(state.partition(" ")[0], nodes=nodes)  # CANCELLED of "CANCELLED by 1000"
    return found


def slurm_lines(*command: str) -> list[str] | None:
    """Return the lines of a Slurm command's output; None if it fails, is missing or times out."""
    try:
        return run_command(*command, seconds=SECONDS).splitlines()
    except CommandError:
        return None
