"""Checks before a submission: requests to Slurm and trials on the login node.

Nothing is written or queued. A check that cannot be made here does not refuse the submission: it is
returned as a line that names what was not checked, and why.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

from data_prep.user_error import UserError
from finetune.config.cluster import ClusterConfig
from finetune.job.slurm_queue import TOO_MANY
from finetune.launch import slurm
from finetune.launch.environment import FIND_MODULE, node_lines
from finetune.launch.job_python import container, uses_host_python
from finetune.launch.slurm import PYTHON_3_8
from finetune.launch.torch_build import OLDER_BUILD, installed_torch, is_old, lacks_support

PRINT_VERSION = "'import sys; print(sys.version.split()[0])'"
TRIAL_SECONDS = 60  # time limit of a login node's module commands
NO_MODULES = 77  # exit code of a trial whose module commands do not work here
# Answers of `sbatch --test-only` that do not judge the job: some sites forbid the option, and some
# replace sbatch by a wrapper without it. ("User's group not permitted to use this partition" does
# judge the job.)
NO_VERDICT = re.compile(r"permission denied|test-only|not implemented", re.IGNORECASE)


def check(cluster: ClusterConfig, num_points: int) -> list[str]:
    """Check with Slurm, and by trials on this login node, that such a job can run.

    Returns:
        a line for each check that could not be made here, with the reason.

    Raises:
        UserError: Slurm would refuse the job or let it wait forever, or its Python or torch cannot
            run there.
    """
    _check_architecture(cluster)
    not_checked = _check_torch(cluster)
    for program in ("sbatch", "scontrol"):
        slurm.require_program(program)
    not_checked += [*_check_host_python(cluster), *_check_own_python(cluster)]
    array_size = 1 if num_points > 1 else None
    script = slurm.render_script(cluster, "test", Path("/dev/null"), Path("/dev/null"), array_size)
    return [*not_checked, *try_submission(script, is_sweep=num_points > 1), *check_partition(cluster)]


def try_submission(script: str, *, is_sweep: bool = False) -> list[str]:
    """Ask Slurm whether it would accept a batch script; return a line if it gives no answer.

    Args:
        is_sweep: its points may wait for places in the queue, so a full queue is not a reason to
            refuse.

    Raises:
        UserError: Slurm would refuse it.
    """
    try:
        slurm.slurm_command("sbatch", "--test-only", stdin=script)
    except slurm.SlurmError as fault:
        if NO_VERDICT.search(fault.reason):
            return [f"Slurm's acceptance of the job (sbatch --test-only: {fault.reason})"]
        if not (is_sweep and TOO_MANY.search(fault.reason)):
            raise
    return []


def _check_architecture(cluster: ClusterConfig) -> None:
    there = cluster.site.compute_architecture
    if there and there != platform.machine() and cluster.python is None:
        example = cluster.site.python_example or "apptainer exec --nv IMAGE python3"
        raise UserError(
            f"cluster.python: must be set, as {cluster.name}'s compute nodes are {there} and this Python is "
            f"for {platform.machine()}; set the command of a Python there, such as cluster.python='{example}'"
        )


def _check_torch(cluster: ClusterConfig) -> list[str]:
    """Check that torch supports the site's GPUs, if the job uses the torch that is installed here.

    Raises:
        UserError: it does not: the job would start, and fail at its first operation on a GPU.
    """
    gpu = cluster.gpu_architecture
    if not cluster.uses_gpus:
        return []
    build = installed_torch() if cluster.python is None else None
    if build is not None and build.cuda == (0, 0):
        raise UserError(
            f"cluster.gpu_request: the job requests GPUs, but this Python's torch {build.version} is a build "
            f"for CPUs; install one for GPUs, or name another Python (cluster.python)"
        )
    if gpu is None or not is_old(gpu):
        return []
    missing = lacks_support(build, gpu) if build is not None else None
    if build is not None and missing:
        raise UserError(
            f"cluster.site.gpu_architecture: the GPUs of {cluster.name} are {gpu}, which this Python's torch "
            f"{build.version} does not support; {OLDER_BUILD}"
        )
    if missing is not None:
        return []
    torch_name = f"torch {build.version}" if build is not None else "the job's torch"
    return [f"support of {torch_name} for {gpu}, the GPUs of {cluster.name}"]


def _check_host_python(cluster: ClusterConfig) -> list[str]:
    """Try the host's Python as the job will, after the profile's module commands.

    Raises:
        UserError: it is missing or too old, and only this setting determines which Python is used.
    """
    if not uses_host_python(cluster):
        return []
    name = f"the nodes' Python ({cluster.host_python}), which restarts runs"
    trial = [f"{cluster.host_python} -c {code}" for code in (PRINT_VERSION, PYTHON_3_8)]
    done = _try_after_modules(cluster, *trial)
    if isinstance(done, str):
        return [f"{name}: {done}"]
    if done.returncode == 0:
        return []
    if cluster.setup:
        return [f"{name}: cluster.setup may change it"]
    fault = {1: f"is Python {done.stdout.strip()} here", 127: "is not on this host"}.get(done.returncode)
    if fault is None:
        return [f"{name}: it does not start here"]
    raise UserError(
        f"cluster.host_python: {cluster.host_python} {fault}, and restarting runs needs 3.8 or newer on "
        f"the nodes, outside the container; name a newer one (cluster.host_python=python3.11), or load one "
        f"(cluster.modules)"
    )


def _check_own_python(cluster: ClusterConfig) -> list[str]:
    """Check that this Python, if it is the job's, starts without the modules loaded in this shell.

    Raises:
        UserError: it does not: it came from a module that the job does not load.
    """
    if cluster.python is not None or cluster.setup or not (cluster.clean_modules or cluster.modules):
        return []
    done = _try_after_modules(cluster, f"{shlex.quote(sys.executable)} -c ''")
    if isinstance(done, str):
        return [f"the start of this Python with the job's modules: {done}"]
    if done.returncode == 0:
        return []
    loaded = ", ".join(filter(None, os.environ.get("LOADEDMODULES", "").split(":"))) or "none"
    first = ", ".join(f"`module {command}`" for command in _module_commands(cluster))
    raise UserError(
        f"cluster.modules: this Python ({sys.executable}) does not start after {first}, as in a job; "
        f"name the modules that it needs, such as cluster.modules=['load Python/3.11'] "
        f"(loaded in this shell: {loaded})"
    )


def _module_commands(cluster: ClusterConfig) -> list[str]:
    if cluster.clean_modules:
        return [cluster.clean_modules, *cluster.modules]
    return cluster.modules


def _try_after_modules(cluster: ClusterConfig, *commands: str) -> subprocess.CompletedProcess[str] | str:
    """Run commands after the profile's module commands, as a job does; return why if impossible."""
    if container():
        return "this command runs in a container"
    modules = _module_commands(cluster)
    needs_modules = [FIND_MODULE, f"type module > /dev/null 2>&1 || exit {NO_MODULES}"] if modules else []
    load = [f"module {command} > /dev/null 2>&1 || exit {NO_MODULES}" for command in modules]
    trial = "\n".join([*node_lines(cluster), *needs_modules, *load, "exec 2> /dev/null", *commands])
    try:
        done = subprocess.run(
            ["bash", "-c", trial],
            capture_output=True,
            text=True,
            timeout=TRIAL_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"the profile's module commands did not end within {TRIAL_SECONDS} s"
    if done.returncode == NO_MODULES:
        return "the profile's module commands do not work here"
    return done


def check_partition(cluster: ClusterConfig, key: str = "cluster") -> list[str]:
    """Compare time and nodes with the partition's limits.

    Many sites (EnforcePartLimits=NO) queue jobs that can never start.

    Args:
        key: of the settings, for the message.
    """
    selection = ["--partition", cluster.partition] if cluster.partition else []
    try:
        shown = slurm.slurm_command("sinfo", "--noheader", *selection, "--format", "%P|%l|%D")
    except slurm.SlurmError as fault:
        return [f"the partition's limits (sinfo: {fault.reason})"]
    limits: dict[str, tuple[float, int]] = {}
    for name, limit, nodes in re.findall(r"^([^|\s]+)\|([^|\s]+)\|(\d+)$", shown, re.MULTILINE):
        if cluster.partition or name.endswith("*"):
            before = limits[name][1] if name in limits else 0  # sinfo prints a line per state of nodes
            limits[name] = (_minutes(limit), before + int(nodes))
    if not limits:  # sinfo shows no default partition; sbatch has accepted the job
        return []
    longest = max(minutes for minutes, _ in limits.values())
    most = max(nodes for _, nodes in limits.values())
    partition = " and ".join(name.rstrip("*") for name in limits)
    if cluster.timeout_min > longest:
        raise UserError(
            f"{key}.timeout_min: must be at most {longest:.0f}, the limit of partition {partition}, "
            f"not {cluster.timeout_min}"
        )
    if cluster.nodes > most:
        raise UserError(
            f"{key}.nodes: must be at most {most}, the size of partition {partition}, not {cluster.nodes}"
        )
    return []


def _minutes(limit: str) -> float:
    """Return Slurm's [days-]hours:minutes:seconds in minutes; infinity if there is no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not found:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes + seconds / 60
