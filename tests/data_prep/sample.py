"""Settings of the bundled sample, and checksums and markers of the files that `prepare` writes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig
from data_prep.shards import sha256_file
from data_prep.stage_settings import BoilerplateConfig, SplitConfig, TokenizerConfig

SAMPLE = Path(str(files("data_prep"))) / "sample"
JSONL = ("letters", "minutes", "guidance")
SHARD = 8_000  # characters per shard; the sample fills about 30 shards


def sample_config(corpora_dir: Path, **changes: object) -> PrepareConfig:
    """Return the settings of conf/corpus/sample.yaml.

    Args:
        changes: settings of the corpus that replace those of the file.
    """
    sources = {
        name: SourceConfig(reader="jsonl", path=str(SAMPLE / f"{name}.jsonl"), license="CC0-1.0")
        for name in JSONL
    }
    sources["laws"] = SourceConfig(reader="lovdata", path=str(SAMPLE / "laws"), license="NLOD-2.0")
    sources["consultation_replies"] = SourceConfig(
        reader="text", path=str(SAMPLE / "consultation_replies"), license="CC-BY-4.0"
    )
    settings = {
        "boilerplate": BoilerplateConfig(min_documents=3),
        "split": SplitConfig(validation_share=0.15, seed=2),
        "tokenizer": TokenizerConfig(vocab_size=2000),
        **changes,
    }
    corpus = CorpusConfig(name="sample", sources=sources, **settings)  # type: ignore[arg-type]
    return PrepareConfig(corpora_dir=str(corpora_dir), corpus=corpus)


def sharded_sample_config(corpora_dir: Path, **changes: object) -> PrepareConfig:
    """Return settings that prepare the sample in many shards and with one process.

    Args:
        changes: settings of the preparation that replace those of the returned config.
    """
    config = sample_config(corpora_dir)
    for name, value in {"workers": 1, "shard_characters": SHARD, **changes}.items():
        setattr(config, name, value)
    return config


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by its relative path."""
    files_of_folder = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): sha256_file(path) for path in files_of_folder}


def markers(corpora_dir: Path) -> dict[Path, int]:
    """Return when each shard was finished, in ns, by the path of the shard's marker file."""
    paths = (corpora_dir / ".sample.stages").glob("*/done-*.json")
    return {path: path.stat().st_mtime_ns for path in paths}
