"""Reader of publications of regjeringen.no (NOU, Meld. St. …) as XHTML, and of pages of the site.

Each file is one document. A split keeps the documents of a group together. By default, each file is
a group. If the files of a publication are in one folder, set `group_by: folder`. Each folder is
then a group.

Headings, paragraphs, lists and table rows are kept. Reference lists, notes and the navigation at
the top are left out by their classes. Page boilerplate, such as share buttons, editors' names and
related links, is left out too (see furniture.py). If less than `min_kept` of a page's letters is
left, the page is read again: only HTML tags then decide what is boilerplate, and the page is
counted.
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
from data_prep.sources.files import find_files, id_from_place, iter_contents
from data_prep.sources.furniture import HEADINGS, Furniture, count_letters, drop_labels, find_main_element
from data_prep.sources.markup import iter_blocks, local_name, parse_html, squeeze

SUFFIXES = (".xhtml", ".html", ".htm", ".xml")
SKIPPED_CLASSES = {"K-REFLISTE", "TOP", "K-NOTE-TBLNOTER", "K-NOTETEXT"}
BLOCKS = {
    *HEADINGS, "body", "main", "section", "article", "div", "p", "ul", "ol", "li", "table", "tr", "caption",
    "blockquote", "dl", "dt", "dd", "figure", "figcaption", "header", "footer", "aside", "pre",
    "details", "summary", "address", "button",
}  # fmt: skip
DATE_NAMES = ("dc.date", "dcterms.date", "date", "article:published_time")


@dataclass
class Options:
    """Options of reader `regjeringen`."""

    group_by: str = setting(
        "file",
        "documents that stay together in the split: file, or folder if a publication is a folder of files",
    )
    min_kept: float = setting(
        0.6,
        "share of the page's letters that the extracted text should keep; if it keeps less,"
        " only HTML tags decide what is left out, and the report counts the page as "
        "pages_read_by_tags",
    )

    def __post_init__(self) -> None:
        one_of("options.group_by", self.group_by, ("file", "folder"))
        between("options.min_kept", self.min_kept, 0, 1)


def list_files(source: SourceConfig) -> list[Path]:
    claims.parse_options(source, Options)
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    options = claims.parse_options(source, Options)
    for place, raw in iter_contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(place):
            yield parse(raw, place, source.license, options, report)


def parse(raw: bytes, place: Place, license: str, options: Options, report: Report) -> Document:
    root = parse_html(raw, report)
    text = _extract_text(root, options.min_kept, report)
    if not text:
        raise Unreadable("contains no text besides notes, navigation and other page boilerplate")
    title = next((squeeze(e.itertext()) for tag in ("h1", "title") for e in root.iter(tag)), "")
    meta = {
        (e.get("name") or e.get("property") or "").lower(): e.get("content") or "" for e in root.iter("meta")
    }
    date = next((meta[name] for name in DATE_NAMES if meta.get(name)), "")
    canonical = (e.get("href") or "" for e in root.iter("link") if e.get("rel") == "canonical")
    url = next(canonical, meta.get("og:url", ""))
    document_id = id_from_place(place)
    group = document_id
    if options.group_by == "folder":
        group = document_id.rpartition("/")[0] or document_id
    return Document(
        id=document_id,
        text=text,
        title=title,
        source=place.source,
        license=license,
        url=url,
        date=claims.parse_date(date) or claims.parse_date(title),
        group=group,
        language=claims.parse_language(root.get("lang") or root.get("xml:lang") or meta.get("dc.language")),
    )


def _extract_text(root: html.HtmlElement, min_kept: float, report: Report) -> str:
    """Return a page's text without page boilerplate such as menus.

    If less than `min_kept` of the letters is left, the page is read again: only HTML tags then
    decide what is boilerplate, and the page is counted.
    """
    body = root.find(".//body")
    if body is None:
        body = root
    main = find_main_element(body)
    part = main if main is not None else body
    all_text = running_text(part, Furniture(part, by_class=False))
    text = running_text(part, Furniture(part), labels=False)
    if count_letters(text) >= min_kept * count_letters(all_text):
        return text
    report.counts["pages_read_by_tags"] += 1
    return all_text


def running_text(part: html.HtmlElement, furniture: Furniture, labels: bool = True) -> str:
    """Return the text of a part of a page, with one line for each block element.

    Blank lines separate the blocks, except within lists and tables.

    Args:
        furniture: classifier of the page boilerplate to leave out.
        labels: true to keep labels before and after the text ("Skriv ut", "Redaktør: …").
    """

    def skips(element: html.HtmlElement) -> bool:
        return not SKIPPED_CLASSES.isdisjoint(_classes(element)) or furniture.skips(element)

    pieces = list(iter_blocks(part, lambda element: local_name(element).lower() in BLOCKS, skips))
    if not labels:
        pieces = [pieces[number] for number in drop_labels([line for _, line in pieces])]
    lines: list[str] = []
    was_close = False  # true if the last block was a list item or a table row
    for block, line in pieces:
        inside = {local_name(a).lower() for a in (block, *block.iterancestors())}
        is_close = bool(inside & {"li", "tr", "caption"}) and not inside & HEADINGS
        if lines and not (was_close and is_close):
            lines.append("")
        if "li" in inside and not re.match(r"[–•\-*]|\w{1,3}[.)] ", line):
            line = f"– {line}"
        lines.append(line)
        was_close = is_close
    return "\n".join(lines)


def _classes(element: html.HtmlElement) -> list[str]:
    return (element.get("class") or "").upper().split()
