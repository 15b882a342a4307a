"""Every reader reads real Norwegian text; skipped if the files are missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.data_prep.reading import read

CORPORA = Path(__file__).parents[3] / "shared" / "corpora"


@dataclass(frozen=True)
class Source:
    """A folder of real text, its reader, and its number of documents."""

    id: str
    reader: str
    folder: str
    documents: int
    options: dict[str, Any] = field(default_factory=dict)


SOURCES = [
    Source("lovdata", "lovdata", "lovdata", 1287),
    Source("stortinget", "stortinget", "stortinget-xml", 4),
    Source("parlamint", "parlamint", "parlamint-no", 2),
    Source("talk_of_norway", "talk_of_norway", "stortinget-ton", 17_999),
    Source("einnsyn", "einnsyn", "einnsyn-eksempler", 52),
    Source("documentation", "markdown", "digdir-docs", 499),
    Source("pdf", "pdf", "digdir-docs", 1),
    Source("letters", "parallel", "nav-pensjonsbrev", 1061, {"form": "text"}),
    Source("pairs", "parallel", "nav-pensjonsbrev", 7430, {"form": "messages"}),
    Source("norquad", "squad", "norquad", 3758),
    Source("treebanks", "conllu", "ud", 7446),
]


@pytest.mark.end_to_end
@pytest.mark.skipif(not CORPORA.is_dir(), reason="there are no real corpora in ../shared/corpora")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.id)
def test_every_real_source_is_read_completely(source: Source) -> None:
    documents, report = read(source.reader, CORPORA / source.folder, options=source.options)
    assert len(documents) == source.documents
    assert not report.broken
    assert all(document.whole_text.strip() for document in documents)
    if source.id == "einnsyn":
        assert not any("SENSITIV" in document.whole_text for document in documents)
