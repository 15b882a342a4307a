"""Real Norwegian text for the benchmarks of data preparation: the documents that the readers find
in ../shared/corpora, or in a folder like it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from data_prep import reading
from data_prep.config import SourceConfig
from data_prep.document import Document, Report

# by source: reader, folder, options
SOURCES = {
    "lovdata": ("lovdata", "lovdata", {}),
    "documentation": ("markdown", "digdir-docs", {}),
    "letters": ("parallel", "nav-pensjonsbrev", {"form": "text"}),
    "questions": ("squad", "norquad", {}),
    "stortinget": ("stortinget", "stortinget-xml", {}),
    "parlamint": ("parlamint", "parlamint-no", {}),
    "einnsyn": ("einnsyn", "einnsyn-eksempler", {}),
    "treebanks": ("conllu", "ud", {}),
}
# Words kept before each changed one. With every seventh word changed, two versions share a sixth of
# their 5-grams, so they are not near duplicates.
WORDS_KEPT = 6


def read_documents(corpora: Path) -> Iterator[Document]:
    """Yield all documents of the folders that exist."""
    for name, (reader, folder, options) in SOURCES.items():
        if (corpora / folder).is_dir():
            source = SourceConfig(reader=reader, path=str(corpora / folder), license="-", options=options)
            yield from reading.read(name, source, Report(), reading.files(source))


def write_text(folder: Path, texts: list[str], megabytes: int, files: int) -> None:
    """Write `megabytes` of text as JSON lines into `files` files: the texts, then the texts again
    and again with every seventh word changed."""
    vocabulary = sorted({word for text in texts for word in text.split()})
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    number = 0
    for file in range(files):
        written = 0
        with (folder / f"part-{file:03d}.jsonl").open("w", encoding="utf-8") as out:
            while written < megabytes * 1_000_000 / files:
                text = texts[number % len(texts)]
                if number >= len(texts):
                    text = _edit(text, vocabulary, rng)
                out.write(json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n")
                written += len(text.encode())
                number += 1


def _edit(text: str, vocabulary: list[str], rng: random.Random) -> str:
    lines = []
    for line in text.split("\n"):
        words = line.split(" ")
        changed = range(rng.randrange(WORDS_KEPT + 1), len(words), WORDS_KEPT + 1)
        words[changed.start :: WORDS_KEPT + 1] = rng.choices(vocabulary, k=len(changed))
        lines.append(" ".join(words))
    return "\n".join(lines)
