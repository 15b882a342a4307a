"""Do one task of a step of a preparation: read files, or put a shard through a stage.

Runs in the processes of workers.py, or in the tasks of a scheduler; plan.py says what there is to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep import publish, reading
from data_prep.config import SourceConfig
from data_prep.document import Document, Report
from data_prep.plan import READ, Preparation, ReadTask, digest, stage_before, text_stage
from data_prep.shards import sha256_file
from data_prep.stage_files import shard_file, write_json, write_table
from data_prep.stages.protocol import CorpusStage, ShardStage
from data_prep.tokens.step import place_tokenizer, tokenise_shard
from data_prep.user_error import UserError

COLLECTED_IN_GROUP = 20_000  # rows of what is collected that can be read apart from the others


class FileChanged(UserError):
    """A raw file that is not what its checksum says."""

    def __init__(self, source: str, name: str) -> None:
        self.source, self.name = source, name
        super().__init__(
            f"source {source}: file {name} was changed while it was read, or since its checksum was taken: "
            f"run prepare again once nothing writes to it"
        )

    def __reduce__(self) -> tuple[type[FileChanged], tuple[str, str]]:  # it comes from another process
        return type(self), (self.source, self.name)


def run(preparation: Preparation, step: str, number: int) -> bool:
    """Do one task of a step. False if it was done before."""
    if step == READ:
        return _read(preparation, number)
    if step == "tokenizer":
        return place_tokenizer(preparation)
    if step == "tokenise":
        return tokenise_shard(preparation, number)
    if step == "publish":
        return publish.publish(preparation)
    name, _, phase = step.partition(".")
    stage = text_stage(name)
    if not isinstance(stage, CorpusStage):
        return _apply(preparation, stage, number)
    if phase == "collect":
        return _collect(preparation, stage, number)
    return _decide(preparation, stage) if phase == "decide" else _apply(preparation, stage, number)


# --- reading ------------------------------------------------------------------------------------------------


def _read(preparation: Preparation, number: int) -> bool:
    task, folder = preparation.tasks[number], preparation.stage_folder(READ)
    fingerprint = preparation.task_fingerprint(number)
    parts = preparation.parts_of_task(number)
    if parts is not None and all(folder.done(part, digest(fingerprint, part)) for part in parts):
        return False
    folder.path.mkdir(parents=True, exist_ok=True)
    report, source = Report(), preparation.corpus.sources[task.source]
    documents = _read_unchanged(task, source, report)
    names: list[str] = []
    try:
        _write_read(preparation, number, documents, report, names)
    except FileChanged:  # what is finished has the checksum of another file than was read
        for name in names:
            folder.discard(name)
        raise
    write_json(preparation.task_file(number), {"fingerprint": fingerprint, "shards": names})
    return True


def _write_read(
    preparation: Preparation, number: int, documents: Iterator[Document], report: Report, names: list[str]
) -> None:
    """Write the documents of a task in shards, whose names are added to `names`."""
    folder, fingerprint = preparation.stage_folder(READ), preparation.task_fingerprint(number)
    document = next(documents, None)
    while document is not None or not names:  # at least one, to hold what was refused
        name = f"{number:05d}-{len(names):03d}"
        with shard_file(folder.part(name)) as file:
            while document is not None and file.characters < preparation.shard_characters:
                file.add(document)
                document = next(documents, None)
        said = (
            Report() if document is not None else report
        )  # what a task has to report goes with its last shard
        names.append(name)
        folder.close(name, digest(fingerprint, name), file, said)


def _read_unchanged(task: ReadTask, source: SourceConfig, report: Report) -> Iterator[Document]:
    """Yield the documents of a task, whose files must be and stay what their checksums say.

    Raises:
        FileChanged: one was changed, replaced, cut or deleted since the plan, or while it was read.
    """
    for path, name, sha256 in zip(map(Path, task.paths), task.names, task.sha256, strict=True):
        before = _state(path)
        try:
            yield from reading.read(task.source, source, report, [path])
        except (ValueError, OSError):
            if _is_changed(path, before, sha256):
                raise FileChanged(task.source, name) from None
            raise
        if _is_changed(path, before, sha256):
            raise FileChanged(task.source, name)


def _state(path: Path) -> tuple[int, int, int] | None:
    """Return what differs if a file was written or replaced; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _is_changed(path: Path, before: tuple[int, int, int] | None, sha256: str) -> bool:
    """Return whether a file is another than it was before, or than its checksum says."""
    if before is None or _state(path) != before:
        return True
    try:
        return sha256_file(path) != sha256
    except OSError:
        return True


