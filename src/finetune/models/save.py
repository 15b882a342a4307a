"""Saving trained models and adapters as files for transformers and PEFT."""

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

# folder in a checkpoint that write_description fills
DESCRIPTION = "description"


def gather_weights(model: Model, trainable_only: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Gather a model's parameters and saved buffers one at a time; yield names and complete copies.

    The copies are on rank 0's CPU; the other ranks get meta tensors. Every rank must iterate to the
    end, because under ZeRO-3 all ranks gather a tensor together.

    Args:
        trainable_only: leave out the frozen weights of an adapter's base.
    """
    from finetune.models import zero3

    wanted = (
        (name, tensor)
        for name, tensor in named_tensors(model).items()
        if not trainable_only or tensor.requires_grad or is_of_adapter(model, name)
    )
    return zero3.gather_to_rank0(wanted, World().is_main)


def save(model: Model, state: Iterable[tuple[str, torch.Tensor]], folder: Path, is_main: bool = True) -> None:
    """Save a trained model or adapter as safetensors; every rank calls it, and rank 0 writes.

    Args:
        state: names and complete tensors, from gather_weights. A model's tensors are written as
            they are gathered, so that rank 0 does not hold all of them.

    Raises:
        UserError: PEFT cannot save this adapter.
    """
    if isinstance(model, PeftModel):
        # an adapter is small enough to be held in memory
        _save_adapter(model, dict(state), folder, is_main)
        return
    if get_model_conversion_mapping(model, add_legacy=False):
        # transformers converts the tensors back into those of the files, and needs all of them
        tensors = dict(state)
        if is_main:
            model.save_pretrained(str(folder), state_dict=tensors)  # type: ignore[operator]
        return
    skipped = set(getattr(model, "_keys_to_ignore_on_save", None) or [])
    saved = ((name, tensor) for name, tensor in state if name not in skipped)
    if not is_main:
        for _ in saved:  # all ranks must take part in gathering each tensor
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
    # PEFT looks for a trained matrix that is tied under each of its names
    tied = {name: state[first] for name, first in tied_names(model).items() if first in state}
    try:
        # save_embedding_layers="auto" would ask the hub for the base's vocabulary, and jobs have no
        # network
        model.save_pretrained(
            str(folder), state_dict={**state, **tied}, safe_serialization=True, save_embedding_layers=False
        )
    except (ValueError, KeyError) as fault:
        reason = " ".join(str(fault).split())[:300]
        raise UserError(f"adapter: PEFT cannot save this adapter: {reason}") from None


def _save_generation_config(model: Model, folder: Path) -> None:
    if not model.can_generate():  # type: ignore[operator]
        return
    try:
        model.generation_config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    except ValueError as fault:
        # some published models have contradictory generation settings, but good weights
        logger.warning("generation_config.json is not written: %s", str(fault).splitlines()[0])


def write_description(model: Model, folder: Path) -> None:
    """Write the settings of the model and its adapter into a checkpoint.

    checkpoint_weights.py needs them to export the checkpoint.
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
    """Return whether PEFT added the parameter or buffer to the base.

    Such tensors are not always trained: VeRA, for example, adds fixed projections.
    """
    if not isinstance(model, PeftModel):
        return False
    method = model.active_peft_config.peft_type.value.lower()
    return f".{model.base_model.prefix}" in name or f".{method}_" in name
