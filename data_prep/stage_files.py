"""The files of the stages on disk. A shard has kept documents, dropped documents and a marker.

    .<corpus>.stages/
      plan.json                         the settings, and the raw files with their checksums
      0-read/
        task-00003.json                 the shards that the fourth read task wrote
        quarantine-00003-000.parquet    broken records, with place and error; only if there are any
      1-normalise/
        part-00003-000.parquet          documents that the stage kept; the shard's name consists of
                                        the number of its read task and its number within that task
        drops-00003-000.parquet         documents that the stage dropped
        cut-00003-000.parquet           lines and paragraphs cut from documents, with counts; only
                                        if there are any
        done-00003-000.json             the marker, written last: fingerprint, checksums, counts
      5-deduplicate/
        collected-00003-000.parquet     data of a shard, for a stage that decides by the whole
                                        corpus; deleted after the decision
        decided.parquet                 the decision

Each file is written under a temporary name and renamed, so it is complete or does not exist. A
shard is done if its marker has the fingerprint of its input and settings, and its files have the
checksums in the marker.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.document import (
    CUT_SCHEMA,
    DOCUMENT_SCHEMA,
    QUARANTINE_SCHEMA,
    Broken,
    Cut,
    Document,
    Drop,
    Report,
    Shortened,
    Turn,
)
from data_prep.shards import Loss, explain_damage, sha256_file

# Documents are held in memory until one of these limits is reached. Then they are written.
BATCH_DOCUMENTS = 1000
BATCH_CHARACTERS = 4_000_000
_Record = TypeVar("_Record")
_SHARD = re.compile(r"\d{5,}-\d{3,}$")
DROP_SCHEMA = pa.schema(
    [(column.name, pa.int64() if column.name == "characters" else pa.string()) for column in fields(Drop)]
)


@dataclass(kw_only=True)
class ShardMarker:
    """The file that marks a shard as done.

    Attributes:
        fingerprint: the fingerprint of the shard's input and settings.
        files: SHA-256 of each file, by name.
        characters_out: characters of the documents that the stage kept.
        dropped, counts, losses: as in StageInfo.
        masks: the mask columns that the documents need; stage tokenise only.
        has_chats: True if a chat template rendered some of the documents; stage tokenise only.
        seconds: time that the stage took for the shard.
    """

    fingerprint: str
    files: dict[str, str]
    documents_in: int = 0
    documents_out: int = 0
    characters_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    has_chats: bool = False
    seconds: float = 0.0


class StageFolder:
    """The files of one stage of a corpus, `.<corpus>.stages/<number>-<name>`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name.partition("-")[2]

    def documents(
        self, shards: Iterable[str] | None = None, columns: list[str] | None = None
    ) -> Iterator[Document]:
        """Yield the documents that the stage kept, in order.

        Args:
            shards: names of the shards to read; by default, all that are done.
            columns: fields to read; by default, all. Other fields are empty.
        """
        for shard in self.shards() if shards is None else shards:
            yield from read_documents(self.part_path(shard), columns)

    def id_hashes(self, shard: str) -> NDArray[np.uint64]:
        """Return a hash of the id of each document of a shard."""
        path = self.part_path(shard)
        with explain_damage(path):
            column = pq.ParquetFile(path).read(["id"], use_threads=False)["id"]
        hashes = (
            hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest()
            for name in column.to_pylist()
        )
        return np.frombuffer(b"".join(hashes), np.uint64)

    def drops(self) -> Iterator[Drop]:
        """Yield the documents that the stage dropped, in order."""
        for shard in self.shards():
            path = self.path / f"drops-{shard}.parquet"
            with explain_damage(path):
                rows = pq.ParquetFile(path).read(use_threads=False).to_pylist()
            for row in rows:
                yield Drop(**row)

    def quarantined(self, shards: Iterable[str] | None = None) -> Iterator[Broken]:
        """Yield the quarantined records, in order.

        Args:
            shards: names of the shards to read; by default, all that are done.
        """
        for shard in self.shards() if shards is None else shards:
            yield from _read_records(self.path / f"quarantine-{shard}.parquet", Broken)

    def cuts(self) -> list[Cut]:
        """Return the lines and paragraphs that the stage cut, counted over all shards."""
        found: dict[tuple[str, str, str], Cut] = {}
        for shard in self.shards():
            for cut in _read_records(self.path / f"cut-{shard}.parquet", Cut):
                known = found.setdefault((cut.source, cut.reason, cut.text), cut)
                if known is not cut:
                    known.documents += cut.documents
        return list(found.values())

    def keep_only(self, shards: set[str]) -> None:
        """Delete the files of all shards whose names are not in `shards`."""
        for path in self.path.glob("*-*"):
            shard = _SHARD.search(path.stem)
            if shard and shard[0] not in shards:
                path.unlink()

    def discard(self, shard: str) -> None:
        """Delete the files of a shard: first the marker that it is done, then its documents."""
        for path in sorted(self.path.glob(f"*-{shard}.*")):
            path.unlink(missing_ok=True)

    def shards(self) -> list[str]:
        """Return the names of the shards that are done."""
        return sorted(path.stem.partition("-")[2] for path in self.path.glob("done-[0-9]*.json"))

    def part_path(self, shard: str) -> Path:
        return self.path / f"part-{shard}.parquet"

    def read_marker(self, name: str, fingerprint: str, verify: bool = True) -> ShardMarker | None:
        """Return the marker done-<name>.json, or None if the work must be done (again).

        Args:
            fingerprint: the fingerprint that the marker must have.
            verify: True if the files must also have the checksums in the marker.
        """
        try:
            body = json.loads((self.path / f"done-{name}.json").read_text(encoding="utf-8"))
            losses = [Loss(**loss) for loss in body.get("losses", [])]
            marker = ShardMarker(**{**body, "losses": losses})
            if marker.fingerprint != fingerprint:
                return None
            if verify and not self._has_checksums(marker.files):
                return None
            return marker
        except (OSError, ValueError, TypeError, AttributeError):
            return None  # no marker, or a damaged one

    def _has_checksums(self, files: dict[str, str]) -> bool:
        return all(sha256_file(self.path / file) == sha256 for file, sha256 in files.items())

    def write_marker(self, name: str, fingerprint: str, files: list[str], **values: Any) -> ShardMarker:
        """Write done-<name>.json, the file that marks a shard or decision as done.

        Args:
            files: names of the files, which are already written.
            values: further attributes of the marker.
        """
        checksums = {file: sha256_file(self.path / file) for file in files}
        marker = ShardMarker(fingerprint=fingerprint, files=checksums, **values)
        write_json(self.path / f"done-{name}.json", asdict(marker))
        return marker

    def write_shard(
        self,
        shard: str,
        fingerprint: str,
        documents: Iterable[Document],
        report: Report,
        input_marker: ShardMarker,
    ) -> ShardMarker:
        """Write the documents of a shard, then its report and its marker.

        Args:
            documents: the documents. Iterating over them fills the report.
            report: the report, which is complete after the last document.
            input_marker: the marker of the same shard in the previous stage.
        """
        began = time.perf_counter()
        self.path.mkdir(parents=True, exist_ok=True)
        with open_shard_file(self.part_path(shard)) as file:
            for document in documents:
                file.add(document)
        seconds = time.perf_counter() - began
        return self.finish_shard(shard, fingerprint, file, report, input_marker.documents_out, seconds)

    def finish_shard(
        self,
        shard: str,
        fingerprint: str,
        file: ShardFile,
        report: Report,
        documents_in: int | None = None,
        seconds: float = 0.0,
    ) -> ShardMarker:
        """Write the report and the marker of a shard whose documents are written.

        Args:
            file: the closed file with the documents.
            documents_in: number of documents in the input; by default, the number of documents kept
                and dropped.
            seconds: time that the stage took for the shard.
        """
        if documents_in is None:
            documents_in = file.written + len(report.drops)
        return self.write_report(
            shard,
            fingerprint,
            report,
            [self.part_path(shard).name],
            seconds=round(seconds, 3),
            documents_in=documents_in,
            documents_out=file.written,
            characters_out=file.characters,
        )

    def write_report(
        self, shard: str, fingerprint: str, report: Report, files: list[str], **values: Any
    ) -> ShardMarker:
        """Write the drops, cuts and quarantined records of a shard, then its marker.

        Args:
            files: names of the shard's files that are already written.
            values: further attributes of the marker.
        """
        drops = [asdict(drop) for drop in report.drops]
        broken = [asdict(record) for record in report.broken]
        cuts = [asdict(cut) for cut in report.cuts.values()]
        tables = {f"drops-{shard}.parquet": pa.Table.from_pylist(drops, DROP_SCHEMA)}
        for kind, rows, schema in (("quarantine", broken, QUARANTINE_SCHEMA), ("cut", cuts, CUT_SCHEMA)):
            if rows:
                tables[f"{kind}-{shard}.parquet"] = pa.Table.from_pylist(rows, schema)
            else:  # an earlier run may have left one
                (self.path / f"{kind}-{shard}.parquet").unlink(missing_ok=True)
        for name, table in tables.items():
            write_table(self.path / name, table)
        return self.write_marker(
            shard,
            fingerprint,
            [*files, *tables],
            dropped=report.drop_reasons(),
            losses=sum_losses(report),
            counts={key: count for key, count in sorted(report.counts.items()) if count},
            **values,
        )


