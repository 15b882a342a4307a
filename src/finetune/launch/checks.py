"""Checks before a submission, by questions to Slurm and by trials on the login node. Nothing is written or
queued.

A check that cannot be made here is no refusal: it is returned as a line on what was not checked, and why.
"""

from __future__ import annotations

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
from finetune.launch.torch_build import OLDER_BUILD, installed_torch, is_old, lacks

PRINT_VERSION = "'import sys; print(sys.version.split()[0])'"
TRIAL_SECONDS = 60  # that the module commands of a login node may take
NO_MODULES = 77  # exit code of a trial whose module commands do not work here
# answers of `sbatch --test-only` that are no verdict on the job: sites forbid it, or wrap sbatch in what does
# not know it. "User's group not permitted to use this partition" is one.
NO_VERDICT = re.compile(r"permission denied|test-only|not implemented", re.IGNORECASE)


def check(cluster: ClusterConfig, num_points: int) -> list[str]:
    """Ask Slurm, and try on this login node, whether such a job can run.

    Returns:
        what could not be checked here and why, a line each.

    Raises:
        UserError: Slurm would refuse the job or let it wait for ever, or its Python or torch cannot run
            there.
    """
    _check_architecture(cluster)
    not_checked = _check_torch(cluster)
    for program in ("sbatch", "scontrol"):
        slurm.require_program(program)
    not_checked += [*_check_host_python(cluster), *_check_own_python(cluster)]
    script = slurm.render_script(
        cluster, "test", Path("/dev/null"), Path("/dev/null"), 1 if num_points > 1 else None
    )
    return [*not_checked, *try_submission(script, is_sweep=num_points > 1), *check_partition(cluster)]


def try_submission(script: str, *, is_sweep: bool = False) -> list[str]:
    """Ask Slurm whether it would take a batch script; return why that could not be found out, if so.

    Args:
        is_sweep: its points may wait for places in the queue, so that a full queue is no reason to refuse.

    Raises:
        UserError: it would not.
    """
    try:
        slurm.slurm_command("sbatch", "--test-only", stdin=script)
    except slurm.SlurmError as fault:
        if NO_VERDICT.search(fault.reason):
            return [f"whether Slurm would take the job (sbatch --test-only: {fault.reason})"]
        if not (is_sweep and TOO_MANY.search(fault.reason)):
            raise
    return []


def _check_architecture(cluster: ClusterConfig) -> None:
    there = cluster.site.compute_architecture
    if there and there != platform.machine() and cluster.python is None:
        example = cluster.site.python_example or "apptainer exec --nv IMAGE python3"
        raise UserError(
            f"cluster.python is missing: {cluster.name}'s compute nodes are {there}, this Python is for {platform.machine()}: "
            f"give the command of a Python there, as in cluster.python='{example}'"
        )


def _check_torch(cluster: ClusterConfig) -> list[str]:
    """Check that torch has code for the GPUs of the site, where the job's torch is the one that is installed
    here.

    Raises:
        UserError: it has none: the job would start, and fail at its first operation on the GPU.
    """
    gpu = cluster.gpu_architecture
    if not cluster.uses_gpus:
        return []
    build = installed_torch() if cluster.python is None else None
    if build is not None and build.cuda == (0, 0):
        raise UserError(
            f"cluster.gpu_request: the job asks for GPUs, and torch {build.version} of this Python is a build for CPUs; "
            f"install one for GPUs, or name another Python (cluster.python)"
        )
    if gpu is None or not is_old(gpu):
        return []
    missing = lacks(build, gpu) if build is not None else None
    if build is not None and missing:
        raise UserError(
            f"cluster.site.gpu_architecture: the GPUs of {cluster.name} are {gpu}, and torch {build.version} of this Python "
            f"has no code for them; {OLDER_BUILD}"
        )
    which = f"torch {build.version}" if build is not None else "the job's torch"
    return [f"whether {which} has code for {gpu}, the GPUs of {cluster.name}"] if missing is None else []


