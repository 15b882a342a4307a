"""The base model of a run, found on disk: a folder, a hub id in the local cache, or another run's
result or checkpoint.

Commands search for it before a job is queued, and ranks when they load the model.
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
from finetune.config.suggestions import did_you_mean, find_closest
from finetune.config.train import RUN_PREFIX, TrainConfig, split_step
from finetune.runs import checkpoint_files, layout
from finetune.runs.folder import RunFolder
from finetune.runs.state import ALIVE_STATES, RunState


@dataclass(frozen=True)
class Base:
    """A base model on disk.

    Attributes:
        name: the model's name, as shown to users.
        adapters: folders of adapters that are merged into the model before training, in this order.
    """

    name: str
    folder: Path
    adapters: tuple[Path, ...] = ()

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the last adapter that has a tokenizer, else the base's folder.

        An adapter's tokenizer may have tokens that the base's tokenizer lacks.
        """
        for adapter in reversed(self.adapters):
            if (adapter / "tokenizer.json").is_file():
                return adapter
        return self.folder


def resolve(path: str, runs_dir: str | Path, revision: str | None = None) -> Base:
    """Return the base model that a setting names.

    Args:
        path: a model folder; a hub id in the local cache; run:<run id> for the result of a run (its
            model, or its base with its adapter); run:<run id>@<step> for the checkpoint of a step.

    Raises:
        NotFoundError: the run or folder does not exist, or the hub id is not in the cache.
        UserError: the run has no result, or no such checkpoint; or the folder holds no model.
    """
    if path.startswith(RUN_PREFIX):
        name, step = split_step(path.removeprefix(RUN_PREFIX))
        run = RunFolder.find(name, runs_dir)
        if step is not None and not _is_result(run, step):
            return _add_to_base(run, _export_checkpoint(run, step))
        if run.state() != RunState.COMPLETED:
            state = run.state()
            if state in ALIVE_STATES:
                raise UserError(
                    f"run {run.id} is {state} and has no result yet; wait for it to complete, "
                    f"or name a checkpoint, run:{run.id}@STEP"
                )
            raise UserError(
                f"run {run.id} is {state} and has no result to start from; "
                f"finish it with `{run.command('resume')}`"
            )
        result = run.model if run.model.is_dir() else run.adapter
        return _add_to_base(run, result)
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute() or path.startswith("."):
            hint = _describe_neighbours(folder) or "; check model.path"
            raise NotFoundError(f"model folder {path} does not exist{hint}")
        folder = _find_cached_snapshot(path, revision)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"model folder {folder} has no config.json; "
            f"name a folder that transformers' save_pretrained wrote"
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model folder {folder} has no weights (*.safetensors); download or convert them first"
        )
    return Base(path, folder)


def resolve_for_run(config: TrainConfig) -> Base | None:
    """Return the base of a run; None if it trains from scratch.

    Raises:
        NotFoundError, UserError: as in `resolve`.
    """
    path = config.model.path
    return None if path is None else resolve(path, config.runs_dir, config.model.revision)


def _add_to_base(run: RunFolder, folder: Path) -> Base:
    """Return the base model for a folder into which a run wrote its weights.

    It is the model in the folder or, if the folder holds an adapter, the run's base with that
    adapter.
    """
    config = run.config()
    if not config.adapter:
        return resolve(str(folder), config.runs_dir)
    # config/train.py refuses an adapter on a model from scratch
    assert config.model.path is not None
    base = resolve(config.model.path, config.runs_dir, config.model.revision)
    return Base(base.name, base.folder, (*base.adapters, folder))


def _is_result(run: RunFolder, step: int) -> bool:
    """Return True if the weights of a step are the result that a completed run saved."""
    summary = run.summary()
    return run.state() == RunState.COMPLETED and summary is not None and summary.result_step == step


def _export_checkpoint(run: RunFolder, step: int) -> Path:
    """Return a folder with a checkpoint's weights as a model or adapter.

    On first use, training/checkpoint_weights.py writes it in a process of its own.

    Raises:
        UserError: there is no checkpoint of this step, it is damaged, or torch is not installed.
    """
    folder = run.export(step)
    with run.export_lock:
        if folder.is_dir():
            return folder
        if not checkpoint_files.folder_of(run.checkpoints, step).is_dir():
            checkpoints = reversed(layout.list_checkpoints(run.checkpoints))
            steps = [str(layout.step_of(path)) for path in checkpoints]
            kept = f"steps {', '.join(steps)}" if steps else "none"
            raise UserError(f"run {run.id} has no checkpoint of step {step}; its checkpoints: {kept}")
        extras.check("torch", f"exporting run:{run.id}@{step}")
        single_process = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
        }
        module = "finetune.training.checkpoint_weights"
        command = [sys.executable, "-m", module, str(run.path), str(step)]
        environment = {**os.environ, **single_process}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            message = done.stderr.strip() or f"the export ended with exit code {done.returncode}"
            raise UserError(f"run {run.id}@{step}: {message.splitlines()[-1]}")
    return folder


def _find_cached_snapshot(hub_id: str, revision: str | None) -> Path:
    """Return the folder of a model in the Hugging Face cache.

    The model must be in the cache before a job is submitted, since jobs have no network.

    Raises:
        NotFoundError: the model is not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        wanted = f"{hub_id} --revision {revision}" if revision else hub_id
        hint = _describe_neighbours(Path(hub_id)) or did_you_mean(hub_id, _list_cached_models())
        raise NotFoundError(
            f"model {hub_id} is neither a folder nor in the Hugging Face cache{hint or ';'} "
            f"run `hf download {wanted}` first, since jobs have no network"
        ) from None


def _list_cached_models() -> list[str]:
    """Return the hub ids of the models in the Hugging Face cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = Path(HF_HUB_CACHE).glob("models--*")
    return [path.name.removeprefix("models--").replace("--", "/") for path in folders]


def _describe_neighbours(folder: Path) -> str:
    """Return a hint for a folder that does not exist; "" if there is none.

    It names a folder of a similar name in the same place, or the first part of the path that does
    not exist.
    """
    if folder.parent.is_dir():
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        found = find_closest(folder.name, beside)
        return f"; did you mean '{folder.parent / found[0]}'?" if found else ""
    if not folder.is_absolute():
        return ""
    existing = next(parent for parent in folder.parents if parent.is_dir())
    missing = folder.relative_to(existing).parts[0]
    return f"; {existing} has no folder '{missing}'"


def pin_revision(config: TrainConfig) -> TrainConfig:
    """Return the config with a hub model's revision set to the one in the cache.

    The run thereby keeps its base, even if a later download updates the model.
    """
    path = config.model.path
    if path is None or path.startswith(RUN_PREFIX) or Path(path).is_dir():
        return config
    revision = _find_cached_snapshot(path, config.model.revision).name
    return dataclasses.replace(config, model=dataclasses.replace(config.model, revision=revision))
