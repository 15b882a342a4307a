"""Lovdata's public API: tar.bz2 archives of acts and regulations, and single XML files.

The files are XML-flavoured HTML, one act or regulation each: a header with its identity
(`dl.data-document-key-info`) and `main.documentBody`. One file becomes one document. Its group is the act
itself (`refid`, e.g. lov/2005-06-17-101), so that the announcement of an act in Lovtidend and its
consolidated text never stand on different sides of a split. Its date is that of the day it was made, which
its name holds.

Kept: chapter titles, paragraph numbers and titles, subsections, list items with their marks, numbered points
of annexes (`marginIdArticle`), tables row by row. Left out: the table of contents, footnotes and their marks,
notes on amendments (`changesToParent`), and, in consolidated texts only, provisions not yet in force and
their titles (`futureLegalArticle`, `futuretitle`) with what introduces them and nothing else ("§ 5 skal
lyde:", "I lov … gjøres følgende endringer:"): in Lovtidend these ARE the text of the amendment. What is left
out is counted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lxml import etree, html

from data_prep.config import SourceConfig
from data_prep.document import Document, Report, Unreadable
from data_prep.sources import claims
from data_prep.sources.files import find_files, iter_contents
from data_prep.sources.markup import parse_html

SUFFIXES = (".xml", ".html")
SKIPPED_CLASSES = {"changesToParent", "footnote", "footnotes", "footnotereference"}
FUTURE_CLASSES = {"futureLegalArticle", "futureLegalArticleHeader", "futuretitle"}
HEADING_CLASSES = {
    "futureLegalArticleHeader",
    "futuretitle",
    "miscHeadline",
}  # spans, that stand where headings do
MARK_CLASS = "data-marginOriginalId"  # the number of a point
PARAGRAPH_CLASSES = {"legalP", "defaultP", "marginIdArticle"}
SKIPPED_TAGS = {"script", "style", "nav"}
HEADING_TAGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
LEAD_IN = re.compile(r"(:|\bskal (lyd[ea]|lauta|hei?te)( slik| som følg(er|jer))?\W*)$", re.IGNORECASE)
LEAD_IN_OF_SEVERAL = re.compile(
    r"\b((følgende|følg?jande|slike?|desse|disse) endring(er|ar)?\b[^:]*|endr(es|ast|a) (slik|som følg)[^:]*):$",
    re.IGNORECASE,
)
BLOCK_TAGS = {
    "main",
    "section",
    "article",
    "div",
    "p",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "ul",
    "ol",
    "li",
    "table",
    "tr",
    "footer",
    "dl",
}


def list_files(source: SourceConfig) -> list[Path]:
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    for place, raw in iter_contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(place):
            yield parse(raw, name, source.license, report)


def parse(raw: bytes, source: str, license: str, report: Report) -> Document:
    """One Lovdata file as a Document.

    Raises:
        Unreadable: the bytes are not a Lovdata document.
    """
    root = parse_html(raw, report)
    body = root.find(".//main")
    dokid, refid = _header(root, "dokid"), _header(root, "refid")
    if body is None or not (dokid or refid):
        raise Unreadable("not a Lovdata document: no main.documentBody, or no dokid in the header")
    # What was made in 2025 may be in force from 2027, and in Lovtidend often is.
    dates = refid, dokid, _header(root, "dateOfPublication"), _header(root, "dateInForce")
    if dokid and not dokid.startswith("LTI"):  # a consolidated text, not an announcement in Lovtidend
        _leave_out_what_is_not_in_force(body, report)
    report.counts["notes_left_out"] += sum(1 for _ in _outermost(body, SKIPPED_CLASSES))
    return Document(
        id=dokid or refid,
        text=_text(body, SKIPPED_CLASSES),
        source=source,
        license=license,
        group=refid or dokid,
        language=claims.parse_language(root.get("lang")),
        title=_header(root, "title"),
        date=next((date for date in map(claims.parse_date, dates) if date), ""),
        url=f"https://lovdata.no/{refid}" if refid else "",
    )


def _outermost(body: html.HtmlElement, classes: set[str]) -> Iterator[html.HtmlElement]:
    """Yield the elements of some classes that stand in no other of them."""
    for element in body.iter(etree.Element):
        if _classes(element) & classes and not any(
            _classes(above) & classes for above in element.iterancestors()
        ):
            yield element


def _classes(element: html.HtmlElement) -> set[str]:
    return set((element.get("class") or "").split())


def _leave_out_what_is_not_in_force(body: html.HtmlElement, report: Report) -> None:
    """Take out provisions that are not in force, and the lead-ins that would introduce nothing."""
    future = list(_outermost(body, FUTURE_CLASSES))
    _LeadIns(body, set(future), report).take_out(future)
    report.counts["provisions_not_in_force"] += len(future)


class _LeadIns:
    """What introduces the elements that are `gone`. These stand in the tree until the end, as they show what
    followed what."""

    def __init__(self, body: html.HtmlElement, gone: set[html.HtmlElement], report: Report) -> None:
        self._body, self._gone, self._report = body, gone, report

    def take_out(self, elements: list[html.HtmlElement]) -> None:
        for element in elements:
            self._look_before(element)
        for element in self._gone:
            if element.getparent() is not None:
                element.drop_tree()

    def _look_before(self, element: html.HtmlElement) -> None:
        """Take out what introduces an element that is gone, and what held nothing else."""
        parent, before = element.getparent(), element.getprevious()
        while before is not None and not (before.tail or "").strip() and not self._has_text(before):
            before = before.getprevious()
        loose = (parent.text if before is None else before.tail) or ""
        if loose.strip():
            if LEAD_IN.search(loose.strip()):
                if before is None:
                    parent.text = " "
                else:
                    before.tail = " "
                self._report.counts["lead_ins_left_out"] += 1
        elif before is not None and self._introduces_nothing(lead := self._last_block(before)):
            self._gone.add(lead)
            self._report.counts["lead_ins_left_out"] += 1
            self._look_before(lead)
        if parent is not self._body and parent not in self._gone and not self._has_text(parent):
            self._gone.add(parent)
            self._look_before(parent)

    def _introduces_nothing(self, lead: html.HtmlElement) -> bool:
        """Return whether a block, behind which something is gone, is a lead-in to that alone."""
        text = self._text_of(lead)
        if lead.tag in HEADING_TAGS or not LEAD_IN.search(text):
            return False
        if not LEAD_IN_OF_SEVERAL.search(text):
            return True
        for behind in lead.itersiblings():
            if behind.tag in HEADING_TAGS or LEAD_IN_OF_SEVERAL.search(self._text_of(behind)):
                return True
            if self._has_text(behind) or (behind.tail or "").strip():
                return False
        return True

    def _last_block(self, element: html.HtmlElement) -> html.HtmlElement:
        """Return the innermost block that an element ends with: of a list, the last paragraph of its last
        item."""
        while True:
            kept = [child for child in element if self._has_text(child) or (child.tail or "").strip()]
            if not kept or (kept[-1].tail or "").strip() or kept[-1].tag not in BLOCK_TAGS:
                return element
            element = kept[-1]

    def _has_text(self, element: html.HtmlElement) -> bool:
        if element in self._gone or not isinstance(element.tag, str) or _classes(element) & SKIPPED_CLASSES:
            return False
        inner = (self._has_text(child) or (child.tail or "").strip() for child in element)
        return bool((element.text or "").strip()) or any(inner)

    def _text_of(self, element: html.HtmlElement) -> str:
        """Return the text of an element without what is gone, and without notes."""
        if element in self._gone or not isinstance(element.tag, str) or _classes(element) & SKIPPED_CLASSES:
            return ""
        inner = "".join(f"{self._text_of(child)}{child.tail or ''}" for child in element)
        return f"{element.text or ''}{inner}".strip()


def _header(root: html.HtmlElement, name: str) -> str:
    for item in root.iter("dd"):
        if item.get("class") == name:
            return " ".join(item.text_content().split())
    return ""


def _text(body: html.HtmlElement, skipped: set[str]) -> str:
    """Running text: one line a block, a blank line before each heading and each paragraph of the law."""
    lines: list[str] = []
    _walk(body, skipped, lines, [])
    paragraphs = [" ".join(line.split()) if line else "" for line in lines]
    return "\n".join(
        line for line, before in zip(paragraphs, ["", *paragraphs], strict=False) if line or before
    ).strip()


def _walk(element: html.HtmlElement, skipped: set[str], lines: list[str], inline: list[str]) -> None:
    """Depth first; `inline` gathers text until a block boundary flushes it as one line."""

    def flush() -> None:
        if line := "".join(inline).strip():
            lines.append(line)
        inline.clear()

    tag = element.tag if isinstance(element.tag, str) else ""
    classes = set((element.get("class") or "").split()) if tag else set()
    if not tag or tag in SKIPPED_TAGS or classes & skipped:
        inline.append(element.tail or "")
        return
    is_heading = tag in {"h1", "h2", "h3", "h4", "h5", "h6"} or bool(classes & HEADING_CLASSES)
    is_block = tag in BLOCK_TAGS or is_heading
    opens_paragraph = is_heading or bool(classes & PARAGRAPH_CLASSES)
    if is_block and not _continues_mark(element, inline):
        flush()
        if opens_paragraph:
            lines.append("")
    if tag == "li":
        mark = element.get("data-li-identifier") or element.get("data-name") or "–"
        inline.append(f"{mark} ")
    elif tag == "br":
        inline.append(" ")
    elif tag in {"td", "th"} and element.getprevious() is not None:
        inline.append(" | ")
    inline.append(element.text or "")
    for child in element:
        _walk(child, skipped, lines, inline)
    if is_block:
        flush()
    elif MARK_CLASS in classes:
        inline.append(" ")
    inline.append(element.tail or "")


def _continues_mark(element: html.HtmlElement, inline: list[str]) -> bool:
    """True for the block that holds the text of a list item, or of a numbered point: it belongs on the line
    of the mark."""
    before = element.getprevious()
    if before is not None and MARK_CLASS in (before.get("class") or "").split():
        return True
    parent = element.getparent()
    while parent is not None and parent.tag == "article" and parent.text is None and parent[0] is element:
        element, parent = parent, parent.getparent()
    return (
        parent is not None
        and parent.tag == "li"
        and parent[0] is element
        and not (parent.text or "").strip()
        and bool(inline)
    )
