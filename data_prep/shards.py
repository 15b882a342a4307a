"""The corpus folder: the interface between preparation, which writes it, and training.

    <corpus>/
      manifest.json                    files with checksums, licences, counts, tokenizer digest
      README.md                        the corpus card: the manifest's counts as tables, and years
      tokenizer/                       tokenizer.json and tokenizer_config.json for transformers
      train/shard-00000.arrow …        Arrow IPC streams, for `datasets.Dataset.from_file`
      validation/shard-00000.arrow …

A row is a document, or a conversation up to one target turn if the chat template changes earlier
turns. A corpus can be used with any sequence length, because sequence length and packing are
settings of training. The columns are:

    id, source, license, language, group
        string
    input_ids
        list<int32>. Running text and plain completions end with the tokenizer's end-of-sequence
        token. A conversation ends with the chat template's end-of-turn token.
    completion_mask or assistant_masks
        list<int8>, as long as input_ids, with 1 for each token that is a target. The column exists
        only if some tokens of the corpus are not targets. Its name is TRL's:
        assistant_masks if a source has conversations (`messages`), completion_mask if there are
        only instructions, or prompts with completions. Every row of such a corpus has at least one
        target. In rows of running text, all tokens are targets.
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
    """The folder that the user named as a corpus has no manifest."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"no corpus in {folder}: the folder has no {MANIFEST}; run `finetune prepare corpus=<name>` first"
        )
        self.folder = folder


@dataclass(kw_only=True)
class ShardInfo:
    """The manifest's entry on a file of a split."""

    file: str  # path relative to the corpus folder
    sha256: str
    bytes: int
    documents: int
    tokens: int


@dataclass(kw_only=True)
class SourceInfo:
    """The manifest's entry on a source.

    Attributes:
        sha256: the digest of the source's raw files.
        documents, tokens, supervised_tokens: numbers by `<split>/<language>`. Supervised tokens are
            those that are targets.
        documents_read, characters_read: numbers read, including records that reading dropped.
        repeated_ids: number of documents with the id of an earlier document of the source.
        single_group: True if all documents of the source are in one group. Such a source is wholly
            in one split, because groups are not divided.
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
    """The amount of text that one stage removed from one source for one reason."""

    source: str
    reason: str
    documents: int = 0  # dropped documents
    cut: int = 0  # documents that were kept without a part of their text
    characters: int = 0  # of all removed text


@dataclass(kw_only=True)
class StageInfo:
    """The manifest's entry on a stage.

    Attributes:
        dropped: number of dropped documents by reason.
        counts: other counts of the stage, by name.
        losses: amounts of text that was dropped or cut, by source and reason. Empty in corpora of
            earlier versions, which did not record them.
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
        end_of_turn, end_of_turn_id: the token with which answers in conversations end, and its id;
            None without conversations.
        encoder: None in corpora of earlier versions, which did not record it.
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
    """The content of manifest.json.

    Nothing in it depends on the time or place of preparation, so equal input gives equal bytes.

    Attributes:
        fingerprint: hash of every input and setting. `finetune prepare` does nothing while it is
            unchanged.
        mask_column: the column that marks targets, or None if every token is a target.
        unigram_loss: mean loss, in nats per token, of a unigram model on the validation split. It
            is a baseline for any model. The unigram model's probabilities are the frequencies of
            the training split's targets, add-one smoothed. None without validation documents.
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
        """The digest of the corpus. It changes with any byte of the corpus' files or manifest."""
        return _digest(self._body())

    def documents(self, split: str) -> int:
        return sum(shard.documents for shard in self.splits[split])

    def tokens(self, split: str) -> int:
        return sum(shard.tokens for shard in self.splits[split])

    def warnings(self) -> list[str]:
        """Return a line for each questionable property of a source, with the remedy."""
        split = next((stage for stage in self.stages if stage.name == "split"), None)
        share = split.settings.get("validation_share") if split else None
        warnings: list[str] = []
        for name, source in self.sources.items():
            warnings += _source_warnings(name, source, share)
        return warnings

    def _body(self) -> dict[str, Any]:
        """Return the manifest as plain data.

        Fields that were added in later versions are left out if they are empty, so that old corpora
        keep their digests.
        """
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
            NoCorpusError: `folder` has no manifest.
            UserError: the manifest is malformed, has another version, or was edited after it was
                written.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise NoCorpusError(folder)
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            found = (body.get("format"), body.get("format_version"))
            if found != (FORMAT, FORMAT_VERSION):
                raise ValueError(
                    f"format {found[0]} version {found[1]}, not {FORMAT} version {FORMAT_VERSION}"
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
                f"{path} is not a valid corpus manifest ({fault}); run `finetune prepare` again"
            ) from None


