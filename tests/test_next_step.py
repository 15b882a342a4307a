"""For a run that ended without a result, the advice is a command that helps and can be pasted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune.cli import main as cli
from finetune.cli.next_step import describe_next_step
from finetune.launch.observe import Observed
from finetune.runs.folder import RunFolder
from tests.corpora import write_corpus

MISTAKE = {"failure-rank-0": {"time": 1.0, "rank": 0, "kind": "mistake", "error": "…"}}
TYPED = {"provenance": {"command": ["finetune", "train", "recipe=mine", "name=a b"]}}


@dataclass
class Case:
    id: str
    state: str
    expected: str
    reason: str = ""
    files: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    has_checkpoint: bool = False


CASES = [
    Case("stopped", "stopped", "resume it: finetune resume mine", has_checkpoint=True),
    Case("dead with a checkpoint", "dead", "resume it: finetune resume mine", has_checkpoint=True),
    Case(
        "dead before its first checkpoint",
        "dead",
        "it has no checkpoint; after removing the cause, start it again: finetune retry mine",
    ),
    Case(
        "stopped before its first checkpoint",
        "stopped",
        "it has no checkpoint; start it again: finetune retry mine",
    ),
    Case("cancelled in the queue", "cancelled", "it has not started; resubmit it: finetune retry mine"),
    Case(
        "a point of a sweep",
        "failed",
        "resubmit the failed runs of its sweep: finetune retry sweep-1",
        has_checkpoint=True,
        files={"provenance": {"sweep": "sweep-1"}},
    ),
    Case(
        "a mistake",
        "failed",
        "correct the setting and start a new run: finetune train recipe=mine 'name=a b'",
        "model.attention=flash_attention_2: not on a CPU",
        {**MISTAKE, **TYPED},
        has_checkpoint=True,
    ),
    Case(
        "a mistake in a setting that a run may change",
        "failed",
        "resume with another cluster.ranks_per_node: finetune resume mine cluster.ranks_per_node=…",
        "cluster.ranks_per_node is 4, but 2 GPUs are visible",
        MISTAKE,
    ),
    Case(
        "a mistake whose message recommends a value",
        "failed",
        "finetune resume mine on_bad_step=rewind",
        "step 3: lower lr, or set on_bad_step=rewind",
        MISTAKE,
        has_checkpoint=True,
    ),
    Case(
        "a job without a usable Python",
        "failed",
        "finetune resume mine cluster.host_python=…",
        "Slurm ended the job: FAILED: the host's Python is older than 3.8; "
        "name a newer one in cluster.host_python",
    ),
    Case(
        "a missing corpus",
        "failed",
        "correct this, then start the run again: finetune retry mine",
        "corpus x does not exist",
        MISTAKE,
    ),
    Case(
        "out of memory",
        "failed",
        "resume with less memory: finetune resume mine micro_batch_size=2",
        "rank 0: GPU memory ran out (CUDA out of memory)",
        settings={"micro_batch_size": 4, "global_batch_size": 8},
    ),
    Case(
        "out of memory with one row at a time",
        "failed",
        "start a new run that needs less memory, as with zero=stage3",
        "rank 0: killed because host memory ran out",
        TYPED,
        settings={"micro_batch_size": 1, "global_batch_size": 8},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_advice_suits_the_end_of_the_run(
    make: Callable[..., RunFolder], case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(files=case.files, **case.settings)
    monkeypatch.chdir(run.path.parent.parent)
    if case.has_checkpoint:
        (run.checkpoints / "step-00000003").mkdir(parents=True)
    assert case.expected in describe_next_step(Observed(run, case.state, alive=False, reason=case.reason))


def test_the_advice_names_a_corpus_that_was_prepared_anew(
    make: Callable[..., RunFolder], tmp_path: Path
) -> None:
    from finetune.config.train import DataConfig, load, save

    run = make(files={"inputs": {"corpus": "another digest", "base": None}, **TYPED})
    config = load(run.config_file)
    config.data = DataConfig(
        corpus=str(write_corpus(tmp_path / "corpus", num_documents=4, longest=8, seed=0))
    )
    save(config, run.config_file)
    (run.checkpoints / "step-00000003").mkdir(parents=True)
    assert describe_next_step(Observed(run, "dead", alive=False)).startswith(
        "the corpus has been prepared again since the run started"
    )


def test_the_command_names_the_runs_folder_if_it_is_not_the_default(
    make: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(files={"outcome": {"state": "interrupted", "reason": "SIGTERM"}})
    monkeypatch.chdir("/usr")
    assert run.command("retry") == f"finetune retry --runs-dir {run.path.parent} mine"
    with pytest.raises(SystemExit):
        cli.main(["status", "--runs-dir", str(run.path.parent), "mine"])
    assert f"finetune retry --runs-dir {run.path.parent} mine" in capsys.readouterr().out
    monkeypatch.chdir(run.path.parent)
    assert run.command("resume") == "finetune resume --runs-dir . mine"
