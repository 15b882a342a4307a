"""What there is to do for a corpus, and what is done of it; `pipeline` says when.

What a shard of a stage depends on is hashed into its fingerprint: the stage's version and settings, and the fingerprint of the
shard it is made of, back to the raw file; or of all shards, where a stage judges by the whole corpus. A shard that is on disk
with its fingerprint is not done again: so a killed preparation goes on, and a changed setting costs only what it changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep import reading
from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig, as_settings, from_settings
from data_prep.document import Document, Report
from data_prep.shards import Loss, SourceInfo, StageInfo, sha256_file
from data_prep.stage_files import Done, StageFolder, shard_file, write_json, write_table
from data_prep.stages import (
    boilerplate,
    decontaminate,
    deduplicate,
    deidentify,
    language,
    mixture,
    normalise,
    quality,
    split,
    tokenise,
)

TEXT_STAGES: tuple[ModuleType, ...] = (
    normalise, boilerplate, language, quality, deduplicate, decontaminate, deidentify, split, mixture,
)  # fmt: skip
LAST_STEPS = ("tokenizer", "tokenise", "publish")  # what publish.py does
READ_VERSION = 6
_NOT_READ = ("sha256", "mixture", "max_broken", "max_broken_share")  # settings of a source that reading does not depend on
TASK_BYTES, TASK_FILES = 4_000_000, 2000  # small files are read together until they are this much
COLLECTED_IN_GROUP = 20_000  # rows of what is collected that can be read apart from the others
SMALL = 4_000_000  # bytes of raw text a process: for less, starting one takes longer than the work


@dataclass(frozen=True)
class Step:
    """A step of the work. `cut`: its tasks may run beside each other; else it is one task."""

    name: str
    cut: bool = True


@dataclass(frozen=True)
class ReadTask:
    """Raw files of one source that are read together: where they lie, what they are called under their source, and sha256."""

    source: str
    paths: list[str]
    names: list[str]
    sha256: list[str]
    bytes: int


@dataclass(frozen=True)
class Shard:
    """A shard of a stage: its name, the same in every stage, and the fingerprint of all that it depends on."""

    name: str
    fingerprint: str


class FileChanged(ValueError):
    """A raw file that is not what its checksum says."""

    def __init__(self, source: str, name: str) -> None:
        self.source, self.name = source, name
        super().__init__(
            f"source {source}: file {name} was changed while it was read, or since its checksum was taken: "
            f"run prepare again once nothing writes to it"
        )

    def __reduce__(self) -> tuple[type[FileChanged], tuple[str, str]]:  # it comes from another process
        return type(self), (self.source, self.name)


class Preparation:
    """A plan, and what is on disk of it."""

    def __init__(self, work: Path, body: dict[str, Any]) -> None:
        self.work, self.folder, self.cwd = work, Path(body["folder"]), body["cwd"]
        self.shard_characters: int = body["shard_characters"]
        self.corpus: CorpusConfig = from_settings(CorpusConfig, body["corpus"])
        self.tasks = [ReadTask(**task) for task in body["tasks"]]
        self._shards: dict[int, list[Shard]] = {}
        self._settings: dict[int, str] = {}
        self._decisions: dict[int, str] = {}

    @staticmethod
    def plan(config: PrepareConfig, folder: Path, work: Path) -> Preparation:
        """Find the raw files, take their checksums, and write down all that a task must be told.

        Raises:
            FileNotFoundError: a source's path does not exist or holds nothing to read.
            ValueError: a setting is wrong.
        """
        corpus = config.corpus
        tasks = [asdict(task) for name in corpus.sources for task in _read_tasks(name, corpus)]
        body = {"corpus": as_settings(corpus), "folder": str(folder.absolute()), "cwd": str(Path.cwd()), "tasks": tasks}
        write_json(work / "plan.json", {**body, "shard_characters": config.shard_characters})
        preparation = Preparation.load(work)
        preparation.prune()
        return preparation

    @staticmethod
    def load(work: Path) -> Preparation:
        """Raises ValueError if the folder holds no plan."""
        try:
            stat = (work / "plan.json").stat()
        except OSError:
            raise ValueError(f"{work} holds no plan.json: it is made by `finetune prepare`") from None
        return _loaded(work.absolute(), stat.st_mtime_ns, stat.st_size)

    # --- what there is to do ---------------------------------------------------------------------------------------------

    def steps(self) -> list[Step]:
        found = [Step("read")]
        for module in TEXT_STAGES:
            name = _name(module)
            if hasattr(module, "decide"):
                found += [Step(f"{name}.collect"), Step(f"{name}.decide", cut=False)]
            found.append(Step(name))
        return [*found, *(Step(name, cut=name == "tokenise") for name in LAST_STEPS)]

    def sizes(self, step: Step) -> list[int]:
        """Of each task of a step, what it has to work through: bytes of files, else characters."""
        if step.name == "read":
            return [task.bytes for task in self.tasks]
        if not step.cut:
            return [1]
        return [done.characters_out for done in self.done(self._number(step.name) - 1)]

    def run(self, step: str, number: int) -> bool:
        """Do one task of a step up to the last text stage. False if it was done before."""
        if step == "read":
            return self._read(number)
        stage, phase = self._number(step), step.partition(".")[2]
        if phase == "collect":
            return self._collect(stage, number)
        return self._decide(stage) if phase == "decide" else self._apply(stage, number)

    @cached_property
    def fingerprint(self) -> str:
        """Of every raw file and setting: of the corpus that comes out."""
        stages = [(_name(module), module.VERSION, module.settings(self.corpus)) for module in TEXT_STAGES]
        return digest("corpus", READ_VERSION, stages, tokenise.VERSION, tokenise.settings(self.corpus), self.source_settings)

    def sensible_workers(self) -> int:
        return min(len(os.sched_getaffinity(0)), 1 + sum(task.bytes for task in self.tasks) // SMALL)

    @cached_property
    def source_settings(self) -> dict[str, dict[str, Any]]:
        """All that a source is, with the digest of its raw files' names and bytes; not where they lie."""
        settings = {}
        for name, source in self.corpus.sources.items():
            files = [file for task in self.tasks if task.source == name for file in zip(task.names, task.sha256, strict=True)]
            kept = {key: value for key, value in as_settings(source).items() if key != "path"}
            settings[name] = {**kept, "sha256": digest(files)}
        return settings

    def shards(self, stage: int) -> list[Shard]:
        """The shards of a stage, in order: names, and what their fingerprints must be.

        Raises:
            ValueError: reading is not finished, so that nobody knows.
        """
        if stage not in self._shards:
            self._shards[stage] = self._read_shards() if stage == 0 else self._stage_shards(stage)
        return self._shards[stage]

    def _read_shards(self) -> list[Shard]:
        found = []
        for number in range(len(self.tasks)):
            parts = self._parts_of(number)
            if parts is None:
                raise ValueError(f"step read: task {number} is not done: run it first")
            found += [Shard(name, digest(self._task_fingerprint(number), name)) for name in parts]
        self._check_read(found)
        return found

    def _check_read(self, shards: list[Shard]) -> None:
        """Raises ValueError if a source gave nothing, or more of it is broken than may be. What was read is kept."""
        counts = sum((Counter(self.marker(0, shard).counts) for shard in shards), Counter())
        for name, source in self.corpus.sources.items():
            broken = counts[f"quarantined_{name}"]
            quarantined = self.stage(0).quarantined([shard.name for shard in shards]) if broken else iter(())
            first = next((record for record in quarantined if record.source == name), None)
            read = counts[f"read_{name}"]
            drops = iter(()) if read else self.stage(0).drops()
            dropped = next((drop for drop in drops if drop.source == name), None)
            reading.check_yield(name, source, read, broken, first, dropped)

    def _stage_shards(self, stage: int) -> list[Shard]:
        before, setting = self.shards(stage - 1), self._stage_fingerprint(stage)
        decision = digest(setting, [shard.fingerprint for shard in before]) if self._decides(stage) else ""
        return [Shard(shard.name, digest(setting, shard.fingerprint, decision)) for shard in before]

    def _stage_fingerprint(self, stage: int) -> str:
        if stage not in self._settings:
            module = TEXT_STAGES[stage - 1]
            self._settings[stage] = digest(_name(module), module.VERSION, module.settings(self.corpus))
        return self._settings[stage]

    def _decides(self, stage: int) -> bool:
        return hasattr(TEXT_STAGES[stage - 1], "decide")

    def _number(self, step: str) -> int:
        return self._stages.index(step.partition(".")[0])

    # --- what is on disk -------------------------------------------------------------------------------------------------

    def stage(self, number: int) -> StageFolder:
        """The folder of a stage: 0 is read, then the text stages; what comes behind the last is tokenise."""
        return StageFolder(self.work / f"{number}-{self._stages[number]}")

    @property
    def _stages(self) -> list[str]:
        return ["read", *map(_name, TEXT_STAGES), "tokenise"]

    @property
    def text(self) -> int:
        """The number of the last text stage."""
        return len(TEXT_STAGES)

    def done(self, stage: int) -> list[Done]:
        """The markers of all shards of a stage.

        Raises:
            ValueError: one is not there.
        """
        return [self.marker(stage, shard) for shard in self.shards(stage)]

    def marker(self, stage: int, shard: Shard) -> Done:
        """Raises ValueError if the stage has not done this shard."""
        folder = self.stage(stage)
        marker = folder.done(shard.name, shard.fingerprint, verify=False)
        if marker is None:
            raise ValueError(f"step {folder.name}: shard {shard.name} is not done: run it first")
        return marker

    def documents(self, stage: int, columns: list[str] | None = None) -> Iterator[Document]:
        """All that a stage let through, in order."""
        return self.stage(stage).documents([shard.name for shard in self.shards(stage)], columns)

    def info(self, stage: int) -> StageInfo:
        """What reading, or a text stage, did to all shards together."""
        if stage == 0:
            return stage_info("read", READ_VERSION, self.source_settings, self.done(0))
        module = TEXT_STAGES[stage - 1]
        return stage_info(_name(module), module.VERSION, module.settings(self.corpus), self.done(stage))

    def count_read(self, sources: dict[str, SourceInfo]) -> None:
        """Enter what was read of each source, and how many documents have an id that is not theirs alone."""
        shards: dict[str, list[Shard]] = {name: [] for name in sources}
        for shard in self.shards(0):
            shards[self.tasks[int(shard.name.partition("-")[0])].source].append(shard)
        for name, own in shards.items():
            markers = [self.marker(0, shard) for shard in own]
            refused = sum(loss.characters for marker in markers for loss in marker.losses)
            sources[name].documents_read = sum(marker.documents_in for marker in markers)
            sources[name].characters_read = refused + sum(marker.characters_out for marker in markers)
            hashes = [self.stage(0).id_hashes(shard.name) for shard in own]
            sources[name].repeated_ids = sum(map(len, hashes)) - len(np.unique(np.concatenate(hashes)))

    def prune(self) -> None:
        """Delete what was half written, and stages and, once all is read, shards that there are no longer."""
        known = {self.stage(number).path for number in range(self.text + 2)}
        for path in self.work.iterdir():
            if path.is_dir() and path.name[:1].isdigit() and path not in known:
                shutil.rmtree(path)
        for path in self.work.rglob(".*.tmp"):
            path.unlink(missing_ok=True)
        parts = [self._parts_of(number) for number in range(len(self.tasks))]
        if None not in parts:
            current = {name for names in parts for name in names or []}
            for folder in map(StageFolder, known):
                folder.keep_only(current)

    # --- doing it --------------------------------------------------------------------------------------------------------

    def _task_fingerprint(self, number: int) -> str:
        task = self.tasks[number]
        settings = {key: value for key, value in self.source_settings[task.source].items() if key not in _NOT_READ}
        return digest("read", READ_VERSION, self.shard_characters, task.source, settings, task.names, task.sha256)

    def _parts_of(self, number: int) -> list[str] | None:
        """The shards that a task of reading gave, once it has."""
        try:
            body = json.loads((self.stage(0).path / f"task-{number:05d}.json").read_text(encoding="utf-8"))
            return list(body["shards"]) if body["fingerprint"] == self._task_fingerprint(number) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _read(self, number: int) -> bool:
        task, folder, fingerprint = self.tasks[number], self.stage(0), self._task_fingerprint(number)
        parts = self._parts_of(number)
        if parts is not None and all(folder.done(part, digest(fingerprint, part)) for part in parts):
            return False
        folder.path.mkdir(parents=True, exist_ok=True)
        report, source = Report(), self.corpus.sources[task.source]
        documents = _read_unchanged(task, source, report)
        names: list[str] = []
        try:
            self._write_read(number, documents, report, names)
        except FileChanged:  # what is finished has the checksum of another file than was read
            for name in names:
                folder.discard(name)
            raise
        write_json(folder.path / f"task-{number:05d}.json", {"fingerprint": fingerprint, "shards": names})
        return True

    def _write_read(self, number: int, documents: Iterator[Document], report: Report, names: list[str]) -> None:
        """Write the documents of a task in shards, whose names are added to `names`."""
        folder, fingerprint = self.stage(0), self._task_fingerprint(number)
        document = next(documents, None)
        while document is not None or not names:  # at least one, to hold what was refused
            name = f"{number:05d}-{len(names):03d}"
            with shard_file(folder.part(name)) as file:
                while document is not None and file.characters < self.shard_characters:
                    file.add(document)
                    document = next(documents, None)
            said = Report() if document is not None else report  # what a task has to report goes with its last shard
            names.append(name)
            folder.close(name, digest(fingerprint, name), file, said)

    def _apply(self, stage: int, number: int) -> bool:
        shard, folder, module = self.shards(stage)[number], self.stage(stage), TEXT_STAGES[stage - 1]
        before = self.marker(stage - 1, self.shards(stage - 1)[number])
        if folder.done(shard.name, shard.fingerprint) is not None:
            return False
        report, decided = Report(), []
        if self._decides(stage):
            if folder.done("decided", self._decision(stage), verify=False) is None:
                raise ValueError(f"step {folder.name}.decide is not done: run it first")
            path = folder.path / "decided.parquet"
            table = pq.ParquetFile(path).read(use_threads=False)
            decided.append(table.filter(pc.field("shard") == number) if "shard" in table.column_names else table)
            if number == 0:
                report.counts.update(json.loads((table.schema.metadata or {}).get(b"counts", b"{}")))
        documents = self.stage(stage - 1).documents([shard.name])
        folder.write(shard.name, shard.fingerprint, module.run(documents, self.corpus, report, *decided), report, before)
        return True

    def _decision(self, stage: int) -> str:
        """The fingerprint of what a stage decides by: all shards before it."""
        if stage not in self._decisions:
            before = [shard.fingerprint for shard in self.shards(stage - 1)]
            self._decisions[stage] = digest("decided", self._stage_fingerprint(stage), before)
        return self._decisions[stage]

    def _collected(self, stage: int, shard: Shard) -> tuple[str, str]:
        """What a stage must know of a shard before it: name and fingerprint."""
        return f"collected-{shard.name}", digest("collected", self._stage_fingerprint(stage), shard.fingerprint)

    def _collect(self, stage: int, number: int) -> bool:
        shard, folder = self.shards(stage - 1)[number], self.stage(stage)
        self.marker(stage - 1, shard)
        name, fingerprint = self._collected(stage, shard)
        if folder.done("decided", self._decision(stage)) or folder.done(name, fingerprint):
            return False
        table = TEXT_STAGES[stage - 1].collect(self.stage(stage - 1).documents([shard.name]), self.corpus)
        write_table(folder.path / f"{name}.parquet", table, COLLECTED_IN_GROUP)
        folder.finish(name, fingerprint, [f"{name}.parquet"])
        return True

    def _decide(self, stage: int) -> bool:
        folder, fingerprint = self.stage(stage), self._decision(stage)
        if folder.done("decided", fingerprint):
            return False
        collected = []
        for shard in self.shards(stage - 1):
            name, its_own = self._collected(stage, shard)
            if folder.done(name, its_own) is None:
                raise ValueError(f"step {folder.name}.collect: shard {shard.name} is not done: run it first")
            collected.append(folder.path / f"{name}.parquet")
        write_table(folder.path / "decided.parquet", TEXT_STAGES[stage - 1].decide(collected, self.corpus))
        folder.finish("decided", fingerprint, ["decided.parquet"])
        for path in collected:
            path.unlink()
            path.with_name(f"done-{path.stem}.json").unlink(missing_ok=True)
        return True


