"""`submit(points)`: the one way in which a run is started. A plain run passes one point, a sweep all of them.

Each point is checked, then all are frozen in their run folders (freeze.py), then given to this machine
(local.py) or to Slurm (slurm.py) as one array. What a job does is read from its run folder alone
(job/rank.py), so editing a recipe afterwards changes nothing.
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
    """Check every point, freeze each in a run folder, and start them: on this machine in turn, on Slurm as
    one array.

    Args:
        sweep: that the points belong to, where there is one.

    Raises:
        UserError, NotFoundError: a point is wrong, or Slurm refuses; nothing was started then, and nothing is
            left.
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
        _to_slurm(runs, sweep.id if sweep else None, after)
    except BaseException:
        discard(runs)
        raise
    return runs


def dry_run(points: list[TrainConfig], sweep: Sweep | None = None) -> str:
    """Check every point as `submit` does, and write nothing.

    Returns:
        the batch script that would be submitted, or what would be run on this machine.

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
        print(
            f"{len(frozen)} points: {number} arrays of {size} points at most; this is the first",
            file=sys.stderr,
        )
    return slurm.render_script(frozen[0].cluster, name, job_folder, code, size)


def _check(points: list[TrainConfig]) -> tuple[bool, str | None]:
    """Refuse what cannot run. Nothing is written.

    Returns:
        whether the points go to Slurm's queue, and the job that makes their corpus, if it is still to be
        made.

    Raises:
        UserError, NotFoundError: a point is wrong, or Slurm refuses.
    """
    _check_together(points)
    on_slurm = _goes_to_queue(points[0], len(points))
    for point in points:
        check_no_secrets(point)
    after = _waits_for(points, on_slurm)
    for point in _one_of_each_input(points):
        run_inputs.check_inputs(point, has_corpus=after is None)
        if after is None:
            rows.check_losses(
                rows.read_training_account(run_inputs.open_corpus(point.data), point.data), point.data
            )
    if after is None:
        _check_models(points)
    return on_slurm, after


def _print_sweep(sweep: Sweep, num_points: int) -> None:
    if (
        sweep.first or num_points < 2
    ):  # a sweeper that learns submits a batch after the other: each run is named as it starts
        return
    print(  # noqa: T201
        f"sweep {sweep.id}: {num_points} points, one after the other on this machine\n"
        f"  finetune status {sweep.id}    finetune cancel {sweep.id}",
        file=sys.stderr,
    )


def resume(run: RunFolder, overrides: list[str]) -> None:
    """Go on with a run that was stopped, killed or failed, from its newest good checkpoint; with more steps,
    with one that is completed.

    Args:
        overrides: settings that change from now on, such as cluster.ranks_per_node=2: see CHANGEABLE in
            config/train.py.

    Raises:
        UserError: the run is queued or running, or has ended well, or its checkpoints were removed; or a
            setting may not change.
    """
    (now,) = observe.observe([run])
    config = configuration.apply_overrides(run.config(), overrides)
    if now.state == RunState.COMPLETED and not _has_more_steps(run, config):
        more = 2 * max(1, _steps_done(run))
        raise UserError(
            f"run {run.id} is completed: give it more steps, as in max_steps={more}, "
            f"or start a new one from it with model=run:{run.id}"
        )
    if now.alive:
        raise UserError(f"run {run.id} is in use: it is {now.describe()}")
    if run.summary() and not run.has_checkpoint:  # it would begin anew, over its result
        raise UserError(
            f"run {run.id} has no checkpoint left to go on from: start a new run from it with model=run:{run.id}"
        )
    _check_inputs(run, config)
    check_no_secrets(config)
    _goes_to_queue(config, 1, quiet=True)
    for message in _warnings_of_resume(run, config):
        print(f"warning: {message}", file=sys.stderr)  # noqa: T201
    if overrides:
        with layout.replace_atomically(run.config_file) as temporary:
            configuration.save(config, temporary)
    _start_again([run])


def _warnings_of_resume(run: RunFolder, config: TrainConfig) -> Iterator[str]:
    """Yield what a user may not expect of a run that goes on: steps that are done again, a learning rate that
    leaps."""
    newest = next(iter(layout.list_checkpoints(run.checkpoints)), None)
    state = checkpoint_files.read_state(newest) if newest else None
    if newest is None or state is None:
        return
    step, last = layout.step_of(newest), last_step(run.path)
    if run.summary() and last and step < last.step:
        yield f"run {run.id} goes on from step {step} of {last.step}: its later checkpoints were pruned"
    planned = state.get("seen", {}).get("num_steps") or (last.num_steps if last else 0)
    plan = next(run.plan.glob(layout.pack_plan("train", "*", 0)), None)
    num_packs = _planned_packs(plan) if plan else 0
    if planned and num_packs and (message := describe_lr_jump(step, planned, Schedule.of(config, num_packs))):
        yield message


def _planned_packs(plan: Path) -> int:
    """Return the packs of an epoch by its plan; 0 if the file is damaged, which the job itself finds out."""
    try:
        return int(np.load(plan, mmap_mode="r")["pack"][-1]) + 1
    except (ValueError, OSError, EOFError, IndexError):
        return 0


def retry(runs: list[RunFolder]) -> list[RunFolder]:
    """Start again those that failed, died, were stopped, cancelled or never started; each goes on from its
    newest checkpoint. A point of a local sweep whose shell was killed is followed, before the others, while
    it is at work still. Points that wait for a place in Slurm's queue get one, if there is one.

    Returns:
        those that were started or followed. Points that wait for their turn in another shell are left to it.
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
        _start_again(orphans + ended)
    return [run for run in runs if run in moved or run in orphans or run in ended]


