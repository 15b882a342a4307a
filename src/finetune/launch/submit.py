"""Submit new runs, and resume or retry earlier ones.

A single run is one point, a sweep several. All points are checked, and each is frozen in a run
folder (freeze.py). Then they are started on this machine (local.py) or submitted to Slurm as one
job array (slurm.py). A job reads only its run folder (job/rank.py), so a later edit of a recipe
does not affect it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from data_prep.user_error import UserError
from finetune.config import extras
from finetune.config import train as configuration
from finetune.config.points import Sweep
from finetune.config.train import TrainConfig
from finetune.data import rows
from finetune.job import wave_files
from finetune.job.rank import lean_imports
from finetune.launch import checks, local, observe, places, prepare_jobs, slurm, sweep_files
from finetune.launch.freeze import (
    check_no_secrets,
    check_writable,
    discard,
    freeze,
    name_snapshot,
    new_id,
    pin,
    snapshot_code,
)
from finetune.models import tokenizer
from finetune.runs import base_model, checkpoint_files, layout
from finetune.runs import inputs as run_inputs
from finetune.runs.folder import RunFolder
from finetune.runs.state import RETRIED_STATES, RunState
from finetune.tracking.spool import last_step
from finetune.training.schedule import Schedule, describe_lr_jump


def submit(points: list[TrainConfig], sweep: Sweep | None = None) -> list[RunFolder]:
    """Check all points, freeze each in a run folder, and start them or submit them to Slurm.

    On this machine, they run one after the other. In Slurm, they are one job array.

    Args:
        sweep: the sweep that the points belong to; None for a single run.

    Returns:
        the run folders.

    Raises:
        UserError, NotFoundError: a point is wrong, or Slurm refuses. No run was started, and no run
            folder is left.
    """
    frozen = [point.with_absolute_paths() for point in points]
    on_slurm, after = _check(frozen)
    runs = freeze(frozen, sweep)
    if sweep:
        sweep_files.update(Path(frozen[0].runs_dir), sweep.id, runs)
    if not on_slurm:
        if sweep:
            _print_sweep(sweep, len(runs))
        local.start_in_turn(runs)
        return runs
    try:
        sweep_id = sweep.id if sweep else None
        _to_slurm(runs, sweep_id, after)
    except BaseException:
        discard(runs)
        raise
    return runs


def dry_run(points: list[TrainConfig], sweep: Sweep | None = None) -> str:
    """Check every point as `submit` does, without writing anything.

    Returns:
        the batch script that would be submitted; or, without Slurm, a description of the start.

    Raises:
        UserError, NotFoundError: a point is wrong, or Slurm refuses.
    """
    frozen = [dataclasses.replace(point.with_absolute_paths(), dry_run=False) for point in points]
    on_slurm, _ = _check(frozen)
    pin(frozen)
    runs_dir = Path(frozen[0].runs_dir)
    check_writable(runs_dir)
    if not on_slurm:
        return local.describe_start(frozen[0], len(frozen))
    code = name_snapshot(runs_dir)
    if len(frozen) == 1:
        run_id = sweep.run_id(0, frozen[0].name) if sweep else new_id(frozen[0].name)
        return slurm.render_script(frozen[0].cluster, run_id, RunFolder(runs_dir / run_id).jobs, code, None)
    name = sweep.id if sweep else new_id(frozen[0].name)
    job_folder = runs_dir / layout.SWEEPS / name / "0" / layout.POINTS / "%a"
    size = min(len(frozen), places.largest_array(frozen[0].cluster))
    if size < len(frozen):
        number = -(-len(frozen) // size)
        message = (
            f"{len(frozen)} points: {number} arrays of at most {size} points; "
            f"the script of the first array follows"
        )
        print(message, file=sys.stderr)  # noqa: T201
    return slurm.render_script(frozen[0].cluster, name, job_folder, code, size)


def _check(points: list[TrainConfig]) -> tuple[bool, str | None]:
    """Check that the points can run. Nothing is written.

    Returns:
        True if the points are to be submitted to Slurm's queue; and the id of the job that builds
        their corpus, or None if the corpus exists.

    Raises:
        UserError, NotFoundError: a point is wrong, or Slurm refuses.
    """
    _check_together(points)
    on_slurm = _runs_in_queue(points[0], len(points))
    for point in points:
        check_no_secrets(point)
    after = _awaited_job(points, on_slurm)
    for point in _distinct_inputs(points):
        run_inputs.check_inputs(point, has_corpus=after is None)
        if after is None:
            account = rows.read_training_account(run_inputs.open_corpus(point.data), point.data)
            rows.check_losses(account, point.data)
    if after is None:
        _check_models(points)
    return on_slurm, after


def _print_sweep(sweep: Sweep, num_points: int) -> None:
    # A sweeper that learns from results submits several batches. Each run is then printed as it
    # starts.
    if sweep.first or num_points < 2:
        return
    print(  # noqa: T201
        f"sweep {sweep.id}: {num_points} points, one after the other on this machine\n"
        f"  finetune status {sweep.id}    finetune cancel {sweep.id}",
        file=sys.stderr,
    )


def resume(run: RunFolder, overrides: list[str]) -> None:
    """Resume a run from its newest intact checkpoint. A completed run must be given more steps.

    Args:
        overrides: settings to change, such as cluster.ranks_per_node=2 (see CHANGEABLE in
            config/train.py).

    Raises:
        UserError: the run is queued or running; it is completed and is given no more steps; its
            checkpoints were removed; its inputs have changed; a setting must not be changed; or
            Slurm refuses.
    """
    (now,) = observe.observe([run])
    config = configuration.apply_overrides(run.config(), overrides)
    if now.state == RunState.COMPLETED and not _has_more_steps(run, config):
        more = 2 * max(1, _steps_done(run))
        raise UserError(
            f"run {run.id}: is completed; give it more steps, such as max_steps={more}, "
            f"or start a new run from it with model=run:{run.id}"
        )
    if now.alive:
        raise UserError(
            f"run {run.id}: is in use ({now.describe()}); wait for its end, or stop it with "
            f"`finetune cancel {run.id}`"
        )
    # Without a checkpoint, a completed run would start from step 0 and overwrite its result.
    if run.summary() and not run.has_checkpoint:
        raise UserError(
            f"run {run.id}: has no checkpoint to resume from; start a new run from it with model=run:{run.id}"
        )
    _check_inputs(run, config)
    check_no_secrets(config)
    _runs_in_queue(config, 1, quiet=True)
    for message in _warnings_of_resume(run, config):
        print(f"warning: {message}", file=sys.stderr)  # noqa: T201
    if overrides:
        with layout.replace_atomically(run.config_file) as temporary:
            configuration.save(config, temporary)
    _restart([run])


def _warnings_of_resume(run: RunFolder, config: TrainConfig) -> Iterator[str]:
    """Yield warnings about a run that is resumed: repeated steps, a jump of the learning rate."""
    newest = next(iter(layout.list_checkpoints(run.checkpoints)), None)
    state = checkpoint_files.read_state(newest) if newest else None
    if newest is None or state is None:
        return
    step = layout.step_of(newest)
    last = last_step(run.path)
    if run.summary() and last and step < last.step:
        yield f"run {run.id} resumes from step {step} of {last.step}: its later checkpoints were pruned"
    planned = state.get("seen", {}).get("num_steps") or (last.num_steps if last else 0)
    plan = next(run.plan.glob(layout.pack_plan("train", "*", 0)), None)
    num_packs = _planned_packs(plan) if plan else 0
    if planned and num_packs:
        leap = describe_lr_jump(step, planned, Schedule.of(config, num_packs))
        if leap:
            yield leap


def _planned_packs(plan: Path) -> int:
    """Return the number of training sequences per epoch in a plan file; 0 if the file is damaged.

    The job will report a damaged file.
    """
    try:
        return int(np.load(plan, mmap_mode="r")["pack"][-1]) + 1
    except (ValueError, OSError, EOFError, IndexError):
        return 0


def retry(runs: list[RunFolder]) -> list[RunFolder]:
    """Restart runs that did not complete, and start runs that never started.

    A restarted run continues from its newest checkpoint. If the process that watched a local
    run was killed but the run continues, the run is not restarted but watched to its end. Sweep
    points that have no Slurm job yet are submitted, as many as Slurm's limits allow.

    Returns:
        the runs that were started, submitted or followed. Runs that another process will start are
        left out.
    """
    moved = _submit_waiting(runs)
    seen = observe.observe(runs)
    orphans = [
        now.run
        for now in seen
        if now.state == RunState.RUNNING and not now.job_id and now.run.has_lost_its_shell()
    ]
    ended = [now.run for now in seen if now.state in RETRIED_STATES and not now.alive]
    for run in ended:
        _check_inputs(run, run.config())
    if orphans or ended:
        _restart(orphans + ended)
    return [run for run in runs if run in moved or run in orphans or run in ended]


def _submit_waiting(runs: list[RunFolder]) -> list[RunFolder]:
    """Submit the runs that are waiting points of a sweep; return the runs that no longer wait."""
    moved = []
    for folder in {run.path.parent for run in runs}:
        points = wave_files.waiting_points(folder)
        mine = [run for run in runs if run.id in points]
        for run in mine:
            submission = points[run.id].submission
            if submission.awaits_failed_job():  # the corpus must then have been built by other means
                _check_inputs(run, run.config())
                submission.start_without_awaiting()
            submission.resume()
        if mine:
            places.submit_waiting_points(folder, pause=False)
            moved += [run for run in mine if run.id not in wave_files.waiting_points(folder)]
    return moved


def _restart(runs: list[RunFolder]) -> None:
    groups: dict[tuple[str, str | None], list[RunFolder]] = {}
    for run in runs:
        groups.setdefault((repr(run.config().cluster), run.sweep()), []).append(run)
    for (_, sweep), group in groups.items():
        if _runs_in_queue(group[0].config(), len(group)):
            _to_slurm(group, sweep)
        else:
            local.start_in_turn(group)


def _runs_in_queue(config: TrainConfig, num_points: int, quiet: bool = False) -> bool:
    """Check that runs can start; return whether they are submitted to Slurm's queue.

    Args:
        config: the config of one of the runs.
        num_points: number of runs.
        quiet: do not print which checks were not possible; a later call prints them.

    Returns:
        True if the runs are submitted to Slurm's queue. False if this process starts them, on this
        machine or in the allocation of this shell.

    Raises:
        UserError: the runs cannot start.
    """
    if config.cluster.scheduler == "local" or config.cluster.python is None:
        extras.check_can_train(is_job=config.cluster.scheduler == "slurm")
    if config.cluster.scheduler == "local":
        return False
    if slurm.is_in_allocation():
        local.check_allocation(config)
        return False
    if config.debug:
        raise UserError(
            f"debug=true: must be run in an allocation on {config.cluster.name}; "
            f"run `salloc …` first, or choose cluster=local"
        )
    for unchecked in checks.check(config.cluster, num_points):
        if not quiet:
            print(f"not checked: {unchecked}", file=sys.stderr)  # noqa: T201
    return True


def _awaited_job(points: list[TrainConfig], on_slurm: bool) -> str | None:
    """Return the id of the job that builds the points' corpus; None if the corpus exists.

    Args:
        on_slurm: the points are submitted to Slurm's queue.

    Raises:
        NotFoundError: there is no preparation with the id that --after names.
        UserError: that preparation failed or builds another corpus; or the points are not
            submitted to Slurm's queue, so that they cannot wait.
    """
    first = points[0]
    if first.after is None:
        return None
    if not on_slurm:
        raise UserError(
            f"--after: works only for runs in Slurm's queue; choose a Slurm profile for cluster, or leave "
            f"--after out and start the run when prepare run {first.after} has ended"
        )
    corpora = {point.data.corpus_folder for point in points}
    return prepare_jobs.find_awaited_job(first.after, first.data.corpora_dir, corpora)


def _to_slurm(runs: list[RunFolder], sweep: str | None, after: str | None = None) -> None:
    """Submit one run as a job, or several as an array.

    Args:
        sweep: id of the sweep, which becomes the array's name; None: the runs belong to no sweep.
        after: id of a job that must complete before the runs start; None: they can start at once.
    """
    code = snapshot_code(runs[0].path.parent)
    if len(runs) == 1:
        slurm.submit_array(runs, runs[0].jobs, runs[0].id, code, after)
        return
    name = sweep or new_id("retry")
    message = slurm.submit_sweep(runs, runs[0].path.parent / layout.SWEEPS / name, name, code, after)
    if message:
        print(f"sweep {name}: {message}", file=sys.stderr)  # noqa: T201


def _check_inputs(run: RunFolder, config: TrainConfig) -> None:
    """Raise UserError if a run's inputs are incomplete or have changed since its submission."""
    run_inputs.check_inputs(config)
    digests = run_inputs.compute_digests(
        base_model.resolve_for_run(config), run_inputs.open_corpus(config.data)
    )
    run_inputs.record_inputs(run, digests)


