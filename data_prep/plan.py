"""The plan of a preparation: its steps, tasks and fingerprints, and what of them is done; execute.py does the
rest. Runs in every process of a preparation.

What a shard of a stage depends on is hashed into its fingerprint: the stage's version and settings, and the
fingerprint of the shard it is made of, back to the raw file; or of all shards, where a stage judges by the
whole corpus. A shard that is on disk with its fingerprint is not done again: so a killed preparation goes on,
and a changed setting costs only what it changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from data_prep import reading
from data_prep.config import CorpusConfig, PrepareConfig, as_settings, from_settings
from data_prep.document import Document, Drop, Report
from data_prep.shards import Loss, StageInfo, sha256_file
from data_prep.stage_files import Done, StageFolder, write_json
from data_prep.stages import TEXT_STAGES
from data_prep.stages.protocol import CorpusStage, ShardStage, Stage
from data_prep.stages.tokenise import Tokenise
from data_prep.user_error import UserError

READ = "read"  # the stage before all others, which makes documents of the raw files
STAGES = (READ, *(stage.name for stage in TEXT_STAGES), Tokenise.name)
LAST_TEXT_STAGE = TEXT_STAGES[-1].name
LAST_STEPS = (
    "tokenizer",
    "tokenise",
    "publish",
)  # which make the corpus folder of the last text stage's documents
READ_VERSION = 6
_NOT_READ = (
    "sha256",
    "mixture",
    "max_broken",
    "max_broken_share",
)  # settings of a source that reading does not depend on
TASK_BYTES, TASK_FILES = 4_000_000, 2000  # small files are read together until they are this much
SMALL = 4_000_000  # bytes of raw text a process: for less, starting one takes longer than the work


@dataclass(frozen=True)
class Step:
    """A step of the work. `cut`: its tasks may run beside each other; else it is one task."""

    name: str
    cut: bool = True

    @property
    def stage(self) -> str:
        """Return the stage that it is a part of."""
        return Tokenise.name if self.name in LAST_STEPS else self.name.partition(".")[0]


@dataclass(frozen=True)
class ReadTask:
    """Raw files of one source that are read together: where they lie, what they are called under their
    source, and sha256."""

    source: str
    paths: list[str]
    names: list[str]
    sha256: list[str]
    bytes: int


@dataclass(kw_only=True)
class PlanFile:
    """plan.json: all that a task must be told.

    Attributes:
        folder: of the corpus.
        cwd: where the config was given, which its paths are relative to.
    """

    corpus: CorpusConfig
    folder: str
    cwd: str
    tasks: list[ReadTask]
    shard_characters: int


@dataclass(frozen=True)
class Shard:
    """A shard of a stage: its name, the same in every stage, and the fingerprint of all that it depends
    on."""

    name: str
    fingerprint: str


class Preparation:
    """A plan, and what is on disk of it."""

    def __init__(self, work: Path, plan: PlanFile) -> None:
        self.work = work
        self.folder = Path(plan.folder)
        self.cwd = plan.cwd
        self.shard_characters = plan.shard_characters
        self.corpus = plan.corpus
        self.tasks = plan.tasks
        self._shards: dict[str, list[Shard]] = {}
        self._settings: dict[str, str] = {}
        self._decisions: dict[str, str] = {}

    @staticmethod
    def plan(config: PrepareConfig, folder: Path, work: Path) -> Preparation:
        """Find the raw files, take their checksums, and write down all that a task must be told.

        Raises:
            NotFoundError: a source's path does not exist or holds nothing to read.
            UserError: a setting is wrong.
        """
        corpus = config.corpus
        plan = PlanFile(
            corpus=corpus,
            folder=str(folder.absolute()),
            cwd=str(Path.cwd()),
            tasks=[task for name in corpus.sources for task in _read_tasks(name, corpus)],
            shard_characters=config.shard_characters,
        )
        write_json(work / "plan.json", as_settings(plan))
        preparation = Preparation.load(work)
        preparation.prune()
        return preparation

    @staticmethod
    def load(work: Path) -> Preparation:
        """Raises UserError if the folder holds no plan."""
        try:
            stat = (work / "plan.json").stat()
        except OSError:
            raise UserError(f"{work} holds no plan.json: it is made by `finetune prepare`") from None
        return _loaded(work.absolute(), stat.st_mtime_ns, stat.st_size)

    # --- what there is to do --------------------------------------------------------------------------------

    def steps(self) -> list[Step]:
        found = [Step(READ)]
        for stage in TEXT_STAGES:
            if isinstance(stage, CorpusStage):
                found += [Step(f"{stage.name}.collect"), Step(f"{stage.name}.decide", cut=False)]
            found.append(Step(stage.name))
        return [*found, *(Step(name, cut=name == Tokenise.name) for name in LAST_STEPS)]

    def sizes(self, step: Step) -> list[int]:
        """Return the size of each task of a step: bytes of files in the read step, else characters."""
        if step.stage == READ:
            return [task.bytes for task in self.tasks]
        if not step.cut:
            return [1]
        return [done.characters_out for done in self.done(stage_before(step.stage))]

    @cached_property
    def fingerprint(self) -> str:
        """Return the fingerprint of every raw file and setting, and so of the corpus that comes out."""
        stages = [(stage.name, stage.version, self.settings(stage)) for stage in TEXT_STAGES]
        tokens = Tokenise()
        return digest(
            "corpus", READ_VERSION, stages, tokens.version, self.settings(tokens), self.source_settings
        )

    def settings(self, stage: Stage) -> dict[str, object]:
        """Return what a stage depends on as plain data."""
        return as_settings(stage.settings(self.corpus))

    def sensible_workers(self) -> int:
        return min(len(os.sched_getaffinity(0)), 1 + sum(task.bytes for task in self.tasks) // SMALL)

    @cached_property
    def source_settings(self) -> dict[str, dict[str, object]]:
        """Return all that each source is, with the digest of its raw files' names and bytes, but not where
        they lie."""
        settings: dict[str, dict[str, object]] = {}
        for name, source in self.corpus.sources.items():
            kept = {key: value for key, value in as_settings(source).items() if key != "path"}
            settings[name] = {**kept, "sha256": self.source_sha256(name)}
        return settings

    def source_sha256(self, name: str) -> str:
        """Return the digest of the names and bytes of a source's raw files."""
        tasks = [task for task in self.tasks if task.source == name]
        return digest([file for task in tasks for file in zip(task.names, task.sha256, strict=True)])

    def shards(self, stage: str) -> list[Shard]:
        """Return the shards of a stage, in order: names, and what their fingerprints must be.

        Raises:
            UserError: reading is not finished, so that nobody knows.
        """
        if stage not in self._shards:
            self._shards[stage] = self._read_shards() if stage == READ else self._stage_shards(stage)
        return self._shards[stage]

    def _read_shards(self) -> list[Shard]:
        found = []
        for number in range(len(self.tasks)):
            parts = self.parts_of_task(number)
            if parts is None:
                raise UserError(f"step read: task {number} is not done: run it first")
            found += [Shard(name, digest(self.task_fingerprint(number), name)) for name in parts]
        self._check_read(found)
        return found

    def _check_read(self, shards: list[Shard]) -> None:
        """Raises UserError if a source gave nothing, or more of it is broken than may be. What was read is
        kept."""
        folder = self.stage_folder(READ)
        counts = sum((Counter(self.marker(READ, shard).counts) for shard in shards), Counter())
        for name, source in self.corpus.sources.items():
            broken = counts[f"quarantined_{name}"]
            quarantined = folder.quarantined([shard.name for shard in shards]) if broken else iter(())
            first = next((record for record in quarantined if record.source == name), None)
            read = counts[f"read_{name}"]
            drops = iter(()) if read else folder.drops()
            dropped = next((drop for drop in drops if drop.source == name), None)
            reading.check_yield(name, source, read, broken, first, dropped)

    def _stage_shards(self, stage: str) -> list[Shard]:
        before = self.shards(stage_before(stage))
        setting = self.stage_fingerprint(stage)
        decision = ""
        if isinstance(text_stage(stage), CorpusStage):
            decision = digest(setting, [shard.fingerprint for shard in before])
        return [Shard(shard.name, digest(setting, shard.fingerprint, decision)) for shard in before]

    def stage_fingerprint(self, stage: str) -> str:
        """Return the fingerprint of a text stage itself, without its input."""
        if stage not in self._settings:
            found = text_stage(stage)
            self._settings[stage] = digest(found.name, found.version, self.settings(found))
        return self._settings[stage]

    def decision_fingerprint(self, stage: str) -> str:
        """Return the fingerprint of what a stage decides by: all shards before it."""
        if stage not in self._decisions:
            before = [shard.fingerprint for shard in self.shards(stage_before(stage))]
            self._decisions[stage] = digest("decided", self.stage_fingerprint(stage), before)
        return self._decisions[stage]

    def collected(self, stage: str, shard: Shard) -> Shard:
        """Return what a stage must know of a shard before it."""
        return Shard(
            f"collected-{shard.name}", digest("collected", self.stage_fingerprint(stage), shard.fingerprint)
        )

    # --- what is on disk ------------------------------------------------------------------------------------

    def stage_folder(self, stage: str) -> StageFolder:
        """Return the folder of a stage, whose name begins with the stage's place among all."""
        return StageFolder(self.work / f"{STAGES.index(stage)}-{stage}")

    def done(self, stage: str) -> list[Done]:
        """Return the markers of all shards of a stage.

        Raises:
            UserError: one is not there.
        """
        return [self.marker(stage, shard) for shard in self.shards(stage)]

    def marker(self, stage: str, shard: Shard) -> Done:
        """Raises UserError if the stage has not done this shard."""
        marker = self.stage_folder(stage).done(shard.name, shard.fingerprint, verify=False)
        if marker is None:
            raise UserError(f"step {stage}: shard {shard.name} is not done: run it first")
        return marker

    def documents(self, stage: str, columns: list[str] | None = None) -> Iterator[Document]:
        """Yield all that a stage let through, in order."""
        return self.stage_folder(stage).documents([shard.name for shard in self.shards(stage)], columns)

    def info(self, stage: str) -> StageInfo:
        """Return what reading, or a text stage, did to all shards together."""
        if stage == READ:
            return stage_info(READ, READ_VERSION, self.source_settings, self.done(READ))
        found = text_stage(stage)
        return stage_info(found.name, found.version, self.settings(found), self.done(stage))

    def infos(self) -> list[StageInfo]:
        """Return what reading and each text stage did."""
        return [self.info(stage) for stage in STAGES if stage != Tokenise.name]

    def prune(self) -> None:
        """Delete what was half written, and stages and, once all is read, shards that there are no longer."""
        known = {self.stage_folder(stage).path for stage in STAGES}
        for path in self.work.iterdir():
            if path.is_dir() and path.name[:1].isdigit() and path not in known:
                shutil.rmtree(path)
        for path in self.work.rglob(".*.tmp"):
            path.unlink(missing_ok=True)
        parts = [self.parts_of_task(number) for number in range(len(self.tasks))]
        if None not in parts:
            current = {name for names in parts for name in names or []}
            for folder in map(StageFolder, known):
                folder.keep_only(current)

    def task_fingerprint(self, number: int) -> str:
        """Return the fingerprint of all that a task of reading depends on."""
        task = self.tasks[number]
        settings = {
            key: value for key, value in self.source_settings[task.source].items() if key not in _NOT_READ
        }
        return digest(
            READ, READ_VERSION, self.shard_characters, task.source, settings, task.names, task.sha256
        )

    def parts_of_task(self, number: int) -> list[str] | None:
        """Return the shards that a task of reading gave; None before it is done."""
        try:
            body = json.loads(self.task_file(number).read_text(encoding="utf-8"))
            return list(body["shards"]) if body["fingerprint"] == self.task_fingerprint(number) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def task_file(self, number: int) -> Path:
        """Return the file that says which shards a task of reading gave."""
        return self.stage_folder(READ).path / f"task-{number:05d}.json"


