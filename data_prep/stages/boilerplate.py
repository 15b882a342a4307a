"""Cut the lines that frame the pages of a host (menus, footers, cookie notices) from the ends of documents.

A site is the host of a document's URL. Documents without one are left as they are, except those of sources
that the settings name as a site each. A line belongs to a frame if nearly all of the site's documents hold
it, and only runs of such lines at a document's ends are cut. What decides a case often stands there too, in
the same words everywhere ("Vedtaket stadfestes.", "Brudd på loven", a row of a table): losing it costs more
than keeping a line of a footer. So what does not itself look like a frame (a link, an address, a notice) is
cut only where the frame has surely begun between it and the body, and the close and signature of a letter
stay. Texts whose form is their author's alone (laws, minutes, letters in parallel) have no such frame: only
sources of the named readers are looked at. Every line that was cut is in the stage's files, with a count and
an example.
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

LINES_AT_ONCE = 1_000_000  # of all shards that are counted together
WHOLE_SITE = 0  # stands for a line in the counts: the number of the site's documents

# A sentence, with its full stop or without: passives, the commonest finite verbs, words that decide a case.
_SENTENCE_END = re.compile(r"[.!?…][\s)\]»”’\"'*_]*$")
_VERB = re.compile(
    r"\b(er|var|ble|blir|blei|vert|vart|har|hadde|skal|kan|må|vil|får|fikk|fekk|gir|gav|tas|takast|gis|gjevast"
    r"|ikke|ikkje|medhold|medhald|(?:stadfest|opphev|avvis|forkast|innvilg|avslå|omgjor|omgjer)\w*"
    r"|[^\W\d_]{3,}(?:es|ast))\b"
)
_VERDICT = re.compile(
    r"\W*(konklusjon|resultat|utfall|vedtak|slutning|avgjørelse|avgjerd|dom|kjennelse|orskurd)\w*\s*:"
)
# What decides a case without a verb. Not what menus name too: "Innsyn", "Vedtak", "Søknader".
_DECIDES = re.compile(
    r"\b(avslag|avslått|avslege|avvist|forkast\w*|hevet|heva|ugyldig\w*|gyldig|henlagt|lagt bort|brudd|brot|diskriminering"
    r"|frifunnet|frifunne\w*|frifinn\w*|dømt|fengsel|bot|godkjent|godkjend|pålegg"
    r"|overtredelsesgebyr|tvangsmulkt|krav|kravet|kritikk|dissens"
    r"|enstemmig|samrøystes|ikraft\w*|iverksett\w*)\b"
)
_HEADING = re.compile(r"#+\s|§|(?:kapittel|kap\.|del|vedlegg)\s*[\divx]|\d+(?:\.\d+)*[.)]?\s+\S")
_CLOSE = re.compile(
    r"\W*(med\s+)?((vennlig|venleg|beste|hjertelig|hjarteleg)\s+)?(hilsen|helsing)\b|\W*mvh\b"
)
# A row of links or buttons, a copyright notice; what headings and sentences of a frame are about; a ruled
# line.
_LINKS = re.compile(r"(?:\S\s+[|·•›>]\s+\S.*){2}|(?:\[[^\]]+\]\s*){2}|©")
_ABOUT_FRAME = re.compile(
    r"informasjonskaps|cookie|personvern|personopplysning|opphavsrett|copyright|tilgjenge\w*erklæring|javascript|nettleser"
    r"|nettsted|nettside|denne sid[ae]|nyhetsbrev|nyheitsbrev|kontakt oss|telefon|sentralbord|åpningstid|opningstid|e-post|@"
)
# What else only frames hold: buttons, postal addresses, networks, the question whether a page helped.
_BUTTONS = re.compile(
    r"(?:meny|hovudmeny|hovedmeny|søk|hjem|heim|lukk|forsid[ea]|språk|english|logg (?:inn|ut)|skriv ut|skriv ut sid[ea]n?"
    r"|godta alle|godta|bare nødvendige|berre nødvendige|avvis alle|sosiale medi[ea]r?|snarvegar|snarveier|nettstedskart"
    r"|tilgjenge|tilgjengelighet|universell utforming|om (?:nav|oss|kommunen|nettstedet)|presse|jobb (?:i nav|hos oss)"
    r"|ledige stillinga?r|ledige stillinger|tjenester|tenester|aktuelt|nyheter|nyhende|min side|mine sider"
    r"|(?:til|tilbake til|gå til) (?:toppen|forsid[ea]n?)|(?:hopp|gå) til .*innhald(?:et)?|(?:hopp|gå) til .*innhold(?:et)?)"
    r"|(?:du er her|følg oss|sist oppdatert|sist endra|sist endret|publisert av)\b.*"
)
_ADDRESS = re.compile(
    r"\b(?:postboks \d+|postadresse|besøksadresse|org(?:anisasjons)?\.? ?(?:nr|nummer)\b|facebook|instagram|linkedin|youtube)"
    r"|\bhttps?://|\bwww\.|fant du (?:det )?du|(?:var|er) \w+ (?:sid\w+ )?nyttig\?"
)
_BODY = re.compile(
    r"[\w .–-]{0,60}(?:kommune|herad|departement(?:et)?|direktorat(?:et)?|tilsyn(?:et)?|etaten|verket|stat(?:s)?forvalt\w+|nav)"
    r"(?:(?: i)?(?: og)? [\w-]+){0,4}"
)
_RULE = re.compile(r"_(?:\s?_){9,}$")  # of dashes, it may underline a heading

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
    """Cut the lines that are repeated on most pages of a site from the ends of its documents."""

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
        """In how many documents of one shard each line of each site stands, by line. Copies of a document are
        counted once."""
        counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
        seen: set[int] = set()
        for document in documents:
            site = site_of(document, config)
            if site is None:
                continue
            lines = {
                _hash(key) for line in document.text.casefold().split("\n") if (key := " ".join(line.split()))
            }
            if (whole := _hash(f"{site}\n{document.text}")) not in seen:
                seen.add(whole)
                counts[site].update(lines)
                counts[site][WHOLE_SITE] += 1
        tables = [COUNTS.empty_table()]
        for site, lines_of_site in sorted(counts.items()):
            line, number = (
                np.fromiter(part, np.int64) for part in (lines_of_site.keys(), lines_of_site.values())
            )
            tables.append(pa.table([pa.repeat(site, len(line)), line, number], schema=COUNTS))
        return pa.concat_tables(tables).sort_by([("line", "ascending"), ("site", "ascending")])

    def decide(self, collected: list[Path], config: CorpusConfig) -> pa.Table:
        """The repeated lines of each site, and in how many documents each stands."""
        rules = config.boilerplate
        sites = _added_up([_between(path, WHOLE_SITE, WHOLE_SITE) for path in collected])
        needed = {
            row["site"]: max(rules.min_documents, rules.min_share * row["documents"])
            for row in sites.to_pylist()
        }
        kept = [COUNTS.empty_table()]
        parts = sum(pq.read_metadata(path).num_rows for path in collected) // LINES_AT_ONCE + 1
        bounds = [-(2**63) + 2**64 * part // parts for part in range(parts + 1)]
        for first, end in pairwise(bounds):  # or all lines of the corpus would have to be in memory
            total = _added_up([_between(path, first, end - 1) for path in collected])
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
        repeated = _by_site(decided)
        for document in documents:
            site = site_of(document, config)
            frame = find_frame(document.text, repeated(site) if site else set())
            if frame.lines and _letters(frame.body) < (1 - config.boilerplate.max_cut) * _letters(
                document.text
            ):
                report.counts["left_mostly_repeated"] += 1
            elif frame.lines:
                report.counts["documents_cut"] += 1
                report.counts["lines_cut"] += len(frame.lines)
                characters = len(document.text) - len(frame.body)
                report.counts["characters_cut"] += characters
                report.cut(document, "frame", frame.lines, characters, f"of {site}")
                document.text = frame.body
            yield document


def _between(path: Path, first: int, last: int) -> pa.Table:
    """Of one shard, the lines with a hash from `first` to `last`. Others are not read: they lie sorted, some
    to a row group."""
    file = pq.ParquetFile(path)
    place, groups = COUNTS.get_field_index("line"), []
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        if (
            group.num_rows
            and group.column(place).statistics.min <= last
            and first <= group.column(place).statistics.max
        ):
            groups.append(number)
    table = file.read_row_groups(groups, COUNTS.names, use_threads=False)
    return table.filter((pc.field("line") >= first) & (pc.field("line") <= last))


def _added_up(counts: list[pa.Table]) -> pa.Table:
    """Of all shards, each line of each site once."""
    every = pa.concat_tables([COUNTS.empty_table(), *counts])
    return every.group_by(["site", "line"]).aggregate([("documents", "sum")]).rename_columns(COUNTS.names)


def _by_site(decided: pa.Table) -> Callable[[str], set[int]]:
    """The repeated lines of a site; of the sites of a shard alone they become Python's numbers."""
    sites = decided.group_by("site", use_threads=False).aggregate([([], "count_all")])
    names, counts = sites["site"].to_pylist(), sites["count_all"].to_pylist()
    spans = {
        name: (end - count, count) for name, count, end in zip(names, counts, accumulate(counts), strict=True)
    }

    @cache
    def lines(site: str) -> set[int]:
        return set(decided["line"].slice(*spans[site]).to_pylist()) if site in spans else set()

    return lines


