"""A trained model or adapter as files: its whole weights gathered from the ranks, and written for
transformers and PEFT."""

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
from finetune.models.load import Model, aliases, tensors

logger = logging.getLogger(__name__)

DESCRIPTION = "description"  # of a checkpoint's model: see describe


def weights(model: Model, trainable_only: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield whole parameters and saved buffers, one at a time: on rank 0's CPU, elsewhere their shapes (meta
    tensors). Every rank must go through all of them: under ZeRO-3 each is gathered, and naive saving writes
    empty tensors."""
    from finetune.models import zero3

    wanted = (
        (n, t)
        for n, t in tensors(model).items()
        if not trainable_only or t.requires_grad or is_of_adapter(model, n)
    )
    return zero3.gather_to_rank0(wanted, World().is_main)


def save(model: Model, state: Iterable[tuple[str, torch.Tensor]], folder: Path, is_main: bool = True) -> None:
    """Write a trained model or adapter as safetensors, for transformers or PEFT to load. Every rank calls it,
    rank 0 writes.

    Args:
        state: whole tensors by parameter name (see `weights`). A model's are written as they come; rank 0
            never has them all.
    """
    if isinstance(model, PeftModel) or get_model_conversion_mapping(model, add_legacy=False):
        everything = dict(
            state
        )  # an adapter is small; tensors that transformers converts back it must have together
        if is_main and isinstance(model, PeftModel):
            # PEFT looks for tied matrices that it trains under both of their names
            everything |= {
                name: everything[first] for name, first in aliases(model).items() if first in everything
            }
            # save_embedding_layers="auto" would ask the hub whether the vocabulary grew: no network in jobs.
            try:
                model.save_pretrained(
                    str(folder), state_dict=everything, safe_serialization=True, save_embedding_layers=False
                )
            except (ValueError, KeyError) as fault:
                raise UserError(
                    f"adapter: PEFT cannot save this one: {' '.join(str(fault).split())[:300]}"
                ) from None
        elif is_main:
            model.save_pretrained(str(folder), state_dict=everything)  # type: ignore[operator]
        return
    skipped = set(getattr(model, "_keys_to_ignore_on_save", None) or [])
    saved = ((name, tensor) for name, tensor in state if name not in skipped)
    if not is_main:
        for _ in saved:
            pass
        return
    safetensors_io.write(folder, saved)
    model.config.dtype = next(model.parameters()).dtype
    model.config.architectures = [type(model).__name__]  # type: ignore[union-attr]
    model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    _save_generation_config(model, folder)


def _save_generation_config(model: Model, folder: Path) -> None:
    if model.can_generate():  # type: ignore[operator]
        try:
            model.generation_config.save_pretrained(folder)  # type: ignore[union-attr, operator]
        except (
            ValueError
        ) as fault:  # some published models' own settings contradict each other; the weights are what counts
            logger.warning("generation_config.json is not written: %s", str(fault).splitlines()[0])


def describe(model: Model, folder: Path) -> None:
    """Write the model's settings, and its adapter's, so that a checkpoint can be made a model without
    the run (checkpoint_weights.py)."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    plain.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    _save_generation_config(plain, folder)
    if isinstance(model, PeftModel):
        stated = dataclasses.replace(model.active_peft_config)
        stated.inference_mode = True  # as PEFT writes it
        stated.save_pretrained(str(folder))


def is_adapter(model: Model) -> bool:
    """Return whether the model is an adapter on a frozen base."""
    return isinstance(model, PeftModel)


def is_of_adapter(model: Model, name: str) -> bool:
    """Whether PEFT put the parameter or buffer there: some methods keep what they do not train, such as
    VeRA's projections."""
    if not isinstance(model, PeftModel):
        return False
    method = model.active_peft_config.peft_type.value.lower()
    return f".{model.base_model.prefix}" in name or f".{method}_" in name