def _drop_empty(body: dict[str, object], *names: str) -> None:
    for name in names:
        if not body[name]:
            del body[name]


def _source_warnings(name: str, source: SourceInfo, validation_share: float | None) -> Iterator[str]:
    """Yield the warnings on a source.

    Args:
        validation_share: the setting split.validation_share. If it is 0 or None, there is no
            warning of missing validation documents.
    """
    if source.repeated_ids:
        yield (
            f"source {name}: {source.repeated_ids:,} documents have an id that an earlier "
            "document has; all are kept, but `finetune inspect` shows only one document of "
            f"each id; set corpus.sources.{name}.fields.id to a field that is unique"
        )
    held_out = any(key.startswith("validation/") for key in source.documents)
    if held_out or not source.documents or not validation_share:
        return
    if source.single_group:
        reason = "all its documents are one group, and a group is not divided"
        remedy = f"set corpus.sources.{name}.fields.group to a finer field"
    else:
        reason = "by chance none of its groups is in the validation split"
        remedy = "set another corpus.split.seed"
    yield (
        f"source {name}: no validation documents, because {reason}; {remedy}, or raise "
        f"corpus.split.validation_share (now {validation_share:g})"
    )


class Corpus:
    """A corpus folder: its manifest, and its splits as memory-mapped datasets or tables.

    Raises:
        NotFoundError: there is no manifest in the folder.
        UserError: the manifest is broken, or a shard is missing or does not have the size in the
            manifest.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        for shard in self._shards():
            path = self.folder / shard.file
            if not path.is_file():
                raise UserError(f"shard {path} is missing; run `finetune prepare` again")
            size = path.stat().st_size
            if size != shard.bytes:
                raise UserError(
                    f"shard {path} has {size} bytes instead of the {shard.bytes} in the manifest; "
                    "run `finetune prepare` again"
                )

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder / "tokenizer"

    def verify(self) -> None:
        """Compare all shards and the tokenizer with the checksums in the manifest.

        Raises:
            UserError: a shard or the tokenizer does not have the checksum in the manifest.
        """
        for shard in self._shards():
            path = self.folder / shard.file
            if sha256_file(path) != shard.sha256:
                raise UserError(f"shard {path} is corrupted (checksum differs); run `finetune prepare` again")
        if tokenizer_digest(self.tokenizer_folder) != self.manifest.tokenizer.sha256:
            raise UserError(
                f"{self.tokenizer_folder} is not the tokenizer that encoded the shards (checksum differs); "
                "run `finetune prepare` again"
            )

    def split(self, name: str) -> Dataset:
        """Return the rows of a split as a memory-mapped dataset, in shard order."""
        from datasets import Dataset, concatenate_datasets
        from datasets.table import InMemoryTable

        shards = self.manifest.splits[name]
        if not shards:
            return Dataset(InMemoryTable(_schema(self.manifest.mask_column).empty_table()))
        return concatenate_datasets([Dataset.from_file(str(self.folder / shard.file)) for shard in shards])

    def table(self, split: str) -> pa.Table:
        """Return the rows of a split as a memory-mapped table, in shard order."""
        tables = [_map_table(self.folder / shard.file) for shard in self.manifest.splits[split]]
        if not tables:
            return _schema(self.manifest.mask_column).empty_table()
        return pa.concat_tables(tables)

    def _shards(self) -> list[ShardInfo]:
        return [shard for split in self.manifest.splits.values() for shard in split]


class ShardWriter:
    """A writer of the numbered shards of one split in a corpus folder.

    Args:
        shard_tokens: minimum number of tokens in a shard, except for the last one. A shard is
            closed after the row with which it reaches this number.
    """

    def __init__(self, folder: Path, split: str, mask_column: str | None, shard_tokens: int) -> None:
        self.folder = folder
        self.split = split
        self.shard_tokens = shard_tokens
        self.schema = _schema(mask_column)
        self.shards: list[ShardInfo] = []
        self._tokens = self._documents = self._buffered_rows = 0
        self._batches: list[pa.RecordBatch] = []
        self._stream: pa.RecordBatchStreamWriter | None = None

    def write(self, rows: pa.RecordBatch) -> None:
        """Append rows, which must have the columns of `schema`."""
        # Number of tokens up to the end of each row.
        ends = np.cumsum(pc.list_value_length(rows["input_ids"]).to_numpy())
        begin = tokens = 0
        while begin < rows.num_rows:
            full = int(np.searchsorted(ends, tokens + self.shard_tokens - self._tokens)) + 1
            end = min(full, begin + ROWS_PER_BATCH - self._buffered_rows, rows.num_rows)
            self._batches.append(rows.slice(begin, end - begin))
            self._buffered_rows += end - begin
            self._documents += end - begin
            self._tokens += int(ends[end - 1]) - tokens
            begin = end
            tokens = int(ends[end - 1])
            if self._tokens >= self.shard_tokens:
                self.close()
            elif self._buffered_rows == ROWS_PER_BATCH:
                self._flush()

    def close(self) -> list[ShardInfo]:
        """Finish the open shard, and return all shards written so far."""
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
            self._stream = None
            self._tokens = self._documents = 0
        return self.shards

    def _flush(self) -> None:
        """Write the buffered rows as one batch.

        Thus the file does not depend on the sizes of the batches that `write` receives.
        """
        if not self._batches:
            return
        if self._stream is None:
            (self.folder / self.split).mkdir(parents=True, exist_ok=True)
            self._stream = pa.ipc.new_stream(str(self.folder / self._file), self.schema)
        (combined,) = pa.Table.from_batches(self._batches).combine_chunks().to_batches()
        self._stream.write_batch(combined)
        self._batches = []
        self._buffered_rows = 0

    @property
    def _file(self) -> str:
        return f"{self.split}/shard-{len(self.shards):05d}.arrow"


@contextlib.contextmanager
def explain_damage(path: Path) -> Iterator[None]:
    """Raise UserError if Arrow finds, in the `with` block, that the file at `path` is damaged."""
    try:
        yield
    except pa.ArrowInvalid as fault:
        reason = (str(fault).splitlines() or ["no reason given"])[0]
        raise UserError(
            f"{path} is damaged ({reason}); restore it, or remove its folder and run `finetune prepare` again"
        ) from fault


def _map_table(path: Path) -> pa.Table:
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
    """Return the SHA-256 of the parts of tokenizer.json that determine token ids.

    Raises:
        UserError: the folder has no readable tokenizer.json.
    """
    path = folder / "tokenizer.json"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        ignored = {"padding", "truncation", "version", "decoder"}
        return _digest({key: value for key, value in body.items() if key not in ignored})
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no tokenizer.json; save the tokenizer with transformers' save_pretrained"
        ) from None
    except (ValueError, AttributeError) as fault:
        raise UserError(
            f"{path} is not a tokenizer ({fault}); save the tokenizer with transformers' save_pretrained"
        ) from None


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
