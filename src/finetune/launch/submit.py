"""`submit(points)` is the one way a run starts: a plain run passes one point, a sweep all of them.

Each point is frozen in its run folder, then started with submitit. submitit allocates, writes logs and starts one process a
rank; what the job does is read from the run folder alone (job.py), so editing a recipe afterwards changes nothing.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import submitit
from filelock import FileLock, Timeout

from finetune import base
from finetune import config as configuration
from finetune.config import TrainConfig
from finetune.launch import job, slurm
from finetune.launch.follow import follow
from finetune.run_folder import RunFolder

PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "mlflow",
    "hydra-core",
    "submitit",
    "numpy",
)


def submit(points: list[TrainConfig]) -> list[RunFolder]:
    """Validate every point, freeze each in a run folder, and run them in turn; a detached run is started and left.

    Raises:
        ValueError, FileNotFoundError: a point is wrong; nothing was started then.
    """
    if len(points) > 1 and any(point.detach for point in points):
        raise ValueError("detach=true with a sweep would start all its points at once on this machine: leave one of the two out")
    frozen = [point.frozen() for point in points]
    for point in _one_of_each_input(frozen):
        base.check_inputs(point)
    runs = [_freeze(point) for point in frozen]
    if frozen[0].cluster.scheduler == "slurm":
        if len(runs) == 1:
            slurm.submit_array(runs, runs[0].jobs, runs[0].id)
        else:
            sweep = _new_id(frozen[0].name)
            slurm.submit_array(runs, Path(frozen[0].runs_dir) / "sweeps" / sweep, sweep)
        return runs
    for run in runs:
        start(run)
        if run.stop_file.exists():  # Ctrl-C is meant for the whole sweep; the rest stays queued
            break
    return runs


def resume(run: RunFolder, overrides: list[str]) -> None:
    """Go on with a run that was stopped, killed or failed, from its newest good checkpoint.

    Args:
        overrides: settings that change from now on, such as cluster.ranks_per_node=2: see config.CHANGEABLE.

    Raises:
        ValueError: the run is running, or has ended well; or a setting may not change.
    """
    if run.state() == "completed":
        raise ValueError(f"run {run.id} is completed: start a new one from it with model=run:{run.id}")
    if run.state() == "running":
        raise _in_use(run)
    config = configuration.changed(run.config(), overrides)
    base.check_inputs(config)
    if overrides:
        temporary = run.path / ".config.yaml.tmp"
        configuration.save(config, temporary)
        os.replace(temporary, run.config_file)
    start(run)


def start(run: RunFolder) -> None:
    """Start one run and, unless it is detached, follow it to its end.

    Raises:
        ValueError: the run is in use.
    """
    config = run.config()
    try:
        with FileLock(run.path / ".submit.lock", timeout=0):
            if run.state() == "running":
                raise Timeout(str(run.lock.lock_file))
            with run.lock:  # held by a rank, perhaps of another machine, for as long as it trains
                run.begin_attempt()
            executor = submitit.LocalExecutor(folder=run.jobs)
            executor.update_parameters(
                tasks_per_node=config.cluster.ranks_per_node, timeout_min=config.cluster.timeout_min, stderr_to_stdout=True
            )
            with _deaf_children(run):
                submitted = executor.submit(job.run_job, str(run.path))
            run.record_attempt(submitted.job_id)
    except Timeout:
        raise _in_use(run) from None
    if not config.detach:
        follow(run, submitted)


def _in_use(run: RunFolder) -> ValueError:
    pids = ", ".join(str(rank.pid) for rank in run.processes()) or "on another machine"
    return ValueError(f"run {run.id} is in use: it is still running (processes: {pids})")


def _one_of_each_input(points: list[TrainConfig]) -> list[TrainConfig]:
    """Points of a sweep mostly share corpus and base: checksums are computed once."""
    return list({repr((point.data, point.model)): point for point in points}.values())


def _new_id(name: str) -> str:
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _freeze(config: TrainConfig) -> RunFolder:
    run = RunFolder(Path(config.runs_dir) / _new_id(config.name))
    run.path.mkdir(parents=True)
    run.write_json("provenance.json", _provenance())
    configuration.save(config, run.config_file)
    return run


def _provenance() -> dict[str, Any]:
    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    return {
        "command": ["finetune", *sys.argv[1:]],
        "submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "git_revision": git("rev-parse", "HEAD"),
        "git_diff": git("diff", "HEAD"),
    }


@contextmanager
def _deaf_children(run: RunFolder) -> Iterator[None]:
    """Processes started in here ignore Ctrl-C and a closed terminal, which are for the shell that follows them (follow.py),
    and do not hold that shell's output open: `id=$(finetune train … detach=true)` returns at once.

    An ignored signal stays ignored across exec, which a handler would not; submitit has no parameters for any of this.
    """
    signals = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    # submitit hides GPUs that it was not told of; the job puts back what this shell sees
    os.environ[job.SHELL_GPUS] = os.environ.get("CUDA_VISIBLE_DEVICES", job.ALL_GPUS)
    # a rank must not take another launcher's environment for its own
    inherited = {
        key: os.environ.pop(key)
        for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if key in os.environ
    }
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    run.jobs.mkdir(exist_ok=True)
    with (run.jobs / "controller.log").open("ab") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    try:
        yield
    finally:
        for descriptor, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.environ.update(inherited)
        for number, handler in signals.items():
            signal.signal(number, handler)
