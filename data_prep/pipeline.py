"""Preparation from raw text to a corpus folder. Read `prepare` first.

Every stage reads the files of the one before and writes its own, with a marker that holds its fingerprint: a hash of the
stage's version, its settings and the fingerprint of its input. A stage whose marker fits is skipped; a changed file or
setting changes the fingerprints from there on. Nothing is published half: folders are written beside and renamed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from data_prep import reading
from data_prep.chat_template import Row
from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig, as_settings
from data_prep.document import DOCUMENT_SCHEMA, QUARANTINE_SCHEMA, Document, Report
from data_prep.shards import (
    MANIFEST,
    MASK_COLUMNS,
    SPLITS,
    Corpus,
    Manifest,
    SourceInfo,
    StageInfo,
    sha256_file,
    tokenizer_digest,
)
from data_prep.stages import deduplicate, deidentify, language, normalise, split, tokenise

TEXT_STAGES: tuple[ModuleType, ...] = (normalise, language, deduplicate, deidentify, split)
READ_VERSION = 3
MARKER = "stage.json"
DOCUMENTS_PER_PART = 5000

logger = logging.getLogger(__name__)


@dataclass
class Stage:
    """A finished text stage on disk: `parts` are its Parquet files in order, `info` what it did."""

    folder: Path
    fingerprint: str
    parts: list[Path]
    info: StageInfo
    skipped: bool

    def documents(self, split: str | None = None) -> Iterator[Document]:
        for part in self.parts:
            for row in pq.read_table(part).to_pylist():
                if split is None or row["split"] == split:
                    yield Document.from_row(row)


@dataclass
class Prepared:
    """The result of `prepare`: the corpus folder, its manifest, and which stages had nothing to do."""

    folder: Path
    manifest: Manifest
    skipped: list[str]


def prepare(config: PrepareConfig) -> Prepared:
    """Run the whole pipeline for one corpus.

    Raises:
        FileNotFoundError: a source's path does not exist or holds nothing to read.
        ValueError: a setting is wrong, another prepare holds the folder, or no document survived.
    """
    corpus = config.corpus
    folder = Path(config.corpora_dir) / corpus.name
    work = folder.with_name(f".{corpus.name}.stages")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise ValueError(
            f"{folder} holds something that is not a corpus and would be replaced: choose another corpora_dir or name"
        )
    tokenise.settings(corpus)  # what it would refuse at the end of an hour, it refuses now
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            digests = {name: _source_digest(source) for name, source in corpus.sources.items()}
            stages = [_read_stage(corpus, digests, work)]
            for number, module in enumerate(TEXT_STAGES, start=1):
                stages.append(_text_stage(number, module, stages[-1], corpus, work))
            manifest, skipped = _publish(corpus, digests, stages, folder, work)
    except Timeout:
        raise ValueError(f"another `finetune prepare` is writing {folder}: wait for it, or choose another corpora_dir") from None
    return Prepared(folder, manifest, [stage.info.name for stage in stages if stage.skipped] + (["tokenise"] if skipped else []))


def _source_digest(source: SourceConfig) -> str:
    """Of the raw files' names and bytes, not of where they lie."""
    hasher = hashlib.sha256()
    for path in reading.files(source):
        hasher.update(f"{path.name} {sha256_file(path)}\n".encode())
    return hasher.hexdigest()


def _read_stage(corpus: CorpusConfig, digests: dict[str, str], work: Path) -> Stage:
    settings = {
        name: {**{key: value for key, value in as_settings(source).items() if key != "path"}, "sha256": digests[name]}
        for name, source in corpus.sources.items()
    }

    def documents(report: Report) -> Iterator[Document]:
        for name, source in corpus.sources.items():
            logger.info("reading %s", name)
            yield from reading.read(name, source, report, reading.files(source))
            read, broken = report.counts[f"read_{name}"], report.counts[f"quarantined_{name}"]
            reading.check_broken_share(name, source, read, broken, report)

    return _run_stage("0-read", "read", READ_VERSION, settings, "", documents, work)


