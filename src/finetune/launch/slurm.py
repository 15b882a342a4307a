"""Submission to Slurm: any number of runs as one job array, one Slurm task a rank. A submitter that is killed
at any moment leaves no job without its run.

    points/<index> ──► jobs/ of each run      so a task finds its run by its index, and its logs lie in the
    run's own folder sbatch --hold                             nothing can start yet
    <job id>_submitted.pkl, submission.json   in each run's folder: now it has all it needs
    scontrol release

A sweep that is larger than Slurm takes at a time is submitted in parts: job/waves.py.

The batch script: environment → job/batch_script.py begin → srun (one Python a rank: job/rank.py) →
job/batch_script.py end.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from pathlib import Path

from submitit.core.utils import DelayedSubmission

from data_prep.user_error import UserError
from finetune.config.cluster import ClusterConfig
from finetune.job import rank, slurm_queue, waves
from finetune.job.slurm_command import Refused, run_command
from finetune.job.wave_files import Plan, SweepSubmission
from finetune.launch import places
from finetune.launch.environment import environment_lines
from finetune.launch.freeze import unwritable
from finetune.launch.job_python import check_line, container, host_python, job_python, uses_host_python
from finetune.runs import layout
from finetune.runs.folder import RunFolder
from finetune.runs.layout import POINTS, SCRIPT

PYTHON_3_8 = "'import sys; sys.exit(sys.version_info < (3, 8))'"
SLURM_SECONDS = 120  # that a submission may take
# for sbatch these would come before the script's own lines, and before the environment that a job needs
NOT_INHERITED = ("SBATCH_EXPORT", "SLURM_EXPORT_ENV")
# what Apptainer, Singularity and the wrappers of hpc-container-wrapper set inside, or for the inside
OF_CONTAINER = re.compile(
    r"(APPTAINER|SINGULARITY)(ENV_\w+|_(BIND|BINDPATH|COMMAND|CONTAINER|ENVIRONMENT|NAME))|_CW_\w+"
)


def submit_array(runs: list[RunFolder], folder: Path, name: str, code: Path, after: str | None = None) -> str:
    """Submit the runs as one job (one run) or one job array (several; task i is runs[i]).

    Args:
        folder: of this submission; the rendered script lies there, and points/<index> of an array.
        name: of the job in Slurm's queue.
        code: folder that the job imports our packages from.
        after: a job that must have ended well first.

    Returns:
        the job id; the array's tasks have <job id>_<index>.

    Raises:
        UserError: Slurm refuses, or the folder cannot be written; nothing is queued then.
    """
    return _submit({folder: runs}, name, code, after, len(runs), None)[0]


def submit_sweep(runs: list[RunFolder], folder: Path, name: str, code: Path, after: str | None = None) -> str:
    """Submit the runs as one job array, or as many of them as Slurm takes now; the others wait for a place
    (job/waves.py).

    Args:
        folder: of the sweep; each submission, of as many points as an array may have, is a folder in it.
        name, code, after: as of submit_array.

    Returns:
        what a person should know of runs that wait; "" if none does.

    Raises:
        UserError: as submit_array.
    """
    cluster = runs[0].config().cluster
    size, known = places.largest_array(cluster), places.submit_limits(cluster)
    plan = Plan(name, cluster.array_parallelism, known, code.name, after or "", os.getuid())
    number = len(list(folder.glob(f"*/{POINTS}")))
    blocks = {folder / str(number + n // size): runs[n : n + size] for n in range(0, len(runs), size)}
    jobs = _queue()
    count = len(runs)
    if len(blocks) > 1 or any(limit.free(jobs) < len(runs) for limit in known):
        count = max(1, min(plan.places(jobs), size, len(runs) - 1))
    _, count = _submit(blocks, name, code, after, count, plan)
    return "" if count == len(runs) else places.describe(plan, jobs, len(runs), count)


def _submit(
    blocks: dict[Path, list[RunFolder]],
    name: str,
    code: Path,
    after: str | None,
    count: int,
    plan: Plan | None,
) -> tuple[str, int]:
    """Submit the first `count` runs of the first folder, or as many as Slurm takes; write that the others
    wait.

    Args:
        blocks: the runs of each submission, by its folder.
        plan: of the waves; None: all must be taken at once.

    Returns:
        the job id, and how many of its runs it has; "" and 0 if all wait.
    """
    first, runs = next(iter(blocks.items()))
    is_array = (
        len(runs) > 1 or plan is not None
    )  # a point that waits is found by its index, also if its folder has no other
    job_id = ""
    try:
        for folder, points in blocks.items():
            _write_files(points, folder, name, code, is_array=is_array)
        job_id, count = _submit_held(first / SCRIPT, count, len(runs), after, plan)
        for run in (run for points in blocks.values() for run in points):
            run.clear_attempt_files()  # not before Slurm has taken it: what it refuses leaves the run as it was
        for index, run in enumerate(runs[:count]):
            task = f"{job_id}_{index}" if is_array else job_id
            DelayedSubmission(rank.run_job, str(run.path)).dump(run.jobs / layout.pickle_of(task))
            run.record_submission(task, scheduler="slurm", code=code.name)
        if plan is not None and count < sum(map(len, blocks.values())):
            _write_waiting(blocks, job_id, count, plan)
        if job_id:
            slurm_command("scontrol", "release", job_id)
        SweepSubmission(first).settle(job_id)
    except BaseException as fault:
        if job_id:
            with contextlib.suppress(ValueError):
                slurm_command("scancel", job_id)
        if plan is not None:
            for folder in blocks:
                shutil.rmtree(folder, ignore_errors=True)
        if isinstance(fault, OSError):
            raise unwritable(first, fault) from None
        raise
    return job_id, count


def _submit_held(
    script: Path, count: int, num_points: int, after: str | None, plan: Plan | None
) -> tuple[str, int]:
    """Submit the script on hold, for the first points only if `count` says so; halve them as long as Slurm
    finds them too many.

    Returns:
        the job id and the number of points; "" and 0 if Slurm takes none, but jobs are there that will submit
        them.
    """
    wait = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    while True:
        part = [f"--array=0-{count - 1}"] if count < num_points else []
        try:
            return slurm_command("sbatch", "--parsable", "--hold", *part, *wait, str(script)).partition(";")[
                0
            ], count
        except ValueError as refusal:
            if plan is None or not slurm_queue.TOO_MANY.search(str(refusal)):
                raise
            count //= 2
            if count == 0 and not waves.movers(_queue(), script.parents[3]):
                raise
            if count == 0:
                return "", 0


def _write_waiting(blocks: dict[Path, list[RunFolder]], job_id: str, count: int, plan: Plan) -> None:
    """Write which points wait, and give each what its job will need."""
    for number, (folder, runs) in enumerate(blocks.items()):
        first = count if number == 0 else 0
        for run in runs[first:]:
            DelayedSubmission(rank.run_job, str(run.path)).dump(run.jobs / layout.WAITING_PICKLE)
        SweepSubmission(folder).set_up(
            plan, list(range(first, len(runs))), [f"{job_id}_{index}" for index in range(first)]
        )


def _queue() -> list[slurm_queue.QueuedJob]:
    """Return this user's jobs in the queue; none where Slurm does not say: then it refuses what is too
    much."""
    with contextlib.suppress(Refused):
        return slurm_queue.queue()
    return []


def _write_files(runs: list[RunFolder], folder: Path, name: str, code: Path, *, is_array: bool) -> None:
    """All that the array needs to be there before it is submitted, with the batch script."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_array:
        (folder / POINTS).mkdir()
    for index, run in enumerate(runs):
        run.jobs.mkdir(exist_ok=True)
        if is_array:
            (folder / POINTS / str(index)).symlink_to(os.path.relpath(run.jobs, folder / POINTS))
    job_folder = folder / POINTS / "%a" if is_array else runs[0].jobs
    text = render_script(runs[0].config().cluster, name, job_folder, code, len(runs) if is_array else None)
    (folder / SCRIPT).write_text(text, encoding="utf-8")


