"""The texts of evaluation sets, whatever their form: every string in their records."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".txt", ".csv", ".tsv")


def files(path: str) -> list[Path]:
    """The files of a set, in the order of their names.

    Raises:
        FileNotFoundError: nothing is there, or nothing that can be read.
    """
    root = Path(path)
    if root.is_file() and root.name.endswith(SUFFIXES):
        return [root]
    found = sorted(file for file in root.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES)) if root.is_dir() else []
    if not found:
        what = "holds no file that can be read" if root.exists() else "does not exist"
        raise FileNotFoundError(f"decontaminate.sets: {path} {what}: give a file or a folder, of {', '.join(SUFFIXES)}")
    return found


def texts(path: str) -> Iterator[str]:
    """Every text of a set: strings of JSON records however deep (SQuAD's contexts, questions and answers, choices), cells of
    tables, text files whole.

    Raises:
        ValueError: a file is not what its name says.
    """
    for file in files(path):
        try:
            with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8-sig") as stream:
                if file.suffix == ".txt":
                    yield stream.read()
                elif file.suffix in (".csv", ".tsv"):
                    for row in csv.reader(stream, delimiter="\t" if file.suffix == ".tsv" else ","):
                        yield from row
                elif ".jsonl" in file.suffixes:
                    for line in filter(str.strip, stream):
                        yield from _strings(json.loads(line))
                else:
                    yield from _json(stream.read())
        except (ValueError, OSError, EOFError, csv.Error, RecursionError) as fault:
            raise ValueError(f"evaluation set {file} cannot be read ({fault}): without it nothing can be kept out") from None


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
