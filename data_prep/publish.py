"""The last steps: a tokenizer, the tokens of every shard, and the corpus folder that is made of them.

The tokens of a shard lie in two files of the tokenise stage, `train-<shard>.arrow` and `validation-<shard>.arrow`, with the
columns of a corpus (see shards.py) and `mask`, null where every token is a target. Publishing strings them together, in order,
and cuts where a shard of the corpus is full: where the shards of the stages end leaves no trace in a corpus.
"""

from __future__ import annotations

import heapq
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.tokens import encoder
from data_prep.card import Years, write_card
from data_prep.tokens.chat_template import Row
from data_prep.config import CorpusConfig
from data_prep.document import Document, Drop, Report
from data_prep.tokens.encoder import COMPARED_CHARACTERS
from data_prep.plan import LAST_TEXT_STAGE, READ, Preparation, Shard, digest, stage_info
from data_prep.shards import (
    MASK_COLUMNS,
    SPLITS,
    TEXT_COLUMNS,
    Corpus,
    Manifest,
    ShardWriter,
    SourceInfo,
    StageInfo,
    sha256_file,
    tokenizer_digest,
)
from data_prep.stage_files import read_json, replacing, write_json
from data_prep.stages import tokenise
from data_prep.stages.tokenise import Tokenise, Tokeniser

TOKENISE = Tokenise()
BATCH = 512
ENCODER = "encoder.json"  # beside the tokenizer: which library encodes, and why
COMPARED_DOCUMENTS = 1000
TRAINING_CHARACTERS = 200_000_000  # of the sample that a tokenizer is trained on
TOKEN_SCHEMA = pa.schema(
    [*((name, pa.string()) for name in TEXT_COLUMNS), ("input_ids", pa.list_(pa.int32())), ("mask", pa.list_(pa.int8()))]
)

logger = logging.getLogger(__name__)


def run(preparation: Preparation, step: str, number: int) -> bool:
    """Do one task of a step of this module. False if it was done before."""
    if step == "tokenizer":
        return _place_tokenizer(preparation)
    return _tokenise(preparation, number) if step == "tokenise" else _publish(preparation)


def current(folder: Path, fingerprint: str) -> Manifest | None:
    """The corpus on disk, if it was made with this fingerprint and every byte is still as written."""
    try:
        published = Corpus(folder)
        published.verify()
    except (FileNotFoundError, ValueError) as fault:
        if folder.exists():
            logger.warning("making %s again: %s", folder, fault)
        return None
    return published.manifest if published.manifest.fingerprint == fingerprint else None


# --- the tokenizer ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _tokenizer_fingerprint(preparation: Preparation) -> str:
    """A tokenizer that is trained depends on all text, one that is given on none."""
    trained = preparation.corpus.tokenizer.path is None
    text = [shard.fingerprint for shard in preparation.shards(LAST_TEXT_STAGE)] if trained else []
    return digest("tokenizer", TOKENISE.version, preparation.settings(TOKENISE), text)


def _place_tokenizer(preparation: Preparation) -> bool:
    _require_documents(preparation.corpus.name, preparation.infos())
    stage, fingerprint = preparation.stage_folder(TOKENISE.name), _tokenizer_fingerprint(preparation)
    if stage.done("tokenizer", fingerprint):
        return False
    stage.path.mkdir(parents=True, exist_ok=True)
    folder = stage.path / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    tokenise.place_files(preparation.corpus, _sample(preparation), folder)
    tokeniser = Tokeniser(preparation.corpus, folder)  # refuses what cannot be used
    if tokeniser.overrides:
        chat, path = preparation.corpus.chat, preparation.corpus.tokenizer.path
        logger.warning("corpus.chat.template=%s takes the place of the chat template of %s", chat.template, path)
    chosen = encoder.choose(folder / "tokenizer.json", _compared(preparation), preparation.corpus.tokenizer.library)
    logger.info("running text is encoded by %s: %s", chosen["library"], chosen["reason"])
    write_json(stage.path / ENCODER, chosen)
    stage.finish("tokenizer", fingerprint, [*(f"tokenizer/{path.name}" for path in sorted(folder.iterdir())), ENCODER])
    return True


def _sample(preparation: Preparation) -> Iterator[str]:
    """The training texts, or, of very many, those whose ids' hashes are low: the same documents wherever they stand."""
    available = sum(marker.characters_out for marker in preparation.done(LAST_TEXT_STAGE))
    share = min(1.0, TRAINING_CHARACTERS / max(available, 1))
    for document in preparation.documents(LAST_TEXT_STAGE, ["id", "source", "text", "turns", "split"]):
        if document.split == "train" and (share == 1 or _place(document) < share):
            yield document.whole_text


