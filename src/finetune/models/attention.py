"""Attention that keeps packed documents apart: the implementations by speed, and our own.

Documents are told apart by positions that start at 0 again. `sdpa` and `flex_attention` turn that into a mask
over [length × length]; `flash_attention_2` and `documents` take one row of all documents and never compute
what a mask would throw away. Which of them is used is decided on the running model, by a check of its results
(checks.check_isolation).
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
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
    installed = [
        name for name, module in (("flash_attention_2", "flash_attn"),) if importlib.util.find_spec(module)
    ]
    return [*installed, DOCUMENTS, "flex_attention", "sdpa", "eager"]


def attend_by_document(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each document of one row.

    On a GPU by the FlashAttention 2 that torch carries (Dao 2023), which takes 16-bit numbers only. torch's
    CPU kernel skips what lies above the diagonal but not what a mask blocks: there a document at a time, so
        that nothing is wasted.

    Args:
        query, key, value: [1, heads, tokens, head size]; fewer key heads than query heads are shared among
            them.
        kwargs: holds `position_ids` [1, tokens], from which the documents are read.

    Returns:
        [1, tokens, heads, head size], as transformers' attention functions do.

    Raises:
        NotImplementedError: the model asks for attention that this function does not do.
        RuntimeError: torch's FlashAttention does not take these numbers or this head size.
    """
    positions = kwargs.get("position_ids")
    if positions is None or len(positions) != 1 or attention_mask is not None:
        raise NotImplementedError("it needs one row of positions and no mask")
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise NotImplementedError("no soft cap and no attention sinks")
    lengths, bounds = _documents(positions)
    if query.is_cuda:
        # not torch.nn.attention.varlen: its arguments differ from release to release, and 2.8 and 2.9 have
        # none
        back = -1 if sliding_window is None else sliding_window - 1
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        out = torch.ops.aten._flash_attention_forward(
            q,
            k,
            v,
            bounds,
            bounds,
            max(lengths),
            max(lengths),
            dropout,
            sliding_window is None,
            False,
            scale=scaling,
            window_size_left=back,
            window_size_right=-1 if sliding_window is None else 0,
        )[0]
        return out[None], None
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    documents = zip(
        lengths, query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True
    )
    each = [
        scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_window(length, sliding_window, q.device),
            dropout_p=dropout,
            scale=scaling,
            is_causal=sliding_window is None or length <= sliding_window,
        ).transpose(1, 2)
        for length, q, k, v in documents
    ]
    return torch.cat(each, 1), None


@functools.lru_cache(maxsize=1)  # by the tensor's identity: all layers of a model are given the same one
def _documents(positions: Tensor) -> tuple[list[int], Tensor]:
    """From [1, tokens] positions the documents' lengths, and [documents + 1] where they begin and end. Waits
    for the device."""
    starts = (positions[0] == 0).nonzero()[:, 0].tolist()
    bounds = [*starts, positions.shape[1]]
    lengths = [stop - start for start, stop in itertools.pairwise(bounds)]
    return lengths, torch.tensor(bounds, dtype=torch.int32, device=positions.device)


def _window(length: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """[length, length] True where a token may look: itself and the `sliding_window - 1` before it. None: all
    before it."""
    if sliding_window is None or length <= sliding_window:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < sliding_window)


AttentionInterface.register(DOCUMENTS, attend_by_document)
