"""Folders of an earlier version still work: a corpus, completed and stopped runs, a queued job.

fixtures/folders-before-rooms.tar.xz contains these folders. Version 0.1.0 wrote them at commit
c8085ed, before the packages were split into subpackages. The paths in their files start with
/home/user. Four commands were run: `finetune prepare` (raw file, corpus and stages); `train` of a
base for 150 steps, whose checkpoints were removed; `train` of a LoRA on that base, stopped after
step 36; and `train cluster=testcluster`, with a stand-in for sbatch.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.commands import command
from tests.golden.record import cpu_kind

pytestmark = pytest.mark.end_to_end

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "folders-before-rooms.tar.xz"
BASE, STOPPED, QUEUED = (
    "old-base-20261128-115950-b975",
    "old-lora-20261128-120054-7726",
    "old-queued-20261128-120215-dfee",
)
BASE_LOSS = 4.838
RECORDED_ON = "AuthenticAMD 25 17, AVX512, torch 2.13.0+cpu"
# losses of steps 37 to 46, computed by the version that saved the checkpoint
RESUMED_LOSSES = [
    4.84041270377144, 4.801537161781674, 5.003505966702446, 4.8248337185572066, 4.8155467869743465,
    4.759646148908706, 4.814869865538582, 4.784047295176793, 4.805931006159101, 4.7577705421145,
]  # fmt: skip


@dataclass(frozen=True)
class OldFolders:
    """The unpacked folders, and the log of the programs that stand in for Slurm's commands."""

    path: Path
    slurm_log: Path

    def run(self, run_id: str) -> Path:
        return self.path / "runs" / run_id


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OldFolders:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "old", filter="data")
    folders = OldFolders(tmp_path / "old", tmp_path / "slurm.log")
    for path in [*folders.path.glob("runs/*/*.*"), folders.path / "corpora" / ".small.stages" / "plan.json"]:
        path.write_text(path.read_text().replace("/home/user", str(folders.path)))
    answers = {
        # the job has another name, so the run can be found by its job id only
        "squeue": "echo '4711|PENDING|Priority|N/A|0||a job of another name'",
        "sbatch": "echo 4712",
        "sinfo": "echo 'debug*|7-00:00:00|8'",
        "scancel": "",
        "scontrol": "",
        "sacct": "",
    }
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, answer in answers.items():
        program = programs / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> {folders.slurm_log}\n{answer}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    return folders


def losses(run: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        record["step"]: record["values"]["train/loss"]
        for record in records
        if "train/loss" in record["values"]
    }


def test_all_runs_are_listed_in_their_states(old: OldFolders) -> None:
    shown = command(old.path, "status").stdout
    rows = [line.split() for line in shown.splitlines()]
    states = {row[0]: row[1] for row in rows if row and row[0] in (BASE, STOPPED, QUEUED)}
    assert states == {BASE: "completed", STOPPED: "stopped", QUEUED: "queued"}


def test_a_stopped_run_resumes_with_the_losses_of_its_own_version(old: OldFolders) -> None:
    command(old.path, "resume", STOPPED, "max_steps=46")
    resumed = losses(old.run(STOPPED))
    tolerance = 1e-6 if cpu_kind() == RECORDED_ON else 1e-3
    assert [resumed[step] for step in range(37, 47)] == pytest.approx(RESUMED_LOSSES, abs=tolerance)
    assert json.loads((old.run(STOPPED) / "summary.json").read_text())["steps"] == 46


def test_a_completed_run_is_evaluated_on_its_corpus(old: OldFolders) -> None:
    shown = command(old.path, "evaluate", BASE).stderr
    row = next(line.split() for line in shown.splitlines() if line.split()[:1] == ["all"])
    assert float(row[-1]) == pytest.approx(BASE_LOSS, abs=0.002)


def test_runs_are_synced_to_mlflow(old: OldFolders) -> None:
    command(old.path, "sync")
    with sqlite3.connect(old.path / "runs" / "mlflow.db") as database:
        query = "select value from tags where key = 'finetune.run_id'"
        assert {value for (value,) in database.execute(query)} >= {BASE, STOPPED}
        (count,) = database.execute("select count(*) from metrics where key = 'train/loss'").fetchone()
    assert count == 150 + 36


def test_a_queued_job_is_cancelled_by_its_id_and_can_be_retried(old: OldFolders) -> None:
    command(old.path, "cancel", QUEUED)
    assert any(
        "4711" in line for line in old.slurm_log.read_text().splitlines() if line.startswith("scancel")
    )
    squeue = old.path.parent / "bin" / "squeue"
    squeue.write_text(squeue.read_text().replace("4711", "4712"))
    assert command(old.path, "retry", QUEUED).stdout.split() == [QUEUED]
    assert "sbatch" in old.slurm_log.read_text()


def test_a_prepared_corpus_is_not_prepared_again(old: OldFolders) -> None:
    sources = ("laws", "minutes", "consultation_replies", "letters")
    settings = [
        "corpus.name=small",
        "corpus.sources.guidance.path=guidance.jsonl",
        "corpus.tokenizer.vocab_size=400",
    ]
    arguments = [*settings, *(f"~corpus.sources.{source}" for source in sources)]
    before = (old.path / "corpora" / "small" / "manifest.json").stat().st_mtime_ns
    command(old.path, "prepare", "corpus=sample", *arguments)
    assert (old.path / "corpora" / "small" / "manifest.json").stat().st_mtime_ns == before
    shutil.rmtree(old.path / "corpora" / "small")  # the stages' files suffice to rebuild it
    shown = command(old.path, "prepare", "corpus=sample", *arguments).stderr
    assert "1 of 21 steps" in shown
