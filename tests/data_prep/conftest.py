"""Tokenizers for the tests on conversations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXTS = [
    "Når må jeg senest søke om barnehageplass?",
    "Fristen er 1. mars.",
    "Nei, du må søke på nytt hvert år.",
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a byte-level BPE tokenizer with the control tokens of all templates.

    The tokenizer prepends <s>. The offsets of a token leave out its leading spaces.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        "<s>",
        "</s>",
        "<|im_start|>",
        "<|im_end|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "[INST]",
        "[/INST]",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{text}\n\n\n\nassistant\nuser\n" for text in TEXTS] * 5, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(t, rstrip=True) for t in ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")]
    )
    # Gemma's own tokenizer has the last two as special tokens; here they are plain added tokens
    tokenizer.add_tokens(["<think>", "</think>", "<start_of_turn>", "<end_of_turn>"])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "clean_up_tokenization_spaces": False})
    )
    return folder


@pytest.fixture(scope="session")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tokenizer that prepends a space to every text.

    The SentencePiece tokenizers of Llama 2 and Mistral do this.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>", "[INST]", "[/INST]"], show_progress=False
    )
    tokenizer.train_from_iterator(
        [f"{text}\nassistant user </s>[INST] [/INST]|<>" for text in TEXTS] * 3, trainer
    )
    folder = tmp_path_factory.mktemp("spaced")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder
