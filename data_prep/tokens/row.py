"""A row of tokens, and the file in which the rows of a shard lie until they are published. Written by the
tokenise step.

The tokens of a shard lie in two files of the tokenise stage, `train-<shard>.arrow` and
`validation-<shard>.arrow`, with the columns of a corpus (see shards.py) and `mask`, null where every token is
a target.
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
from data_prep.stage_files import replacing

TOKEN_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in TEXT_COLUMNS),
        ("input_ids", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.int8())),
    ]
)


@dataclass
class Row:
    """Tokens of a document, or of its beginning up to a turn; `mask` is 1 at targets."""

    input_ids: list[int] | NDArray[np.int32]
    mask: list[int] | NDArray[np.int8]


class TokenFile:
    """Rows on their way into a file of one split; there, whole, once the context ends well."""

    def __init__(self, path: Path) -> None:
        self._replaced = replacing(path)
        self._rows: list[tuple[Document, str, Row]] = []

    def __enter__(self) -> TokenFile:
        self._stream = pa.ipc.new_stream(str(self._replaced.__enter__()), TOKEN_SCHEMA)
        return self

    def add(self, document: Document, rows: list[Row]) -> None:
        for number, row in enumerate(rows, start=1):
            self._rows.append(
                (document, document.id if number == len(rows) else f"{document.id}#{number}", row)
            )

    def flush(self) -> None:
        if self._rows:
            columns = [
                [name if column == "id" else getattr(document, column) for document, name, _ in self._rows]
                for column in TEXT_COLUMNS
            ]
            ids = [np.asarray(row.input_ids, np.int32) for _, _, row in self._rows]
            masks = [
                np.asarray(row.mask, np.int8) if document.turns else None for document, _, row in self._rows
            ]
            batch = [*map(pa.array, columns), _lists(ids, pa.int32()), _lists(masks, pa.int8())]
            self._stream.write_batch(pa.RecordBatch.from_arrays(batch, schema=TOKEN_SCHEMA))
            self._rows = []

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._replaced.__exit__(kind, fault, trace)


def _lists(arrays: Sequence[NDArray[Any] | None], kind: pa.DataType) -> pa.ListArray:
    lengths = [0 if array is None else len(array) for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    there = [array for array in arrays if array is not None]
    values = pa.array(np.concatenate(there) if there else np.zeros(0, np.int8), kind)
    missing = pa.array([array is None for array in arrays], pa.bool_()) if len(there) < len(arrays) else None
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=missing)
