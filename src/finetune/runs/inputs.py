"""Checks of a run's inputs: the corpus and the base model.

A digest of each input is compared with the recorded one, and the tokenizers of both must match.
Commands check the inputs before a job is queued, and ranks when they set up the run. This module
does not import torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

from data_prep.shards import Corpus, tokenizer_digest
from data_prep.user_error import UserError
from finetune.config.train import DataConfig, TrainConfig
from finetune.runs import layout
from finetune.runs.base_model import Base, resolve_for_run
from finetune.runs.folder import RunFolder

WINDOW = 4096  # bytes in the middle of a tensor that the digest covers


def compute_digests(base: Base | None, corpus: Corpus | None) -> dict[str, str | None]:
    """Return the digests of a run's corpus and base model; None for an input that is None."""
    return {
        "corpus": corpus.manifest.digest if corpus else None,
        "base": compute_base_digest(base) if base else None,
    }


def record_inputs(run: RunFolder, digests: dict[str, str | None]) -> dict[str, str | None]:
    """Compare the digests of a run's inputs with the recorded ones, and record the new digests.

    Digests are first recorded at the run's submission or, if it recorded none, at its first start.

    Args:
        digests: digest by name of the input, `base` or `corpus`; None for an input that is unknown
            or not used.

    Returns:
        `digests`, unchanged.

    Raises:
        UserError: an input has changed. In full fine-tuning, the base may change after the first
            checkpoint.
    """
    recorded = run.read_json(layout.INPUTS) or {}
    for name, digest in digests.items():
        if recorded.get(name) in (None, digest):
            continue
        config = run.config()
        if name == "base" and not config.adapter and run.has_checkpoint:
            continue
        path = config.data.corpus if name == "corpus" else config.model.path
        raise UserError(
            f"{name} {path} has changed since run {run.id} was submitted; "
            f"restore its files, or start a new run"
        )
    if recorded != digests:
        run.write_json(layout.INPUTS, digests)
    return digests


def compute_base_digest(base: Base) -> str:
    """Return a SHA-256 of a base model.

    It covers the configs, and the names, sizes, headers and samples of the weight files. A sample
    is the WINDOW bytes in the middle of a tensor, so the cost does not grow with the model.

    Models, revisions and precisions have different digests. Training, merging and quantization
    change the digest too, because they change values all over a tensor. A manual edit of a few
    values in a large tensor may be missed.

    Raises:
        UserError: a weight file is damaged.
    """
    hasher = hashlib.sha256()
    patterns = ("*.safetensors", "config.json", "adapter_config.json")
    for folder in (base.folder, *base.adapters):
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            hasher.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            if path.suffix == ".json":
                hasher.update(path.read_bytes())
                continue
            try:
                _hash_samples(path, hasher.update)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
                raise UserError(
                    f"the weights in {path} cannot be read ({fault}); download or copy the model again"
                ) from None
    return hasher.hexdigest()


