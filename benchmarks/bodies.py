"""Extraction of the text of a source's files, without data_prep's readers.

letters.py compares this text with the readers' text, and counts the letters that are missing there.
The text consists of pieces. A piece is named after its place in the file (an element and its class,
a key, a column), so that the table can list the places that a reader leaves out.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lxml import etree, html

SKIPPED = ("head", "script", "style", "nav", "template", "noscript")
_FRONT_MATTER = re.compile(r"\A---\s*\n.*?\n---\s*(?:\n|\Z)", re.DOTALL)
_MARKDOWN = re.compile(
    r"(?P<comment><!--.*?-->)|(?P<template>\{[%{].*?[%}]\}|\{:[^}]*\})|(?P<tag></?\w[^<>]*>)|"
    r"(?P<address>\]\([^()\s]*(?:\([^()]*\)[^()]*)*\)|^\s*\[[^\]\n]+\]:\s+\S+.*$|https?://[^\s)>\]]+)",
    re.DOTALL | re.MULTILINE,
)


# Elements that are mere mark-up. A piece is named after such an element only if it has a class.
_MARK_UP = frozenset(
    ["span", "a", "b", "i", "em", "strong", "sup", "sub", "p", "li", "ul", "ol", "td", "th", "tr", "tbody"]
)


@dataclass(frozen=True)
class Piece:
    """A piece of a file's text; `name` describes its place in the file, e.g. an element or a key."""

    name: str
    text: str


def copy_unpacked(folder: Path, into: Path) -> Path:
    """Copy the files of a folder into `into`, and return `into`. Tar archives are unpacked."""
    if folder.is_file():
        root = folder.parent
        paths = [folder]
    else:
        root = folder
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        target = into / path.relative_to(root)
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                archive.extractall(target, filter="data")
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return into


def _find_name(element: etree._Element) -> str:
    """Return the name of an element's place in its file, such as "div.footer".

    The name is "tag.class", with the first class, or "tag" if the element has no class. An element
    that is mere mark-up, such as bold, and has no class gets the name of the element around it. The
    name is "body" if there is no other element around it.
    """
    for above in (element, *element.iterancestors()):
        name = above.tag.rpartition("}")[2] if isinstance(above.tag, str) else "comment"
        classes = (above.get("class") or "").split()
        if classes:
            return f"{name}.{classes[0]}"
        if name not in _MARK_UP:
            return name
    return "body"


def _pieces(root: etree._Element) -> Iterator[Piece]:
    for element in root.iter(etree.Element):
        if any(above.tag in SKIPPED for above in (element, *element.iterancestors())):
            continue
        yield Piece(_find_name(element), element.text or "")
        for child in element:
            yield Piece(_find_name(element), child.tail or "")


def _xml(path: Path, inside: str = "") -> Iterator[Piece]:
    content = path.read_bytes().lstrip(b"\xef\xbb\xbf")
    root = etree.fromstring(content, etree.XMLParser(recover=True, remove_comments=True))
    for top in root.iter(inside) if inside else [root]:
        yield from _pieces(top)


def _html(path: Path) -> Iterator[Piece]:
    parser = html.HTMLParser(encoding="utf-8", remove_comments=True)
    root = html.document_fromstring(path.read_bytes(), parser=parser)
    mains = [*root.iter("main")]
    articles = [top for top in root.iter("article") if top.getparent() is not None]
    tops = mains or articles or [root]
    outermost = [top for top in tops if not any(above in tops for above in top.iterancestors())]
    for top in outermost:
        yield from _pieces(top)


def _journal(path: Path) -> Iterator[Piece]:
    """Yield the values in a journal of public records (eInnsyn), an XML or JSON-LD file.

    Each value is a piece, named after its XML element or JSON key. Values that are not public are
    included, although a reader must leave them out. In JSON-LD, web addresses are left out.
    """
    if path.suffix == ".xml":
        yield from _xml(path)
        return
    yield from _values(json.loads(path.read_text(encoding="utf-8-sig")), "")


def _values(value: Any, name: str) -> Iterator[Piece]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "@value" or not key.startswith("@"):
                yield from _values(inner, name if key == "@value" else re.split(r"[/:#]", key)[-1])
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner, name)
    elif isinstance(value, str) and not value.startswith("http"):
        yield Piece(name, value)


