"""Where the base model comes from, checked before anything heavy is imported or any job is queued."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.shards import Corpus, tokenizer_digest
from finetune.config import TrainConfig
from finetune.run_folder import RunFolder

RUN_PREFIX = "run:"


@dataclass(frozen=True)
class Base:
    """A base model: `path` is a folder or hub id; `adapters` are merged into it, in this order, before training."""

    path: str
    adapters: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path | None:
        """The folder, or None for a hub id."""
        return Path(self.path) if Path(self.path).is_dir() else None


def resolve(path: str, runs_dir: str | Path) -> Base:
    """A model folder, a hub id, or the result of run:<run id>: its model, or its adapter merged into its own base.

    Raises:
        FileNotFoundError: no such run.
        ValueError: the run has no result yet, or the folder holds no weights.
    """
    if path.startswith(RUN_PREFIX):
        run = RunFolder.find(path.removeprefix(RUN_PREFIX), runs_dir)
        if run.state() != "completed":
            raise ValueError(
                f"run {run.id} is {run.state()}, so it has no result to start from: finish it with `finetune resume {run.id}`"
            )
        if run.model.is_dir():
            return resolve(str(run.model), runs_dir)
        earlier = run.config()
        if earlier.model.path is None:
            raise ValueError(
                f"run {run.id} trained an adapter on random weights that nobody kept: start from a run of adapter=none"
            )
        base = resolve(earlier.model.path, earlier.runs_dir)
        return Base(base.path, (*base.adapters, run.adapter))
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"model folder {folder} has no config.json: give the folder that transformers' save_pretrained wrote"
            )
        if not any(folder.glob("*.safetensors")):
            raise ValueError(f"model folder {folder} has no weights (*.safetensors): download or convert them first")
    elif folder.is_absolute() or path.startswith("."):
        raise FileNotFoundError(f"model folder {path} does not exist: check model.path")
    return Base(path)


def check_inputs(config: TrainConfig) -> None:
    """All that can be known wrong before a job starts: corpus intact, sources known, base complete, tokenizer the same.

    Raises:
        FileNotFoundError, ValueError: one line that names the thing and the remedy.
    """
    corpus = open_corpus(config)
    corpus.verify()
    if config.model.path is None:
        return
    base = resolve(config.model.path, config.runs_dir)
    if base.folder and tokenizer_digest(base.folder) != corpus.manifest.tokenizer["sha256"]:
        raise ValueError(
            f"the tokenizer of {base.path} is not the one corpus {config.data.corpus} was tokenised with: "
            f"run `finetune prepare` with corpus.tokenizer.path={base.path}"
        )


def open_corpus(config: TrainConfig) -> Corpus:
    """The corpus of a run, opened (sizes checked, not every byte).

    Raises:
        FileNotFoundError, ValueError: there is none, it is broken, or include_sources/exclude_sources do not fit it.
    """
    corpus = Corpus(config.data.corpus_folder)
    sources = corpus.manifest.sources
    for key in ("include_sources", "exclude_sources"):
        if unknown := set(getattr(config.data, key)) - set(sources):
            raise ValueError(
                f"data.{key} names {', '.join(sorted(unknown))}: corpus {config.data.corpus} has {', '.join(sources)}"
            )
    if not training_sources(config, corpus):
        raise ValueError("data.include_sources and data.exclude_sources leave no source to train on: drop one of them")
    return corpus


def training_sources(config: TrainConfig, corpus: Corpus) -> list[str]:
    return [
        name
        for name in corpus.manifest.sources
        if (not config.data.include_sources or name in config.data.include_sources) and name not in config.data.exclude_sources
    ]
