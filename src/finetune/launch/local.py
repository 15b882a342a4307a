"""Start runs from this process: with submitit on this machine, or with srun in a Slurm allocation.

The runs are started one after the other. Unless detach is set, this process shows the progress of
each until it ends (follow.py).
"""

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
    """Start each run when the one before it has ended; skip a run that is cancelled while it waits.

    The first Ctrl-C makes the current run save and stop; the others are not started. If one of the
    runs still runs, because only the process that followed it was killed, it is not started again
    but followed to its end.

    Raises:
        UserError: a run is in use by another process.
    """
    interrupts = Interrupts()
    neighbours: set[str] = set()
    try:
        for run in runs:
            _put_in_turn(run)
        with interrupts.catch_sigint():
            for position, run in enumerate(runs):
                neighbours = _report_neighbours(run, neighbours)
                place = f"{position + 1}/{len(runs)}" if len(runs) > 1 else ""
                start(run, interrupts, place)
                _update_sweep(run)
                if interrupts.pressed:
                    break
    finally:
        for run in runs:
            run.remove_turn()


def _update_sweep(run: RunFolder) -> None:
    """Write the run's result into the table of its sweep, if the run belongs to a sweep."""
    sweep = run.sweep()
    if sweep:
        with suppress(OSError):  # a full disk does not end the sweep
            sweep_files.update(run.path.parent, sweep)


def describe_start(config: TrainConfig, num_runs: int) -> str:
    """Return a description of how the runs would be started, for dry_run=true."""
    cluster = config.cluster
    order = f"{num_runs} runs, one after the other" if num_runs > 1 else "1 run"
    ranks = "1 rank" if cluster.world_size == 1 else f"{cluster.world_size} ranks"
    place = "with srun in this allocation" if cluster.scheduler == "slurm" else "on this machine"
    each = " each" if num_runs > 1 else ""
    limit = f"at most {cluster.timeout_min} minutes{each}"
    return f"{order}, {place}: {ranks}{each}, {limit}\nrun folders: {config.runs_dir}\n"


def _put_in_turn(run: RunFolder) -> None:
    """Mark a run as queued by this process.

    The files of the run's last attempt are removed, unless this attempt still runs because only the
    process that followed it was killed.

    Raises:
        UserError: the run is in use by another process.
    """
    with _submission_lock(run):
        if run.state() == RunState.RUNNING:
            if not run.has_lost_its_shell():
                raise _in_use_error(run)
        else:
            with run.lock:  # rank 0 holds it while it trains, perhaps on another machine
                run.clear_attempt_files()
        run.record_turn()


@contextmanager
def _submission_lock(run: RunFolder) -> Iterator[None]:
    """Hold the lock under which a run is started or cancelled.

    Raises:
        UserError: another process holds this lock, or a lock that the `with` block takes.
    """
    try:
        with run.submission_lock:
            yield
    except Timeout:
        raise _in_use_error(run) from None


def start(run: RunFolder, interrupts: Interrupts, place: str) -> None:
    """Start a queued run and, unless detach is set, follow it to its end.

    A cancelled run is not started. A run that still runs is only followed.

    Args:
        place: the run's number among those started in turn, such as `3/12`; "" for a single run.

    Raises:
        UserError: the run is in use by another process, or its code cannot be copied.
    """
    config = run.config()
    with _submission_lock(run):
        state = run.state()
        if state == RunState.CANCELLED:
            return
        if state == RunState.RUNNING:  # the process that followed it was killed: see _put_in_turn
            process = run.find_controller()
            if process is None:
                raise _in_use_error(run)
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
    """Warn about other runs on this machine, each only once.

    Args:
        run: the run that is about to start.
        known: folders of the other runs that were reported before.

    Returns:
        `known` and the folders of the runs that were reported now.
    """
    if run.config().cluster.scheduler != "local":
        return known
    found = {folder for folder in _busy_folders() if folder != str(run.path)}
    for folder in sorted(found - known):
        line = f"another run is running on this machine, and both will be slower: {folder}"
        print(line, file=sys.stderr)  # noqa: T201
    return found | known


def _busy_folders() -> set[str]:
    """Return the folders of the runs whose ranks run on this machine.

    Runs that use only GPUs hidden from this process are left out.
    """
    mine = _gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if "submitit.core._submit" not in arguments or Path(arguments[-1]).name != layout.JOBS:
            continue
        with suppress(psutil.Error):
            theirs = _gpus(process.environ().get(rank.SHELL_GPUS))
            if mine and theirs and not mine & theirs:
                continue
        found.add(str(Path(arguments[-1]).parent))
    return found


def _gpus(visible: str | None) -> set[str]:
    """Return the GPUs that a value of CUDA_VISIBLE_DEVICES names; empty if it allows all GPUs."""
    if visible in (None, rank.ALL_GPUS):
        return set()
    return {name.strip() for name in str(visible).split(",") if name.strip()}


