"""Checks before a submission: requests to Slurm, and commands tried on the login node.

Nothing is written or queued. A check that is not possible on this machine does not stop the
submission. It is returned as a line that names the missing check and the reason.
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
# Errors of `sbatch --test-only` that do not show whether Slurm would accept the job: some sites
# forbid the option, and some replace sbatch by a wrapper without it. ("User's group not permitted
# to use this partition" does show that Slurm would refuse the job.)
NO_VERDICT = re.compile(r"permission denied|test-only|not implemented", re.IGNORECASE)


def check(cluster: ClusterConfig, num_points: int) -> list[str]:
    """Check, on this login node and with Slurm, that the jobs of a profile can run.

    Args:
        num_points: number of points of the sweep; 1 for a single run.

    Returns:
        a line for each check that was not possible on this machine, with the reason.

    Raises:
        UserError: Slurm would refuse the job or let it wait forever; the job's Python or torch
            cannot run on the nodes; or Slurm's programs are missing on this machine.
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
    """Ask Slurm, with `sbatch --test-only`, whether it would accept a batch script.

    Args:
        is_sweep: True for the script of a sweep. It is then no error if Slurm refuses because of a
            limit on the number of jobs, since points of a sweep can be submitted later.

    Returns:
        a line for the user if Slurm does not allow this check, else nothing.

    Raises:
        UserError: Slurm would refuse the script.
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
            f"cluster.python: must be set, because {cluster.name}'s compute nodes are {there} and this "
            f"Python is for {platform.machine()}; set the command of a Python for {there}, such as "
            f"cluster.python='{example}'"
        )


def _check_torch(cluster: ClusterConfig) -> list[str]:
    """Check that this Python's torch supports the site's GPUs, unless jobs use another Python.

    Returns:
        a line for the user if torch's support of old GPUs cannot be found out, else nothing.

    Raises:
        UserError: torch does not support the GPUs, or is a build for CPUs. The job would fail at
            its first operation on a GPU.
    """
    gpu = cluster.gpu_architecture
    if not cluster.uses_gpus:
        return []
    build = installed_torch() if cluster.python is None else None
    if build is not None and build.cuda == (0, 0):
        raise UserError(
            f"cluster.gpu_request: the job requests GPUs, but this Python's torch {build.version} is a build "
            f"for CPUs; install a build for GPUs, or set cluster.python to a Python that has one"
        )
    if gpu is None or not is_old(gpu):
        return []
    missing = lacks_support(build, gpu) if build is not None else None
    if build is not None and missing:
        raise UserError(
            f"cluster.site.gpu_architecture: this Python's torch {build.version} does not support {gpu}, the "
            f"GPUs of {cluster.name}; {OLDER_BUILD}"
        )
    if missing is not None:
        return []
    torch_name = f"torch {build.version}" if build is not None else "the job's torch"
    return [f"support of {torch_name} for {gpu}, the GPUs of {cluster.name}"]


def _check_host_python(cluster: ClusterConfig) -> list[str]:
    """Check that cluster.host_python, if the job uses it, is a Python of version 3.8 or newer.

    That Python is started after the profile's module commands, as in a job.

    Returns:
        a line for the user if this machine cannot show which Python the job will find, else
        nothing.

    Raises:
        UserError: cluster.setup is empty, and that Python is missing or too old. (Commands in
            cluster.setup may provide another Python.)
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
        f"cluster.host_python: {cluster.host_python} {fault}; to restart runs, the nodes need Python 3.8 or "
        f"newer outside the container; set a newer one, such as cluster.host_python=python3.11, or load its "
        f"module with cluster.modules"
    )


def _check_own_python(cluster: ClusterConfig) -> list[str]:
    """Check that this Python, if jobs use it, starts with only the profile's modules loaded.

    Returns:
        a line for the user if this cannot be tried on this machine, else nothing.

    Raises:
        UserError: this Python does not start. It then needs a module that is loaded in this shell,
            but not by the job.
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
        f"cluster.modules: this Python ({sys.executable}) does not start after {first}, which jobs run "
        f"first; set the modules that it needs, such as cluster.modules=['load Python/3.11'] "
        f"(loaded in this shell: {loaded})"
    )


def _module_commands(cluster: ClusterConfig) -> list[str]:
    if cluster.clean_modules:
        return [cluster.clean_modules, *cluster.modules]
    return cluster.modules


def _try_after_modules(cluster: ClusterConfig, *commands: str) -> subprocess.CompletedProcess[str] | str:
    """Run commands in a shell after the profile's module commands, as a job does.

    Returns:
        the completed process; or a string, the reason why this cannot be tried on this machine.
    """
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
    """Check that the job's time and number of nodes are within the partition's limits.

    Many sites (EnforcePartLimits=NO) accept jobs beyond the limits, which then never start.

    Args:
        key: prefix of the settings' names in error messages: cluster or cluster.prepare.

    Returns:
        a line for the user if Slurm does not report the limits, else nothing.

    Raises:
        UserError: the time or the number of nodes is above the limit.
    """
    selection = ["--partition", cluster.partition] if cluster.partition else []
    try:
        shown = slurm.slurm_command("sinfo", "--noheader", *selection, "--format", "%P|%l|%D")
    except slurm.SlurmError as fault:
        return [f"the partition's limits (sinfo: {fault.reason})"]
    limits: dict[str, tuple[float, int]] = {}
    for name, limit, nodes in re.findall(r"^([^|\s]+)\|([^|\s]+)\|(\d+)$", shown, re.MULTILINE):
        if cluster.partition or name.endswith("*"):
            before = limits[name][1] if name in limits else 0  # sinfo prints one line per node state
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
    """Return Slurm's [days-]hours:minutes:seconds as minutes; infinity for any other text."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not found:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes + seconds / 60
