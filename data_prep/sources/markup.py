"""Safe parsing of XML and HTML: without network access or entity expansion, with bounded depth."""

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
    """Parse an XML document, and return its root element.

    HTML's named character references, such as &nbsp;, are replaced by their characters.

    Raises:
        Unreadable: the document is not well-formed, is nested deeper than 256 elements, or uses an
            entity that it declares itself. Such entities are not expanded, for safety.
    """
    declared = _DECLARATION.match(raw[:4096])
    text = decode(raw, report, declared[1].decode() if declared else "")
    text = re.sub(r"^\s*<\?xml.*?\?>", "", text, count=1, flags=re.DOTALL)
    text = _ENTITY.sub(_replace_html_entity, text)
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
    entity = next(root.iter(etree.Entity), None)
    if entity is not None:
        raise Unreadable(
            f"uses the entity {entity.text}, which it declares itself; such entities are not expanded"
        )
    return root


def _replace_html_entity(match: re.Match[str]) -> str:
    if match[1] in _XML_ENTITIES:
        return match[0]
    return html5.get(match[1], match[0])


def parse_html(raw: bytes, report: Report) -> html.HtmlElement:
    """Parse an HTML page, whose markup may be broken, and return its root element.

    Raises:
        Unreadable: the bytes are empty or not text, or elements are nested deeper than 256 levels,
            where the parser would drop text.
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
    # libxml2 drops text that is nested too deeply or too long, and reports it only in its log.
    for entry in parser.error_log:
        if entry.level == etree.ErrorLevels.FATAL:
            raise Unreadable(f"cannot be parsed to its end: {entry.message}")
    return root


def local_name(element: etree._Element) -> str:
    """Return an element's tag without namespace; "" for comments and other nodes without a tag."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def squeeze(parts: Iterable[str | bytes]) -> str:
    """Join pieces of text to one line, with each sequence of white space replaced by one space."""
    return " ".join("".join(map(str, parts)).split())


def iter_blocks(
    root: etree._Element, is_block: Callable[[etree._Element], bool], skips: Callable[[etree._Element], bool]
) -> Iterator[tuple[etree._Element, str]]:
    """Yield each block element with text of its own, and that text as one line, in document order.

    Line breaks become spaces, and table cells are separated by " | ".

    Args:
        is_block: returns whether an element begins a new line.
        skips: returns whether an element is left out, with all its content.
    """
    pieces: list[tuple[etree._Element, str]] = []
    inline: list[str] = []

    def flush(block: etree._Element) -> None:
        line = squeeze(inline)
        inline.clear()
        if line:
            pieces.append((block, line))

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
