"""The measures of benchmarks/structure.py have the right values on a made-up package.

For this repository, each measure is within its bound.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import structure
from benchmarks.measures import Row

CONFIG = """\
from dataclasses import dataclass

@dataclass
class DataConfig:
    length: int

@dataclass
class TrainConfig:
    data: DataConfig
"""
RUN = '''\
"""completed"""
import finetune.models.build as model
from finetune.config.train import TrainConfig
from finetune.training import hook

class Run:
    def __init__(self, config: TrainConfig) -> None:
        self.config = config

def train(config: TrainConfig) -> None:
    """Train: `failed`."""
    run = set_up(config)
    hook.hook(run)

def set_up(config: TrainConfig) -> Run:
    model.build(config.data)
    return Run(config)
'''
HOOK = """\
from typing import TYPE_CHECKING
from finetune.config.train import TrainConfig
if TYPE_CHECKING:
    from finetune.training.run import Run

def hook(run: "Run") -> None:
    pass
"""
BUILD = """\
from finetune.config.train import DataConfig

def build(data: DataConfig) -> None:
    pass
"""
PACKAGE = {
    "src/finetune/__init__.py": "",
    "src/finetune/config/train.py": CONFIG,
    "src/finetune/training/__init__.py": "",
    "src/finetune/training/run.py": RUN,
    "src/finetune/training/hook.py": HOOK,
    "src/finetune/models/__init__.py": "",
    "src/finetune/models/build.py": BUILD,
    "data_prep/__init__.py": "",
}
# Values of PACKAGE. The stops are train, set_up and Run.__init__; the stop calls are
# set_up(config) and Run(config).
VALUES = {
    "rooms": 3,
    "floors": 3,
    "arrows": 3,
    "upward": 0,
    "cycles of src/finetune": 0,
    "cycles of data_prep": 0,
    "states": 0,
    "metrics": 0,
    "dicts of src": 0,
    "dicts of data_prep": 0,
    "longest function": 4,
    "long functions": 0,
    "long files": 0,
    "stops": 3,
    "stop calls": 2,
}
BUILD_FILE, HOOK_FILE = "src/finetune/models/build.py", "src/finetune/training/hook.py"


@dataclass(frozen=True)
class Case:
    """Text that is appended to a file of the package, and the measures that it changes.

    If the text defines a name again, the new definition counts, as in Python.
    """

    id: str
    file: str
    text: str
    changed: dict[str, float]


CASES = [
    Case(
        "import inside a function",
        BUILD_FILE,
        "def late():\n    from finetune.training import run",
        {"cycles of src/finetune": 1, "arrows": 4, "upward": 2, "floors": 2},
    ),
    Case(
        "import for type checking",
        BUILD_FILE,
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from finetune.training import run",
        {},
    ),
    Case(
        "flat room",
        "src/finetune/top.py",
        "from .training import run",
        {"rooms": 4, "floors": 4, "arrows": 4},
    ),
    Case("module that imports itself", "data_prep/one.py", "from . import one", {}),
    Case("state", BUILD_FILE, "state = 'failed'", {"states": 1}),
    Case("state in its module", "src/finetune/runs/state.py", "FAILED = 'failed'", {"rooms": 4}),
    Case("state in a longer string", BUILD_FILE, "states = ['it failed', f'{1}failed', f'failed{1}']", {}),
    Case("state in data_prep", "data_prep/one.py", "state = 'failed'", {}),
    Case("metric", BUILD_FILE, "name = 'train/loss'", {"metrics": 1}),
    Case("metric with a variable part", BUILD_FILE, "name = f'data/{build}'", {"metrics": 1}),
    Case("metric in its module", "src/finetune/tracking/names.py", "LOSS = 'train/loss'", {"rooms": 4}),
    Case("path with a metric's prefix inside", BUILD_FILE, "path = 'corpora/train/loss'", {}),
    Case(
        "dict[str, Any] inside annotations",
        BUILD_FILE,
        "def f(a: dict[str, dict[str, Any]], *b: 'dict[str, Any]') -> dict[str, int]:\n    c: dict[str, Any]",
        {"dicts of src": 3},
    ),
    Case("dict[str, Any] of data_prep", "data_prep/one.py", "a: dict[str, Any]", {"dicts of data_prep": 1}),
    Case("dict[str, Any] outside annotations", "data_prep/one.py", "a = cast(dict[str, Any], 1)", {}),
    Case("function of 80 lines", "data_prep/one.py", "def f():\n" + "    a\n" * 79, {"longest function": 80}),
    Case(
        "function of 81 lines",
        "data_prep/one.py",
        "def f():\n" + "    a\n" * 80,
        {"longest function": 81, "long functions": 1},
    ),
    Case("file of 500 lines", "slurm/one.py", "a\n" * 500, {}),
    Case("file of 501 lines", "slurm/one.py", "a\n" * 501, {"long files": 1}),
    Case(
        "config of the run passed whole",
        HOOK_FILE,
        "def hook(run: Run):\n    check(run.config)\n\ndef check(it: object): ...",
        {"stops": 5, "stop calls": 3},
    ),
    Case(
        "config passed whole in a nested function",
        HOOK_FILE,
        "def hook(run: Run):\n    def later():\n        check(it=run.config)\n\ndef check(it: object): ...",
        {"stops": 5, "stop calls": 3},
    ),
    Case(
        "config passed whole to a method",
        HOOK_FILE,
        "class Engine:\n    def step(self, config: TrainConfig | None): ...\n\n"
        "def engine() -> Engine: ...\n\n"
        "def hook(run: Run):\n    made = engine()\n    made.step(run.config)",
        {"stops": 5, "stop calls": 3},
    ),
    Case(
        "part of the config passed",
        HOOK_FILE,
        "def hook(run: Run):\n    check(run.config.data)\n\ndef check(it): ...",
        {},
    ),
    Case("config passed to another package", HOOK_FILE, "def hook(run: Run):\n    print(run.config)", {}),
    Case("function out of reach", HOOK_FILE, "def other(config: TrainConfig):\n    other(config)", {}),
]


def write_package(root: Path, case: Case | None = None) -> Path:
    files = dict(PACKAGE)
    if case:
        files[case.file] = files.get(case.file, "") + case.text
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


def values_of(rows: list[Row]) -> dict[str, float]:
    return {row.key: row.value for row in rows if row.key in VALUES}


def test_structure_of_the_package_without_a_fault(tmp_path: Path) -> None:
    assert values_of(structure.measure(write_package(tmp_path))) == VALUES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_each_measure_counts_its_planted_fault_alone(tmp_path: Path, case: Case) -> None:
    assert values_of(structure.measure(write_package(tmp_path, case))) == VALUES | case.changed


def test_the_longest_file_is_named(tmp_path: Path) -> None:
    case = Case("long", "data_prep/one.py", "a\n" * 500, {})
    rows = {row.key: row for row in structure.measure(write_package(tmp_path, case))}
    assert str(rows["longest file"]) == "500 data_prep/one.py"


def test_a_second_function_train_is_an_error(tmp_path: Path) -> None:
    case = Case("second train", HOOK_FILE, "def train(config: TrainConfig): ...", {})
    with pytest.raises(ValueError, match="must have one function train"):
        structure.measure(write_package(tmp_path, case))


def test_a_revision_is_printed_beside_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_package(tmp_path)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "-m", "before"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    write_package(root, Case("state", BUILD_FILE, "state = 'failed'", {}))
    arguments = ["--root", str(root), "--beside", "HEAD"]
    structure.main([*arguments, "--verbose"])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [cell.strip() for cell in lines[0]] == ["what", "before", "after"]
    assert ["0", "1"] in [[cell.strip() for cell in line[1:]] for line in lines]
    assert [f"  {BUILD_FILE}:5 'failed'"] in lines
    structure.main([*arguments, "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert (printed["before"]["states"]["value"], printed["after"]["states"]["value"]) == (0, 1)


def test_an_unknown_revision_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        structure.main(["--root", str(write_package(tmp_path)), "--beside", "no-such-revision"])
    assert capsys.readouterr().err.startswith("--beside: 'no-such-revision' is no folder and no revision")


@pytest.fixture(scope="module")
def repository() -> dict[str, Row]:
    return {row.key: row for row in structure.measure(structure.ROOT)}


BOUNDS = {
    "upward": 0,
    "cycles of src/finetune": 0,
    "cycles of data_prep": 0,
    "states": 0,
    "metrics": 0,
    "dicts of src": 10,
    "dicts of data_prep": 5,
    "longest function": 80,
    "longest file": 500,
}


@pytest.mark.parametrize("key", BOUNDS)
def test_structure_of_this_repository(repository: dict[str, Row], key: str) -> None:
    assert repository[key].value <= BOUNDS[key], "\n".join([str(repository[key]), *repository[key].places])
