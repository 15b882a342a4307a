"""The bundled sample: its settings, and what a preparation of it leaves on disk."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig
from data_prep.shards import sha256_file
from data_prep.stage_settings import BoilerplateConfig, SplitConfig, TokenizerConfig

SAMPLE = Path(str(files("data_prep"))) / "sample"
JSONL = ("letters", "minutes", "guidance")
SHARD = 8_000  # characters: the sample becomes thirty shards


def sample_config(corpora_dir: Path, **changes: object) -> PrepareConfig:
    """Return the settings of conf/corpus/sample.yaml, with changes to those of the corpus."""
    sources = {
        name: SourceConfig(reader="jsonl", path=str(SAMPLE / f"{name}.jsonl"), license="CC0-1.0")
        for name in JSONL
    }
    sources["laws"] = SourceConfig(reader="lovdata", path=str(SAMPLE / "laws"), license="NLOD-2.0")
    sources["consultation_replies"] = SourceConfig(
        reader="text", path=str(SAMPLE / "consultation_replies"), license="CC-BY-4.0"
    )
    chosen = {"boilerplate": BoilerplateConfig(min_documents=3)}
    settings = {
        **chosen,
        "split": SplitConfig(validation_share=0.15, seed=2),
        "tokenizer": TokenizerConfig(vocab_size=2000),
        **changes,
    }
    return PrepareConfig(
        corpora_dir=str(corpora_dir), corpus=CorpusConfig(name="sample", sources=sources, **settings)
    )  # type: ignore[arg-type]


def sharded_sample_config(corpora_dir: Path, **changes: object) -> PrepareConfig:
    """Return them for many shards and one process, with changes to those of the preparation."""
    made = sample_config(corpora_dir)
    for name, value in {"workers": 1, "shard_characters": SHARD, **changes}.items():
        setattr(made, name, value)
    return made


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder, by its path."""
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def markers(corpora_dir: Path) -> dict[Path, int]:
    """Return when each shard of each stage was done, by the marker's path."""
    return {path: path.stat().st_mtime_ns for path in (corpora_dir / ".sample.stages").glob("*/done-*.json")}