def render_script(
    cluster: ClusterConfig, name: str, job_folder: Path, code: Path, num_points: int | None
) -> str:
    """Return the batch script. Its ranks are started as submitit starts them, so that submitit finds the rank
    of each.

    Args:
        job_folder: where a task's pickle and logs lie; %a is its index.
        num_points: of an array; None for a single job.
    """
    before, after = _requeue_lines(cluster, job_folder)
    log = job_folder / layout.log_of("%A_%a" if num_points else "%j", "%t")
    srun = shlex.join(["srun", "--unbuffered", f"--output={log}", "--kill-on-bad-exit=1", "--wait=60"])
    parts = [
        srun,
        *map(shlex.quote, cluster.srun),
        f"{job_python(cluster.python)} -u -m submitit.core._submit {shlex.quote(str(job_folder))}",
    ]
    lines = [
        "#!/bin/bash",
        *_options(cluster, name, log, num_points),
        *environment_lines(cluster),
        "",
        "# finetune, as it was at submission",
        code_line(code),
        *before,
        "",
        "# the ranks",
        "export SUBMITIT_EXECUTOR=slurm",
        " \\\n    ".join(parts),
        *after,
    ]
    return "\n".join(lines) + "\n"


def _options(cluster: ClusterConfig, name: str, log: Path, num_points: int | None) -> list[str]:
    """Return the options of sbatch, in the order in which a person asks for them; rank 0 shares its log with
    the script."""
    array = f"0-{num_points - 1}%{min(num_points, cluster.array_parallelism)}" if num_points else None
    values = {
        "job-name": name,
        "account": cluster.account,
        "partition": cluster.partition,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "array": array,
        "nodes": cluster.nodes,
        "ntasks-per-node": cluster.ranks_per_node,
        "cpus-per-task": cluster.cpus_per_rank,
        **_gpus(cluster),
        "mem": cluster.memory_per_node,
        "time": cluster.timeout_min,
        "signal": f"USR2@{cluster.signal_lead_s}",  # submitit's; NCCL catches USR1
        **{key.replace("_", "-"): value for key, value in cluster.sbatch.items()},
        "output": str(log).replace("%t", "0"),
        "open-mode": "append",
    }
    given = [
        f"#SBATCH --{key}"
        + (f"={shlex.quote(str(value))}" if value != "" else "")  # some, as exclusive, need no value
        for key, value in values.items()
        if value is not None
    ]
    return [*given, "#SBATCH --requeue" if cluster.on_interrupt == "requeue" else "#SBATCH --no-requeue"]


