"""Execution of one task of a preparation.

A preparation consists of steps, and a step of tasks; plan.py lists them. For example, a task reads
some raw files, or runs a stage on a shard. Tasks run in the worker processes of workers.py, or in
the jobs of a scheduler.
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
from data_prep.stage_files import open_shard_file, write_json, write_table
from data_prep.stages.protocol import CorpusStage, ShardStage
from data_prep.tokens.step import place_tokenizer, tokenise_shard
from data_prep.user_error import UserError

# Rows in a row group of a collected table. A stage can read one row group at a time.
COLLECTED_IN_GROUP = 20_000


class FileChanged(UserError):
    """A raw file does not have the checksum in the plan, or was changed while it was read."""

    def __init__(self, source: str, name: str) -> None:
        self.source = source
        self.name = name
        super().__init__(
            f"source {source}: file {name} was changed while it was read, or since its checksum "
            "was taken; run `finetune prepare` again when no process writes to the file"
        )

    def __reduce__(self) -> tuple[type[FileChanged], tuple[str, str]]:
        # Worker processes pickle the error. By default, unpickling would pass the message as the
        # only argument.
        return type(self), (self.source, self.name)


def run(preparation: Preparation, step: str, number: int) -> bool:
    """Do the task with this number (from 0) of a step. Return False if it was done before."""
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
    if phase == "decide":
        return _decide(preparation, stage)
    return _apply(preparation, stage, number)


# --- reading -------------------------------------------------------------------------------------


def _read(preparation: Preparation, number: int) -> bool:
    task = preparation.tasks[number]
    folder = preparation.stage_folder(READ)
    fingerprint = preparation.task_fingerprint(number)
    done = preparation.shards_of_task(number)
    if done is not None and all(folder.read_marker(name, digest(fingerprint, name)) for name in done):
        return False
    folder.path.mkdir(parents=True, exist_ok=True)
    report = Report()
    documents = _read_unchanged(task, preparation.corpus.sources[task.source], report)
    names: list[str] = []
    try:
        _write_shards(preparation, number, documents, report, names)
    except FileChanged:  # the finished shards contain text of a different version of the file
        for name in names:
            folder.discard(name)
        raise
    write_json(preparation.task_file(number), {"fingerprint": fingerprint, "shards": names})
    return True


def _write_shards(
    preparation: Preparation, number: int, documents: Iterator[Document], report: Report, names: list[str]
) -> None:
    """Write the documents of a read task in shards, and append the shards' names to `names`.

    The report of the whole task is written with the last shard. A task without documents writes one
    empty shard.
    """
    folder = preparation.stage_folder(READ)
    fingerprint = preparation.task_fingerprint(number)
    document = next(documents, None)
    while document is not None or not names:
        name = f"{number:05d}-{len(names):03d}"
        with open_shard_file(folder.part_path(name)) as file:
            while document is not None and file.characters < preparation.shard_characters:
                file.add(document)
                document = next(documents, None)
        is_last = document is None
        names.append(name)
        folder.finish_shard(name, digest(fingerprint, name), file, report if is_last else Report())


def _read_unchanged(task: ReadTask, source: SourceConfig, report: Report) -> Iterator[Document]:
    """Yield the documents in the raw files of a read task, and check the files' checksums.

    Raises:
        FileChanged: a file was changed, replaced, truncated or deleted since the plan was written.
    """
    for path, name, sha256 in zip(map(Path, task.paths), task.names, task.sha256, strict=True):
        before = _file_state(path)
        try:
            yield from reading.read(task.source, source, report, [path])
        except (ValueError, OSError):
            if _is_changed(path, before, sha256):
                raise FileChanged(task.source, name) from None
            raise
        if _is_changed(path, before, sha256):
            raise FileChanged(task.source, name)


def _file_state(path: Path) -> tuple[int, int, int] | None:
    """Return inode, size and modification time of a file; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _is_changed(path: Path, before: tuple[int, int, int] | None, sha256: str) -> bool:
    """Return whether a file was changed or deleted.

    Args:
        before: the file's earlier state, as `_file_state` returned it.
        sha256: the checksum that the file should have.
    """
    if before is None or _file_state(path) != before:
        return True
    try:
        return sha256_file(path) != sha256
    except OSError:
        return True


