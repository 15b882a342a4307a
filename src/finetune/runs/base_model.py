"""Where the base model comes from, checked before anything heavy is imported or any job is queued."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from data_prep.shards import Corpus, tokenizer_digest
from data_prep.user_error import NotFoundError, UserError
from finetune.config import extras
from finetune.config.suggestions import closest, did_you_mean
from finetune.config.train import RUN_PREFIX, TrainConfig, split_step
from finetune.runs import checkpoint_files
from finetune.runs.folder import RunFolder

INPUTS = "inputs.json"  # of a run folder: see note_inputs
WINDOW = 4096  # bytes of a tensor that its digest reads


@dataclass(frozen=True)
class Base:
    """A base model on disk; `adapters` are merged into it, in this order, before training. `name` is what to call it."""

    name: str
    folder: Path
    adapters: tuple[Path, ...] = ()

    @property
    def tokenizer_folder(self) -> Path:
        """An adapter brings the tokenizer that it was trained with, which may have more tokens than the base's."""
        return next((a for a in reversed(self.adapters) if (a / "tokenizer.json").is_file()), self.folder)


def resolve(path: str, runs_dir: str | Path, revision: str | None = None) -> Base:
    """A model folder, a hub id in the local cache, or the result of run:<run id>: its model, or its adapter merged into its base.
    run:<run id>@<step> is the checkpoint of that step instead.

    Raises:
        NotFoundError: no such run or folder, or a hub id that is not in the cache.
        UserError: the run has no result yet, or the folder holds no model.
    """
    if path.startswith(RUN_PREFIX):
        name, step = split_step(path.removeprefix(RUN_PREFIX))
        run = RunFolder.find(name, runs_dir)
        if step is not None and not _is_result(run, step):
            return _trained(run, _exported(run, step))
        if run.state() != "completed":
            raise UserError(
                f"run {run.id} is {run.state()} and has no result to start from: finish it with `{run.command('resume')}`"
            )
        return _trained(run, run.model if run.model.is_dir() else run.adapter)
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute() or path.startswith("."):
            raise NotFoundError(f"model folder {path} does not exist{_describe_neighbours(folder) or ': check model.path'}")
        folder = _cached_snapshot(path, revision)
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder} has no config.json: give the folder that transformers' save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"model folder {folder} has no weights (*.safetensors): download or convert them first")
    return Base(path, folder)


def of_run(config: TrainConfig) -> Base | None:
    """Return the base of a run; None from scratch. Raises as resolve."""
    path = config.model.path
    return None if path is None else resolve(path, config.runs_dir, config.model.revision)


def _trained(run: RunFolder, folder: Path) -> Base:
    """Name what a run wrote: a model, or an adapter with the base that it belongs to."""
    config = run.config()
    if not config.adapter:
        return resolve(str(folder), config.runs_dir)
    assert config.model.path is not None  # config.py: an adapter never sits on a model from scratch
    base = resolve(config.model.path, config.runs_dir, config.model.revision)
    return Base(base.name, base.folder, (*base.adapters, folder))


def _is_result(run: RunFolder, step: int) -> bool:
    """Whether the weights of a step are what a completed run saved."""
    summary = run.summary()
    return run.state() == "completed" and summary is not None and summary.result_step == step


def _exported(run: RunFolder, step: int) -> Path:
    """Return a checkpoint's weights as a folder, written by export.py when they are first asked for.

    Raises:
        UserError: there is no checkpoint of this step, or it is damaged.
    """
    folder = run.export(step)
    with FileLock(run.path / ".export.lock"):
        if folder.is_dir():
            return folder
        if not checkpoint_files.folder_of(run.checkpoints, step).is_dir():
            kept = ", ".join(
                str(checkpoint_files.step_of(path)) for path in reversed(checkpoint_files.published(run.checkpoints))
            )
            raise UserError(f"run {run.id} has no checkpoint of step {step}: it keeps {f'steps {kept}' if kept else 'none'}")
        extras.check("torch", f"exporting run:{run.id}@{step}")
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, "-m", "finetune.training.checkpoint_weights", str(run.path), str(step)]
        done = subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or f"the process ended with {done.returncode}").splitlines()[-1]
            raise UserError(f"run {run.id}@{step}: {last}")
    return folder


def _cached_snapshot(hub_id: str, revision: str | None) -> Path:
    """Jobs have no network: what is not in the Hugging Face cache now will not be there later."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        wanted = f"{hub_id} --revision {revision}" if revision else hub_id
        close = _describe_neighbours(Path(hub_id)) or did_you_mean(hub_id, _cached_models())
        raise NotFoundError(
            f"model {hub_id} is no folder and not in the Hugging Face cache{f'{close} Jobs' if close else '; jobs'} have no "
            f"network: `hf download {wanted}` first"
        ) from None


def _cached_models() -> list[str]:
    """Return the hub ids of the models in the Hugging Face cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = Path(HF_HUB_CACHE).glob("models--*")
    return [path.name.removeprefix("models--").replace("--", "/") for path in folders]


def _describe_neighbours(folder: Path) -> str:
    """Return what of a folder's path exists, or which folder beside it may be meant; nothing where nothing looks like it."""
    if folder.parent.is_dir():
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        found = closest(folder.name, beside)
        return f"; did you mean '{folder.parent / found[0]}'?" if found else ""
    if not folder.is_absolute():
        return ""
    there = next(parent for parent in folder.parents if parent.is_dir())
    missing = folder.relative_to(there).parts[0]
    return f"; {there} has no folder '{missing}'"


