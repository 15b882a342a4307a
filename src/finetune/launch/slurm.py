"""Submission to Slurm: any number of runs are one job array, one Slurm task a rank. submitit writes the batch script and the
pickles; the order of things is ours, so that a submitter killed at any moment leaves nothing that runs without its point.

    points/<index> ──► jobs/ of each run      so a task finds its run by its index, and its logs lie in the run's own folder
    sbatch --hold                             nothing can start yet
    <job id>_submitted.pkl, attempt.json      in each run's folder: now it has all it needs
    scontrol release

A sweep that is larger than Slurm takes at a time is submitted in parts: waves.py.

The batch script: environment → requeue.py begin → srun (one Python a rank: job.run_job) → requeue.py end.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import submitit
from submitit.core.utils import DelayedSubmission

from finetune.cluster import ClusterConfig
from finetune.launch import job, places, waves
from finetune.launch.environment import environment_lines
from finetune.launch.freeze import unwritable
from finetune.launch.job_python import check_line, container, host_python, job_python
from finetune.launch.waves import POINTS, SCRIPT
from finetune.run_folder import RunFolder

PYTHON_3_8 = "'import sys; sys.exit(sys.version_info < (3, 8))'"
SLURM_SECONDS = 120  # that a submission may take


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
        ValueError: Slurm refuses, or the folder cannot be written; nothing is queued then.
    """
    return _submit({folder: runs}, name, code, after, len(runs), None)[0]


