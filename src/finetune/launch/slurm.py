"""Submit runs to Slurm: a single run as a job, several as one job array.

A submission has the following steps. Their order ensures that no job starts without its files, even
if the submitting process is killed in between.

    points/<index> -> jobs/ of each run       links by which an array's tasks find their runs
    sbatch --hold                             the job is in the queue, but cannot start
    <job id>_submitted.pkl, submission.json   written into each run folder
    scontrol release                          the job can start

The runs of a sweep are called its points. If Slurm does not accept all of them at a time, the sweep
is submitted in parts (job/waves.py).

The batch script sets up the environment and runs `job/batch_script.py begin`. Then srun starts one
Python process per rank (job/rank.py). The last line runs `job/batch_script.py end`.
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
from finetune.job.slurm_command import CommandError, run_command
from finetune.job.wave_files import Plan, SweepSubmission
from finetune.launch import places
from finetune.launch.environment import environment_lines
from finetune.launch.freeze import unwritable_error
from finetune.launch.job_python import check_line, container, host_python, job_python, uses_host_python
from finetune.runs import layout
from finetune.runs.folder import RunFolder
from finetune.runs.layout import POINTS, SCRIPT

PYTHON_3_8 = "'import sys; sys.exit(sys.version_info < (3, 8))'"
SLURM_SECONDS = 120  # time limit of a Slurm command
# sbatch and srun would prefer these to the script's options, and jobs would lack their environment.
NOT_INHERITED = ("SBATCH_EXPORT", "SLURM_EXPORT_ENV")
# Variables that Apptainer, Singularity and the wrappers of hpc-container-wrapper set inside a
# container.
OF_CONTAINER = re.compile(
    r"(APPTAINER|SINGULARITY)(ENV_\w+|_(BIND|BINDPATH|COMMAND|CONTAINER|ENVIRONMENT|NAME))|_CW_\w+"
)


def submit_array(runs: list[RunFolder], folder: Path, name: str, code: Path, after: str | None = None) -> str:
    """Submit the runs: a single one as a job, several as one job array, in which task i is runs[i].

    Args:
        folder: folder of the submission, for the batch script and an array's links points/<index>.
        name: the job's name in Slurm's queue.
        code: folder from which the job imports our packages.
        after: id of a job that must complete before this one starts; None: it can start at once.

    Returns:
        the job id. A task of the array has the id <job id>_<index>.

    Raises:
        UserError: Slurm refuses, or the folder cannot be written. Nothing is queued then.
    """
    return _submit({folder: runs}, name, code, after, len(runs), None)[0]


def submit_sweep(runs: list[RunFolder], folder: Path, name: str, code: Path, after: str | None = None) -> str:
    """Submit as many of the runs as Slurm accepts now. The others are submitted later (job/waves.py).

    Args:
        folder: folder of the sweep. It gets a subfolder for each job array. Slurm's largest array
            size decides how many arrays there are.
        name, code, after: see submit_array.

    Returns:
        a message for the user about the runs that wait; "" if none waits.

    Raises:
        UserError: see submit_array.
    """
    cluster = runs[0].config().cluster
    size = places.largest_array(cluster)
    limits = places.submit_limits(cluster)
    plan = Plan(name, cluster.array_parallelism, limits, code.name, after or "", os.getuid())
    number = len(list(folder.glob(f"*/{POINTS}")))
    blocks = {folder / str(number + n // size): runs[n : n + size] for n in range(0, len(runs), size)}
    jobs = _queue()
    count = len(runs)
    if len(blocks) > 1 or any(limit.free(jobs) < len(runs) for limit in limits):
        count = max(1, min(plan.free_places(jobs), size, len(runs) - 1))
    _, count = _submit(blocks, name, code, after, count, plan)
    if count == len(runs):
        return ""
    return places.describe(plan, jobs, len(runs), count)


def _submit(
    blocks: dict[Path, list[RunFolder]],
    name: str,
    code: Path,
    after: str | None,
    count: int,
    plan: Plan | None,
) -> tuple[str, int]:
    """Submit the first `count` runs of the first job array; record that all other runs wait.

    Args:
        blocks: the runs of each job array, by the folder for the array's files. A single run
            without a plan is submitted as a plain job.
        name, code, after: see submit_array.
        count: number of runs to submit now. If there is a plan and Slurm refuses so many, fewer are
            submitted.
        plan: rules for submitting the other runs later; None: Slurm must accept `count` runs.

    Returns:
        the job id and the number of submitted runs; "" and 0 if all runs wait.
    """
    first, runs = next(iter(blocks.items()))
    # Waiting points are submitted by their index in an array, even if there is only one of them.
    is_array = len(runs) > 1 or plan is not None
    job_id = ""
    try:
        for folder, points in blocks.items():
            _write_files(points, folder, name, code, is_array=is_array)
        job_id, count = _submit_held(first / SCRIPT, count, len(runs), after, plan)
        for run in (run for points in blocks.values() for run in points):
            run.clear_attempt_files()  # only now: if Slurm refuses, the run must stay as it was
        for index, run in enumerate(runs[:count]):
            task = f"{job_id}_{index}" if is_array else job_id
            DelayedSubmission(rank.run_job, str(run.path)).dump(run.jobs / layout.pickle_of(task))
            run.record_submission(task, scheduler="slurm", code=code.name)
        if plan is not None and count < sum(map(len, blocks.values())):
            _write_waiting(blocks, job_id, count, plan)
        if job_id:
            slurm_command("scontrol", "release", job_id)
        SweepSubmission(first).mark_released(job_id)
    except BaseException as fault:
        if job_id:
            with contextlib.suppress(ValueError):
                slurm_command("scancel", job_id)
        if plan is not None:
            for folder in blocks:
                shutil.rmtree(folder, ignore_errors=True)
        if isinstance(fault, OSError):
            raise unwritable_error(first, fault) from None
        raise
    return job_id, count


def _submit_held(
    script: Path, count: int, num_points: int, after: str | None, plan: Plan | None
) -> tuple[str, int]:
    """Submit the first `count` points of a script as a held job, one that Slurm does not start yet.

    If Slurm refuses the job because it has too many points, and there is a plan for submitting the
    others later, try half as many points, and so on.

    Args:
        count: number of points to submit.
        num_points: number of points in the array that the script itself requests.
        after: id of a job that must complete before this one starts; None: it can start at once.
        plan: rules for submitting the other points later; None: Slurm must accept `count` points.

    Returns:
        the job id and the number of points in the job; "" and 0 if Slurm accepts no point now, but
        jobs in the queue will submit the points later.

    Raises:
        UserError: Slurm refuses the job, and no job in the queue will submit the points.
    """
    wait = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    while True:
        part = [f"--array=0-{count - 1}"] if count < num_points else []
        try:
            output = slurm_command("sbatch", "--parsable", "--hold", *part, *wait, str(script))
            return output.partition(";")[0], count
        except ValueError as refusal:
            if plan is None or not slurm_queue.TOO_MANY.search(str(refusal)):
                raise
            count //= 2
            if count == 0 and not waves.submitting_jobs(_queue(), script.parents[3]):
                raise
            if count == 0:
                return "", 0


def _write_waiting(blocks: dict[Path, list[RunFolder]], job_id: str, count: int, plan: Plan) -> None:
    """Record which points of a sweep wait; write a pickle for each, with the call its job will make.

    Args:
        blocks: the points' runs in each job array, by the array's folder.
        job_id: id of the submitted job, which Slurm does not start yet; "" if all points wait.
        count: number of points in that job. They are the first points of the first array.
        plan: rules for submitting the waiting points.
    """
    for number, (folder, runs) in enumerate(blocks.items()):
        first = count if number == 0 else 0
        for run in runs[first:]:
            DelayedSubmission(rank.run_job, str(run.path)).dump(run.jobs / layout.WAITING_PICKLE)
        waiting = list(range(first, len(runs)))
        SweepSubmission(folder).set_up(plan, waiting, [f"{job_id}_{index}" for index in range(first)])


def _queue() -> list[slurm_queue.QueuedJob]:
    """Return this user's jobs in Slurm's queue; an empty list if squeue fails.

    The failure is ignored because sbatch checks Slurm's limits itself.
    """
    with contextlib.suppress(CommandError):
        return slurm_queue.queue()
    return []


def _write_files(runs: list[RunFolder], folder: Path, name: str, code: Path, *, is_array: bool) -> None:
    """Write a submission's files: the batch script, and the links to the runs of an array."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_array:
        (folder / POINTS).mkdir()
    for index, run in enumerate(runs):
        run.jobs.mkdir(exist_ok=True)
        if is_array:
            (folder / POINTS / str(index)).symlink_to(os.path.relpath(run.jobs, folder / POINTS))
    job_folder = folder / POINTS / "%a" if is_array else runs[0].jobs
    num_points = len(runs) if is_array else None
    text = render_script(runs[0].config().cluster, name, job_folder, code, num_points)
    (folder / SCRIPT).write_text(text, encoding="utf-8")


