"""Write run folders as a submission does, without submitting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.config import train as configuration
from finetune.config.train import DataConfig, ModelConfig, TrainConfig
from finetune.runs.folder import RunFolder
from tests.models import LLAMA


def make_run_folder(
    runs_dir: Path, name: str = "mine", files: dict[str, dict[str, Any]] | None = None, **settings: Any
) -> RunFolder:
    """Write a run folder and return it.

    Args:
        files: content of JSON files, by file name without `.json`.
        settings: settings of the run's config.
    """
    run = RunFolder(runs_dir / name)
    run.jobs.mkdir(parents=True)
    config = TrainConfig(data=DataConfig(corpus="c"), model=ModelConfig(from_scratch=dict(LLAMA)), **settings)
    configuration.save(config, run.config_file)
    for file, body in {"provenance": {}, **(files or {})}.items():
        run.write_json(f"{file}.json", body)
    return run