def _submit_waiting(runs: list[RunFolder]) -> list[RunFolder]:
    """Submit waiting points of the sweeps that the runs belong to, paused ones too; return those of the runs
    that have a job."""
    moved = []
    for folder in {run.path.parent for run in runs}:
        points = wave_files.waiting_points(folder)
        mine = [run for run in runs if run.id in points]
        for run in mine:
            submission = points[run.id].submission
            if submission.awaits_failed_job():  # then somebody must have made the corpus in another way
                _check_inputs(run, run.config())
                submission.start_without_awaiting()
            submission.go_on()
        if mine:
            places.move_sweeps_on(folder, pause=False)
            moved += [run for run in mine if run.id not in wave_files.waiting_points(folder)]
    return moved


def _start_again(runs: list[RunFolder]) -> None:
    by_kind: dict[tuple[str, str | None], list[RunFolder]] = {}
    for run in runs:
        by_kind.setdefault((repr(run.config().cluster), run.sweep()), []).append(run)
    for (_, sweep), together in by_kind.items():
        if _goes_to_queue(together[0].config(), len(together)):
            _to_slurm(together, sweep)
        else:
            local.start_in_turn(together)


def _goes_to_queue(config: TrainConfig, num_points: int, quiet: bool = False) -> bool:
    """Whether Slurm starts it, or this shell, because it is a run of this machine or the shell has an
    allocation.

    Args:
        quiet: leave out which checks could not be made, as they are reported later.

    Raises:
        UserError: where it goes it cannot run.
    """
    if config.cluster.scheduler == "local" or config.cluster.python is None:
        extras.check_can_train(is_job=config.cluster.scheduler == "slurm")
    if config.cluster.scheduler == "local":
        return False
    if slurm.in_allocation():
        local.check_allocation(config)
        return False
    if config.debug:
        raise UserError(
            f"debug=true on {config.cluster.name} needs an allocation: `salloc …` first, or choose cluster=local"
        )
    for unchecked in checks.check(config.cluster, num_points):
        if not quiet:
            print(f"not checked: {unchecked}", file=sys.stderr)  # noqa: T201
    return True


