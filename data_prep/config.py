"""What a corpus is made of: the schema behind conf/corpus/*.yaml."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, get_args, get_type_hints

_NAME = re.compile(r"\w[\w.-]*")
READERS = (
    "jsonl", "chat", "text", "lovdata", "stortinget", "parlamint", "talk_of_norway", "ncc", "maalfrid", "regjeringen", "einnsyn",
    "webpage", "markdown", "pdf", "parallel", "squad", "table", "huggingface", "conllu",
)  # fmt: skip
TARGETS = ("answers", "everything")
LANGUAGES = ("nob", "nno", "dan", "swe", "eng", "sme")  # that the language stage tells apart well enough to be kept
OTHER_PARTS = ("cut", "keep")


@dataclass(kw_only=True)
class LimitsConfig:
    """What a file from outside may ask of us before it is taken for an attack or a fault.

    Attributes:
        max_record_bytes: of one record: a line, an element of an array, a document that must be read whole.
        max_unpacked_bytes: of one file, all its members together.
        max_ratio: of unpacked to packed bytes, once a file has unpacked to 16 MiB. Text packs 3 to 30 times; a bomb 1,000.
        max_depth: of archives and compressed files inside each other; a .tar.gz with .json.gz inside is three deep.
    """

    max_record_bytes: int = 64 * 2**20
    max_unpacked_bytes: int = 2**40
    max_ratio: float = 200.0
    max_depth: int = 3

    def __post_init__(self) -> None:
        for name in ("max_record_bytes", "max_unpacked_bytes", "max_ratio", "max_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"limits.{name} is {getattr(self, name)}: give at least 1")


@dataclass(kw_only=True)
class MixtureRule:
    """How much of a source's documents of some written standards and years goes into the corpus.

    Attributes:
        languages: ISO 639-3 codes, as the language stage found them. Empty: any.
        years: first and last year of the document's date, both included. Empty: any, and documents without a date.
        weight: how often each document is used: 0.25 takes a quarter of them, 2.5 takes each twice and half of them a third time.
            Validation documents are never repeated.
        max_tokens: training tokens at which this rule has enough; what is beyond is left out by the same order as with a weight
            below one, of validation in the same proportion.
    """

    languages: list[str] = field(default_factory=list)
    years: list[int] = field(default_factory=list)
    weight: float = 1.0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.languages) - {*LANGUAGES, "nor"}:
            raise ValueError(f"mixture.languages names '{min(unknown)}': choose among {', '.join(LANGUAGES)} and nor")
        if self.years and (len(self.years) != 2 or self.years[0] > self.years[1]):
            raise ValueError(f"mixture.years is {self.years}: give the first and the last year, e.g. [1998, 2016]")
        if not 0 <= self.weight <= 100:
            raise ValueError(f"mixture.weight is {self.weight}: give how often each document is used, from 0 to 100")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"mixture.max_tokens is {self.max_tokens}: give at least 1, or leave it out")


@dataclass(kw_only=True)
class SourceConfig:
    """One body of text under one licence.

    Attributes:
        reader: name of a module in data_prep.sources.
        path: a file, a folder, or an archive, as that reader takes it. Files may be packed by gzip, zstd, bzip2 or xz, and lie in
            tar or zip archives.
        license: SPDX identifier, or NLOD-2.0 and its kin; it follows every document to the model card.
        attribution: the words a licence asks for, if it asks for any.
        language: ISO 639-3 code that the source claims for documents that claim none themselves.
        fields: for records (jsonl, chat, table …): our name -> the key or column in the record, where they differ.
        options: what this reader alone understands; each reader's help names them.
        max_broken_share: the stage stops when more than this share of the source's records cannot be read …
        max_broken: … and they are more than this many.
        limits: on what a file may unpack to.
        mixture: rules, the first that fits a document decides; a document that none fits is left out. Empty: everything, once.
    """

    reader: str
    path: str
    license: str
    attribution: str = ""
    language: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    max_broken_share: float = 0.01
    max_broken: int = 10
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    mixture: list[MixtureRule] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.license.strip():
            raise ValueError("license is empty: give an SPDX identifier, or NLOD-2.0 and its kin; it follows the text everywhere")
        if not 0 <= self.max_broken_share <= 1:
            raise ValueError(f"max_broken_share is {self.max_broken_share}: give a share from 0 to 1")
        if self.language == "nor" or (self.language and not re.fullmatch("[a-z]{3}", self.language)):
            raise ValueError(f"language is '{self.language}': give an ISO 639-3 code, as nob or nno, or leave it out")


@dataclass(kw_only=True)
class LanguageConfig:
    """Written standards kept (ISO 639-3), and how far a source's word is taken.

    Attributes:
        keep: codes among LANGUAGES. Documents in both Norwegian standards (`nor`) are kept where both are.
        min_characters: shorter documents keep the language their source claims, and are dropped if it claims none.
        claim_weight: what the source's claim counts for, as a share of the document's letters: at 0.5 the text must be 75% in
            another language to overrule it, at 0 the claim is not heard, at 1 it always holds.
        mixed_share: share of the letters that each standard must surely have before a document counts as mixed (`nor`).
        other_parts: `cut` paragraphs that are surely in a language outside LANGUAGES (Polish, Arabic …) from documents
            that are kept, and keep the Norwegian parts of documents that would be dropped; `keep` judges them whole.
    """

    keep: list[str] = field(default_factory=lambda: ["nob", "nno"])
    min_characters: int = 60
    claim_weight: float = 0.5
    mixed_share: float = 0.15
    other_parts: str = "cut"

    def __post_init__(self) -> None:
        if unknown := set(self.keep) - set(LANGUAGES):
            raise ValueError(f"language.keep names '{min(unknown)}': choose among {', '.join(LANGUAGES)}")
        if not 0 <= self.claim_weight <= 1:
            raise ValueError(f"language.claim_weight is {self.claim_weight}: give a share from 0 to 1")
        if self.other_parts not in OTHER_PARTS:
            raise ValueError(f"language.other_parts is '{self.other_parts}': choose {' or '.join(OTHER_PARTS)}")
        if not 0 < self.mixed_share <= 0.5:
            raise ValueError(f"language.mixed_share is {self.mixed_share}: give a share above 0, up to 0.5")


@dataclass(kw_only=True)
class DeduplicateConfig:
    """Which documents say the same. Exact duplicates always do.

    Attributes:
        near: whether near duplicates are sought too.
        similarity: Jaccard similarity of the sets of word 5-grams from which on two documents say the same. A copy in which 3% of
            the words were changed has about 0.75.
        tell_apart: whether similar documents are kept whose titles, numbers, dates, names or words stand against each other.
        bands: into how many bands the 128 minima of MinHash are cut: more find less similar documents, and compare more.
    """

    near: bool = True
    similarity: float = 0.6
    tell_apart: bool = True
    bands: int = 25

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise ValueError(f"deduplicate.similarity is {self.similarity}: give a share above 0, up to 1")
        if not 1 <= self.bands <= 64:
            raise ValueError(f"deduplicate.bands is {self.bands}: give 1 to 64")


@dataclass(kw_only=True)
class BoilerplateConfig:
    """Cutting of the lines that frame the pages of a site, at the head and foot of its documents.

    Attributes:
        readers: whose sources have such a frame; laws, minutes and the like are left as they are.
        sites: names of sources whose documents without a host in their URL are the pages of one site. Of other
            sources, documents without a host are left as they are.
        min_documents: a line stands in at least so many documents of its site …
        min_share: … and in at least this share of them, before it counts as a part of the frame.
        max_cut: a document that would lose more than this share of its letters is a copy of another: it is left.
    """

    readers: list[str] = field(default_factory=lambda: ["jsonl", "maalfrid", "markdown", "pdf", "table", "text", "webpage"])
    sites: list[str] = field(default_factory=list)
    min_documents: int = 5
    min_share: float = 0.9
    max_cut: float = 0.9

    def __post_init__(self) -> None:
        if unknown := set(self.readers) - set(READERS):
            raise ValueError(f"boilerplate.readers names '{min(unknown)}': choose among {', '.join(READERS)}")
        if self.min_documents < 2:
            raise ValueError(f"boilerplate.min_documents is {self.min_documents}: what stands in one document is not repeated")
        for name in ("min_share", "max_cut"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"boilerplate.{name} is {getattr(self, name)}: give a share from 0 to 1")

    def check_sites(self, sources: dict[str, SourceConfig]) -> None:
        """Raise ValueError if `sites` names no source, or one whose reader is left out."""
        for name in self.sites:
            if name not in sources:
                raise ValueError(f"boilerplate.sites names '{name}': choose among {', '.join(sources)}")
            reader = sources[name].reader
            if reader not in self.readers:
                raise ValueError(
                    f"boilerplate.sites names '{name}', whose reader {reader} is not in boilerplate.readers: "
                    "add it there, or take the source out"
                )


@dataclass(kw_only=True)
class QualityConfig:
    """Limits outside which a document of running text is dropped, by the rule's name; data_prep/stages/quality.py says what each
    measures, and where it comes from. A limit of null switches its rule off. Conversations, prompts and answers are not judged.

    Attributes:
        skip_readers: readers whose sources are not judged: treebanks are made of single sentences, and are for evaluation.
        skip_sources: names of further sources that are not judged. What is not judged is counted.
        min_words, max_words: words.
        min_word_length, max_word_length: mean length of words, characters.
        min_letter_words: share of words that have a letter.
        min_function_words: different ones of the language's commonest small words; Norwegian, Danish, Swedish and English.
        max_symbol_share: of `#`, `…` and their kin to words.
        max_bullet_lines, max_ellipsis_lines: share of lines that begin with a bullet, that end in an ellipsis.
        max_code_share: share of the characters that are braces, angle brackets, semicolons and the like.
        max_lorem_ipsum: share of the words that are a printer's dummy text.
        max_broken_share: share of the characters that are U+FFFD or for private use: letters that were lost.
        max_spaced_letters: share of words that are one letter, as in s p a c e d text from a PDF.
        max_duplicate_lines, max_duplicate_paragraphs: share of the characters in lines (paragraphs) that the document has before,
            after the same line (paragraph).
        max_top_ngrams: share of the characters in the commonest sequence of 2, 3 and 4 words, references with numbers left out.
        max_duplicate_ngrams: share of the characters in sequences of 5 words that stood before, if sequences of 30 words have it
            too, or those of 5 words more than the mean of this share and 1.
        repetition_from: words; shorter documents are not looked at for repetition.
    """

    skip_readers: list[str] = field(default_factory=lambda: ["conllu"])
    skip_sources: list[str] = field(default_factory=list)
    min_words: int | None = 5
    max_words: int | None = 1_000_000
    min_word_length: float | None = 2.5
    max_word_length: float | None = 12.0
    min_letter_words: float | None = 0.35
    min_function_words: int | None = 2
    max_symbol_share: float | None = 0.1
    max_bullet_lines: float | None = 0.95
    max_ellipsis_lines: float | None = 0.3
    max_code_share: float | None = 0.1
    max_lorem_ipsum: float | None = 0.5
    max_broken_share: float | None = 0.001
    max_spaced_letters: float | None = 0.3
    max_duplicate_lines: float | None = 0.5
    max_duplicate_paragraphs: float | None = 0.5
    max_top_ngrams: list[float] | None = field(default_factory=lambda: [0.45, 0.3, 0.25])
    max_duplicate_ngrams: float | None = 0.65
    repetition_from: int = 100

    def __post_init__(self) -> None:
        if unknown := set(self.skip_readers) - set(READERS):
            raise ValueError(f"quality.skip_readers names '{min(unknown)}': choose among {', '.join(READERS)}")
        if self.max_top_ngrams is not None and len(self.max_top_ngrams) != 3:
            raise ValueError(f"quality.max_top_ngrams is {self.max_top_ngrams}: give three shares, for 2, 3 and 4 words")


@dataclass(kw_only=True)
class DecontaminateConfig:
    """Removal of what evaluation sets hold.

    Attributes:
        sets: name -> a file or folder: JSON, JSON lines, SQuAD, tables, Parquet, Arrow or text files, packed or not; every string
            of a record counts.
        words: a sequence of so many words that stands in an evaluation set too is an overlap. Shorter texts of a set are looked
            for whole, down to `min_words`.
        min_words: texts of a set with fewer words are not looked for: everybody says them.
        action: `drop` the document, or `cut` the paragraphs that hold an overlap; a conversation is dropped in both.
    """

    sets: dict[str, str] = field(default_factory=dict)
    words: int = 13
    min_words: int = 8
    action: str = "drop"

    def __post_init__(self) -> None:
        if self.action not in ("drop", "cut"):
            raise ValueError(f"decontaminate.action is '{self.action}': choose drop or cut")
        if not 1 <= self.min_words <= self.words:
            raise ValueError(f"decontaminate.min_words is {self.min_words}: give 1 to {self.words}, which is decontaminate.words")
        if bad := [name for name in self.sets if not _NAME.fullmatch(name)]:
            raise ValueError(f"decontaminate.sets names '{bad[0]}': use letters, digits, '-', '_' and '.'")


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
        library: what encodes running text: `auto` takes gigatoken where it is installed and proves to give the same tokens on a
            sample of the corpus; `tokenizers` takes tokenizers.
    """

    path: str | None = None
    vocab_size: int = 8000
    add_tokens: list[str] = field(default_factory=list)
    library: str = "auto"

    def __post_init__(self) -> None:
        if self.library not in ("auto", "tokenizers"):
            raise ValueError(f"tokenizer.library is '{self.library}': choose auto or tokenizers")
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
        system: by written standard (nob, nno, … or nor), the system prompt of conversations that bring none of their own.
    """

    targets: str = "answers"
    template: str | None = None
    template_arguments: dict[str, Any] = field(default_factory=dict)
    system: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise ValueError(f"chat.targets is '{self.targets}': choose one of {', '.join(TARGETS)}")
        if unknown := set(self.system) - {*LANGUAGES, "nor"}:
            raise ValueError(f"chat.system names '{min(unknown)}': choose among {', '.join(LANGUAGES)} and nor")
        if empty := [language for language, prompt in self.system.items() if not prompt.strip()]:
            raise ValueError(f"chat.system.{empty[0]} is empty: give a system prompt, or leave it out")


@dataclass(kw_only=True)
class CorpusConfig:
    """One corpus: `finetune prepare corpus=<name>` turns it into the folder `<corpora_dir>/<name>`.

    Attributes:
        shard_tokens: a shard is closed once it holds this many tokens.
    """

    name: str
    sources: dict[str, SourceConfig]
    boilerplate: BoilerplateConfig = field(default_factory=BoilerplateConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    deduplicate: DeduplicateConfig = field(default_factory=DeduplicateConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
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
            if self.tokenizer.path is None and any(rule.max_tokens is not None for rule in source.mixture):
                raise ValueError(
                    f"sources.{name}.mixture has max_tokens, which are counted by the corpus' tokenizer: give it as "
                    f"tokenizer.path (one that is trained here would depend on what it is to count), or use weight"
                )
        self.boilerplate.check_sites(self.sources)
        if unknown := set(self.quality.skip_sources) - set(self.sources):
            raise ValueError(f"quality.skip_sources names '{min(unknown)}': choose among {', '.join(self.sources)}")
        if self.shard_tokens < 1:
            raise ValueError(f"shard_tokens is {self.shard_tokens}: give at least 1")


@dataclass(kw_only=True)
class PrepareConfig:
    """The root of `finetune prepare`.

    Attributes:
        corpora_dir: where corpus folders are written.
        downloads_dir: where raw sources lie, for corpus files that say ${downloads_dir}, as corpus=mixture does.
        workers: processes; the corpus is the same whatever their number. Unset: one a core, or fewer for a small corpus.
        shard_characters: text in a shard of the stages, which is what is done again when a process is killed; while it reads, its
            task: a large file, or some small ones. It leaves no trace in the corpus.
    """

    corpus: CorpusConfig
    corpora_dir: str = "corpora"
    downloads_dir: str = "downloads"
    workers: int | None = None
    shard_characters: int = 16_000_000

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}: give at least 1, or leave it out")
        if self.shard_characters < 1:
            raise ValueError(f"shard_characters is {self.shard_characters}: give at least 1")


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
