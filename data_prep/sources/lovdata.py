"""Reader of Lovdata's public data: acts and regulations, as tar.bz2 archives or single XML files.

Each file is XML-flavoured HTML with one act or regulation: a header with its ids
(`dl.data-document-key-info`), and `main.documentBody`. Each file is one document. Its group is the
act's `refid`, such as lov/2005-06-17-101, so that an act's announcement in Lovtidend and its
consolidated text are always in the same part of a split. Its date is the day on which the act was
passed. This day is contained in the `refid`.

These parts are kept: titles of chapters, numbers and titles of sections (paragrafer), subsections,
list items with their markers, numbered points of annexes (`marginIdArticle`), and table rows. The
table of contents is removed. Footnotes, their markers, and notes on amendments (`changesToParent`)
are removed, and counted.

Provisions not yet in force and their titles (`futureLegalArticle`, `futuretitle`) are removed from
consolidated texts. Sentences that only introduce such provisions are removed too ("§ 5 skal lyde:",
"I lov … gjøres følgende endringer:"). In Lovtidend, such provisions are the amendment's text, and
are kept.
"""

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
HEADING_CLASSES = {"futureLegalArticleHeader", "futuretitle", "miscHeadline"}  # spans used as headings
MARK_CLASS = "data-marginOriginalId"  # class of the element with the number of a point
PARAGRAPH_CLASSES = {"legalP", "defaultP", "marginIdArticle"}
SKIPPED_TAGS = {"script", "style", "nav"}
HEADING_TAGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
LEAD_IN = re.compile(r"(:|\bskal (lyd[ea]|lauta|hei?te)( slik| som følg(er|jer))?\W*)$", re.IGNORECASE)
LEAD_IN_OF_SEVERAL = re.compile(
    r"\b((følgende|følg?jande|slike?|desse|disse) endring(er|ar)?\b[^:]*"
    r"|endr(es|ast|a) (slik|som følg)[^:]*):$",
    re.IGNORECASE,
)
BLOCK_TAGS = {
    "main", "section", "article", "div", "p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol",
    "li", "table", "tr", "footer", "dl",
}  # fmt: skip


def list_files(source: SourceConfig) -> list[Path]:
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    for place, raw in iter_contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(place):
            yield parse(raw, name, source.license, report)


def parse(raw: bytes, source: str, license: str, report: Report) -> Document:
    """Convert a Lovdata file to a document.

    Args:
        source: name of the source.

    Raises:
        Unreadable: the bytes are not a Lovdata document.
    """
    root = parse_html(raw, report)
    body = root.find(".//main")
    dokid = _header(root, "dokid")
    refid = _header(root, "refid")
    if body is None:
        raise Unreadable("not a Lovdata document: has no <main>")
    if not (dokid or refid):
        raise Unreadable("not a Lovdata document: its header has neither a dokid nor a refid")
    # The date wanted is the one on which the act was passed. dateInForce comes last: it may be
    # years later, and in Lovtidend it often is.
    dates = (refid, dokid, _header(root, "dateOfPublication"), _header(root, "dateInForce"))
    is_consolidated = dokid and not dokid.startswith("LTI")  # LTI: an announcement in Lovtidend
    if is_consolidated:
        _remove_future_provisions(body, report)
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
    """Yield the elements with one of the classes, except those inside another such element."""
    for element in body.iter(etree.Element):
        if not _classes(element) & classes:
            continue
        if not any(_classes(above) & classes for above in element.iterancestors()):
            yield element


def _classes(element: html.HtmlElement) -> set[str]:
    return set((element.get("class") or "").split())


def _remove_future_provisions(body: html.HtmlElement, report: Report) -> None:
    """Remove provisions that are not yet in force, and the sentences that introduce only these."""
    future = list(_outermost(body, FUTURE_CLASSES))
    _Remover(body, future, report).remove()
    report.counts["provisions_not_in_force"] += len(future)


