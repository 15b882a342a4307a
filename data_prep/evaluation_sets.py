"""The texts of evaluation sets, whatever their form and whatever packs them: every string in their records.

For stage decontaminate, and for `finetune prepare`, which tries them before the work begins.
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
    """The files of a set, in the order of their names.

    Raises:
        NotFoundError: nothing is there, or nothing that can be read.
    """
    root = Path(path)
    candidates = [root] if root.is_file() else sorted(root.rglob("*"))
    found = [
        file
        for file in candidates
        if file.is_file() and (_wanted(file.name) or sniff.is_archive_name(file.name))
    ]
    if not found:
        what = "holds no file that can be read" if root.exists() else "does not exist"
        raise NotFoundError(
            f"decontaminate.sets: {path} {what}: give files of {', '.join(SUFFIXES)}, packed or not"
        )
    return found


def texts(path: str) -> Iterator[str]:
    """Every text of a set: strings of JSON records however deep (SQuAD's contexts, questions and answers,
    choices), cells of tables, text files whole.

    Raises:
        UserError: a file is not what its name says.
    """
    for file in files(path):
        report = Report()
        try:
            for member in archives.iter_members(file, Place("", str(file)), _wanted, LimitsConfig(), report):
                yield from _texts(member)
            if report.broken:
                raise ValueError(report.broken[0].error)
        except (ValueError, OSError, EOFError, csv.Error, RecursionError) as fault:
            raise UserError(
                f"evaluation set {file} cannot be read ({fault}): without it nothing can be kept out"
            ) from None


def _wanted(name: str) -> bool:
    return sniff.unpacked_name(name).lower().endswith(SUFFIXES)


def _texts(member: Member) -> Iterator[str]:
    name = member.name.lower()
    if name.endswith((".parquet", ".arrow")):
        with member.open_seekable() as file:
            for batch in (
                pq.ParquetFile(file).iter_batches(256)
                if name.endswith(".parquet")
                else pa.ipc.open_stream(file)
            ):
                yield from _strings(batch.to_pylist())
        return
    head = member.stream.peek(HEAD)[:HEAD]
    stream = io.TextIOWrapper(member.stream, encoding="utf-8-sig", newline="")
    if name.endswith(".txt"):
        yield stream.read()
    elif name.endswith((".csv", ".tsv")):
        separator = find_separator(head, len(head) < WHOLE_BELOW, "\t" if name.endswith(".tsv") else ",")
        for row in csv.reader(stream, delimiter=separator):
            yield from row
    elif name.endswith(".json"):
        yield from _json(stream.read())
    else:
        for line in filter(str.strip, stream):
            yield from _strings(json.loads(line))


def _json(body: str) -> Iterator[str]:
    """One value, or, as many sets call it .json too, one a line."""
    try:
        yield from _strings(json.loads(body))
    except json.JSONDecodeError:
        for line in filter(str.strip, body.splitlines()):
            yield from _strings(json.loads(line))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
