"""Markup from outside: parsed without network, entities or depth without end, and running text out of what is
kept of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from html.entities import html5

from lxml import etree, html

from data_prep.document import Report, Unreadable
from data_prep.sources.files import decode

_DECLARATION = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["'][^>]*?>""")
_META_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)
_ENTITY = re.compile(r"&(\w+;)")
_XML_ENTITIES = ("amp;", "lt;", "gt;", "quot;", "apos;")


def parse_xml(raw: bytes, report: Report) -> etree._Element:
    """The root of an XML document. HTML's names of characters (&nbsp;) are understood; entities of its own
    are not expanded.

    Raises:
        Unreadable: it is not well formed, is nested deeper than 256 elements, or uses entities of its own.
    """
    declared = _DECLARATION.match(raw[:4096])
    text = decode(raw, report, declared[1].decode() if declared else "")
    text = re.sub(r"^\s*<\?xml.*?\?>", "", text, count=1, flags=re.DOTALL)
    text = _ENTITY.sub(
        lambda match: match[0] if match[1] in _XML_ENTITIES else html5.get(match[1], match[0]), text
    )
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        huge_tree=False,
        load_dtd=False,
        remove_comments=True,
        remove_pis=True,
        encoding="utf-8",
    )
    try:
        root = etree.fromstring(text.encode(), parser)
    except etree.XMLSyntaxError as error:
        raise Unreadable(f"not well-formed XML: {error.msg}") from None
    if (entity := next(root.iter(etree.Entity), None)) is not None:
        raise Unreadable(f"uses an entity of its own, {entity.text}, which is not expanded")
    return root


def parse_html(raw: bytes, report: Report) -> html.HtmlElement:
    """The root of an HTML page, however broken.

    Raises:
        Unreadable: there is no markup in it, or it is nested deeper than 256 elements: what is deeper would
            be lost.
    """
    declared = _DECLARATION.match(raw[:4096]) or _META_CHARSET.search(raw[:4096])
    text = decode(raw, report, declared[1].decode() if declared else "")
    parser = html.HTMLParser(
        huge_tree=False, no_network=True, remove_comments=True, remove_pis=True, encoding="utf-8"
    )
    try:
        root = html.document_fromstring(text.encode(), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError) as error:
        raise Unreadable(f"not markup: {error}") from None
    # libxml2 goes on without what is too deep or too long, and says so in its log alone.
    if cut := next((entry for entry in parser.error_log if entry.level == etree.ErrorLevels.FATAL), None):
        raise Unreadable(f"not read to its end: {cut.message}")
    return root


def local_name(element: etree._Element) -> str:
    """A tag without its namespace; "" of what is no element."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def squeeze(parts: Iterable[str | bytes]) -> str:
    """Pieces of text as one line."""
    return " ".join("".join(map(str, parts)).split())


def blocks(
    root: etree._Element, is_block: Callable[[etree._Element], bool], skips: Callable[[etree._Element], bool]
) -> Iterator[tuple[etree._Element, str]]:
    """Running text in document order, cut at the borders of blocks: each piece with the innermost block that
    it stands in.

    Line breaks become spaces, and table cells are parted by " | ".
    """
    pieces: list[tuple[etree._Element, str]] = []
    inline: list[str] = []

    def flush(block: etree._Element) -> None:
        if line := squeeze(inline):
            pieces.append((block, line))
        inline.clear()

    def walk(element: etree._Element, block: etree._Element) -> None:
        name = local_name(element).lower()
        inner = block
        if is_block(element):
            flush(block)
            inner = element
        elif name in ("td", "th", "entry") and element.getprevious() is not None:
            inline.append(" | ")
        elif name in ("br", "td", "th", "entry"):
            inline.append(" ")
        inline.append(element.text or "")
        for child in element:
            if local_name(child) and not skips(child):
                walk(child, inner)
            inline.append(child.tail or "")
        if inner is element:
            flush(element)

    walk(root, root)
    flush(root)
    yield from pieces
