"""The settings of the stages: the sections of a corpus file other than its sources."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from data_prep.fields import all_among, at_least, between, one_of, setting
from data_prep.user_error import UserError

NAME = re.compile(r"\w[\w.-]*")
# Languages of documents that can be kept. Stage language distinguishes only these well enough.
LANGUAGES = ("nob", "nno", "dan", "swe", "eng", "sme")
OTHER_PARTS = ("cut", "keep")
OVERLAP_ACTIONS = ("drop", "cut")
ENCODERS = ("auto", "tokenizers")
TARGETS = ("answers", "everything")


@dataclass(kw_only=True)
class BoilerplateConfig:
    """Removal of lines that a site repeats at the top and bottom of its pages (menus, footers, notices)."""

    readers: list[str] = setting(
        ["jsonl", "maalfrid", "markdown", "pdf", "table", "text", "webpage"],
        "readers whose sources have such lines; documents of other readers are not changed",
    )
    sites: list[str] = setting(
        [],
        "names of sources that are one site each, although their documents have no host in a URL; other "
        "documents without a host are not changed",
    )
    min_documents: int = setting(
        5, "number of documents of a site (2 or more) in which a line must occur to be removed"
    )
    min_share: float = setting(0.9, "share of the site's documents in which a line must occur to be removed")
    max_cut: float = setting(
        0.9,
        "a document that would lose more than this share of its letters is not changed, because it is "
        "probably a copy of another",
    )

    def __post_init__(self) -> None:
        at_least("boilerplate.min_documents", self.min_documents, 2)
        between("boilerplate.min_share", self.min_share, 0, 1)
        between("boilerplate.max_cut", self.max_cut, 0, 1)


@dataclass(kw_only=True)
class LanguageConfig:
    """Languages and written standards to keep (ISO 639-3), and the weight of a source's claim."""

    keep: list[str] = setting(
        ["nob", "nno"],
        f"languages to keep, among {', '.join(LANGUAGES)}; documents in both Norwegian standards (nor) are "
        "kept if both nob and nno are",
    )
    min_characters: int = setting(
        60, "shorter documents get the language that their source claims; they are dropped if it claims none"
    )
    claim_weight: float = setting(
        0.5,
        "weight of the source's claim, as a share of the document's letters: at 0.5, 75% of"
        " the text must be in another language to override the claim; at 0 the claim is "
        "ignored, at 1 it always decides",
    )
    mixed_share: float = setting(
        0.15,
        "a document counts as mixed (nor) if at least this share of its letters is "
        "certainly nob and at least this share certainly nno",
    )
    other_parts: str = setting(
        "cut",
        f"paragraphs certainly in a language other than {', '.join(LANGUAGES)} (Polish, "
        "Arabic …): cut removes them, which saves documents whose other paragraphs are "
        "Norwegian; keep leaves documents whole",
    )

    def __post_init__(self) -> None:
        all_among("language.keep", self.keep, LANGUAGES)
        between("language.claim_weight", self.claim_weight, 0, 1)
        one_of("language.other_parts", self.other_parts, OTHER_PARTS)
        between("language.mixed_share", self.mixed_share, 0, 0.5, above_low=True)


