"""AutoTokenizer must load a saved tokenizer with the ids used in training.

If AutoTokenizer would load other ids, the tokenizer class is replaced. If this does not help,
saving fails.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from data_prep.tokens.tokenizer_files import train
from finetune.models import tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tokenizer that is trained as `finetune prepare` trains it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train(700, [*tokenizer.SAMPLES, "Søknaden gjelder 100 000 kroner i 2024.\n"] * 5, folder)
    return folder


def make_model_folder(folder: Path, model_type: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.mark.parametrize(
    "model_type", ["llama", "mistral", "gemma", "gemma2", "phi", "phi3", "qwen3", "gpt2", "olmo2", "bloom"]
)
def test_autotokenizer_loads_a_trained_tokenizer_beside_most_model_types(
    trained: Path, tmp_path: Path, model_type: str
) -> None:
    folder = make_model_folder(tmp_path / "model", model_type)
    tokenizer.copy_files(trained, folder)
    text = "Ein ny setning om 1 250 000 kr:\n\n\tdet er ikkje så lett!</s>"
    loaded = AutoTokenizer.from_pretrained(folder)(text)
    expected = Tokenizer.from_file(str(trained / "tokenizer.json")).encode(text)
    assert loaded.input_ids == expected.ids


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3_5"])
def test_a_model_type_with_a_tokenizer_class_of_its_own_is_rejected(
    trained: Path, tmp_path: Path, model_type: str
) -> None:
    folder = make_model_folder(tmp_path / "model", model_type)
    error = r"would load another tokenizer .*: Qwen.*Tokenizer gives .* where the corpus has .*model_type"
    with pytest.raises(ValueError, match=error):
        tokenizer.copy_files(trained, folder)


def test_a_tokenizer_class_that_gives_other_ids_is_replaced_in_the_copy(
    trained: Path, tmp_path: Path
) -> None:
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "tokenizer.json").write_bytes((trained / "tokenizer.json").read_bytes())
    settings = {**json.loads((trained / tokenizer.CONFIG).read_text()), "tokenizer_class": "Qwen2Tokenizer"}
    (source / tokenizer.CONFIG).write_text(json.dumps(settings))
    folder = make_model_folder(tmp_path / "model", "gemma")
    tokenizer.copy_files(source, folder)
    assert json.loads((folder / tokenizer.CONFIG).read_text())["tokenizer_class"] == tokenizer.GENERIC_CLASS
    assert tokenizer.find_difference(folder) is None
