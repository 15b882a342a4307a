"""The last step of a preparation: writing the corpus folder with its manifest and card.

The rows of stage tokenise are concatenated in order, then divided into shards of
corpus.shard_tokens tokens. So a corpus does not depend on how the stages' documents are sharded.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.card import Years, write_card
from data_prep.config import CorpusConfig
from data_prep.plan import LAST_TEXT_STAGE, READ, Preparation, Shard, require_documents, summarise_stage
from data_prep.shards import (
    MASK_COLUMNS,
    SPLITS,
    TEXT_COLUMNS,
    Corpus,
    EncoderInfo,
    Manifest,
    ShardWriter,
    SourceInfo,
    TokenizerInfo,
    sha256_file,
    tokenizer_digest,
)
from data_prep.stage_files import ShardMarker, StageFolder, read_json
from data_prep.tokens.step import ENCODER, TOKENISE, token_shards
from data_prep.tokens.tokeniser import Tokeniser
from data_prep.user_error import UserError

logger = logging.getLogger(__name__)


def load_if_current(folder: Path, fingerprint: str) -> Manifest | None:
    """Return the manifest of the corpus in `folder`, or None if the corpus must be written (again).

    It must be written if there is no intact corpus, or one with another fingerprint.
    """
    try:
        published = Corpus(folder)
        published.verify()
    except (FileNotFoundError, ValueError) as fault:
        if folder.exists():
            logger.warning("corpus %s is prepared again: %s", folder, fault)
        return None
    if published.manifest.fingerprint != fingerprint:
        return None
    return published.manifest


def publish(preparation: Preparation) -> bool:
    """Write the corpus folder. Return False if the corpus already exists with this fingerprint."""
    folder = preparation.folder
    if load_if_current(folder, preparation.fingerprint) is not None:
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
    """Write all files of the corpus into `folder`."""
    corpus = preparation.corpus
    stage = preparation.stage_folder(TOKENISE.name)
    shards = token_shards(preparation)
    markers = [preparation.marker(TOKENISE.name, shard) for shard in shards]
    infos = preparation.stage_infos()
    settings = preparation.settings(TOKENISE)
    infos.append(summarise_stage(TOKENISE.name, TOKENISE.version, settings, markers))
    shutil.copytree(stage.path / "tokenizer", folder / "tokenizer")
    tokeniser = Tokeniser(corpus, folder / "tokenizer")
    mask_column = _mask_column(corpus, {mask for marker in markers for mask in marker.masks})
    counter = _TokenCounter(preparation, tokeniser.vocab_size)
    years = Years()
    splits = {}
    for split in SPLITS:
        writer = ShardWriter(folder, split, mask_column, corpus.shard_tokens)
        for shard, marker in zip(shards, markers, strict=True):
            dates = _Dates(preparation, shard, split)
            for batch in _token_batches(preparation, shard, marker, split):
                mask = _fill_mask(batch)
                counter.add(split, batch, mask)
                _add_years(years, batch, dates)
                columns = [batch[name] for name in (*TEXT_COLUMNS, "input_ids")]
                if mask_column:
                    columns.append(mask)
                writer.write(pa.RecordBatch.from_arrays(columns, schema=writer.schema))
        splits[split] = writer.close()
    if not splits["train"]:
        require_documents(corpus.name, infos, next(stage.drops(), None))
    has_chats = any(marker.has_chats for marker in markers)
    manifest = Manifest(
        name=corpus.name,
        fingerprint=preparation.fingerprint,
        mask_column=mask_column,
        unigram_loss=counter.validation_loss(),
        tokenizer=_tokenizer_info(tokeniser, stage, has_chats),
        splits=splits,
        sources=counter.finish(preparation),
        stages=infos,
    )
    manifest.write(folder)
    write_card(folder, manifest, years)


def _token_batches(
    preparation: Preparation, shard: Shard, marker: ShardMarker, split: str
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a shard that are in one split.

    Raises:
        UserError: the file was changed after step tokenise wrote it.
    """
    path = preparation.stage_folder(TOKENISE.name).path / f"{split}-{shard.name}.arrow"
    if sha256_file(path) != marker.files[path.name]:
        raise UserError(
            f"{path} was changed after it was written (checksum differs); "
            f"run `finetune prepare` or step {TOKENISE.name} again"
        )
    yield from pa.ipc.open_stream(pa.memory_map(str(path)))


def _add_years(years: Years, batch: pa.RecordBatch, dates: _Dates) -> None:
    lengths = pc.list_value_length(batch["input_ids"]).to_pylist()
    rows = zip(batch["source"].to_pylist(), batch["id"].to_pylist(), lengths, strict=True)
    for source, name, length in rows:
        years.add(source, dates.of_row(name), length)


def _tokenizer_info(tokeniser: Tokeniser, stage: StageFolder, has_chats: bool) -> TokenizerInfo:
    """Return the manifest's entry on the tokenizer.

    Args:
        stage: the folder of stage tokenise.
        has_chats: True if the corpus has conversations. Only then is the end-of-turn token added.
    """
    info = TokenizerInfo(
        sha256=tokenizer_digest(tokeniser.folder),
        vocab_size=tokeniser.vocab_size,
        eos_token_id=tokeniser.eos_token_id,
        encoder=EncoderInfo(**read_json(stage.path / ENCODER)),
    )
    if has_chats:
        info.end_of_turn, info.end_of_turn_id = tokeniser.end_of_turn
    return info