def _compared(preparation: Preparation) -> Iterator[str]:
    """Texts on which the encoders are compared, not of great length: those whose ids' hashes are lowest."""
    places = (
        (_place(document), shard.name, row)
        for shard in preparation.shards(LAST_TEXT_STAGE)
        for row, document in enumerate(preparation.stage_folder(LAST_TEXT_STAGE).documents([shard.name], ["id", "source"]))
    )
    chosen: dict[str, set[int]] = {}
    for _, shard_name, row in heapq.nsmallest(COMPARED_DOCUMENTS, places):
        chosen.setdefault(shard_name, set()).add(row)
    for shard_name, rows in sorted(chosen.items()):
        for row, document in enumerate(preparation.stage_folder(LAST_TEXT_STAGE).documents([shard_name], ["text"])):
            if row in rows and document.text:
                yield document.text[:COMPARED_CHARACTERS]


def _place(document: Document) -> float:
    """From 0 up to, not including, 1."""
    return int(digest(document.source, document.id)[:12], 16) / 16**12


# --- tokens, shard by shard ------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _token_shards(preparation: Preparation) -> list[Shard]:
    setting = preparation.settings(TOKENISE)
    key = digest(TOKENISE.name, TOKENISE.version, setting, _tokenizer_fingerprint(preparation))
    return [Shard(shard.name, digest(key, shard.fingerprint)) for shard in preparation.shards(LAST_TEXT_STAGE)]