def _read_records(path: Path, kind: Callable[..., _Record]) -> list[_Record]:
    """Return the rows of a Parquet file as objects of `kind`, or [] if there is no file."""
    if not path.is_file():
        return []
    with explain_damage(path):
        rows = pq.read_table(path).to_pylist()
    return [kind(**row) for row in rows]


def sum_losses(report: Report) -> list[Loss]:
    """Return the amount of text that a stage dropped and cut, for each source and reason."""
    found: dict[tuple[str, str], Loss] = {}
    entries: list[Drop | Shortened] = [*report.drops, *report.shortened]
    for entry in entries:
        new = Loss(source=entry.source, reason=entry.reason)
        loss = found.setdefault((entry.source, entry.reason), new)
        loss.documents += isinstance(entry, Drop)
        loss.cut += isinstance(entry, Shortened)
        loss.characters += entry.characters
    return [found[key] for key in sorted(found)]


class ShardFile:
    """A Parquet file to which documents are written in batches; see `open_shard_file`.

    Attributes:
        written: number of documents that are in the file.
        characters: number of characters of all documents added, written or not.
    """

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self.written = self.characters = 0
        self._writer = writer
        self._batch: list[Document] = []
        self._batch_characters = 0

    def add(self, document: Document) -> None:
        self._batch.append(document)
        length = document.characters
        self.characters += length
        self._batch_characters += length
        if len(self._batch) == BATCH_DOCUMENTS or self._batch_characters >= BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        if self._batch:
            self._writer.write_table(_to_table(self._batch))
            self.written += len(self._batch)
            self._batch = []
            self._batch_characters = 0