# --- text stages --------------------------------------------------------------------------------------------


def _apply(preparation: Preparation, stage: ShardStage | CorpusStage, number: int) -> bool:
    """Put a shard through a stage."""
    name, before = stage.name, stage_before(stage.name)
    shard, folder = preparation.shards(name)[number], preparation.stage_folder(name)
    marker = preparation.marker(before, preparation.shards(before)[number])
    if folder.done(shard.name, shard.fingerprint) is not None:
        return False
    report = Report()
    documents = preparation.stage_folder(before).documents([shard.name])
    if isinstance(stage, CorpusStage):
        decided = _decided(preparation, stage, number, report)
        documents = stage.run(documents, preparation.corpus, report, decided)
    else:
        documents = stage.run(documents, preparation.corpus, report)
    folder.write(shard.name, shard.fingerprint, documents, report, marker)
    return True


def _decided(preparation: Preparation, stage: CorpusStage, number: int, report: Report) -> pa.Table:
    """Return what a stage has decided on a shard, or on all; its counts go into the report of the first
    shard.

    Raises:
        UserError: it has not decided yet.
    """
    folder = preparation.stage_folder(stage.name)
    if folder.done("decided", preparation.decision_fingerprint(stage.name), verify=False) is None:
        raise UserError(f"step {stage.name}.decide is not done: run it first")
    table = pq.ParquetFile(folder.path / "decided.parquet").read(use_threads=False)
    if number == 0:
        report.counts.update(json.loads((table.schema.metadata or {}).get(b"counts", b"{}")))
    return table.filter(pc.field("shard") == number) if "shard" in table.column_names else table


def _collect(preparation: Preparation, stage: CorpusStage, number: int) -> bool:
    before = stage_before(stage.name)
    shard, folder = preparation.shards(before)[number], preparation.stage_folder(stage.name)
    preparation.marker(before, shard)
    collected = preparation.collected(stage.name, shard)
    decision = preparation.decision_fingerprint(stage.name)
    if folder.done("decided", decision) or folder.done(collected.name, collected.fingerprint):
        return False
    documents = preparation.stage_folder(before).documents([shard.name])
    table = stage.collect(documents, preparation.corpus)
    write_table(folder.path / f"{collected.name}.parquet", table, COLLECTED_IN_GROUP)
    folder.finish(collected.name, collected.fingerprint, [f"{collected.name}.parquet"])
    return True


def _decide(preparation: Preparation, stage: CorpusStage) -> bool:
    folder, fingerprint = preparation.stage_folder(stage.name), preparation.decision_fingerprint(stage.name)
    if folder.done("decided", fingerprint):
        return False
    paths = []
    for shard in preparation.shards(stage_before(stage.name)):
        collected = preparation.collected(stage.name, shard)
        if folder.done(collected.name, collected.fingerprint) is None:
            raise UserError(f"step {stage.name}.collect: shard {shard.name} is not done: run it first")
        paths.append(folder.path / f"{collected.name}.parquet")
    write_table(folder.path / "decided.parquet", stage.decide(paths, preparation.corpus))
    folder.finish("decided", fingerprint, ["decided.parquet"])
    for path in paths:
        path.unlink()
        path.with_name(f"done-{path.stem}.json").unlink(missing_ok=True)
    return True
