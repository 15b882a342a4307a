"""Submission from login nodes whose Python runs only in a wrapper, or lacks torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from slurm.testcluster.wrapped import INNER, wrap
from tests.login_node import LOGIN_NODE
from tests.slurm.conftest import Shell, training, wait_for

pytestmark = pytest.mark.slurm


def test_a_wrapped_python_submits_jobs_that_start_the_wrapper(shell: Shell, tmp_path: Path) -> None:
    commands = wrap(tmp_path / "wrapped")
    submitted = shell.run(str(commands / "finetune"), "train", *training("max_steps=1", "name=wrapped"))
    (run,) = shell.runs(submitted.stdout)
    script = (run.jobs / "submit.sh").read_text()
    assert not INNER.exists()
    assert str(INNER) not in script
    assert f"{commands}/python3 -u -m submitit.core._submit" in script
    assert "\n    python3 -m finetune.job.batch_script" in script, (
        "the helper must run outside the wrapper, where scontrol is"
    )
    wait_for(lambda: run.state() == "completed", seconds=120)


def test_a_login_node_without_torch_submits_cancels_and_retries(shell: Shell) -> None:
    def call(*calls: list[str]) -> list[str]:
        done = shell.run(sys.executable, "-c", LOGIN_NODE, json.dumps(calls))
        lines = done.stdout.splitlines()
        assert {line for line in lines if line.startswith("exit")} == {"exit 0"}, done.stderr
        return lines

    with shell.closed():
        run_id, _ = call(["train", *training(f"cluster.python={sys.executable}", "name=login")])
        (run,) = shell.runs(run_id)
        seen = call(
            ["status", run_id], ["cancel", run_id], ["retry", run_id], ["status", run_id], ["cancel", run_id]
        )
    rows = [line.split() for line in seen if line.strip().startswith(run_id)]
    assert [row[1] for row in rows if len(row) > 1] == ["queued"] * 2
    assert json.loads((run.path / "provenance.json").read_text())["packages"]["torch"] is None
    assert not shell.queue()
