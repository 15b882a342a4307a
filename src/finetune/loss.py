"""Cross-entropy as a sum over tokens. The mean is taken once, over the whole global step: a mean of means is a bug."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every position, 0 where the label is IGNORE.

    Args:
        logits: [packs, length, vocabulary], any float type; computed in float32.
        labels: [packs, length]; labels[i, t] is the token that position t should predict (already shifted).

    Returns:
        [packs, length] float32, in nats.
    """
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
    ).view(labels.shape)


def normalised(loss_sum: Tensor, global_tokens: int, world_size: int) -> Tensor:
    """The scalar to call backward on.

    DeepSpeed averages gradients over ranks, so multiplying by world_size / global_tokens makes the gradient of one step
    that of the mean over all supervised tokens of the global batch, however they fall on ranks and micro-batches.

    Args:
        loss_sum: sum of token losses of one micro-batch on this rank.
        global_tokens: supervised tokens of the whole global step, over all ranks and micro-batches.
    """
    return loss_sum * (world_size / global_tokens)