def _local_ranks(run: RunFolder, config: TrainConfig) -> Controller:
    executor = ranks.Executor(folder=run.jobs)
    executor.update_parameters(
        tasks_per_node=config.cluster.ranks_per_node, timeout_min=config.cluster.timeout_min
    )
    with _ignore_terminal_signals(run):
        submitted = executor.submit(rank.run_job, str(run.path))
    return Controller(psutil.Process(int(submitted.job_id)), submitted.done)


# --- in an allocation ---------------------------------------------------------------------------


def check_allocation(config: TrainConfig) -> None:
    """Raise UserError if the allocation of this shell has fewer nodes than the run needs."""
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if config.cluster.nodes > nodes:
        raise UserError(
            f"cluster.nodes: must be at most {nodes} in this allocation, not {config.cluster.nodes}; "
            f"lower it, or leave the allocation to submit a job"
        )


def _srun(run: RunFolder, config: TrainConfig, code: Path) -> Controller:
    """Start the ranks with srun, as a job step in this allocation; return srun's process."""
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
    python = job_python(config.cluster.python)
    ranks = [*srun, python, "-u -m submitit.core._submit", shlex.quote(str(run.jobs))]
    lines = [
        "#!/bin/bash",
        *environment_lines(config.cluster),
        slurm.code_line(code),
        "export SUBMITIT_EXECUTOR=slurm",
        "exec " + " ".join(ranks),
    ]
    script = run.jobs / layout.ATTACHED
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # If this shell runs in a task of a job array, submitit would use that task's id for the run.
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        os.environ.pop(name, None)
    with (run.jobs / layout.CONTROLLER_LOG).open("ab") as log:
        # causes.py looks for the cause of a failure in the lines after this one.
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} finetune: srun starts\n".encode())
        log.flush()
        started = subprocess.Popen(
            ["bash", str(script)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    return Controller(psutil.Process(started.pid), lambda: started.poll() is not None, owns_ranks=False)


def _step(config: TrainConfig, *options: str) -> list[str]:
    """Return an srun command, without the program to start.

    It contains --overlap, so that its job step can use cores that the step of this shell has.

    Args:
        options: further options of srun.
    """
    cluster = config.cluster
    shape = [
        f"--nodes={cluster.nodes}",
        f"--ntasks={cluster.world_size}",
        f"--ntasks-per-node={cluster.ranks_per_node}",
    ]
    if not cluster.binds_cores:  # srun refuses a number of cores together with a mask of cores
        shape.append(f"--cpus-per-task={cluster.cpus_per_rank}")
    return ["srun", "--overlap", *shape, *map(shlex.quote, [*options, *cluster.srun])]


def _debug(run: RunFolder, config: TrainConfig) -> None:
    """Run the run's single rank in this terminal, under the debugger."""
    program = f"-m finetune.job.debug {shlex.quote(str(run.path))}"
    if config.cluster.scheduler == "slurm":
        code = snapshot_code(run.path.parent)
        lines = [*environment_lines(config.cluster), slurm.code_line(code)]
        terminal = ["--pty"] if sys.stdin.isatty() else []
        command = " ".join([*_step(config, *terminal), job_python(config.cluster.python), program])
    else:
        lines = []
        command = f"{shlex.quote(sys.executable)} {program}"
    run.record_submission(str(os.getpid()))
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the debugger handles Ctrl-C
    try:
        subprocess.run(["bash", "-c", "\n".join([*lines, f"exec {command}"])], check=False)
    finally:
        signal.signal(signal.SIGINT, interrupt)


def _in_use_error(run: RunFolder) -> UserError:
    pids = ", ".join(str(process.pid) for process in run.find_ranks()) or "on another machine"
    return UserError(
        f"run {run.id}: is in use by another process ({pids}); wait for its end, or stop it with "
        f"`finetune cancel {run.id}`"
    )


@contextmanager
def _ignore_terminal_signals(run: RunFolder) -> Iterator[None]:
    """Detach the processes that are started in the `with` block from the terminal.

    They ignore Ctrl-C, which this process handles (follow.py), and the closing of the terminal.
    Their output goes to a log. They thus do not keep this process' output open, and
    `id=$(finetune train … detach=true)` returns at once.

    submitit has no parameters for this. So this process itself ignores the two signals in the
    block, because a process inherits from its parent which signals it ignores.
    """
    signals = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    # submitit hides GPUs that were not requested through it; the ranks restore this value.
    os.environ[rank.SHELL_GPUS] = os.environ.get("CUDA_VISIBLE_DEVICES", rank.ALL_GPUS)
    # A rank must not inherit variables of torchrun or another launcher.
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
