"""Runs on this machine, through submitit's local executor, or with srun in the allocation that this shell
has: one at a time, followed unless detached."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import Timeout
from submitit.core.utils import DelayedSubmission

from data_prep.user_error import UserError
from finetune.config.train import TrainConfig
from finetune.job import rank
from finetune.launch import ranks, slurm, sweep_files
from finetune.launch.environment import environment_lines
from finetune.launch.follow import Controller, Interrupts, follow
from finetune.launch.freeze import snapshot_code
from finetune.launch.job_python import job_python
from finetune.runs import layout
from finetune.runs.folder import RunFolder
from finetune.runs.state import RunState


def start_in_turn(runs: list[RunFolder]) -> None:
    """Start each run when the one before it has ended; one that is cancelled while it waits is left out.

    The first Ctrl-C ends this: the run that is at work saves and stops, and those behind it stay queued. A
        run of a sweep whose
    shell was killed while it was at work is followed to its end.

    Raises:
        UserError: a run is in use, or the allocation is too small for it.
    """
    interrupts = Interrupts()
    neighbours: set[str] = set()
    try:
        for run in runs:
            _put_in_turn(run)
        with interrupts.handled():
            for position, run in enumerate(runs):
                neighbours = _report_neighbours(run, neighbours)
                start(run, interrupts, f"{position + 1}/{len(runs)}" if len(runs) > 1 else "")
                _note_in_sweep(run)
                if interrupts.pressed:
                    break
    finally:
        for run in runs:
            run.remove_turn()


def _note_in_sweep(run: RunFolder) -> None:
    """Write what became of a point into its sweep's table."""
    if sweep := run.sweep():
        with suppress(OSError):  # a full disk does not end the sweep
            sweep_files.update(run.path.parent, sweep)


def describe_start(config: TrainConfig, num_runs: int) -> str:
    """Return how so many runs would be started on this machine, in a line or two."""
    cluster = config.cluster
    order = f"{num_runs} runs, one after the other" if num_runs > 1 else "1 run"
    ranks = "1 rank" if cluster.world_size == 1 else f"{cluster.world_size} ranks"
    place = "with srun in this allocation" if cluster.scheduler == "slurm" else "on this machine"
    each = " each" if num_runs > 1 else ""
    return f"{order}, {place}: {ranks}{each}, at most {cluster.timeout_min} minutes{each}\nrun folders: {config.runs_dir}\n"


def _put_in_turn(run: RunFolder) -> None:
    """Make a run queued, however it ended before; one that is at work stays as it is."""
    with _submission_lock(run):
        if run.state() == RunState.RUNNING:
            if not run.has_lost_its_shell():
                raise _in_use(run)
        else:
            with run.lock:  # held by a rank, perhaps of another machine, for as long as it trains
                run.clear_attempt_files()
        run.record_turn()


@contextmanager
def _submission_lock(run: RunFolder) -> Iterator[None]:
    """Hold the lock that is for starting and cancelling a run.

    Raises:
        UserError: the run is in use.
    """
    try:
        with run.submission_lock:
            yield
    except Timeout:
        raise _in_use(run) from None


def start(run: RunFolder, interrupts: Interrupts, place: str) -> None:
    """Start a queued run and, unless it is detached, follow it to its end.

    Args:
        place: of the run among those that are started in turn.

    Raises:
        UserError: the run is in use, or the allocation is too small for it.
    """
    config = run.config()
    with _submission_lock(run):
        state = run.state()
        if state == RunState.CANCELLED:
            return
        if state == RunState.RUNNING:  # it has lost its shell: see _put_in_turn
            process = run.find_controller()
            if process is None:
                raise _in_use(run)
            controller = Controller(process, lambda: not process.is_running())
        elif config.debug:
            _debug(run, config)
            return
        elif config.cluster.scheduler == "slurm":
            code = snapshot_code(run.path.parent)
            controller = _srun(run, config, code)
            run.record_submission(str(controller.process.pid), code=code.name)
        else:
            controller = _local_ranks(run, config)
            run.record_submission(str(controller.process.pid))
    if not config.detach:
        follow(run, controller, interrupts, place)


def _report_neighbours(run: RunFolder, known: set[str]) -> set[str]:
    """Print which other runs are at work on this machine, once for each; return their folders."""
    if run.config().cluster.scheduler != "local":
        return known
    found = {folder for folder in _folders_at_work() if folder != str(run.path)}
    for folder in sorted(found - known):
        line = f"this machine is shared: another run is at work here, and each will be slower: {folder}"
        print(line, file=sys.stderr)  # noqa: T201
    return found | known


def _folders_at_work() -> set[str]:
    """Return the folders of the runs that have ranks on this machine and on GPUs that this shell sees."""
    mine = _gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "submitit.core._submit" not in words or Path(words[-1]).name != layout.JOBS:
            continue
        with suppress(psutil.Error):
            theirs = _gpus(process.environ().get(rank.SHELL_GPUS))
            if mine and theirs and not mine & theirs:
                continue
        found.add(str(Path(words[-1]).parent))
    return found


