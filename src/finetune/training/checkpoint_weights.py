"""`run:ID@STEP`: the weights of a checkpoint as a model or adapter folder, exported in a process of its own.

    python -m finetune.training.checkpoint_weights RUN_FOLDER STEP

runs/base_model.py runs it in a process of its own, so that reading a checkpoint needs neither the run's ranks
nor its base.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from data_prep.shards import Manifest
from data_prep.user_error import UserError
from finetune.config.train import TrainConfig
from finetune.models import checks, end_of_turn, save, tokenizer, zero3
from finetune.models.load import DTYPES, Model, stand_in, tensors
from finetune.runs import checkpoint_files, layout
from finetune.runs.folder import RunFolder

logger = logging.getLogger(__name__)


def export(run: RunFolder, step: int) -> Path:
    """Write the weights of a checkpoint into the run's folder for exports, checked as a result is.

    Raises:
        UserError: the checkpoint is damaged, or was written by a version that did not describe its model.
    """
    config = run.config()
    checkpoint = checkpoint_files.folder_of(run.checkpoints, step)
    if fault := checkpoint_files.find_fault(checkpoint):  # before anything in it is unpickled
        raise UserError(f"checkpoint {checkpoint}: {fault}: choose another step")
    description = checkpoint / "engine" / save.DESCRIPTION
    if not description.is_dir():
        raise UserError(
            f"checkpoint {checkpoint} is of an earlier version, which did not describe its model: resume the run first"
        )
    skeleton = _adapter_skeleton(description) if config.adapter else _model_skeleton(description, config)
    held = zero3.read_weights(checkpoint / "engine", config.zero["stage"])
    wanted = {
        name: tensor for name, tensor in tensors(skeleton).items() if _is_trained(skeleton, name, tensor)
    }
    if missing := sorted(wanted.keys() - held.keys()):
        raise UserError(
            f"checkpoint {checkpoint} lacks {len(missing)} weights, e.g. {missing[0]}: choose another step"
        )
    state = {
        name: held[name].to(DTYPES[config.precision]) if held[name].is_floating_point() else held[name]
        for name in wanted
    }
    folder = run.export(step)
    temporary = layout.temporary_folder(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    save.save(skeleton, state.items(), temporary)
    checks.check_saved(temporary, state, at_start=None)
    if config.adapter:
        checks.check_reloads(temporary, skeleton, state)
    tokenizer.place(config.data.corpus_folder / "tokenizer", temporary)
    end_of_turn.declare(temporary, Manifest.read(config.data.corpus_folder).tokenizer, skeleton)
    temporary.rename(folder)
    return folder


def _is_trained(skeleton: Model, name: str, tensor: torch.Tensor) -> bool:
    return not save.is_adapter(skeleton) or tensor.requires_grad or save.is_of_adapter(skeleton, name)


def _model_skeleton(description: Path, config: TrainConfig) -> Model:
    """A model without memory: only its names and settings are used."""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(description), dtype=DTYPES[config.precision]
        )
    skeleton.tie_weights()
    if (description / "generation_config.json").is_file():
        skeleton.generation_config = GenerationConfig.from_pretrained(description)
    return skeleton  # type: ignore[no-any-return]


def _adapter_skeleton(description: Path) -> Model:
    """The adapter on a base of which every matrix is one zero; how it was initialised is stated, not
    repeated."""
    base = stand_in(AutoConfig.from_pretrained(description))
    stated = PeftConfig.from_pretrained(str(description))
    base.name_or_path = stated.base_model_name_or_path
    method = getattr(stated, "init_lora_weights", None)
    plain = dataclasses.replace(stated, init_lora_weights=True) if isinstance(method, str) else stated
    adapted = get_peft_model(base, plain)
    if isinstance(method, str):
        adapted.active_peft_config.init_lora_weights = method
    return adapted  # type: ignore[no-any-return]


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        export(RunFolder(Path(arguments[0])), int(arguments[1]))
    except (ValueError, OSError) as fault:
        print(" ".join(str(fault).split()), file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
