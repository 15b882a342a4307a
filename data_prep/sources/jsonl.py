"""JSON lines: one record a line, plain or gzipped. Only `text` is required; `fields` maps other key names."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.config import SourceConfig
from data_prep.document import Document, Drop, Report
from data_prep.sources.files import decode, find

OPTIONAL = ("id", "group", "language", "title", "date")


def files(config: SourceConfig) -> list[Path]:
    return find(config.path, (".jsonl", ".json", ".jsonl.gz", ".json.gz"))


def read(name: str, config: SourceConfig, report: Report) -> Iterator[Document]:
    key = {ours: config.fields.get(ours, ours) for ours in ("text", *OPTIONAL)}
    for path in files(config):
        for number, raw in enumerate(_lines(path), start=1):
            if not raw.strip():
                continue
            place = f"{path.name}:{number}"
            record, fault = _parse(decode(raw, report), key["text"])
            if fault:
                report.drops.append(Drop(place, name, "unreadable_record", fault))
                continue
            values = {ours: _text(record[key[ours]]) for ours in OPTIONAL if record.get(key[ours]) is not None}
            document_id = values.pop("id", place)
            group = values.pop("group", document_id)
            text = _text(record[key["text"]])
            yield Document(id=document_id, text=text, source=name, license=config.license, group=group, **values)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            yield from lines
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable gzip file ({error}): download it again") from None


def _text(value: object) -> str:
    """JSON's escapes can hold half a character (a lone surrogate), which is no text: it becomes U+FFFD."""
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parse(line: str, text_key: str) -> tuple[dict[str, Any], str]:
    """The record, and what is wrong with it ("" if nothing)."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return {}, f"not JSON: {error.msg}"
    if not isinstance(record, dict):
        return {}, f"a JSON {type(record).__name__}, not an object"
    if not isinstance(record.get(text_key), str):
        return {}, f"no string under '{text_key}'"
    return record, ""
