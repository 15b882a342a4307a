"""Helpers that run `finetune` as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from finetune.runs.folder import RunFolder

FINETUNE = [sys.executable, "-m", "finetune.cli.main"]


def command(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*FINETUNE, *arguments], capture_output=True, text=True, cwd=folder, check=False, timeout=500
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stderr[-3000:]}"
    return done


def run_of(folder: Path, run_id: str) -> RunFolder:
    return RunFolder.find(run_id.strip(), folder / "runs")