def _tokenise(preparation: Preparation, number: int) -> bool:
    shard, stage = _token_shards(preparation)[number], preparation.stage_folder(TOKENISE.name)
    before = preparation.marker(LAST_TEXT_STAGE, preparation.shards(LAST_TEXT_STAGE)[number])
    if stage.done(shard.name, shard.fingerprint):
        return False
    tokenizer = stage.done("tokenizer", _tokenizer_fingerprint(preparation), verify=False)
    if tokenizer is None:
        raise ValueError("step tokenizer is not done: run it first")
    began, report, masks = time.perf_counter(), Report(), set[str]()
    has_chats = False
    tokeniser = _tokeniser(preparation.work, tokenizer.fingerprint)
    documents = preparation.stage_folder(LAST_TEXT_STAGE).documents([shard.name])
    with ExitStack() as stack:
        files = {split: stack.enter_context(_TokenFile(stage.path / f"{split}-{shard.name}.arrow")) for split in SPLITS}
        while batch := list(islice(documents, BATCH)):
            masks.update(document.mask for document in batch if document.mask)
            for document, rows in tokeniser.rows(batch, report):
                has_chats = has_chats or any(turn.role for turn in document.turns)
                report.counts["rows_of_single_turns"] += len(rows) - 1
                files[document.split].add(document, rows)
            for file in files.values():
                file.flush()
    stage.report(
        shard.name, shard.fingerprint, report, [f"{split}-{shard.name}.arrow" for split in SPLITS],
        documents_in=before.documents_out, documents_out=before.documents_out - len(report.drops), masks=sorted(masks),
        has_chats=has_chats, seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip
    return True


@lru_cache(maxsize=1)
def _tokeniser(work: Path, _fingerprint: str) -> Tokeniser:
    preparation = Preparation.load(work)
    folder = preparation.stage_folder(TOKENISE.name).path
    return Tokeniser(preparation.corpus, folder / "tokenizer", read_json(folder / ENCODER)["library"])


class _TokenFile:
    """Rows on their way into a file of one split; there, whole, once the context ends well."""

    def __init__(self, path: Path) -> None:
        self._replaced = replacing(path)
        self._rows: list[tuple[Document, str, Row]] = []

    def __enter__(self) -> _TokenFile:
        self._stream = pa.ipc.new_stream(str(self._replaced.__enter__()), TOKEN_SCHEMA)
        return self

    def add(self, document: Document, rows: list[Row]) -> None:
        for number, row in enumerate(rows, start=1):
            self._rows.append((document, document.id if number == len(rows) else f"{document.id}#{number}", row))

    def flush(self) -> None:
        if self._rows:
            columns = [[name if column == "id" else getattr(document, column) for document, name, _ in self._rows]
                       for column in TEXT_COLUMNS]  # fmt: skip
            ids = [np.asarray(row.input_ids, np.int32) for _, _, row in self._rows]
            masks = [np.asarray(row.mask, np.int8) if document.turns else None for document, _, row in self._rows]
            batch = [*map(pa.array, columns), _lists(ids, pa.int32()), _lists(masks, pa.int8())]
            self._stream.write_batch(pa.RecordBatch.from_arrays(batch, schema=TOKEN_SCHEMA))
            self._rows = []

    def __exit__(self, kind: Any, fault: Any, trace: Any) -> None:
        self._stream.close()
        self._replaced.__exit__(kind, fault, trace)


def _lists(arrays: Sequence[NDArray[Any] | None], kind: pa.DataType) -> pa.ListArray:
    lengths = [0 if array is None else len(array) for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    there = [array for array in arrays if array is not None]
    values = pa.array(np.concatenate(there) if there else np.zeros(0, np.int8), kind)
    missing = pa.array([array is None for array in arrays], pa.bool_()) if len(there) < len(arrays) else None
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=missing)


# --- the corpus folder -----------------------------------------------------------------------------------------------


def _publish(preparation: Preparation) -> bool:
    folder = preparation.folder
    if current(folder, preparation.fingerprint) is not None:
        return False
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _assemble(preparation, temporary)
        _replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    preparation.prune()
    return True


def _assemble(preparation: Preparation, folder: Path) -> None:
    corpus, stage, shards = preparation.corpus, preparation.stage_folder(TOKENISE.name), _token_shards(preparation)
    markers = [preparation.marker(TOKENISE.name, shard) for shard in shards]
    infos = preparation.infos()
    infos.append(stage_info(TOKENISE.name, TOKENISE.version, preparation.settings(TOKENISE), markers))
    shutil.copytree(stage.path / "tokenizer", folder / "tokenizer")
    tokeniser = Tokeniser(corpus, folder / "tokenizer")
    mask_column = _mask_column(corpus, {mask for marker in markers for mask in marker.masks})
    counter, years = _Counter(preparation, tokeniser.vocab_size), Years()
    splits = {}
    for split in SPLITS:
        writer = ShardWriter(folder, split, mask_column, corpus.shard_tokens)
        for shard, marker in zip(shards, markers, strict=True):
            file = f"{split}-{shard.name}.arrow"
            if sha256_file(stage.path / file) != marker.files[file]:
                raise ValueError(f"{stage.path / file} is not what was written (checksum differs): run it again")
            dates = _Dates(preparation, shard, split)
            for batch in pa.ipc.open_stream(pa.memory_map(str(stage.path / file))):
                mask = _full_mask(batch)
                counter.add(split, batch, mask)
                for source, name, length in zip(
                    batch["source"].to_pylist(), batch["id"].to_pylist(), pc.list_value_length(batch["input_ids"]).to_pylist(),
                    strict=True,
                ):  # fmt: skip
                    years.add(source, dates.of_row(name), length)
                kept = [batch[name] for name in (*TEXT_COLUMNS, "input_ids")]
                writer.write(pa.RecordBatch.from_arrays([*kept, mask] if mask_column else kept, schema=writer.schema))
        splits[split] = writer.close()
    if not splits["train"]:
        _require_documents(corpus.name, infos, next(stage.drops(), None))
    manifest = Manifest(
        name=corpus.name,
        fingerprint=preparation.fingerprint,
        mask_column=mask_column,
        unigram_loss=counter.validation_loss(),
        tokenizer={
            "sha256": tokenizer_digest(tokeniser.folder),
            "vocab_size": tokeniser.vocab_size,
            "eos_token_id": tokeniser.eos_token_id,
            **(_end_of_turn(tokeniser) if any(marker.has_chats for marker in markers) else {}),
            "encoder": read_json(stage.path / ENCODER),
        },
        splits=splits,
        sources=counter.finish(preparation),
        stages=infos,
    )
    manifest.write(folder)
    write_card(folder, manifest, years)


def _end_of_turn(tokeniser: Tokeniser) -> dict[str, Any]:
    """What a model must stop at that is trained on conversations."""
    token, token_id = tokeniser.end_of_turn
    return {"end_of_turn": token, "end_of_turn_id": token_id}


class _Dates:
    """The dates of a shard's documents, asked for row by row, in order: ids need not be unique."""

    def __init__(self, preparation: Preparation, shard: Shard, split: str) -> None:
        self._dates: dict[str, list[str]] = {}
        columns = ["id", "date", "split"]
        for document in preparation.stage_folder(LAST_TEXT_STAGE).documents([shard.name], columns):
            if document.split == split:
                self._dates.setdefault(document.id, []).append(document.date)

    def of_row(self, name: str) -> str:
        """The date of the document of a row: the last row of a document has its id, those before it a number behind it."""
        if name not in self._dates:
            return self._dates.get(name.rpartition("#")[0], [""])[0]
        waiting = self._dates[name]
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]


def _mask_column(corpus: CorpusConfig, wanted: set[str]) -> str | None:
    """One name for a corpus: that of its conversations, else that of its prompts and completions; none if all is a target."""
    if corpus.chat.targets == "everything":
        return None
    return next((name for name in reversed(MASK_COLUMNS) if name in wanted), None)


