"""Reading of evaluation sets: all strings in their records are returned.

This module is used by stage decontaminate. `finetune prepare` also reads the sets before the first
step, so that a wrong set is reported at once.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import LimitsConfig
from data_prep.containers import archives, sniff
from data_prep.containers.streams import Member
from data_prep.document import Place, Report
from data_prep.separators import HEAD, WHOLE_BELOW, find_separator
from data_prep.user_error import NotFoundError, UserError

SUFFIXES = (".json", ".jsonl", ".ndjson", ".txt", ".csv", ".tsv", ".parquet", ".arrow")


def files(path: str) -> list[Path]:
    """Return the files of an evaluation set, sorted by name.

    Raises:
        NotFoundError: the path does not exist, or has no file of a supported format.
    """
    root = Path(path)
    candidates = [root] if root.is_file() else sorted(root.rglob("*"))
    found = [
        file
        for file in candidates
        if file.is_file() and (_is_wanted(file.name) or sniff.is_archive_name(file.name))
    ]
    if not found:
        problem = "has no file of a supported format" if root.exists() else "does not exist"
        raise NotFoundError(
            f"decontaminate.sets: {path} {problem}; give {', '.join(SUFFIXES)} files, compressed or not"
        )
    return found


def texts(path: str) -> Iterator[str]:
    """Yield every text of an evaluation set.

    The texts are all strings in JSON records at any depth (such as SQuAD's contexts, questions and
    answers), all strings in tables, and whole text files.

    Raises:
        UserError: a file cannot be read, or does not have the format of its suffix.
    """
    for file in files(path):
        report = Report()
        try:
            for member in archives.iter_members(
                file, Place("", str(file)), _is_wanted, LimitsConfig(), report
            ):
                yield from _texts(member)
            if report.broken:
                raise ValueError(report.broken[0].error)
        except (ValueError, OSError, EOFError, csv.Error, RecursionError) as fault:
            raise UserError(
                f"evaluation set {file} cannot be read ({fault}); correct the file, or remove "
                "the set from decontaminate.sets"
            ) from None


def _is_wanted(name: str) -> bool:
    return sniff.unpacked_name(name).lower().endswith(SUFFIXES)


def _texts(member: Member) -> Iterator[str]:
    name = member.name.lower()
    if name.endswith((".parquet", ".arrow")):
        with member.open_seekable() as file:
            is_parquet = name.endswith(".parquet")
            batches = pq.ParquetFile(file).iter_batches(256) if is_parquet else pa.ipc.open_stream(file)
            for batch in batches:
                yield from _strings(batch.to_pylist())
        return
    head = member.stream.peek(HEAD)[:HEAD]
    stream = io.TextIOWrapper(member.stream, encoding="utf-8-sig", newline="")
    if name.endswith(".txt"):
        yield stream.read()
    elif name.endswith((".csv", ".tsv")):
        default = "\t" if name.endswith(".tsv") else ","
        separator = find_separator(head, len(head) < WHOLE_BELOW, default)
        for row in csv.reader(stream, delimiter=separator):
            yield from row
    elif name.endswith(".json"):
        yield from _json_strings(stream.read())
    else:
        for line in filter(str.strip, stream):
            yield from _strings(json.loads(line))


def _json_strings(body: str) -> Iterator[str]:
    """Yield the strings of a .json file, which contains one value, or one value on each line."""
    try:
        yield from _strings(json.loads(body))
    except json.JSONDecodeError:
        for line in filter(str.strip, body.splitlines()):
            yield from _strings(json.loads(line))


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
