"""Parts of Markdown pages."""

from __future__ import annotations

import re
from collections.abc import Iterable


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table. Cells may contain Markdown; their vertical bars are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    cells = [" | ".join(_cell(cell) for cell in line) for line in lines]
    return "".join(f"| {line} |\n" for line in cells)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def escape(text: str) -> str:
    """Return a plain text as Markdown, with characters that would be markup escaped."""
    return re.sub(r"([*_<>\[\]{}$\\])", r"\\\1", text.replace("\xa0", " "))


def code(text: str) -> str:
    return f"`{text}`"
