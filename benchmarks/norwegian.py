"""Real Norwegian text for the benchmarks of data preparation.

It consists of the documents that the readers find in ../shared/corpora, or in a folder with the
same layout.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from data_prep import reading
from data_prep.config import SourceConfig
from data_prep.document import Document, Report

# For each source: its reader, folder and options.
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
# Number of unchanged words before each changed one. If every seventh word is changed, two versions
# share a sixth of their 5-grams, so they are not near duplicates.
WORDS_KEPT = 6


def read_documents(corpora: Path) -> Iterator[Document]:
    """Yield the documents of all sources whose folder exists."""
    for name, (reader, folder, options) in SOURCES.items():
        if (corpora / folder).is_dir():
            source = SourceConfig(reader=reader, path=str(corpora / folder), license="-", options=options)
            yield from reading.read(name, source, Report(), reading.files(source))


def write_text(folder: Path, texts: list[str], megabytes: int, files: int) -> None:
    """Write `megabytes` of text as JSON lines into `files` files.

    All texts are written once, then repeatedly with every seventh word changed.
    """
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
