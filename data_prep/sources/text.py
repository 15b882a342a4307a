"""Plain text: one document a file. The first line is the title when a blank line follows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.document import Document, Report
from data_prep.sources.files import decode, find


def files(config: SourceConfig) -> list[Path]:
    return find(config.path, (".txt",))


def read(name: str, config: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    root = Path(config.path)
    for path in paths:
        place = path.relative_to(root).with_suffix("").as_posix() if root.is_dir() else path.stem
        text = decode(path.read_bytes(), report)
        lines = text.splitlines()
        title = lines[0].strip() if len(lines) > 1 and not lines[1].strip() else ""
        yield Document(id=place, text=text, title=title, source=name, license=config.license, group=place)
