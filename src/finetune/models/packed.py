"""A causal model on packed documents: the one way in which a rank calls its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from finetune.models.attention import ONE_ROW
from finetune.models.load import Model
from finetune.models.loss import TargetHead, TargetLosses


@dataclass(frozen=True)
class PackInputs:
    """What one forward pass takes, on the model's device.

    Attributes:
        input_ids: [packs, length] token ids.
        position_ids: [packs, length]; they start at 0 with every document.
        target_positions: [targets] positions in the flattened packs that have a target.
        targets: [targets] the token that each of them should predict.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    target_positions: torch.Tensor
    targets: torch.Tensor


class PackedModel:
    """A causal model on packed documents: the one way in which the model is called.

    Args:
        model: the model, whose LM head is made to give losses (loss.py).
        forward: what to call instead of `model`: DeepSpeed's engine around it.
    """

    def __init__(self, model: Model, forward: Callable[..., Any] | None = None) -> None:
        self.model, self._forward = model, forward or model
        self.head = TargetHead(model)

    @property
    def attention(self) -> str:
        return str(self._base.config._attn_implementation)

    @attention.setter
    def attention(self, implementation: str) -> None:
        self._base.set_attn_implementation(implementation)

    @property
    def num_layers(self) -> int:
        return int(self._base.config.get_text_config().num_hidden_layers)

    def logits(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Return next-token logits: [packs, length] -> [packs, length, vocabulary].

        For checks: training never makes them whole.
        """
        logits: torch.Tensor = self._call(input_ids, position_ids).logits
        return logits.view(*input_ids.shape, -1)

    def losses(self, inputs: PackInputs) -> TargetLosses:
        """Return the losses of the supervised positions of packs, and their sum: see TargetHead.losses."""
        return self.head.losses(
            lambda: self._call(inputs.input_ids, inputs.position_ids), inputs.target_positions, inputs.targets
        )

    def _call(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> Any:
        """Call the model. Positions that start at 0 again tell documents apart: transformers masks between
        them only if it gets no attention mask and no cache; either of them would make packs leak,
        silently."""
        if self.attention in ONE_ROW:
            input_ids, position_ids = input_ids.view(1, -1), position_ids.view(1, -1)
        return self._forward(
            input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False
        )

    @property
    def _base(self) -> Any:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
