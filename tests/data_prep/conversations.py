"""Invented conversations, and functions that prepare them and read the result."""

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
from tests.data_prep.reading import write_lines

QUESTION = "Hvor lang er fristen for å klage på vedtaket jeg fikk fra kommunen i forrige uke?"
ANSWER = "Fristen er tre uker fra du fikk vedtaket, og klagen sender du til kommunen."
MESSAGES = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
STAGES = [stage.name for stage in TEXT_STAGES]


def prepare(
    tmp_path: Path,
    sources: dict[str, list[Any]],
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Prepared:
    """Prepare a corpus of conversations.

    Args:
        sources: records by source name. A source whose name begins with `text` is running text.
        options: options of the sources that are conversations.
        settings: settings of the corpus.
    """
    configs = {}
    for name, records in sources.items():
        path = tmp_path / f"{name}.jsonl"
        write_lines(path, records)
        if name.startswith("text"):
            configs[name] = SourceConfig(reader="jsonl", path=str(path), license="CC0-1.0")
        else:
            configs[name] = SourceConfig(
                reader="chat", path=str(path), license="CC0-1.0", options=options or {}
            )
    settings = {
        "tokenizer": TokenizerConfig(vocab_size=400),
        "split": SplitConfig(validation_share=0),
        **settings,
    }
    corpus = CorpusConfig(name="mine", sources=configs, **settings)
    return pipeline.prepare(PrepareConfig(corpus=corpus, corpora_dir=str(tmp_path / "corpora")))


def train_rows(prepared: Prepared) -> list[dict[str, Any]]:
    return list(Corpus(prepared.folder).split("train"))


def decode_targets(prepared: Prepared) -> list[str]:
    """Return for each training row its targets, decoded as one string."""
    tokenizer = Tokenizer.from_file(str(prepared.folder / "tokenizer" / "tokenizer.json"))
    mask = prepared.manifest.mask_column
    decoded = []
    for row in train_rows(prepared):
        pairs = zip(row["input_ids"], row[mask], strict=True)
        targets = [token for token, is_target in pairs if is_target]
        decoded.append(tokenizer.decode(targets, skip_special_tokens=False))
    return decoded


def read_drop_reasons(prepared: Prepared) -> dict[str, str]:
    """Return why each dropped document was dropped, by the document's id."""
    stages = prepared.folder.with_name(".mine.stages")
    return {
        row["id"]: row["reason"]
        for file in stages.glob("*/drops-*.parquet")
        for row in pq.read_table(file).to_pylist()
    }


def read_quarantine(prepared: Prepared) -> dict[str, str]:
    """Return the error of each quarantined record, by the record's place (`file:line`)."""
    files = prepared.folder.with_name(".mine.stages").glob("*/quarantine-*.parquet")
    return {
        f"{row['file']}:{row['at'].removeprefix('line ')}": row["error"]
        for file in files
        for row in pq.read_table(file).to_pylist()
    }


def make_messages(*turns: tuple[str, str], **flags: Any) -> list[dict[str, Any]]:
    """Return messages made from (role, content) turns.

    Args:
        flags: keys that are added to the first answer's message.
    """
    messages = [{"role": role, "content": content} for role, content in turns]
    messages[1] |= flags
    return messages


FIRST_ANSWER = "Vi har åpent fra klokken ni til klokken fire alle hverdager."
TWO_EXCHANGES = (
    ("user", "Når åpner kontoret om morgenen?"),
    ("assistant", FIRST_ANSWER),
    ("user", QUESTION),
    ("assistant", ANSWER),
)


def read_documents(*records: dict[str, Any], report: Report | None = None, **options: Any) -> list[Document]:
    """Return the documents that the reader of conversations makes from records."""
    source = SourceConfig(reader="chat", path="x", license="CC0-1.0", options=options)
    reader_options = claims.parse_options(source, chat.Options)
    reader = chat.ConversationReader(source, reader_options, report or Report())
    documents = [
        reader.build_document(record, Place("chats", "x.jsonl", at=f"line {n}"))
        for n, record in enumerate(records, start=1)
    ]
    return [document for document in documents if document is not None]


def read_turns(record: dict[str, Any], **options: Any) -> list[Turn]:
    (document,) = read_documents(record, **options)
    return document.turns


def copy_with_template(folder: Path, copy: Path, source: Any) -> Path:
    """Copy a tokenizer's folder and put a chat template into the copy's config; return the copy."""
    copy.mkdir()
    (copy / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": source}))
    return copy