def _full_mask(batch: pa.RecordBatch) -> pa.ListArray:
    """The masks of a batch, with ones where a row has none."""
    ids, given = batch["input_ids"], batch["mask"]
    lengths = pc.list_value_length(ids).to_numpy()
    mask = np.ones(lengths.sum(), np.int8)
    has_one = np.repeat(pc.is_valid(given).to_numpy(zero_copy_only=False), lengths)
    mask[has_one] = given.flatten().to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(mask, pa.int8()))


class _Counter:
    """Documents and tokens by source, split and language, and frequencies of targets by split, for the loss of a model that
    knows only frequencies. The first token of each row is no target: training never predicts it either."""

    def __init__(self, preparation: Preparation, vocab_size: int) -> None:
        self.frequencies = {split: np.zeros(vocab_size, np.int64) for split in SPLITS}
        self._groups: dict[str, set[str]] = {name: set() for name in preparation.corpus.sources}
        self.sources = {
            name: SourceInfo(license=source.license, attribution=source.attribution, sha256=preparation.source_sha256(name))
            for name, source in preparation.corpus.sources.items()
        }

    def add(self, split: str, batch: pa.RecordBatch, mask: pa.ListArray) -> None:
        ids, target = batch["input_ids"].flatten().to_numpy(), mask.flatten().to_numpy().astype(np.bool_)
        lengths = pc.list_value_length(batch["input_ids"]).to_numpy()
        ends = np.cumsum(lengths)
        starts = ends - lengths
        target[starts[lengths > 0]] = False
        self.frequencies[split] += np.bincount(ids[target], minlength=len(self.frequencies[split]))
        sums = np.concatenate([[0], np.cumsum(target)])
        supervised = sums[ends] - sums[starts]
        for source, language, tokens, targets in zip(
            batch["source"].to_pylist(), batch["language"].to_pylist(), lengths.tolist(), supervised.tolist(), strict=True
        ):
            info, key = self.sources[source], f"{split}/{language}"
            for counts, number in ((info.documents, 1), (info.tokens, tokens), (info.supervised_tokens, targets)):
                counts[key] = counts.get(key, 0) + number
        for source, group in zip(batch["source"].to_pylist(), batch["group"].to_pylist(), strict=True):
            if len(self._groups[source]) < 2:
                self._groups[source].add(group)

    def finish(self, preparation: Preparation) -> dict[str, SourceInfo]:
        """What each source gave, once all rows are added."""
        _count_read(preparation, self.sources)
        for name, info in self.sources.items():
            info.single_group = len(self._groups[name]) == 1
        return self.sources

    def validation_loss(self) -> float | None:
        """Cross-entropy (nats a token) of validation under train's frequencies, add-one smoothed (Laplace)."""
        train, validation = self.frequencies["train"], self.frequencies["validation"]
        if not validation.sum():
            return None
        log_probabilities = np.log(train + 1) - np.log(train.sum() + len(train))
        return float(-(validation * log_probabilities).sum() / validation.sum())


def _count_read(preparation: Preparation, sources: dict[str, SourceInfo]) -> None:
    """Enter what was read of each source, and how many documents have an id that is not theirs alone."""
    shards: dict[str, list[Shard]] = {name: [] for name in sources}
    for shard in preparation.shards(READ):
        shards[preparation.tasks[int(shard.name.partition("-")[0])].source].append(shard)
    for name, own in shards.items():
        markers = [preparation.marker(READ, shard) for shard in own]
        refused = sum(loss.characters for marker in markers for loss in marker.losses)
        sources[name].documents_read = sum(marker.documents_in for marker in markers)
        sources[name].characters_read = refused + sum(marker.characters_out for marker in markers)
        hashes = [preparation.stage_folder(READ).id_hashes(shard.name) for shard in own]
        sources[name].repeated_ids = sum(map(len, hashes)) - len(np.unique(np.concatenate(hashes)))


def _require_documents(name: str, stages: list[StageInfo], first: Drop | None = None) -> None:
    """Raises ValueError if the last stage left nothing to train on. `first` is the first document that it dropped."""
    (split,) = (stage for stage in stages if stage.name == "split")
    if split.counts.get("train") and stages[-1].documents_out:
        return
    reasons = {reason: count for stage in stages for reason, count in stage.dropped.items()}
    dropped = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none dropped"
    if stages[-1].name == "tokenise":
        why = f"; the first, {first.id}: {first.detail or first.reason}" if first else ""
        remedy = f"check corpus.chat.template{why}"
    elif split.documents_out:
        remedy = "raise the mixture's weights" if split.counts.get("train") else "lower split.validation_share"
    else:
        remedy = "check the sources' `path` and `language.keep`"
    read = stages[0].documents_out
    raise ValueError(f"corpus {name} is empty: of {read} documents read none is left to train on ({dropped}): {remedy}")


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