@dataclass
class Frame:
    """A document's text without the lines of its site's frame, and those lines."""

    body: str = ""
    lines: list[str] = field(default_factory=list)


def find_frame(text: str, repeated: set[int]) -> Frame:
    """Part `text` into its body and the runs of repeated lines around it that are surely a frame."""
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
    return Frame(
        "\n".join(lines[head : len(lines) - foot]).strip("\n"), [line for line in cut if line.strip()]
    )


def site_of(document: Document, config: CorpusConfig) -> str | None:
    """Return the site of a document, `<source> <host>` or a source that is one site; None if it has none."""
    if document.turns or config.sources[document.source].reader not in config.boilerplate.readers:
        return None
    try:
        host = urlsplit(document.url).hostname if "://" in document.url else None
    except ValueError:  # brackets that are no IPv6 address
        host = None
    if host:
        return f"{document.source} {host.removeprefix('www.')}"
    return document.source if document.source in config.boilerplate.sites else None


def _frame_length(lines: list[str], repeated: set[int], is_foot: bool) -> int:
    """Return how many lines are surely of the frame, counted from a document's end inwards.

    Up to a row of links all are, but for headings and sentences that are not about what frames are about: the
    first of these may be the body's. Under a ruled line at the foot all are, unless it is there to sign on.
    Further inwards stays what is there, but for the name of the body on the line beside.
    """
    sure = 0
    reached_sentence = is_beside_sure = False
    beside: set[Kind] = set()  # kinds of the lines since the last that is surely of the frame
    for number, line in enumerate(lines, start=1):
        key = _key(line)
        if not key:
            is_beside_sure = False
            continue
        if _hash(key) not in repeated:
            break
        kind = _kind(key)
        is_ruled_off = kind is Kind.RULE and is_foot and beside != {Kind.OTHER}
        beside.add(kind)
        if kind is Kind.CLOSE:
            return sure
        if is_ruled_off:
            reached_sentence = False
        elif reached_sentence:
            continue
        elif kind is Kind.SENTENCE:
            reached_sentence = True
            continue
        is_beside_sure = (
            is_ruled_off or kind is Kind.LINKS or (is_beside_sure and _BODY.fullmatch(key) is not None)
        )
        if is_beside_sure:
            sure = number
            beside.clear()
    return sure


class Kind(StrEnum):
    """What a repeated line may be."""

    CLOSE = "the close of a letter"
    RULE = "a ruled line"
    LINKS = "a row of links or buttons, or a notice that only frames have"
    NOTICE = "a sentence about what frames are about"
    SENTENCE = "another sentence, or a heading of a body"
    OTHER = "no sentence"


def _kind(key: str) -> Kind:
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


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def _key(line: str) -> str:
    """What lines must have in common to count as one: all but case and white space."""
    return " ".join(line.casefold().split())


def _hash(text: str) -> int:
    return (
        int.from_bytes(
            hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big", signed=True
        )
        or 1
    )
