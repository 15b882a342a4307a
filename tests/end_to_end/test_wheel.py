"""The wheel contains the configs and the sample; an installed `finetune` needs no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end
REPOSITORY = Path(__file__).parents[2]


def test_an_installed_wheel_prepares_the_sample_and_composes_a_recipe(tmp_path: Path) -> None:
    source = tmp_path / "source"
    site = tmp_path / "site"
    work = tmp_path / "work"
    for name in ("src", "conf", "data_prep", "pyproject.toml", "README.md", "LICENSE"):
        path = REPOSITORY / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(path, source / name)
    shutil.rmtree(source / "src" / "finetune.egg-info", ignore_errors=True)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    work.mkdir()

    def finetune(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site)}
        command = [
            sys.executable,
            "-c",
            "import finetune.cli.main as cli; print(cli.__file__); cli.main()",
            *arguments,
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=work, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(site)), "the checkout was imported instead of the wheel"
        return done.stdout

    assert "peft_type: LORA" in finetune("train", "recipe=sample_lora", "model=run:x", "--cfg", "job")
    finetune("prepare", "corpus=sample")
    assert (work / "corpora" / "sample" / "manifest.json").is_file()
