"""Text as it was meant: encoding faults repaired, one Unicode form, no control characters, quiet white space."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import ftfy

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report

VERSION = 2

# Curly quotes are correct Norwegian typography («…», ’): ftfy must not flatten them.
_FTFY = ftfy.TextFixerConfig(uncurl_quotes=False, fix_line_breaks=True, normalization="NFC", explain=False)
_INVISIBLE = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff\ufffe]")  # soft hyphens, zero-width marks, PDF hyphen marks
_SPACES = re.compile(r"[^\S\n]+")
_ODD_SPACES = re.compile(r"[^\S\n\t ]")
_BLANK_LINES = re.compile(r"\n{3,}")


def settings(config: CorpusConfig) -> dict[str, Any]:
    return {"ftfy": ftfy.__version__}


def run(documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
    for document in documents:
        before = document.whole_text
        document.text = normalise(document.text)
        for turn in document.turns:
            # Plain prompts and completions meet without anything between them: the white space there is theirs.
            turn.content = repair(turn.content).strip() if turn.role else repair(turn.content)
        if not document.whole_text.strip():
            report.drop(document, "empty")
        elif any(turn.target and not turn.content.strip() for turn in document.turns):
            report.drop(document, "empty_answer")
        else:
            report.counts["changed"] += document.whole_text != before
            document.title = normalise(document.title)
            yield document


def normalise(text: str) -> str:
    """Running text, on which layout left only noise."""
    text = _SPACES.sub(" ", _fixed(text))
    text = "\n".join(line.strip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", text).strip()


def repair(text: str) -> str:
    """A turn of a conversation: its indents and blank lines are lists, tables and code, and stay."""
    return _ODD_SPACES.sub(" ", _fixed(text))


def _fixed(text: str) -> str:
    return _INVISIBLE.sub("", ftfy.fix_text(text.replace("\f", "\n"), _FTFY))
