"""NOU, Meld. St., Prop. and other publications of regjeringen.no as XHTML, and its own pages: one document a
file.

Files of one publication in several parts share the beginning of their names (…kap01, …kap02) or a folder:
`group_by: folder` makes a folder a group, `file` each file. Kept: headings, on lines of their own and parted
from the text, paragraphs, lists, tables row by row. Left out: reference lists, the top with its navigation,
and notes, by the classes that mark them; and of a page of the site its furniture: share buttons, editors,
related links (see furniture.py). Below `min_kept` of the page's own letters, classes that other sites use for
furniture do not decide, and the page is counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lxml import html

from data_prep.config import SourceConfig
from data_prep.document import Document, Place, Report, Unreadable
from data_prep.fields import between, one_of, setting
from data_prep.sources import claims
from data_prep.sources.files import contents, find, stem
from data_prep.sources.furniture import HEADINGS, Furniture, count_letters, main_element, without_labels
from data_prep.sources.markup import blocks, local_name, parse_html, squeeze

SUFFIXES = (".xhtml", ".html", ".htm", ".xml")
SKIPPED_CLASSES = {"K-REFLISTE", "TOP", "K-NOTE-TBLNOTER", "K-NOTETEXT"}
BLOCKS = HEADINGS | {
    "body",
    "main",
    "section",
    "article",
    "div",
    "p",
    "ul",
    "ol",
    "li",
    "table",
    "tr",
    "caption",
    "blockquote",
    "dl",
    "dt",
    "dd",
    "figure",
    "figcaption",
    "header",
    "footer",
    "aside",
    "pre",
    "details",
    "summary",
    "address",
    "button",
}


@dataclass
class Options:
    """Options of publications and pages of regjeringen.no."""

    group_by: str = setting(
        "file",
        "documents that stay together in the split: file, or folder if a publication is a folder of files",
    )
    min_kept: float = setting(
        0.6,
        "minimum share of the page's letters in the extracted text; below it, the page is read by its tags "
        "only, and counted",
    )

    def __post_init__(self) -> None:
        one_of("options.group_by", self.group_by, ("file", "folder"))
        between("options.min_kept", self.min_kept, 0, 1)


def files(source: SourceConfig) -> list[Path]:
    claims.options(source, Options)
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    options = claims.options(source, Options)
    for where, raw in contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(where):
            yield parse(raw, where, source.license, options, report)


def parse(raw: bytes, where: Place, license: str, options: Options, report: Report) -> Document:
    root = parse_html(raw, report)
    text = _measured_text(root, options.min_kept, report)
    if not text:
        raise Unreadable("no text outside of what is left out")
    title = next((squeeze(e.itertext()) for tag in ("h1", "title") for e in root.iter(tag)), "")
    meta = {
        (e.get("name") or e.get("property") or "").lower(): e.get("content") or "" for e in root.iter("meta")
    }
    date = next(
        (meta[key] for key in ("dc.date", "dcterms.date", "date", "article:published_time") if meta.get(key)),
        "",
    )
    url = next(
        (e.get("href") or "" for e in root.iter("link") if e.get("rel") == "canonical"),
        meta.get("og:url", ""),
    )
    place = stem(where)
    folder = place.rpartition("/")[0]
    return Document(
        id=place,
        text=text,
        title=title,
        source=where.source,
        license=license,
        url=url,
        date=claims.date(date) or claims.date(title),
        group=folder or place if options.group_by == "folder" else place,
        language=claims.language(root.get("lang") or root.get("xml:lang") or meta.get("dc.language")),
    )


def _measured_text(root: html.HtmlElement, min_kept: float, report: Report) -> str:
    body = root.find(".//body")
    body = body if body is not None else root
    main = main_element(body)
    part = main if main is not None else body
    whole = running_text(part, Furniture(part, by_class=False))
    text = running_text(part, Furniture(part), labels=False)
    if count_letters(text) >= min_kept * count_letters(whole):
        return text
    report.counts["pages_read_by_tags"] += 1
    return whole


def running_text(part: html.HtmlElement, furniture: Furniture, labels: bool = True) -> str:
    """Return one line a block, a blank line between paragraphs and around headings; list items and table rows
    stand close.

    Labels at the edges of the text ("Skriv ut", "Redaktør: …") stand in it if `labels`.
    """

    def skips(element: html.HtmlElement) -> bool:
        return not SKIPPED_CLASSES.isdisjoint(_classes(element)) or furniture.skips(element)

    pieces = list(blocks(part, lambda element: local_name(element).lower() in BLOCKS, skips))
    if not labels:
        pieces = [pieces[number] for number in without_labels([line for _, line in pieces])]
    lines: list[str] = []
    close = False
    for block, line in pieces:
        inside = {local_name(a).lower() for a in (block, *block.iterancestors())}
        is_close = bool(inside & {"li", "tr", "caption"}) and not inside & HEADINGS
        if lines and not (close and is_close):
            lines.append("")
        lines.append(f"– {line}" if "li" in inside and not re.match(r"[–•\-*]|\w{1,3}[.)] ", line) else line)
        close = is_close
    return "\n".join(lines)


def _classes(element: html.HtmlElement) -> list[str]:
    return (element.get("class") or "").upper().split()
