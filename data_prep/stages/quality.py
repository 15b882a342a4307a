"""Removal of running text of low quality, by rules on its words, symbols and repetitions.

Each rule measures one property of a document. It drops the document, with the rule's name as the
reason, if the measure is outside the limits in QualityConfig. Blanks to fill in, such as dot
leaders and merge fields, are not measured. Rules on words and symbols do not drop a document if its
sentences alone pass them, even if it also has tables, addresses and code examples
(running_text.py).

The rules come from Gopher (Rae et al. 2021, appendix A), C4 (Raffel et al. 2020) and FineWeb
(Penedo et al. 2024). Each limit was set by inspecting the documents that it drops from Norwegian
law. Law consists of short numbered paragraphs, headings, lists and tables, and has genuine
repetitions. So there is no minimum of 50 words as in Gopher (an amendment has 20), and no rule on
short lines or lines without a full stop as in FineWeb.

    rule                         measure; remarks                                        source (its limit)
    too_short, too_long          number of words                                         Gopher
    short_words, long_words      mean length of words                                    Gopher (10, English)
    few_letters                  share of words with a letter; tariffs have 45%          Gopher (80%)
    few_function_words           number of different function words, in texts of at      Gopher
                                 least 50 words; a journal entry has none
    symbols                      ratio of `#tag` and `…` to words, in texts of at least  Gopher
                                 50 words; transcribed speech has some
    bullets, ellipses            share of lines that begin with a bullet or end with an  Gopher
                                 ellipsis, in texts of at least five lines; lists of
                                 sentences pass, and dialogue begins with dashes too
    code                         share of characters of programs and markup              C4 (none)
    lorem_ipsum                  share of dummy text, 50 words for each "lorem ipsum"    C4 (none)
    lost_letters                 share of U+FFFD and private use characters, left by     new
                                 wrong decoding or a PDF's fonts; private use characters
                                 between spaces are icons or bullets, and not counted
    spaced_letters               share of words of one letter except å and i, as in      new
                                 s p a c e d text
    repeated_lines,              share of characters in lines or paragraphs that have    Gopher; FineWeb
    repeated_paragraphs          occurred before, after the same line or paragraph       (0.1 for lines)
    repeated_words               share of characters in the most frequent 2-, 3- and     Gopher (0.2, 0.18,
                                 4-gram; numbered ones, as in a list of references,      0.16)
                                 are not counted
    repeated_passages            share of characters in 5-grams that have occurred       Gopher (0.15)
                                 before; 30-grams must exceed the limit too, unless
                                 5-grams exceed the mean of the limit and 1
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
from data_prep.ngrams import ngram_hashes, word_hashes
from data_prep.running_text import remove_code_blocks, replace_blanks, select_sentences
from data_prep.stage_settings import QualityConfig
from data_prep.stages.protocol import ShardStage

# Function words of Bokmål, Nynorsk, Danish, Swedish, English and North Sámi. Nearly every sentence
# has one.
_FUNCTION_WORD_LIST = (
    "og i på av er det som for til med en et den de at ikke kan skal har om fra ved eller ein eit "
    "dei ikkje frå vere blir mot ble vart var må etter ingen alle dette denne seg du vi "
    "af och att är inte från the of and to in is that with be or ja lea leat ii ahte go dahje maid"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORD_LIST.split())
FUNCTION_WORDS_FROM = 50  # function words are required in texts of at least this number of words
BULLETS = tuple("•-–*·▪●◦‣➢❖✓✗☐☑☒→➔■□◆")
DASHES = ("-", "–", "*", "·")
ITEM_WORDS = 5  # items with at least this mean number of words are sentences, not a menu
# Words of up to 30 characters that match may be compounds, so their length counts only up to the
# rule's limit. Text without spaces is longer than 30.
COMPOUND = re.compile(r"[\W_]*[^\W_]+(?:[-_/][^\W_]+)*[\W_]*")
MAX_COMPOUND = 30
SYMBOLS = re.compile(r"#\w|…|\.\.\.")  # not the # of a heading, which has a space after it
CODE = "{}<>\\;=$^~`[]"
LOREM_WORDS = 50  # number of words of dummy text for each "lorem ipsum"
SYMBOLS_FROM = 50  # symbols are counted in texts of at least this number of words
LONG_PASSAGE = 30  # words; see the rule repeated_passages
LINES_FROM = 5  # bullets and ellipses are counted in texts of at least this number of lines
ONE_LETTER_WORDS = frozenset("åÅiI")
LETTER = re.compile(r"[^\W\d_]")
BROKEN = re.compile("\ufffd|[\ue000-\uf8ff](?=\\S)|(?<=\\S)[\ue000-\uf8ff]")
# A text breaks one of these rules only if its sentences alone break it too.
SENTENCE_RULES = frozenset(
    ["short_words", "long_words", "few_letters", "spaced_letters", "few_function_words", "code", "symbols"]
)
REPETITION_RULES = frozenset(["repeated_lines", "repeated_paragraphs", "repeated_words", "repeated_passages"])
PUNCTUATION = ".,;:!?()[]«»\"'“”‘’/…-–"

Finding = tuple[str, float]  # name of a broken rule, and the measured value


@dataclass(kw_only=True)
class QualitySettings(QualityConfig):
    """The limits, and the names of the sources that the settings exempt from the rules."""

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
                finding = next(find_broken_rules(document.text, config.quality), None)
                if finding is not None:
                    rule, measure = finding
                    report.drop(document, rule, f"{measure:.3g}")
                    continue
            yield document


def _not_judged(config: CorpusConfig) -> set[str]:
    """Return the names of the sources that the settings exempt from the rules."""
    by_reader = {
        name for name, source in config.sources.items() if source.reader in config.quality.skip_readers
    }
    return by_reader | set(config.quality.skip_sources)


def find_broken_rules(text: str, limits: QualityConfig) -> Iterator[Finding]:
    """Yield the rules that a text breaks, each with the measured value."""
    original = text
    text = replace_blanks(original)
    if text != original and limits.min_letter_words is not None:
        # This finds documents of merge fields that have no text between them.
        words = replace_blanks(original, field=" ").split()
        num_with_letters = sum(LETTER.search(word) is not None for word in words)
        if num_with_letters < 2:
            yield "few_letters", num_with_letters / max(len(text.split()), 1)
    parts: dict[bool, str] = {}
    for rule, measure in _measure(text, limits):
        is_repetition = rule in REPETITION_RULES
        if is_repetition or rule in SENTENCE_RULES:
            if is_repetition not in parts:
                reduce = remove_code_blocks if is_repetition else _keep_sentences
                parts[is_repetition] = reduce(text)
            part = parts[is_repetition]
            if part != text and rule not in {other for other, _ in _measure(part, limits)}:
                continue
        yield rule, measure


def _keep_sentences(text: str) -> str:
    return select_sentences(text, FUNCTION_WORDS)


def _measure(text: str, limits: QualityConfig) -> Iterator[Finding]:
    """Yield the rules that a text breaks, each with the measured value.

    The whole text is measured. `find_broken_rules` then excuses breaches by tables or code.
    """
    words = text.split()
    if _is_below(len(words), limits.min_words):
        yield "too_short", len(words)
    if _is_above(len(words), limits.max_words):
        yield "too_long", len(words)
    if not words:
        return
    lengths = list(map(len, words))
    yield from _measure_words(words, lengths, limits)
    lower = text.lower()
    yield from _measure_characters(text, lower, len(words), limits)
    lines = [line for line in text.split("\n") if line]
    if len(lines) >= LINES_FROM:
        yield from _measure_bullets(lines, limits)
        share = sum(line.endswith(("…", "...")) for line in lines) / len(lines)
        if _is_above(share, limits.max_ellipsis_lines):
            yield "ellipses", share
    if len(words) >= limits.repetition_from:
        yield from _measure_repetition(text, lower.split(), lengths, lines, limits)


def _is_below(value: float, limit: float | None) -> bool:
    return limit is not None and value < limit


def _is_above(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit


def _measure_words(words: list[str], lengths: list[int], limits: QualityConfig) -> Iterator[Finding]:
    mean = sum(lengths) / len(words)
    if _is_below(mean, limits.min_word_length):
        yield "short_words", mean
    if limits.max_word_length is not None and mean > limits.max_word_length:
        mean = sum(_counted_length(word, limits.max_word_length) for word in words) / len(words)
        if mean > limits.max_word_length:
            yield "long_words", mean
    # Cheap bounds are tested first: words of letters only are a subset of the words with a letter,
    # and spaced letters are a subset of the words of one character.
    if _is_below(sum(map(str.isalpha, words)) / len(words), limits.min_letter_words):
        share = sum(LETTER.search(word) is not None for word in words) / len(words)
        if _is_below(share, limits.min_letter_words):
            yield "few_letters", share
    if _is_above(lengths.count(1) / len(words), limits.max_spaced_letters):
        spaced = [w for w in words if len(w) == 1 and w.isalpha() and w not in ONE_LETTER_WORDS]
        share = len(spaced) / len(words)
        if _is_above(share, limits.max_spaced_letters):
            yield "spaced_letters", share
    if limits.min_function_words is not None and len(words) >= FUNCTION_WORDS_FROM:
        num_found = _count_function_words(words, limits.min_function_words)
        # A limit of 0 has the effect of 1; null switches the rule off.
        if num_found < max(limits.min_function_words, 1):
            yield "few_function_words", num_found


def _count_function_words(words: list[str], enough: int) -> int:
    """Count the different function words among some words, up to the number `enough`."""
    found: set[str] = set()
    for word in words:
        plain = word.lower().strip(PUNCTUATION)
        if plain in FUNCTION_WORDS:
            found.add(plain)
            if len(found) >= enough:
                break
    return len(found)


def _counted_length(word: str, limit: float) -> float:
    """Return a word's length for the rule on the mean length of words.

    It is at most `limit` for a word that may be a compound. So a sentence of four long compounds
    does not break the rule.
    """
    may_be_compound = len(word) <= MAX_COMPOUND and COMPOUND.fullmatch(word)
    return min(len(word), limit) if may_be_compound else len(word)


def _measure_bullets(lines: list[str], limits: QualityConfig) -> Iterator[Finding]:
    """Yield the rule `bullets` if too many lines begin with a bullet.

    A list of sentences passes, but a menu with items of one or two words does not. A text in which
    every line begins with a dash does not pass either.
    """
    items = [line for line in lines if line.startswith(BULLETS)]
    share = len(items) / len(lines)
    if _is_above(share, limits.max_bullet_lines):
        words = sum(len(line.split()) - 1 for line in items)
        only_dashes = share == 1 and all(line.startswith(DASHES) for line in items)
        if only_dashes or words < ITEM_WORDS * len(items):
            yield "bullets", share


def _measure_characters(text: str, lower: str, num_words: int, limits: QualityConfig) -> Iterator[Finding]:
    share = len(BROKEN.findall(text)) / len(text)
    if _is_above(share, limits.max_broken_share):
        yield "lost_letters", share
    share = sum(map(text.count, CODE)) / len(text)
    if _is_above(share, limits.max_code_share):
        yield "code", share
    if num_words >= SYMBOLS_FROM and ("#" in text or "…" in text or "..." in text):
        share = len(SYMBOLS.findall(text)) / num_words
        if _is_above(share, limits.max_symbol_share):
            yield "symbols", share
    share = lower.count("lorem ipsum") * LOREM_WORDS / num_words
    if _is_above(share, limits.max_lorem_ipsum):
        yield "lorem_ipsum", share


def _measure_repetition(
    text: str, words: list[str], lengths: list[int], lines: list[str], limits: QualityConfig
) -> Iterator[Finding]:
    """Yield the rules on repetition that a text breaks, each with the measured value.

    The rules concern repeated lines, paragraphs, n-grams and passages.

    Args:
        words: the words in lower case.
        lengths: the lengths of the original words, which may differ from those of `words`.
    """
    paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph]
    for rule, pieces, limit in (
        ("repeated_lines", lines, limits.max_duplicate_lines),
        ("repeated_paragraphs", paragraphs, limits.max_duplicate_paragraphs),
    ):
        share = _count_repeated(pieces) / len(text)
        if _is_above(share, limit):
            yield rule, share
    hashes = word_hashes(words)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    for n, limit in zip((2, 3, 4), limits.max_top_ngrams or (), strict=False):
        if _top_share(hashes, ends, n) > limit:
            share = _top_share(hashes, ends, n, _is_numbered(words, hashes, n))
            if share > limit:
                yield "repeated_words", share
    if limits.max_duplicate_ngrams is not None:
        yield from _measure_passages(hashes, ends, limits.max_duplicate_ngrams)


def _measure_passages(hashes: NDArray[np.uint64], ends: NDArray[Any], limit: float) -> Iterator[Finding]:
    """Yield the rule `repeated_passages` if too much of the text is in repeated 5-grams.

    Too much of it must be in repeated 30-grams too, unless the share in 5-grams is very high.
    Otherwise, lists of similar items would break the rule: they repeat short n-grams only.

    Args:
        hashes: hashes of the words [words].
        ends: for each position, the number of characters in the words before it [words + 1].
    """
    share = _repeated_share(hashes, ends, 5)
    if share > limit and (share > (1 + limit) / 2 or _repeated_share(hashes, ends, LONG_PASSAGE) > limit):
        yield "repeated_passages", share


def _count_repeated(pieces: list[str]) -> int:
    """Return the number of characters in repeated pieces.

    A piece is repeated if it equals the piece before it, or has occurred before after the same
    piece. So a sentence that occurs in many sections does not count.
    """
    seen: set[tuple[str, str]] = set()
    repeated = 0
    previous = ""
    for piece in pieces:
        if (previous, piece) in seen or piece == previous:
            repeated += len(piece)
        seen.add((previous, piece))
        previous = piece
    return repeated


def _is_numbered(words: list[str], hashes: NDArray[np.uint64], n: int) -> NDArray[np.bool_]:
    """Return for each n-gram whether a number of its own follows it, as in a list of references.

    That is so if one of the next three words has a digit, and if the n-gram and the words up to
    that one occur together only once.

    Args:
        hashes: hashes of `words`.
    """
    has_digit = np.fromiter((any(map(str.isdigit, word)) for word in words), np.bool_, len(words))
    numbered = np.zeros(max(len(words) - n + 1, 0), np.bool_)
    for further in (1, 2, 3):
        longer = ngram_hashes(hashes, n + further)
        _, inverse, counts = np.unique(longer, return_inverse=True, return_counts=True)
        numbered[: len(longer)] |= has_digit[n + further - 1 :] & (counts[inverse] == 1)
    return numbered


def _top_share(
    hashes: NDArray[np.uint64], ends: NDArray[Any], n: int, left_out: NDArray[np.bool_] | None = None
) -> float:
    """Return the share of a text's characters in the occurrences of its commonest n-gram.

    Args:
        hashes: hashes of the words [words].
        ends: for each position, the number of characters in the words before it [words + 1].
        left_out: True for n-grams that are not counted.
    """
    ngrams = ngram_hashes(hashes, n)
    counted = ngrams if left_out is None else ngrams[~left_out]
    if not len(counted):
        return 0.0
    ordered = np.sort(counted)
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(starts, append=len(ordered))
    top = int(counts.argmax())
    if counts[top] == 1:
        return 0.0
    first = int(np.argmax(ngrams == ordered[starts[top]]))
    return float(counts[top] * (ends[first + n] - ends[first]) / ends[-1])


def _repeated_share(hashes: NDArray[np.uint64], ends: NDArray[Any], n: int) -> float:
    """Return the share of a text's characters in n-grams with an earlier occurrence.

    Args:
        hashes: hashes of the words [words].
        ends: for each position, the number of characters in the words before it [words + 1].
    """
    ngrams = ngram_hashes(hashes, n)
    ordered = np.sort(ngrams)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return 0.0
    nearest = np.minimum(np.searchsorted(repeated, ngrams), len(repeated) - 1)
    places = np.flatnonzero(repeated[nearest] == ngrams)  # all occurrences of repeated n-grams
    _, first = np.unique(ngrams[places], return_index=True)
    later = np.delete(places, first)
    covered = np.zeros(len(hashes), np.bool_)
    for offset in range(n):
        covered[later + offset] = True
    return float(np.diff(ends)[covered].sum() / ends[-1])
