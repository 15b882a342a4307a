"""The page of the corpus folder."""

from __future__ import annotations

import dataclasses
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from data_prep import shards
from docs.generate.markdown import code, escape, table

FILES = {
    "manifest.json": "sources, licences, counts, stages, the tokenizer's digest, checksums (see below)",
    "README.md": "the corpus card: the manifest's counts for people",
    "tokenizer/": "`tokenizer.json` and `tokenizer_config.json`, as transformers loads them",
    "train/shard-00000.arrow …": "the training split: Arrow IPC streams, which ranks memory-map",
    "validation/shard-00000.arrow …": "the held-out split, likewise",
}
COLUMNS = {
    "id": "id of the document, as its source gives it, or its place in the source",
    "source": "name of the source in the corpus file",
    "license": "the source's licence",
    "language": "written standard: `nob`, `nno`, `nor` (both), or another ISO 639-3 code",
    "group": "documents of a group fall on the same side of the split",
    "input_ids": "token ids; a text ends with the end-of-sequence token, a conversation with the token with "
    "which its chat template ends a turn",
    "completion_mask": "1 where a token is a target; in corpora of prompts with completions, or instructions",
    "assistant_masks": "the same, in corpora in which a source holds conversations",
}
KEYS = {
    "Manifest": {
        "name": "name of the corpus",
        "fingerprint": "digest of every input and setting; while it is the same, `prepare` does nothing",
        "mask_column": "column that marks targets; null where every token is a target",
        "unigram_loss": "mean loss on validation of the token frequencies of the training split, nats per "
        "target; null without validation documents",
        "tokenizer": "the tokenizer, see below",
        "splits": "shards by split (`train`, `validation`), see below",
        "sources": "sources by name, see below",
        "stages": "stages in their order, see below",
        "format": f"`{shards.FORMAT}`",
        "format_version": f"`{shards.FORMAT_VERSION}`",
    },
    "ShardInfo": {
        "file": "path within the corpus folder",
        "sha256": "checksum of the file",
        "bytes": "size of the file",
        "documents": "rows in it",
        "tokens": "tokens in it",
    },
    "SourceInfo": {
        "license": "licence",
        "attribution": "the attribution that the licence asks for",
        "sha256": "digest of its raw files",
        "documents": "documents by split and language",
        "tokens": "tokens by split and language",
        "supervised_tokens": "targets by split and language",
        "documents_read": "documents found by reading, including those that were refused",
        "characters_read": "characters found by reading, likewise",
        "repeated_ids": "documents with an id that an earlier document of the source has",
        "single_group": "true where all its documents are one group, which no split can divide",
    },
    "StageInfo": {
        "name": "name of the stage",
        "version": "version of the stage; raised when its output changes",
        "settings": "the settings that its output depends on",
        "documents_in": "documents that reached it",
        "documents_out": "documents that left it",
        "dropped": "dropped documents by reason",
        "counts": "everything else that the stage counts",
        "losses": "text that was dropped or cut, by source and reason",
    },
    "Loss": {
        "source": "name of the source",
        "reason": "reason",
        "documents": "documents that were dropped whole",
        "cut": "documents that continued without a part of their text",
        "characters": "characters that were taken in all",
    },
    "TokenizerInfo": {
        "sha256": "digest of the parts of `tokenizer.json` that decide token ids",
        "vocab_size": "size of the vocabulary",
        "eos_token_id": "id of the end-of-sequence token",
        "end_of_turn": "token that ends an answer, where a chat template rendered conversations",
        "end_of_turn_id": "its id",
        "encoder": "the library that encoded running text, its version, and why it was chosen",
    },
}
TITLES = {
    "Manifest": "Keys of manifest.json",
    "ShardInfo": "A shard in `splits`",
    "SourceInfo": "A source in `sources`",
    "StageInfo": "A stage in `stages`",
    "Loss": "An entry of a stage's `losses`",
    "TokenizerInfo": "The `tokenizer`",
}
JSON_TYPES = {str: "text", int: "int", float: "float", bool: "bool", dict: "object", list: "array"}
INTRODUCTION = """\
`datasets.load_dataset("arrow", data_files="corpora/NAME/train/*.arrow")` reads the shards as they
are, and TRL trains on them. A row is one document; where a chat template rewrites earlier turns,
each turn of a conversation is a row. Sequence length and packing belong to training, so one
corpus serves every length.
"""
STAGES = """\
Beside the folder, `.NAME.stages/` keeps what each stage wrote, and what it dropped and why. **The
first stages hold raw text that is not de-identified**: delete the folder before you share the
corpus. `finetune inspect NAME` reads both.
"""


def columns() -> list[tuple[str, str]]:
    """Return the name and type of each column of shards."""
    found: dict[str, str] = {}
    for mask in shards.MASK_COLUMNS:
        found |= {item.name: str(item.type) for item in shards._schema(mask)}
    return list(found.items())


def body() -> str:
    """Return the files of a corpus, the columns of its shards, and the keys of its manifest."""
    column_rows = [(code(name), code(kind), COLUMNS[name]) for name, kind in columns()]
    parts = [
        INTRODUCTION,
        table(("file", "content"), [(code(name), text) for name, text in FILES.items()]),
        STAGES,
        "## Columns of a shard\n",
        "A corpus has at most one of the two masks. Without one, every token is a target.\n",
        table(("column", "type", "content"), column_rows),
        *(_keys(name, meanings) for name, meanings in KEYS.items()),
        "The manifest also has `digest`, the checksum of all of the above. An edited manifest is refused.\n",
    ]
    return "\n".join(parts)


def _keys(name: str, meanings: dict[str, str]) -> str:
    schema = getattr(shards, name)
    kinds = get_type_hints(schema)
    keys = [item.name for item in dataclasses.fields(schema)]
    assert set(keys) == set(meanings), f"describe the keys of {name} in docs/generate/corpus.py"
    rows = [(code(key), escape(_type_name(kinds[key])), meanings[key]) for key in keys]
    return f"## {TITLES[name]}\n\n" + table(("key", "type", "content"), rows)


def _type_name(kind: Any) -> str:
    """Return the name of the JSON type of a Python type."""
    alternatives = [part for part in get_args(kind) if part is not NoneType]
    if NoneType in get_args(kind):
        return f"{_type_name(alternatives[0])} or null"
    if dataclasses.is_dataclass(kind):
        return "object"
    return JSON_TYPES[get_origin(kind) or kind]