@dataclass(kw_only=True)
class QualityConfig:
    """Limits on documents of running text. A document outside a limit is dropped; null switches a
    limit off. Conversations, prompts and answers are not checked.

    data_prep/stages/quality.py describes the rules and their sources.
    """

    skip_readers: list[str] = setting(
        ["conllu"],
        "readers whose documents are checked and counted but never dropped; conllu because "
        "treebanks are single sentences, for evaluation",
    )
    skip_sources: list[str] = setting([], "names of further sources whose documents are never dropped")
    min_words: int | None = setting(5, "minimum number of words")
    max_words: int | None = setting(1_000_000, "maximum number of words")
    min_word_length: float | None = setting(2.5, "minimum mean length of words, in characters")
    max_word_length: float | None = setting(12.0, "maximum mean length of words, in characters")
    min_letter_words: float | None = setting(0.35, "minimum share of words that contain a letter")
    min_function_words: int | None = setting(
        2,
        "minimum number of different function words (og, er, på …) of Norwegian, Danish, Swedish or English",
    )
    max_symbol_share: float | None = setting(0.1, "maximum ratio of '#', '…' and similar symbols to words")
    max_bullet_lines: float | None = setting(0.95, "maximum share of lines that begin with a bullet")
    max_ellipsis_lines: float | None = setting(0.3, "maximum share of lines that end in an ellipsis")
    max_code_share: float | None = setting(
        0.1, "maximum share of braces, angle brackets, semicolons and similar characters"
    )
    max_lorem_ipsum: float | None = setting(
        0.5, "maximum share of words that are placeholder text (lorem ipsum)"
    )
    max_broken_share: float | None = setting(
        0.001, "maximum share of characters that are U+FFFD or of a private use area (lost letters)"
    )
    max_spaced_letters: float | None = setting(
        0.3, "maximum share of words of one letter, e.g. s p a c e d text from a PDF"
    )
    max_duplicate_lines: float | None = setting(
        0.5,
        "maximum share of characters in repeated lines; a line is repeated if it equals the"
        " line before it, or if the same two lines occurred in a row earlier",
    )
    max_duplicate_paragraphs: float | None = setting(
        0.5,
        "maximum share of characters in repeated paragraphs; a paragraph is repeated if it "
        "equals the one before it, or if the same two occurred in a row earlier",
    )
    max_top_ngrams: list[float] | None = setting(
        [0.45, 0.3, 0.25],
        "maximum shares of characters in the most frequent sequence of 2, of 3 and of 4 words; numbered "
        "references do not count",
    )
    max_duplicate_ngrams: float | None = setting(
        0.65,
        "maximum share of characters in repeated sequences of 5 words. A document above it "
        "is dropped only if its share for 30 words is also above it, or its share for 5 "
        "words is above (1 + max_duplicate_ngrams) / 2; lists of similar items are thus "
        "kept",
    )
    repetition_from: int = setting(
        100, "minimum number of words of a document that is checked for repetition"
    )

    def __post_init__(self) -> None:
        if self.max_top_ngrams is not None and len(self.max_top_ngrams) != 3:
            raise UserError(
                f"quality.max_top_ngrams is {self.max_top_ngrams}; give three shares, for 2, 3 and 4 words"
            )


@dataclass(kw_only=True)
class DeduplicateConfig:
    """Removal of near duplicates of documents; exact duplicates are always removed."""

    near: bool = setting(True, "whether near duplicates are removed")
    similarity: float = setting(
        0.6,
        "Jaccard similarity of word 5-grams from which two documents are near duplicates; a copy with 3% of "
        "its words changed has about 0.75",
    )
    tell_apart: bool = setting(
        True,
        "whether similar documents are kept if they differ in a title, or in enough "
        "numbers, dates, names or words; text that one merely has in addition does not "
        "count",
    )
    bands: int = setting(
        25,
        "number of bands of the 128 MinHash values; more bands also find pairs that are "
        "less similar, and take longer",
    )

    def __post_init__(self) -> None:
        between("deduplicate.similarity", self.similarity, 0, 1, above_low=True)
        between("deduplicate.bands", self.bands, 1, 64)


