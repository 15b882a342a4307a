"""Conversion of a part of an HTML page to Markdown: headings, lists, tables, quotations and code.

Links are reduced to their text. Elements that the caller rejects, such as menus, are left out;
everything else is kept, including lists in table cells, fact boxes, definitions, captions and
collapsible sections.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from lxml import html

from data_prep.sources.furniture import HEADINGS
from data_prep.sources.markup import local_name

_BLOCKS = {
    *HEADINGS, "html", "body", "main", "section", "article", "div", "p", "ul", "ol", "li", "table", "tbody",
    "thead", "tfoot", "tr", "td", "th", "caption", "blockquote", "dl", "dt", "dd", "figure",
    "figcaption", "header", "footer", "aside", "pre", "address", "details", "summary", "fieldset",
    "legend", "form", "hr", "center", "hgroup", "menu", "dir", "nav", "search", "dialog",
    "button",
}  # fmt: skip
_PERMALINKS = {"¶", "#", "🔗", "§"}


class Kind(StrEnum):
    """Kind of a block of text, such as a heading or a list item.

    No blank line separates consecutive blocks of the same kind if that kind is in _CLOSE.
    """

    TEXT = "text"
    HEADING = "heading"
    ITEM = "item"
    ROW = "row"
    DEFINITION = "definition"
    CODE = "code"


_CLOSE = {Kind.ITEM, Kind.ROW, Kind.DEFINITION}


@dataclass(slots=True)
class Block:
    """A block of text, and the element that contains it.

    Attributes:
        element: the innermost block element that contains the text.
        text: the text in Markdown.
        opens: true for the first block of a list or table. A blank line then separates it from a
            list or table before it.
    """

    element: html.HtmlElement
    kind: Kind
    text: str
    opens: bool = False


def read_blocks(root: html.HtmlElement, skips: Callable[[html.HtmlElement], bool]) -> list[Block]:
    """Return the text blocks of an element (paragraphs, headings, list items …) in document order.

    Elements for which `skips` is true are left out.
    """
    writer = _Writer(skips)
    writer.walk(root, root)
    writer.flush(root)
    return writer.blocks


def join_blocks(blocks: list[Block]) -> str:
    """Join blocks to one text, with blank lines between them except within lists and tables."""
    pieces: list[str] = []
    last_kind: Kind | None = None
    for block in blocks:
        is_close = block.kind in _CLOSE and last_kind == block.kind and not block.opens
        pieces.append(("\n" if is_close else "\n\n") + block.text)
        last_kind = block.kind
    return "".join(pieces).strip("\n")


class _Writer:
    def __init__(self, skips: Callable[[html.HtmlElement], bool]) -> None:
        self.blocks: list[Block] = []
        self._skips = skips
        self._inline: list[str] = []
        self._kind = Kind.TEXT
        self._marker = ""  # marker of the current list item, until its first text is written
        self._indent = ""
        self._quotes = ""
        self._opens = False

    def walk(self, element: html.HtmlElement, block: html.HtmlElement) -> None:
        """Append the text of an element to the blocks.

        Args:
            block: the innermost block element that contains the element.
        """
        name = local_name(element).lower()
        if name not in _BLOCKS:
            self._write_inline(element, block, name)
            return
        self.flush(block)
        if name == "table" and not _is_layout(element):
            self._write_table(element)
        elif name == "pre":
            self._write_code(element)
        elif name in ("ul", "ol", "menu", "dir"):
            self._write_list(element, name)
        else:
            self._write_block(element, name)

    def flush(self, block: html.HtmlElement) -> None:
        """Append the inline text collected so far as a block.

        Args:
            block: the innermost block element that contains the text.
        """
        lines = [" ".join(line.split()) for line in "".join(self._inline).split("\n")]
        self._inline.clear()
        if local_name(block).lower() in HEADINGS or self._kind == Kind.HEADING:
            lines = [" ".join(line for line in lines if line)]
        text = "\n".join(line for line in lines if line)
        if text:
            self._append(block, self._kind, text)

    def _append(self, block: html.HtmlElement, kind: Kind, text: str) -> None:
        if self._marker or self._indent:
            if kind in (Kind.TEXT, Kind.HEADING, Kind.DEFINITION):
                kind = Kind.ITEM
            lead = self._marker or self._indent
            text = lead + text.replace("\n", "\n" + " " * len(lead))
            self._marker = ""
        elif kind == Kind.HEADING:
            name = local_name(_heading_of(block)).lower()
            if name in HEADINGS:
                text = f"{'#' * int(name[1])} {text}"
        if self._quotes:
            text = self._quotes + text.replace("\n", "\n" + self._quotes)
        self.blocks.append(Block(block, kind, text, self._opens))
        self._opens = False

    def _write_inline(self, element: html.HtmlElement, block: html.HtmlElement, name: str) -> None:
        if name == "br":
            self._inline.append("\n")
            return
        is_anchor = name == "a" and (element.get("href") or "").startswith("#")
        if is_anchor and "".join(element.itertext()).strip() in _PERMALINKS:
            return
        if name in ("code", "kbd", "samp"):
            code = " ".join("".join(element.itertext()).split())
            if code and "`" not in code:
                self._inline.append(f"`{code}`" if name == "code" else code)
                return
        self._write_children(element, block)

    def _write_children(self, element: html.HtmlElement, block: html.HtmlElement) -> None:
        self._inline.append(_without_line_breaks(element.text))
        for child in element:
            if local_name(child) and not self._skips(child):
                self.walk(child, block)
            self._inline.append(_without_line_breaks(child.tail))

    def _write_block(self, element: html.HtmlElement, name: str) -> None:
        outer_kind = self._kind
        outer_quotes = self._quotes
        self._kind = self._kind_of(name)
        if name == "dl":
            self._opens = True
        if name == "blockquote":
            self._quotes += "> "
        self._write_children(element, element)
        self.flush(element)
        self._kind = outer_kind
        self._quotes = outer_quotes

    def _kind_of(self, name: str) -> Kind:
        if name in HEADINGS:
            return Kind.HEADING
        if name in ("dt", "dd"):
            return Kind.DEFINITION
        return self._kind

    def _write_list(self, element: html.HtmlElement, name: str) -> None:
        outer_kind = self._kind
        outer_indent = self._indent
        outer_marker = self._marker
        self._kind = Kind.TEXT
        if not outer_indent and not outer_marker:
            self._opens = True
        number = _parse_number(element.get("start"))
        for child in element:
            child_name = local_name(child).lower()
            if not child_name or self._skips(child):
                continue
            if child_name != "li":
                self.walk(child, element)
                self.flush(element)
                continue
            number = _parse_number(child.get("value"), number)
            marker = f"{number}. " if name == "ol" else "- "
            lead = outer_indent or " " * len(outer_marker)
            self._indent = lead + " " * len(marker)
            self._marker = lead + marker
            self._write_children(child, child)
            self.flush(child)
            number += 1
            self._marker = ""
            self._indent = outer_indent
        self._kind = outer_kind
        self._indent = outer_indent

    def _write_code(self, element: html.HtmlElement) -> None:
        for line_break in element.iter("br"):
            line_break.tail = "\n" + (line_break.tail or "")
        code = "".join(element.itertext())
        if code.strip():
            self._append(element, Kind.CODE, "```\n" + code.strip("\n") + "\n```")

    def _write_table(self, table: html.HtmlElement) -> None:
        for caption in table.iterchildren("caption"):
            if not self._skips(caption):
                self.walk(caption, table)
        rows: list[tuple[html.HtmlElement, list[str]]] = []
        for row in table.iter("tr"):
            if next(row.iterancestors("table"), None) is table and not self._skips(row):
                cells = [self._cell_text(cell) for cell in row.iterchildren("td", "th")]
                if any(cells):
                    rows.append((row, cells))
        self._opens = True
        for number, (row, cells) in enumerate(rows):
            self._append(row, Kind.ROW, f"| {' | '.join(cells)} |")
            if number == 0 and len(rows) > 1 and not self._indent:
                self._append(row, Kind.ROW, f"|{'---|' * len(cells)}")

    def _cell_text(self, cell: html.HtmlElement) -> str:
        """Return a table cell as one line; list items in it are marked with bullets or numbers."""
        if self._skips(cell):
            return ""
        inner = _Writer(self._skips)
        inner._write_children(cell, cell)
        inner.flush(cell)
        lines = [re.sub(r"^#+ |^(?:> )+", "", block.text.strip()) for block in inner.blocks]
        return " ".join(re.sub(r"^- ", "• ", " ".join(line.split())) for line in lines)


def _is_layout(table: html.HtmlElement) -> bool:
    """Return whether a table is only used for layout.

    Such a table has a role that declares this, contains tables or headings, or has at most one cell
    per row.
    """
    if (table.get("role") or "").lower() in ("presentation", "none"):
        return True
    if next(table.iterdescendants("table"), None) is not None:
        return True
    if any(True for cell in table.iter("td") for _ in cell.iter(*HEADINGS)):
        return True
    return all(len(list(row.iterchildren("td", "th"))) <= 1 for row in table.iter("tr"))


def _heading_of(block: html.HtmlElement) -> html.HtmlElement:
    if local_name(block).lower() in HEADINGS:
        return block
    return next(block.iterancestors(*HEADINGS), block)


def _without_line_breaks(text: str | None) -> str:
    return (text or "").replace("\n", " ")


def _parse_number(value: str | None, default: int = 1) -> int:
    if value and value.isdecimal() and len(value) < 6:
        return int(value)
    return default
