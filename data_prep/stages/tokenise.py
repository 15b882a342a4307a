"""Version and settings of the tokenise stage, which is the last one; see data_prep/tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tokenizers

from data_prep.config import CorpusConfig
from data_prep.shards import sha256_file, tokenizer_digest
from data_prep.stage_settings import ChatConfig
from data_prep.stages.protocol import Stage
from data_prep.tokens.tokenizer_files import FILES
from data_prep.user_error import NotFoundError


@dataclass(kw_only=True)
class TokeniseSettings:
    """All settings on which the token shards depend; files are represented by their checksums."""


@dataclass(kw_only=True)
class TrainedSettings(TokeniseSettings):
    """The settings if the tokenizer is trained on the corpus."""

    train_vocab_size: int
    tokenizers: str
    shard_tokens: int
    chat: ChatConfig
    library: str


@dataclass(kw_only=True)
class GivenSettings(TokeniseSettings):
    """The settings if an existing tokenizer is used unchanged."""

    tokenizer_sha256: str
    files: dict[str, str]
    shard_tokens: int
    chat: ChatConfig
    library: str


@dataclass(kw_only=True)
class ExtendedSettings(TokeniseSettings):
    """The settings if tokens are added to an existing tokenizer."""

    tokenizer_sha256: str
    files: dict[str, str]
    add_tokens: list[str]
    shard_tokens: int
    chat: ChatConfig
    library: str


class Tokenise(Stage):
    """The version and settings of the stage that converts text to token shards.

    The work is done in data_prep/tokens/step.py, in two steps, because the tokenizer must exist
    before any text is converted.
    """

    name = "tokenise"
    version = 3

    def settings(self, config: CorpusConfig) -> TokeniseSettings:
        """Return the settings on which the token shards depend.

        Raises:
            NotFoundError: the tokenizer's folder or the chat template's file does not exist.
            UserError: the tokenizer's folder has no readable tokenizer.json.
        """
        shard_tokens = config.shard_tokens
        library = config.tokenizer.library
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
            raise NotFoundError(
                f"corpus.tokenizer.path {folder} does not exist; set it to a model's folder, or "
                "to the folder tokenizer/ of a prepared corpus"
            )
        files = {name: sha256_file(folder / name) for name in FILES if (folder / name).is_file()}
        sha256 = tokenizer_digest(folder)
        added = config.tokenizer.add_tokens
        if not added:
            return GivenSettings(
                tokenizer_sha256=sha256, files=files, shard_tokens=shard_tokens, chat=chat, library=library
            )
        return ExtendedSettings(
            tokenizer_sha256=sha256,
            files=files,
            add_tokens=added,
            shard_tokens=shard_tokens,
            chat=chat,
            library=library,
        )


def _template_setting(chat: ChatConfig) -> str | None:
    """Return the setting chat.template; if it is a file, return the file's checksum instead."""
    if chat.template in (None, "default"):
        return chat.template
    if not Path(chat.template).is_file():
        raise NotFoundError(
            f"corpus.chat.template {chat.template} does not exist; set it to a Jinja file, or to `default`"
        )
    return sha256_file(Path(chat.template))