def _text_stage(number: int, module: ModuleType, before: Stage, corpus: CorpusConfig, work: Path) -> Stage:
    name = module.__name__.rpartition(".")[2]

    def documents(report: Report) -> Iterator[Document]:
        report.counts["documents_in"] = before.info.documents_out
        yield from module.run(before.documents(), corpus, report)

    return _run_stage(f"{number}-{name}", name, module.VERSION, module.settings(corpus), before.fingerprint, documents, work)


def _run_stage(
    folder_name: str, name: str, version: int, settings: dict[str, Any], before: str,
    documents: Callable[[Report], Iterator[Document]], work: Path,
) -> Stage:  # fmt: skip
    fingerprint = _fingerprint(name, version, settings, before)
    folder = work / folder_name
    if (done := _finished(folder, fingerprint)) is not None:
        return done
    logger.info("stage %s", name)
    temporary = work / f".{folder_name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    report = Report()
    written, parts = 0, 0
    stream = documents(report)
    while batch := list(islice(stream, DOCUMENTS_PER_PART)):
        table = pa.Table.from_pylist([asdict(document) for document in batch], schema=DOCUMENT_SCHEMA)
        pq.write_table(table, temporary / f"part-{parts:05d}.parquet", compression="zstd")
        written, parts = written + len(batch), parts + 1
    _write_drops(temporary, report)
    info = _stage_info(name, version, settings, report, written)
    files = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
    marker = {"fingerprint": fingerprint, "files": files, "info": asdict(info)}
    (temporary / MARKER).write_text(json.dumps(marker, indent=1, ensure_ascii=False), encoding="utf-8")
    _replace_folder(temporary, folder)
    return Stage(folder, fingerprint, _parts(folder), info, skipped=False)


_DROP_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "source", "reason", "detail")])


def _write_drops(folder: Path, report: Report) -> None:
    pq.write_table(pa.Table.from_pylist([asdict(d) for d in report.drops], schema=_DROP_SCHEMA), folder / "drops.parquet")
    if report.broken:
        table = pa.Table.from_pylist([asdict(broken) for broken in report.broken], schema=QUARANTINE_SCHEMA)
        pq.write_table(table, folder / "quarantine.parquet")


def _stage_info(name: str, version: int, settings: dict[str, Any], report: Report, documents_out: int) -> StageInfo:
    return StageInfo(
        name=name,
        version=version,
        settings=settings,
        documents_in=report.counts.pop("documents_in", documents_out + len(report.drops)),
        documents_out=documents_out,
        dropped=report.drop_reasons(),
        counts={key: count for key, count in sorted(report.counts.items()) if count},
    )


