"""Attention that keeps packed documents apart: the implementations by speed, and our own for CPUs.

Documents are told apart by positions that start at 0 again. `sdpa` and `flex_attention` turn that into a mask over [length ×
length]; `flash_attention_2` and `documents` take one row of all documents and never compute what a mask would throw away.
Which of them is used is decided on the running model, by a check of its results (guards.check_isolation).
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

DOCUMENTS = "documents"
ONE_ROW = (DOCUMENTS, "flash_attention_2")  # they want all packs of a batch as one row
CPU = torch.device("cpu")


def by_speed(device: torch.device) -> list[str]:
    """Implementations to try on this device, the fastest first."""
    if device.type == "cpu":
        return [DOCUMENTS, "sdpa", "eager"]
    installed = [name for name, module in (("flash_attention_2", "flash_attn"),) if importlib.util.find_spec(module)]
    return [*installed, "flex_attention", "sdpa", "eager"]


def attend_by_document(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Causal attention inside each document of one row.

    torch's CPU kernel skips what lies above the diagonal but not what a mask blocks: a document at a time, nothing is wasted.

    Args:
        query, key, value: [1, heads, tokens, head size]; fewer key heads than query heads are shared among them.
        kwargs: holds `position_ids` [1, tokens], from which the documents are read.

    Returns:
        [1, tokens, heads, head size], as transformers' attention functions do.

    Raises:
        NotImplementedError: the model asks for attention that this function does not do.
    """
    positions = kwargs.get("position_ids")
    if positions is None or len(positions) != 1 or attention_mask is not None:
        raise NotImplementedError("it needs one row of positions and no mask")
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise NotImplementedError("no soft cap and no attention sinks")
    starts = (positions[0] == 0).nonzero()[:, 0].tolist()
    lengths = [stop - start for start, stop in zip(starts, [*starts[1:], query.shape[2]], strict=True)]
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    documents = zip(lengths, query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    out = [
        scaled_dot_product_attention(
            q, k, v, attn_mask=_window(length, sliding_window, q.device), dropout_p=dropout, scale=scaling,
            is_causal=sliding_window is None or length <= sliding_window,
        ).transpose(1, 2)
        for length, q, k, v in documents
    ]  # fmt: skip
    return torch.cat(out, 1), None


def _window(length: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """[length, length] True where a token may look: itself and the `sliding_window - 1` before it. None: all before it."""
    if sliding_window is None or length <= sliding_window:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < sliding_window)


AttentionInterface.register(DOCUMENTS, attend_by_document)
