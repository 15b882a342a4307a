"""Parameters of a model: list them by name, replace them, and add rows for added tokens.

A tied parameter is one that several modules share. It is listed under its first name only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from finetune.models.zero3 import Partitioner

Model = torch.nn.Module
logger = logging.getLogger(__name__)


def enlarge_vocabulary(model: Model, num_rows: int, partitioner: Partitioner | None) -> None:
    """Enlarge the embeddings and the LM head to at least `num_rows` rows.

    Each new row is the mean of the old rows, so that its logits stay within the range of the others
    (Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models).

    Args:
        partitioner: required if the model is partitioned.
    """
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    if embeddings.num_embeddings >= num_rows:
        return
    logger.info("enlarging the vocabulary from %d to %d rows", embeddings.num_embeddings, num_rows)
    owners = [embeddings] if head is None else [embeddings, head]
    for parameter in dict.fromkeys(p for owner in owners for p in owner.parameters()):
        if not is_partitioned(model):
            enlarged = torch.nn.Parameter(_append_mean_rows(parameter.detach(), num_rows))
            replace_parameter(model, parameter, enlarged)
            continue
        from finetune.models import zero3

        assert partitioner is not None
        with zero3.gathered([parameter]):
            full = _append_mean_rows(parameter.detach(), num_rows)
        with partitioner.partition() as partition:
            replace_parameter(model, parameter, partition(full))
    embeddings.num_embeddings = num_rows
    if head is not None:
        head.out_features = num_rows
    model.config.get_text_config().vocab_size = num_rows  # type: ignore[union-attr, operator]
    if hasattr(model, "vocab_size"):
        model.vocab_size = num_rows  # type: ignore[assignment]


def _append_mean_rows(old: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Append copies of the mean row to `old`; return [num_rows, …].

    The mean is computed in float64 on the CPU, in pieces of fixed size. It is therefore the same on
    every device and with any number of threads.
    """
    total = torch.zeros(old.shape[1:], dtype=torch.float64)
    for piece in torch.split(old.cpu(), 4096):
        total += piece.double().sum(0)
    mean = (total / len(old)).to(old)
    return torch.cat([old, mean.expand(num_rows - len(old), *old.shape[1:])])


def named_tensors(model: Model) -> dict[str, torch.Tensor]:
    """Return the parameters and saved buffers by name.

    A parameter that several modules share is returned once, under its first name.
    """
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    tensors.update({name: buffers[name] for name in model.state_dict() if name in buffers})
    return tensors


def tied_names(model: Model) -> dict[str, str]:
    """Map the further names of each tied parameter to its first name.

    A tied parameter is one that several modules share, so that it has several names.
    """
    first_names: dict[int, str] = {}
    ties = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = first_names.setdefault(id(parameter), name)
        if first != name:
            ties[name] = first
    return ties


def replace_parameter(model: Model, old: torch.nn.Parameter, new: torch.nn.Parameter) -> None:
    """Replace a parameter in every module that has it; a tied parameter is in several."""
    new.requires_grad_(old.requires_grad)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is old:
                module._parameters[name] = new


def is_partitioned(model: Model) -> bool:
    """Return whether the model is partitioned (ZeRO-3); see zero3.py for `ds_id`."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())
