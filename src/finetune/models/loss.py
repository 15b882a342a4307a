"""The loss: cross-entropy of the supervised positions alone, as a sum over tokens. The mean is taken once,
over the whole global step: a mean of means is a bug.

Full logits never exist: `TargetHead` makes the model's LM head see only the hidden states that have a target,
and takes the loss chunk by chunk (as in Liger, Hsu et al. 2024; Wijmans et al. 2024, "Cut Your Losses").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models.cpu_matmul import linear

IGNORE = -100
# logits of a chunk: what a CPU's last cache holds (each chunk reads the whole head: with less than half of
# that it took a seventh longer), and enough to fill a GPU
CHUNK_ELEMENTS = {"cpu": 5 * 2**20, "cuda": 2**27}
# each chunk reads the whole head: fewer rows of a large vocabulary take longer to read than to multiply
LEAST_ROWS = 256


@dataclass(frozen=True)
class TargetLosses:
    """Losses of supervised positions in nats.

    Attributes:
        total: their sum, a scalar to call backward on.
        each: [targets] float32, detached.
    """

    total: Tensor
    each: Tensor


@dataclass(frozen=True)
class _Supervised:
    """[targets] positions in the flattened packs, and the token that each should predict."""

    positions: Tensor
    targets: Tensor


class TargetHead:
    """The LM head of a causal model, made to give losses instead of logits while `losses` runs.

    It takes the place of the head's `forward`, inside the model and inside ZeRO-3's hooks, so that a
    partitioned head is there when it is needed. A head that is more than a linear layer (LoRA on it,
    offloaded), and a model that changes its logits after the head (Gemma 2's soft cap), keeps its own way,
    over the supervised positions only: see `chunked`.

    Attributes:
        chunked: the head is a plain linear layer and what it says is the model's logits. Ours to set to False
            after a check (checks.check_target_losses) found that the model does more.
    """

    def __init__(self, model: nn.Module) -> None:
        head = model.get_output_embeddings()  # type: ignore[operator]
        if hasattr(head, "modules_to_save"):  # PEFT keeps the trained copy beside the frozen one
            head = head.modules_to_save[head.active_adapters[0]]
        self.chunked = type(head) is nn.Linear and not hasattr(
            head, "_hf_hook"
        )  # accelerate's hook fetches offloaded weights
        self._head: Any = head
        self._forward: Callable[..., Tensor] = head.forward
        self._supervised: _Supervised | None = None
        self._each: Tensor | None = None
        head.forward = self._head_output

    def losses(self, forward: Callable[[], Any], target_positions: Tensor, targets: Tensor) -> TargetLosses:
        """Run the model and return the losses of the supervised positions.

        Args:
            forward: runs the model and gives its output.
            target_positions: [targets] positions in the flattened [packs × length].
            targets: [targets] the token that each of them should predict.
        """
        self._supervised = _Supervised(target_positions, targets)
        try:
            output = forward()
        finally:
            self._supervised = None
        if self.chunked:
            assert self._each is not None
            each, self._each = self._each, None
            return TargetLosses(
                total=output.logits, each=each
            )  # the head returned the sum of losses in place of logits
        each = nn.functional.cross_entropy(output.logits.float().flatten(0, -2), targets, reduction="none")
        return TargetLosses(total=each.sum(), each=each.detach())

    def _head_output(self, hidden: Tensor, *rest: Any, **more: Any) -> Tensor:
        """Return logits; while `losses` runs, the sum of losses, or the supervised positions' logits if not
        `chunked`."""
        if self._supervised is None:
            return self._forward(hidden, *rest, **more)
        supervised = hidden.flatten(0, -2)[self._supervised.positions]
        if not self.chunked:
            return self._forward(supervised[None], *rest, **more)
        weight, bias = self._head.weight, self._head.bias
        loss_sum, self._each = _ChunkedCrossEntropy.apply(supervised, weight, bias, self._supervised.targets)  # type: ignore[no-untyped-call]
        return loss_sum  # type: ignore[no-any-return]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of linear(hidden), with the gradients computed on the way forward, chunk by
    chunk: backward only scales them, so no chunk's logits are kept or computed twice, and ZeRO-3 need not
        gather the head again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        each = hidden.new_empty(len(hidden), dtype=torch.float32)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else None
        rows = max(LEAST_ROWS, CHUNK_ELEMENTS[hidden.device.type] // len(weight))
        for start in range(0, len(hidden), rows):
            here = slice(start, start + rows)
            target = labels[here, None]
            each[here], d_logits = _losses_and_probabilities(linear(hidden[here], weight, bias), target)
            if not (wants_hidden or wants_weight or wants_bias):
                continue
            d_logits.scatter_add_(1, target, d_logits.new_full((1, 1), -1.0).expand_as(target))
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            d_logits = d_logits.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[here] = linear(d_logits, weight.T)
            if d_weight is not None:
                d_weight += d_logits.T @ hidden[here]
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtype = weight.dtype
        ctx.mark_non_differentiable(each)
        return each.sum(), each

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
    """[rows] cross-entropies and [rows, vocabulary] softmax, float32, each with as few passes over memory as
    its device allows.

    Args:
        logits: [rows, vocabulary]; overwritten.
        target: [rows, 1]
    """
    if logits.device.type == "cuda":  # one kernel goes over a row until it is done with it
        log_probabilities = torch.log_softmax(logits, -1, dtype=torch.float32)
        return -log_probabilities.gather(1, target)[:, 0], log_probabilities.exp_()
    logits = logits.float()
    top = logits.amax(-1, keepdim=True)
    at_target = logits.gather(1, target)
    exponentials = logits.sub_(top).exp_()
    total = exponentials.sum(-1, keepdim=True)
    return (total.log() + top - at_target)[:, 0], exponentials.div_(total)


def normalise_loss(loss_sum: Tensor, global_tokens: int, world_size: int) -> Tensor:
    """Return the scalar to call backward on.

    DeepSpeed averages gradients over ranks, so multiplying by world_size / global_tokens makes the gradient
    of one step that of the mean over all supervised tokens of the global batch, however they fall on ranks
    and micro-batches.

    Args:
        loss_sum: sum of token losses of one micro-batch on this rank.
        global_tokens: supervised tokens of the whole global step, over all ranks and micro-batches.
    """
    return loss_sum * (world_size / global_tokens)
