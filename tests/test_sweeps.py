"""Sweeps without Slurm: how they end and are retried, and the ids and values of their points.

Dry runs and tables of sweeps are also tested.
"""

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

from finetune.cli import main as cli
from finetune.cli import run_tables
from finetune.cli import train as train_command
from finetune.config import train as configuration
from finetune.config.points import Sweep, describe, short_names
from finetune.config.train import DataConfig, ModelConfig, TrainConfig
from finetune.launch import cancel, freeze, submit
from finetune.launch.observe import observe
from finetune.runs.folder import RunFolder
from tests.corpora import write_corpus
from tests.models import LLAMA

RunSweep = Callable[..., tuple[list[TrainConfig], Sweep]]
RATES = "lr=1e-4,2e-4,3e-4,4e-4"


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not true after {seconds} s"
        time.sleep(0.02)


@dataclass
class Shell:
    """A folder in which sweeps run; stand-ins replace the ranks (see local_sweep.py)."""

    folder: Path
    arguments: list[str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.local_sweep", *arguments]
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err[-3000:]
        return out, err

    def sweep(self, *settings: str) -> subprocess.Popen[str]:
        """Start a sweep; return its process when its first point runs or the process has ended."""
        process = self.start("train", "-m", *self.arguments, *settings)
        wait_for(
            lambda: [run for run in self.runs() if run.state() == "running"] or process.poll() is not None
        )
        return process

    def runs(self) -> list[RunFolder]:
        return sorted(RunFolder.all(self.folder / "runs"), key=lambda run: run.id)

    def states(self) -> list[str]:
        return [run.state() for run in self.runs()]

    def finish(self) -> None:
        (self.folder / "finish").touch()

    def table(self) -> list[dict[str, str]]:
        """Return the rows of the sweep's points.tsv."""
        (file,) = (self.folder / "runs" / "sweeps").glob("*/points.tsv")
        return list(csv.DictReader(file.open(), dialect="excel-tab"))


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    write_corpus(tmp_path / "corpora" / "laws", num_documents=20, longest=64, seed=1)
    (tmp_path / "my" / "model").mkdir(parents=True)
    (tmp_path / "my" / "model" / "tiny.yaml").write_text(json.dumps({"from_scratch": LLAMA}))
    arguments = ["--config-dir", "my", "model=tiny", "adapter=none", "corpus=laws", "name=grid"]
    yield Shell(tmp_path, arguments)
    (tmp_path / "finish").touch()  # end the stand-ins that a failed test has left


def test_cancel_stops_points_ctrl_c_stops_the_sweep_and_retry_completes_it(
    shell: Shell,
) -> None:
    process = shell.sweep(RATES.replace("lr=", "lr=5e-5,"))
    runs = shell.runs()
    sweep = str(runs[0].sweep())
    assert [run.id for run in runs] == [f"{sweep}-00{index}" for index in range(5)]
    assert [status.alive for status in observe(runs)] == [True] * 5
    assert "nothing to retry" in shell.run("retry", sweep)[1]

    assert [message for _, message in cancel.cancel([runs[2]], now=False)] == ["cancelled"]
    ((_, message),) = cancel.cancel([runs[0]], now=False)
    assert "after its next step" in message
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


def test_retry_continues_a_sweep_whose_shell_was_killed(shell: Shell) -> None:
    process = shell.sweep(RATES)
    process.kill()
    process.communicate()
    runs = shell.runs()
    assert [(status.state, status.alive) for status in observe(runs)] == [("running", True)] + [
        ("queued", False)
    ] * 3
    retry = shell.start("retry", str(runs[0].sweep()))
    wait_for(lambda: runs[3].turn_holder())
    time.sleep(0.3)
    assert shell.states() == ["running", "queued", "queued", "queued"]
    shell.finish()
    out, err = retry.communicate(timeout=60)
    assert retry.returncode == 0, err
    assert len(out.split()) == 4
    assert shell.states() == ["completed"] * 4


def test_cancel_of_a_sweep_ends_all_its_points(shell: Shell) -> None:
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
    assert f"another run is running on this machine, and both will be slower: {shell.runs()[0].path}" in err


# --- ids

CLAIM = """
import sys
from pathlib import Path
from finetune.launch import freeze
for _ in range(5000):
    print(freeze.claim_folder(Path(sys.argv[1]), freeze.new_id("run")).name)
"""


def test_ten_thousand_ids_from_two_processes_are_unique(tmp_path: Path) -> None:
    shells = [
        subprocess.Popen([sys.executable, "-c", CLAIM, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in "ab"
    ]
    ids = [name for shell in shells for name in shell.communicate(timeout=120)[0].split()]
    assert len(ids) == len(set(ids)) == 10_000
    assert {path.name for path in tmp_path.iterdir()} == set(ids)


def test_a_submission_whose_id_is_taken_gets_another_id(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "new_id", lambda name: f"{name}-20261128-120000-abcd")
    data = DataConfig(corpus=str(shell.folder / "corpora" / "laws"))
    config = TrainConfig(
        data=data, model=ModelConfig(from_scratch=dict(LLAMA)), runs_dir=str(shell.folder / "runs")
    )
    (first,) = freeze.freeze([config], None)
    (second,) = freeze.freeze([config], None)
    assert first.id == "run-20261128-120000-abcd"
    assert second.id.startswith("run-20261128-120000-abcd-")
    monkeypatch.setattr(
        configuration, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(ValueError, match="cannot be written"):
        freeze.freeze([config], None)
    assert shell.runs() == [first, second]
    assert sorted(path.name for path in (shell.folder / "runs").iterdir()) == [first.id, second.id]


# --- the values of a point

VALUES = [
    (["lr=1e-4,2e-4"], [{"lr": "1e-4"}, {"lr": "2e-4"}]),
    (["lr=1e-4,0.0002", "seed=7"], [{"lr": "1e-4"}, {"lr": "0.0002"}]),
    (["seed=range(0,3)"], [{"seed": "0"}, {"seed": "1"}, {"seed": "2"}]),
    (["zero=glob('stage[01]')"], [{"zero": "stage0"}, {"zero": "stage1"}]),
    (["model=tiny,other"], [{"model": "tiny"}, {"model": "other"}]),
    (["experiment='en, to','tre'"], [{"experiment": "en, to"}, {"experiment": "tre"}]),
    (
        ["data.include_sources=[laws],[laws,letters]"],
        [{"data.include_sources": "[laws]"}, {"data.include_sources": "[laws,letters]"}],
    ),
    (
        ["+cluster.env.A=b,c", "lr=choice(1e-3,1e-2)"],
        [{"cluster.env.A": a, "lr": lr} for a in "bc" for lr in ("1e-3", "1e-2")],
    ),
    (["recipe=params"], [{"seed": "1"}, {"seed": "2"}]),
]


@pytest.fixture
def swept(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> RunSweep:
    """Return a function that runs a sweep without submitting it, and returns its points."""
    monkeypatch.chdir(shell.folder)
    (shell.folder / "my" / "model" / "other.yaml").write_text(
        json.dumps({"from_scratch": {**LLAMA, "hidden_size": 64}})
    )

    (shell.folder / "my" / "recipe").mkdir()
    recipe = "# @package _global_\nhydra: {sweeper: {params: {seed: '1,2', max_steps: 9}}}\n"
    (shell.folder / "my" / "recipe" / "params.yaml").write_text(recipe)

    def sweep(*settings: str) -> tuple[list[TrainConfig], Sweep]:
        found = []

        def run_points(points: list[TrainConfig], sweep: Sweep, ignore_failures: bool = False) -> list[None]:
            found.append((points, sweep))
            return [None] * len(points)

        monkeypatch.setattr(train_command, "run_points", run_points)
        train_command.train(["-m", *shell.arguments, *settings])
        return found[0]

    return sweep


@pytest.mark.parametrize(("settings", "expected"), VALUES)
def test_a_point_has_the_swept_values_as_they_were_typed(
    swept: RunSweep, settings: list[str], expected: list[dict[str, str]]
) -> None:
    _, sweep = swept(*settings)
    assert sweep.points == expected


def test_points_are_composed_as_hydra_composes_them(swept: RunSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra_plugins.finetune_launcher import Composer

    settings = (
        "model=tiny,other",
        "zero=stage1,stage2",
        "lr=3e-3",
        "data.include_sources=[laws],[]",
        "max_steps=null,5",
        "+cluster.env.A=b",
        "model.from_scratch={num_hidden_layers: 1},{num_attention_heads: 2}",
    )
    ours, _ = swept(*settings)
    assert len({repr(point) for point in ours}) == 32
    monkeypatch.setattr(Composer, "compose", Composer._load)
    assert swept(*settings)[0] == ours


def test_a_label_contains_short_names_and_short_values() -> None:
    assert describe({"lr": "2e-4", "adapter.r": "16"}) == "lr=2e-4 r=16"
    assert (
        describe({"model.path": "/models/normistral-7b", "lr": "0.0003478123"})
        == "model=normistral-7b lr=0.000348"
    )
    assert short_names(["adapter.r", "other.r", "data.corpus"]) == {
        "adapter.r": "adapter.r",
        "other.r": "other.r",
        "data.corpus": "corpus",
    }


# --- tables

SWEEP = "normistral-20261128-080430-9c26"


def write_point(
    folder: Path, index: int, state: str, point: dict[str, str], loss: float | None = None
) -> RunFolder:
    """Write the run folder of a point of SWEEP.

    Args:
        index: number of the point.
        state: state of the point's run.
        point: the point's values, by key.
        loss: held-out loss of the run's result; None if it has no result.
    """
    run = RunFolder(folder / "runs" / f"{SWEEP}-{index:03d}")
    run.jobs.mkdir(parents=True)
    configuration.save(
        TrainConfig(data=DataConfig(corpus="c"), model=ModelConfig(from_scratch=dict(LLAMA))), run.config_file
    )
    run.write_json("provenance.json", {"sweep": SWEEP, "point": point, "scheduler": "local"})
    if state != "queued":
        run.write_json("outcome.json", {"state": state})
    if loss is not None:
        run.write_json("summary.json", {"before": {"loss": 5.0}, "after": {"loss": loss}})
        values = {"train/loss": loss, "train/num_steps": 2000, "train/tokens_per_second": 123456.0}
        run.metrics.write_text(json.dumps({"step": 2000, "time_ms": 0, "values": values}) + "\n")
    return run


@pytest.fixture
def points(tmp_path: Path) -> list[RunFolder]:
    values = [
        {"lr": lr, "adapter.r": r, "model.path": "/models/normistral-7b-warm"}
        for lr in ("1e-4", "2e-4")
        for r in "48"
    ]
    states = ["completed", "completed", "cancelled", "queued"]
    losses = [3.0, 2.5, None, None]
    return [
        write_point(tmp_path, index, state, point, loss)
        for index, (state, point, loss) in enumerate(zip(states, values, losses, strict=True))
    ]


def rows(runs: list[RunFolder], width: int) -> list[list[str]]:
    """Return the cells of a sweep's table on a terminal that is `width` columns wide."""
    from rich.console import Console

    out = Console(width=width, no_color=True, highlight=False)
    with out.capture() as captured:
        out.print(run_tables.sweep_table(SWEEP, observe(runs), 50, width))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    first = next(index for index, line in enumerate(lines) if line.startswith(("run ", "point ")))
    return [line.split() for line in lines[first:]]


def test_swept_values_are_columns_and_the_best_point_is_first(points: list[RunFolder]) -> None:
    head, *table = rows(points, 160)
    assert head == ["run", "lr", "r", "state", "step", "loss", "tok/s", "held-out", "loss"]
    assert table[0] == [
        points[1].id,
        "1e-4",
        "8",
        "completed",
        "2000/2000",
        "2.500",
        "123,456",
        "2.500",
        "best",
    ]
    assert [row[0] for row in table] == [points[index].id for index in (1, 0, 2, 3)]


def test_a_narrow_terminal_keeps_the_swept_values(points: list[RunFolder]) -> None:
    head, *table = rows(points, 64)
    assert head == ["point", "lr", "r", "state", "step", "loss", "held-out", "loss"]
    assert table[0][:4] == ["001", "1e-4", "8", "completed"]


def test_points_on_different_corpora_have_no_best(tmp_path: Path) -> None:
    runs = [
        write_point(tmp_path, i, "completed", {"data.corpus": corpus}, 2.0 + i)
        for i, corpus in enumerate("ab")
    ]
    assert not any("best" in row for row in rows(runs, 80))


# --- dry run


@pytest.mark.parametrize("cluster", ["local", "testcluster"])
@pytest.mark.parametrize("sweep", [[], ["-m", "lr=1e-4,2e-4"]])
def test_a_dry_run_checks_and_prints_but_writes_nothing(
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cluster: str,
    sweep: list[str],
) -> None:
    monkeypatch.chdir(shell.folder)
    for name in ("sbatch", "srun", "scontrol", "sinfo"):
        program = shell.folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shell.folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(submit, "_check_models", lambda points: None)
    before = sorted(shell.folder.rglob("*"))

    def dry_run(*settings: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", "--dry-run", *shell.arguments, *sweep, f"cluster={cluster}", *settings])
        return int(str(ended.value.code)), *capsys.readouterr()

    code, out, err = dry_run()
    assert code == 0, err
    assert ("#SBATCH --partition=debug" in out) == (cluster == "testcluster")
    assert ("#SBATCH --array=0-1%2" in out) == bool(cluster == "testcluster" and sweep)
    assert ("001    2e-4" in err) == bool(sweep)
    code, out, err = dry_run("seed=-1")
    assert (code, out) == (2, "")
    assert "seed is -1" in err
    assert "no corpus" in dry_run("corpus=none")[2]
    assert sorted(shell.folder.rglob("*")) == before
