"""The schema of a corpus file (conf/corpus/*.yaml); stage_settings.py has the stages' sections."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, get_args, get_type_hints

from data_prep.fields import REQUIRED, all_among, at_least, between, one_of, section, setting
from data_prep.stage_settings import (
    LANGUAGES,
    NAME,
    BoilerplateConfig,
    ChatConfig,
    DecontaminateConfig,
    DeduplicateConfig,
    DeidentifyConfig,
    LanguageConfig,
    QualityConfig,
    SplitConfig,
    TokenizerConfig,
)
from data_prep.user_error import UserError

READERS = (
    "jsonl", "chat", "text", "lovdata", "stortinget", "parlamint", "talk_of_norway", "ncc", "maalfrid", "regjeringen", "einnsyn",
    "webpage", "markdown", "pdf", "parallel", "squad", "table", "huggingface", "conllu",
)  # fmt: skip


@dataclass(kw_only=True)
class LimitsConfig:
    """Limits on source files; a file that exceeds one is treated as an attack or as broken."""

    max_record_bytes: int = setting(
        64 * 2**20,
        "bytes of one record, at most: a line, an element of an array, a document that must be read whole",
    )
    max_unpacked_bytes: int = setting(
        2**40, "bytes that one file unpacks to, all its members together, at most"
    )
    max_ratio: float = setting(
        200.0,
        "ratio of unpacked to packed bytes, at most, once 16 MiB are unpacked; text has 3 to 30, a bomb 1,000",
    )
    max_depth: int = setting(
        3,
        "archives and compressed files inside each other, at most; .json.gz in a .tar.gz is three deep",
    )

    def __post_init__(self) -> None:
        for name in ("max_record_bytes", "max_unpacked_bytes", "max_ratio", "max_depth"):
            at_least(f"limits.{name}", getattr(self, name), 1)


@dataclass(kw_only=True)
class MixtureRule:
    """The share of a source's documents that a corpus uses, for some written standards and years."""

    languages: list[str] = setting([], "ISO 639-3 codes, as the language stage found them; empty: any")
    years: list[int] = setting(
        [],
        "first and last year of the document's date, both included; empty: any, and documents without a date",
    )
    weight: float = setting(
        1.0,
        "how often each document is used: 0.25 takes a quarter of them, 2.5 takes each twice and half of "
        "them a third time; validation documents are never repeated",
    )
    max_tokens: int | None = setting(
        None,
        "training tokens at which this rule has enough; documents beyond are left out by the same order as "
        "with a weight below one, of validation in the same proportion",
    )

    def __post_init__(self) -> None:
        all_among("mixture.languages", self.languages, (*LANGUAGES, "nor"))
        if self.years and (len(self.years) != 2 or self.years[0] > self.years[1]):
            raise UserError(
                f"mixture.years is {self.years}; give the first and the last year, e.g. [1998, 2016]"
            )
        between("mixture.weight", self.weight, 0, 100)
        at_least("mixture.max_tokens", self.max_tokens, 1)


@dataclass(kw_only=True)
class SourceConfig:
    """One body of text under one licence."""

    reader: str = setting(REQUIRED, f"how its files are read: {', '.join(READERS)}")
    path: str = setting(
        REQUIRED,
        "a file, a folder or an archive, as that reader takes it; files may be packed by gzip, zstd, bzip2 "
        "or xz, and lie in tar or zip archives",
    )
    license: str = setting(
        REQUIRED, "SPDX identifier, or NLOD-2.0 and its kin; it follows every document to the model card"
    )
    attribution: str = setting("", "the words a licence asks for, if it asks for any")
    language: str = setting(
        "", "ISO 639-3 code that the source claims for documents that claim none themselves"
    )
    fields: dict[str, str] = setting(
        {},
        "for records (jsonl, chat, table …), as our name: the key or column in the record, where they differ; our names "
        "are listed below, by reader",
    )
    options: dict[str, Any] = setting({}, "settings of this reader alone; they are listed below, by reader")
    max_broken_share: float = setting(
        0.01,
        "share of its records that may be unreadable; beyond it and max_broken, preparation stops",
    )
    max_broken: int = setting(10, "records that may be unreadable, whatever their share")
    limits: LimitsConfig = section(LimitsConfig)
    mixture: list[MixtureRule] = setting(
        [],
        "rules; the first that fits a document decides, one that none fits is left out; empty: all, once",
    )

    def __post_init__(self) -> None:
        if not self.license.strip():
            raise UserError(
                "license is empty; give an SPDX identifier, or a name such as NLOD-2.0: every row of the "
                "corpus carries it"
            )
        between("max_broken_share", self.max_broken_share, 0, 1)
        if self.language == "nor" or (self.language and not re.fullmatch("[a-z]{3}", self.language)):
            raise UserError(
                f"language is '{self.language}'; give an ISO 639-3 code such as nob or nno, or leave it out"
            )


