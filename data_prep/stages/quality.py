"""Stage quality: drops running text by measures of one document alone (words, symbols, repetition), a rule
each.

Each rule measures one thing, and drops a document outside the limits of its setting (QualityConfig),
by its name. What is to be filled in (dot leaders, merge fields) is no part of the measured text, and rules on
words and signs drop no document whose sentences alone pass them, whatever tables, addresses and examples of
code it has beside them: see running_text.py. The rules are those of Gopher (Rae et al. 2021, appendix A) with
an eye on C4 (Raffel et al. 2020) and FineWeb (Penedo et al. 2024); the limits were set by looking at what
each drops of Norwegian law, which is made of short numbered paragraphs, headings, lists and tables, and
repeats itself in earnest. Left out for that reason: Gopher's 50 words at the least (an amendment has 20), and
FineWeb's shares of lines that are short, or end without a stop.

    too_short, too_long           words                                                       Gopher
    short_words, long_words       mean length of words                                        Gopher; 10
    there, for English few_letters                   words with a letter in them
    Gopher; 80% there, tariffs have 45% few_function_words            different small words, of texts of 50
    words and more        Gopher; a journal entry has none symbols                       `#tag` and `…` to
    words, of 50 words and more               Gopher; speech has some bullets, ellipses             lines that
    begin with a bullet, that end in an ellipsis,    Gopher
                                  of five lines and more: a line of dialogue begins so too;
                                  lists of sentences pass
    code                          characters of programs and markup                           C4, which drops
    any `{` lorem_ipsum                   words of it, at 50 to each "lorem ipsum"                    C4,
    which drops any lost_letters                  U+FFFD, private use: what decoding or a PDF's fonts lost;
    ours
                                  not a sign that stands alone, which is an icon or a bullet
    spaced_letters                words of one letter, but å and i: s p a c e d               ours
    repeated_lines, _paragraphs   characters in lines that stood before, after the same line  Gopher; FineWeb
    has 0.1 for lines repeated_words                characters in the commonest 2, 3 and 4 words; not those
    Gopher; 0.2, 0.18, 0.16 there
                                  with a number of their own, as in a list of references
    repeated_passages             characters in sequences of 30 words that stood before, or,  Gopher; 0.15
    there, for 5 words
                                  at half the distance from the limit to all, of 5 words
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report
from data_prep.ngrams import ngram_hashes, word_numbers
from data_prep.running_text import remove_code_blocks, replace_blanks, select_sentences
from data_prep.stage_settings import QualityConfig
from data_prep.stages.protocol import ShardStage

# what hardly a sentence of Bokmål and Nynorsk, Danish, Swedish, English, North Sámi is without
_NORDIC = "og i på av er det som for til med en et den de at ikke kan skal har om fra ved eller ein eit dei ikkje frå vere blir"
_NORDIC += " mot ble vart var må etter ingen alle dette denne seg du vi"
_OTHERS = "af och att är inte från the of and to in is that with be or ja lea leat ii ahte go dahje maid"
FUNCTION_WORDS = frozenset(f"{_NORDIC} {_OTHERS}".split())
FUNCTION_WORDS_FROM = 50  # words
BULLETS = tuple("•-–*·▪●◦‣➢❖✓✗☐☑☒→➔■□◆")
DASHES = ("-", "–", "*", "·")
ITEM_WORDS = 5  # mean of the lines of a list, from which on they are sentences, and no menu
LETTER_WORD, LONGEST_WORD = (
    re.compile(r"[\W_]*[^\W_]+(?:[-_/][^\W_]+)*[\W_]*"),
    30,
)  # a compound may be long; text without spaces is longer
SYMBOLS = re.compile(r"#\w|…|\.\.\.")  # a heading's # stands alone
CODE = "{}<>\\;=$^~`[]"
LOREM_WORDS = 50  # that follow upon "lorem ipsum", as a rule
SYMBOLS_FROM = 50  # words
LONG_PASSAGE = 30  # words
LINES_FROM = 5
WORDS_OF_A_LETTER = frozenset("åÅiI")
LETTER = re.compile(r"[^\W\d_]")
BROKEN = re.compile("\ufffd|[\ue000-\uf8ff](?=\\S)|(?<=\\S)[\ue000-\uf8ff]")
OF_SENTENCES = frozenset(  # rules that a text may break by what stands between its sentences
    ["short_words", "long_words", "few_letters", "spaced_letters", "few_function_words", "code", "symbols"]
)
OF_REPETITION = frozenset(["repeated_lines", "repeated_paragraphs", "repeated_words", "repeated_passages"])
EDGES = ".,;:!?()[]«»\"'“”‘’/…-–"

Finding = tuple[str, float]  # a rule's name, and what it measured


@dataclass(kw_only=True)
class QualitySettings(QualityConfig):
    """The limits, and the sources that are not judged."""

    not_judged: list[str]


class Quality(ShardStage):
    """Drop the documents of running text that break a rule."""

    name = "quality"
    version = 3

    def settings(self, config: CorpusConfig) -> QualitySettings:
        return QualitySettings(**vars(config.quality), not_judged=sorted(_not_judged(config)))

    def run(self, documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
        skipped = _not_judged(config)
        for document in documents:
            if document.source in skipped and not document.turns:
                report.counts[f"not_judged_{document.source}"] += 1
            elif not document.turns:
                finding = next(findings(document.text, config.quality), None)
                if finding is not None:
                    report.drop(document, finding[0], f"{finding[1]:.3g}")
                    continue
            yield document


def _not_judged(config: CorpusConfig) -> set[str]:
    """Sources that are left out by name, or by their reader."""
    by_reader = {
        name for name, source in config.sources.items() if source.reader in config.quality.skip_readers
    }
    return by_reader | set(config.quality.skip_sources)


def findings(text: str, limits: QualityConfig) -> Iterator[Finding]:
    """The rules that the text breaks, cheapest first."""
    whole, text = text, replace_blanks(text)
    if text != whole and limits.min_letter_words is not None:
        own = sum(LETTER.search(word) is not None for word in replace_blanks(whole, field=" ").split())
        if own < 2:
            yield "few_letters", own / max(len(text.split()), 1)  # merge fields, and nothing between them
    parts: dict[bool, str] = {}
    for name, measured in _broken_rules(text, limits):
        if name in OF_SENTENCES or name in OF_REPETITION:
            repeated = name in OF_REPETITION
            if repeated not in parts:
                parts[repeated] = (
                    remove_code_blocks(text) if repeated else select_sentences(text, FUNCTION_WORDS)
                )
            part = parts[repeated]
            if part != text and name not in {other for other, _ in _broken_rules(part, limits)}:
                continue
        yield name, measured


def _broken_rules(text: str, limits: QualityConfig) -> Iterator[Finding]:
    words = text.split()
    if outside(len(words), limits.min_words, None):
        yield "too_short", len(words)
    if outside(len(words), None, limits.max_words):
        yield "too_long", len(words)
    if not words:
        return
    lengths = list(map(len, words))
    yield from _of_words(words, lengths, limits)
    lower = text.lower()
    yield from _of_characters(text, lower, len(words), limits)
    lines = [line for line in text.split("\n") if line]
    if len(lines) >= LINES_FROM:
        yield from _of_bullets(lines, limits)
        if outside(
            share := sum(line.endswith(("…", "...")) for line in lines) / len(lines),
            None,
            limits.max_ellipsis_lines,
        ):
            yield "ellipses", share
    if len(words) >= limits.repetition_from:
        yield from _of_repetition(text, lower.split(), lengths, lines, limits)


def outside(value: float, low: float | None, high: float | None) -> bool:
    return (low is not None and value < low) or (high is not None and value > high)


def _of_words(words: list[str], lengths: list[int], limits: QualityConfig) -> Iterator[Finding]:
    mean = sum(lengths) / len(words)
    if outside(mean, limits.min_word_length, None):
        yield "short_words", mean
    if outside(mean, None, limits.max_word_length) and limits.max_word_length is not None:
        mean = sum(_counted_length(word, limits.max_word_length) for word in words) / len(words)
        if mean > limits.max_word_length:
            yield "long_words", mean
    # Words of letters alone are some of those with letters, and letters some of the words of one sign: mostly
    # that is enough.
    if outside(sum(map(str.isalpha, words)) / len(words), limits.min_letter_words, None):
        with_letters = sum(LETTER.search(word) is not None for word in words)
        if outside(share := with_letters / len(words), limits.min_letter_words, None):
            yield "few_letters", share
    if outside(lengths.count(1) / len(words), None, limits.max_spaced_letters):
        spaced = sum(len(word) == 1 and word.isalpha() and word not in WORDS_OF_A_LETTER for word in words)
        if outside(share := spaced / len(words), None, limits.max_spaced_letters):
            yield "spaced_letters", share
    if limits.min_function_words is not None and len(words) >= FUNCTION_WORDS_FROM:
        found: set[str] = set()
        for word in words:
            if (plain := word.lower().strip(EDGES)) in FUNCTION_WORDS:
                found.add(plain)
                if len(found) >= limits.min_function_words:
                    return
        yield "few_function_words", len(found)


def _counted_length(word: str, limit: float) -> float:
    """A word's length, at most the limit for what may be a compound: a sentence of four of them is a
    sentence."""
    may_be_compound = len(word) <= LONGEST_WORD and LETTER_WORD.fullmatch(word)
    return min(len(word), limit) if may_be_compound else len(word)


def _of_bullets(lines: list[str], limits: QualityConfig) -> Iterator[Finding]:
    """A list passes if its items are sentences, a menu has items of a word or two; of lines with dashes, one
    must be another."""
    items = [line for line in lines if line.startswith(BULLETS)]
    share = len(items) / len(lines)
    if outside(share, None, limits.max_bullet_lines):
        words = sum(len(line.split()) - 1 for line in items)
        only_dashes = share == 1 and all(line.startswith(DASHES) for line in items)
        if only_dashes or words < ITEM_WORDS * len(items):
            yield "bullets", share


def _of_characters(text: str, lower: str, words: int, limits: QualityConfig) -> Iterator[Finding]:
    if outside(share := len(BROKEN.findall(text)) / len(text), None, limits.max_broken_share):
        yield "lost_letters", share
    if outside(share := sum(map(text.count, CODE)) / len(text), None, limits.max_code_share):
        yield "code", share
    has_symbols = words >= SYMBOLS_FROM and ("#" in text or "…" in text or "..." in text)
    if has_symbols and outside(share := len(SYMBOLS.findall(text)) / words, None, limits.max_symbol_share):
        yield "symbols", share
    if outside(share := lower.count("lorem ipsum") * LOREM_WORDS / words, None, limits.max_lorem_ipsum):
        yield "lorem_ipsum", share


def _of_repetition(
    text: str, words: list[str], lengths: list[int], lines: list[str], limits: QualityConfig
) -> Iterator[Finding]:
    """`words` in lower case, in which they may have other lengths."""
    paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph]
    for name, pieces, limit in (
        ("repeated_lines", lines, limits.max_duplicate_lines),
        ("repeated_paragraphs", paragraphs, limits.max_duplicate_paragraphs),
    ):
        if outside(share := _repeated(pieces) / len(text), None, limit):
            yield name, share
    numbers = word_numbers(words)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    for n, limit in zip((2, 3, 4), limits.max_top_ngrams or (), strict=False):
        if _top_share(numbers, ends, n) > limit:
            share = _top_share(numbers, ends, n, _numbered(words, numbers, n))
            if share > limit:
                yield "repeated_words", share
    if limits.max_duplicate_ngrams is not None:
        yield from _of_passages(numbers, ends, limits.max_duplicate_ngrams)


def _of_passages(numbers: NDArray[np.uint64], ends: NDArray[Any], limit: float) -> Iterator[Finding]:
    """A list of like items repeats short sequences; a text that stands there again repeats long ones."""
    share = _repeated_share(numbers, ends, 5)
    if share > limit and (share > (1 + limit) / 2 or _repeated_share(numbers, ends, LONG_PASSAGE) > limit):
        yield "repeated_passages", share


def _repeated(pieces: list[str]) -> int:
    """Count the characters in pieces that stood before after the same piece: not a sentence of many
    sections."""
    seen: set[tuple[str, str]] = set()
    repeated, previous = 0, ""
    for piece in pieces:
        if (previous, piece) in seen or piece == previous:
            repeated += len(piece)
        seen.add((previous, piece))
        previous = piece
    return repeated


def _numbered(words: list[str], numbers: NDArray[np.uint64], n: int) -> NDArray[np.bool_]:
    """Of each sequence of n words, whether a number of its own follows it within three words."""
    has_digit = np.fromiter((any(map(str.isdigit, word)) for word in words), np.bool_, len(words))
    numbered = np.zeros(max(len(words) - n + 1, 0), np.bool_)
    for further in (1, 2, 3):
        hashes = ngram_hashes(numbers, n + further)
        _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        numbered[: len(hashes)] |= has_digit[n + further - 1 :] & (counts[inverse] == 1)
    return numbered


def _top_share(
    numbers: NDArray[np.uint64], ends: NDArray[Any], n: int, left_out: NDArray[np.bool_] | None = None
) -> float:
    """Share of the words' characters in the commonest sequence of n words, counted as often as it stands
    there."""
    hashes = ngram_hashes(numbers, n)
    counted = hashes if left_out is None else hashes[~left_out]
    if not len(counted):
        return 0.0
    ordered = np.sort(counted)
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(starts, append=len(ordered))
    top = int(counts.argmax())
    if counts[top] == 1:
        return 0.0
    first = int(np.argmax(hashes == ordered[starts[top]]))
    return float(counts[top] * (ends[first + n] - ends[first]) / ends[-1])


def _repeated_share(numbers: NDArray[np.uint64], ends: NDArray[Any], n: int) -> float:
    """Share of the words' characters in sequences of n words that stood before."""
    hashes = ngram_hashes(numbers, n)
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return 0.0
    nearest = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
    places = np.flatnonzero(repeated[nearest] == hashes)  # of sequences that stand there more than once
    _, first = np.unique(hashes[places], return_index=True)
    again = np.delete(places, first)
    covered = np.zeros(len(numbers), np.bool_)
    for offset in range(n):
        covered[again + offset] = True
    return float(np.diff(ends)[covered].sum() / ends[-1])
