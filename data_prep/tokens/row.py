"""Rows of tokens, and the files in which the tokenise step stores them until publication.

A shard has two files in the folder of the tokenise stage, `train-<shard>.arrow` and
`validation-<shard>.arrow`. They have the columns of a corpus (see shards.py), and a column `mask`.
The mask is null if every token is a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.document import Document
from data_prep.shards import TEXT_COLUMNS
from data_prep.stage_files import replace_file

TOKEN_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in TEXT_COLUMNS),
        ("input_ids", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.int8())),
    ]
)


@dataclass
class Row:
    """The tokens of a document, or of a conversation up to some turn.

    Attributes:
        mask: for each token, 1 if the model is trained to predict it, else 0.
    """

    input_ids: list[int] | NDArray[np.int32]
    mask: list[int] | NDArray[np.int8]


class TokenFile:
    """A writer of the rows of one shard and split to a file; a context manager.

    The rows are written to a temporary file. It replaces `path` if no error occurs.
    """

    def __init__(self, path: Path) -> None:
        self._replacement = replace_file(path)
        self._rows: list[tuple[Document, str, Row]] = []

    def __enter__(self) -> TokenFile:
        self._stream = pa.ipc.new_stream(str(self._replacement.__enter__()), TOKEN_SCHEMA)
        return self

    def add(self, document: Document, rows: list[Row]) -> None:
        """Add the rows of a document.

        The last row has the document's id. The ids of earlier rows end with "#" and their number.
        """
        for number, row in enumerate(rows, start=1):
            is_last = number == len(rows)
            self._rows.append((document, document.id if is_last else f"{document.id}#{number}", row))

    def flush(self) -> None:
        """Write the rows added since the last flush as one batch."""
        if not self._rows:
            return
        columns: dict[str, list[str]] = {
            column: [getattr(document, column) for document, _, _ in self._rows] for column in TEXT_COLUMNS
        }
        columns["id"] = [name for _, name, _ in self._rows]
        ids = [np.asarray(row.input_ids, np.int32) for _, _, row in self._rows]
        masks = [np.asarray(row.mask, np.int8) if document.turns else None for document, _, row in self._rows]
        arrays = [pa.array(columns[name]) for name in TEXT_COLUMNS]
        arrays += [_list_array(ids, pa.int32()), _list_array(masks, pa.int8())]
        self._stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=TOKEN_SCHEMA))
        self._rows = []

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._replacement.__exit__(kind, fault, trace)


def _list_array(arrays: Sequence[NDArray[Any] | None], kind: pa.DataType) -> pa.ListArray:
    """Return a list column with one entry for each array; None becomes null."""
    lengths = [0 if array is None else len(array) for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    present = [array for array in arrays if array is not None]
    values = pa.array(np.concatenate(present) if present else np.zeros(0, np.int8), kind)
    is_null = None
    if len(present) < len(arrays):
        is_null = pa.array([array is None for array in arrays], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=is_null)