def render_script(
    cluster: ClusterConfig, name: str, job_folder: Path, code: Path, num_points: int | None
) -> str:
    """Return the text of the batch script.

    The script starts each rank with submitit's own command. This command loads the task's pickle,
    which calls job/rank.py.

    Args:
        name: the job's name in Slurm's queue.
        job_folder: folder of a task's pickle and logs. For an array, its path contains %a, which
            stands for the task's index.
        code: folder from which the job imports our packages.
        num_points: number of points in the array; None for a single job.
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
        "# the code as it was at submission",
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
    """Return the script's #SBATCH lines. The script's own output goes into the log of rank 0."""
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
        "signal": f"USR2@{cluster.signal_lead_s}",  # submitit's choice; NCCL catches USR1
        **{key.replace("_", "-"): value for key, value in cluster.sbatch.items()},
        "output": str(log).replace("%t", "0"),
        "open-mode": "append",
    }
    lines = []
    for key, value in values.items():
        if value == "":  # some options, such as exclusive, take no value
            lines.append(f"#SBATCH --{key}")
        elif value is not None:
            lines.append(f"#SBATCH --{key}={shlex.quote(str(value))}")
    requeue = "requeue" if cluster.on_interrupt == "requeue" else "no-requeue"
    return [*lines, f"#SBATCH --{requeue}"]


def code_line(code: Path) -> str:
    """Return the shell line that makes a job import our packages from `code`, not the installed ones."""
    return f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"'


def _gpus(cluster: ClusterConfig) -> dict[str, str]:
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    return {
        "gpus-per-node": {"gpus-per-node": f"{kind}{cluster.ranks_per_node}"},
        "gres": {"gres": f"gpu:{kind}{cluster.ranks_per_node}"},
        "none": {},
    }[cluster.gpu_request]


def _requeue_lines(cluster: ClusterConfig, job_folder: Path) -> tuple[list[str], list[str]]:
    """Return the lines with which a batch script restarts its run: those before, and after, srun.

    They call job/batch_script.py on the host, because containers lack Slurm's commands. That
    program needs Python 3.8 or newer, and no packages.
    """
    head, is_array, tail = str(job_folder).partition("%a")
    index = "$SLURM_ARRAY_TASK_ID" if is_array else ""
    run = f"{shlex.quote(head)}{index}{shlex.quote(tail + '/..')}"
    python = host_python(cluster)
    policy = f"--max-restarts {cluster.max_restarts} --on-interrupt {cluster.on_interrupt}"
    before = [
        "",
        "# the helper that restarts the run; it runs on the host, outside any container, without packages",
        *_host_python_lines(cluster),
        "requeue() {",
        f'    {python} -m finetune.job.batch_script "$1" {run} \\',
        f'        {policy} --world-size {cluster.world_size} "${{@:2}}"',
        "}",
        "trap : TERM USR2  # signals that end the ranks must not end this script before its last line",
        *_END_TIME,
        "requeue begin || exit $(( $? == 64 ? 0 : $? ))  # 64: the run is already complete",
        *(["requeue guard --script $$ &"] if cluster.on_interrupt != "stop" else []),
    ]
    after = [
        "code=$?",
        "",
        "# record how the attempt ended, and restart the run if necessary",
        "trap '' TERM USR2  # ignored by child processes, too",
        "requeue end --code $code",
    ]
    return before, after


# Older versions of Slurm do not set SLURM_JOB_END_TIME. The result of squeue is tested, because for
# an empty string `date` returns the last midnight.
_END_TIME = [
    "# the job's end time; in an array, SLURM_JOB_ID may be the id of the whole array",
    "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
    'if [ -z "$SLURM_JOB_END_TIME" ] && end=$(squeue -h -j ${job:-$SLURM_JOB_ID} -o %e) &&',
    '    [ -n "$end" ] && end=$(date -d "$end" +%s); then export SLURM_JOB_END_TIME=$end; fi',
]


def _host_python_lines(cluster: ClusterConfig) -> list[str]:
    """Return a line that ends the job if its node lacks the Python for job/batch_script.py."""
    if not uses_host_python(cluster):
        return [check_line()]
    fault = (
        f"error: cluster.host_python: {cluster.host_python} is missing on this node or older than 3.8; "
        f"set a newer Python"
    )
    return [f"{cluster.host_python} -c {PYTHON_3_8} || {{ echo {shlex.quote(fault)} >&2; exit 1; }}"]


def is_in_allocation() -> bool:
    """Return whether this process runs in a Slurm job, for instance in one that salloc started.

    If so, runs are started at once in this job, not submitted to the queue.
    """
    return "SLURM_JOB_ID" in os.environ


class SlurmError(UserError):
    """A Slurm command is missing or failed.

    Attributes:
        reason: the part of the message that says what went wrong, if possible in Slurm's words.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def _environment_for_jobs() -> dict[str, str]:
    """Return this process' environment without the variables that a job must not inherit.

    If this process runs in a container, the variables that describe the container are left out,
    too. They would give the job's own containers the wrong folders and variables.
    """
    dropped = [*NOT_INHERITED]
    if container():
        dropped += [key for key in os.environ if OF_CONTAINER.fullmatch(key)]
    return {key: value for key, value in os.environ.items() if key not in dropped}