@dataclass(kw_only=True)
class CorpusConfig:
    """A corpus, which `finetune prepare corpus=NAME` writes to the folder corpora_dir/NAME."""

    name: str = setting(REQUIRED, "name of the corpus and of its folder")
    sources: dict[str, SourceConfig] = setting(
        REQUIRED, "bodies of text by names of your choice, which name metrics and files"
    )
    boilerplate: BoilerplateConfig = section(BoilerplateConfig)
    language: LanguageConfig = section(LanguageConfig)
    quality: QualityConfig = section(QualityConfig)
    deduplicate: DeduplicateConfig = section(DeduplicateConfig)
    decontaminate: DecontaminateConfig = section(DecontaminateConfig)
    deidentify: DeidentifyConfig = section(DeidentifyConfig)
    split: SplitConfig = section(SplitConfig)
    tokenizer: TokenizerConfig = section(TokenizerConfig)
    chat: ChatConfig = section(ChatConfig)
    shard_tokens: int = setting(16_000_000, "a shard is closed once it holds this many tokens")

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(
                f"corpus name is '{self.name}'; use letters, digits, '-', '_' and '.', "
                "starting with a letter or digit"
            )
        if not self.sources:
            raise UserError(f"corpus {self.name}: sources is empty; name at least one source")
        for name, source in self.sources.items():
            self._check_source(name, source)
        all_among("boilerplate.readers", self.boilerplate.readers, READERS)
        all_among("quality.skip_readers", self.quality.skip_readers, READERS)
        all_among("quality.skip_sources", self.quality.skip_sources, self.sources)
        self._check_sites()
        at_least("shard_tokens", self.shard_tokens, 1)

    def _check_source(self, name: str, source: SourceConfig) -> None:
        """Raise UserError if a source's name, reader or mixture does not fit the corpus."""
        if not NAME.fullmatch(name):
            raise UserError(
                f"source name is '{name}'; use letters, digits, '-', '_' and '.', "
                "because metrics and files are named after it"
            )
        one_of(f"sources.{name}.reader", source.reader, READERS)
        if self.tokenizer.path is None and any(rule.max_tokens is not None for rule in source.mixture):
            raise UserError(
                f"sources.{name}.mixture has max_tokens, but there is no tokenizer yet to count tokens with "
                "(one trained on the corpus would depend on the count); set tokenizer.path, or use weight "
                "instead of max_tokens"
            )

    def _check_sites(self) -> None:
        """Raise UserError if boilerplate.sites has an unknown source or one of an excluded reader."""
        all_among("boilerplate.sites", self.boilerplate.sites, self.sources)
        for name in self.boilerplate.sites:
            reader = self.sources[name].reader
            if reader not in self.boilerplate.readers:
                raise UserError(
                    f"boilerplate.sites names '{name}', whose reader {reader} is not in boilerplate.readers; "
                    "add the reader there, or remove the source here"
                )


@dataclass(kw_only=True)
class PrepareConfig:
    """Settings of a preparation, the same for every corpus."""

    corpus: CorpusConfig = setting(REQUIRED, "name of a corpus file, whose settings are below")
    corpora_dir: str = setting("corpora", "where corpus folders are written")
    downloads_dir: str = setting(
        "downloads",
        "where raw sources lie, for corpus files that name ${downloads_dir}, as corpus=mixture does",
    )
    workers: int | None = setting(
        None,
        "processes, on which the corpus does not depend; unset: one a core, fewer for a small corpus",
    )
    shard_characters: int = setting(
        16_000_000,
        "characters in a shard of the stages, which is what is repeated after a process was killed; while "
        "sources are read, that is a task: a large file, or some small ones; the corpus does not depend on "
        "it",
    )

    def __post_init__(self) -> None:
        at_least("workers", self.workers, 1)
        at_least("shard_characters", self.shard_characters, 1)


def as_settings(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain data, for fingerprints and manifests."""
    return asdict(config)


def from_settings(schema: Any, value: Any) -> Any:
    """Return the value that `as_settings` turned into plain data.

    Args:
        schema: the value's type: a dataclass, or a list, mapping or optional of dataclasses or
            plain data.
    """
    if is_dataclass(schema):
        kinds = get_type_hints(schema)
        return schema(**{name: from_settings(kinds[name], part) for name, part in value.items()})  # type: ignore[operator]
    inner = [kind for kind in get_args(schema) if kind is not type(None)]
    if isinstance(value, dict) and len(inner) == 2:
        return {name: from_settings(inner[1], part) for name, part in value.items()}
    if isinstance(value, list) and inner:
        return [from_settings(inner[0], part) for part in value]
    if isinstance(value, dict) and inner:
        return from_settings(inner[0], value)
    return value