def _markdown(path: Path) -> Iterator[Piece]:
    text = path.read_text(encoding="utf-8", errors="replace").lstrip("\ufeff").replace("\r\n", "\n")
    front = _FRONT_MATTER.match(text)
    if front:
        yield Piece("front matter", front[0])
        text = text[front.end() :]
    position = 0
    for match in _MARKDOWN.finditer(text):
        yield Piece("text", text[position : match.start()])
        yield Piece(str(match.lastgroup), match[0])
        position = match.end()
    yield Piece("text", text[position:])


def _lines(path: Path) -> Iterator[Piece]:
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        yield Piece("line", line)


def _table(path: Path, column: str) -> Iterator[Piece]:
    for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")):
        yield Piece(f"column {column}", row[column] or "")


def _speeches(path: Path) -> Iterator[Piece]:
    yield from _table(path, "text") if path.suffix == ".csv" else _lines(path)


def _records(path: Path, keys: tuple[str, ...]) -> Iterator[Piece]:
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        record = json.loads(line)
        for key in keys:
            yield Piece(f"key {key}", record.get(key) or "")


def _questions(path: Path) -> Iterator[Piece]:
    for entry in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in entry["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = [answer["text"] for answer in asked["answers"] if answer["text"]]
                if answers:
                    yield Piece("context", paragraph["context"])
                    yield Piece("question", asked["question"])
                    yield Piece("answer", answers[0])
                else:
                    yield Piece("question without an answer", asked["question"])


def _sentences(path: Path) -> Iterator[Piece]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# text ="):
            yield Piece("sentence", line.partition("=")[2])


def _pdf(path: Path) -> Iterator[Piece]:
    pypdfium2 = importlib.import_module("pypdfium2")
    document = pypdfium2.PdfDocument(path)
    for page in document:
        text = page.get_textpage().get_text_range().replace("\ufffe", "").replace("\xad", "")
        for line in text.splitlines():
            yield Piece("page", line)


def _main_elements(path: Path) -> Iterator[Piece]:
    """Yield the pieces of the main element of Lovdata's XML-like HTML."""
    parser = html.HTMLParser(encoding="utf-8", remove_comments=True)
    root = html.document_fromstring(path.read_bytes(), parser=parser)
    for main in root.iter("main"):
        yield from _pieces(main)


BODIES: dict[str, Callable[[Path], Iterator[Piece]]] = {
    "lovdata": lambda path: _html(path) if path.suffix == ".html" else _main_elements(path),
    "stortinget": _xml,
    "parlamint": lambda path: _xml(path, "{*}body"),
    "einnsyn": _journal,
    "regjeringen": _html,
    "webpage": _html,
    "markdown": _markdown,
    "pdf": _pdf,
    "text": _lines,
    "talk_of_norway": _speeches,
    "parallel": lambda path: _records(path, ("nob", "nno", "eng")),
    "squad": _questions,
    "conllu": _sentences,
}


# Places that readers leave out on purpose. Their pieces are compared last, so that they do not
# match text that belongs to other pieces.
LEFT_OUT = re.compile(
    r"article\.(footnote|changesToParent)|sup\.|span\.footnote|desc|address|front matter"
    r"|tag|template|comment|.*_SENSITIV|.*_LIST"
    r"|(tittel|beskrivelse|systemID|opprettetAv|question without an answer)$"
)


# Readers that read one key or column.
FIELD_BODIES: dict[str, Callable[[Path, str], Iterator[Piece]]] = {
    "table": _table,
    "jsonl": lambda path, key: _records(path, (key,)),
}
READERS = sorted({*BODIES, *FIELD_BODIES})


def read_pieces(reader: str, path: Path, text_key: str = "text") -> list[Piece]:
    """Return the pieces of a file's text; pieces that a reader should keep come first.

    Args:
        reader: name of the reader of data_prep that is measured.
        text_key: the key or column that the reader is configured to read.
    """
    pieces = FIELD_BODIES[reader](path, text_key) if reader in FIELD_BODIES else BODIES[reader](path)
    return sorted(pieces, key=lambda piece: bool(LEFT_OUT.match(piece.name)))