def _gpus(visible: str | None) -> set[str]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names; none if it does not choose."""
    return (
        set()
        if visible in (None, rank.ALL_GPUS)
        else {name.strip() for name in str(visible).split(",") if name.strip()}
    )


def _local_ranks(run: RunFolder, config: TrainConfig) -> Controller:
    executor = ranks.Executor(folder=run.jobs)
    executor.update_parameters(
        tasks_per_node=config.cluster.ranks_per_node, timeout_min=config.cluster.timeout_min
    )
    with _ignore_terminal_signals(run):
        submitted = executor.submit(rank.run_job, str(run.path))
    return Controller(psutil.Process(int(submitted.job_id)), submitted.done)


# --- in an allocation
# --------------------------------------------------------------------------------------------------


def check_allocation(config: TrainConfig) -> None:
    """Raises UserError if the allocation that this shell has is too small for the run."""
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if config.cluster.nodes > nodes:
        raise UserError(
            f"cluster.nodes is {config.cluster.nodes}, but this allocation has {nodes}: lower it, or leave the allocation"
        )


def _srun(run: RunFolder, config: TrainConfig, code: Path) -> Controller:
    """The ranks as a step of this allocation; its end, and not the job's, is the end of the attempt."""
    run.jobs.mkdir(exist_ok=True)
    job_id = os.environ["SLURM_JOB_ID"]
    DelayedSubmission(rank.run_job, str(run.path)).dump(run.jobs / layout.pickle_of(job_id))
    srun = _step(
        config,
        "--unbuffered",
        f"--output={run.jobs / layout.log_of('%j', '%t')}",
        "--kill-on-bad-exit=1",
        "--wait=60",
    )
    ranks = [
        *srun,
        job_python(config.cluster.python),
        "-u -m submitit.core._submit",
        shlex.quote(str(run.jobs)),
    ]
    lines = [
        *environment_lines(config.cluster),
        slurm.code_line(code),
        "export SUBMITIT_EXECUTOR=slurm",
    ]
    script = run.jobs / layout.ATTACHED
    script.write_text("\n".join(["#!/bin/bash", *lines, "exec " + " ".join(ranks), ""]), encoding="utf-8")
    for name in (
        "SLURM_ARRAY_JOB_ID",
        "SLURM_ARRAY_TASK_ID",
    ):  # submitit would take this shell's task for the run's
        os.environ.pop(name, None)
    with (run.jobs / layout.CONTROLLER_LOG).open("ab") as log:
        log.write(
            f"{time.strftime('%Y-%m-%d %H:%M:%S')} finetune: srun starts\n".encode()
        )  # where causes.py reads on from
        log.flush()
        started = subprocess.Popen(
            ["bash", str(script)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    return Controller(psutil.Process(started.pid), lambda: started.poll() is not None, owns_ranks=False)


def _step(config: TrainConfig, *options: str) -> list[str]:
    """srun within this allocation, beside the step that the shell itself may be."""
    cluster = config.cluster
    shape = [
        f"--nodes={cluster.nodes}",
        f"--ntasks={cluster.world_size}",
        f"--ntasks-per-node={cluster.ranks_per_node}",
    ]
    if not cluster.binds_cores:  # srun takes no number of cores beside a mask of them
        shape.append(f"--cpus-per-task={cluster.cpus_per_rank}")
    return ["srun", "--overlap", *shape, *map(shlex.quote, [*options, *cluster.srun])]


def _debug(run: RunFolder, config: TrainConfig) -> None:
    """The one rank in this shell: what is typed goes to the debugger."""
    program = f"-m finetune.job.debug {shlex.quote(str(run.path))}"
    if config.cluster.scheduler == "slurm":
        code = snapshot_code(run.path.parent)
        lines = [*environment_lines(config.cluster), slurm.code_line(code)]
        terminal = ["--pty"] if sys.stdin.isatty() else []
        command = " ".join([*_step(config, *terminal), job_python(config.cluster.python), program])
    else:
        lines, command = [], f"{shlex.quote(sys.executable)} {program}"
    run.record_submission(str(os.getpid()))
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the debugger's
    try:
        subprocess.run(["bash", "-c", "\n".join([*lines, f"exec {command}"])], check=False)
    finally:
        signal.signal(signal.SIGINT, interrupt)


def _in_use(run: RunFolder) -> UserError:
    pids = ", ".join(str(process.pid) for process in run.find_ranks()) or "on another machine"
    return UserError(f"run {run.id} is in use: it is still running (processes: {pids})")


@contextmanager
def _ignore_terminal_signals(run: RunFolder) -> Iterator[None]:
    """Processes started in here ignore Ctrl-C and a closed terminal, which are for the shell that follows
    them (follow.py), and do not hold that shell's output open: `id=$(finetune train … detach=true)` returns
    at once.

    An ignored signal stays ignored across exec, which a handler would not; submitit has no parameters for any
    of this.
    """
    signals = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    # submitit hides GPUs that it was not told of; the job puts back what this shell sees
    os.environ[rank.SHELL_GPUS] = os.environ.get("CUDA_VISIBLE_DEVICES", rank.ALL_GPUS)
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
    with (run.jobs / layout.CONTROLLER_LOG).open("ab") as log:
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