def _hash_samples(path: Path, update: Callable[[bytes], None]) -> None:
    """Pass the header of a safetensors file, then WINDOW bytes of each tensor, to `update`.

    The bytes are from the middle of the tensor. models/safetensors_io.py describes the format.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the file is truncated, or its header is
            malformed.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, path.stat().st_size))
        update(header)
        for name, entry in json.loads(header).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            if 8 + length + end > path.stat().st_size:
                raise ValueError("the file is truncated")
            file.seek(8 + length + max(begin, (begin + end - WINDOW) // 2))
            update(file.read(min(WINDOW, end - begin)))


def check_inputs(config: TrainConfig, has_corpus: bool = True) -> None:
    """Check a run's inputs before its job starts: the corpus and its sources, the base and its
    tokenizer.

    Args:
        has_corpus: False if the corpus is not prepared yet; the job itself then checks it
            (job/rank.py).

    Raises:
        NotFoundError, UserError: an input is missing, damaged or does not match.
    """
    # the Python of a login node need not have the packages that jobs use
    is_jobs_python = config.cluster.python is None or "RANK" in os.environ
    quantization = config.model.quantization
    if quantization and is_jobs_python and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization={quantization} needs bitsandbytes; "
            f"run pip install 'finetune[qlora]', or choose adapter=lora"
        )
    base = resolve_for_run(config)
    if not has_corpus:
        return
    corpus = open_corpus(config.data)
    corpus.verify()
    if base is not None:
        check_tokenizer(base, corpus, may_extend=True)


def check_tokenizer(base: Base, corpus: Corpus, may_extend: bool = False) -> None:
    """Check that a corpus was tokenised with the tokenizer of a base model.

    Args:
        may_extend: also accept a corpus whose tokenizer has tokens that the base's lacks; training
            enlarges the model for them.

    Raises:
        UserError: the tokenizers differ.
    """
    if tokenizer_digest(base.tokenizer_folder) == corpus.manifest.tokenizer.sha256:
        return
    if may_extend and _is_extended_by(base.tokenizer_folder, corpus.folder / "tokenizer"):
        return
    raise UserError(
        f"the tokenizer of {base.name} is not the one corpus {corpus.folder} was tokenised with; "
        f"run `finetune prepare` with corpus.tokenizer.path={base.tokenizer_folder}"
    )


def _is_extended_by(folder: Path, larger: Path) -> bool:
    """Return True if the tokenizer in `larger` is the one in `folder` with added tokens.

    All token ids of the tokenizer in `folder` must keep their meaning.
    """
    old = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    new = json.loads((larger / "tokenizer.json").read_text(encoding="utf-8"))
    # tokenizer_digest ignores these too, but for added_tokens
    may_differ = {"padding", "truncation", "version", "decoder", "added_tokens"}
    if any(old.get(key) != new.get(key) for key in (old.keys() | new.keys()) - may_differ):
        return False
    old_tokens = {token["id"]: token for token in old.get("added_tokens") or []}
    new_tokens = {token["id"]: token for token in new.get("added_tokens") or []}
    if any(new_tokens.get(number) != token for number, token in old_tokens.items()):
        return False
    added = new_tokens.keys() - old_tokens.keys()
    return not added or min(added) >= tokenizer_size(folder)


def tokenizer_size(folder: Path) -> int:
    """Return the number of token ids of the tokenizer in a folder: its largest id plus one."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def count_added_tokens(base: Base, corpus_folder: Path) -> int:
    """Return the number of tokens that a corpus' tokenizer adds to the base's."""
    folders = [base.tokenizer_folder, corpus_folder / "tokenizer"]
    if not all((folder / "tokenizer.json").is_file() for folder in folders):
        return 0
    return max(0, tokenizer_size(folders[1]) - tokenizer_size(folders[0]))


def open_corpus(data: DataConfig) -> Corpus:
    """Open the corpus of a run, and check the sizes of its files (not their contents).

    Raises:
        NotFoundError: there is no such corpus.
        UserError: the corpus is damaged; or include_sources and exclude_sources contain an unknown
            source, or leave no source to train on.
    """
    corpus = Corpus(data.corpus_folder)
    sources = corpus.manifest.sources
    for key in ("include_sources", "exclude_sources"):
        unknown = set(getattr(data, key)) - set(sources)
        if unknown:
            raise UserError(
                f"data.{key}: unknown source {', '.join(sorted(unknown))}; "
                f"corpus {data.corpus} has {', '.join(sources)}"
            )
    if not select_training_sources(data, corpus):
        raise UserError(
            "data.include_sources and data.exclude_sources leave no source to train on; remove one of them"
        )
    return corpus


def select_training_sources(data: DataConfig, corpus: Corpus) -> list[str]:
    """Return the sources of a corpus that a run is trained on."""
    return [source for source in corpus.manifest.sources if data.trains_on(source)]
