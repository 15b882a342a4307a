"""What a run is trained on: its corpus, digests of corpus and base, and whether base and tokenizer fit the
corpus.

Commands check it before a job is queued, ranks when they set the run up; nothing heavy is imported here.
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
from finetune.runs.base_model import Base, resolve
from finetune.runs.folder import RunFolder

WINDOW = 4096  # bytes of a tensor that its digest reads


def compute_digests(base: Base | None, corpus: Corpus | None) -> dict[str, str | None]:
    """Return digests of what a run is trained on: corpus (None: still to be made) and base (None: from
    scratch)."""
    return {"corpus": corpus.manifest.digest if corpus else None, "base": digest(base) if base else None}


def note_inputs(run: RunFolder, digests: dict[str, str | None]) -> dict[str, str | None]:
    """Compare what a run is trained on with what its submission, or else its first start, noted.

    Returns:
        the digests, which are noted now.

    Raises:
        UserError: it is another. (The base of a model that is trained whole matters until its first
            checkpoint.)
    """
    noted = run.read_json(layout.INPUTS) or {}
    for name, digest in digests.items():
        if noted.get(name) in (None, digest):
            continue
        config = run.config()
        if name == "base" and not config.adapter and run.has_checkpoint:
            continue
        raise UserError(
            f"{name} {config.data.corpus if name == 'corpus' else config.model.path} is not what it was when run {run.id} was "
            f"submitted: its files have changed since; put the old ones back, or start a new run"
        )
    if noted != digests:
        run.write_json(layout.INPUTS, digests)
    return digests


def digest(base: Base) -> str:
    """sha256 of a base's configs, and of its weight files' names, headers and WINDOW bytes amid each tensor:
    as cheap for a large model as for a small one.

    It tells models, revisions and precisions apart, and weights from the same ones trained further, merged or
        quantized: that
    moves numbers all over a tensor. A few numbers edited by hand in a large tensor it can miss.

    Raises:
        UserError: a weight file is damaged.
    """
    hasher = hashlib.sha256()
    for folder in (base.folder, *base.adapters):
        for path in sorted(
            (*folder.glob("*.safetensors"), *folder.glob("config.json"), *folder.glob("adapter_config.json"))
        ):
            hasher.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            if path.suffix == ".json":
                hasher.update(path.read_bytes())
                continue
            try:
                _sample(path, hasher.update)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
                raise UserError(
                    f"the weights in {path} cannot be read ({fault}): get the model again, whole"
                ) from None
    return hasher.hexdigest()


def _sample(path: Path, see: Callable[[bytes], None]) -> None:
    """Header and windows of a file (its format: models/safetensors_io.py)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, path.stat().st_size))
        see(header)
        for name, entry in json.loads(header).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                if 8 + length + end > path.stat().st_size:
                    raise ValueError("it breaks off")
                file.seek(8 + length + max(begin, (begin + end - WINDOW) // 2))
                see(file.read(min(WINDOW, end - begin)))


def check_inputs(config: TrainConfig, corpus_is_there: bool = True) -> None:
    """Check what can be checked before a job starts: the corpus and its sources, the base, and its tokenizer.

    Args:
        corpus_is_there: no, if it is still to be made: then the job itself looks at it (job/rank.py).

    Raises:
        NotFoundError, UserError: one line that names the thing and the remedy.
    """
    is_jobs_python = (
        config.cluster.python is None or "RANK" in os.environ
    )  # a rank's; else that of a login node
    if config.model.quantization and is_jobs_python and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization={config.model.quantization} needs bitsandbytes: pip install 'finetune[qlora]', or adapter=lora"
        )
    model = (
        None
        if config.model.path is None
        else resolve(config.model.path, config.runs_dir, config.model.revision)
    )
    if not corpus_is_there:
        return
    corpus = open_corpus(config.data)
    corpus.verify()
    if model is not None:
        check_tokenizer(model, corpus, may_extend=True)


def check_tokenizer(base: Base, corpus: Corpus, may_extend: bool = False) -> None:
    """The shards' token ids mean to this model what they meant to the tokenizer that made them.

    Args:
        may_extend: the corpus' tokenizer may have further tokens, for which training enlarges the model.

    Raises:
        UserError: they do not.
    """
    if tokenizer_digest(base.tokenizer_folder) == corpus.manifest.tokenizer.sha256:
        return
    if may_extend and _extends(base.tokenizer_folder, corpus.folder / "tokenizer"):
        return
    raise UserError(
        f"the tokenizer of {base.name} is not the one corpus {corpus.folder} was tokenised with: "
        f"run `finetune prepare` with corpus.tokenizer.path={base.tokenizer_folder}"
    )


def _extends(folder: Path, larger: Path) -> bool:
    """Return whether the tokenizer in `larger` is the one in `folder` and added tokens, with every old id as
    it was."""
    old, new = (json.loads((f / "tokenizer.json").read_text(encoding="utf-8")) for f in (folder, larger))
    # tokenizer_digest leaves out the same, but the last
    may_differ = {"padding", "truncation", "version", "decoder", "added_tokens"}
    if any(old.get(key) != new.get(key) for key in (old.keys() | new.keys()) - may_differ):
        return False
    before, after = ({t["id"]: t for t in body.get("added_tokens") or []} for body in (old, new))
    fresh = [token for number, token in after.items() if number not in before]
    return all(after.get(number) == token for number, token in before.items()) and all(
        token["id"] >= tokenizer_size(folder) for token in fresh
    )


def tokenizer_size(folder: Path) -> int:
    """Token ids of the tokenizer in a folder: one more than its largest."""
    from tokenizers import Tokenizer

    return (
        max(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True).values())
        + 1
    )


def num_added_tokens(base: Base, corpus_folder: Path) -> int:
    """How many tokens a corpus' tokenizer has beyond the base's (which it extends: see check_tokenizer)."""
    both = [folder / "tokenizer.json" for folder in (base.tokenizer_folder, corpus_folder / "tokenizer")]
    if not all(path.is_file() for path in both):
        return 0
    return max(0, tokenizer_size(both[1].parent) - tokenizer_size(both[0].parent))


def open_corpus(data: DataConfig) -> Corpus:
    """Open the corpus of a run; sizes are checked, not every byte.

    Raises:
        NotFoundError, UserError: there is none, it is broken, or include_sources/exclude_sources do not fit
            it.
    """
    corpus = Corpus(data.corpus_folder)
    sources = corpus.manifest.sources
    for key in ("include_sources", "exclude_sources"):
        if unknown := set(getattr(data, key)) - set(sources):
            raise UserError(
                f"data.{key} names {', '.join(sorted(unknown))}: corpus {data.corpus} has {', '.join(sources)}"
            )
    if not training_sources(data, corpus):
        raise UserError(
            "data.include_sources and data.exclude_sources leave no source to train on: drop one of them"
        )
    return corpus


def training_sources(data: DataConfig, corpus: Corpus) -> list[str]:
    """Return the sources of a corpus that a run is trained on."""
    return [source for source in corpus.manifest.sources if data.trains_on(source)]
