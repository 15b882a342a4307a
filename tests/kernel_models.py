"""A batch and tiny models for comparing kernels; every weight of the models affects the loss."""

from __future__ import annotations

import torch
from peft import get_peft_config, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from finetune.models.packed import PackInputs
from tests.corpora import VOCAB_SIZE
from tests.models import LLAMA, LORA

# by architecture: settings of the models whose attention implementations are compared
ATTENTION = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "olmo2": {},
    "mistral": {"sliding_window": 7},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


def causal_model(**changes: object) -> torch.nn.Module:
    """Return a model with random weights. `changes` replace settings of LLAMA."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **{**LLAMA, **changes}, vocab_size=VOCAB_SIZE, eos_token_id=1, bos_token_id=None
    )
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        # norms are initialised to ones and biases to zeros, which would hide errors
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return model  # type: ignore[no-any-return]


def with_adapter(model: torch.nn.Module, **changes: object) -> torch.nn.Module:
    """Return the model with a LoRA adapter whose weights are not zero.

    `changes` replace settings of LORA.
    """
    adapted = get_peft_model(model, get_peft_config({"task_type": "CAUSAL_LM", **LORA, **changes}))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return adapted  # type: ignore[no-any-return]


def batch(num_packs: int = 2) -> PackInputs:
    """Return the inputs of a forward pass on packs that hold four documents each."""
    ids = torch.randint(VOCAB_SIZE, (num_packs, 40), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(n) for n in (11, 3, 20, 6)]).expand(num_packs, -1).contiguous()
    in_second_pack = (41, 60, 79) if num_packs == 2 else ()
    supervised = torch.tensor([0, 1, 5, 12, 13, 20, 33, 38, *in_second_pack])
    targets = ids.flatten()[(supervised + 1) % ids.numel()]
    return PackInputs(ids, positions, supervised, targets)
