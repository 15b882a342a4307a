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
    "jsonl", "chat", "text", "lovdata", "stortinget", "parlamint", "talk_of_norway", "ncc", "maalfrid",
    "regjeringen", "einnsyn", "webpage", "markdown", "pdf", "parallel", "squad", "table", "huggingface",
    "conllu",
)  # fmt: skip


@dataclass(kw_only=True)
class LimitsConfig:
    """Limits on source files, against archive bombs and damage.

    Data beyond a limit is quarantined as unreadable.
    """

    max_record_bytes: int = setting(
        64 * 2**20,
        "maximum bytes of one record: a line, an element of an array, or a document that is read as a whole",
    )
    max_unpacked_bytes: int = setting(
        2**40, "maximum bytes that one file unpacks to, all its members together"
    )
    max_ratio: float = setting(
        200.0,
        "maximum ratio of unpacked to packed bytes, checked after 16 MiB; text has 3 to 30, a zip bomb 1,000",
    )
    max_depth: int = setting(
        3,
        "maximum depth of archives and compressed files inside each other; a .json.gz in a .tar.gz has "
        "depth 3",
    )

    def __post_init__(self) -> None:
        for name in ("max_record_bytes", "max_unpacked_bytes", "max_ratio", "max_depth"):
            at_least(f"limits.{name}", getattr(self, name), 1)


@dataclass(kw_only=True)
class MixtureRule:
    """How often a corpus uses the documents of a source, and how many tokens of them at most.

    A rule may be limited to some written standards and years.
    """

    languages: list[str] = setting(
        [], "ISO 639-3 codes that the rule applies to, as detected by the language stage; empty: all"
    )
    years: list[int] = setting(
        [],
        "first and last year (inclusive) of the documents that the rule applies to; empty: all, and "
        "documents without a date",
    )
    weight: float = setting(
        1.0,
        "number of times that each document is used: 0.25 uses a quarter of them once, 2.5 uses all twice "
        "and half of them a third time; validation documents are never repeated",
    )
    max_tokens: int | None = setting(
        None,
        "maximum training tokens of the rule; further documents are left out at random, and the same share "
        "of validation documents",
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
    """A collection of texts under one licence."""

    reader: str = setting(REQUIRED, f"reader of its files: {', '.join(READERS)}")
    path: str = setting(
        REQUIRED,
        "a file, a folder or an archive; files may be compressed with gzip, zstd, bzip2 or xz, and packed in "
        "tar or zip archives",
    )
    license: str = setting(
        REQUIRED,
        "SPDX identifier or another name of the licence, stored with every document and "
        "listed in the model card",
    )
    attribution: str = setting("", "attribution that the licence requires, if it requires one")
    language: str = setting(
        "", "ISO 639-3 code that the source claims for documents without a language code of their own"
    )
    fields: dict[str, str] = setting(
        {},
        "for readers of records (jsonl, chat, table …): names that differ from ours, as "
        "{OURS: THEIRS}, e.g. {text: body}; our names are listed below, by reader",
    )
    options: dict[str, Any] = setting({}, "options of the reader; they are listed below, by reader")
    max_broken_share: float = setting(
        0.01,
        "largest share of unreadable records; preparation stops if it and max_broken are both exceeded",
    )
    max_broken: int = setting(
        10, "number of unreadable records that is always accepted, whatever their share"
    )
    limits: LimitsConfig = section(LimitsConfig)
    mixture: list[MixtureRule] = setting(
        [],
        "rules that select and repeat documents: the first that applies to a document is "
        "used; a document to which none applies is left out; empty: every document is used "
        "once",
    )

    def __post_init__(self) -> None:
        if not self.license.strip():
            raise UserError(
                "license is empty, but every row of the corpus contains it; give an SPDX identifier, or a "
                "name such as NLOD-2.0"
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
        REQUIRED, "sources by names of your choice, which also appear in metrics and file names"
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
    shard_tokens: int = setting(
        16_000_000, "tokens in a shard of the corpus, after which the next shard begins"
    )

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(
                f"corpus name is '{self.name}'; use letters, digits, '-', '_' and '.', "
                "and do not begin with '-' or '.'"
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
        """Raise UserError if a setting of a source is wrong.

        The source's name must be usable in file names, and its reader must exist. Its mixture rules
        may have token targets only if the corpus uses an existing tokenizer.
        """
        if not NAME.fullmatch(name):
            raise UserError(
                f"sources: the name '{name}' cannot be used in file names; use letters, digits, '-', '_' "
                "and '.', and do not begin with '-' or '.'"
            )
        one_of(f"sources.{name}.reader", source.reader, READERS)
        if self.tokenizer.path is None and any(rule.max_tokens is not None for rule in source.mixture):
            raise UserError(
                f"sources.{name}.mixture: max_tokens needs an existing tokenizer to count tokens with, "
                "because one trained on this corpus would itself depend on the count; set tokenizer.path, "
                "or use weight instead of max_tokens"
            )

    def _check_sites(self) -> None:
        """Raise UserError if boilerplate.sites names a wrong source.

        Each name must be that of a source of the corpus whose reader is in boilerplate.readers.
        """
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

    corpus: CorpusConfig = setting(REQUIRED, "name of a corpus file; its settings are listed below")
    corpora_dir: str = setting("corpora", "folder to which corpora are written")
    downloads_dir: str = setting(
        "downloads",
        "folder of raw sources, for corpus files that refer to ${downloads_dir}, as corpus=mixture does",
    )
    workers: int | None = setting(
        None,
        "number of processes; it does not affect the corpus; unset: one per core, fewer for a small corpus",
    )
    shard_characters: int = setting(
        16_000_000,
        "characters per shard, the unit of work that is repeated if a process is killed "
        "(for the stage read: one large file or several small ones); it does not affect the"
        " corpus",
    )

    def __post_init__(self) -> None:
        at_least("workers", self.workers, 1)
        at_least("shard_characters", self.shard_characters, 1)


def as_settings(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain data, for fingerprints and manifests."""
    return asdict(config)


def from_settings(schema: Any, value: Any) -> Any:
    """Rebuild a value from the plain data that `as_settings` returned.

    Args:
        schema: the type of the value to build. It is a dataclass or plain data, or a list, mapping
            or optional of these.
        value: the plain data.
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
