"""Tokens added to a base's tokenizer: how they are encoded, and which tokenizers a base accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from data_prep.config import CorpusConfig, SourceConfig
from data_prep.shards import Corpus
from data_prep.stage_settings import TokenizerConfig
from data_prep.tokens.tokenizer_files import place_files
from finetune.runs import base_model
from finetune.runs import inputs as run_inputs
from tests.corpora import write_corpus
from tests.models import write_base

WORDS = ["skolegård", "máhttu"]


def make(config: TokenizerConfig, texts: list[str], folder: Path) -> Tokenizer:
    source = SourceConfig(reader="text", path="none", license="CC0-1.0")
    place_files(CorpusConfig(name="none", sources={"none": source}, tokenizer=config), texts, folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_an_added_token_is_one_token_and_decodes_to_itself(tmp_path: Path) -> None:
    make(TokenizerConfig(vocab_size=400), ["Vi går til skolegården i Máhttovárri."] * 20, tmp_path / "base")
    extended = TokenizerConfig(path=str(tmp_path / "base"), add_tokens=WORDS)
    tokenizer = make(extended, [], tmp_path / "extended")
    encoded = tokenizer.encode("Vi har en skolegård og máhttu.")
    assert set(WORDS) <= set(encoded.tokens)
    assert tokenizer.decode(encoded.ids) == "Vi har en skolegård og máhttu."
    published = AutoTokenizer.from_pretrained(tmp_path / "extended")
    assert published("Vi har en skolegård og máhttu.").input_ids == encoded.ids
    assert published.decode(encoded.ids) == "Vi har en skolegård og máhttu."
    base_size = run_inputs.tokenizer_size(tmp_path / "base")
    assert [tokenizer.token_to_id(word) for word in WORDS] == [base_size, base_size + 1]


def test_adding_a_token_that_exists_is_rejected(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    with pytest.raises(ValueError, match="'w7', which the tokenizer already has"):
        make(TokenizerConfig(path=str(base), add_tokens=["w7"]), [], tmp_path / "extended")
    with pytest.raises(ValueError, match=r"give its folder as tokenizer\.path"):
        TokenizerConfig(add_tokens=["ny"])


@pytest.mark.parametrize("change", ["vocabulary", "normalizer", "taken_id"])
def test_only_a_strict_extension_of_the_bases_tokenizer_is_accepted(tmp_path: Path, change: str) -> None:
    base = base_model.resolve(str(write_base(tmp_path / "base")), tmp_path)
    corpus = Corpus(write_corpus(tmp_path / "corpus", 20, 40, seed=0, added_tokens=3))
    run_inputs.check_tokenizer(base, corpus, may_extend=True)
    assert run_inputs.count_added_tokens(base, corpus.folder) == 3
    with pytest.raises(ValueError, match="is not the one corpus"):
        # an evaluation does not extend the tokenizer: the model has no rows for the new tokens
        run_inputs.check_tokenizer(base, corpus)
    file = corpus.folder / "tokenizer" / "tokenizer.json"
    body = json.loads(file.read_text())
    if change == "vocabulary":
        body["model"]["vocab"] |= {"w0": 5, "w1": 4}
    elif change == "normalizer":
        body["normalizer"] = {"type": "Lowercase"}
    else:
        body["added_tokens"][-1]["id"] = 17
    file.write_text(json.dumps(body))
    with pytest.raises(ValueError, match="is not the one corpus"):
        run_inputs.check_tokenizer(base, corpus, may_extend=True)
