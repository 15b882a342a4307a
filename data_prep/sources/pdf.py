"""PDF files with a text layer, by PDFium (extra `prep`): one document a file.

Words that a line break parted are joined: PDFium writes U+FFFE for their hyphen, and for one that belongs there too, as in
"risiko- og" or "ID-porten". Lines that stand at the top or foot of most pages (titles, page numbers) and tables of contents are
left out, and lines of one paragraph are joined. A file without text, a scan, is dropped.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.config import SourceConfig
from data_prep.document import Document, Drop, Report, Unreadable
from data_prep.sources import claims
from data_prep.sources.files import contents, find, stem

SUFFIXES = (".pdf",)
EDGE_LINES = 3  # at the top and the foot of a page, where running titles are looked for
_NUMBER = re.compile(r"\d+")
_HYPHEN = re.compile("((?<!\\w)\\w++|)[\ufffe\u00ad]\\s*(\\w*)")
_COORDINATIONS = ("og", "eller", "samt", "til", "men", "and", "or")
_CONTENTS = re.compile(r"(?:innhold|innhald)(?:sfortegnelse|sliste|sfortegning)?|contents|table of contents", re.IGNORECASE)
_BULLET = re.compile(r"[–•▪◦\-*]\s")
_ITEM = re.compile(r"[–•▪◦\-*]\s|\(?\w{1,3}[.)]\s|\d+(\.\d+)*\.?\s+\S")
_LEADERS_BACKWARDS = re.compile(r"\d*\s*(?:\.\s*){4}")  # of a table of contents, from a line's end


def files(source: SourceConfig) -> list[Path]:
    _pdfium()
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    for where, raw in contents(name, source, report, paths, SUFFIXES, ("a PDF",)):
        with report.quarantining(where):
            pages, about = _pages(raw)
            text = running_text(pages)
            place = stem(where)
            if not text:
                report.drops.append(Drop(place, name, "no_text_layer", f"{len(pages)} pages without text: a scan?"))
                continue
            yield Document(
                id=place, text=text, title=about.get("Title", ""), source=name, license=source.license, group=place,
                date=claims.date(_pdf_date(about.get("CreationDate", ""))),
            )  # fmt: skip


def _pages(raw: bytes) -> tuple[list[str], dict[str, str]]:
    pdfium = _pdfium()
    try:
        document = pdfium.PdfDocument(raw)
        try:
            pages = [document[number].get_textpage().get_text_range() for number in range(len(document))]
            return pages, document.get_metadata_dict()
        finally:
            document.close()
    except pdfium.PdfiumError as fault:
        raise Unreadable(f"not a readable PDF: {fault}") from None


def running_text(pages: list[str]) -> str:
    """Paragraphs of all pages, without what is repeated at their edges."""
    split = [[line.strip() for line in page.replace("\r\n", "\n").split("\n")] for page in pages]
    split = [[line for line in lines if line] for lines in split]
    edges = Counter(key for lines in split for key in {_key(line) for line in _edges(lines)})
    repeated = {key for key, count in edges.items() if count >= 3 and count > len(pages) / 2}
    lines = [line for page in split for n, line in enumerate(page) if not _is_running_title(n, line, page, repeated)]
    listed = [bool(_LEADERS_BACKWARDS.match(line[::-1])) for line in lines]
    headed = [_CONTENTS.fullmatch(line) and any(listed[n + 1 : n + 3]) for n, line in enumerate(lines)]
    return _paragraphs([line for n, line in enumerate(lines) if not listed[n] and not headed[n]])


def _is_running_title(number: int, line: str, page: list[str], repeated: set[str]) -> bool:
    at_edge = number < EDGE_LINES or number >= len(page) - EDGE_LINES
    return at_edge and (_key(line) in repeated or bool(re.fullmatch(r"(?:side\s*)?\d{1,4}(?:\s*(?:av|/)\s*\d+)?", line, re.I)))


def _edges(lines: list[str]) -> list[str]:
    return lines[:EDGE_LINES] + lines[max(EDGE_LINES, len(lines) - EDGE_LINES) :]


def _key(line: str) -> str:
    return _NUMBER.sub("0", line)


def _paragraphs(lines: list[str]) -> str:
    """A line goes on in the next if it is about as long as lines get, or ends inside a word, and the next does not open anew."""
    lengths = sorted(len(line) for line in lines)
    full = lengths[int(len(lengths) * 0.8)] * 0.75 if lengths else 0
    paragraphs: list[list[str]] = []  # of pieces each
    open_end = was_item = False
    for line in lines:
        before = paragraphs[-1][-1] if paragraphs else ""
        parted = before.endswith(("\ufffe", "\u00ad"))
        starts_low = line[:1].islower() or line[:1] in ",.;)"
        if parted or (open_end and not _ITEM.match(line)) or (before and starts_low and before[-1] not in ".!?:"):
            paragraphs[-1].append(line if parted else f" {line}")
        else:
            paragraphs.append([line])
        open_end = len(line) >= full and not line.endswith((".", "!", "?", ":"))
    text = ""
    for paragraph in map("".join, paragraphs):
        is_item = bool(_BULLET.match(paragraph))
        text += ("" if not text else "\n" if is_item and was_item else "\n\n") + _HYPHEN.sub(_joined, paragraph)
        was_item = is_item
    return text


def _joined(match: re.Match[str]) -> str:
    """The two halves of a word that a line break parted."""
    before, after = match[1], match[2]
    if after in _COORDINATIONS:
        return f"{before}- {after}"
    keeps = not before or before[-1].isdigit() or before.isupper() or after[:1].isupper() or after[:1].isdigit()
    return f"{before}-{after}" if keeps else before + after


def _pdf_date(date: str) -> str:
    return re.sub(r"^D:(\d{4})(\d{2})(\d{2}).*", r"\1-\2-\3", date)


def _pdfium() -> Any:
    try:
        return importlib.import_module("pypdfium2")
    except ImportError as fault:
        raise ValueError(f"reader pdf needs pypdfium2 ({fault}): pip install 'finetune[prep]'") from None
