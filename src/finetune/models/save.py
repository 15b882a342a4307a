"""Trained models and adapters written as files for transformers and PEFT."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from peft import PeftModel
from transformers.conversion_mapping import get_model_conversion_mapping

from data_prep.user_error import UserError
from finetune.distributed import World
from finetune.models import safetensors_io
from finetune.models.parameters import Model, named_tensors, tied_names

logger = logging.getLogger(__name__)

# folder in a checkpoint, written by write_description
DESCRIPTION = "description"


def gather_weights(model: Model, trainable_only: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield complete parameters and saved buffers one at a time: on rank 0's CPU, elsewhere as meta tensors.

    Every rank must iterate over all of them: under ZeRO-3 each is gathered, and a rank's own
    tensors are empty.
    """
    from finetune.models import zero3

    wanted = (
        (name, tensor)
        for name, tensor in named_tensors(model).items()
        if not trainable_only or tensor.requires_grad or is_of_adapter(model, name)
    )
    return zero3.gather_to_rank0(wanted, World().is_main)


def save(model: Model, state: Iterable[tuple[str, torch.Tensor]], folder: Path, is_main: bool = True) -> None:
    """Write a trained model or adapter as safetensors; every rank calls it, rank 0 writes.

    Args:
        state: complete tensors by parameter name (see gather_weights). Those of a model are written
            as they come, so that rank 0 never holds all of them.

    Raises:
        UserError: PEFT cannot save this adapter.
    """
    if isinstance(model, PeftModel):
        # small enough to be held in memory
        _save_adapter(model, dict(state), folder, is_main)
        return
    if get_model_conversion_mapping(model, add_legacy=False):
        # transformers converts the tensors back, which needs all of them together
        tensors = dict(state)
        if is_main:
            model.save_pretrained(str(folder), state_dict=tensors)  # type: ignore[operator]
        return
    skipped = set(getattr(model, "_keys_to_ignore_on_save", None) or [])
    saved = ((name, tensor) for name, tensor in state if name not in skipped)
    if not is_main:
        for _ in saved:  # takes part in the gathering
            pass
        return
    safetensors_io.write(folder, saved)
    model.config.dtype = next(model.parameters()).dtype
    model.config.architectures = [type(model).__name__]  # type: ignore[union-attr]
    model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    _save_generation_config(model, folder)


def _save_adapter(model: PeftModel, state: dict[str, torch.Tensor], folder: Path, is_main: bool) -> None:
    if not is_main:
        return
    # PEFT looks for tied matrices that it trains under each of their names
    tied = {name: state[first] for name, first in tied_names(model).items() if first in state}
    try:
        # save_embedding_layers="auto" would ask the hub for the base's vocabulary, and jobs have no
        # network
        model.save_pretrained(
            str(folder), state_dict={**state, **tied}, safe_serialization=True, save_embedding_layers=False
        )
    except (ValueError, KeyError) as fault:
        raise UserError(f"adapter: PEFT cannot save it: {' '.join(str(fault).split())[:300]}") from None


def _save_generation_config(model: Model, folder: Path) -> None:
    if not model.can_generate():  # type: ignore[operator]
        return
    try:
        model.generation_config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    except ValueError as fault:
        # the settings of some published models contradict each other; the weights are still good
        logger.warning("generation_config.json is not written: %s", str(fault).splitlines()[0])


def write_description(model: Model, folder: Path) -> None:
    """Write the settings of the model and its adapter into a checkpoint.

    With them, checkpoint_weights.py can export the checkpoint without the run.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    base.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    _save_generation_config(base, folder)
    if isinstance(model, PeftModel):
        settings = dataclasses.replace(model.active_peft_config)
        settings.inference_mode = True  # as PEFT's own save_pretrained writes it
        settings.save_pretrained(str(folder))


def is_adapter(model: Model) -> bool:
    """Return whether the model is an adapter on a frozen base."""
    return isinstance(model, PeftModel)


def is_of_adapter(model: Model, name: str) -> bool:
    """Return whether PEFT added the parameter or buffer.

    Some methods keep tensors that they do not train, such as VeRA's projections.
    """
    if not isinstance(model, PeftModel):
        return False
    method = model.active_peft_config.peft_type.value.lower()
    return f".{model.base_model.prefix}" in name or f".{method}_" in name
