"""NOU, Meld. St., Prop. and other publications of regjeringen.no as XHTML: one document a file, one group a publication.

Files of one publication in several parts share the beginning of their names (…kap01, …kap02) or a folder: `group_by: folder`
makes a folder a group, `file` each file. Kept: headings, on lines of their own and parted from the text, paragraphs, lists,
tables row by row. Left out: reference lists, the top with its navigation, and notes, by the classes that mark them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lxml import html

from data_prep.config import SourceConfig
from data_prep.document import Document, Place, Report, Unreadable
from data_prep.sources import claims
from data_prep.sources.files import contents, find, stem
from data_prep.sources.markup import blocks, local_name, parse_html, squeeze

SUFFIXES = (".xhtml", ".html", ".htm", ".xml")
SKIPPED_CLASSES = {"K-REFLISTE", "TOP", "K-NOTE-TBLNOTER", "K-NOTETEXT"}
SKIPPED_TAGS = {"script", "style", "nav", "head", "noscript", "form", "button", "svg"}
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
BLOCKS = HEADINGS | {
    "body", "main", "section", "article", "div", "p", "ul", "ol", "li", "table", "tr", "caption", "blockquote", "dl", "dt", "dd",
    "figure", "figcaption", "header", "footer", "aside", "pre",
}  # fmt: skip


@dataclass
class Options:
    """group_by: `file`, or `folder` where a publication is a folder of files."""

    group_by: str = "file"

    def __post_init__(self) -> None:
        claims.choose("group_by", self.group_by, ("file", "folder"))


def files(source: SourceConfig) -> list[Path]:
    claims.options(source, Options)
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    by_folder = claims.options(source, Options).group_by == "folder"
    for where, raw in contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(where):
            yield parse(raw, where, source.license, by_folder, report)


def parse(raw: bytes, where: Place, license: str, by_folder: bool, report: Report) -> Document:
    root = parse_html(raw, report)
    body = root.find(".//body")
    text = running_text(body if body is not None else root, SKIPPED_CLASSES)
    if not text:
        raise Unreadable("no text outside of what is left out")
    title = next((squeeze(e.itertext()) for tag in ("h1", "title") for e in root.iter(tag)), "")
    meta = {(e.get("name") or e.get("property") or "").lower(): e.get("content") or "" for e in root.iter("meta")}
    date = next((meta[key] for key in ("dc.date", "dcterms.date", "date", "article:published_time") if meta.get(key)), "")
    url = next((e.get("href") or "" for e in root.iter("link") if e.get("rel") == "canonical"), meta.get("og:url", ""))
    place = stem(where)
    return Document(
        id=place, text=text, title=title, source=where.source, license=license, url=url,
        date=claims.date(date) or claims.date(title), group=place.rpartition("/")[0] or place if by_folder else place,
        language=claims.language(root.get("lang") or root.get("xml:lang") or meta.get("dc.language")),
    )  # fmt: skip


def running_text(body: html.HtmlElement, skipped_classes: set[str]) -> str:
    """One line a block, a blank line between paragraphs and around headings; list items and table rows stand close."""

    def skips(element: html.HtmlElement) -> bool:
        return local_name(element).lower() in SKIPPED_TAGS or not skipped_classes.isdisjoint(_classes(element))

    lines: list[str] = []
    close = False
    for block, line in blocks(body, lambda element: local_name(element).lower() in BLOCKS, skips):
        inside = {local_name(a).lower() for a in (block, *block.iterancestors())}
        is_close = bool(inside & {"li", "tr", "caption"}) and not inside & HEADINGS
        if lines and not (close and is_close):
            lines.append("")
        lines.append(f"– {line}" if "li" in inside and not re.match(r"[–•\-*]|\w{1,3}[.)] ", line) else line)
        close = is_close
    return "\n".join(lines)


def _classes(element: html.HtmlElement) -> list[str]:
    return (element.get("class") or "").upper().split()
