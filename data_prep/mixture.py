"""How much of each source goes into the corpus: a text stage behind split, so that what it repeats is no duplicate.

A document's place in the order in which a source is used up is a hash of (seed, source, id). It does not depend on other
documents, on their order, or on who reads them; a smaller weight or target takes a subset of what a larger one takes.

A weight needs nothing but the document. A token target needs to know all of them: `survey` counts the tokens of some of the
documents, by place in that order; surveys are added up, and `thresholds` turns the sum into what `run` needs. Tokens are
counted by the corpus' own tokenizer, not estimated: it is faster than the stages before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.config import CorpusConfig, MixtureRule, as_settings
from data_prep.document import Document, Report

VERSION = 1
BINS = 2**16  # a target is met to 1/65,536 of the source, or one document, whichever is larger

Survey = dict[str, NDArray[np.int64]]
"""Training tokens by rule ("source/number") and bin of the order; surveys of other documents are added bin by bin."""


def settings(config: CorpusConfig) -> dict[str, Any]:
    rules = {name: as_settings(source)["mixture"] for name, source in config.sources.items() if source.mixture}
    return {"rules": rules, "seed": config.split.seed} if rules else {}


def needs_survey(config: CorpusConfig) -> bool:
    """Whether any rule has a token target."""
    return any(rule.max_tokens is not None for source in config.sources.values() for rule in source.mixture)


def survey(documents: Iterator[Document], config: CorpusConfig, num_tokens: Callable[[Document], int]) -> Survey:
    """Count the training tokens of documents under rules with a target.

    Args:
        num_tokens: of one document, as the tokenise stage will make them.
    """
    counted: Survey = {}
    for document in documents:
        rule, key = _rule(document, config)
        if rule is not None and rule.max_tokens is not None and document.split != "validation":
            order = _order(document, config.split.seed)
            copies = _copies(document, rule, order)
            if copies:
                bins = counted.setdefault(key, np.zeros(BINS, np.int64))
                bins[int(order * BINS)] += copies * num_tokens(document)
    return counted


def add(surveys: Iterator[Survey]) -> Survey:
    """The survey of all documents, from those of parts, in any order."""
    total: Survey = {}
    for part in surveys:
        for key, bins in part.items():
            total[key] = total[key] + bins if key in total else bins.copy()
    return total


def thresholds(surveyed: Survey, config: CorpusConfig) -> dict[str, float]:
    """For each rule with a target, the share of the order (0 to 1) whose documents stay within it."""
    found = {}
    for key, bins in surveyed.items():
        source, _, number = key.rpartition("/")
        limit = config.sources[source].mixture[int(number)].max_tokens
        assert limit is not None
        found[key] = int(np.searchsorted(np.cumsum(bins), limit, side="right")) / BINS
    return found


def run(
    documents: Iterator[Document], config: CorpusConfig, report: Report, within: dict[str, float] | None = None
) -> Iterator[Document]:
    """The documents of the mixture, repeated ones with "@2", "@3" … behind their id.

    Args:
        within: what `thresholds` gave; needed if a rule has a token target.
    """
    assert within is not None or not needs_survey(config)
    for document in documents:
        rule, key = _rule(document, config)
        if rule is None:
            if config.sources[document.source].mixture:
                report.drop(document, "mixture_no_rule", f"{document.language}, {document.date[:4] or 'no date'}")
                continue
            yield document
            continue
        order = _order(document, config.split.seed)
        copies = _copies(document, rule, order)
        if not copies:
            report.drop(document, "mixture_weight")
        elif rule.max_tokens is not None and within is not None and order >= within.get(key, 1.0):
            report.drop(document, "mixture_max_tokens")
        else:
            report.counts["repeated"] += copies - 1
            for number in range(1, copies + 1):
                yield document if number == 1 else replace(document, id=f"{document.id}@{number}")


def _rule(document: Document, config: CorpusConfig) -> tuple[MixtureRule | None, str]:
    for number, rule in enumerate(config.sources[document.source].mixture):
        year = document.date[:4]
        in_years = not rule.years or (year.isdigit() and rule.years[0] <= int(year) <= rule.years[1])
        if in_years and (not rule.languages or document.language in rule.languages):
            return rule, f"{document.source}/{number}"
    return None, ""


def _order(document: Document, seed: int) -> float:
    """From 0 up to, not including, 1."""
    digest = hashlib.blake2b(f"{seed}:{document.source}:{document.id}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def _copies(document: Document, rule: MixtureRule, order: float) -> int:
    whole, part = divmod(rule.weight, 1)
    copies = int(whole) + (order < part)
    return min(copies, 1) if document.split == "validation" else copies
