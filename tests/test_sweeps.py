"""Sweeps in a shell: what cancel, Ctrl-C, kill -9 and retry do to their points, and what is shown of each."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune.launch import end
from finetune.launch.observe import observe
from finetune.run_folder import RunFolder
from tests.models import LLAMA

RATES = "lr=1e-4,2e-4,3e-4,4e-4"


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


@dataclass
class Shell:
    """A folder in which sweeps are run whose ranks are stand-ins (local_sweep.py)."""

    folder: Path
    arguments: list[str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.local_sweep", *arguments]
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            command, cwd=self.folder, env={**os.environ, "PYTHONPATH": path}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err[-3000:]
        return out, err

    def sweep(self, *settings: str) -> subprocess.Popen[str]:
        """Start a sweep; its first point is at work."""
        process = self.start("train", "-m", *self.arguments, *settings)
        wait_for(lambda: [run for run in self.runs() if run.state() == "running"] or process.poll() is not None)
        return process

    def runs(self) -> list[RunFolder]:
        return sorted(RunFolder.all(self.folder / "runs"), key=lambda run: run.id)

    def states(self) -> list[str]:
        return [run.state() for run in self.runs()]

    def finish(self) -> None:
        (self.folder / "finish").touch()

    def table(self) -> list[dict[str, str]]:
        """The rows of the sweep's file."""
        (file,) = (self.folder / "runs" / "sweeps").glob("*/points.tsv")
        return list(csv.DictReader(file.open(), dialect="excel-tab"))


@pytest.fixture
def shell(tmp_path: Path, law_corpus: Path) -> Iterator[Shell]:
    (tmp_path / "my" / "model").mkdir(parents=True)
    (tmp_path / "my" / "model" / "tiny.yaml").write_text(json.dumps({"from_scratch": LLAMA}))
    arguments = ["--config-dir", "my", "model=tiny", "adapter=none", f"corpus={law_corpus}", "name=grid"]
    yield Shell(tmp_path, arguments)
    (tmp_path / "finish").touch()  # stand-ins that a failed test left


def test_cancel_takes_points_out_and_ctrl_c_ends_the_sweep_and_retry_takes_all_that_is_left(shell: Shell) -> None:
    process = shell.sweep(RATES.replace("lr=", "lr=5e-5,"))
    runs = shell.runs()
    sweep = str(runs[0].sweep())
    assert [run.id for run in runs] == [f"{sweep}-00{index}" for index in range(5)]
    assert [one.alive for one in observe(runs)] == [True] * 5
    assert "nothing to retry" in shell.run("retry", sweep)[1]

    assert [words for _, words in end.cancel([runs[2]], now=False)] == ["cancelled"]
    ((_, words),) = end.cancel([runs[0]], now=False)
    assert "after its next step" in words
    wait_for(lambda: shell.states() == ["stopped", "running", "cancelled", "queued", "queued"])

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert shell.states() == ["stopped", "stopped", "cancelled", "queued", "queued"]
    assert out.split() == [run.id for run in runs]
    assert err.startswith(f"sweep {sweep}: 5 points, one after the other on this machine")
    assert f"finetune retry {sweep}" in err
    assert not any(run.turn_holder() for run in runs)

    shell.finish()
    _, err = shell.run("retry", sweep)
    assert shell.states() == ["completed"] * 5
    assert f"summary of {sweep}-004" in err
    assert [row["lr"] for row in shell.table()] == ["4e-4", "3e-4", "2e-4", "1e-4", "5e-5"]
    assert [row["best"] for row in shell.table()] == ["best", "", "", "", ""]


def test_a_sweep_whose_shell_was_killed_goes_on_with_retry(shell: Shell) -> None:
    process = shell.sweep(RATES)
    process.kill()
    process.communicate()
    runs = shell.runs()
    assert [(one.state, one.alive) for one in observe(runs)] == [("running", True)] + [("queued", False)] * 3
    again = shell.start("retry", str(runs[0].sweep()))
    wait_for(lambda: runs[3].turn_holder())
    time.sleep(0.3)
    assert shell.states() == ["running", "queued", "queued", "queued"]
    shell.finish()
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert len(out.split()) == 4
    assert shell.states() == ["completed"] * 4


def test_cancel_of_a_sweep_ends_all_of_it(shell: Shell) -> None:
    process = shell.sweep(RATES)
    other = shell.start("train", *shell.arguments, "lr=1e-3", "name=other")
    wait_for(lambda: shell.states().count("running") == 2)
    _, err = shell.run("cancel", str(shell.runs()[0].sweep()))
    assert err.count(": cancelled") == 3
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert shell.states()[:4] == ["stopped", "cancelled", "cancelled", "cancelled"]
    shell.finish()
    _, err = other.communicate(timeout=60)
    assert f"this machine is shared: another run is at work here, and each will be slower: {shell.runs()[0].path}" in err
