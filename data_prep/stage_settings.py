"""The settings of the stages: the sections of a corpus file other than its sources."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from data_prep.fields import all_among, at_least, between, one_of, setting
from data_prep.user_error import UserError

NAME = re.compile(r"\w[\w.-]*")
# Languages that the language stage distinguishes well enough for their documents to be kept.
LANGUAGES = ("nob", "nno", "dan", "swe", "eng", "sme")
OTHER_PARTS = ("cut", "keep")
OVERLAP_ACTIONS = ("drop", "cut")
ENCODERS = ("auto", "tokenizers")
TARGETS = ("answers", "everything")


@dataclass(kw_only=True)
class BoilerplateConfig:
    """Cutting of the lines that frame the pages of a site, at the head and foot of its documents."""

    readers: list[str] = setting(
        ["jsonl", "maalfrid", "markdown", "pdf", "table", "text", "webpage"],
        "readers whose sources have such a frame; laws, minutes and the like are left as they are",
    )
    sites: list[str] = setting(
        [],
        "names of sources whose documents without a host in their URL are the pages of one site; of other "
        "sources, documents without a host are left as they are",
    )
    min_documents: int = setting(
        5, "documents of a site that must hold a line before it counts as a part of the frame; 2 or more"
    )
    min_share: float = setting(0.9, "share of the site's documents that must hold the line as well")
    max_cut: float = setting(
        0.9,
        "a document that would lose more than this share of its letters is a copy of another: it is left",
    )

    def __post_init__(self) -> None:
        at_least("boilerplate.min_documents", self.min_documents, 2)
        between("boilerplate.min_share", self.min_share, 0, 1)
        between("boilerplate.max_cut", self.max_cut, 0, 1)


@dataclass(kw_only=True)
class LanguageConfig:
    """Written standards that are kept (ISO 639-3), and how much a source's claim counts."""

    keep: list[str] = setting(
        ["nob", "nno"],
        f"codes among {', '.join(LANGUAGES)}; documents in both Norwegian standards (nor) if both are kept",
    )
    min_characters: int = setting(
        60, "shorter documents keep the language that their source claims, and are dropped if it claims none"
    )
    claim_weight: float = setting(
        0.5,
        "weight of the source's claim, as a share of the document's letters: at 0.5 the text must be 75% in "
        "another language to overrule it, at 0 the claim is ignored, at 1 it always holds",
    )
    mixed_share: float = setting(
        0.15,
        "share of the letters that each standard must surely have before a document counts as mixed (nor)",
    )
    other_parts: str = setting(
        "cut",
        f"paragraphs that are surely in a language outside {', '.join(LANGUAGES)} (Polish, Arabic …): cut "
        "them from documents that are kept, and keep the Norwegian parts of documents that would be "
        "dropped; or keep them, and judge documents whole",
    )

    def __post_init__(self) -> None:
        all_among("language.keep", self.keep, LANGUAGES)
        between("language.claim_weight", self.claim_weight, 0, 1)
        one_of("language.other_parts", self.other_parts, OTHER_PARTS)
        between("language.mixed_share", self.mixed_share, 0, 0.5, above_low=True)


@dataclass(kw_only=True)
class QualityConfig:
    """Limits outside which a document of running text is dropped; null switches a limit off. Conversations,
    prompts and answers are not judged.

    data_prep/stages/quality.py names the rules and where each comes from.
    """

    skip_readers: list[str] = setting(
        ["conllu"],
        "readers whose sources are not judged, but counted; treebanks are single sentences, for evaluation",
    )
    skip_sources: list[str] = setting([], "names of further sources that are not judged, but counted")
    min_words: int | None = setting(5, "words of a document, at least")
    max_words: int | None = setting(1_000_000, "words of a document, at most")
    min_word_length: float | None = setting(2.5, "mean length of its words in characters, at least")
    max_word_length: float | None = setting(12.0, "mean length of its words in characters, at most")
    min_letter_words: float | None = setting(0.35, "share of words that have a letter, at least")
    min_function_words: int | None = setting(
        2,
        "different ones of the commonest small words of Norwegian, Danish, Swedish or English, at least",
    )
    max_symbol_share: float | None = setting(0.1, "ratio of '#', '…' and similar symbols to words, at most")
    max_bullet_lines: float | None = setting(0.95, "share of lines that begin with a bullet, at most")
    max_ellipsis_lines: float | None = setting(0.3, "share of lines that end in an ellipsis, at most")
    max_code_share: float | None = setting(
        0.1, "share of the characters that are braces, angle brackets, semicolons and the like, at most"
    )
    max_lorem_ipsum: float | None = setting(
        0.5, "share of the words that are a printer's dummy text, at most"
    )
    max_broken_share: float | None = setting(
        0.001, "share of the characters that are U+FFFD or for private use (letters that were lost), at most"
    )
    max_spaced_letters: float | None = setting(
        0.3, "share of words that are one letter, at most; as in s p a c e d text from a PDF"
    )
    max_duplicate_lines: float | None = setting(
        0.5,
        "share of the characters in lines that stood earlier in the document, after the same line, at most",
    )
    max_duplicate_paragraphs: float | None = setting(
        0.5, "share of the characters in paragraphs that stood earlier, after the same paragraph, at most"
    )
    max_top_ngrams: list[float] | None = setting(
        [0.45, 0.3, 0.25],
        "share of the characters in the commonest sequence of 2, 3 and 4 words, at most, numbered references left out",
    )
    max_duplicate_ngrams: float | None = setting(
        0.65,
        "share of the characters in sequences of 5 words that stood earlier, at most; a document above it "
        "is dropped if sequences of 30 words exceed it too, or those of 5 words exceed the mean of it and 1",
    )
    repetition_from: int = setting(100, "words from which on a document is examined for repetition")

    def __post_init__(self) -> None:
        if self.max_top_ngrams is not None and len(self.max_top_ngrams) != 3:
            raise UserError(
                f"quality.max_top_ngrams is {self.max_top_ngrams}; give three shares, for 2, 3 and 4 words"
            )


