"""Export of a checkpoint's weights (`run:ID@STEP`) as a model or adapter folder.

    python -m finetune.training.checkpoint_weights RUN_FOLDER STEP

runs/base_model.py runs this module in a separate process. The export needs neither the run's ranks
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
from finetune.models import checks, end_of_turn, load, save, tokenizer, zero3
from finetune.models.parameters import Model, named_tensors
from finetune.runs import checkpoint_files, layout
from finetune.runs.folder import RunFolder

logger = logging.getLogger(__name__)


def export(run: RunFolder, step: int) -> Path:
    """Export the weights of a checkpoint into the run's folder of exports.

    The files are checked like those of a run's result.

    Returns:
        The folder of the exported model or adapter.

    Raises:
        UserError: the checkpoint is damaged, lacks weights, or was saved by an old version without
            a description of its model.
        GuardError: the written files differ from the checkpoint's weights.
    """
    config = run.config()
    checkpoint = checkpoint_files.folder_of(run.checkpoints, step)
    fault = checkpoint_files.find_fault(checkpoint)  # checked before any pickle in it is read
    if fault:
        raise UserError(f"checkpoint {checkpoint}: {fault}; choose another step")
    description = checkpoint / "engine" / save.DESCRIPTION
    if not description.is_dir():
        raise UserError(
            f"checkpoint {checkpoint}: was saved by an earlier version, without a description of "
            "its model; resume the run, and choose a checkpoint that it then saves"
        )
    skeleton = _adapter_skeleton(description) if config.adapter else _model_skeleton(description, config)
    state = _read_state(checkpoint, skeleton, config)
    folder = run.export(step)
    temporary = layout.temporary_folder(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    save.save(skeleton, state.items(), temporary)
    checks.check_saved(temporary, state, initial=None)
    if config.adapter:
        checks.check_reloads(temporary, skeleton, state)
    tokenizer.copy_files(config.data.corpus_folder / "tokenizer", temporary)
    end_of_turn.declare(temporary, Manifest.read(config.data.corpus_folder).tokenizer, skeleton)
    temporary.rename(folder)
    return folder


def _read_state(checkpoint: Path, skeleton: Model, config: TrainConfig) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint by name, and convert the weights to the run's precision.

    Args:
        checkpoint: folder of the checkpoint.
        skeleton: the checkpoint's model, without values. It gives the names of the tensors to read.
            Frozen tensors of an adapter's base are not read, because checkpoints lack them.

    Raises:
        UserError: the checkpoint lacks weights.
    """
    saved = zero3.read_weights(checkpoint / "engine", config.zero["stage"])
    wanted = [name for name, tensor in named_tensors(skeleton).items() if _is_saved(skeleton, name, tensor)]
    missing = sorted(set(wanted) - saved.keys())
    if missing:
        raise UserError(
            f"checkpoint {checkpoint}: {len(missing)} weights are missing, e.g. {missing[0]}; "
            "choose another step"
        )
    dtype = load.DTYPES[config.precision]
    state = {}
    for name in wanted:
        tensor = saved[name]
        state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return state


def _is_saved(skeleton: Model, name: str, tensor: torch.Tensor) -> bool:
    """Return whether checkpoints of this model contain a tensor.

    If the model is an adapter, its checkpoints lack the frozen tensors of the base.
    """
    return not save.is_adapter(skeleton) or tensor.requires_grad or save.is_of_adapter(skeleton, name)


def _model_skeleton(description: Path, config: TrainConfig) -> Model:
    """Build the checkpoint's model without values (on the meta device), for its names and settings.

    Args:
        description: folder with the model's settings, which save.write_description wrote.
    """
    with torch.device("meta"):
        architecture = AutoConfig.from_pretrained(description)
        skeleton = AutoModelForCausalLM.from_config(architecture, dtype=load.DTYPES[config.precision])
    skeleton.tie_weights()
    if (description / "generation_config.json").is_file():
        skeleton.generation_config = GenerationConfig.from_pretrained(description)
    return skeleton  # type: ignore[no-any-return]


def _adapter_skeleton(description: Path) -> Model:
    """Build the checkpoint's adapter on a placeholder of its base, whose matrices are all zeros.

    Some initialisations, such as PiSSA, read the base's weights. The adapter is then built with the
    default initialisation. Its settings still name the original one.
    """
    base = load.build_placeholder(AutoConfig.from_pretrained(description))
    settings = PeftConfig.from_pretrained(str(description))
    base.name_or_path = settings.base_model_name_or_path
    initialisation = getattr(settings, "init_lora_weights", None)
    if not isinstance(initialisation, str):
        return get_peft_model(base, settings)  # type: ignore[no-any-return]
    adapted = get_peft_model(base, dataclasses.replace(settings, init_lora_weights=True))
    adapted.active_peft_config.init_lora_weights = initialisation
    return adapted  # type: ignore[no-any-return]


def main(arguments: list[str]) -> int:
    """Export a checkpoint; print an error as one line, which the calling process reports."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        export(RunFolder(Path(arguments[0])), int(arguments[1]))
    except (ValueError, OSError) as fault:
        print(" ".join(str(fault).split()), file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