@contextmanager
def open_shard_file(path: Path) -> Iterator[ShardFile]:
    """Open a temporary file for documents. It replaces `path` if the `with` block succeeds."""
    with (
        replace_file(path) as temporary,
        pq.ParquetWriter(temporary, DOCUMENT_SCHEMA, compression="zstd") as writer,
    ):
        file = ShardFile(writer)
        yield file
        file.flush()


def read_documents(path: Path, columns: list[str] | None = None) -> Iterator[Document]:
    """Yield the documents in a shard's file. One row group at a time is held in memory.

    Args:
        columns: fields to read; by default, all. Other fields are empty.
    """
    with explain_damage(path):
        file = pq.ParquetFile(path)
    empty = {name: "" for name in DOCUMENT_SCHEMA.names if columns and name not in columns}
    for group in range(file.num_row_groups):
        with explain_damage(path):
            rows = file.read_row_group(group, columns=columns, use_threads=False).to_pydict()
        if "turns" in rows:
            rows["turns"] = [[Turn(**turn) for turn in turns] for turns in rows["turns"]]
        elif columns:
            rows["turns"] = [[] for _ in next(iter(rows.values()))]
        names = tuple(rows)
        for row in zip(*rows.values(), strict=True):
            yield Document(**{**empty, **dict(zip(names, row, strict=True))})


def _to_table(documents: list[Document]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        name: [getattr(document, name) for document in documents] for name in DOCUMENT_SCHEMA.names
    }
    columns["turns"] = [
        [{"role": turn.role, "content": turn.content, "target": turn.target} for turn in document.turns]
        for document in documents
    ]
    return pa.Table.from_pydict(columns, DOCUMENT_SCHEMA)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path. Its file replaces `path` if the `with` block succeeds.

    Two processes may write `path` at the same time, because each has a temporary path of its own,
    and both write the same content.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_table(path: Path, table: pa.Table, rows_in_group: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=rows_in_group)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, body: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
