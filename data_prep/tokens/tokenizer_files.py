"""The files of a corpus' tokenizer and chat template: trained on its text, or copied from those that are
given.

Used by the tokenizer step (step.py), and by stages that count tokens before it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.config import CorpusConfig
from data_prep.tokens.chat_template import DEFAULT_TEMPLATE
from data_prep.user_error import UserError

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
TEMPLATE_FILE = "chat_template.jinja"
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", TEMPLATE_FILE)


def place_files(config: CorpusConfig, train_texts: Iterable[str], folder: Path) -> None:
    """Put the corpus' tokenizer and chat template into `folder`: those that are given, or one trained on
    `train_texts`.

    Raises:
        UserError: the given tokenizer has one of the tokens to add.
    """
    folder.mkdir(parents=True)
    given, template = config.tokenizer.path, config.chat.template
    if given is None:
        train(config.tokenizer.vocab_size, train_texts, folder)
    else:
        for name in FILES:
            if (Path(given) / name).is_file():
                shutil.copyfile(Path(given) / name, folder / name)
        add_tokens(folder / "tokenizer.json", config.tokenizer.add_tokens)
    if template == "default" or (template is None and given is None):
        (folder / TEMPLATE_FILE).write_text(DEFAULT_TEMPLATE, encoding="utf-8")
    elif template is not None:
        shutil.copyfile(template, folder / TEMPLATE_FILE)


def add_tokens(file: Path, tokens: list[str]) -> None:
    """Extend a tokenizer.json: each token gets the next free id, and all else stays as it is, down to the
    last key.

    Raises:
        UserError: it has one of them already.
    """
    if not tokens:
        return
    vocabulary = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    if known := [token for token in tokens if token in vocabulary]:
        raise UserError(
            f"tokenizer.add_tokens names {known[0]!r}, which the tokenizer has already: leave it out"
        )
    body = json.loads(file.read_text(encoding="utf-8"))
    first = max(vocabulary.values()) + 1
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    body.setdefault("added_tokens", []).extend(
        {"id": first + number, "content": token, **plain} for number, token in enumerate(tokens)
    )
    body["decoder"] = _decoder_of_added(body.get("decoder"), tokens)
    file.write_text(json.dumps(body, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _decoder_of_added(decoder: dict[str, object] | None, tokens: list[str]) -> dict[str, object] | None:
    """Return a decoder that prints added tokens whole. A byte-level one takes å for the byte 0xE5 in an added
    token too and prints half a letter, so added tokens with letters beyond ASCII are first put into its
    spelling."""
    listed = decoder.get("decoders", [decoder]) if decoder else []
    steps = listed if isinstance(listed, list) else []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelt = {token: byte_level.pre_tokenize_str(token)[0][0] for token in tokens if not token.isascii()}
    if not spelt or not any(step["type"] == "ByteLevel" for step in steps):
        return decoder
    replacements = [
        {"type": "Replace", "pattern": {"String": token}, "content": new} for token, new in spelt.items()
    ]
    return {"type": "Sequence", "decoders": [*replacements, *steps]}


def train(vocab_size: int, texts: Iterable[str], folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    # The generic class: it reads tokenizer.json as it is, and guesses nothing.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **SPECIAL_TOKENS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def template_of(folder: Path) -> str | None:
    """Return the chat template where transformers looks for it: chat_template.jinja, else
    tokenizer_config.json, which may hold several by name."""
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    declared = _json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(declared, list):
        declared = {entry["name"]: entry["template"] for entry in declared}.get("default")
    return str(declared) if declared else None


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Return the tokenizer's special tokens by name (bos_token, eos_token …), as chat templates call them
    too."""
    declared = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    tokens = {
        name: value.get("content") if isinstance(value, dict) else value for name, value in declared.items()
    }
    return {
        name: token for name, token in tokens.items() if name.endswith("_token") and isinstance(token, str)
    }


def _json(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def find_eos_token_id(tokenizer: Tokenizer, special_tokens: dict[str, str]) -> int:
    token_id = tokenizer.token_to_id(special_tokens["eos_token"]) if "eos_token" in special_tokens else None
    if token_id is None:
        raise UserError(
            "the tokenizer names no eos_token in tokenizer_config.json: documents could not be told apart in a pack"
        )
    return int(token_id)
