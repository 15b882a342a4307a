"""What an evaluation set holds is kept out of the corpus: a model must not be asked what it has read.

Texts overlap where `words` words in a row are the same (13, as in GPT-3: Brown et al. 2020, appendix C),
whatever their case and signs between them. Evaluation texts shorter than that are looked for whole, if they
have `min_words`. A document that overlaps is dropped, or the paragraphs that do are cut from it, as the
setting says; reasons and counts name the evaluation set.
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
from data_prep.ngrams import WORD, ngram_hashes, word_numbers
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
    """Drop or cut what overlaps with an evaluation set."""

    name = "decontaminate"
    version = 2

    def settings(self, config: CorpusConfig) -> DecontaminateSettings:
        """Evaluation sets count by their content.

        Raises:
            NotFoundError: an evaluation set does not exist, or holds no file that can be read.
        """
        rules = config.decontaminate
        sets = {
            name: [sha256_file(path) for path in files(path)] for name, path in sorted(rules.sets.items())
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
            cut: list[str] = []
            kept = _without(document.text, index, cut) if rules.action == "cut" and not document.turns else ""
            if kept:
                report.counts[f"documents_cut_{name}"] += 1
                report.counts["paragraphs_cut"] += len(cut)
                report.cut(document, f"in_{name}", cut, len(document.text) - len(kept))
                document.text = kept
                yield document
            else:
                report.drop(
                    document,
                    f"in_{name}",
                    f"{len(found[name])} sequences of up to {rules.words} words are in {name}",
                )


@dataclass
class Index:
    """The sequences of words of all evaluation sets.

    Attributes:
        hashes: length in words -> sorted hashes of sequences of that length.
        owners: length in words -> which of `names` each of these hashes is from.
        too_short: set -> texts in it with too few words to be looked for.
    """

    names: list[str]
    hashes: dict[int, NDArray[np.uint64]]
    owners: dict[int, NDArray[np.int64]]
    too_short: dict[str, int]

    def overlaps(self, text: str) -> dict[str, list[tuple[int, int]]]:
        """Set -> spans of characters of `text` that are sequences of that set."""
        found: dict[str, list[tuple[int, int]]] = {}
        if not self.hashes:
            return found
        matches = list(WORD.finditer(text))
        numbers = word_numbers([match[0].casefold() for match in matches])
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
    """Read once in a process."""
    index = build_index(
        {name: texts(path) for name, path in sets}, DecontaminateConfig(words=words, min_words=min_words)
    )
    for name, count in index.too_short.items():
        if count:
            logger.info(
                "%s: %d of its texts have less than %d words and are not looked for", name, count, min_words
            )
    return index


def build_index(sets: dict[str, Iterable[str]], rules: DecontaminateConfig) -> Index:
    names = sorted(sets)
    parts: dict[int, list[tuple[NDArray[np.uint64], int]]] = defaultdict(list)
    too_short = dict.fromkeys(names, 0)
    for owner, name in enumerate(names):
        for text in dict.fromkeys(sets[name]):
            numbers = word_numbers([word.casefold() for word in WORD.findall(text)])
            if len(numbers) < rules.min_words:
                too_short[name] += 1
            else:
                length = min(len(numbers), rules.words)
                parts[length].append((ngram_hashes(numbers, length), owner))
    hashes, owners = {}, {}
    for length, pieces in sorted(parts.items()):
        every = np.concatenate([piece for piece, _ in pieces])
        owner_of = np.concatenate([np.full(len(piece), owner) for piece, owner in pieces])
        hashes[length], first = np.unique(
            every, return_index=True
        )  # of two sets with the same words, the first is named
        owners[length] = owner_of[first]
    return Index(names, hashes, owners, too_short)


def _without(text: str, index: Index, cut: list[str]) -> str:
    """Return `text` without the paragraphs in which an overlap lies, begins or ends; add these to `cut`."""
    spans = [span for found in index.overlaps(text).values() for span in found]
    kept, start = [], 0
    for paragraph in text.split("\n\n"):
        end = start + len(paragraph)
        if any(first < end and start < last for first, last in spans):
            cut.append(paragraph)
        else:
            kept.append(paragraph)
        start = end + 2
    return "\n\n".join(kept).strip()
