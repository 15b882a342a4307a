"""Generated corpus folders with known tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.shards import Manifest, ShardWriter, SourceInfo, TokenizerInfo, tokenizer_digest
from data_prep.tokens.tokenizer_files import SPECIAL_TOKENS, add_tokens

VOCAB_SIZE = 300
EOS = 1


def write_tokenizer(folder: Path, words: int = VOCAB_SIZE - 4) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(SPECIAL_TOKENS.values())}
    vocabulary |= {f"w{i}": len(SPECIAL_TOKENS) + i for i in range(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL_TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_corpus(
    folder: Path,
    num_documents: int,
    longest: int,
    seed: int,
    mask_column: str | None = None,
    added_tokens: int = 0,
) -> Path:
    """Write a corpus and return its folder.

    Documents have 3 to `longest` tokens; short documents are the most frequent. 80% of the tokens
    follow a pattern that a model can learn.

    Args:
        num_documents: number of training documents. The validation split has a tenth as many,
            but at least 4.
        longest: number of tokens of the longest document.
        mask_column: name of the column for the loss mask. In each document, the tokens of the
            second half are targets. None: the corpus has no loss mask.
        added_tokens: number of tokens that are added to the vocabulary of `write_tokenizer`.
            Documents contain them as often as other tokens.
    """
    rng = np.random.default_rng(seed)
    write_tokenizer(folder / "tokenizer")
    add_tokens(folder / "tokenizer" / "tokenizer.json", [f"added{i}" for i in range(added_tokens)])
    vocab_size = VOCAB_SIZE + added_tokens
    shards = {}
    for split, count in (("train", num_documents), ("validation", max(4, num_documents // 10))):
        writer = ShardWriter(folder, split, mask_column, shard_tokens=4000)
        lengths = np.clip(np.exp(rng.uniform(np.log(3), np.log(longest), count)).astype(int), 3, longest)
        lengths[:2] = 3, longest
        rows = []
        for i, length in enumerate(lengths):
            start = rng.integers(4, vocab_size)
            noise = rng.integers(4, vocab_size, length)
            pattern = 4 + (start + 7 * np.arange(length)) % (vocab_size - 4)
            input_ids = np.where(rng.random(length) < 0.2, noise, pattern)
            input_ids[-1] = EOS
            row = {
                "id": f"{split}-{i}",
                "source": ("letters", "laws")[i % 2],
                "license": "CC0-1.0",
                "language": ("nob", "nob", "nob", "nno")[i % 4],
                "group": f"{split}-{i}",
                "input_ids": input_ids.tolist(),
            }
            if mask_column:
                row[mask_column] = (np.arange(length) >= length // 2).astype(int).tolist()
            rows.append(row)
        writer.write(pa.RecordBatch.from_pylist(rows, schema=writer.schema))
        shards[split] = writer.close()
    Manifest(
        name=folder.name,
        fingerprint="by hand",
        mask_column=mask_column,
        unigram_loss=float(np.log(vocab_size)),
        tokenizer=TokenizerInfo(
            sha256=tokenizer_digest(folder / "tokenizer"), vocab_size=vocab_size, eos_token_id=EOS
        ),
        splits=shards,
        sources={
            name: SourceInfo(license="CC0-1.0", attribution="", sha256="by hand")
            for name in ("letters", "laws")
        },
        stages=[],
    ).write(folder)
    return folder
