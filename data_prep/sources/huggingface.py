"""Reader of Hugging Face data sets: from a folder that `save_to_disk` wrote, or from the Hub.

A data set on the Hub is read from the cache; if it is not there, it is downloaded first. A row with
a text is a document; `fields: {text: …}` names the column of the text. Rows with messages, with
prompt and completion, or with instruction and output are read like the records of reader `chat`.
The options of reader `chat` apply to them, except `records`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_prep.config import SourceConfig
from data_prep.containers.streams import reraise_machine_error
from data_prep.document import Document, Place, Report, Unreadable
from data_prep.fields import setting
from data_prep.sources import chat, claims
from data_prep.sources.files import place_of
from data_prep.sources.jsonl import describe, to_valid_text
from data_prep.sources.table import batch_rows
from data_prep.user_error import NotFoundError, UserError

FIELDS = ("text", *chat.FIELDS)


@dataclass
class Options(chat.ConversationOptions):
    """Options of reader `huggingface`."""

    split: str = setting(
        "train", "name of the split, which is read whole; mixture.weight selects a part of it"
    )
    subset: str = setting("", "subset (configuration) of a data set on the Hub; empty: the default subset")
    revision: str = setting("", "revision of a data set on the Hub; empty: the newest revision in the cache")

    def __post_init__(self) -> None:
        super().__post_init__()
        if "[" in self.split:
            raise UserError(
                f"options.split: slices such as '{self.split}' are not supported; name a whole split, "
                "and set mixture.weight to use a part of it"
            )


def list_files(source: SourceConfig) -> list[Path]:
    """Return the Arrow files of the split that options.split names.

    Raises:
        NotFoundError: the data set is neither a folder nor in the cache, and cannot be downloaded.
        UserError: an option is wrong, or the folder is not a saved data set or has no such split.
    """
    options = claims.parse_options(source, Options)
    folder = Path(source.path)
    if folder.is_dir():
        return _list_saved_files(folder, options.split)
    return _list_hub_files(source.path, options)


def _list_saved_files(folder: Path, split: str) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise UserError(
                f"{folder}: has no split '{split}'; set options.split to one of {', '.join(splits)}"
            )
        folder = folder / split
    state = folder / "state.json"
    if not state.is_file():
        raise UserError(
            f"{folder}: not a data set that save_to_disk wrote (state.json is missing); "
            "use reader table for Parquet and CSV files, reader jsonl for JSON"
        )
    names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{state}: lists a file outside its folder, {name}; save the data set again")
    return [folder / name for name in names]


def _list_hub_files(name: str, options: Options) -> list[Path]:
    import datasets

    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(
            name, options.subset or None, split=options.split, revision=options.revision or None
        )
    except Exception as fault:  # without a network, errors of many types are raised
        reason = " ".join(str(fault).split())[:200]
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise NotFoundError(
            f"data set {name}, split {options.split}: not a folder, and cannot be loaded from the cache "
            f"or the Hub{offline} ({reason}); on a machine with internet access, save it with "
            "save_to_disk, and set `path` to that folder"
        ) from None
    return [Path(file["filename"]) for file in found.cache_files]


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    key = source.fields.get("text", "text")
    conversations = chat.ConversationReader(source, claims.parse_options(source, Options), report)
    for path in paths:
        for place, row in _rows(path, place_of(name, source, path), report):
            with report.quarantining(place):
                if isinstance(row.get(key), str):
                    yield describe(row, place, source).build_document(to_valid_text(row[key]))
                else:
                    document = conversations.build_document(row, place)
                    if document is not None:
                        yield document


def _rows(path: Path, file: Place, report: Report) -> Iterator[tuple[Place, dict[str, object]]]:
    number = 0
    with report.quarantining(file):
        try:
            # The file is not memory-mapped: if it were truncated while it is read, the process
            # would be killed.
            with pa.OSFile(str(path), "rb") as opened, pa.ipc.open_stream(opened) as batches:
                for batch in batches:
                    yield from batch_rows(batch, file, number, report)
                    number += len(batch)
        except (pa.ArrowException, OSError) as fault:
            reraise_machine_error(fault)
            raise Unreadable(f"truncated or corrupt after row {number}: {fault}") from None
