"""How much of each source goes into the corpus, by written standard and period. It follows split, so that
what it repeats is no duplicate, and neither weights nor targets move a document from one side to the other.

A document's place in the order in which a rule is filled is a hash of (seed, source, id). It does not depend
on other documents, on their order, or on who reads them, and a smaller weight or target takes a subset of
what a larger one takes.

A weight needs nothing but the document. A token target needs all of them: `collect` counts tokens by place in
that order, by the corpus' own tokenizer, not by an estimate (it is faster than the stages before this one),
and `decide` finds how far down the order the target reaches. So a target needs a tokenizer that is there: one
trained here would depend on what it is to count.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import CorpusConfig, MixtureRule
from data_prep.document import Document, Report
from data_prep.stages.protocol import CorpusStage
from data_prep.stages.tokenise import Tokenise, TokeniseSettings
from data_prep.tokens.tokeniser import Tokeniser
from data_prep.tokens.tokenizer_files import place_files

BINS = 2**16  # a target is met to 1/65,536 of what the rule fits, or one document, whichever is more
BATCH = 256


@dataclass(kw_only=True)
class NoRules:
    """The settings of a corpus in which no source has rules."""


@dataclass(kw_only=True)
class MixtureSettings(NoRules):
    """The rules of each source that has some."""

    rules: dict[str, list[MixtureRule]]
    seed: int


@dataclass(kw_only=True)
class TargetSettings(MixtureSettings):
    """Rules of which one has a token target, and what tokens depend on."""

    tokens: TokeniseSettings


class Mixture(CorpusStage):
    """Leave out or repeat documents as the rules of their source say."""

    name = "mixture"
    version = 1

    def settings(self, config: CorpusConfig) -> NoRules:
        rules = {name: source.mixture for name, source in config.sources.items() if source.mixture}
        if not rules:
            return NoRules()
        if not _has_targets(config):
            return MixtureSettings(rules=rules, seed=config.split.seed)
        return TargetSettings(rules=rules, seed=config.split.seed, tokens=Tokenise().settings(config))

    def collect(self, documents: Iterator[Document], config: CorpusConfig) -> pa.Table:
        """Training tokens by rule ("source/number") and bin of the order, of rules with a target."""
        tokens = Counter[tuple[str, int]]()
        if _has_targets(config):
            with TemporaryDirectory() as folder:
                place_files(config, [], Path(folder) / "tokenizer")
                tokeniser = Tokeniser(config, Path(folder) / "tokenizer")
                counted = (document for document in documents if _is_counted(document, config))
                while batch := list(islice(counted, BATCH)):
                    for document, rows in tokeniser.rows(batch, Report()):
                        rule, key = _rule(document, config)
                        assert rule is not None
                        order = _order(document, config.split.seed)
                        tokens[key, int(order * BINS)] += _copies(document, rule, order) * sum(
                            len(row.input_ids) for row in rows
                        )
        found = sorted((key, place, number) for (key, place), number in tokens.items())
        return pa.table(
            {
                "rule": pa.array([key for key, _, _ in found], pa.string()),
                "bin": pa.array([place for _, place, _ in found], pa.int32()),
                "tokens": pa.array([number for _, _, number in found], pa.int64()),
            }
        )

    def decide(self, collected: list[Path], config: CorpusConfig) -> pa.Table:
        """For each rule with a target that there is enough for, the first bin that is left out."""
        tokens = Counter[tuple[str, int]]()
        for path in collected:
            for row in pq.read_table(path).to_pylist():
                tokens[row["rule"], row["bin"]] += row["tokens"]
        taken, ends = Counter[str](), dict[str, int]()
        for (key, place), number in sorted(tokens.items()):
            source, _, rule = key.rpartition("/")
            target = config.sources[source].mixture[int(rule)].max_tokens
            assert target is not None
            taken[key] += number
            if taken[key] > target:
                ends.setdefault(key, place)
        return pa.table(
            {"rule": pa.array(list(ends), pa.string()), "end": pa.array(list(ends.values()), pa.int32())}
        )

    def run(
        self, documents: Iterator[Document], config: CorpusConfig, report: Report, decided: pa.Table
    ) -> Iterator[Document]:
        """The documents of the mixture; those that are repeated with "@2", "@3" … behind their id."""
        ends = dict(zip(decided["rule"].to_pylist(), decided["end"].to_pylist(), strict=True))
        for document in documents:
            rule, key = _rule(document, config)
            if rule is None:
                if config.sources[document.source].mixture:
                    report.drop(
                        document, "mixture_no_rule", f"{document.language}, {document.date[:4] or 'no date'}"
                    )
                else:
                    report.counts[document.split] += 1
                    yield document
                continue
            order = _order(document, config.split.seed)
            copies = _copies(document, rule, order)
            if not copies:
                report.drop(document, "mixture_weight", f"of {rule.weight:g}")
            elif key in ends and int(order * BINS) >= ends[key]:
                report.drop(document, "mixture_max_tokens", f"{rule.max_tokens} are there without it")
            else:
                report.counts[document.split] += copies
                report.counts["repeated"] += copies - 1
                yield document
                for number in range(2, copies + 1):
                    yield replace(document, id=f"{document.id}@{number}")


def _has_targets(config: CorpusConfig) -> bool:
    return any(rule.max_tokens is not None for source in config.sources.values() for rule in source.mixture)


def _is_counted(document: Document, config: CorpusConfig) -> bool:
    rule, _ = _rule(document, config)
    return rule is not None and rule.max_tokens is not None and document.split == "train"


def _rule(document: Document, config: CorpusConfig) -> tuple[MixtureRule | None, str]:
    """The first rule of its source that fits, and what it is called."""
    year = document.date[:4]
    for number, rule in enumerate(config.sources[document.source].mixture):
        is_in_years = not rule.years or (year.isdigit() and rule.years[0] <= int(year) <= rule.years[1])
        if is_in_years and (not rule.languages or document.language in rule.languages):
            return rule, f"{document.source}/{number}"
    return None, ""


def _order(document: Document, seed: int) -> float:
    """From 0 up to, not including, 1."""
    digest = hashlib.blake2b(f"{seed}:{document.source}:{document.id}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def _copies(document: Document, rule: MixtureRule, order: float) -> int:
    """How often it is used. Held-out documents are not repeated."""
    whole, part = divmod(rule.weight, 1)
    copies = int(whole) + (order < part)
    return min(copies, 1) if document.split == "validation" else copies
