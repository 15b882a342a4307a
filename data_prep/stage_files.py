"""What the stages leave on disk, shard by shard: the documents that went on, those that did not, and a marker
that says so.

    .<corpus>.stages/
      plan.json                         the settings, the raw files and their checksums: all that a task must
          be told
      0-read/task-00003.json            which shards the fourth task of reading gave
      1-normalise/
        part-00003-000.parquet          the documents of a shard; its name is that of its task, and its number
        there drops-00003-000.parquet         what the stage refused of it: id, source, reason, detail,
            characters
        cut-00003-000.parquet           lines and paragraphs cut from documents, with counts; if any
        quarantine-00003-000.parquet    of reading: records that cannot be read, each with place and error; if
            there are any
        done-00003-000.json             the marker: a fingerprint, the checksums of all these, counts. It is
            written last
      3-deduplicate/
        collected-00003-000.parquet     what a stage that judges by the whole corpus must know of a shard;
        deleted once decided decided.parquet                 what it decided

A file is written beside and renamed, so it is whole or not there, and a shard counts as done when its marker
has the fingerprint of its input and settings, and its files the checksums of the marker.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

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

BATCH_DOCUMENTS, BATCH_CHARACTERS = 1000, 4_000_000  # what is in memory of a shard at a time
_SHARD = re.compile(r"\d{5,}-\d{3,}$")
DROP_SCHEMA = pa.schema(
    [(column.name, pa.int64() if column.name == "characters" else pa.string()) for column in fields(Drop)]
)


@dataclass(kw_only=True)
class Done:
    """A shard's marker.

    Attributes:
        fingerprint: of input and settings.
        files: names, and sha256 of what is in them.
        characters_out: of the documents that went on.
        dropped, counts, losses: as in StageInfo.
        masks: of the tokenise stage: the mask columns that its documents ask for.
        has_chats: of the tokenise stage: whether a chat template rendered some of its documents.
        seconds: what the stage took.
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
        """The documents that the stage let through, in order; of all its shards, if none are named.

        Args:
            columns: fields to read; the others are left empty.
        """
        for shard in self.shards() if shards is None else shards:
            yield from read_documents(self.part(shard), columns)

    def id_hashes(self, shard: str) -> NDArray[np.uint64]:
        """A hash of the id of each document of a shard."""
        path = self.part(shard)
        with explain_damage(path):
            column = pq.ParquetFile(path).read(["id"], use_threads=False)["id"]
        hashes = (
            hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest()
            for name in column.to_pylist()
        )
        return np.frombuffer(b"".join(hashes), np.uint64)

    def drops(self) -> Iterator[Drop]:
        """What the stage refused, in order."""
        for shard in self.shards():
            path = self.path / f"drops-{shard}.parquet"
            with explain_damage(path):
                rows = pq.ParquetFile(path).read(use_threads=False).to_pylist()
            for row in rows:
                yield Drop(**row)

    def quarantined(self, shards: Iterable[str] | None = None) -> Iterator[Broken]:
        """The records that reading could not make a document of, in order; of all its shards, if none are
        named."""
        for shard in self.shards() if shards is None else shards:
            if (path := self.path / f"quarantine-{shard}.parquet").is_file():
                with explain_damage(path):
                    rows = pq.read_table(path).to_pylist()
                for row in rows:
                    yield Broken(**row)

    def cuts(self) -> list[Cut]:
        """What the stage cut from documents, counted over all its shards."""
        found: dict[tuple[str, str, str], Cut] = {}
        for shard in self.shards():
            path = self.path / f"cut-{shard}.parquet"
            with explain_damage(path):
                rows = pq.read_table(path).to_pylist() if path.is_file() else []
            for row in rows:
                cut = Cut(**row)
                known = found.setdefault((cut.source, cut.reason, cut.text), cut)
                if known is not cut:
                    known.documents += cut.documents
        return list(found.values())

    def keep_only(self, shards: set[str]) -> None:
        """Delete the files of all other shards."""
        for path in self.path.glob("*-*"):
            if (shard := _SHARD.search(path.stem)) and shard[0] not in shards:
                path.unlink()

    def discard(self, shard: str) -> None:
        """Delete a shard, its marker first."""
        for path in sorted(self.path.glob(f"*-{shard}.*")):
            path.unlink(missing_ok=True)

    def shards(self) -> list[str]:
        """Names of the shards that are done."""
        return sorted(path.stem.partition("-")[2] for path in self.path.glob("done-[0-9]*.json"))

    def part(self, shard: str) -> Path:
        return self.path / f"part-{shard}.parquet"

    def done(self, name: str, fingerprint: str, verify: bool = True) -> Done | None:
        """The marker done-`name`.json, if it has this fingerprint and its files are still what was
        written."""
        try:
            body = json.loads((self.path / f"done-{name}.json").read_text(encoding="utf-8"))
            marker = Done(**{**body, "losses": [Loss(**loss) for loss in body.get("losses", [])]})
            if marker.fingerprint != fingerprint:
                return None
            if verify and any(
                sha256_file(self.path / file) != sha256 for file, sha256 in marker.files.items()
            ):
                return None
            return marker
        except (OSError, ValueError, TypeError, AttributeError):
            return None  # no marker, or not one of ours: the shard is to be done

    def finish(self, name: str, fingerprint: str, files: list[str], **what: Any) -> Done:
        """Write the marker of files that are in place."""
        marker = Done(
            fingerprint=fingerprint, files={file: sha256_file(self.path / file) for file in files}, **what
        )
        write_json(self.path / f"done-{name}.json", asdict(marker))
        return marker

    def write(
        self, shard: str, fingerprint: str, documents: Iterable[Document], report: Report, before: Done
    ) -> Done:
        """Write a shard: its documents, and then, as the report is full, its drops and its marker. `before`
        is its input's."""
        began = time.perf_counter()
        self.path.mkdir(parents=True, exist_ok=True)
        with shard_file(self.part(shard)) as file:
            for document in documents:
                file.add(document)
        return self.close(shard, fingerprint, file, report, before.documents_out, time.perf_counter() - began)

    def close(
        self,
        shard: str,
        fingerprint: str,
        file: ShardFile,
        report: Report,
        documents_in: int | None = None,
        seconds: float = 0.0,
    ) -> Done:
        """Write drops and marker of a shard whose part is in place. Into reading came what came out or was
        refused."""
        return self.report(
            shard,
            fingerprint,
            report,
            [self.part(shard).name],
            seconds=round(seconds, 3),
            documents_in=file.written + len(report.drops) if documents_in is None else documents_in,
            documents_out=file.written,
            characters_out=file.characters,
        )

    def report(self, shard: str, fingerprint: str, report: Report, files: list[str], **what: Any) -> Done:
        """Write drops, what was cut and quarantined, and marker of a shard whose files are in place."""
        beside = {
            f"drops-{shard}.parquet": pa.Table.from_pylist(
                [asdict(drop) for drop in report.drops], DROP_SCHEMA
            )
        }
        broken = [asdict(record) for record in report.broken]
        cuts = [asdict(cut) for cut in report.cuts.values()]
        for kind, rows, schema in (("quarantine", broken, QUARANTINE_SCHEMA), ("cut", cuts, CUT_SCHEMA)):
            if rows:
                beside[f"{kind}-{shard}.parquet"] = pa.Table.from_pylist(rows, schema)
            else:  # of when it was done before, perhaps
                (self.path / f"{kind}-{shard}.parquet").unlink(missing_ok=True)
        for name, table in beside.items():
            write_table(self.path / name, table)
        counts = {key: count for key, count in sorted(report.counts.items()) if count}
        taken = {"dropped": report.drop_reasons(), "losses": losses(report)}
        return self.finish(shard, fingerprint, [*files, *beside], **taken, counts=counts, **what)


