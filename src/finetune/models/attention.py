"""Attention implementations that isolate packed documents, among them our own, `documents`.

In a pack, the positions of each document start at 0. `sdpa` and `flex_attention` turn the positions
into a mask over [length × length]. `flash_attention_2` and `documents` join all packs of a batch
into one row of documents, and never compute masked scores. checks.choose_attention tries the
implementations on the loaded model, and takes the first that gives correct results.
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
ONE_ROW = (DOCUMENTS, "flash_attention_2")  # these take all packs of a batch as one row


def list_implementations(device: torch.device) -> list[str]:
    """Return the names of the attention implementations to try on a device, fastest first."""
    if device.type == "cpu":
        return [DOCUMENTS, "sdpa", "eager"]
    on_gpu = [DOCUMENTS, "flex_attention", "sdpa", "eager"]
    if importlib.util.find_spec("flash_attn"):
        return ["flash_attention_2", *on_gpu]
    return on_gpu


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
    """Compute causal attention within each document of one row.

    The function is registered in transformers as the attention implementation DOCUMENTS.

    On a GPU it uses torch's FlashAttention 2 (Dao 2023), which takes 16-bit numbers only. On a CPU
    it computes the documents one by one: torch's CPU kernel skips scores above the diagonal, but
    computes those that a mask blocks.

    Args:
        query, key, value: [1, heads, tokens, head size]; key and value may have fewer heads
            (grouped-query attention).
        attention_mask: must be None.
        sliding_window: number of tokens that a token attends to, itself included; None for all.
        kwargs: must contain `position_ids` [1, tokens], which are 0 where a document starts.

    Returns:
        The output [1, tokens, heads, head size], and None instead of attention weights.

    Raises:
        NotImplementedError: the model passes a mask, a soft cap, attention sinks, or positions that
            are not one row.
        RuntimeError: torch's FlashAttention does not support this precision or head size.
    """
    positions = kwargs.get("position_ids")
    if positions is None or len(positions) != 1 or attention_mask is not None:
        raise NotImplementedError(
            "this attention needs position_ids of one row and no attention mask; the model passes others"
        )
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise NotImplementedError("this attention supports neither a soft cap nor attention sinks")
    lengths, bounds = _find_documents(positions)
    if query.is_cuda:
        out = _attend_on_gpu(query, key, value, lengths, bounds, dropout, scaling, sliding_window)
    else:
        out = _attend_on_cpu(query, key, value, lengths, dropout, scaling, sliding_window)
    return out, None


def _attend_on_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    bounds: Tensor,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Compute attention for all documents in one call of torch's FlashAttention 2."""
    # torch.nn.attention.varlen is not used: torch 2.8 and 2.9 lack it, and its arguments differ
    # between later releases.
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    is_causal = sliding_window is None
    window: dict[str, int] = {"window_size_left": -1, "window_size_right": -1}
    if sliding_window is not None:
        window = {"window_size_left": sliding_window - 1, "window_size_right": 0}
    longest = max(lengths)
    return_debug_mask = False
    out = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        dropout,
        is_causal,
        return_debug_mask,
        scale=scaling,
        **window,
    )[0]
    return out[None]  # type: ignore[no-any-return]


def _attend_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Compute attention for one document after the other."""
    queries_per_key = query.shape[1] // key.shape[1]
    if queries_per_key > 1:
        key = key.repeat_interleave(queries_per_key, 1)
        value = value.repeat_interleave(queries_per_key, 1)
    outputs = []
    documents = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    for q, k, v in documents:
        length = q.shape[2]
        fits_window = sliding_window is None or length <= sliding_window
        mask = None
        if sliding_window is not None and not fits_window:
            mask = _window_mask(length, sliding_window, q.device)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=fits_window
        )
        outputs.append(out.transpose(1, 2))
    return torch.cat(outputs, 1)


@functools.lru_cache(maxsize=1)  # all layers of a forward pass get the same tensor object
def _find_documents(positions: Tensor) -> tuple[list[int], Tensor]:
    """Return the lengths of the documents, and a tensor of their bounds, [documents + 1].

    The host waits for the device.

    Args:
        positions: [1, tokens]; 0 where a document starts.
    """
    starts = (positions[0] == 0).nonzero()[:, 0].tolist()
    bounds = [*starts, positions.shape[1]]
    lengths = [stop - start for start, stop in itertools.pairwise(bounds)]
    return lengths, torch.tensor(bounds, dtype=torch.int32, device=positions.device)


def _window_mask(length: int, sliding_window: int, device: torch.device) -> Tensor:
    """Return a mask [length, length]: True for a token and the `sliding_window - 1` before it."""
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions
    return (distance >= 0) & (distance < sliding_window)


AttentionInterface.register(DOCUMENTS, attend_by_document)
