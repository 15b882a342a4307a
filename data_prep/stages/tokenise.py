"""Text to token shards: a tokenizer, given or trained here, then one row a document. A text, and a plain completion, is ended by
the end-of-sequence token; a conversation by the token with which its template ends a turn (see chat_template.py)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.tokens.chat_template import DEFAULT_TEMPLATE, ChatTemplate, Encoder, Refused, Row
from data_prep.config import ChatConfig, CorpusConfig
from data_prep.document import Document, Report, Turn
from data_prep.tokens.encoder import TOKENIZERS, Ids, TextEncoder
from data_prep.shards import sha256_file, tokenizer_digest
from data_prep.stages.protocol import Stage

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
TEMPLATE_FILE = "chat_template.jinja"
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", TEMPLATE_FILE)


@dataclass(kw_only=True)
class TokeniseSettings:
    """All that decides the token shards; files given by path count by their content."""


@dataclass(kw_only=True)
class TrainedSettings(TokeniseSettings):
    """The settings of a corpus whose tokenizer is trained on it."""

    train_vocab_size: int
    tokenizers: str
    shard_tokens: int
    chat: ChatConfig
    library: str


@dataclass(kw_only=True)
class GivenSettings(TokeniseSettings):
    """The settings of a corpus whose tokenizer is given."""

    tokenizer_sha256: str
    files: dict[str, str]
    shard_tokens: int
    chat: ChatConfig
    library: str


@dataclass(kw_only=True)
class ExtendedSettings(TokeniseSettings):
    """The settings of a corpus whose tokenizer is given, with tokens that are added to it."""

    tokenizer_sha256: str
    files: dict[str, str]
    add_tokens: list[str]
    shard_tokens: int
    chat: ChatConfig
    library: str


class Tokenise(Stage):
    """Text to token shards. What it does lies in tokens/step.py, as a tokenizer must be there first."""

    name = "tokenise"
    version = 3

    def settings(self, config: CorpusConfig) -> TokeniseSettings:
        """Return all that decides the shards.

        Raises:
            FileNotFoundError: the chat template's file does not exist.
            ValueError: the tokenizer's folder holds none.
        """
        shard_tokens, library = config.shard_tokens, config.tokenizer.library
        chat = replace(config.chat, template=_template_setting(config.chat))
        if config.tokenizer.path is None:
            return TrainedSettings(
                train_vocab_size=config.tokenizer.vocab_size,
                tokenizers=tokenizers.__version__,
                shard_tokens=shard_tokens,
                chat=chat,
                library=library,
            )
        folder = Path(config.tokenizer.path)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"corpus.tokenizer.path {folder} does not exist: give a model folder, or a prepared corpus' tokenizer/"
            )
        files = {name: sha256_file(path) for name in FILES if (path := folder / name).is_file()}
        sha256, added = tokenizer_digest(folder), config.tokenizer.add_tokens
        if not added:
            return GivenSettings(tokenizer_sha256=sha256, files=files, shard_tokens=shard_tokens, chat=chat, library=library)
        return ExtendedSettings(
            tokenizer_sha256=sha256,
            files=files,
            add_tokens=added,
            shard_tokens=shard_tokens,
            chat=chat,
            library=library,
        )


class Tokeniser:
    """Turns documents into rows of tokens, with the tokenizer that `place_files` put into `folder`.

    Args:
        library: which encodes running text: what `encoder.choose` found.

    Attributes:
        overrides: whether the corpus names another chat template than the tokenizer's own.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token.
    """

    def __init__(self, config: CorpusConfig, folder: Path, library: str = TOKENIZERS) -> None:
        self.folder, self._config = folder, config
        self._encode = TextEncoder(folder / "tokenizer.json", library)
        self.vocab_size = self._encode.tokenizer.get_vocab_size()
        self.special_tokens = _special_tokens(folder)
        self.eos_token_id = _eos_token_id(self._encode.tokenizer, self.special_tokens)
        start = self._encode.tokenizer.encode("").ids
        self._start = start[:-1] if start[-1:] == [self.eos_token_id] else start  # of a sequence: [bos], or nothing
        own = _template_of(Path(config.tokenizer.path)) if config.tokenizer.path else None
        self.overrides = own is not None and own != _template_of(folder)

    @property
    def end_of_turn(self) -> tuple[str, int]:
        """The token with which the chat template ends an answer, and its id."""
        token = self._template.end_of_turn or self.special_tokens["eos_token"]
        token_id = self._encode.tokenizer.token_to_id(token)
        assert token_id is not None  # the template's control tokens are tokens of the vocabulary
        return token, token_id

    def rows(self, documents: list[Document], report: Report) -> Iterator[tuple[Document, list[Row]]]:
        """The rows of each document, in order; a conversation that gives none is dropped."""
        texts = iter(self._encode([d.text for d in documents if not d.turns]))
        for document in documents:
            if not document.turns:
                yield document, [self._ended(next(texts))]
                continue
            try:
                rows = self._conversation(document, report)
            except Refused as fault:
                report.drop(document, fault.reason, str(fault))
                continue
            if rows := [row for row in rows if any(row.mask[1:])]:
                for row in rows:
                    # Never predicted; and a mask of ones alone is running text's, which may be cut anywhere.
                    row.mask[0] = 0
                yield document, rows
            else:
                report.drop(document, "no_supervised_tokens")

    def _ended(self, ids: Ids) -> Row:
        if not len(ids) or ids[-1] != self.eos_token_id:
            ids = np.append(ids, np.int32(self.eos_token_id))
        return Row(ids, np.ones(len(ids), np.int8))

    def _conversation(self, document: Document, report: Report) -> list[Row]:
        everything = self._config.chat.targets == "everything"
        if all(turn.role for turn in document.turns):
            turns = self._with_system(document, report)
            rows = self._template.rows(turns, self.eos_token_id, everything, report.counts)
            report.counts["by_another_template_than_the_tokenizers_own"] += self.overrides
            return rows
        report.counts["by_prompt_template"] += 1
        # Plain prompt and completion are tokenised apart, as at inference the prompt is all there is: no token spans the two.
        prompt, completion = document.turns
        asked = [*self._start, *self._encoder.first(prompt.content)]
        answer = self._encoder.following(completion.content) if asked else self._encoder.first(completion.content)
        answered = [*answer, self.eos_token_id]
        return [Row(asked + answered, [int(everything)] * len(asked) + [1] * len(answered))]

    def _with_system(self, document: Document, report: Report) -> list[Turn]:
        """Put the system prompt in the document's written standard first, unless it brings its own."""
        prompts = self._config.chat.system
        if not prompts:
            return document.turns
        if any(turn.role in ("system", "developer") for turn in document.turns):
            report.counts["system_of_its_own"] += 1
            return document.turns
        if document.language not in prompts:
            report.counts[f"no_system_for_{document.language or 'unknown'}"] += 1
            return document.turns
        report.counts[f"system_{document.language}"] += 1
        return [Turn(role="system", content=prompts[document.language], target=False), *document.turns]

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.folder / "tokenizer.json")

    @cached_property
    def _template(self) -> ChatTemplate:
        chat, name = self._config.chat, self._config.tokenizer.path or f"corpus {self._config.name}"
        source = _template_of(self.folder)
        if source is None:
            raise ValueError(
                f"the tokenizer {name} has no chat template, and the corpus holds conversations or prompts: set "
                f"corpus.chat.template to a Jinja file, or to `default`; or, for prompts and instructions as plain text, name "
                f'their form as corpus.sources.NAME.options.prompt_template, e.g. "{{prompt}}\\n\\n"'
            )
        return ChatTemplate(source, self.special_tokens | chat.template_arguments, self._encoder, chat.template or name)


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