class _Remover:
    """Remover of elements, their lead-ins, and parents that become empty.

    A lead-in is a text that introduces the element after it, such as "§ 5 skal lyde:". A block that
    also introduces other elements is kept. Elements are dropped from the tree at the end, because
    their positions are needed to find the lead-ins.
    """

    def __init__(self, body: html.HtmlElement, elements: list[html.HtmlElement], report: Report) -> None:
        self._body = body
        self._elements = elements
        self._report = report
        self._removed = set(elements)

    def remove(self) -> None:
        for element in self._elements:
            self._remove_lead_in(element)
        for element in self._removed:
            if element.getparent() is not None:
                element.drop_tree()

    def _remove_lead_in(self, element: html.HtmlElement) -> None:
        """Remove the text that introduces a removed element, its lead-in.

        A block that also introduces other elements is kept. The parent of the removed element is
        removed too if it has no other text.
        """
        parent = element.getparent()
        before = element.getprevious()
        while before is not None and not _has_tail(before) and not self._has_text(before):
            before = before.getprevious()
        loose = (parent.text if before is None else before.tail) or ""
        if loose.strip():
            if LEAD_IN.search(loose.strip()):
                if before is None:
                    parent.text = " "
                else:
                    before.tail = " "
                self._report.counts["lead_ins_left_out"] += 1
        elif before is not None:
            lead = self._last_block(before)
            if self._introduces_nothing(lead):
                self._removed.add(lead)
                self._report.counts["lead_ins_left_out"] += 1
                self._remove_lead_in(lead)
        if parent is not self._body and parent not in self._removed and not self._has_text(parent):
            self._removed.add(parent)
            self._remove_lead_in(parent)

    def _introduces_nothing(self, block: html.HtmlElement) -> bool:
        """Return whether a block, such as "§ 5 skal lyde:", introduces only removed elements.

        Args:
            block: the block before a removed element.
        """
        text = self._text_of(block)
        if block.tag in HEADING_TAGS or not LEAD_IN.search(text):
            return False
        if not LEAD_IN_OF_SEVERAL.search(text):
            return True
        for after in block.itersiblings():
            if after.tag in HEADING_TAGS or LEAD_IN_OF_SEVERAL.search(self._text_of(after)):
                return True
            if self._has_text(after) or _has_tail(after):
                return False
        return True

    def _last_block(self, element: html.HtmlElement) -> html.HtmlElement:
        """Return the innermost block at the end of an element, such as the last item of a list."""
        while True:
            kept = [child for child in element if self._has_text(child) or _has_tail(child)]
            if not kept or _has_tail(kept[-1]) or kept[-1].tag not in BLOCK_TAGS:
                return element
            element = kept[-1]

    def _is_left_out(self, element: html.HtmlElement) -> bool:
        if element in self._removed or not isinstance(element.tag, str):
            return True
        return bool(_classes(element) & SKIPPED_CLASSES)

    def _has_text(self, element: html.HtmlElement) -> bool:
        if self._is_left_out(element):
            return False
        inner = (self._has_text(child) or _has_tail(child) for child in element)
        return bool((element.text or "").strip()) or any(inner)

    def _text_of(self, element: html.HtmlElement) -> str:
        """Return the text of an element, without removed elements and notes in it."""
        if self._is_left_out(element):
            return ""
        inner = "".join(f"{self._text_of(child)}{child.tail or ''}" for child in element)
        return f"{element.text or ''}{inner}".strip()


def _has_tail(element: html.HtmlElement) -> bool:
    return bool((element.tail or "").strip())


def _header(root: html.HtmlElement, name: str) -> str:
    for item in root.iter("dd"):
        if item.get("class") == name:
            return " ".join(item.text_content().split())
    return ""


def _text(body: html.HtmlElement, skipped: set[str]) -> str:
    """Return the running text, with one line for each block.

    Blank lines precede headings and paragraphs.

    Args:
        skipped: classes of elements to leave out.
    """
    lines: list[str] = []
    _walk(body, skipped, lines, [])
    paragraphs = [" ".join(line.split()) for line in lines]
    pairs = zip(paragraphs, ["", *paragraphs], strict=False)
    return "\n".join(line for line, before in pairs if line or before).strip()


def _walk(element: html.HtmlElement, skipped: set[str], lines: list[str], inline: list[str]) -> None:
    """Append the text of an element and its descendants to `lines`, in document order.

    Args:
        skipped: classes of elements to leave out.
        inline: pieces of the current line. They are joined at the next boundary of a block.
    """

    def flush() -> None:
        line = "".join(inline).strip()
        inline.clear()
        if line:
            lines.append(line)

    tag = element.tag
    if not isinstance(tag, str) or tag in SKIPPED_TAGS or _classes(element) & skipped:
        inline.append(element.tail or "")
        return
    classes = _classes(element)
    is_heading = tag in HEADING_TAGS or bool(classes & HEADING_CLASSES)
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
    """Return whether a block continues the line that begins with the marker of its list item.

    The marker may also be the number of a point in an annex.
    """
    before = element.getprevious()
    if before is not None and MARK_CLASS in _classes(before):
        return True
    parent = element.getparent()
    while parent is not None and parent.tag == "article" and parent.text is None and parent[0] is element:
        element = parent
        parent = element.getparent()
    if parent is None or parent.tag != "li" or parent[0] is not element:
        return False
    return not (parent.text or "").strip() and bool(inline)
