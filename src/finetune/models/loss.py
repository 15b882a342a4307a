"""The loss: cross-entropy of the supervised positions, as a sum over tokens.

The sum is divided only once, by the number of supervised tokens of the global step
(normalise_loss). Averaging the means of micro-batches would give tokens unequal weights.

The full logits are never computed: `TargetHead` gives the model's LM head only the hidden states of
supervised positions, and computes the loss chunk by chunk (as in Liger, Hsu et al. 2024; Wijmans et
al. 2024, "Cut Your Losses").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models.cpu_matmul import linear

# label of positions without a target, as in torch's cross_entropy
IGNORE = -100
# Number of logits in a chunk. On a CPU, as many as its last-level cache holds: each chunk reads the
# whole head, and with less than half as many logits the loss took a seventh longer. On a GPU,
# enough to keep it busy.
CHUNK_ELEMENTS = {"cpu": 5 * 2**20, "cuda": 2**27}
# Minimum number of rows in a chunk. With fewer rows and a large vocabulary, reading the head takes
# longer than the product.
MIN_CHUNK_ROWS = 256


@dataclass(frozen=True)
class TargetLosses:
    """Losses of supervised positions, in nats.

    Attributes:
        total: sum of the losses, a scalar with a gradient.
        per_token: [targets] loss of each position, float32, detached.
    """

    total: Tensor
    per_token: Tensor


@dataclass(frozen=True)
class _Supervised:
    """Supervised positions in the flattened packs, and the token to predict at each of them.

    Both tensors have the shape [targets].
    """

    positions: Tensor
    targets: Tensor


class TargetHead:
    """Wrapper of a causal model's LM head, so that the head can return losses instead of logits.

    The head returns losses only while the method `losses` runs the model. The wrapper replaces the
    head's `forward`, so that it runs inside ZeRO-3's hooks. These gather a partitioned head when
    the model calls it.

    Attributes:
        chunked: True if the head itself computes the loss, chunk by chunk. Otherwise the loss is
            computed from the model's final logits of the supervised positions. `chunked` is False
            if the head is not a plain linear layer (e.g. with LoRA) or if its weights are offloaded.
            checks.check_target_losses also sets it to False if the model changes its logits after
            the head, as Gemma 2 does.
    """

    def __init__(self, model: nn.Module) -> None:
        head = model.get_output_embeddings()  # type: ignore[operator]
        if hasattr(head, "modules_to_save"):
            # PEFT keeps the trained copy beside the frozen head
            head = head.modules_to_save[head.active_adapters[0]]
        is_offloaded = hasattr(head, "_hf_hook")  # accelerate's hook loads offloaded weights
        self.chunked = type(head) is nn.Linear and not is_offloaded
        self._head: Any = head
        self._forward: Callable[..., Tensor] = head.forward
        self._supervised: _Supervised | None = None
        self._per_token: Tensor | None = None
        head.forward = self._head_output

    def losses(self, forward: Callable[[], Any], target_positions: Tensor, targets: Tensor) -> TargetLosses:
        """Run the model and return the losses of the supervised positions.

        Args:
            forward: runs the model and returns its output.
            target_positions: [targets] supervised positions in the flattened [packs × length].
            targets: [targets] token to predict at each of these positions.
        """
        self._supervised = _Supervised(target_positions, targets)
        try:
            output = forward()
        finally:
            self._supervised = None
        if self.chunked:
            per_token = self._per_token
            self._per_token = None
            assert per_token is not None
            # the head returned the sum of losses instead of logits
            return TargetLosses(total=output.logits, per_token=per_token)
        logits = output.logits.float().flatten(0, -2)
        per_token = nn.functional.cross_entropy(logits, targets, reduction="none")
        return TargetLosses(total=per_token.sum(), per_token=per_token.detach())

    def _head_output(self, hidden: Tensor, *rest: Any, **more: Any) -> Tensor:
        """Compute the output of the LM head, in place of the head's own `forward`.

        While `losses` runs the model, return the sum of the losses if `chunked` is True, and
        otherwise the logits of the supervised positions. At other times, return all logits.
        """
        if self._supervised is None:
            return self._forward(hidden, *rest, **more)
        supervised = hidden.flatten(0, -2)[self._supervised.positions]
        if not self.chunked:
            return self._forward(supervised[None], *rest, **more)
        head = self._head
        loss_sum, self._per_token = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            supervised, head.weight, head.bias, self._supervised.targets
        )
        return loss_sum  # type: ignore[no-any-return]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropies of linear(hidden), computed chunk by chunk.

    The forward pass also computes the gradients, and the backward pass only scales them. Logits are
    therefore neither kept nor computed twice, and ZeRO-3 need not gather the head again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        per_token = hidden.new_empty(len(hidden), dtype=torch.float32)
        d_hidden: Tensor | None = None
        d_weight: Tensor | None = None
        d_bias: Tensor | None = None
        if needs_hidden:
            d_hidden = torch.empty_like(hidden)
        if needs_weight:
            d_weight = torch.zeros_like(weight, dtype=torch.float32)
        if needs_bias and bias is not None:
            d_bias = torch.zeros_like(bias, dtype=torch.float32)
        num_rows = max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS[hidden.device.type] // len(weight))
        for start in range(0, len(hidden), num_rows):
            chunk = slice(start, start + num_rows)
            target = labels[chunk, None]
            # the logits get no name, because they would then stay in memory until the next chunk
            per_token[chunk], d_logits = _losses_and_probabilities(
                linear(hidden[chunk], weight, bias), target
            )
            if not (needs_hidden or needs_weight or needs_bias):
                continue
            # the gradient with respect to the logits: the probabilities, minus 1 at the target
            d_logits.scatter_add_(1, target, d_logits.new_full((1, 1), -1.0).expand_as(target))
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            d_logits = d_logits.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[chunk] = linear(d_logits, weight.T)
            if d_weight is not None:
                d_weight += d_logits.T @ hidden[chunk]
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtype = weight.dtype
        ctx.mark_non_differentiable(per_token)
        return per_token.sum(), per_token

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        scale = gradients[0]
        return (
            None if d_hidden is None else d_hidden * scale,
            None if d_weight is None else (d_weight * scale).to(ctx.dtype),
            None if d_bias is None else (d_bias * scale).to(ctx.dtype),
            None,
        )


def _losses_and_probabilities(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropies [rows] and softmax [rows, vocabulary] in float32.

    The computation differs between CPU and GPU, so that each makes few passes over memory.

    Args:
        logits: [rows, vocabulary]; overwritten.
        target: [rows, 1] token ids.
    """
    if logits.device.type == "cuda":  # on a GPU, log_softmax is a single kernel
        log_probabilities = torch.log_softmax(logits, -1, dtype=torch.float32)
        return -log_probabilities.gather(1, target)[:, 0], log_probabilities.exp_()
    logits = logits.float()
    top = logits.amax(-1, keepdim=True)
    at_target = logits.gather(1, target)
    exponentials = logits.sub_(top).exp_()
    total = exponentials.sum(-1, keepdim=True)
    return (total.log() + top - at_target)[:, 0], exponentials.div_(total)


def normalise_loss(loss_sum: Tensor, global_tokens: int, world_size: int) -> Tensor:
    """Return the loss of a micro-batch for the backward pass.

    DeepSpeed adds gradients over micro-batches and averages them over ranks. With the factor
    world_size / global_tokens, the result is the gradient of the mean loss over all supervised
    tokens of the global step, however they are distributed.

    Args:
        loss_sum: sum of the token losses of one micro-batch on this rank.
        global_tokens: number of supervised tokens of the global step, over all ranks.
        world_size: number of ranks.
    """
    return loss_sum * (world_size / global_tokens)
