"""The corpus folder: what preparation writes and training reads. This file is the contract between the two.

    <corpus>/
      manifest.json                   what is here, with checksums, licences, counts and the tokenizer's
      digest README.md                       the corpus card: the manifest's counts for people, and years
      tokenizer/                      tokenizer.json and tokenizer_config.json, as transformers loads them
      train/shard-00000.arrow …       Arrow IPC streams: `datasets.Dataset.from_file` maps them as they are
      validation/shard-00000.arrow …

A row is one document; of a conversation whose template rewrites earlier turns, one row a turn. Sequence
length and packing belong to training: one corpus serves every length.

    id, source, license, language, group   string
    input_ids                              list<int32>; a text or a plain completion ends with the tokenizer's
    end-of-sequence
                                           token, a conversation with the token with which its chat template
                                           ends a turn
    completion_mask | assistant_masks      list<int8>, as long as input_ids, 1 where a token is a target. Only
    in corpora that
                                           supervise a part of some documents; one of the two, in TRL's names:
                                           assistant_masks if any source holds conversations (`messages`),
                                           completion_mask if there are only prompts with completions, or
                                           instructions. Every row of such a corpus has at least one target;
                                           rows of running text are all targets.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.user_error import NotFoundError, UserError

if TYPE_CHECKING:
    from datasets import Dataset

MANIFEST = "manifest.json"
FORMAT = "finetune-corpus"
FORMAT_VERSION = 1
SPLITS = ("train", "validation")
MASK_COLUMNS = ("completion_mask", "assistant_masks")
ROWS_PER_BATCH = 1000
TEXT_COLUMNS = ("id", "source", "license", "language", "group")


class NoCorpusError(NotFoundError):
    """A folder that was named as a corpus holds none."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"no corpus in {folder}: it has no {MANIFEST}; run `finetune prepare corpus=<name>` first"
        )
        self.folder = folder


@dataclass(kw_only=True)
class ShardInfo:
    """One file of a split; `file` is relative to the corpus folder."""

    file: str
    sha256: str
    bytes: int
    documents: int
    tokens: int


@dataclass(kw_only=True)
class SourceInfo:
    """What one source gave.

    Attributes:
        sha256: the digest of its raw files.
        documents, tokens, supervised_tokens: by split and language; supervised tokens are those that are
            targets.
        documents_read, characters_read: all that reading found in it, what it refused included.
        repeated_ids: documents with an id that an earlier document of the source has.
        single_group: all its documents are one group, which no split can divide.
    """

    license: str
    attribution: str
    sha256: str
    documents: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    supervised_tokens: dict[str, int] = field(default_factory=dict)
    documents_read: int = 0
    characters_read: int = 0
    repeated_ids: int = 0
    single_group: bool = False


@dataclass(kw_only=True)
class Loss:
    """What one stage took from one source for one reason.

    Attributes:
        documents: dropped whole.
        cut: documents that went on without a part of their text.
        characters: of all that was taken.
    """

    source: str
    reason: str
    documents: int = 0
    cut: int = 0
    characters: int = 0


@dataclass(kw_only=True)
class StageInfo:
    """What one stage did.

    Attributes:
        dropped: reason -> documents.
        counts: whatever else the stage counts.
        losses: text that was dropped or cut, by source and reason. Empty in corpora that were made before it
            was counted.
    """

    name: str
    version: int
    settings: dict[str, Any]
    documents_in: int
    documents_out: int
    dropped: dict[str, int]
    counts: dict[str, int]
    losses: list[Loss] = field(default_factory=list)


@dataclass(kw_only=True)
class EncoderInfo:
    """The library that encoded running text, its version, and why it was chosen."""

    library: str
    version: str
    reason: str


@dataclass(kw_only=True)
class TokenizerInfo:
    """A corpus' tokenizer.

    Attributes:
        sha256: see `tokenizer_digest`.
        end_of_turn, end_of_turn_id: where a chat template rendered conversations, the token that ends their
            answers.
        encoder: None in corpora that were made before it was noted.
    """

    sha256: str
    vocab_size: int
    eos_token_id: int
    end_of_turn: str | None = None
    end_of_turn_id: int | None = None
    encoder: EncoderInfo | None = None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> TokenizerInfo:
        encoder = EncoderInfo(**body["encoder"]) if body.get("encoder") else None
        return cls(**{**body, "encoder": encoder})


