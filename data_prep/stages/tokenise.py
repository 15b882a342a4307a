"""Text to token shards: a tokenizer, given or trained here, then one row a document, ended by the end-of-sequence token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.config import TokenizerConfig
from data_prep.document import Document
from data_prep.shards import SPLITS, ShardInfo, ShardWriter, sha256_file, tokenizer_digest

VERSION = 1
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
BATCH = 512


def settings(config: TokenizerConfig, shard_tokens: int) -> dict[str, Any]:
    """All that decides the shards; a tokenizer given by path counts by its content."""
    if config.path is None:
        return {"train_vocab_size": config.vocab_size, "tokenizers": tokenizers.__version__, "shard_tokens": shard_tokens}
    files = {name: sha256_file(path) for name in FILES if (path := Path(config.path) / name).is_file()}
    added = {"add_tokens": config.add_tokens} if config.add_tokens else {}
    return {"tokenizer_sha256": tokenizer_digest(Path(config.path)), "files": files, "shard_tokens": shard_tokens, **added}


def make_tokenizer(config: TokenizerConfig, train_texts: Iterable[str], folder: Path) -> tuple[Tokenizer, int]:
    """Put the tokenizer's files into `folder`; the tokenizer, and its end-of-sequence token's id.

    Raises:
        ValueError: the given tokenizer has no end-of-sequence token, or has one of the tokens to add.
    """
    folder.mkdir(parents=True)
    if config.path is None:
        _train(config.vocab_size, train_texts, folder)
    else:
        for name in FILES:
            if (Path(config.path) / name).is_file():
                shutil.copyfile(Path(config.path) / name, folder / name)
        add_tokens(folder / "tokenizer.json", config.add_tokens)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # "<s>" in a text is text, struck through perhaps, and no control token
    return tokenizer, _eos_token_id(tokenizer, folder)


def add_tokens(file: Path, tokens: list[str]) -> None:
    """Extend a tokenizer.json: each token gets the next free id, and all else stays as it is, down to the last key.

    Raises:
        ValueError: it has one of them already.
    """
    if not tokens:
        return
    vocabulary = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    if known := [token for token in tokens if token in vocabulary]:
        raise ValueError(f"tokenizer.add_tokens names {known[0]!r}, which the tokenizer has already: leave it out")
    body = json.loads(file.read_text(encoding="utf-8"))
    first = max(vocabulary.values()) + 1
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    body.setdefault("added_tokens", []).extend(
        {"id": first + number, "content": token, **plain} for number, token in enumerate(tokens)
    )
    body["decoder"] = _decoder_of_added(body.get("decoder"), tokens)
    file.write_text(json.dumps(body, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _decoder_of_added(decoder: dict[str, Any] | None, tokens: list[str]) -> dict[str, Any] | None:
    """A byte-level decoder takes å for the byte 0xE5 in an added token too and prints half a letter, so added tokens with
    letters beyond ASCII are first put into its spelling."""
    steps = decoder.get("decoders", [decoder]) if decoder else []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelt = {token: byte_level.pre_tokenize_str(token)[0][0] for token in tokens if not token.isascii()}
    if not spelt or not any(step["type"] == "ByteLevel" for step in steps):
        return decoder
    replacements = [{"type": "Replace", "pattern": {"String": token}, "content": new} for token, new in spelt.items()]
    return {"type": "Sequence", "decoders": [*replacements, *steps]}


def write_split(
    folder: Path, split: str, documents: Iterator[Document], tokenizer: Tokenizer, eos_token_id: int, shard_tokens: int,
    observe: Callable[[Document, list[int]], None],
) -> list[ShardInfo]:  # fmt: skip
    """Tokenise one split into shards; `observe` sees every document with its tokens."""
    writer = ShardWriter(folder, split, None, shard_tokens)
    while batch := list(islice(documents, BATCH)):
        for document, encoding in zip(batch, tokenizer.encode_batch_fast([d.text for d in batch]), strict=True):
            input_ids = encoding.ids if encoding.ids[-1:] == [eos_token_id] else [*encoding.ids, eos_token_id]
            observe(document, input_ids)
            writer.write(
                {
                    "id": document.id,
                    "source": document.source,
                    "license": document.license,
                    "language": document.language,
                    "group": document.group,
                    "input_ids": input_ids,
                }
            )
    return writer.close()


class UnigramCounter:
    """Token frequencies by split, for the loss of a model that knows only frequencies.

    The first token of each document is left out, as training never predicts it either.
    """

    def __init__(self, vocab_size: int) -> None:
        self.counts = {split: np.zeros(vocab_size, dtype=np.int64) for split in SPLITS}

    def add(self, split: str, input_ids: list[int]) -> None:
        np.add.at(self.counts[split], np.asarray(input_ids[1:], dtype=np.int64), 1)

    def validation_loss(self) -> float | None:
        """Cross-entropy (nats a token) of validation under train's frequencies, add-one smoothed (Laplace)."""
        train, validation = self.counts["train"], self.counts["validation"]
        if not validation.sum():
            return None
        log_probabilities = np.log(train + 1) - np.log(train.sum() + len(train))
        return float(-(validation * log_probabilities).sum() / validation.sum())


def _train(vocab_size: int, texts: Iterable[str], folder: Path) -> None:
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
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **SPECIAL_TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _eos_token_id(tokenizer: Tokenizer, folder: Path) -> int:
    path = folder / "tokenizer_config.json"
    declared = json.loads(path.read_text(encoding="utf-8")).get("eos_token") if path.is_file() else None
    token = declared.get("content") if isinstance(declared, dict) else declared
    token_id = tokenizer.token_to_id(token) if token else None
    if token_id is None:
        raise ValueError("the tokenizer names no eos_token in tokenizer_config.json: documents could not be told apart in a pack")
    return int(token_id)
