"""Real Norwegian text through every reader. Skips where it is not at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data_prep.reading import read

CORPORA = Path(__file__).parents[3] / "shared" / "corpora"
SOURCES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "lovdata": ("lovdata", "lovdata", 1287, {}),
    "stortinget": ("stortinget", "stortinget-xml", 4, {}),
    "parlamint": ("parlamint", "parlamint-no", 2, {}),
    "talk_of_norway": ("talk_of_norway", "stortinget-ton", 17_999, {}),
    "einnsyn": ("einnsyn", "einnsyn-eksempler", 52, {}),
    "documentation": ("markdown", "digdir-docs", 499, {}),
    "pdf": ("pdf", "digdir-docs", 1, {}),
    "letters": ("parallel", "nav-pensjonsbrev", 1061, {"form": "text"}),
    "pairs": ("parallel", "nav-pensjonsbrev", 7430, {"form": "messages"}),
    "norquad": ("squad", "norquad", 3758, {}),
    "treebanks": ("conllu", "ud", 7446, {}),
}


@pytest.mark.end_to_end
@pytest.mark.skipif(not CORPORA.is_dir(), reason="the real corpora are not at ../shared/corpora")
@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_read_by_its_own_reader(name: str) -> None:
    reader, folder, expected, options = SOURCES[name]
    documents, report = read(reader, CORPORA / folder, options=options)
    assert len(documents) == expected
    assert not report.broken
    assert all(document.whole_text.strip() for document in documents)
    if name == "einnsyn":
        assert not any("SENSITIV" in document.whole_text for document in documents)