@dataclass(kw_only=True)
class Manifest:
    """manifest.json. Nothing in it depends on when or where it was made, so equal input gives equal bytes.

    Attributes:
        fingerprint: of every input and setting; `finetune prepare` does nothing while it stays the same.
        mask_column: the column that marks targets, or None when every token is one.
        unigram_loss: mean loss (nats a token) on validation of the training split's frequencies of targets,
            add-one smoothed: what a model that knows nothing but frequencies would score. None without
                validation documents.
    """

    name: str
    fingerprint: str
    mask_column: str | None
    unigram_loss: float | None
    tokenizer: TokenizerInfo
    splits: dict[str, list[ShardInfo]]
    sources: dict[str, SourceInfo]
    stages: list[StageInfo]
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """The identity of the corpus: changes when any byte of it, or anything said of it, does."""
        return _digest(self._body())

    def documents(self, split: str) -> int:
        return sum(shard.documents for shard in self.splits[split])

    def tokens(self, split: str) -> int:
        return sum(shard.tokens for shard in self.splits[split])

    def warnings(self) -> list[str]:
        """Return what somebody who trains should know of the sources, each with the setting that changes
        it."""
        split = next((stage for stage in self.stages if stage.name == "split"), None)
        share = split.settings.get("validation_share") if split else None
        return [
            line for name, source in self.sources.items() for line in _source_warnings(name, source, share)
        ]

    def _body(self) -> dict[str, Any]:
        """Return the manifest as plain data, without later fields that are empty: old corpora keep their
        digests."""
        body = asdict(self)
        body["tokenizer"] = {name: value for name, value in body["tokenizer"].items() if value is not None}
        for source in body["sources"].values():
            _drop_empty(source, "documents_read", "characters_read", "repeated_ids", "single_group")
        for stage in body["stages"]:
            _drop_empty(stage, "losses")
        return body

    def write(self, folder: Path) -> None:
        body = self._body()
        text = json.dumps({**body, "digest": _digest(body)}, indent=1, ensure_ascii=False) + "\n"
        temporary = folder / f".{MANIFEST}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / MANIFEST)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check manifest.json.

        Raises:
            NoCorpusError: there is no corpus in `folder`.
            UserError: the manifest is not one, is of another version, or was edited after it was written.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise NoCorpusError(folder)
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body.get("format") != FORMAT or body.get("format_version") != FORMAT_VERSION:
                raise ValueError(
                    f"format {body.get('format')} version {body.get('format_version')}, not {FORMAT} {FORMAT_VERSION}"
                )
            stated = body.pop("digest")
            if stated != _digest(body):
                raise ValueError("it was edited after `prepare` wrote it")
            body["tokenizer"] = TokenizerInfo.from_json(body["tokenizer"])
            body["splits"] = {
                split: [ShardInfo(**shard) for shard in shards] for split, shards in body["splits"].items()
            }
            body["sources"] = {name: SourceInfo(**source) for name, source in body["sources"].items()}
            for stage in body["stages"]:
                stage["losses"] = [Loss(**loss) for loss in stage.get("losses", [])]
            body["stages"] = [StageInfo(**stage) for stage in body["stages"]]
            return cls(**body)
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise UserError(
                f"{path} is not a valid corpus manifest ({fault}): run `finetune prepare` again"
            ) from None


def _drop_empty(body: dict[str, object], *names: str) -> None:
    for name in names:
        if not body[name]:
            del body[name]


def _source_warnings(name: str, source: SourceInfo, validation_share: float | None) -> Iterator[str]:
    """Args: validation_share: the setting; nothing is held out, and nothing is missing, at 0."""
    if source.repeated_ids:
        yield (
            f"source {name}: {source.repeated_ids:,} documents have an id that an earlier one has; none is left out for it, "
            f"but `finetune inspect` shows one of each. Another id: corpus.sources.{name}.fields.id"
        )
    held_out = any(key.startswith("validation/") for key in source.documents)
    if held_out or not source.documents or not validation_share:
        return
    if source.single_group:
        why = "all its documents are one group, and groups are not divided"
        remedy = f"give a finer corpus.sources.{name}.fields.group, or raise"
    else:
        why = "by chance none of its groups was held out"
        remedy = "take another corpus.split.seed, or raise"
    yield f"source {name}: no validation documents: {why}; {remedy} corpus.split.validation_share (now {validation_share:g})"