# --- text stages ---------------------------------------------------------------------------------


def _apply(preparation: Preparation, stage: ShardStage | CorpusStage, number: int) -> bool:
    """Run a stage on shard `number` of its input. Return False if this was done before."""
    before = stage_before(stage.name)
    shard = preparation.shards(stage.name)[number]
    folder = preparation.stage_folder(stage.name)
    input_marker = preparation.marker(before, preparation.shards(before)[number])
    if folder.read_marker(shard.name, shard.fingerprint) is not None:
        return False
    report = Report()
    documents = preparation.stage_folder(before).documents([shard.name])
    if isinstance(stage, CorpusStage):
        decision = _read_decision(preparation, stage, number, report)
        documents = stage.run(documents, preparation.corpus, report, decision)
    else:
        documents = stage.run(documents, preparation.corpus, report)
    folder.write_shard(shard.name, shard.fingerprint, documents, report, input_marker)
    return True


def _read_decision(preparation: Preparation, stage: CorpusStage, number: int, report: Report) -> pa.Table:
    """Return the table that the stage's `decide` returned, to process shard `number`.

    If the table has a column `shard`, only the rows of this shard are returned. For shard 0, the
    counts in the table's metadata are added to `report`.

    Raises:
        UserError: the step `decide` of the stage is not done.
    """
    folder = preparation.stage_folder(stage.name)
    fingerprint = preparation.decision_fingerprint(stage.name)
    if folder.read_marker("decided", fingerprint, verify=False) is None:
        raise UserError(
            f"step {stage.name}.decide is not done; run it first: "
            f"python -m data_prep.pipeline {preparation.work} {stage.name}.decide"
        )
    table = pq.ParquetFile(folder.path / "decided.parquet").read(use_threads=False)
    if number == 0:
        report.counts.update(json.loads((table.schema.metadata or {}).get(b"counts", b"{}")))
    if "shard" not in table.column_names:
        return table
    return table.filter(pc.field("shard") == number)


def _collect(preparation: Preparation, stage: CorpusStage, number: int) -> bool:
    """Write the table that the stage's `collect` returns for a shard of its input.

    Return False if this table was written before, or the table of the stage's `decide`.
    """
    before = stage_before(stage.name)
    shard = preparation.shards(before)[number]
    preparation.marker(before, shard)  # raises an error if the shard is not done
    folder = preparation.stage_folder(stage.name)
    collected = preparation.collected_shard(stage.name, shard)
    if folder.read_marker("decided", preparation.decision_fingerprint(stage.name)):
        return False
    if folder.read_marker(collected.name, collected.fingerprint):
        return False
    documents = preparation.stage_folder(before).documents([shard.name])
    table = stage.collect(documents, preparation.corpus)
    write_table(folder.path / f"{collected.name}.parquet", table, COLLECTED_IN_GROUP)
    folder.write_marker(collected.name, collected.fingerprint, [f"{collected.name}.parquet"])
    return True


def _decide(preparation: Preparation, stage: CorpusStage) -> bool:
    """Write the table that the stage's `decide` returns, and delete the collected tables.

    Return False if the table was written before.

    Raises:
        UserError: the step `collect` of the stage is not done for all shards.
    """
    folder = preparation.stage_folder(stage.name)
    fingerprint = preparation.decision_fingerprint(stage.name)
    if folder.read_marker("decided", fingerprint):
        return False
    paths = []
    for shard in preparation.shards(stage_before(stage.name)):
        collected = preparation.collected_shard(stage.name, shard)
        if folder.read_marker(collected.name, collected.fingerprint) is None:
            raise UserError(
                f"step {stage.name}.collect: shard {shard.name} is not done; run it first: "
                f"python -m data_prep.pipeline {preparation.work} {stage.name}.collect"
            )
        paths.append(folder.path / f"{collected.name}.parquet")
    write_table(folder.path / "decided.parquet", stage.decide(paths, preparation.corpus))
    folder.write_marker("decided", fingerprint, ["decided.parquet"])
    for path in paths:
        path.unlink()
        path.with_name(f"done-{path.stem}.json").unlink(missing_ok=True)
    return True
