"""Reader of plain text files. Each file is one document.

If the second line is blank, the first line is the document's title.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.document import Document, Report
from data_prep.sources.files import decode, find_files, id_from_place, iter_contents

SUFFIXES = (".txt",)


def list_files(source: SourceConfig) -> list[Path]:
    return find_files(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    for place, raw in iter_contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(place):
            text = decode(raw, report)
            lines = text.splitlines()
            title = lines[0].strip() if len(lines) > 1 and not lines[1].strip() else ""
            document_id = id_from_place(place)
            yield Document(
                id=document_id, text=text, title=title, source=name, license=source.license, group=document_id
            )