def stage_info(name: str, version: int, settings: dict[str, Any], shards: list[Done]) -> StageInfo:
    """What a stage did, summed over its shards."""
    dropped, counts = Report().counts, Report().counts
    losses: dict[tuple[str, str], Loss] = {}
    for shard in shards:
        dropped.update(shard.dropped)
        counts.update(shard.counts)
        for part in shard.losses:
            loss = losses.setdefault((part.source, part.reason), Loss(source=part.source, reason=part.reason))
            loss.documents += part.documents
            loss.cut += part.cut
            loss.characters += part.characters
    return StageInfo(
        name=name, version=version, settings=settings, documents_in=sum(shard.documents_in for shard in shards),
        documents_out=sum(shard.documents_out for shard in shards), dropped=dict(sorted(dropped.items())),
        counts=dict(sorted(counts.items())), losses=[losses[key] for key in sorted(losses)],
    )  # fmt: skip


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


@lru_cache(maxsize=1)
def _loaded(work: Path, _changed: int, _size: int) -> Preparation:
    return Preparation(work, json.loads((work / "plan.json").read_text(encoding="utf-8")))


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


def _read_tasks(name: str, corpus: CorpusConfig) -> Iterator[ReadTask]:
    """A source's files in tasks: large ones alone, small ones together. It depends on the files only."""
    source = corpus.sources[name]
    files, root = reading.files(source), Path(source.path)
    names = [path.relative_to(root).as_posix() if root.is_dir() else path.name for path in files]
    sizes = [path.stat().st_size for path in files]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        sums = list(pool.map(sha256_file, files))
    begin = gathered = 0
    for end, size in enumerate(sizes, start=1):
        gathered += size
        full = gathered >= TASK_BYTES or end - begin >= TASK_FILES
        if full or end == len(files) or gathered + sizes[end] > TASK_BYTES:
            paths = [str(path.absolute()) for path in files[begin:end]]
            yield ReadTask(name, paths, names[begin:end], sums[begin:end], gathered)
            begin, gathered = end, 0