def _finished(folder: Path, fingerprint: str) -> Stage | None:
    """The stage on disk, if it ran with this fingerprint and its files are still what it wrote."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        intact = all(sha256_file(folder / name) == sha256 for name, sha256 in marker["files"].items())
        if marker["fingerprint"] == fingerprint and intact:
            return Stage(folder, fingerprint, _parts(folder), StageInfo(**marker["info"]), skipped=True)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no marker, or not one of ours: run the stage
    return None


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _publish(
    corpus: CorpusConfig, digests: dict[str, str], stages: list[Stage], folder: Path, work: Path
) -> tuple[Manifest, bool]:
    """Tokenise the last text stage into the corpus folder; True if the folder already was that."""
    text = stages[-1]
    settings = tokenise.settings(corpus)
    attributions = {name: source.attribution for name, source in corpus.sources.items()}
    fingerprint = _fingerprint("tokenise", tokenise.VERSION, {**settings, "attributions": attributions}, text.fingerprint)
    if (current := _current(folder, fingerprint)) is not None:
        return current, True
    _require_documents(corpus, [stage.info for stage in stages])
    logger.info("stage tokenise")
    temporary = folder.with_name(f".{corpus.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        manifest = _tokenise(corpus, digests, stages, settings, fingerprint, temporary, work)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _replace_folder(temporary, folder)
    return manifest, False


def _tokenise(
    corpus: CorpusConfig, digests: dict[str, str], stages: list[Stage], settings: dict[str, Any], fingerprint: str,
    temporary: Path, work: Path,
) -> Manifest:  # fmt: skip
    text, report = stages[-1], Report()
    train_texts = (document.whole_text for document in text.documents("train"))
    tokeniser = tokenise.Tokeniser(corpus, train_texts, temporary / "tokenizer")
    unigram = tokenise.UnigramCounter(tokeniser.vocab_size)
    mask_column = _mask_column(corpus, text)
    sources = {
        name: SourceInfo(license=source.license, attribution=source.attribution, sha256=digests[name])
        for name, source in corpus.sources.items()
    }

    def observe(document: Document, row: Row) -> None:
        unigram.add(document.split, row)
        source, key = sources[document.source], f"{document.split}/{document.language}"
        for counts, number in (
            (source.documents, 1), (source.tokens, len(row.input_ids)), (source.supervised_tokens, sum(row.mask[1:])),
        ):  # fmt: skip
            counts[key] = counts.get(key, 0) + number

    shards = {
        name: tokenise.write_split(
            temporary, name, text.documents(name), tokeniser, mask_column, corpus.shard_tokens, observe, report
        )
        for name in SPLITS
    }  # fmt: skip
    folder = work / f"{len(stages)}-tokenise"
    folder.mkdir(exist_ok=True)
    _write_drops(folder, report)
    info = _stage_info("tokenise", tokenise.VERSION, settings, report, text.info.documents_out - len(report.drops))
    infos = [*(stage.info for stage in stages), info]
    if not shards["train"]:
        _require_documents(corpus, infos)
    manifest = Manifest(
        name=corpus.name,
        fingerprint=fingerprint,
        mask_column=mask_column,
        unigram_loss=unigram.validation_loss(),
        tokenizer={
            "sha256": tokenizer_digest(tokeniser.folder),
            "vocab_size": tokeniser.vocab_size,
            "eos_token_id": tokeniser.eos_token_id,
        },
        splits=shards,
        sources=sources,
        stages=infos,
    )
    manifest.write(temporary)
    return manifest


def _mask_column(corpus: CorpusConfig, text: Stage) -> str | None:
    """One name for a corpus: that of its conversations, else that of its prompts and completions; none if all is a target."""
    if corpus.chat.targets == "everything":
        return None
    wanted = {mask for part in text.parts for mask in pq.read_table(part, columns=["mask"])["mask"].unique().to_pylist()}
    return next((name for name in reversed(MASK_COLUMNS) if name in wanted), None)


def _current(folder: Path, fingerprint: str) -> Manifest | None:
    """The corpus on disk, if it was made with this fingerprint and every byte is still as written."""
    try:
        published = Corpus(folder)
        published.verify()
    except (FileNotFoundError, ValueError) as fault:
        if folder.exists():
            logger.warning("making %s again: %s", folder, fault)
        return None
    return published.manifest if published.manifest.fingerprint == fingerprint else None


def _require_documents(corpus: CorpusConfig, stages: list[StageInfo]) -> None:
    """Raises ValueError if the last stage left nothing to train on."""
    if stages[-1].counts.get("train"):
        return
    reasons = {reason: count for stage in stages for reason, count in stage.dropped.items()}
    dropped = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none dropped"
    if stages[-1].name == "tokenise":
        remedy = "check corpus.chat.template; drops.parquet of the stage says why of each"
    elif stages[-1].documents_out:
        remedy = "lower split.validation_share"
    else:
        remedy = "check the sources' `path` and `language.keep`"
    read = stages[0].documents_out
    raise ValueError(f"corpus {corpus.name} is empty: of {read} documents read none is left to train on ({dropped}): {remedy}")


def _replace_folder(temporary: Path, folder: Path) -> None:
    """Swap in a finished folder. Readers that mapped the old files keep them: an open file outlives its name."""
    if folder.exists():
        old = folder.with_name(f".{folder.name.lstrip('.')}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(temporary, folder)


def _fingerprint(name: str, version: int, settings: dict[str, Any], before: str) -> str:
    body = json.dumps([name, version, settings, before], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(body.encode()).hexdigest()