def code_line(code: Path) -> str:
    """The frozen code goes before what is installed."""
    return f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"'


def _gpus(cluster: ClusterConfig) -> dict[str, str]:
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    return {
        "gpus-per-node": {"gpus-per-node": f"{kind}{cluster.ranks_per_node}"},
        "gres": {"gres": f"gpu:{kind}{cluster.ranks_per_node}"},
        "none": {},
    }[cluster.gpu_request]


def _requeue_lines(cluster: ClusterConfig, job_folder: Path) -> tuple[list[str], list[str]]:
    """Return what the batch script does before and after srun, so that the run comes back:
    job/batch_script.py. It runs on the host, where Slurm's commands are, with any Python from 3.8 on, as it
    needs no library."""
    head, _, tail = str(job_folder).partition("%a")
    run = (
        shlex.quote(head)
        + ("$SLURM_ARRAY_TASK_ID" if "%a" in str(job_folder) else "")
        + shlex.quote(tail + "/..")
    )
    python = host_python(cluster)
    policy = f"--max-restarts {cluster.max_restarts} --on-interrupt {cluster.on_interrupt}"
    before = [
        "",
        "# what brings the run back: it runs on the host, outside of a container, without packages",
        *_host_python_lines(cluster),
        "requeue() {",
        f'    {python} -m finetune.job.batch_script "$1" {run} \\',
        f'        {policy} --world-size {cluster.world_size} "${{@:2}}"',
        "}",
        "trap : TERM USR2  # what ends the ranks must leave this script the time for its last lines",
        *_END_TIME,
        "requeue begin || exit $(( $? == 64 ? 0 : $? ))  # 64: the run is complete already",
        *(["requeue guard --script $$ &"] if cluster.on_interrupt != "stop" else []),
    ]
    after = [
        "code=$?",
        "",
        "# how it ended, and whether it comes back",
        "trap '' TERM USR2  # ignored by what it starts, too",
        "requeue end --code $code",
    ]
    return before, after