def _check_models(points: list[TrainConfig]) -> None:
    """Check that base model, adapter, tokenizer and corpus fit each other.

    Without this check, a job would report the error only after hours in the queue. The check takes
    seconds, because torch and PEFT must be imported. They are imported in another process, because
    this process may live as long as the run, and would keep them in memory.
    """
    one_of_each = {repr((p.data, p.model, p.adapter)): p for p in points}
    with (
        # The process may be killed, for instance for lack of memory. The job then reports errors.
        contextlib.suppress(BrokenProcessPool),
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _silence_process) as pool,
    ):
        pool.submit(_check_each, list(one_of_each.values())).result()


def _silence_process() -> None:
    """Ignore Ctrl-C and discard all output of this process.

    Output of imported libraries would hide our own messages.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _check_each(points: list[TrainConfig]) -> None:
    # transformers may be missing on a login node whose jobs run in a container.
    with contextlib.suppress(ImportError, OSError):
        for point in points:
            tokenizer.check(point)
    with_base = [point for point in points if point.model.path]
    if with_base:
        _check_on_bases(with_base)


def _check_on_bases(points: list[TrainConfig]) -> None:
    try:
        with lean_imports("mlflow", "bitsandbytes"):
            from finetune.models import build
    except (ImportError, OSError):  # torch may be missing, too
        return
    for point in points:
        build.check(point)


def _has_more_steps(run: RunFolder, config: TrainConfig) -> bool:
    old = run.config()
    if config.max_steps is None:
        return config.num_epochs > old.num_epochs
    return config.max_steps > _steps_done(run)


def _steps_done(run: RunFolder) -> int:
    """Return the number of optimizer steps of a completed run; 0 for other runs."""
    summary = run.summary()
    if summary:
        return summary.steps
    return 0


def _check_together(points: list[TrainConfig]) -> None:
    """Check that the points can be submitted together.

    Raises:
        UserError: they differ in a setting that all runs of a submission share, or a setting does
            not work with several points.
    """
    first = points[0]
    shared = (first.cluster, first.runs_dir, first.after)
    if any((point.cluster, point.runs_dir, point.after) != shared for point in points):
        raise UserError(
            "cluster.…, runs_dir and --after: must be the same for all points of a sweep, as they form one "
            "job array; sweep over other settings"
        )
    if len(points) == 1:
        return
    if first.debug:
        raise UserError("debug=true: cannot be used for a sweep; leave -m or debug=true out")
    if first.detach and first.cluster.scheduler == "local":
        raise UserError(
            "detach=true: cannot be used for a sweep on this machine, as all its points would start at "
            "once; leave detach=true out"
        )


def _distinct_inputs(points: list[TrainConfig]) -> Iterable[TrainConfig]:
    """Return one point for each distinct pair of corpus and base model, to check each only once."""
    return {repr((point.data, point.model)): point for point in points}.values()
