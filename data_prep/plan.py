"""The plan of a preparation: its steps, tasks and fingerprints, and which of them are done.

Every process of a preparation loads the plan; execute.py does the work.

A stage's shard has a fingerprint, a hash of all that the shard depends on: the stage's version and
settings, and the fingerprint of the stage's input. The input of the first stage is raw files.
That of a stage that decides by the whole corpus is all shards of the previous stage. That of any
other stage is the same shard of the previous stage. A shard that is on disk with its fingerprint is
not processed again. So a killed preparation resumes, and a changed setting repeats only the work
that depends on it.
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
from data_prep.document import Broken, Document, Drop
from data_prep.shards import Loss, StageInfo, sha256_file
from data_prep.stage_files import ShardMarker, StageFolder, write_json
from data_prep.stages import TEXT_STAGES
from data_prep.stages.protocol import CorpusStage, ShardStage, Stage
from data_prep.stages.tokenise import Tokenise
from data_prep.user_error import UserError

READ = "read"  # the first stage, which turns raw files into documents
STAGES = (READ, *(stage.name for stage in TEXT_STAGES), Tokenise.name)
LAST_TEXT_STAGE = TEXT_STAGES[-1].name
# Steps that turn the documents of the last text stage into the corpus folder.
LAST_STEPS = ("tokenizer", "tokenise", "publish")
READ_VERSION = 6
# Settings of a source on which reading does not depend.
_UNUSED_BY_READING = ("sha256", "mixture", "max_broken", "max_broken_share")
# A task reads small files together, up to one of these limits.
TASK_BYTES = 4_000_000
TASK_FILES = 2000
# Raw bytes for each worker process. For fewer, starting the process takes longer than its work.
BYTES_PER_WORKER = 4_000_000


@dataclass(frozen=True)
class Step:
    """A step of a preparation.

    Attributes:
        parallel: True if the step has many tasks, which may run at the same time; False if it has
            one task.
    """

    name: str
    parallel: bool = True

    @property
    def stage(self) -> str:
        """The stage that the step belongs to."""
        return Tokenise.name if self.name in LAST_STEPS else self.name.partition(".")[0]


@dataclass(frozen=True)
class ReadTask:
    """Raw files of one source that are read together.

    Attributes:
        paths: absolute paths of the files.
        names: paths relative to the source's path.
        sha256: checksums of the files.
        bytes: size of all files.
    """

    source: str
    paths: list[str]
    names: list[str]
    sha256: list[str]
    bytes: int


@dataclass(kw_only=True)
class PlanFile:
    """The content of plan.json, which every task of a preparation reads.

    Attributes:
        folder: the corpus folder.
        cwd: the directory to which paths in the config are relative.
    """

    corpus: CorpusConfig
    folder: str
    cwd: str
    tasks: list[ReadTask]
    shard_characters: int


@dataclass(frozen=True)
class Shard:
    """A shard of a stage.

    Attributes:
        name: the shard's name, the same in every stage.
        fingerprint: hash of all that the shard depends on.
    """

    name: str
    fingerprint: str


class Preparation:
    """The plan of a preparation, and the state of its files on disk.

    Args:
        work: the folder of the stages, `.<corpus>.stages`.
    """

    def __init__(self, work: Path, plan: PlanFile) -> None:
        self.work = work
        self.folder = Path(plan.folder)
        self.cwd = plan.cwd
        self.shard_characters = plan.shard_characters
        self.corpus = plan.corpus
        self.tasks = plan.tasks
        self._shards: dict[str, list[Shard]] = {}
        self._stage_fingerprints: dict[str, str] = {}
        self._decisions: dict[str, str] = {}

    @staticmethod
    def plan(config: PrepareConfig, folder: Path, work: Path) -> Preparation:
        """Find the raw files, compute their checksums, write plan.json, and delete old files.

        Raises:
            NotFoundError: a source's path does not exist or holds no file for its reader.
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
        """Load the plan in the folder `work`. Raise UserError if the folder has no plan.json."""
        try:
            stat = (work / "plan.json").stat()
        except OSError:
            raise UserError(
                f"{work} has no plan.json; give the folder .NAME.stages of a corpus, or run "
                "`finetune prepare`, which writes the plan"
            ) from None
        return _load_cached(work.absolute(), stat.st_mtime_ns, stat.st_size)

    # --- steps, settings and fingerprints --------------------------------------------------------

    def steps(self) -> list[Step]:
        """Return all steps in the order in which they must run."""
        steps = [Step(READ)]
        for stage in TEXT_STAGES:
            if isinstance(stage, CorpusStage):
                steps += [Step(f"{stage.name}.collect"), Step(f"{stage.name}.decide", parallel=False)]
            steps.append(Step(stage.name))
        return [*steps, *(Step(name, parallel=name == Tokenise.name) for name in LAST_STEPS)]

    def sizes(self, step: Step) -> list[int]:
        """Return the size of each task of a step: bytes in the read step, else characters."""
        if step.stage == READ:
            return [task.bytes for task in self.tasks]
        if not step.parallel:
            return [1]
        return [marker.characters_out for marker in self.markers(stage_before(step.stage))]

    @cached_property
    def fingerprint(self) -> str:
        """The corpus' fingerprint, a hash of all raw files and of all settings that affect it."""
        stages = [(stage.name, stage.version, self.settings(stage)) for stage in TEXT_STAGES]
        tokens = Tokenise()
        return digest(
            "corpus", READ_VERSION, stages, tokens.version, self.settings(tokens), self.source_settings
        )

    def settings(self, stage: Stage) -> dict[str, object]:
        """Return the settings on which a stage depends, as plain data."""
        return as_settings(stage.settings(self.corpus))

    def default_workers(self) -> int:
        """Return the default number of worker processes: one per core, fewer for small corpora."""
        raw_bytes = sum(task.bytes for task in self.tasks)
        return min(len(os.sched_getaffinity(0)), 1 + raw_bytes // BYTES_PER_WORKER)

    @cached_property
    def source_settings(self) -> dict[str, dict[str, object]]:
        """The settings of each source, without its path but with the digest of its raw files."""
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
        """Return the shards of a stage, in order, with the fingerprints that they must have.

        Raises:
            UserError: step read, which determines the shards, is not done. Or a source gave no
                documents or too many broken records.
        """
        if stage not in self._shards:
            self._shards[stage] = self._read_shards() if stage == READ else self._stage_shards(stage)
        return self._shards[stage]

    def _read_shards(self) -> list[Shard]:
        shards = []
        for number in range(len(self.tasks)):
            names = self.shards_of_task(number)
            if names is None:
                raise UserError(
                    f"step read: task {number} is not done; run it first: "
                    f"python -m data_prep.pipeline {self.work} {READ}"
                )
            shards += [Shard(name, digest(self.task_fingerprint(number), name)) for name in names]
        self._check_sources(shards)
        return shards

    def _check_sources(self, shards: list[Shard]) -> None:
        """Raise UserError if a source gave no documents or too many broken records.

        The shards stay on disk. So when the user has raised the limit on broken records, the source
        is not read again.
        """
        folder = self.stage_folder(READ)
        shard_names = [shard.name for shard in shards]
        counts = sum((Counter(self.marker(READ, shard).counts) for shard in shards), Counter())
        for name, source in self.corpus.sources.items():
            num_read = counts[f"read_{name}"]
            num_broken = counts[f"quarantined_{name}"]
            first_broken: Broken | None = None
            first_drop: Drop | None = None
            if num_broken:
                quarantined = folder.quarantined(shard_names)
                first_broken = next((record for record in quarantined if record.source == name), None)
            if not num_read:
                first_drop = next((drop for drop in folder.drops() if drop.source == name), None)
            reading.check_source(name, source, num_read, num_broken, first_broken, first_drop)

    def _stage_shards(self, stage: str) -> list[Shard]:
        before = self.shards(stage_before(stage))
        fingerprint = self.stage_fingerprint(stage)
        decision = ""
        if isinstance(text_stage(stage), CorpusStage):
            decision = digest(fingerprint, [shard.fingerprint for shard in before])
        return [Shard(shard.name, digest(fingerprint, shard.fingerprint, decision)) for shard in before]

    def stage_fingerprint(self, stage: str) -> str:
        """Return a hash of a text stage's version and settings; it does not depend on any text."""
        if stage not in self._stage_fingerprints:
            found = text_stage(stage)
            self._stage_fingerprints[stage] = digest(found.name, found.version, self.settings(found))
        return self._stage_fingerprints[stage]

    def decision_fingerprint(self, stage: str) -> str:
        """Return the fingerprint of the table that a stage's `decide` makes of all input shards."""
        if stage not in self._decisions:
            before = [shard.fingerprint for shard in self.shards(stage_before(stage))]
            self._decisions[stage] = digest("decided", self.stage_fingerprint(stage), before)
        return self._decisions[stage]

    def collected_shard(self, stage: str, shard: Shard) -> Shard:
        """Return name and fingerprint of the table that a stage's `collect` makes of a shard."""
        return Shard(
            name=f"collected-{shard.name}",
            fingerprint=digest("collected", self.stage_fingerprint(stage), shard.fingerprint),
        )

    # --- the state on disk -----------------------------------------------------------------------

    def stage_folder(self, stage: str) -> StageFolder:
        """Return the folder of a stage; its name begins with the stage's number."""
        return StageFolder(self.work / f"{STAGES.index(stage)}-{stage}")

    def markers(self, stage: str) -> list[ShardMarker]:
        """Return the markers of all shards of a stage.

        Raises:
            UserError: a shard is not done.
        """
        return [self.marker(stage, shard) for shard in self.shards(stage)]

    def marker(self, stage: str, shard: Shard) -> ShardMarker:
        """Return the marker of a shard. Raise UserError if the shard is not done."""
        marker = self.stage_folder(stage).read_marker(shard.name, shard.fingerprint, verify=False)
        if marker is None:
            raise UserError(
                f"step {stage}: shard {shard.name} is not done; run it first: "
                f"python -m data_prep.pipeline {self.work} {stage}"
            )
        return marker

    def documents(self, stage: str, columns: list[str] | None = None) -> Iterator[Document]:
        """Yield the documents that a stage kept, in order."""
        return self.stage_folder(stage).documents([shard.name for shard in self.shards(stage)], columns)

    def stage_info(self, stage: str) -> StageInfo:
        """Return the summary of stage read, or of a text stage, over all shards."""
        if stage == READ:
            return summarise_stage(READ, READ_VERSION, self.source_settings, self.markers(READ))
        found = text_stage(stage)
        return summarise_stage(found.name, found.version, self.settings(found), self.markers(stage))

    def stage_infos(self) -> list[StageInfo]:
        """Return the summaries of stage read and of all text stages."""
        return [self.stage_info(stage) for stage in STAGES if stage != Tokenise.name]

    def prune(self) -> None:
        """Delete temporary files and the folders of unknown stages.

        If all read tasks are done, also delete shards that the plan does not have any more.
        """
        known = {self.stage_folder(stage).path for stage in STAGES}
        for path in self.work.iterdir():
            if path.is_dir() and path.name[:1].isdigit() and path not in known:
                shutil.rmtree(path)
        for path in self.work.rglob(".*.tmp"):
            path.unlink(missing_ok=True)
        shards_by_task = [self.shards_of_task(number) for number in range(len(self.tasks))]
        if None not in shards_by_task:
            current = {name for names in shards_by_task for name in names or []}
            for folder in map(StageFolder, known):
                folder.keep_only(current)

    def task_fingerprint(self, number: int) -> str:
        """Return the fingerprint of a read task, a hash of all that its shards depend on."""
        task = self.tasks[number]
        settings = dict(self.source_settings[task.source])
        for name in _UNUSED_BY_READING:
            settings.pop(name, None)
        return digest(
            READ, READ_VERSION, self.shard_characters, task.source, settings, task.names, task.sha256
        )

    def shards_of_task(self, number: int) -> list[str] | None:
        """Return the names of the shards that a read task wrote, or None if it is not done."""
        try:
            body = json.loads(self.task_file(number).read_text(encoding="utf-8"))
            if body["fingerprint"] != self.task_fingerprint(number):
                return None
            return list(body["shards"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def task_file(self, number: int) -> Path:
        """Return the path of the file that lists the shards of a read task."""
        return self.stage_folder(READ).path / f"task-{number:05d}.json"


def stage_before(stage: str) -> str:
    """Return the stage before another stage, which gets its documents as input."""
    number = STAGES.index(stage)
    assert number > 0, "no stage comes before reading"
    return STAGES[number - 1]


def text_stage(name: str) -> ShardStage | CorpusStage:
    """Return a text stage by its name."""
    return {stage.name: stage for stage in TEXT_STAGES}[name]


def summarise_stage(
    name: str, version: int, settings: Mapping[str, object], markers: list[ShardMarker]
) -> StageInfo:
    """Return the summary of a stage: the sums over the markers of its shards."""
    dropped: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    losses: dict[tuple[str, str], Loss] = {}
    for marker in markers:
        dropped.update(marker.dropped)
        counts.update(marker.counts)
        for part in marker.losses:
            new = Loss(source=part.source, reason=part.reason)
            loss = losses.setdefault((part.source, part.reason), new)
            loss.documents += part.documents
            loss.cut += part.cut
            loss.characters += part.characters
    return StageInfo(
        name=name,
        version=version,
        settings=dict(settings),
        documents_in=sum(marker.documents_in for marker in markers),
        documents_out=sum(marker.documents_out for marker in markers),
        dropped=dict(sorted(dropped.items())),
        counts=dict(sorted(counts.items())),
        losses=[losses[key] for key in sorted(losses)],
    )


def require_documents(name: str, stages: list[StageInfo], first: Drop | None = None) -> None:
    """Raise UserError if the stages left no document to train on.

    Args:
        name: the corpus.
        stages: the summaries of all stages so far.
        first: the first document that the last of these stages dropped.
    """
    (split,) = (stage for stage in stages if stage.name == "split")
    has_training_documents = bool(split.counts.get("train"))
    if has_training_documents and stages[-1].documents_out:
        return
    reasons = {reason: count for stage in stages for reason, count in stage.dropped.items()}
    dropped = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none dropped"
    if stages[-1].name == "tokenise":
        remedy = "check corpus.chat.template"
        if first:
            remedy += f"; the first dropped document is {first.id}: {first.detail or first.reason}"
    elif has_training_documents:
        remedy = "raise the weights in the sources' mixture"
    elif split.documents_out:
        remedy = "lower split.validation_share"
    else:
        remedy = "check the sources' `path` and `language.keep`"
    read = stages[0].documents_out
    raise UserError(
        f"corpus {name} is empty: none of {read} documents read is left to train on ({dropped}); {remedy}"
    )


def digest(*parts: object) -> str:
    """Return the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@lru_cache(maxsize=1)
def _load_cached(work: Path, _changed: int, _size: int) -> Preparation:
    body = json.loads((work / "plan.json").read_text(encoding="utf-8"))
    corpus = from_settings(CorpusConfig, body.pop("corpus"))
    tasks = [ReadTask(**task) for task in body.pop("tasks")]
    return Preparation(work, PlanFile(corpus=corpus, tasks=tasks, **body))


def _read_tasks(name: str, corpus: CorpusConfig) -> Iterator[ReadTask]:
    """Yield the read tasks of a source.

    A large file has a task of its own; small files share one. The division into tasks depends on
    the files only.

    Raises:
        NotFoundError: the source's path does not exist or holds no file for its reader.
        UserError: the reader does not have one of the source's options or fields.
    """
    source = corpus.sources[name]
    files = reading.files(source)
    root = Path(source.path)
    names = [path.relative_to(root).as_posix() if root.is_dir() else path.name for path in files]
    sizes = [path.stat().st_size for path in files]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        checksums = list(pool.map(sha256_file, files))
    begin = task_bytes = 0
    for end, size in enumerate(sizes, start=1):
        task_bytes += size
        is_full = task_bytes >= TASK_BYTES or end - begin >= TASK_FILES
        if is_full or end == len(files) or task_bytes + sizes[end] > TASK_BYTES:
            paths = [str(path.absolute()) for path in files[begin:end]]
            yield ReadTask(name, paths, names[begin:end], checksums[begin:end], task_bytes)
            begin = end
            task_bytes = 0
