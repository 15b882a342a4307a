"""A Hugging Face data set: a folder that `save_to_disk` wrote, or a name on the Hub that is in the cache or
can be downloaded.

Rows with text (`fields: {text: …}`) are documents; rows with messages, prompt and completion, or instruction
and output are read as `chat` reads them, with its options but `records`, which is for JSON files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_prep.config import SourceConfig
from data_prep.containers.streams import raise_of_machine
from data_prep.document import Document, Place, Report, Unreadable
from data_prep.fields import setting
from data_prep.sources import chat, claims
from data_prep.sources.files import place
from data_prep.sources.jsonl import clean, described
from data_prep.sources.table import batch_rows
from data_prep.user_error import NotFoundError, UserError

FIELDS = ("text", *chat.FIELDS)


@dataclass
class Options(chat.ConversationOptions):
    """Options of Hugging Face data sets."""

    split: str = setting(
        "train", "name of the split, which is read whole; mixture.weight selects a part of it"
    )
    subset: str = setting("", "subset (configuration) of a data set on the Hub; empty: the default subset")
    revision: str = setting("", "revision of a data set on the Hub; empty: the newest revision in the cache")

    def __post_init__(self) -> None:
        super().__post_init__()
        if "[" in self.split:
            raise UserError(
                f"options.split is '{self.split}': give a whole split; mixture.weight takes a part of it"
            )


def files(source: SourceConfig) -> list[Path]:
    """The Arrow files of the split.

    Raises:
        NotFoundError: it is neither on disk nor to be had.
        UserError: the folder is not a saved data set, or has no such split.
    """
    options = claims.options(source, Options)
    folder = Path(source.path)
    return _saved(folder, options.split) if folder.is_dir() else _of_hub(source.path, options)


def _saved(folder: Path, split: str) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise UserError(
                f"{folder} has no split '{split}': set options.split to one of {', '.join(splits)}"
            )
        folder = folder / split
    state = folder / "state.json"
    if not state.is_file():
        raise UserError(
            f"{folder} is no data set saved by save_to_disk (no state.json): read Parquet and CSV files by reader table, JSON by "
            f"jsonl"
        )
    names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    if outside := [name for name in names if Path(name).name != name]:
        raise UserError(f"{state} names a file outside of its folder, {outside[0]}: save the data set again")
    return [folder / name for name in names]


def _of_hub(name: str, options: Options) -> list[Path]:
    import datasets

    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(
            name, options.subset or None, split=options.split, revision=options.revision or None
        )
    except Exception as fault:  # offline it raises one of many
        line = " ".join(str(fault).split())[:200]
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise NotFoundError(
            f"data set {name}, split {options.split}, is no folder here, and cannot be had from the cache or the Hub{offline}: "
            f"{line}. Where there is internet, save it by save_to_disk, and give that folder as path"
        ) from None
    return [Path(file["filename"]) for file in found.cache_files]


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    key = source.fields.get("text", "text")
    conversations = chat.ConversationReader(source, claims.options(source, Options), report)
    for path in paths:
        for where, row in _rows(path, place(name, source, path), report):
            with report.quarantining(where):
                if isinstance(row.get(key), str):
                    yield described(row, where, source).document(clean(row[key]))
                elif (document := conversations.document(row, where)) is not None:
                    yield document


def _rows(path: Path, file: Place, report: Report) -> Iterator[tuple[Place, dict[str, object]]]:
    number = 0
    with report.quarantining(file):
        try:
            # Not mapped into memory: a file that is cut meanwhile would kill the process.
            with pa.OSFile(str(path), "rb") as opened, pa.ipc.open_stream(opened) as batches:
                for batch in batches:
                    yield from batch_rows(batch, file, number, report)
                    number += len(batch)
        except (pa.ArrowException, OSError) as fault:
            raise_of_machine(fault)
            raise Unreadable(f"breaks off behind row {number}: {fault}") from None
