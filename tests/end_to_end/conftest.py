"""Fixture that runs the quick start once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.runs.folder import RunFolder
from tests.end_to_end.commands import command, run_of


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder, RunFolder]:
    """Run a shortened quick start: prepare a corpus, train a base from scratch, then a LoRA on it.

    Returns:
        The working directory, the run of the base, and the run of the LoRA.
    """
    folder = tmp_path_factory.mktemp("quickstart")
    command(folder, "prepare", "corpus=sample")
    base_arguments = ["recipe=sample_base", "max_steps=40", "global_batch_size=8", "micro_batch_size=4"]
    base = command(folder, "train", *base_arguments).stdout.strip()
    lora_arguments = ["recipe=sample_lora", f"model=run:{base}", "max_steps=60", "evaluate_every=30"]
    lora = command(folder, "train", *lora_arguments).stdout.strip()
    return folder, run_of(folder, base), run_of(folder, lora)
