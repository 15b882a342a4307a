"""Text as it was meant: encoding faults repaired, one Unicode form, no control characters, quiet white space."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import ftfy

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report

VERSION = 1

# Curly quotes are correct Norwegian typography («…», ’): ftfy must not flatten them.
_FTFY = ftfy.TextFixerConfig(uncurl_quotes=False, fix_line_breaks=True, normalization="NFC", explain=False)
_INVISIBLE = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff\ufffe]")  # soft hyphens, zero-width marks, PDF hyphen marks
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\n{3,}")


def settings(config: CorpusConfig) -> dict[str, Any]:
    return {"ftfy": ftfy.__version__}


def run(documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
    for document in documents:
        text = normalise(document.text)
        if not text:
            report.drop(document, "empty")
            continue
        report.counts["changed"] += text != document.text
        document.text = text
        document.title = normalise(document.title)
        yield document


def normalise(text: str) -> str:
    text = ftfy.fix_text(text.replace("\f", "\n"), _FTFY)
    text = _SPACES.sub(" ", _INVISIBLE.sub("", text))
    text = "\n".join(line.strip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", text).strip()