def _waits_for(points: list[TrainConfig], on_slurm: bool) -> str | None:
    """The job that makes the points' corpus, if it is still to be made.

    Raises:
        UserError: it failed, or makes another corpus; or the points are not for Slurm's queue.
    """
    first = points[0]
    if first.after is None:
        return None
    if not on_slurm:
        raise UserError(
            f"after={first.after} waits in Slurm's queue: choose a Slurm profile, or wait for it yourself"
        )
    return prepare_jobs.dependency(
        first.after, first.data.corpora_dir, {point.data.corpus_folder for point in points}
    )


def _to_slurm(runs: list[RunFolder], sweep: str | None, after: str | None = None) -> None:
    """One job, or an array whose script and index of points lie in runs/sweeps/<sweep>/<number of the
    submission>/."""
    code = snapshot_code(runs[0].path.parent)
    if len(runs) == 1:
        slurm.submit_array(runs, runs[0].jobs, runs[0].id, code, after)
        return
    name = sweep or new_id("retry")
    message = slurm.submit_sweep(runs, runs[0].path.parent / layout.SWEEPS / name, name, code, after)
    if message:
        print(f"sweep {name}: {message}", file=sys.stderr)  # noqa: T201


def _check_inputs(run: RunFolder, config: TrainConfig) -> None:
    """Before a run starts again: what it learns from is whole, and what it was."""
    run_inputs.check_inputs(config)
    run_inputs.record_inputs(
        run,
        run_inputs.compute_digests(base_model.resolve_for_run(config), run_inputs.open_corpus(config.data)),
    )


def _check_models(points: list[TrainConfig]) -> None:
    """What a base, an adapter, a tokenizer and a corpus would refuse of each other. It takes the seconds of
    importing torch and PEFT, in a process of its own, as this one may stay as long as the run does; a job
    that waited for hours to say it costs more."""
    one_of_each = {repr((p.data, p.model, p.adapter)): p for p in points}
    with (
        contextlib.suppress(BrokenProcessPool),  # killed, for want of memory perhaps: then the job tells
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _keep_quiet) as alone,
    ):
        alone.submit(_check_each, list(one_of_each.values())).result()


def _keep_quiet() -> None:
    """What libraries say while they are imported, and of a Ctrl-C, would bury the one line that counts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _check_each(points: list[TrainConfig]) -> None:
    with contextlib.suppress(
        ImportError, OSError
    ):  # a login node whose jobs run in a container need not have transformers
        for point in points:
            tokenizer.check(point)
    if on_a_base := [point for point in points if point.model.path]:
        _check_on_bases(on_a_base)


def _check_on_bases(points: list[TrainConfig]) -> None:
    try:
        with lean_imports("mlflow", "bitsandbytes"):
            from finetune.models import build
    except (ImportError, OSError):  # nor torch
        return
    for point in points:
        build.check(point)


def _has_more_steps(run: RunFolder, config: TrainConfig) -> bool:
    old = run.config()
    if config.max_steps is None:
        return config.num_epochs > old.num_epochs
    return config.max_steps > _steps_done(run)


def _steps_done(run: RunFolder) -> int:
    """Return the steps of a run that has ended well; 0 for others."""
    summary = run.summary()
    return summary.steps if summary else 0


def _check_together(points: list[TrainConfig]) -> None:
    """Points of one submission share its shape.

    Raises:
        UserError: they cannot be submitted together.
    """
    first = points[0]
    if any(
        (point.cluster, point.runs_dir, point.after) != (first.cluster, first.runs_dir, first.after)
        for point in points
    ):
        raise UserError(
            "a sweep is one job array, which has one shape: do not sweep over cluster.…, runs_dir or after"
        )
    if len(points) == 1:
        return
    if first.debug:
        raise UserError("debug=true is for one run: leave -m out")
    if first.detach and first.cluster.scheduler == "local":
        raise UserError(
            "detach=true with a sweep would start all its points at once on this machine: leave one of the two out"
        )


def _one_of_each_input(points: list[TrainConfig]) -> Iterable[TrainConfig]:
    """Points of a sweep mostly share corpus and base: checksums are computed once."""
    return {repr((point.data, point.model)): point for point in points}.values()
