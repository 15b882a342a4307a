"""Documents for the training benchmarks.

They are provisions of Norwegian acts and regulations, or parts of the bundled sample.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import finetune
from benchmarks.harness import FINETUNE
from data_prep import reading
from data_prep.config import SourceConfig
from data_prep.document import Report

PROVISION = re.compile(r"\n\n(?=§)")
# Limits of a provision, in characters. Longer provisions include an annex, and one such annex is a
# third of all text.
MIN_CHARACTERS = 300
MAX_CHARACTERS = 20_000
SAMPLE = Path(finetune.__file__).parents[2] / "data_prep" / "sample"
_PROVISIONS = f"Lovdata, one document per provision (§) of {MIN_CHARACTERS} to {MAX_CHARACTERS:,} characters"
_SAMPLE = (
    "the bundled sample's documents from each of their paragraphs on: "
    "too little text for a real measurement, give --text"
)


def make_documents(cache: Path, download: str | None, count: int) -> tuple[Path, Path, str]:
    """Prepare the documents of a benchmark, unless they are in the cache.

    Args:
        download: a folder with Lovdata's archives or XML files; None uses the bundled sample.
        count: number of documents.

    Returns:
        Three values: the corpus folder that `finetune prepare` wrote; a file of JSON lines with the
        same documents, for the other systems; and a description of the documents for the report.
    """
    if download:
        pieces = _read_provisions(download)
        description = _PROVISIONS
        shortest = MIN_CHARACTERS
    else:
        pieces = _read_sample()
        description = _SAMPLE
        shortest = 40
    stripped = (piece.strip() for piece in pieces)
    chosen = (text for text in stripped if shortest <= len(text) <= MAX_CHARACTERS)
    distinct = list(dict.fromkeys(chosen))
    random.Random(0).shuffle(distinct)
    distinct = distinct[:count]
    name = "bench-" + hashlib.sha256("\0".join(distinct).encode()).hexdigest()[:8]
    corpus = cache / "corpora" / name
    documents = cache / "documents" / name / "documents.jsonl"
    if not documents.exists():
        _prepare(cache, name, distinct)
        _write_documents(corpus, documents)
    return corpus, documents, description


def _read_provisions(download: str) -> Iterator[str]:
    config = SourceConfig(reader="lovdata", path=download, license="NLOD-2.0")
    for document in reading.read("lovdata", config, Report(), reading.files(config)):
        yield from PROVISION.split(document.text)


def _read_sample() -> Iterator[str]:
    """Yield the sample's 163 documents, then shorter versions of them.

    A benchmark may need more documents than the sample has. Shorter versions lack one paragraph or
    more at their start: first come all that lack one, then those that lack two, and so on.
    """
    report = Report()
    documents = []
    readers = {
        "letters.jsonl": "jsonl",
        "minutes.jsonl": "jsonl",
        "guidance.jsonl": "jsonl",
        "laws": "lovdata",
        "consultation_replies": "text",
    }
    for name, reader in readers.items():
        config = SourceConfig(reader=reader, path=str(SAMPLE / name), license="CC0-1.0")
        for document in reading.read(name, config, report, reading.files(config)):
            documents.append(document.text.split("\n\n"))
    for skipped in range(max(len(paragraphs) for paragraphs in documents)):
        for paragraphs in documents:
            if skipped < len(paragraphs):
                yield "\n\n".join(paragraphs[skipped:])


def _prepare(cache: Path, name: str, texts: list[str]) -> None:
    raw = cache / "raw" / f"{name}.jsonl"
    conf = cache / "conf"
    raw.parent.mkdir(parents=True, exist_ok=True)
    records = [{"id": str(i), "text": text, "language": "nob"} for i, text in enumerate(texts)]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    raw.write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus: dict[str, Any] = {
        "name": name,
        "sources": {"bench": {"reader": "jsonl", "path": str(raw), "license": "NLOD-2.0"}},
        "language": {"keep": ["nob", "nno", "dan", "swe", "eng", "sme"]},
        "split": {"validation_share": 0.0},
        "tokenizer": {"vocab_size": 8000},
    }
    (conf / "corpus").mkdir(parents=True, exist_ok=True)
    # JSON is valid YAML.
    (conf / "corpus" / f"{name}.yaml").write_text(json.dumps(corpus), encoding="utf-8")
    command = [
        str(FINETUNE),
        "prepare",
        f"corpus={name}",
        "--config-dir",
        str(conf),
        f"corpora_dir={cache / 'corpora'}",
    ]
    subprocess.run(command, check=True)


def _write_documents(corpus: Path, path: Path) -> None:
    """Write the texts of the training split as JSON lines, decoded from the corpus' tokens.

    The other systems then tokenise exactly the text that finetune trains on.
    """
    from tokenizers import Tokenizer

    from data_prep.shards import Corpus

    tokenizer = Tokenizer.from_file(str(corpus / "tokenizer" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    # The last token of each row is the end-of-sequence token.
    rows = [list(row)[:-1] for row in Corpus(corpus).split("train")["input_ids"]]
    texts = tokenizer.decode_batch(rows, skip_special_tokens=False)
    encodings = tokenizer.encode_batch_fast(texts)
    differing = sum(encoding.ids != ids for encoding, ids in zip(encodings, rows, strict=True))
    assert differing == 0, f"{differing} documents change when they are decoded and tokenised again"
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir(parents=True)
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