def pinned(config: TrainConfig) -> TrainConfig:
    """The config with the revision of a hub id that the cache has now: a later download moves what a branch means."""
    path = config.model.path
    if path is None or path.startswith(RUN_PREFIX) or Path(path).is_dir():
        return config
    revision = _cached_snapshot(path, config.model.revision).name
    return dataclasses.replace(config, model=dataclasses.replace(config.model, revision=revision))


def inputs(config: TrainConfig, corpus: Corpus | None) -> dict[str, str | None]:
    """Digests of what a run learns from: its corpus (None: still to be made), and its base (None: from scratch)."""
    path, model = config.model.path, config.model
    base = None if path is None else digest(resolve(path, config.runs_dir, model.revision))
    return {"corpus": corpus.manifest.digest if corpus else None, "base": base}


def note_inputs(run: RunFolder, inputs: dict[str, str | None]) -> dict[str, str | None]:
    """Hold what a run learns from against what its submission, or else its first start, wrote down; write down what is new, and
    give it back.

    Raises:
        UserError: it is another. (The base of a model that is trained whole matters until its first checkpoint.)
    """
    noted = run.read_json(INPUTS) or {}
    for name, digest in inputs.items():
        if noted.get(name) in (None, digest):
            continue
        config = run.config()
        if name == "base" and not config.adapter and any(run.checkpoints.glob("step-*")):
            continue
        raise UserError(
            f"{name} {config.data.corpus if name == 'corpus' else config.model.path} is not what it was when run {run.id} was "
            f"submitted: its files have changed since; put the old ones back, or start a new run"
        )
    if noted != inputs:
        run.write_json(INPUTS, inputs)
    return inputs


def digest(base: Base) -> str:
    """sha256 of a base's configs, and of its weight files' names, headers and WINDOW bytes amid each tensor: as cheap for a large
    model as for a small one.

    It tells models, revisions and precisions apart, and weights from the same ones trained further, merged or quantized: that
    moves numbers all over a tensor. A few numbers edited by hand in a large tensor it can miss.

    Raises:
        UserError: a weight file is damaged.
    """
    hasher = hashlib.sha256()
    for folder in (base.folder, *base.adapters):
        for path in sorted((*folder.glob("*.safetensors"), *folder.glob("config.json"), *folder.glob("adapter_config.json"))):
            hasher.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            if path.suffix == ".json":
                hasher.update(path.read_bytes())
                continue
            try:
                _sample(path, hasher.update)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
                raise UserError(f"the weights in {path} cannot be read ({fault}): get the model again, whole") from None
    return hasher.hexdigest()


def _sample(path: Path, see: Callable[[bytes], None]) -> None:
    """Header and windows of a file (its format: weights.py)."""
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
    """All that can be known wrong before a job starts: corpus intact, sources known, base complete, tokenizer the same.

    Args:
        corpus_is_there: no, if it is still to be made: then the job itself looks at it (job/rank.py).

    Raises:
        NotFoundError, UserError: one line that names the thing and the remedy.
    """
    is_jobs_python = config.cluster.python is None or "RANK" in os.environ  # a rank's; else that of a login node
    if config.model.quantization and is_jobs_python and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization={config.model.quantization} needs bitsandbytes: pip install 'finetune[qlora]', or adapter=lora"
        )
    model = None if config.model.path is None else resolve(config.model.path, config.runs_dir, config.model.revision)
    if not corpus_is_there:
        return
    corpus = open_corpus(config)
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
    """Whether the tokenizer in `larger` is the one in `folder` and added tokens: all else, and every old id, as it was."""
    old, new = (json.loads((f / "tokenizer.json").read_text(encoding="utf-8")) for f in (folder, larger))
    layout = {"padding", "truncation", "version", "decoder", "added_tokens"}  # tokenizer_digest leaves out the same, but the last
    if any(old.get(key) != new.get(key) for key in (old.keys() | new.keys()) - layout):
        return False
    before, after = ({t["id"]: t for t in body.get("added_tokens") or []} for body in (old, new))
    fresh = [token for number, token in after.items() if number not in before]
    return all(after.get(number) == token for number, token in before.items()) and all(
        token["id"] >= tokenizer_size(folder) for token in fresh
    )


def tokenizer_size(folder: Path) -> int:
    """Token ids of the tokenizer in a folder: one more than its largest."""
    from tokenizers import Tokenizer

    return max(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True).values()) + 1


def num_added_tokens(base: Base, corpus_folder: Path) -> int:
    """How many tokens a corpus' tokenizer has beyond the base's (which it extends: see check_tokenizer)."""
    both = [folder / "tokenizer.json" for folder in (base.tokenizer_folder, corpus_folder / "tokenizer")]
    if not all(path.is_file() for path in both):
        return 0
    return max(0, tokenizer_size(both[1].parent) - tokenizer_size(both[0].parent))


def open_corpus(config: TrainConfig) -> Corpus:
    """The corpus of a run, opened (sizes checked, not every byte).

    Raises:
        NotFoundError, UserError: there is none, it is broken, or include_sources/exclude_sources do not fit it.
    """
    corpus = Corpus(config.data.corpus_folder)
    sources = corpus.manifest.sources
    for key in ("include_sources", "exclude_sources"):
        if unknown := set(getattr(config.data, key)) - set(sources):
            raise UserError(
                f"data.{key} names {', '.join(sorted(unknown))}: corpus {config.data.corpus} has {', '.join(sources)}"
            )
    if not training_sources(config, corpus):
        raise UserError("data.include_sources and data.exclude_sources leave no source to train on: drop one of them")
    return corpus


def training_sources(config: TrainConfig, corpus: Corpus) -> list[str]:
    return [source for source in corpus.manifest.sources if config.data.trains_on(source)]