@dataclass(kw_only=True)
class DecontaminateConfig:
    """Removal of text that also occurs in evaluation sets."""

    sets: dict[str, str] = setting(
        {},
        "evaluation sets, e.g. {name: file or folder}; JSON, JSON lines, SQuAD, tables, Parquet, Arrow or "
        "text files, compressed or not; all strings of a record are compared",
    )
    words: int = setting(
        13,
        "length in words of a sequence that counts as an overlap if it also occurs in an evaluation set; "
        "shorter texts of a set, down to min_words, are compared whole",
    )
    min_words: int = setting(
        8, "texts of a set with fewer words are not compared, because they are too common"
    )
    action: str = setting(
        "drop",
        "action on an overlap: drop the document, or cut its paragraphs with an overlap; conversations are "
        "always dropped",
    )

    def __post_init__(self) -> None:
        one_of("decontaminate.action", self.action, OVERLAP_ACTIONS)
        if not 1 <= self.min_words <= self.words:
            raise UserError(
                f"decontaminate.min_words is {self.min_words}: "
                f"must be between 1 and decontaminate.words ({self.words})"
            )
        bad = next((name for name in self.sets if not NAME.fullmatch(name)), None)
        if bad is not None:
            raise UserError(
                f"decontaminate.sets has the name '{bad}'; use letters, digits, '-', '_' and '.', "
                "and do not begin with '-' or '.'"
            )


@dataclass(kw_only=True)
class DeidentifyConfig:
    """Masking of national identity numbers."""

    national_identity_number: str = setting(
        "[fødselsnummer]", "replacement for a valid fødselsnummer, D-number, H-number or synthetic number"
    )


@dataclass(kw_only=True)
class SplitConfig:
    """Selection of the groups of documents that are held out for validation."""

    validation_share: float = setting(
        0.1, "expected share of groups in the validation split; at least 0 and below 1"
    )
    seed: int = setting(
        0,
        "seed of the selection; a group's split depends only on the seed and the group, so it does not "
        "change when the corpus grows",
    )

    def __post_init__(self) -> None:
        between("split.validation_share", self.validation_share, 0, 1, below_high=True)


@dataclass(kw_only=True)
class TokenizerConfig:
    """The tokenizer: that of a model folder, or one trained on the corpus."""

    path: str | None = setting(
        None, "folder with tokenizer.json, e.g. a model folder; unset: train a tokenizer on the corpus"
    )
    vocab_size: int = setting(
        8000, "vocabulary size of a tokenizer trained here (byte-level BPE), with special tokens; 300 or more"
    )
    add_tokens: list[str] = setting(
        [],
        "words or parts of words to add to the tokenizer in path, one token each; training then enlarges the "
        "model's embeddings",
    )
    library: str = setting(
        "auto",
        "library that encodes running text: auto uses gigatoken if it is installed and gives the same tokens "
        "on a sample of the corpus, otherwise tokenizers",
    )

    def __post_init__(self) -> None:
        one_of("tokenizer.library", self.library, ENCODERS)
        at_least("tokenizer.vocab_size", self.vocab_size, 300)
        if self.add_tokens and self.path is None:
            raise UserError(
                "tokenizer.add_tokens needs a base model's tokenizer to extend; "
                "give its folder as tokenizer.path"
            )
        for token in self.add_tokens:
            if not token.strip():
                raise UserError("tokenizer.add_tokens has an empty token; remove it")
            if self.add_tokens.count(token) > 1:
                raise UserError(f"tokenizer.add_tokens names {token!r} twice; give each token once")


@dataclass(kw_only=True)
class ChatConfig:
    """Conversion of conversations, prompts and completions to tokens; not used for running text."""

    targets: str = setting(
        "answers",
        "text to train on: answers (the assistant's turns and completions) or everything",
    )
    template: str | None = setting(
        None,
        "file with a Jinja chat template, or default for the template of tokenizers trained here; unset: the "
        "template of the tokenizer",
    )
    template_arguments: dict[str, Any] = setting(
        {},
        'variables of the template, e.g. {enable_thinking: false}; {date_string: "1 Jan 2026"} fixes the '
        "date in a template that would otherwise insert the current one",
    )
    system: dict[str, str] = setting(
        {},
        "system prompts by written standard (nob, nno, … or nor), for conversations without a system prompt",
    )

    def __post_init__(self) -> None:
        one_of("chat.targets", self.targets, TARGETS)
        all_among("chat.system", self.system, (*LANGUAGES, "nor"))
        empty = next((language for language, prompt in self.system.items() if not prompt.strip()), None)
        if empty is not None:
            raise UserError(f"chat.system.{empty} is empty; give a system prompt, or leave it out")