@dataclass(kw_only=True)
class DeduplicateConfig:
    """Removal of documents that repeat another; exact duplicates always are removed."""

    near: bool = setting(True, "whether near duplicates are removed too")
    similarity: float = setting(
        0.6,
        "Jaccard similarity of the sets of word 5-grams from which on two documents are near duplicates; a "
        "copy in which 3% of the words were changed has about 0.75",
    )
    tell_apart: bool = setting(
        True,
        "whether similar documents with contradicting titles, numbers, dates, names or words are kept",
    )
    bands: int = setting(
        25,
        "bands of the 128 minima of MinHash; more bands find less similar documents, and compare more",
    )

    def __post_init__(self) -> None:
        between("deduplicate.similarity", self.similarity, 0, 1, above_low=True)
        between("deduplicate.bands", self.bands, 1, 64)


@dataclass(kw_only=True)
class DecontaminateConfig:
    """Removal of text that evaluation sets hold too."""

    sets: dict[str, str] = setting(
        {},
        "evaluation sets, as name: file or folder; JSON, JSON lines, SQuAD, tables, Parquet, Arrow or text "
        "files, packed or not; every string of a record counts",
    )
    words: int = setting(
        13,
        "a sequence of so many words that stands in an evaluation set too is an overlap; shorter texts of a "
        "set are compared whole, down to min_words",
    )
    min_words: int = setting(8, "texts of a set with fewer words are too common to be compared")
    action: str = setting(
        "drop",
        "drop the document, or cut the paragraphs that hold an overlap; a conversation is dropped in both",
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
            raise UserError(f"decontaminate.sets has the name '{bad}'; use letters, digits, '-', '_' and '.'")


@dataclass(kw_only=True)
class DeidentifyConfig:
    """Masking of national identity numbers."""

    national_identity_number: str = setting(
        "[fødselsnummer]", "replaces a valid fødselsnummer, D-number, H-number or synthetic number"
    )


@dataclass(kw_only=True)
class SplitConfig:
    """Which groups of documents are held out."""

    validation_share: float = setting(
        0.1, "expected share of groups in the validation split, from 0 up to, not including, 1"
    )
    seed: int = setting(
        0,
        "a group's side is a function of seed and group alone: it does not change when the corpus grows",
    )

    def __post_init__(self) -> None:
        between("split.validation_share", self.validation_share, 0, 1, below_high=True)


@dataclass(kw_only=True)
class TokenizerConfig:
    """The tokenizer, that of an existing model folder or one trained on the corpus."""

    path: str | None = setting(
        None, "a folder with tokenizer.json (a model folder on disk); unset: train one"
    )
    vocab_size: int = setting(
        8000, "size of a trained byte-level BPE vocabulary, special tokens included; 300 or more"
    )
    add_tokens: list[str] = setting(
        [],
        "words or pieces to add to the tokenizer at path, one token each; training enlarges the model",
    )
    library: str = setting(
        "auto",
        "library that encodes running text: auto takes gigatoken where it is installed and gives the same "
        "tokens on a sample of the corpus; tokenizers takes tokenizers",
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
    """How conversations, prompts and completions become tokens; sources of running text do not use it."""

    targets: str = setting(
        "answers",
        "what the model learns to write: answers (the assistant's turns, completions) or everything",
    )
    template: str | None = setting(
        None,
        "a file with a Jinja chat template, or default for the one that comes with trained tokenizers; "
        "unset: the tokenizer's own",
    )
    template_arguments: dict[str, Any] = setting(
        {},
        'variables for the template, as {enable_thinking: false}, or {date_string: "1 Jan 2026"} for one that would '
        "otherwise write the day of preparation into the shards",
    )
    system: dict[str, str] = setting(
        {},
        "system prompts by written standard (nob, nno, … or nor) for conversations that bring none",
    )

    def __post_init__(self) -> None:
        one_of("chat.targets", self.targets, TARGETS)
        all_among("chat.system", self.system, (*LANGUAGES, "nor"))
        empty = next((language for language, prompt in self.system.items() if not prompt.strip()), None)
        if empty is not None:
            raise UserError(f"chat.system.{empty} is empty; give a system prompt, or leave it out")
