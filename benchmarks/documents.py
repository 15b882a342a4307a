"""The documents of the CPU table: provisions of Norwegian acts and regulations, or the bundled sample cut
up."""

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
SHORTEST, LONGEST = (
    300,
    20_000,
)  # characters of a provision; what is longer has an annex behind it, one of them a third of all
SAMPLE = Path(finetune.__file__).parents[2] / "data_prep" / "sample"


def make(cache: Path, download: str | None, count: int) -> tuple[Path, Path, str]:
    """The corpus folder that `finetune prepare` made, the same documents as {"text": …} lines for the peers,
    and what they are.

    Args:
        download: a folder with Lovdata's archives or XML files; None takes the bundled sample.
    """
    pieces, what = (_provisions(download), _PROVISIONS) if download else (_sample(), _SAMPLE)
    shortest = SHORTEST if download else 40
    distinct = list(
        dict.fromkeys(piece.strip() for piece in pieces if shortest <= len(piece.strip()) <= LONGEST)
    )
    random.Random(0).shuffle(distinct)
    distinct = distinct[:count]
    name = "bench-" + hashlib.sha256("\0".join(distinct).encode()).hexdigest()[:8]
    corpus, documents = cache / "corpora" / name, cache / "documents" / name / "documents.jsonl"
    if not documents.exists():
        _prepare(cache, name, distinct)
        _write_documents(corpus, documents)
    return corpus, documents, what


_PROVISIONS = f"Lovdata, one document a provision (§) of {SHORTEST} to {LONGEST:,} characters"
_SAMPLE = "the bundled sample's documents from each of their paragraphs on: too little text for a real measurement, give --text"


def _provisions(download: str) -> Iterator[str]:
    config = SourceConfig(reader="lovdata", path=download, license="NLOD-2.0")
    for document in reading.read("lovdata", config, Report(), reading.files(config)):
        yield from PROVISION.split(document.text)


def _sample() -> Iterator[str]:
    """163 documents are not 2,000: the sample's documents, then the same ones without their first paragraph,
    and so on."""
    report, documents = Report(), []
    for name, reader in (
        ("letters.jsonl", "jsonl"),
        ("minutes.jsonl", "jsonl"),
        ("guidance.jsonl", "jsonl"),
        ("laws", "lovdata"),
        ("consultation_replies", "text"),
    ):
        config = SourceConfig(reader=reader, path=str(SAMPLE / name), license="CC0-1.0")
        documents += [
            document.text.split("\n\n")
            for document in reading.read(name, config, report, reading.files(config))
        ]
    for skipped in range(max(len(paragraphs) for paragraphs in documents)):
        yield from (
            "\n\n".join(paragraphs[skipped:]) for paragraphs in documents if skipped < len(paragraphs)
        )


def _prepare(cache: Path, name: str, texts: list[str]) -> None:
    raw, conf = cache / "raw" / f"{name}.jsonl", cache / "conf"
    raw.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"id": str(i), "text": text, "language": "nob"}, ensure_ascii=False)
        for i, text in enumerate(texts)
    ]
    raw.write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus: dict[str, Any] = {
        "name": name,
        "sources": {"bench": {"reader": "jsonl", "path": str(raw), "license": "NLOD-2.0"}},
        "language": {"keep": ["nob", "nno", "dan", "swe", "eng", "sme"]},
        "split": {"validation_share": 0.0},
        "tokenizer": {"vocab_size": 8000},
    }
    (conf / "corpus").mkdir(parents=True, exist_ok=True)
    (conf / "corpus" / f"{name}.yaml").write_text(json.dumps(corpus), encoding="utf-8")  # JSON is YAML
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
    """The training split back as text, so that every peer reads exactly what the shards hold, and tokenises
    it itself."""
    from tokenizers import Tokenizer

    from data_prep.shards import Corpus

    tokenizer = Tokenizer.from_file(str(corpus / "tokenizer" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    rows = [
        list(row)[:-1] for row in Corpus(corpus).split("train")["input_ids"]
    ]  # without the end of sequence
    texts = tokenizer.decode_batch(rows, skip_special_tokens=False)
    differing = sum(e.ids != ids for e, ids in zip(tokenizer.encode_batch_fast(texts), rows, strict=True))
    assert differing == 0, f"{differing} documents do not come back from their tokens"
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir(parents=True)
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