# Only newer versions of Slurm set it. Of no answer `date` would make last midnight.
_END_TIME = [
    "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}  # SLURM_JOB_ID may name the whole array",
    'if [ -z "$SLURM_JOB_END_TIME" ] && end=$(squeue -h -j ${job:-$SLURM_JOB_ID} -o %e) &&',
    '    [ -n "$end" ] && end=$(date -d "$end" +%s); then export SLURM_JOB_END_TIME=$end; fi',
]


def _host_python_lines(cluster: ClusterConfig) -> list[str]:
    """Return what ends a job with one line where the Python that is to bring it back is missing or too
    old."""
    if not uses_host_python(cluster):
        return [check_line()]
    fault = f"error: cluster.host_python: {cluster.host_python} is missing on this node or older than 3.8; name a newer one"
    return [f"{cluster.host_python} -c {PYTHON_3_8} || {{ echo {shlex.quote(fault)} >&2; exit 1; }}"]


def in_allocation() -> bool:
    """This shell runs inside a job (salloc, an interactive job): then runs start here, instead of in the
    queue."""
    return "SLURM_JOB_ID" in os.environ


class SlurmError(UserError):
    """One of Slurm's commands is missing or failed; `reason` is its message."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def _environment_for_jobs() -> dict[str, str]:
    """Return this process' environment without what a job must not inherit: its own containers would start
    with the folders and variables of the one that this command runs in."""
    dropped = [*NOT_INHERITED]
    if container():
        dropped += [key for key in os.environ if OF_CONTAINER.fullmatch(key)]
    return {key: value for key, value in os.environ.items() if key not in dropped}


def slurm_command(*command: str, stdin: str | None = None) -> str:
    """Run one of Slurm's commands and return what it printed.

    Raises:
        SlurmError: it is not on PATH, does not answer, or Slurm refused; with Slurm's own message.
    """
    require_program(command[0])
    try:
        return run_command(*command, seconds=SLURM_SECONDS, environment=_environment_for_jobs(), stdin=stdin)
    except Refused as refusal:
        if refusal.is_silent:
            raise SlurmError(f"{refusal}: try again later", str(refusal)) from None
        lines = [
            re.sub(r"^\S+: (error|fatal): ", "", line) for line in refusal.output.splitlines() if line.strip()
        ]
    reason = "; ".join(dict.fromkeys(lines))
    if slurm_queue.TOO_MANY.search(reason):
        reason += ": if you have as many jobs as Slurm takes, wait until one ends, or cancel one"
    raise SlurmError(f"Slurm refuses ({command[0]}): {reason}", reason)


def require_program(program: str) -> None:
    if shutil.which(program) is not None:
        return
    reason = f"{program} is not on PATH"
    if image := container():
        reason += f" in container {image}, in which this command runs"
        raise SlurmError(
            f"{reason}; let the container see the host's Slurm (its programs, /etc/slurm and munge's socket), or install "
            f"finetune outside of it: it needs no torch there",
            reason,
        )
    raise SlurmError(f"{reason}: this is no Slurm login node; log in to one, or choose cluster=local", reason)
