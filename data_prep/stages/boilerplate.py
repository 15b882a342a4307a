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
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

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
    """In how many documents of one shard each line of each site stands. Copies of a document are counted once."""
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
        order = np.argsort(line)
        tables.append(pa.table([pa.repeat(site, len(order)), line[order], number[order]], schema=COUNTS))
    return pa.concat_tables(tables)


def decide(collected: Iterable[Path], config: CorpusConfig) -> pa.Table:
    """The repeated lines of each site, and in how many documents each stands."""
    rules, paths = config.boilerplate, list(collected)
    sites = _added_up([_counts(path, lambda line: line == WHOLE_SITE) for path in paths])
    needed = {row["site"]: max(rules.min_documents, rules.min_share * row["documents"]) for row in sites.to_pylist()}
    rows = []
    parts = sum(pq.read_metadata(path).num_rows for path in paths) // LINES_AT_ONCE + 1
    for part in range(parts):  # or all lines of the corpus would have to be in memory
        total = _added_up([_counts(path, lambda line, part=part: line % parts == part) for path in paths])  # type: ignore[misc]
        frequent = total.filter(pc.greater_equal(total["documents"], rules.min_documents)).to_pylist()
        rows += [row for row in frequent if row["line"] != WHOLE_SITE and row["documents"] >= needed[row["site"]]]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: (row["site"], row["line"])), schema=COUNTS)


def _counts(path: Path, wanted: Callable[[NDArray[np.int64]], NDArray[np.bool_]]) -> pa.Table:
    """Of one shard, those of the lines that are wanted."""
    table = pq.ParquetFile(path).read(COUNTS.names, use_threads=False)
    return table.filter(pa.array(wanted(table["line"].to_numpy())))


def _added_up(counts: list[pa.Table]) -> pa.Table:
    """Of all shards, each line of each site once."""
    every = pa.concat_tables([COUNTS.empty_table(), *counts])
    return every.group_by(["site", "line"]).aggregate([("documents", "sum")]).rename_columns(COUNTS.names)


def run(documents: Iterator[Document], config: CorpusConfig, report: Report, decided: pa.Table) -> Iterator[Document]:
    repeated: dict[str, set[int]] = {}
    for row in decided.to_pylist():
        repeated.setdefault(row["site"], set()).add(row["line"])
    for document in documents:
        known = repeated.get(site_of(document), set()) if _concerned(document, config) else set()
        text = cut(document.text, known) if known else document.text
        if len(text) < (1 - config.boilerplate.max_cut) * len(document.text):
            report.counts["left_mostly_repeated"] += 1
        elif text != document.text:
            report.counts["documents_cut"] += 1
            report.counts["lines_cut"] += _lines(document.text) - _lines(text)
            report.counts["characters_cut"] += len(document.text) - len(text)
            document.text = text
        yield document


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
