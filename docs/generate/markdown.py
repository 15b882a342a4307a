"""Parts of Markdown pages."""

from __future__ import annotations

import re
from collections.abc import Iterable


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table; cells may hold Markdown, and their vertical bars are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    cells = [" | ".join(_cell(cell) for cell in line) for line in lines]
    return "".join(f"| {line} |\n" for line in cells)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def escape(text: str) -> str:
    """Return a text of the code as Markdown, with what would be markup escaped."""
    return re.sub(r"([*_<>\[\]{}$\\])", r"\\\1", text.replace("\xa0", " "))


def code(text: str) -> str:
    return f"`{text}`"