def submit_sweep(runs: list[RunFolder], folder: Path, name: str, code: Path, after: str | None = None) -> str:
    """Submit the runs as one job array, or as many of them as Slurm takes now; the others wait for a place (waves.py).

    Args:
        folder: of the sweep; each submission, of as many points as an array may have, is a folder in it.
        name, code, after: as of submit_array.

    Returns:
        what a person should know of runs that wait; "" if none does.

    Raises:
        ValueError: as submit_array.
    """
    cluster = runs[0].config().cluster
    size, known = places.largest_array(cluster), places.submit_limits(cluster)
    plan = waves.Plan(name, cluster.array_parallelism, known, code.name, after or "", os.getuid())
    number = len(list(folder.glob("*/points")))
    blocks = {folder / str(number + n // size): runs[n : n + size] for n in range(0, len(runs), size)}
    jobs = _queue()
    count = len(runs)
    if len(blocks) > 1 or any(limit.free(jobs) < len(runs) for limit in known):
        count = max(1, min(plan.places(jobs), size, len(runs) - 1))
    _, count = _submit(blocks, name, code, after, count, plan)
    return "" if count == len(runs) else places.describe(plan, jobs, len(runs), count)


def _submit(
    blocks: dict[Path, list[RunFolder]], name: str, code: Path, after: str | None, count: int, plan: waves.Plan | None
) -> tuple[str, int]:
    """Submit the first `count` runs of the first folder, or as many as Slurm takes; write that the others wait.

    Args:
        blocks: the runs of each submission, by its folder.
        plan: of the waves; None: all must be taken at once.

    Returns:
        the job id, and how many of its runs it has; "" and 0 if all wait.
    """
    first, runs = next(iter(blocks.items()))
    is_array, job_id = len(runs) > 1, ""
    try:
        for folder, points in blocks.items():
            _write_files(points, folder, name, code)
        job_id, count = _submit_held(first / SCRIPT, count, len(runs), after, plan)
        for run in (run for points in blocks.values() for run in points):
            run.begin_attempt()  # not before Slurm has taken it: what it refuses leaves the run as it was
        for index, run in enumerate(runs[:count]):
            task = f"{job_id}_{index}" if is_array else job_id
            DelayedSubmission(job.run_job, str(run.path)).dump(run.jobs / f"{task}_submitted.pkl")
            run.record_attempt(task, scheduler="slurm", code=code.name)
        if plan is not None and count < sum(map(len, blocks.values())):
            _write_waiting(blocks, job_id, count, plan)
        if job_id:
            slurm_command("scontrol", "release", job_id)
        waves.Submission(first).settle(job_id)
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


def _submit_held(script: Path, count: int, num_points: int, after: str | None, plan: waves.Plan | None) -> tuple[str, int]:
    """Submit the script on hold, for the first points only if `count` says so; halve them as long as Slurm finds them too many.

    Returns:
        the job id and the number of points; "" and 0 if Slurm takes none, but jobs are there that will submit them.
    """
    wait = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    while True:
        part = [f"--array=0-{count - 1}"] if count < num_points else []
        try:
            return slurm_command("sbatch", "--parsable", "--hold", *part, *wait, str(script)).partition(";")[0], count
        except ValueError as refusal:
            if plan is None or not waves.TOO_MANY.search(str(refusal)):
                raise
            count //= 2
            if count == 0 and not waves.movers(_queue(), script.parents[3]):
                raise
            if count == 0:
                return "", 0


def _write_waiting(blocks: dict[Path, list[RunFolder]], job_id: str, count: int, plan: waves.Plan) -> None:
    """Write which points wait, and give each what its job will need."""
    for number, (folder, runs) in enumerate(blocks.items()):
        first = count if number == 0 else 0
        for run in runs[first:]:
            DelayedSubmission(job.run_job, str(run.path)).dump(run.jobs / waves.PICKLE)
        waves.Submission(folder).set_up(plan, list(range(first, len(runs))), [f"{job_id}_{index}" for index in range(first)])


def _queue() -> list[waves.QueuedJob]:
    """Return this user's jobs in the queue; none where Slurm does not say: then it refuses what is too much."""
    with contextlib.suppress(waves.Refused):
        return waves.queue()
    return []


def _write_files(runs: list[RunFolder], folder: Path, name: str, code: Path) -> None:
    """All that the array needs to be there before it is submitted, with the batch script."""
    array = len(runs) > 1
    folder.mkdir(parents=True, exist_ok=True)
    if array:
        (folder / POINTS).mkdir()
    for index, run in enumerate(runs):
        run.jobs.mkdir(exist_ok=True)
        if array:
            (folder / POINTS / str(index)).symlink_to(os.path.relpath(run.jobs, folder / POINTS))
    job_folder = folder / POINTS / "%a" if array else runs[0].jobs
    text = render_script(runs[0].config().cluster, name, job_folder, code, len(runs) if array else None)
    (folder / SCRIPT).write_text(text, encoding="utf-8")


def render_script(cluster: ClusterConfig, name: str, job_folder: Path, code: Path, num_points: int | None) -> str:
    """The batch script.

    Args:
        job_folder: where a task's pickle and logs lie; %a is its index.
        num_points: of an array; None for a single job.
    """
    before, after = _requeue_lines(cluster, job_folder)
    executor = submitit.SlurmExecutor(folder=job_folder, python=job_python(cluster.python))
    requeue = "no-requeue" if cluster.on_interrupt == "stop" else "requeue"
    options = {requeue: True, **_gpus(cluster), **cluster.sbatch}
    if cluster.memory_per_node:
        options["mem"] = cluster.memory_per_node
    executor.update_parameters(
        job_name=name, time=cluster.timeout_min, nodes=cluster.nodes, ntasks_per_node=cluster.ranks_per_node,
        cpus_per_task=cluster.cpus_per_rank, partition=cluster.partition, account=cluster.account, qos=cluster.qos,
        constraint=cluster.constraint, signal_delay_s=cluster.signal_lead_s, array_parallelism=cluster.array_parallelism,
        wckey=None, stderr_to_stdout=True, additional_parameters=options,
        srun_args=["--kill-on-bad-exit=1", "--wait=60", *cluster.srun],
        setup=[*environment_lines(cluster), code_line(code), *before], teardown=after,
    )  # fmt: skip
    executor.parameters["map_count"] = num_points
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return f"{text}\n"


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
    """What the batch script does before and after srun, so that the run comes back: requeue.py. It runs on the host, where
    Slurm's commands are, with any Python from 3.8 on, as it needs no library."""
    head, _, tail = str(job_folder).partition("%a")
    run = shlex.quote(head) + ("$SLURM_ARRAY_TASK_ID" if "%a" in str(job_folder) else "") + shlex.quote(tail + "/..")
    python = host_python(cluster)
    policy = f"--max-restarts {cluster.max_restarts} --on-interrupt {cluster.on_interrupt} --world-size {cluster.world_size}"
    too_old = f"error: the helper of this script needs Python 3.8 or newer on the host: {python} is none, set cluster.host_python"
    before = [
        *([] if cluster.python else [check_line()]),
        *(
            [f"{python} -c {PYTHON_3_8} || {{ echo {shlex.quote(too_old)} >&2; exit 1; }}"]
            if python == cluster.host_python
            else []
        ),
        "trap : TERM USR2  # what ends the ranks must leave this script the time for its last lines",
        f'requeue() {{ {python} -m finetune.launch.requeue "$1" {run} {policy} "${{@:2}}"; }}',
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}  # SLURM_JOB_ID may name the whole array",
        # only newer ones set it; of no answer date would make last midnight
        'if [ -z "$SLURM_JOB_END_TIME" ] && end=$(squeue -h -j ${job:-$SLURM_JOB_ID} -o %e) && [ -n "$end" ] &&'
        ' end=$(date -d "$end" +%s); then export SLURM_JOB_END_TIME=$end; fi',
        "requeue begin || exit $(( $? == 64 ? 0 : $? ))  # 64: it is done already",
        *(["requeue guard --script $$ &"] if cluster.on_interrupt != "stop" else []),
    ]
    return before, ["code=$?", "trap '' TERM USR2  # ignored by what it starts, too", "requeue end --code $code"]


# --- before anything is written or queued ------------------------------------------------------------------------------


def check(cluster: ClusterConfig, num_points: int) -> None:
    """Ask Slurm whether it would take such a job.

    Raises:
        ValueError: it would not, or it would let it wait for ever; or the job's Python cannot run there.
    """
    _check_architecture(cluster)
    for program in ("sbatch", "srun", "scontrol"):
        _require(program)
    script = render_script(cluster, "test", Path("/dev/null"), Path("/dev/null"), 1 if num_points > 1 else None)
    try:
        slurm_command("sbatch", "--test-only", stdin=script)
    except ValueError as refusal:
        if num_points == 1 or not waves.TOO_MANY.search(str(refusal)):  # of a sweep, points may wait for a place
            raise
    _check_partition(cluster)


def _check_architecture(cluster: ClusterConfig) -> None:
    there = cluster.site.compute_architecture
    if there and there != platform.machine() and cluster.python is None:
        raise ValueError(
            f"cluster.python is missing: {cluster.name}'s compute nodes are {there}, this Python is for {platform.machine()}: "
            f"give the command of a Python there, as in cluster.python='apptainer exec --nv IMAGE python3'"
        )


def _check_partition(cluster: ClusterConfig) -> None:
    """Many sites queue what a partition's limits never let start (EnforcePartLimits=NO)."""
    selection = ["--partition", cluster.partition] if cluster.partition else []
    limits: dict[str, tuple[float | None, int]] = {}
    for line in slurm_command("sinfo", "--noheader", *selection, "--format", "%P|%l|%D").splitlines():
        name, limit, nodes = line.split("|")
        if cluster.partition or name.endswith("*"):
            before = limits[name][1] if name in limits else 0  # one line a state of nodes
            limits[name] = (_minutes(limit), before + int(nodes))
    if not limits:  # no default partition is shown, or none at all: sbatch has not objected
        return
    longest = max((float("inf") if limit is None else limit) for limit, _ in limits.values())
    most = max(nodes for _, nodes in limits.values())
    partition = " and ".join(name.rstrip("*") for name in limits)
    if cluster.timeout_min > longest:
        raise ValueError(
            f"cluster.timeout_min is {cluster.timeout_min}: partition {partition} takes jobs of {longest:.0f} minutes at most"
        )
    if cluster.nodes > most:
        raise ValueError(f"cluster.nodes is {cluster.nodes}: partition {partition} has {most}")


def _minutes(limit: str) -> float | None:
    """Slurm's [days-]hours:minutes:seconds; None: no limit."""
    if not (found := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)):
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes + seconds / 60


