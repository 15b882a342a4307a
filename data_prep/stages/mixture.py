"""Selection and repetition of documents by the mixture rules of their source.

Each rule applies to some written standards and years of a source. It has a weight, and may have a
token target (`max_tokens`).

The stage follows deduplication and the split. So repeated documents are not removed as duplicates,
and weights and targets do not move a document between training and validation.

Each rule takes its documents in the order of a hash of (seed, source, id). This order depends
neither on other documents nor on the process that reads them. With a smaller weight or target, a
rule takes a subset of the documents that it takes with a larger one.

A weight is applied to each document by itself, but a token target depends on all documents.
`collect` counts the tokens at each position of the order, with the corpus' own tokenizer; encoding
is faster than the earlier stages, so no estimate is needed. `decide` finds the position at which
the target is reached. A target needs an existing tokenizer, because one trained on the corpus would
itself depend on the selection.
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

# The range of positions (`_order`) is divided into bins. A target is exact to one bin (1/65,536 of
# the rule's documents) or to one document, whichever is more.
BINS = 2**16
BATCH = 256


@dataclass(kw_only=True)
class NoRules:
    """The settings of the stage if no source has rules."""


@dataclass(kw_only=True)
class MixtureSettings(NoRules):
    """The settings of the stage if a source has rules: the rules of each such source."""

    rules: dict[str, list[MixtureRule]]
    seed: int


@dataclass(kw_only=True)
class TargetSettings(MixtureSettings):
    """The settings of the stage if a rule has a token target; they include those of tokenisation."""

    tokens: TokeniseSettings


class Mixture(CorpusStage):
    """Leave out or repeat documents by the rules of their source."""

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
        """Count the training tokens of one shard, for each rule with a token target.

        The order in which a rule takes documents is divided into BINS bins of equal width. The
        tokens are counted in each bin.
        """
        tokens = Counter[tuple[str, int]]()
        if _has_targets(config):
            with TemporaryDirectory() as folder:
                place_files(config, [], Path(folder) / "tokenizer")
                tokeniser = Tokeniser(config, Path(folder) / "tokenizer")
                counted = (document for document in documents if _is_counted(document, config))
                while batch := list(islice(counted, BATCH)):
                    for document, rows in tokeniser.rows(batch, Report()):
                        rule, key = _find_rule(document, config)
                        assert rule is not None
                        order = _order(document, config.split.seed)
                        num_tokens = sum(len(row.input_ids) for row in rows)
                        tokens[key, int(order * BINS)] += _num_copies(document, rule, order) * num_tokens
        found = sorted((key, bin_, number) for (key, bin_), number in tokens.items())
        return pa.table(
            {
                "rule": pa.array([key for key, _, _ in found], pa.string()),
                "bin": pa.array([bin_ for _, bin_, _ in found], pa.int32()),
                "tokens": pa.array([number for _, _, number in found], pa.int64()),
            }
        )

    def decide(self, collected: list[Path], config: CorpusConfig) -> pa.Table:
        """Return the point at which each rule stops, if it would exceed its token target.

        The point is the number of a bin (see `collect`). The documents in this bin and later ones
        are left out.
        """
        tokens = Counter[tuple[str, int]]()
        for path in collected:
            for row in pq.read_table(path).to_pylist():
                tokens[row["rule"], row["bin"]] += row["tokens"]
        taken = Counter[str]()
        ends: dict[str, int] = {}
        for (key, bin_), number in sorted(tokens.items()):
            source, _, rule = key.rpartition("/")
            target = config.sources[source].mixture[int(rule)].max_tokens
            assert target is not None
            taken[key] += number
            if taken[key] > target:
                ends.setdefault(key, bin_)
        return pa.table(
            {"rule": pa.array(list(ends), pa.string()), "end": pa.array(list(ends.values()), pa.int32())}
        )

    def run(
        self, documents: Iterator[Document], config: CorpusConfig, report: Report, decided: pa.Table
    ) -> Iterator[Document]:
        """Yield the documents that the rules take, as often as their weights require.

        The ids of the second and later copies end with "@2", "@3" and so on.
        """
        ends = dict(zip(decided["rule"].to_pylist(), decided["end"].to_pylist(), strict=True))
        for document in documents:
            if not config.sources[document.source].mixture:
                report.counts[document.split] += 1
                yield document
                continue
            rule, key = _find_rule(document, config)
            if rule is None:
                year = document.date[:4] or "no date"
                report.drop(document, "mixture_no_rule", f"{document.language}, {year}")
                continue
            order = _order(document, config.split.seed)
            copies = _num_copies(document, rule, order)
            if not copies:
                report.drop(document, "mixture_weight", f"of {rule.weight:g}")
            elif key in ends and int(order * BINS) >= ends[key]:
                report.drop(document, "mixture_max_tokens", f"max_tokens {rule.max_tokens} is reached")
            else:
                report.counts[document.split] += copies
                report.counts["repeated"] += copies - 1
                yield document
                for number in range(2, copies + 1):
                    yield replace(document, id=f"{document.id}@{number}")


def _has_targets(config: CorpusConfig) -> bool:
    return any(rule.max_tokens is not None for source in config.sources.values() for rule in source.mixture)


def _is_counted(document: Document, config: CorpusConfig) -> bool:
    """Return whether a document's tokens count towards a token target."""
    rule, _ = _find_rule(document, config)
    return rule is not None and rule.max_tokens is not None and document.split == "train"


def _find_rule(document: Document, config: CorpusConfig) -> tuple[MixtureRule | None, str]:
    """Return the first rule of a document's source that applies to it, and the rule's name.

    The name is `<source>/<number>`. Return (None, "") if no rule applies.
    """
    year = document.date[:4]
    for number, rule in enumerate(config.sources[document.source].mixture):
        is_in_years = not rule.years or (year.isdigit() and rule.years[0] <= int(year) <= rule.years[1])
        if is_in_years and (not rule.languages or document.language in rule.languages):
            return rule, f"{document.source}/{number}"
    return None, ""


def _order(document: Document, seed: int) -> float:
    """Return a number in [0, 1). A rule takes its documents in ascending order of this number."""
    digest = hashlib.blake2b(f"{seed}:{document.source}:{document.id}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def _num_copies(document: Document, rule: MixtureRule, order: float) -> int:
    """Return how many copies of a document a rule takes; in the validation split, at most 1.

    Args:
        order: the document's number from `_order`. If the rule's weight is not an integer, this
            number decides whether there is one copy more.
    """
    whole, fraction = divmod(rule.weight, 1)
    copies = int(whole) + (order < fraction)
    return min(copies, 1) if document.split == "validation" else copies
