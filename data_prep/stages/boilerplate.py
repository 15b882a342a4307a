"""Removal of boilerplate: the menus, footers and cookie notices around the pages of a site.

A site is the host of a document's URL, or a whole source if the setting `sites` names it. Other
documents without a host are not changed. A line is a candidate if nearly all documents of the site
contain it. Only candidates at the beginning and end of a document are cut.

Some repeated lines are not boilerplate. For example, a public body's answer to a complaint often
ends with the result, and many answers have the same result ("Vedtaket stadfestes.", "Brudd på
loven"). Losing such a line is worse than keeping a line of a footer. Only links, addresses and
notices are certainly boilerplate. Any other candidate is cut only if such a line stands between it
and the body of the document. The close and signature of a letter are kept.

Only sources of the readers in the setting `readers` are searched, because laws, minutes and
parallel letters have no boilerplate. The stage's files list every line that was cut, with a count
and an example.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report
from data_prep.stages.protocol import CorpusStage

# Approximate number of lines, of all shards, that are counted together; it limits memory.
LINES_AT_ONCE = 1_000_000
WHOLE_SITE = 0  # used as a line's hash; its count is the number of documents of the site

# Signs of a sentence, with or without a full stop: passives, common finite verbs, words that decide
# a case.
_SENTENCE_END = re.compile(r"[.!?…][\s)\]»”’\"'*_]*$")
_VERB = re.compile(
    r"\b(er|var|ble|blir|blei|vert|vart|har|hadde|skal|kan|må|vil|får|fikk|fekk|gir|gav|tas|takast|gis|gjevast"
    r"|ikke|ikkje|medhold|medhald|(?:stadfest|opphev|avvis|forkast|innvilg|avslå|omgjor|omgjer)\w*"
    r"|[^\W\d_]{3,}(?:es|ast))\b"
)
_VERDICT = re.compile(
    r"\W*(konklusjon|resultat|utfall|vedtak|slutning|avgjørelse|avgjerd|dom|kjennelse|orskurd)\w*\s*:"
)
# Words that decide a case without a verb. Words that menus have too are left out: "Innsyn",
# "Vedtak", "Søknader".
_DECIDES = re.compile(
    r"\b(avslag|avslått|avslege|avvist|forkast\w*|hevet|heva|ugyldig\w*|gyldig|henlagt|lagt bort"
    r"|brudd|brot|diskriminering"
    r"|frifunnet|frifunne\w*|frifinn\w*|dømt|fengsel|bot|godkjent|godkjend|pålegg"
    r"|overtredelsesgebyr|tvangsmulkt|krav|kravet|kritikk|dissens"
    r"|enstemmig|samrøystes|ikraft\w*|iverksett\w*)\b"
)
_HEADING = re.compile(r"#+\s|§|(?:kapittel|kap\.|del|vedlegg)\s*[\divx]|\d+(?:\.\d+)*[.)]?\s+\S")
_CLOSE = re.compile(
    r"\W*(med\s+)?((vennlig|venleg|beste|hjertelig|hjarteleg)\s+)?(hilsen|helsing)\b|\W*mvh\b"
)
# Boilerplate: a row of links or buttons, or a copyright notice (_LINKS); and the topics of its
# headings and sentences (_ABOUT_FRAME).
_LINKS = re.compile(r"(?:\S\s+[|·•›>]\s+\S.*){2}|(?:\[[^\]]+\]\s*){2}|©")
_ABOUT_FRAME = re.compile(
    r"informasjonskaps|cookie|personvern|personopplysning|opphavsrett|copyright|tilgjenge\w*erklæring"
    r"|javascript|nettleser|nettsted|nettside|denne sid[ae]|nyhetsbrev|nyheitsbrev|kontakt oss|telefon"
    r"|sentralbord|åpningstid|opningstid|e-post|@"
)
# Other boilerplate: buttons (_BUTTONS); addresses, social networks, and questions such as "Fant du
# det du lette etter?" (_ADDRESS).
_BUTTONS = re.compile(
    r"(?:meny|hovudmeny|hovedmeny|søk|hjem|heim|lukk|forsid[ea]|språk|english|logg (?:inn|ut)"
    r"|skriv ut|skriv ut sid[ea]n?|godta alle|godta|bare nødvendige|berre nødvendige|avvis alle"
    r"|sosiale medi[ea]r?|snarvegar|snarveier|nettstedskart|tilgjenge|tilgjengelighet"
    r"|universell utforming|om (?:nav|oss|kommunen|nettstedet)|presse|jobb (?:i nav|hos oss)"
    r"|ledige stillinga?r|ledige stillinger|tjenester|tenester|aktuelt|nyheter|nyhende"
    r"|min side|mine sider|(?:til|tilbake til|gå til) (?:toppen|forsid[ea]n?)"
    r"|(?:hopp|gå) til .*innhald(?:et)?|(?:hopp|gå) til .*innhold(?:et)?)"
    r"|(?:du er her|følg oss|sist oppdatert|sist endra|sist endret|publisert av)\b.*"
)
_ADDRESS = re.compile(
    r"\b(?:postboks \d+|postadresse|besøksadresse|org(?:anisasjons)?\.? ?(?:nr|nummer)\b"
    r"|facebook|instagram|linkedin|youtube)"
    r"|\bhttps?://|\bwww\.|fant du (?:det )?du|(?:var|er) \w+ (?:sid\w+ )?nyttig\?"
)
_PUBLIC_BODY = re.compile(
    r"[\w .–-]{0,60}(?:kommune|herad|departement(?:et)?|direktorat(?:et)?|tilsyn(?:et)?|etaten|verket"
    r"|stat(?:s)?forvalt\w+|nav)"
    r"(?:(?: i)?(?: og)? [\w-]+){0,4}"
)
_RULE = re.compile(r"_(?:\s?_){9,}$")  # underscores; a row of dashes may underline a heading

COUNTS = pa.schema([("site", pa.string()), ("line", pa.int64()), ("documents", pa.int64())])


@dataclass(kw_only=True)
class BoilerplateSettings:
    """The settings of the stage, with the reader of each source."""

    readers: list[str]
    sites: list[str]
    min_documents: int
    min_share: float
    max_cut: float
    readers_of_sources: dict[str, str]


class Boilerplate(CorpusStage):
    """Cut the repeated lines of a site from the beginning and end of its documents."""

    name = "boilerplate"
    version = 2

    def settings(self, config: CorpusConfig) -> BoilerplateSettings:
        rules = config.boilerplate
        return BoilerplateSettings(
            readers=sorted(rules.readers),
            sites=sorted(rules.sites),
            min_documents=rules.min_documents,
            min_share=rules.min_share,
            max_cut=rules.max_cut,
            readers_of_sources={name: source.reader for name, source in config.sources.items()},
        )

    def collect(self, documents: Iterator[Document], config: CorpusConfig) -> pa.Table:
        """Count, for each line of each site, the documents of one shard that contain the line.

        Copies of a document are counted once.
        """
        counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
        seen: set[int] = set()
        for document in documents:
            site = site_of(document, config)
            if site is None:
                continue
            document_hash = _hash(f"{site}\n{document.text}")
            if document_hash in seen:
                continue
            seen.add(document_hash)
            keys = {_key(line) for line in document.text.split("\n")} - {""}
            counts[site].update({_hash(key) for key in keys})
            counts[site][WHOLE_SITE] += 1
        tables = [COUNTS.empty_table()]
        for site, lines_of_site in sorted(counts.items()):
            lines = np.fromiter(lines_of_site.keys(), np.int64)
            numbers = np.fromiter(lines_of_site.values(), np.int64)
            tables.append(pa.table([pa.repeat(site, len(lines)), lines, numbers], schema=COUNTS))
        return pa.concat_tables(tables).sort_by([("line", "ascending"), ("site", "ascending")])

    def decide(self, collected: list[Path], config: CorpusConfig) -> pa.Table:
        """Return each site's repeated lines, and for each line the number of documents with it."""
        rules = config.boilerplate
        sites = _sum_counts([_read_range(path, WHOLE_SITE, WHOLE_SITE) for path in collected])
        needed = {
            row["site"]: max(rules.min_documents, rules.min_share * row["documents"])
            for row in sites.to_pylist()
        }
        kept = [COUNTS.empty_table()]
        # The range of hashes is divided into parts, so that the lines of the corpus are not all in
        # memory at once.
        parts = sum(pq.read_metadata(path).num_rows for path in collected) // LINES_AT_ONCE + 1
        bounds = [-(2**63) + 2**64 * part // parts for part in range(parts + 1)]
        for first, end in pairwise(bounds):
            total = _sum_counts([_read_range(path, first, end - 1) for path in collected])
            frequent = total.filter(pc.greater_equal(total["documents"], rules.min_documents)).to_pylist()
            repeated = [
                row
                for row in frequent
                if row["line"] != WHOLE_SITE and row["documents"] >= needed[row["site"]]
            ]
            kept.append(pa.Table.from_pylist(repeated, schema=COUNTS))
        return pa.concat_tables(kept).sort_by([("site", "ascending"), ("line", "ascending")])

    def run(
        self, documents: Iterator[Document], config: CorpusConfig, report: Report, decided: pa.Table
    ) -> Iterator[Document]:
        repeated_lines = _lookup_by_site(decided)
        min_share = 1 - config.boilerplate.max_cut
        for document in documents:
            site = site_of(document, config)
            frame = find_frame(document.text, repeated_lines(site) if site else set())
            if frame.lines and _count_letters(frame.body) < min_share * _count_letters(document.text):
                report.counts["left_mostly_repeated"] += 1
            elif frame.lines:
                report.counts["documents_cut"] += 1
                report.counts["lines_cut"] += len(frame.lines)
                characters = len(document.text) - len(frame.body)
                report.counts["characters_cut"] += characters
                report.cut(document, "frame", frame.lines, characters, f"of {site}")
                document.text = frame.body
            yield document


def _read_range(path: Path, first: int, last: int) -> pa.Table:
    """Return one shard's counts of the lines whose hashes are from `first` to `last`.

    The file is sorted by hash, so only the row groups that overlap with the range are read.
    """
    file = pq.ParquetFile(path)
    column = COUNTS.get_field_index("line")
    groups = []
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        if not group.num_rows:
            continue
        statistics = group.column(column).statistics
        if statistics.min <= last and first <= statistics.max:
            groups.append(number)
    table = file.read_row_groups(groups, COUNTS.names, use_threads=False)
    return table.filter((pc.field("line") >= first) & (pc.field("line") <= last))


def _sum_counts(counts: list[pa.Table]) -> pa.Table:
    """Add up the counts of all shards; return one row for each line of each site."""
    every = pa.concat_tables([COUNTS.empty_table(), *counts])
    return every.group_by(["site", "line"]).aggregate([("documents", "sum")]).rename_columns(COUNTS.names)


def _lookup_by_site(decided: pa.Table) -> Callable[[str], set[int]]:
    """Return a function that takes a site and returns the hashes of its repeated lines.

    The hashes of a site are converted to Python integers when they are first needed.
    """
    sites = decided.group_by("site", use_threads=False).aggregate([([], "count_all")])
    names = sites["site"].to_pylist()
    counts = sites["count_all"].to_pylist()
    spans = {
        name: (end - count, count) for name, count, end in zip(names, counts, accumulate(counts), strict=True)
    }

    @cache
    def lines(site: str) -> set[int]:
        return set(decided["line"].slice(*spans[site]).to_pylist()) if site in spans else set()

    return lines


@dataclass
class Frame:
    """A document's text without boilerplate (`body`), and the lines of boilerplate."""

    body: str = ""
    lines: list[str] = field(default_factory=list)


def find_frame(text: str, repeated: set[int]) -> Frame:
    """Split `text` into its body and the lines of boilerplate before and after the body.

    Args:
        repeated: hashes of the lines that nearly all documents of the site contain.
    """
    if not repeated:
        return Frame(text)
    lines = text.split("\n")
    head = _frame_length(lines, repeated, is_foot=False)
    foot = _frame_length(lines[::-1], repeated, is_foot=True)
    if head + foot >= len(lines):
        return Frame("", [line for line in lines if line.strip()])
    cut = lines[:head] + lines[len(lines) - foot :]
    if not cut:
        return Frame(text)
    body = "\n".join(lines[head : len(lines) - foot]).strip("\n")
    return Frame(body, [line for line in cut if line.strip()])


def site_of(document: Document, config: CorpusConfig) -> str | None:
    """Return the name of the site to which a document belongs, or None if there is no site.

    The name consists of the source's name and the host of the document's URL. If the whole source
    is one site, it is the source's name only.
    """
    if document.turns or config.sources[document.source].reader not in config.boilerplate.readers:
        return None
    try:
        host = urlsplit(document.url).hostname if "://" in document.url else None
    except ValueError:  # brackets that are not an IPv6 address
        host = None
    if host:
        return f"{document.source} {host.removeprefix('www.')}"
    return document.source if document.source in config.boilerplate.sites else None


def _frame_length(lines: list[str], repeated: set[int], is_foot: bool) -> int:
    """Return how many of the first lines are boilerplate.

    The lines are read in order, until one that is not repeated, or that closes a letter. All lines
    up to the last sign of boilerplate are boilerplate. There are three signs:

    - a row of links, but not after a heading or a sentence on another topic, because the lines from
      there on may be the body;
    - at the foot of a document, a ruled line, even after such a heading or sentence, but not a line
      for a signature;
    - the name of a public body directly after another sign.

    Args:
        lines: the lines of the document, from the end to the beginning if `is_foot`.
        repeated: hashes of the site's repeated lines.
        is_foot: True to search the end of the document.
    """
    sure = 0
    reached_sentence = is_beside_sure = False
    # Kinds of the lines after the last one that surely is boilerplate.
    kinds: set[Kind] = set()
    for number, line in enumerate(lines, start=1):
        key = _key(line)
        if not key:
            is_beside_sure = False
            continue
        if _hash(key) not in repeated:
            break
        kind = _classify(key)
        is_ruled_off = kind is Kind.RULE and is_foot and kinds != {Kind.OTHER}
        kinds.add(kind)
        if kind is Kind.CLOSE:
            return sure
        if is_ruled_off:
            reached_sentence = False
        elif reached_sentence:
            continue
        elif kind is Kind.SENTENCE:
            reached_sentence = True
            continue
        is_name_beside_sure = is_beside_sure and _PUBLIC_BODY.fullmatch(key) is not None
        is_beside_sure = is_ruled_off or kind is Kind.LINKS or is_name_beside_sure
        if is_beside_sure:
            sure = number
            kinds.clear()
    return sure


class Kind(StrEnum):
    """The kind of a line that nearly all documents of a site contain."""

    CLOSE = "the close of a letter"
    RULE = "a ruled line"
    LINKS = "a row of links or buttons, or a notice that only boilerplate has"
    NOTICE = "a sentence on a topic of boilerplate"
    SENTENCE = "another sentence, or a heading"
    OTHER = "not a sentence"


def _classify(key: str) -> Kind:
    if _CLOSE.match(key):
        return Kind.CLOSE
    if _RULE.match(key):
        return Kind.RULE
    is_table_row = key.startswith("|")
    if _LINKS.search(key) and not is_table_row:
        return Kind.LINKS
    if _BUTTONS.fullmatch(key) or (_ADDRESS.search(key) and not _DECIDES.search(key)):
        return Kind.LINKS
    is_about_frame = _ABOUT_FRAME.search(key) is not None
    if _HEADING.match(key) or _DECIDES.search(key):
        return Kind.SENTENCE
    if _SENTENCE_END.search(key) or _VERB.search(key) or _VERDICT.match(key):
        return Kind.NOTICE if is_about_frame else Kind.SENTENCE
    return Kind.LINKS if is_about_frame else Kind.OTHER


def _count_letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def _key(line: str) -> str:
    """Return a line in lower case with single spaces, the form in which lines are compared."""
    return " ".join(line.casefold().split())


def _hash(text: str) -> int:
    """Return a signed hash of 64 bits; never 0, which has a meaning of its own (WHOLE_SITE)."""
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1