def place_files(config: CorpusConfig, train_texts: Iterable[str], folder: Path) -> None:
    """Put the corpus' tokenizer and chat template into `folder`: those that are given, or one trained on `train_texts`.

    Raises:
        ValueError: the given tokenizer has one of the tokens to add.
    """
    folder.mkdir(parents=True)
    given, template = config.tokenizer.path, config.chat.template
    if given is None:
        _train(config.tokenizer.vocab_size, train_texts, folder)
    else:
        for name in FILES:
            if (Path(given) / name).is_file():
                shutil.copyfile(Path(given) / name, folder / name)
        add_tokens(folder / "tokenizer.json", config.tokenizer.add_tokens)
    if template == "default" or (template is None and given is None):
        (folder / TEMPLATE_FILE).write_text(DEFAULT_TEMPLATE, encoding="utf-8")
    elif template is not None:
        shutil.copyfile(template, folder / TEMPLATE_FILE)


def _template_setting(chat: ChatConfig) -> str | None:
    if chat.template in (None, "default"):
        return chat.template
    if not Path(chat.template).is_file():
        raise FileNotFoundError(f"corpus.chat.template {chat.template} does not exist: give a Jinja file, or `default`")
    return sha256_file(Path(chat.template))


def _template_of(folder: Path) -> str | None:
    """Where transformers looks: chat_template.jinja, else tokenizer_config.json, which may hold several by name."""
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    declared = _json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(declared, list):
        declared = {entry["name"]: entry["template"] for entry in declared}.get("default")
    return str(declared) if declared else None


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


def _special_tokens(folder: Path) -> dict[str, str]:
    """The tokenizer's special tokens by name (bos_token, eos_token …), which is what chat templates call them too."""
    declared = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    tokens = {name: value.get("content") if isinstance(value, dict) else value for name, value in declared.items()}
    return {name: token for name, token in tokens.items() if name.endswith("_token") and isinstance(token, str)}


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _eos_token_id(tokenizer: Tokenizer, special_tokens: dict[str, str]) -> int:
    token_id = tokenizer.token_to_id(special_tokens["eos_token"]) if "eos_token" in special_tokens else None
    if token_id is None:
        raise ValueError("the tokenizer names no eos_token in tokenizer_config.json: documents could not be told apart in a pack")
    return int(token_id)
