"""The forward pass of a causal model on packed documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from finetune.models.attention import ONE_ROW
from finetune.models.loss import TargetHead, TargetLosses
from finetune.models.parameters import Model


@dataclass(frozen=True)
class PackInputs:
    """The inputs of one forward pass, on the model's device.

    Attributes:
        input_ids: [packs, length] token ids.
        position_ids: [packs, length]; they start at 0 in every document.
        target_positions: [targets] supervised positions in the flattened packs.
        targets: [targets] token to predict at each of these positions.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    target_positions: torch.Tensor
    targets: torch.Tensor


class PackedModel:
    """A causal model that is called on packed documents.

    Training and evaluation call the model only through this class.

    Args:
        model: the model. Its LM head is wrapped, so that it can return losses (loss.py).
        forward: function that is called instead of `model`, such as DeepSpeed's engine around it.

    Attributes:
        head: the wrapped LM head.
    """

    def __init__(self, model: Model, forward: Callable[..., Any] | None = None) -> None:
        self.model = model
        self._forward = forward or model
        self.head = TargetHead(model)

    @property
    def attention(self) -> str:
        """Name of the attention implementation."""
        return str(self._base.config._attn_implementation)

    @attention.setter
    def attention(self, implementation: str) -> None:
        self._base.set_attn_implementation(implementation)

    @property
    def num_layers(self) -> int:
        return int(self._base.config.get_text_config().num_hidden_layers)

    def logits(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Return next-token logits, [packs, length, vocabulary].

        Only checks call it: training never has all logits in memory.
        """
        logits: torch.Tensor = self._call(input_ids, position_ids).logits
        return logits.view(*input_ids.shape, -1)

    def losses(self, inputs: PackInputs) -> TargetLosses:
        """Return the losses of the supervised positions and the sum of these losses."""

        def forward() -> Any:
            return self._call(inputs.input_ids, inputs.position_ids)

        return self.head.losses(forward, inputs.target_positions, inputs.targets)

    def _call(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> Any:
        """Call the model so that documents are isolated.

        transformers infers the documents from the positions, which start at 0 in each. It isolates
        documents only if it gets neither an attention mask nor a cache. With one of these,
        documents would silently attend to each other.
        """
        if self.attention in ONE_ROW:
            input_ids = input_ids.view(1, -1)
            position_ids = position_ids.view(1, -1)
        return self._forward(
            input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False
        )

    @property
    def _base(self) -> Any:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