def stage_before(stage: str) -> str:
    """Return the stage whose documents a stage is given."""
    place = STAGES.index(stage)
    assert place > 0, "no stage comes before reading"
    return STAGES[place - 1]


def text_stage(name: str) -> ShardStage | CorpusStage:
    """Return a text stage by its name."""
    return {stage.name: stage for stage in TEXT_STAGES}[name]


def stage_info(name: str, version: int, settings: Mapping[str, object], shards: list[Done]) -> StageInfo:
    """Return what a stage did, summed over its shards."""
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
        name=name,
        version=version,
        settings=dict(settings),
        documents_in=sum(shard.documents_in for shard in shards),
        documents_out=sum(shard.documents_out for shard in shards),
        dropped=dict(sorted(dropped.items())),
        counts=dict(sorted(counts.items())),
        losses=[losses[key] for key in sorted(losses)],
    )


def require_documents(name: str, stages: list[StageInfo], first: Drop | None = None) -> None:
    """Raises UserError if the last stage left nothing to train on. `first` is the first document that it
    dropped."""
    (split,) = (stage for stage in stages if stage.name == "split")
    if split.counts.get("train") and stages[-1].documents_out:
        return
    reasons = {reason: count for stage in stages for reason, count in stage.dropped.items()}
    dropped = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none dropped"
    if stages[-1].name == "tokenise":
        why = f"; the first, {first.id}: {first.detail or first.reason}" if first else ""
        remedy = f"check corpus.chat.template{why}"
    elif split.documents_out:
        remedy = (
            "raise the mixture's weights" if split.counts.get("train") else "lower split.validation_share"
        )
    else:
        remedy = "check the sources' `path` and `language.keep`"
    read = stages[0].documents_out
    raise UserError(
        f"corpus {name} is empty: of {read} documents read none is left to train on ({dropped}): {remedy}"
    )


def digest(*parts: object) -> str:
    """Return the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@lru_cache(maxsize=1)
def _loaded(work: Path, _changed: int, _size: int) -> Preparation:
    body = json.loads((work / "plan.json").read_text(encoding="utf-8"))
    corpus = from_settings(CorpusConfig, body.pop("corpus"))
    tasks = [ReadTask(**task) for task in body.pop("tasks")]
    return Preparation(work, PlanFile(corpus=corpus, tasks=tasks, **body))


def _read_tasks(name: str, corpus: CorpusConfig) -> Iterator[ReadTask]:
    """Yield a source's files in tasks: large ones alone, small ones together. It depends on the files
    only."""
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
