"""Invented conversations, and helpers that read, prepare and decode them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tokenizers import Tokenizer

from data_prep import pipeline
from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig
from data_prep.document import Document, Place, Report, Turn
from data_prep.pipeline import Prepared
from data_prep.shards import Corpus
from data_prep.sources import chat, claims
from data_prep.stage_settings import SplitConfig, TokenizerConfig
from data_prep.stages import TEXT_STAGES

ASKED = "Hvor lang er fristen for å klage på vedtaket jeg fikk fra kommunen i forrige uke?"
TOLD = "Fristen er tre uker fra du fikk vedtaket, og klagen sender du til kommunen."
MESSAGES = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": TOLD}]
STAGES = [stage.name for stage in TEXT_STAGES]


def prepare(
    tmp_path: Path, sources: dict[str, list[Any]], options: dict[str, Any] | None = None, **settings: Any
) -> Prepared:
    """Prepare records; source names that begin with `text` are read as running text."""
    configs = {}
    for name, records in sources.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        is_text = name.startswith("text")
        configs[name] = SourceConfig(
            reader="jsonl" if is_text else "chat",
            path=str(path),
            license="CC0-1.0",
            options={} if is_text else options or {},
        )
    settings = {
        "tokenizer": TokenizerConfig(vocab_size=400),
        "split": SplitConfig(validation_share=0),
        **settings,
    }
    corpus = CorpusConfig(name="mine", sources=configs, **settings)
    return pipeline.prepare(PrepareConfig(corpus=corpus, corpora_dir=str(tmp_path / "corpora")))


def rows(prepared: Prepared) -> list[dict[str, Any]]:
    return list(Corpus(prepared.folder).split("train"))


def learned(prepared: Prepared) -> list[str]:
    """What each row teaches, decoded."""
    tokenizer = Tokenizer.from_file(str(prepared.folder / "tokenizer" / "tokenizer.json"))
    mask = prepared.manifest.mask_column
    return [
        tokenizer.decode(
            [t for t, m in zip(row["input_ids"], row[mask], strict=True) if m], skip_special_tokens=False
        )
        for row in rows(prepared)
    ]


def drops(prepared: Prepared) -> dict[str, str]:
    stages = prepared.folder.with_name(".mine.stages")
    return {
        row["id"]: row["reason"]
        for file in stages.glob("*/drops-*.parquet")
        for row in pq.read_table(file).to_pylist()
    }


def quarantined(prepared: Prepared) -> dict[str, str]:
    files = prepared.folder.with_name(".mine.stages").glob("*/quarantine-*.parquet")
    return {
        f"{row['file']}:{row['at'].removeprefix('line ')}": row["error"]
        for f in files
        for row in pq.read_table(f).to_pylist()
    }


def asked_and_told(*turns: tuple[str, str], **flags: Any) -> list[dict[str, Any]]:
    """User and assistant in turn; `flags` go to the first answer."""
    messages = [{"role": role, "content": content} for role, content in turns]
    messages[1] |= flags
    return messages


FIRST = "Vi har åpent fra klokken ni til klokken fire alle hverdager."
TWO = (
    ("user", "Når åpner kontoret om morgenen?"),
    ("assistant", FIRST),
    ("user", ASKED),
    ("assistant", TOLD),
)


def documents_of(*records: dict[str, Any], report: Report | None = None, **options: Any) -> list[Document]:
    """The documents that the reader makes of records."""
    source = SourceConfig(reader="chat", path="x", license="CC0-1.0", options=options)
    reader = chat.ConversationReader(source, claims.options(source, chat.Options), report or Report())
    found = [
        reader.document(record, Place("chats", "x.jsonl", at=f"line {n}"))
        for n, record in enumerate(records, start=1)
    ]
    return [document for document in found if document is not None]


def turns_of(record: dict[str, Any], **options: Any) -> list[Turn]:
    (document,) = documents_of(record, **options)
    return document.turns


def with_template(folder: Path, copy: Path, source: Any) -> Path:
    copy.mkdir()
    (copy / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": source}))
    return copy
