"""The files of a corpus' tokenizer and chat template.

The tokenizer is given by the settings, or trained on the corpus. The tokenizer step (step.py) uses
this module. So do earlier stages that count tokens.
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
    """Write the corpus' tokenizer and chat template into `folder`.

    Args:
        train_texts: texts on which the tokenizer is trained if tokenizer.path is not set.

    Raises:
        UserError: the given tokenizer already has one of the tokens to add.
    """
    folder.mkdir(parents=True)
    given = config.tokenizer.path
    template = config.chat.template
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
    """Add tokens to a tokenizer.json, with the next free ids.

    The decoder is adapted if a token is not ASCII. All other keys are unchanged.

    Raises:
        UserError: the tokenizer already has one of the tokens.
    """
    if not tokens:
        return
    vocabulary = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    known = next((token for token in tokens if token in vocabulary), None)
    if known is not None:
        raise UserError(f"tokenizer.add_tokens: names {known!r}, which the tokenizer already has; remove it")
    body = json.loads(file.read_text(encoding="utf-8"))
    first = max(vocabulary.values()) + 1
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    body.setdefault("added_tokens", []).extend(
        {"id": first + number, "content": token, **plain} for number, token in enumerate(tokens)
    )
    body["decoder"] = _decoder_of_added(body.get("decoder"), tokens)
    file.write_text(json.dumps(body, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _decoder_of_added(decoder: dict[str, object] | None, tokens: list[str]) -> dict[str, object] | None:
    """Return a decoder that decodes added tokens correctly.

    A byte-level decoder takes the letter å of an added token for the byte 0xE5, which is not a
    character by itself. So an added token that is not ASCII is first replaced by the characters
    that stand for its bytes in a byte-level vocabulary.
    """
    listed = decoder.get("decoders", [decoder]) if decoder else []
    steps = listed if isinstance(listed, list) else []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spellings = {token: byte_level.pre_tokenize_str(token)[0][0] for token in tokens if not token.isascii()}
    if not spellings or not any(step["type"] == "ByteLevel" for step in steps):
        return decoder
    replacements = [
        {"type": "Replace", "pattern": {"String": token}, "content": spelling}
        for token, spelling in spellings.items()
    ]
    return {"type": "Sequence", "decoders": [*replacements, *steps]}


def train(vocab_size: int, texts: Iterable[str], folder: Path) -> None:
    """Train a byte-level BPE tokenizer, and save it for transformers."""
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
    # This generic class uses tokenizer.json without changes.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **SPECIAL_TOKENS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def read_chat_template(folder: Path) -> str | None:
    """Return the chat template that transformers finds in a tokenizer's folder, or None.

    It is the file chat_template.jinja or, without that file, the entry in tokenizer_config.json. If
    the entry has several templates, it is the one named `default`.
    """
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    declared = _read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(declared, list):
        declared = {entry["name"]: entry["template"] for entry in declared}.get("default")
    return str(declared) if declared else None


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Return a dict of the special tokens. Its keys are bos_token, eos_token and so on."""
    declared = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    tokens = {
        name: value.get("content") if isinstance(value, dict) else value for name, value in declared.items()
    }
    return {
        name: token for name, token in tokens.items() if name.endswith("_token") and isinstance(token, str)
    }


def _read_json(path: Path) -> dict[str, object]:
    """Return the content of a JSON file; {} if it does not exist."""
    if not path.is_file():
        return {}
    return dict(json.loads(path.read_text(encoding="utf-8")))


def find_eos_token_id(tokenizer: Tokenizer, special_tokens: dict[str, str]) -> int:
    """Return the id of the end-of-sequence token. Raise UserError if the tokenizer has none."""
    token = special_tokens.get("eos_token")
    token_id = None if token is None else tokenizer.token_to_id(token)
    if token_id is None:
        raise UserError(
            "tokenizer_config.json: names no eos_token that is in the vocabulary; set eos_token to "
            "a token of the vocabulary, because each document must end with it"
        )
    return int(token_id)
