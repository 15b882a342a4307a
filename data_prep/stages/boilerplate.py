"""What a site repeats on its pages (menus, footers, notices on cookies) is cut from the head and the foot of its documents.

A site is the host of a document's URL, or its source. A line counts as repeated if enough of the site's documents hold it. Only
runs of such lines at a document's ends are cut, and headings of a word or two (`§ 1.`) never are, so that what documents share
inside stays; a document that consists of little else is a copy, and is left to the stage that removes those. Texts whose form is
their author's alone (laws, minutes, letters in parallel) have no such frame: only sources of the named readers are looked at.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report

VERSION = 1
SHORTEST = 12  # letters and digits of a line that counts by itself; a shorter one goes with longer ones behind it
LINES_AT_ONCE = 1_000_000  # of all shards that are counted together
WHOLE_SITE = 0  # stands for a line in the counts: the number of the site's documents

COUNTS = pa.schema([("site", pa.string()), ("line", pa.int64()), ("documents", pa.int64())])


def settings(config: CorpusConfig) -> dict[str, Any]:
    rules = config.boilerplate
    return {
        "readers": sorted(rules.readers),
        "min_documents": rules.min_documents,
        "min_share": rules.min_share,
        "max_cut": rules.max_cut,
        "readers_of_sources": {name: source.reader for name, source in config.sources.items()},
    }


def collect(documents: Iterator[Document], config: CorpusConfig) -> pa.Table:
    """In how many documents of one shard each line of each site stands, by line. Copies of a document are counted once."""
    counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
    seen: set[int] = set()
    for document in documents:
        if not _concerned(document, config):
            continue
        site = site_of(document)
        lines = {_hash(key) for line in document.text.casefold().split("\n") if (key := " ".join(line.split()))}
        if (whole := _hash(f"{site}\n{document.text}")) not in seen:
            seen.add(whole)
            counts[site].update(lines)
            counts[site][WHOLE_SITE] += 1
    tables = [COUNTS.empty_table()]
    for site, lines_of_site in sorted(counts.items()):
        line, number = (np.fromiter(part, np.int64) for part in (lines_of_site.keys(), lines_of_site.values()))
        tables.append(pa.table([pa.repeat(site, len(line)), line, number], schema=COUNTS))
    return pa.concat_tables(tables).sort_by([("line", "ascending"), ("site", "ascending")])


def decide(collected: Iterable[Path], config: CorpusConfig) -> pa.Table:
    """The repeated lines of each site, and in how many documents each stands."""
    rules, paths = config.boilerplate, list(collected)
    sites = _added_up([_between(path, WHOLE_SITE, WHOLE_SITE) for path in paths])
    needed = {row["site"]: max(rules.min_documents, rules.min_share * row["documents"]) for row in sites.to_pylist()}
    kept = [COUNTS.empty_table()]
    parts = sum(pq.read_metadata(path).num_rows for path in paths) // LINES_AT_ONCE + 1
    bounds = [-(2**63) + 2**64 * part // parts for part in range(parts + 1)]
    for first, end in pairwise(bounds):  # or all lines of the corpus would have to be in memory
        total = _added_up([_between(path, first, end - 1) for path in paths])
        frequent = total.filter(pc.greater_equal(total["documents"], rules.min_documents)).to_pylist()
        repeated = [row for row in frequent if row["line"] != WHOLE_SITE and row["documents"] >= needed[row["site"]]]
        kept.append(pa.Table.from_pylist(repeated, schema=COUNTS))
    return pa.concat_tables(kept).sort_by([("site", "ascending"), ("line", "ascending")])


def _between(path: Path, first: int, last: int) -> pa.Table:
    """Of one shard, the lines with a hash from `first` to `last`. Others are not read: they lie sorted, some to a row group."""
    file = pq.ParquetFile(path)
    place, groups = COUNTS.get_field_index("line"), []
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        if group.num_rows and group.column(place).statistics.min <= last and first <= group.column(place).statistics.max:
            groups.append(number)
    table = file.read_row_groups(groups, COUNTS.names, use_threads=False)
    return table.filter((pc.field("line") >= first) & (pc.field("line") <= last))


def _added_up(counts: list[pa.Table]) -> pa.Table:
    """Of all shards, each line of each site once."""
    every = pa.concat_tables([COUNTS.empty_table(), *counts])
    return every.group_by(["site", "line"]).aggregate([("documents", "sum")]).rename_columns(COUNTS.names)


def run(documents: Iterator[Document], config: CorpusConfig, report: Report, decided: pa.Table) -> Iterator[Document]:
    repeated = _by_site(decided)
    for document in documents:
        known = repeated(site_of(document)) if _concerned(document, config) else set()
        text = cut(document.text, known) if known else document.text
        if len(text) < (1 - config.boilerplate.max_cut) * len(document.text):
            report.counts["left_mostly_repeated"] += 1
        elif text != document.text:
            report.counts["documents_cut"] += 1
            report.counts["lines_cut"] += _lines(document.text) - _lines(text)
            report.counts["characters_cut"] += len(document.text) - len(text)
            report.cut(document, "repeated_frame", len(document.text) - len(text))
            document.text = text
        yield document


def _by_site(decided: pa.Table) -> Callable[[str], set[int]]:
    """The repeated lines of a site; of the sites of a shard alone they become Python's numbers."""
    sites = decided.group_by("site", use_threads=False).aggregate([([], "count_all")])
    names, counts = sites["site"].to_pylist(), sites["count_all"].to_pylist()
    spans = {name: (end - count, count) for name, count, end in zip(names, counts, accumulate(counts), strict=True)}

    @cache
    def lines(site: str) -> set[int]:
        return set(decided["line"].slice(*spans[site]).to_pylist()) if site in spans else set()

    return lines


def cut(text: str, repeated: set[int]) -> str:
    """`text` without the runs of repeated lines at its ends."""
    lines = text.split("\n")
    start, end = _run(lines, repeated), _run(lines[::-1], repeated)
    return "\n".join(lines[start : len(lines) - end]).strip("\n") if start + end < len(lines) else ""


def site_of(document: Document) -> str:
    """The source, and the host of the URL if there is one."""
    try:
        host = urlsplit(document.url).hostname if "://" in document.url else None
    except ValueError:  # brackets that are no IPv6 address
        host = None
    return f"{document.source} {host or ''}".strip()


def _run(lines: list[str], repeated: set[int]) -> int:
    """How many lines from the first on are repeated, up to the last that is long enough to be sure."""
    length = 0
    for number, line in enumerate(lines, start=1):
        if not (key := _key(line)):
            continue
        if _hash(key) not in repeated:
            break
        if sum(map(str.isalnum, key)) >= SHORTEST:
            length = number
    return length


def _key(line: str) -> str:
    """What lines must have in common to count as one: all but case and white space."""
    return " ".join(line.casefold().split())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big", signed=True) or 1


def _lines(text: str) -> int:
    return len(text.split("\n"))


def _concerned(document: Document, config: CorpusConfig) -> bool:
    return not document.turns and config.sources[document.source].reader in config.boilerplate.readers