def slurm_command(*command: str, stdin: str | None = None) -> str:
    """Run a Slurm command and return its output.

    Raises:
        SlurmError: the command is not on PATH, fails, or does not end within SLURM_SECONDS.
    """
    require_program(command[0])
    try:
        return run_command(*command, seconds=SLURM_SECONDS, environment=_environment_for_jobs(), stdin=stdin)
    except CommandError as refusal:
        if refusal.is_timeout:
            raise SlurmError(f"{refusal}; try again later", str(refusal)) from None
        output = [line for line in refusal.output.splitlines() if line.strip()]
    reason = "; ".join(dict.fromkeys(re.sub(r"^\S+: (error|fatal): ", "", line) for line in output))
    if slurm_queue.TOO_MANY.search(reason):
        reason += "; if you already have as many jobs as Slurm allows, wait until one ends, or cancel one"
    raise SlurmError(f"Slurm refuses ({command[0]}): {reason}", reason)


def require_program(program: str) -> None:
    """Raise SlurmError if one of Slurm's programs is not on PATH."""
    if shutil.which(program) is not None:
        return
    reason = f"{program} is not on PATH"
    image = container()
    if image:
        reason += f" in container {image}, in which this command runs"
        raise SlurmError(
            f"{reason}; bind the host's Slurm into the container (its programs, /etc/slurm and munge's "
            f"socket), or install finetune outside of the container (torch is not needed there)",
            reason,
        )
    raise SlurmError(
        f"{reason}: this is not a Slurm login node; log in to one, or choose cluster=local", reason
    )
