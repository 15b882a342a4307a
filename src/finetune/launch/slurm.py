"""Submission to Slurm: any number of runs are one job array, one Slurm task a rank. submitit writes the batch script and the
pickles; the order of things is ours, so that a submitter killed at any moment leaves nothing that runs without its point.

    points/<index> ──► jobs/ of each run      so a task finds its run by its index, and its logs lie in the run's own folder
    sbatch --hold                             nothing can start yet
    <job id>_submitted.pkl, attempt.json      in each run's folder: now it has all it needs
    scontrol release

The batch script: environment → srun (one Python a rank: job.run_job) → requeue.py, which says what becomes of the job.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import submitit
from submitit.core.utils import DelayedSubmission

from finetune import attempts
from finetune.cluster import ClusterConfig
from finetune.config import TrainConfig
from finetune.launch import job
from finetune.run_folder import RunFolder

SCRIPT = "submit.sh"
POINTS = "points"


def submit_array(runs: list[RunFolder], folder: Path, name: str) -> str:
    """Submit the runs as one job (one run) or one job array (several; task i is runs[i]).

    Args:
        folder: of this submission; the rendered script lies there, and points/<index> of an array.
        name: of the job in Slurm's queue.

    Returns:
        the job id; the array's tasks have <job id>_<index>.

    Raises:
        ValueError: Slurm refuses; nothing is queued then.
    """
    config, array = runs[0].config(), len(runs) > 1
    folder.mkdir(parents=True, exist_ok=True)
    if array:
        (folder / POINTS).mkdir()
        for index, run in enumerate(runs):
            run.jobs.mkdir(exist_ok=True)
            (folder / POINTS / str(index)).symlink_to(os.path.relpath(run.jobs, folder / POINTS))
    script = folder / SCRIPT
    script.write_text(render_script(config, name, _job_folder(runs, folder), len(runs) if array else None), encoding="utf-8")
    job_id = slurm_command("sbatch", "--parsable", "--hold", str(script)).partition(";")[0]
    for index, run in enumerate(runs):
        run.begin_attempt()
        task = f"{job_id}_{index}" if array else job_id
        DelayedSubmission(job.run_job, str(run.path)).dump(run.jobs / f"{task}_submitted.pkl")
        run.record_attempt(task, scheduler="slurm")
    slurm_command("scontrol", "release", job_id)
    return job_id


def _job_folder(runs: list[RunFolder], folder: Path) -> Path:
    """Where a task's pickle and logs lie; %a becomes its index."""
    return folder / POINTS / "%a" if len(runs) > 1 else runs[0].jobs


def render_script(config: TrainConfig, name: str, job_folder: Path, num_points: int | None) -> str:
    """The batch script: environment, requeue.py, srun, requeue.py."""
    cluster = config.cluster
    before, after = _requeue_lines(cluster, job_folder)
    executor = submitit.SlurmExecutor(folder=job_folder, python=_python(cluster))
    options = {"requeue": True, **_gpus(cluster), **cluster.sbatch}
    if cluster.memory_per_node:
        options["mem"] = cluster.memory_per_node
    executor.update_parameters(
        job_name=name, time=cluster.timeout_min, nodes=cluster.nodes, ntasks_per_node=cluster.ranks_per_node,
        cpus_per_task=cluster.cpus_per_rank, partition=cluster.partition, account=cluster.account, qos=cluster.qos,
        constraint=cluster.constraint, signal_delay_s=cluster.signal_lead_s, array_parallelism=cluster.array_parallelism,
        wckey=None, stderr_to_stdout=True, additional_parameters=options,
        srun_args=["--kill-on-bad-exit=1", "--wait=60", *cluster.srun],
        setup=[*environment_lines(cluster), *before], teardown=after,
    )  # fmt: skip
    executor.parameters["map_count"] = num_points
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return f"{text}\n"


def environment_lines(cluster: ClusterConfig) -> list[str]:
    """Shell lines that make a node ready for the job."""
    variables = {**cluster.env, **(cluster.env_many_nodes if cluster.nodes > 1 else cluster.env_one_node)}
    return [
        *(f"module {command}" for command in cluster.modules),
        *(f"export {key}={shlex.quote(value)}" for key, value in variables.items()),
        "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not take it from sbatch by itself",
        *cluster.setup,
    ]


def _python(cluster: ClusterConfig) -> str:
    return cluster.python or shlex.quote(sys.executable)


def _gpus(cluster: ClusterConfig) -> dict[str, str]:
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    return {
        "gpus-per-node": {"gpus-per-node": f"{kind}{cluster.ranks_per_node}"},
        "gpus-per-task": {"gpus-per-task": f"{kind}1"},
        "gres": {"gres": f"gpu:{kind}{cluster.ranks_per_node}"},
        "none": {},
    }[cluster.gpu_request]


def _requeue_lines(cluster: ClusterConfig, job_folder: Path) -> tuple[list[str], list[str]]:
    """What the batch script does before and after srun, so that the run comes back: requeue.py. It runs on the host, where
    Slurm's commands are, with any Python, as it needs no library."""
    head, _, tail = str(job_folder).partition("%a")
    run = shlex.quote(head) + ("$SLURM_ARRAY_TASK_ID" if "%a" in str(job_folder) else "") + shlex.quote(tail + "/..")
    python = "python3" if cluster.python else shlex.quote(sys.executable)
    code = shlex.quote(str(Path(attempts.__file__).parents[1]))
    policy = f"--max-restarts {cluster.max_restarts} --on-interrupt {cluster.on_interrupt} --world-size {cluster.world_size}"
    before = [
        "trap : TERM USR2  # what ends the ranks must leave this script the time for its last line",
        f'requeue() {{ PYTHONPATH="$PYTHONPATH:"{code} {python} -m finetune.launch.requeue "$1" {run} {policy} "${{@:2}}"; }}',
        'export SLURM_JOB_END_TIME="${SLURM_JOB_END_TIME:-$(date -d "$(squeue -h -j $SLURM_JOB_ID -o %e)" +%s)}"',
        "requeue begin || exit",
    ]
    return before, ["requeue end --code $?"]


def slurm_command(*command: str, timeout: float = 60) -> str:
    """Run one of Slurm's commands; what it printed.

    Raises:
        ValueError: it is not on PATH, or Slurm refused; in Slurm's own words.
    """
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not on PATH: this is no Slurm login node; log in to one, or choose cluster=local")
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split()).removeprefix(f"{command[0]}: error: ")
        raise ValueError(f"{command[0]}: {words or f'exit code {done.returncode}'}")
    return done.stdout.strip()
