"""Tiny models: their configs, and folders with their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.corpora import EOS, VOCAB_SIZE, write_tokenizer

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}


def write_base(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, shard: str = "50GB", **changes: Any
) -> Path:
    """Write a model with random weights, and its tokenizer, into a folder; return the folder.

    Args:
        shard: maximum size of a weight file.
        changes: settings that replace those of LLAMA.
    """
    write_tokenizer(folder)
    torch.manual_seed(seed)
    settings = {"vocab_size": VOCAB_SIZE, "eos_token_id": EOS, "bos_token_id": None, **LLAMA, **changes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder
