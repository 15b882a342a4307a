"""HTML pages of any site: the main text, without menus, banners and footers, by trafilatura (extra `prep`).

Headings, lists and tables are kept as Markdown has them; links are reduced to their text. Pages below one folder are a group, by
their address if they name it, else by where they lie.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.config import SourceConfig
from data_prep.document import Document, Drop, Place, Report
from data_prep.sources import claims
from data_prep.sources.files import contents, find, stem
from data_prep.sources.maalfrid import site_folder
from data_prep.sources.markup import parse_html

SUFFIXES = (".html", ".htm", ".xhtml")


def files(source: SourceConfig) -> list[Path]:
    _trafilatura()
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    trafilatura = _trafilatura()
    for where, raw in contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(where):
            root = parse_html(raw, report)
            claimed = claims.language(root.get("lang"))
            about = trafilatura.extract_metadata(root)  # before extract, which may cut what it does not want out of the tree
            text = trafilatura.extract(root, output_format="markdown", include_comments=False)
            if not text:
                report.drops.append(Drop(str(where), name, "no_main_text", "neither paragraphs nor lists outside of navigation"))
            else:
                yield _document(text, about, where, claimed, source)


def _document(text: str, about: Any, where: Place, claimed: str, source: SourceConfig) -> Document:
    place = stem(where)
    return Document(
        id=place,
        text=text,
        title=about.title or "",
        source=where.source,
        license=source.license,
        url=about.url or "",
        date=claims.date(about.date),
        language=claimed or claims.language(about.language),
        group=site_folder(about.url) if about.url else place.rpartition("/")[0] or place,
    )


def _trafilatura() -> Any:
    try:
        return importlib.import_module("trafilatura")
    except ImportError as fault:
        raise ValueError(f"reader webpage needs trafilatura ({fault}): pip install 'finetune[prep]'") from None
