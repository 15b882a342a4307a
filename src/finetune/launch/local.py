"""Runs on this machine, through submitit's local executor: one at a time, followed, unless detached."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import submitit
from filelock import FileLock, Timeout

from finetune.launch import job
from finetune.launch.follow import follow
from finetune.run_folder import RunFolder


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
