"""The text of a part of an HTML page as Markdown: headings, lists, tables, quotations and code; links reduced
to their text.

All that stands in it and is no furniture arrives: lists in table cells, fact boxes, definitions, captions,
what can be unfolded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from lxml import html

from data_prep.sources.furniture import HEADINGS
from data_prep.sources.markup import local_name

_BLOCKS = HEADINGS | {
    "html",
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
    "tbody",
    "thead",
    "tfoot",
    "tr",
    "td",
    "th",
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
    "address",
    "details",
    "summary",
    "fieldset",
    "legend",
    "form",
    "hr",
    "center",
    "hgroup",
    "menu",
    "dir",
    "nav",
    "search",
    "dialog",
    "button",
}
_PERMALINKS = {"¶", "#", "🔗", "§"}


class Kind(StrEnum):
    """What a block is: those of one kind in LIST and TABLE stand on lines of their own without a blank line
    between."""

    TEXT = "text"
    HEADING = "heading"
    ITEM = "item"
    ROW = "row"
    DEFINITION = "definition"
    CODE = "code"


_CLOSE = {Kind.ITEM, Kind.ROW, Kind.DEFINITION}


@dataclass(slots=True)
class Block:
    """A block of text, and the element that it stands in.

    Attributes:
        element: the innermost block element.
        text: as Markdown has it.
        opens: whether it begins a list, a table or the like, and so stands apart from one before it.
    """

    element: html.HtmlElement
    kind: Kind
    text: str
    opens: bool = False


def read_blocks(root: html.HtmlElement, skips: Callable[[html.HtmlElement], bool]) -> list[Block]:
    """Return the blocks of an element in document order, but for those that `skips` leaves out."""
    writer = _Writer(skips)
    writer.walk(root, root)
    writer.flush(root)
    return writer.blocks


def join(blocks: list[Block]) -> str:
    """Return blocks as one text: a blank line between them, but for items of one list and rows of one
    table."""
    pieces: list[str] = []
    for number, block in enumerate(blocks):
        before = blocks[number - 1].kind if number else None
        close = block.kind in _CLOSE and before == block.kind and not block.opens
        pieces.append(("\n" if close else "\n\n") + block.text)
    return "".join(pieces).strip("\n")


class _Writer:
    def __init__(self, skips: Callable[[html.HtmlElement], bool]) -> None:
        self.blocks: list[Block] = []
        self._skips = skips
        self._inline: list[str] = []
        self._kind = Kind.TEXT
        self._marker = ""  # of a list item that has no text yet
        self._indent = ""
        self._quotes = ""
        self._opens = False

    def walk(self, element: html.HtmlElement, block: html.HtmlElement) -> None:
        """Write what stands in an element; `block` is the block that its text belongs to."""
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
        """End the block that is being written."""
        lines = [" ".join(line.split()) for line in "".join(self._inline).split("\n")]
        self._inline.clear()
        if local_name(block).lower() in HEADINGS or self._kind == Kind.HEADING:
            lines = [" ".join(line for line in lines if line)]
        text = "\n".join(line for line in lines if line)
        if text:
            self._append(block, self._kind, text)

    def _append(self, block: html.HtmlElement, kind: Kind, text: str) -> None:
        if self._marker or self._indent:
            kind = Kind.ITEM if kind in (Kind.TEXT, Kind.HEADING, Kind.DEFINITION) else kind
            lead = self._marker or self._indent
            text = lead + text.replace("\n", "\n" + " " * len(lead))
            self._marker = ""
        elif kind == Kind.HEADING and (name := local_name(_heading_of(block)).lower()) in HEADINGS:
            text = f"{'#' * int(name[1])} {text}"
        if self._quotes:
            text = self._quotes + text.replace("\n", "\n" + self._quotes)
        self.blocks.append(Block(block, kind, text, self._opens))
        self._opens = False

    def _write_inline(self, element: html.HtmlElement, block: html.HtmlElement, name: str) -> None:
        if name == "br":
            self._inline.append("\n")
        elif (
            name == "a"
            and "".join(element.itertext()).strip() in _PERMALINKS
            and (element.get("href") or "").startswith("#")
        ):
            return
        elif (
            name in ("code", "kbd", "samp")
            and (code := " ".join("".join(element.itertext()).split()))
            and "`" not in code
        ):
            self._inline.append(f"`{code}`" if name == "code" else code)
        else:
            self._children(element, block)

    def _children(self, element: html.HtmlElement, block: html.HtmlElement) -> None:
        self._inline.append(_spaced(element.text))
        for child in element:
            if local_name(child) and not self._skips(child):
                self.walk(child, block)
            self._inline.append(_spaced(child.tail))

    def _write_block(self, element: html.HtmlElement, name: str) -> None:
        kind, quotes, self._kind = self._kind, self._quotes, self._kind_of(name)
        if name == "dl":
            self._opens = True
        if name == "blockquote":
            self._quotes += "> "
        self._children(element, element)
        self.flush(element)
        self._kind, self._quotes = kind, quotes

    def _kind_of(self, name: str) -> Kind:
        if name in HEADINGS:
            return Kind.HEADING
        if name in ("dt", "dd"):
            return Kind.DEFINITION
        return self._kind

    def _write_list(self, element: html.HtmlElement, name: str) -> None:
        kind, indent, marker, self._kind = self._kind, self._indent, self._marker, Kind.TEXT
        if not indent and not marker:
            self._opens = True
        number = _number(element.get("start"))
        for child in element:
            child_name = local_name(child).lower()
            if not child_name or self._skips(child):
                continue
            if child_name != "li":
                self.walk(child, element)
                self.flush(element)
                continue
            own = f"{_number(child.get('value'), number)}. " if name == "ol" else "- "
            self._indent = (indent or " " * len(marker)) + " " * len(own)
            self._marker = self._indent[: -len(own)] + own
            self._children(child, child)
            self.flush(child)
            number = _number(child.get("value"), number) + 1
            self._marker = ""
            self._indent = indent
        self._kind, self._indent = kind, indent

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
        rows = [
            row
            for row in table.iter("tr")
            if next(row.iterancestors("table"), None) is table and not self._skips(row)
        ]
        cells = [[self._cell(cell) for cell in row.iterchildren("td", "th")] for row in rows]
        written = [(row, texts) for row, texts in zip(rows, cells, strict=True) if any(texts)]
        self._opens = True
        for number, (row, texts) in enumerate(written):
            self._append(row, Kind.ROW, f"| {' | '.join(texts)} |")
            if not number and len(written) > 1 and not self._indent:
                self._append(row, Kind.ROW, f"|{'---|' * len(texts)}")

    def _cell(self, cell: html.HtmlElement) -> str:
        """Return a cell as one line: a list in it has its items marked with bullets, or its numbers."""
        if self._skips(cell):
            return ""
        inner = _Writer(self._skips)
        inner._children(cell, cell)
        inner.flush(cell)
        lines = [re.sub(r"^#+ |^(?:> )+", "", block.text.strip()) for block in inner.blocks]
        return " ".join(re.sub(r"^- ", "• ", " ".join(line.split())) for line in lines)


def _is_layout(table: html.HtmlElement) -> bool:
    """Return whether a table only places what stands in it: nested tables, headings, or one cell a row."""
    if (table.get("role") or "").lower() in ("presentation", "none") or next(
        table.iterdescendants("table"), None
    ) is not None:
        return True
    if any(True for cell in table.iter("td") for _ in cell.iter(*HEADINGS)):
        return True
    return all(len(list(row.iterchildren("td", "th"))) <= 1 for row in table.iter("tr"))


def _heading_of(block: html.HtmlElement) -> html.HtmlElement:
    if local_name(block).lower() in HEADINGS:
        return block
    return next(block.iterancestors(*HEADINGS), block)


def _spaced(text: str | None) -> str:
    return (text or "").replace("\n", " ")


def _number(value: str | None, otherwise: int = 1) -> int:
    return int(value) if value and value.isdecimal() and len(value) < 6 else otherwise