def losses(report: Report) -> list[Loss]:
    """What a stage dropped and cut, added up by source and reason."""
    found: dict[tuple[str, str], Loss] = {}
    every: list[Drop | Shortened] = [*report.drops, *report.shortened]
    for taken in every:
        loss = found.setdefault((taken.source, taken.reason), Loss(source=taken.source, reason=taken.reason))
        loss.documents += isinstance(taken, Drop)
        loss.cut += isinstance(taken, Shortened)
        loss.characters += taken.characters
    return [found[key] for key in sorted(found)]


class ShardFile:
    """Documents on their way into a Parquet file, some at a time: see `shard_file`."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self.written = self.characters = 0
        self._writer = writer
        self._batch: list[Document] = []
        self._waiting = 0

    def add(self, document: Document) -> None:
        self._batch.append(document)
        length = document.characters
        self.characters += length
        self._waiting += length
        if len(self._batch) == BATCH_DOCUMENTS or self._waiting >= BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        if self._batch:
            self._writer.write_table(_to_table(self._batch))
            self.written, self._batch, self._waiting = self.written + len(self._batch), [], 0


@contextmanager
def shard_file(path: Path) -> Iterator[ShardFile]:
    """A file for documents, which is there, whole, once the block ends well."""
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, DOCUMENT_SCHEMA, compression="zstd") as writer,
    ):
        file = ShardFile(writer)
        yield file
        file.flush()


def read_documents(path: Path, columns: list[str] | None = None) -> Iterator[Document]:
    """A shard's documents, a row group at a time."""
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
        for values in zip(*rows.values(), strict=True):
            yield Document(**{**empty, **dict(zip(names, values, strict=True))})


def _to_table(documents: list[Document]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        name: [getattr(d, name) for d in documents] for name in DOCUMENT_SCHEMA.names
    }
    columns["turns"] = [
        [{"role": t.role, "content": t.content, "target": t.target} for t in turns]
        for turns in columns["turns"]
    ]
    return pa.Table.from_pydict(columns, DOCUMENT_SCHEMA)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write under, which becomes `path` if the block ends well and is deleted if not. Two processes
    may race: each has a name of its own, and both write the same."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_table(path: Path, table: pa.Table, rows_in_group: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=rows_in_group)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, body: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
