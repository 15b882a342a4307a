"""JSON lines, or one JSON array of records, plain or gzipped. Only `text` is required; `fields` maps other key names."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.config import SourceConfig
from data_prep.document import Document, Place, Report
from data_prep.sources.files import decode, find, place

OPTIONAL = ("id", "group", "language", "title", "date", "url")


def files(config: SourceConfig) -> list[Path]:
    return find(config.path, (".jsonl", ".json", ".jsonl.gz", ".json.gz"))


def read(name: str, config: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    key = config.fields.get("text", "text")
    for where, record in records(name, config, report, paths):
        if isinstance(record.get(key), str):
            yield Document(text=clean(record[key]), **described(record, where, config))
        else:
            report.quarantine(where, f"no string under '{key}'")


def records(name: str, config: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Every JSON object of the files, with its place; what is none is quarantined."""
    for path in paths:
        file = place(name, config, path)
        for number, value in _values(path, report):
            where = replace(file, at=f"line {number}")
            if isinstance(value, dict):
                yield where, value
            else:
                report.quarantine(
                    where, value if isinstance(value, ValueError) else f"a JSON {type(value).__name__}, not an object"
                )


def described(record: dict[str, Any], where: Place, config: SourceConfig) -> dict[str, Any]:
    """What a record says about itself, as Document's attributes. A record without an id is called by its place."""
    keys = {ours: config.fields.get(ours, ours) for ours in OPTIONAL}
    values = {ours: clean(record[theirs]) for ours, theirs in keys.items() if record.get(theirs) is not None}
    document_id = values.setdefault("id", str(where))
    return {"group": document_id, **values, "source": where.source, "license": config.license}


def clean(value: object) -> str:
    """JSON's escapes can hold half a character (a lone surrogate), which is no text: it becomes U+FFFD."""
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _values(path: Path, report: Report) -> Iterator[tuple[int, Any]]:
    """What the file holds, numbered from 1: parsed, or the ValueError that says why not."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            if lines.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
                lines.seek(0)
                if isinstance(array := _parsed(decode(lines.read(), report)), list):
                    yield from enumerate(array, start=1)
                    return
            lines.seek(0)
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _parsed(decode(line, report))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable gzip file ({error}): download it again") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as fault:
        return ValueError(f"not JSON: {fault.msg}")
    except (ValueError, RecursionError) as fault:  # a number of 5,000 digits, brackets a thousand deep
        return ValueError(f"not JSON that can be read: {fault}")
