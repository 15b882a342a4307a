"""Removal of text that evaluation sets contain: a model must not be tested on its training text.

Two texts overlap if they share a sequence of `words` words (13, as in GPT-3: Brown et al. 2020,
appendix C); case and the characters between words are ignored. An evaluation text with fewer words
than that is searched for as a whole, if it has at least `min_words` words. Depending on the setting
`action`, a document that overlaps is dropped, or its overlapping paragraphs are cut. The reasons of
drops and the names of counts contain the name of the evaluation set.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report
from data_prep.evaluation_sets import files, texts
from data_prep.ngrams import WORD, ngram_hashes, word_hashes
from data_prep.shards import sha256_file
from data_prep.stage_settings import DecontaminateConfig
from data_prep.stages.protocol import ShardStage

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class DecontaminateSettings:
    """The settings of the stage, with the checksums of each evaluation set's files."""

    sets: dict[str, list[str]]
    words: int
    min_words: int
    action: str


class Decontaminate(ShardStage):
    """Drop or cut text that overlaps with an evaluation set."""

    name = "decontaminate"
    version = 2

    def settings(self, config: CorpusConfig) -> DecontaminateSettings:
        """Return the settings, with the checksums of the evaluation sets' files.

        Raises:
            NotFoundError: an evaluation set does not exist, or has no file of a supported format.
        """
        rules = config.decontaminate
        sets = {
            name: [sha256_file(file) for file in files(path)] for name, path in sorted(rules.sets.items())
        }
        return DecontaminateSettings(
            sets=sets, words=rules.words, min_words=rules.min_words, action=rules.action
        )

    def run(self, documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
        rules = config.decontaminate
        index = _index(tuple(sorted(rules.sets.items())), rules.words, rules.min_words)
        for document in documents:
            found = index.overlaps(document.whole_text)
            if not found:
                yield document
                continue
            name = min(found, key=lambda name: (-len(found[name]), name))
            kept = ""
            cut: list[str] = []
            if rules.action == "cut" and not document.turns:
                kept, cut = _cut_overlaps(document.text, index)
            if kept:
                report.counts[f"documents_cut_{name}"] += 1
                report.counts["paragraphs_cut"] += len(cut)
                report.cut(document, f"in_{name}", cut, len(document.text) - len(kept))
                document.text = kept
                yield document
            else:
                detail = f"{len(found[name])} sequences of up to {rules.words} words are in {name}"
                report.drop(document, f"in_{name}", detail)


@dataclass
class Index:
    """The word sequences of all evaluation sets.

    Attributes:
        names: names of the evaluation sets.
        hashes: for each length in words, the sorted hashes of the sequences of that length.
        owners: for each length, the evaluation set of each hash, as an index into `names`.
        too_short: for each evaluation set, the number of texts with too few words to be searched
            for.
    """

    names: list[str]
    hashes: dict[int, NDArray[np.uint64]]
    owners: dict[int, NDArray[np.int64]]
    too_short: dict[str, int]

    def overlaps(self, text: str) -> dict[str, list[tuple[int, int]]]:
        """Return, by evaluation set, the spans of `text` whose sequence of words is in that set.

        A span is a pair of character offsets. Sets without a span are left out.
        """
        found: dict[str, list[tuple[int, int]]] = {}
        if not self.hashes:
            return found
        matches = list(WORD.finditer(text))
        numbers = word_hashes([match[0].casefold() for match in matches])
        for length, known in self.hashes.items():
            hashes = ngram_hashes(numbers, length)
            places = np.searchsorted(known, hashes)
            places[places == len(known)] = 0
            for first in np.flatnonzero(known[places] == hashes).tolist():
                name = self.names[self.owners[length][places[first]]]
                found.setdefault(name, []).append((matches[first].start(), matches[first + length - 1].end()))
        return found


@lru_cache(maxsize=1)
def _index(sets: tuple[tuple[str, str], ...], words: int, min_words: int) -> Index:
    """Return the index of all evaluation sets. It is cached, so each process reads them once.

    Args:
        sets: (name, path) of each evaluation set.
        words: length of the sequences that are searched for.
        min_words: minimum length of a shorter text that is searched for as a whole.
    """
    rules = DecontaminateConfig(words=words, min_words=min_words)
    index = build_index({name: texts(path) for name, path in sets}, rules)
    for name, count in index.too_short.items():
        if count:
            logger.info(
                "evaluation set %s: %d texts have fewer than %d words and are not searched for",
                name,
                count,
                min_words,
            )
    return index


def build_index(sets: dict[str, Iterable[str]], rules: DecontaminateConfig) -> Index:
    """Return an index of the word sequences in the texts of evaluation sets.

    A sequence that several sets contain is assigned to the first of them in alphabetical order.

    Args:
        sets: the texts of each evaluation set, by the set's name.
    """
    names = sorted(sets)
    parts: dict[int, list[tuple[NDArray[np.uint64], int]]] = defaultdict(list)
    too_short = dict.fromkeys(names, 0)
    for owner, name in enumerate(names):
        for text in dict.fromkeys(sets[name]):
            numbers = word_hashes([word.casefold() for word in WORD.findall(text)])
            if len(numbers) < rules.min_words:
                too_short[name] += 1
            else:
                length = min(len(numbers), rules.words)
                parts[length].append((ngram_hashes(numbers, length), owner))
    hashes: dict[int, NDArray[np.uint64]] = {}
    owners: dict[int, NDArray[np.int64]] = {}
    for length, pieces in sorted(parts.items()):
        all_hashes = np.concatenate([piece for piece, _ in pieces])
        all_owners = np.concatenate([np.full(len(piece), owner) for piece, owner in pieces])
        hashes[length], first = np.unique(all_hashes, return_index=True)
        owners[length] = all_owners[first]
    return Index(names, hashes, owners, too_short)


def _cut_overlaps(text: str, index: Index) -> tuple[str, list[str]]:
    """Cut each paragraph that contains part of a sequence of words from an evaluation set.

    Returns:
        The rest of the text, and the paragraphs that were cut.
    """
    spans = [span for found in index.overlaps(text).values() for span in found]
    kept: list[str] = []
    cut: list[str] = []
    start = 0
    for paragraph in text.split("\n\n"):
        end = start + len(paragraph)
        if any(first < end and start < last for first, last in spans):
            cut.append(paragraph)
        else:
            kept.append(paragraph)
        start = end + 2
    return "\n\n".join(kept).strip(), cut
