"""LoRA on a real base model and real text; skipped unless FINETUNE_TEST_MODEL names a folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end
FINETUNE = Path(sys.executable).with_name("finetune")


@pytest.fixture
def model_folder() -> str:
    folder = os.environ.get("FINETUNE_TEST_MODEL")
    if not folder:
        pytest.skip("FINETUNE_TEST_MODEL is not set; set it to a model folder")
    return folder


def test_lora_on_real_text_lowers_the_held_out_loss(
    model_folder: str, real_corpora: Path, tmp_path: Path
) -> None:
    """The base's loss must be far below that of a uniform guess, and LoRA must lower it."""
    acts = sorted(
        (real_corpora / "lovdata" / "gjeldende-lover").glob("*.xml"), key=lambda path: path.stat().st_size
    )[:5]
    (tmp_path / "acts").mkdir()
    for act in acts:
        shutil.copy(act, tmp_path / "acts")
    _finetune(
        tmp_path,
        "prepare",
        "corpus=lovdata",
        f"corpus.sources.lovdata.path={tmp_path / 'acts'}",
        f"corpus.tokenizer.path={model_folder}",
        "corpus.split.validation_share=0.3",
    )
    _finetune(
        tmp_path,
        "train",
        "corpus=lovdata",
        f"model={model_folder}",
        "data.sequence_length=256",
        "micro_batch_size=1",
        "global_batch_size=1",
        "max_steps=20",
        "lr=2e-4",
        "checkpoint_every=0",
        "adapter.r=8",
        "zero=stage1",
    )
    summary = json.loads(next(tmp_path.glob("runs/*/summary.json")).read_text(encoding="utf-8"))
    manifest = json.loads((tmp_path / "corpora" / "lovdata" / "manifest.json").read_text(encoding="utf-8"))
    before, after = (summary[when]["loss"] for when in ("before", "after"))
    assert before < 0.5 * math.log(manifest["tokenizer"]["vocab_size"])
    assert after < before


def _finetune(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [str(FINETUNE), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