class _Dates:
    """The dates of those documents of a shard that are in one split.

    Several documents may have the same id. So `of_row` must be called once for each row, in the
    order of the rows.
    """

    def __init__(self, preparation: Preparation, shard: Shard, split: str) -> None:
        self._dates: dict[str, list[str]] = {}
        columns = ["id", "date", "split"]
        for document in preparation.stage_folder(LAST_TEXT_STAGE).documents([shard.name], columns):
            if document.split == split:
                self._dates.setdefault(document.id, []).append(document.date)

    def of_row(self, name: str) -> str:
        """Return the date of the document that a row belongs to.

        Args:
            name: the row's id. For a document's last row, it is the document's id. For earlier
                rows, it is the document's id, "#" and a number.
        """
        if name not in self._dates:
            return self._dates.get(name.rpartition("#")[0], [""])[0]
        remaining = self._dates[name]
        return remaining.pop(0) if len(remaining) > 1 else remaining[0]


def _mask_column(corpus: CorpusConfig, wanted: set[str]) -> str | None:
    """Return the name of the mask column, or None if every token is a target.

    Args:
        wanted: the mask columns that documents of the corpus need. If there are two, the one for
            conversations is returned.
    """
    if corpus.chat.targets == "everything":
        return None
    return next((name for name in reversed(MASK_COLUMNS) if name in wanted), None)


def _fill_mask(batch: pa.RecordBatch) -> pa.ListArray:
    """Return the mask of each row of a batch; a row without a mask gets a mask of ones."""
    given = batch["mask"]
    lengths = pc.list_value_length(batch["input_ids"]).to_numpy()
    mask = np.ones(lengths.sum(), np.int8)
    has_mask = np.repeat(pc.is_valid(given).to_numpy(zero_copy_only=False), lengths)
    mask[has_mask] = given.flatten().to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(mask, pa.int8()))


class _TokenCounter:
    """Counts of documents and tokens by source, split and language, and frequencies of targets.

    From the frequencies, `validation_loss` computes the loss of a unigram model. The first token of
    each row does not count as a target, because training never predicts it.
    """

    def __init__(self, preparation: Preparation, vocab_size: int) -> None:
        self.frequencies = {split: np.zeros(vocab_size, np.int64) for split in SPLITS}
        # At most two groups of each source, which is enough to know whether it has only one.
        self._groups: dict[str, set[str]] = {name: set() for name in preparation.corpus.sources}
        self.sources = {
            name: SourceInfo(
                license=source.license, attribution=source.attribution, sha256=preparation.source_sha256(name)
            )
            for name, source in preparation.corpus.sources.items()
        }

    def add(self, split: str, batch: pa.RecordBatch, mask: pa.ListArray) -> None:
        """Count the rows of a batch."""
        ids = batch["input_ids"].flatten().to_numpy()
        is_target = mask.flatten().to_numpy().astype(np.bool_)
        lengths = pc.list_value_length(batch["input_ids"]).to_numpy()
        ends = np.cumsum(lengths)
        starts = ends - lengths
        is_target[starts[lengths > 0]] = False
        self.frequencies[split] += np.bincount(ids[is_target], minlength=len(self.frequencies[split]))
        sums = np.concatenate([[0], np.cumsum(is_target)])
        supervised = sums[ends] - sums[starts]
        sources = batch["source"].to_pylist()
        languages = batch["language"].to_pylist()
        rows = zip(sources, languages, lengths.tolist(), supervised.tolist(), strict=True)
        for source, language, tokens, supervised_tokens in rows:
            info = self.sources[source]
            key = f"{split}/{language}"
            _increase(info.documents, key, 1)
            _increase(info.tokens, key, tokens)
            _increase(info.supervised_tokens, key, supervised_tokens)
        for source, group in zip(sources, batch["group"].to_pylist(), strict=True):
            if len(self._groups[source]) < 2:
                self._groups[source].add(group)

    def finish(self, preparation: Preparation) -> dict[str, SourceInfo]:
        """Return the manifest's entry on each source. Call this after all rows were added."""
        _add_read_counts(preparation, self.sources)
        for name, info in self.sources.items():
            info.single_group = len(self._groups[name]) == 1
        return self.sources

    def validation_loss(self) -> float | None:
        """Return the loss of a unigram model on the validation split, in nats a token.

        The model's probabilities are the frequencies of the training split's targets, add-one
        smoothed (Laplace). The loss is None if validation has no targets.
        """
        train = self.frequencies["train"]
        validation = self.frequencies["validation"]
        if not validation.sum():
            return None
        log_probabilities = np.log(train + 1) - np.log(train.sum() + len(train))
        return float(-(validation * log_probabilities).sum() / validation.sum())


def _increase(counts: dict[str, int], key: str, number: int) -> None:
    counts[key] = counts.get(key, 0) + number


def _add_read_counts(preparation: Preparation, sources: dict[str, SourceInfo]) -> None:
    """Set each source's counts of documents read, of characters read, and of repeated ids."""
    shards: dict[str, list[Shard]] = {name: [] for name in sources}
    for shard in preparation.shards(READ):
        shards[preparation.tasks[int(shard.name.partition("-")[0])].source].append(shard)
    for name, own in shards.items():
        markers = [preparation.marker(READ, shard) for shard in own]
        dropped = sum(loss.characters for marker in markers for loss in marker.losses)
        sources[name].documents_read = sum(marker.documents_in for marker in markers)
        sources[name].characters_read = dropped + sum(marker.characters_out for marker in markers)
        hashes = [preparation.stage_folder(READ).id_hashes(shard.name) for shard in own]
        sources[name].repeated_ids = sum(map(len, hashes)) - len(np.unique(np.concatenate(hashes)))


def _replace_folder(temporary: Path, folder: Path) -> None:
    """Replace the corpus folder by a finished one.

    Processes that have mapped the old files can still read them.
    """
    if folder.exists():
        old = folder.with_name(f".{folder.name.lstrip('.')}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(temporary, folder)