class Corpus:
    """A corpus folder, opened: its manifest, and its splits as memory-mapped `datasets.Dataset`s.

    Raises:
        NotFoundError: no manifest in the folder.
        UserError: the manifest is broken, or a shard is missing or has another size than it says.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        for shard in self._shards():
            path = self.folder / shard.file
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                raise UserError(
                    f"shard {path} is {'missing' if size is None else f'{size} bytes'}, the manifest says {shard.bytes} bytes: "
                    f"run `finetune prepare` again"
                )

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder / "tokenizer"

    def verify(self) -> None:
        """Compare every byte with the manifest's checksums.

        Raises:
            UserError: a shard or the tokenizer is not what was written.
        """
        for shard in self._shards():
            if sha256_file(self.folder / shard.file) != shard.sha256:
                raise UserError(
                    f"shard {self.folder / shard.file} is corrupted (checksum differs): run `finetune prepare` again"
                )
        if tokenizer_digest(self.tokenizer_folder) != self.manifest.tokenizer.sha256:
            raise UserError(
                f"{self.tokenizer_folder} is not the tokenizer of these shards: run `finetune prepare` again"
            )

    def split(self, name: str) -> Dataset:
        """The documents of a split, memory-mapped, in shard order."""
        from datasets import Dataset, concatenate_datasets
        from datasets.table import InMemoryTable

        shards = self.manifest.splits[name]
        if not shards:
            return Dataset(InMemoryTable(_schema(self.manifest.mask_column).empty_table()))
        return concatenate_datasets([Dataset.from_file(str(self.folder / shard.file)) for shard in shards])

    def table(self, split: str) -> pa.Table:
        """Return the documents of a split as a memory-mapped table, in shard order."""
        tables = [_mapped(self.folder / shard.file) for shard in self.manifest.splits[split]]
        return pa.concat_tables(tables) if tables else _schema(self.manifest.mask_column).empty_table()

    def _shards(self) -> list[ShardInfo]:
        return [shard for split in self.manifest.splits.values() for shard in split]


class ShardWriter:
    """Writes one split of a corpus folder as numbered shards, each closed at the row that brings it to
    `shard_tokens`."""

    def __init__(self, folder: Path, split: str, mask_column: str | None, shard_tokens: int) -> None:
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.schema = _schema(mask_column)
        self.shards: list[ShardInfo] = []
        self._tokens = self._documents = self._waiting = 0
        self._batches: list[pa.RecordBatch] = []
        self._stream: pa.RecordBatchStreamWriter | None = None

    def write(self, rows: pa.RecordBatch) -> None:
        """Append rows, in the columns of `schema`."""
        ends = np.cumsum(pc.list_value_length(rows["input_ids"]).to_numpy())
        begin, tokens = 0, 0
        while begin < rows.num_rows:
            full = int(np.searchsorted(ends, tokens + self.shard_tokens - self._tokens)) + 1
            end = min(full, begin + ROWS_PER_BATCH - self._waiting, rows.num_rows)
            self._batches.append(rows.slice(begin, end - begin))
            self._waiting += end - begin
            self._documents += end - begin
            self._tokens += int(ends[end - 1]) - tokens
            begin, tokens = end, int(ends[end - 1])
            if self._tokens >= self.shard_tokens:
                self.close()
            elif self._waiting == ROWS_PER_BATCH:
                self._flush()

    def close(self) -> list[ShardInfo]:
        """Finish the open shard; the shards written so far."""
        self._flush()
        if self._stream is not None:
            self._stream.close()
            path = self.folder / self._file
            self.shards.append(
                ShardInfo(
                    file=self._file,
                    sha256=sha256_file(path),
                    bytes=path.stat().st_size,
                    documents=self._documents,
                    tokens=self._tokens,
                )
            )
            self._stream, self._tokens, self._documents = None, 0, 0
        return self.shards

    def _flush(self) -> None:
        """Write what waits as one batch: how rows came in pieces leaves no trace."""
        if not self._batches:
            return
        if self._stream is None:
            (self.folder / self.split).mkdir(parents=True, exist_ok=True)
            self._stream = pa.ipc.new_stream(str(self.folder / self._file), self.schema)
        (whole,) = pa.Table.from_batches(self._batches).combine_chunks().to_batches()
        self._stream.write_batch(whole)
        self._batches, self._waiting = [], 0

    @property
    def _file(self) -> str:
        return f"{self.split}/shard-{len(self.shards):05d}.arrow"


@contextlib.contextmanager
def explain_damage(path: Path) -> Iterator[None]:
    """Raise UserError where Arrow cannot read a file that `prepare` wrote."""
    try:
        yield
    except pa.ArrowInvalid as fault:
        reason = (str(fault).splitlines() or ["no reason given"])[0]
        raise UserError(
            f"{path} is damaged ({reason}): put it back, or remove its folder and run `finetune prepare` again"
        ) from fault


def _mapped(path: Path) -> pa.Table:
    with explain_damage(path), pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
        return stream.read_all()


def _schema(mask_column: str | None) -> pa.Schema:
    columns: list[tuple[str, pa.DataType]] = [(name, pa.string()) for name in TEXT_COLUMNS]
    columns.append(("input_ids", pa.list_(pa.int32())))
    if mask_column:
        assert mask_column in MASK_COLUMNS
        columns.append((mask_column, pa.list_(pa.int8())))
    return pa.schema(columns)


def tokenizer_digest(folder: Path) -> str:
    """sha256 of what decides a text's token ids: tokenizer.json without its padding, truncation and layout.

    Raises:
        UserError: the folder has no readable tokenizer.json.
    """
    path = folder / "tokenizer.json"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return _digest(
            {
                key: value
                for key, value in body.items()
                if key not in {"padding", "truncation", "version", "decoder"}
            }
        )
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no tokenizer.json: save the tokenizer with transformers' save_pretrained"
        ) from None
    except (ValueError, AttributeError) as fault:
        raise UserError(
            f"{path} is not a tokenizer ({fault}): save the tokenizer with transformers' save_pretrained"
        ) from None


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
