"""Where the base model of a run is on disk: a folder, a hub id in the cache, or another run's result.

Commands resolve it before a job is queued, ranks when they load it.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from data_prep.user_error import NotFoundError, UserError
from finetune.config import extras
from finetune.config.suggestions import closest, did_you_mean
from finetune.config.train import RUN_PREFIX, TrainConfig, split_step
from finetune.runs import checkpoint_files, layout
from finetune.runs.folder import RunFolder
from finetune.runs.state import RunState


@dataclass(frozen=True)
class Base:
    """A base model on disk; `adapters` are merged into it, in this order, before training. `name` is what to
    call it."""

    name: str
    folder: Path
    adapters: tuple[Path, ...] = ()

    @property
    def tokenizer_folder(self) -> Path:
        """An adapter brings the tokenizer that it was trained with, which may have more tokens than the
        base's."""
        return next((a for a in reversed(self.adapters) if (a / "tokenizer.json").is_file()), self.folder)


def resolve(path: str, runs_dir: str | Path, revision: str | None = None) -> Base:
    """A model folder, a hub id in the local cache, or the result of run:<run id>: its model, or its adapter
    merged into its base. run:<run id>@<step> is the checkpoint of that step instead.

    Raises:
        NotFoundError: no such run or folder, or a hub id that is not in the cache.
        UserError: the run has no result yet, or the folder holds no model.
    """
    if path.startswith(RUN_PREFIX):
        name, step = split_step(path.removeprefix(RUN_PREFIX))
        run = RunFolder.find(name, runs_dir)
        if step is not None and not _is_result(run, step):
            return _trained(run, _exported(run, step))
        if run.state() != RunState.COMPLETED:
            raise UserError(
                f"run {run.id} is {run.state()} and has no result to start from: finish it with `{run.command('resume')}`"
            )
        return _trained(run, run.model if run.model.is_dir() else run.adapter)
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute() or path.startswith("."):
            raise NotFoundError(
                f"model folder {path} does not exist{_describe_neighbours(folder) or ': check model.path'}"
            )
        folder = _cached_snapshot(path, revision)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"model folder {folder} has no config.json: give the folder that transformers' save_pretrained wrote"
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model folder {folder} has no weights (*.safetensors): download or convert them first"
        )
    return Base(path, folder)


def of_run(config: TrainConfig) -> Base | None:
    """Return the base of a run; None from scratch. Raises as resolve."""
    path = config.model.path
    return None if path is None else resolve(path, config.runs_dir, config.model.revision)


def _trained(run: RunFolder, folder: Path) -> Base:
    """Name what a run wrote: a model, or an adapter with the base that it belongs to."""
    config = run.config()
    if not config.adapter:
        return resolve(str(folder), config.runs_dir)
    assert config.model.path is not None  # config/train.py: an adapter never sits on a model from scratch
    base = resolve(config.model.path, config.runs_dir, config.model.revision)
    return Base(base.name, base.folder, (*base.adapters, folder))


def _is_result(run: RunFolder, step: int) -> bool:
    """Whether the weights of a step are what a completed run saved."""
    summary = run.summary()
    return run.state() == RunState.COMPLETED and summary is not None and summary.result_step == step


def _exported(run: RunFolder, step: int) -> Path:
    """Return a checkpoint's weights as a folder, written by training/checkpoint_weights.py when they are
    first asked for.

    Raises:
        UserError: there is no checkpoint of this step, or it is damaged.
    """
    folder = run.export(step)
    with run.export_lock:
        if folder.is_dir():
            return folder
        if not checkpoint_files.folder_of(run.checkpoints, step).is_dir():
            kept = ", ".join(
                str(layout.step_of(path)) for path in reversed(layout.list_checkpoints(run.checkpoints))
            )
            raise UserError(
                f"run {run.id} has no checkpoint of step {step}: it keeps {f'steps {kept}' if kept else 'none'}"
            )
        extras.check("torch", f"exporting run:{run.id}@{step}")
        alone = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
        }
        command = [sys.executable, "-m", "finetune.training.checkpoint_weights", str(run.path), str(step)]
        done = subprocess.run(
            command, env={**os.environ, **alone}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip() or f"the process ended with {done.returncode}").splitlines()[-1]
            raise UserError(f"run {run.id}@{step}: {last}")
    return folder


def _cached_snapshot(hub_id: str, revision: str | None) -> Path:
    """Jobs have no network: what is not in the Hugging Face cache now will not be there later."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        wanted = f"{hub_id} --revision {revision}" if revision else hub_id
        close = _describe_neighbours(Path(hub_id)) or did_you_mean(hub_id, _cached_models())
        raise NotFoundError(
            f"model {hub_id} is no folder and not in the Hugging Face cache{f'{close} Jobs' if close else '; jobs'} have no "
            f"network: `hf download {wanted}` first"
        ) from None


def _cached_models() -> list[str]:
    """Return the hub ids of the models in the Hugging Face cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = Path(HF_HUB_CACHE).glob("models--*")
    return [path.name.removeprefix("models--").replace("--", "/") for path in folders]


def _describe_neighbours(folder: Path) -> str:
    """Return what of a folder's path exists, or which folder beside it may be meant; nothing where nothing
    looks like it."""
    if folder.parent.is_dir():
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        found = closest(folder.name, beside)
        return f"; did you mean '{folder.parent / found[0]}'?" if found else ""
    if not folder.is_absolute():
        return ""
    there = next(parent for parent in folder.parents if parent.is_dir())
    missing = folder.relative_to(there).parts[0]
    return f"; {there} has no folder '{missing}'"


def pin_revision(config: TrainConfig) -> TrainConfig:
    """Return the config with the revision that the cache has now; a later download moves what a branch
    means."""
    path = config.model.path
    if path is None or path.startswith(RUN_PREFIX) or Path(path).is_dir():
        return config
    revision = _cached_snapshot(path, config.model.revision).name
    return dataclasses.replace(config, model=dataclasses.replace(config.model, revision=revision))