def _check_host_python(cluster: ClusterConfig) -> list[str]:
    """Try, as the job will, the host's Python after the profile's module commands.

    Raises:
        UserError: it is missing or too old, and nothing but this setting decides which one it is.
    """
    if not uses_host_python(cluster):
        return []
    name = f"the nodes' Python ({cluster.host_python}), which brings a run back"
    trial = [f"{cluster.host_python} -c {code}" for code in (PRINT_VERSION, PYTHON_3_8)]
    done = _try_after_modules(cluster, *trial)
    if isinstance(done, str):
        return [f"{name}: {done}"]
    fault = {1: f"is Python {done.stdout.strip()} here", 127: "is not on this host"}.get(done.returncode)
    if done.returncode == 0:
        return []
    if fault is None or cluster.setup:
        return [f"{name}: {'cluster.setup may change it' if cluster.setup else 'it does not start here'}"]
    raise UserError(
        f"cluster.host_python: {cluster.host_python} {fault}, and what brings a run back needs 3.8 or newer on the nodes, "
        f"outside of the container; name a newer one (cluster.host_python=python3.11), or load one (cluster.modules)"
    )


def _check_own_python(cluster: ClusterConfig) -> list[str]:
    """Try whether this Python, if it is the job's, starts without the modules that this shell has loaded.

    Raises:
        UserError: it does not, as a Python that came from a module which the job does not load.
    """
    if cluster.python is not None or cluster.setup or not (cluster.clean_modules or cluster.modules):
        return []
    done = _try_after_modules(cluster, f"{shlex.quote(sys.executable)} -c ''")
    if isinstance(done, str):
        return [f"whether this Python starts with the job's modules: {done}"]
    if done.returncode == 0:
        return []
    loaded = ", ".join(filter(None, os.environ.get("LOADEDMODULES", "").split(":"))) or "none"
    first = ", ".join(f"`module {command}`" for command in _module_commands(cluster))
    raise UserError(
        f"cluster.modules: this Python ({sys.executable}) does not start after {first}, as in a job; "
        f"name the modules that it needs, as in cluster.modules=['load Python/3.11'] (loaded in this shell: {loaded})"
    )


def _module_commands(cluster: ClusterConfig) -> list[str]:
    return [cluster.clean_modules, *cluster.modules] if cluster.clean_modules else cluster.modules


def _try_after_modules(cluster: ClusterConfig, *commands: str) -> subprocess.CompletedProcess[str] | str:
    """Run commands as a job would, after the profile's module commands; why that is not possible here,
    else."""
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
    return "the profile's module commands do not work here" if done.returncode == NO_MODULES else done


def check_partition(cluster: ClusterConfig, key: str = "cluster") -> list[str]:
    """Compare time and nodes with the partition's limits: many sites queue what can never start
    (EnforcePartLimits=NO).

    Args:
        key: of the settings, for the message.
    """
    selection = ["--partition", cluster.partition] if cluster.partition else []
    try:
        shown = slurm.slurm_command("sinfo", "--noheader", *selection, "--format", "%P|%l|%D")
    except slurm.SlurmError as fault:
        return [f"the partition's limits (sinfo: {fault.reason})"]
    limits: dict[str, tuple[float | None, int]] = {}
    for name, limit, nodes in re.findall(r"^([^|\s]+)\|([^|\s]+)\|(\d+)$", shown, re.MULTILINE):
        if cluster.partition or name.endswith("*"):
            before = limits[name][1] if name in limits else 0  # one line a state of nodes
            limits[name] = (_minutes(limit), before + int(nodes))
    if not limits:  # no default partition is shown, or none at all: sbatch has not objected
        return []
    longest = max((float("inf") if limit is None else limit) for limit, _ in limits.values())
    most = max(nodes for _, nodes in limits.values())
    partition = " and ".join(name.rstrip("*") for name in limits)
    if cluster.timeout_min > longest:
        raise UserError(
            f"{key}.timeout_min is {cluster.timeout_min}: partition {partition} takes jobs of {longest:.0f} minutes at most"
        )
    if cluster.nodes > most:
        raise UserError(f"{key}.nodes is {cluster.nodes}: partition {partition} has {most}")
    return []


def _minutes(limit: str) -> float | None:
    """Slurm's [days-]hours:minutes:seconds; None: no limit."""
    if not (found := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)):
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes + seconds / 60
