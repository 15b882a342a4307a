"""What a corpus is made of: the schema behind conf/corpus/*.yaml."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, get_args, get_type_hints

_NAME = re.compile(r"\w[\w.-]*")
READERS = ("jsonl", "chat", "text", "lovdata")
TARGETS = ("answers", "everything")


@dataclass(kw_only=True)
class SourceConfig:
    """One body of text under one licence.

    Attributes:
        reader: name of a module in data_prep.sources.
        path: a file, a folder, or an archive, as that reader takes it.
        license: SPDX identifier, or NLOD-2.0 and its kin; it follows every document to the model card.
        attribution: the words a licence asks for, if it asks for any.
        fields: for `jsonl` and `chat`: our name -> the key in the record, where they differ.
    """

    reader: str
    path: str
    license: str
    attribution: str = ""
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class LanguageConfig:
    """Written standards kept (ISO 639-3), and the length under which no detector is to be trusted.

    Attributes:
        keep: codes among nob, nno, dan, swe, eng, sme.
        min_characters: shorter documents keep the language their source claims, and are dropped if it claims none.
    """

    keep: list[str] = field(default_factory=lambda: ["nob", "nno"])
    min_characters: int = 60


@dataclass(kw_only=True)
class DeidentifyConfig:
    """Masking of national identity numbers.

    Attributes:
        national_identity_number: what replaces a valid fødselsnummer, D-number, H-number or synthetic number.
    """

    national_identity_number: str = "[fødselsnummer]"


@dataclass(kw_only=True)
class SplitConfig:
    """Which groups of documents are held out.

    Attributes:
        validation_share: expected share of groups in the validation split, between 0 and 1.
        seed: a group's side is a pure function of (seed, group), so it does not move when the corpus grows.
    """

    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"split.validation_share is {self.validation_share}: give a share from 0 up to, not including, 1")


@dataclass(kw_only=True)
class TokenizerConfig:
    """Where the tokenizer comes from: an existing model folder, or trained on the corpus.

    Attributes:
        path: a folder with tokenizer.json (a model folder on disk). Unset: train one.
        vocab_size: size of a trained byte-level BPE vocabulary, special tokens included.
        add_tokens: words or pieces that become one token each, on top of the tokenizer at `path`; training enlarges the model.
    """

    path: str | None = None
    vocab_size: int = 8000
    add_tokens: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.vocab_size < 300:
            raise ValueError(f"tokenizer.vocab_size is {self.vocab_size}: a byte-level vocabulary needs at least 300")
        if self.add_tokens and self.path is None:
            raise ValueError("tokenizer.add_tokens extends a base model's tokenizer: give its folder as tokenizer.path")
        if bad := [token for token in self.add_tokens if not token.strip() or self.add_tokens.count(token) > 1]:
            raise ValueError(f"tokenizer.add_tokens names {bad[0]!r} twice or is empty there: give each token once")


@dataclass(kw_only=True)
class ChatConfig:
    """How conversations, prompts and completions become tokens. Sources of running text do not care.

    Attributes:
        targets: what the model is to learn to write: `answers` (the assistant's turns, completions) or `everything`.
        template: a file with a Jinja chat template, or `default` for the one that comes with trained tokenizers. Unset: the
            tokenizer's own.
        template_arguments: variables for the template, e.g. {enable_thinking: false}, or {date_string: "1 Jan 2026"} for one
            that would otherwise write the day of preparation into the shards.
    """

    targets: str = "answers"
    template: str | None = None
    template_arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise ValueError(f"chat.targets is '{self.targets}': choose one of {', '.join(TARGETS)}")


@dataclass(kw_only=True)
class CorpusConfig:
    """One corpus: `finetune prepare corpus=<name>` turns it into the folder `<corpora_dir>/<name>`.

    Attributes:
        shard_tokens: a shard is closed once it holds this many tokens.
    """

    name: str
    sources: dict[str, SourceConfig]
    language: LanguageConfig = field(default_factory=LanguageConfig)
    deidentify: DeidentifyConfig = field(default_factory=DeidentifyConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    shard_tokens: int = 16_000_000

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"corpus name is '{self.name}': use letters, digits, '-', '_' and '.', starting with a letter or digit"
            )
        if not self.sources:
            raise ValueError(f"corpus {self.name}: sources is empty: name at least one source")
        for name, source in self.sources.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"source name '{name}': use letters, digits, '-', '_' and '.'; it names metrics and files")
            if source.reader not in READERS:
                raise ValueError(f"sources.{name}.reader is '{source.reader}': choose one of {', '.join(READERS)}")
        if self.shard_tokens < 1:
            raise ValueError(f"shard_tokens is {self.shard_tokens}: give at least 1")


@dataclass(kw_only=True)
class PrepareConfig:
    """The root of `finetune prepare`.

    Attributes:
        corpora_dir: where corpus folders are written.
        workers: processes; the corpus is the same whatever their number. Unset: one a core, or fewer for a small corpus.
    """

    corpus: CorpusConfig
    corpora_dir: str = "corpora"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}: give at least 1, or leave it out")


def as_settings(config: Any) -> dict[str, Any]:
    """A dataclass as plain data, for fingerprints and manifests."""
    return asdict(config)


def from_settings(schema: Any, value: Any) -> Any:
    """What `as_settings` made, as `schema` again: a dataclass, or a list, a mapping or an option of them."""
    if is_dataclass(schema):
        kinds = get_type_hints(schema)
        return schema(**{name: from_settings(kinds[name], part) for name, part in value.items()})  # type: ignore[operator]
    inner = [kind for kind in get_args(schema) if kind is not type(None)]
    if isinstance(value, dict) and len(inner) == 2:
        return {name: from_settings(inner[1], part) for name, part in value.items()}
    if isinstance(value, list) and inner:
        return [from_settings(inner[0], part) for part in value]
    return from_settings(inner[0], value) if isinstance(value, dict) and inner else value