def in_allocation() -> bool:
    """This shell runs inside a job (salloc, an interactive job): then runs start here, instead of in the queue."""
    return "SLURM_JOB_ID" in os.environ


def slurm_command(*command: str, stdin: str | None = None) -> str:
    """Run one of Slurm's commands; what it printed.

    Raises:
        ValueError: it is not on PATH, does not answer, or Slurm refused; in Slurm's own words.
    """
    _require(command[0])
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=SLURM_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{command[0]} did not answer within {SLURM_SECONDS} s: try again later") from None
    if done.returncode:
        lines = [re.sub(r"^\S+: (error|fatal): ", "", line) for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        words = "; ".join(dict.fromkeys(lines)) or f"exit code {done.returncode}"
        if waves.TOO_MANY.search(words):
            words += ": if you have as many jobs as Slurm takes, wait until one ends, or cancel one"
        raise ValueError(f"Slurm refuses ({command[0]}): {words}")
    return done.stdout.strip()


def _require(program: str) -> None:
    if shutil.which(program) is not None:
        return
    if image := container():
        raise ValueError(
            f"{program} is not on PATH in container {image}, in which this command runs; let the container see the host's "
            f"Slurm (its programs, /etc/slurm and munge's socket), or install finetune outside of it: it needs no torch there"
        )
    raise ValueError(f"{program} is not on PATH: this is no Slurm login node; log in to one, or choose cluster=local")
