"""The file names of a run folder are in one module only, and so are the states of a run.

Records of earlier versions can be read.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import finetune
from finetune.runs import attempts, layout, records, state
from finetune.runs.folder import RunFolder
from finetune.runs.records import Failure, Metrics, Outcome, Submission
from finetune.runs.state import MLFLOW_STATUS, RunState, StopReason
from finetune.tracking.names import TRAIN_LOSS

SOURCE = Path(str(finetune.__file__)).parent
PATTERNS = [
    getattr(layout, name)(*["*"] * count)
    for name, count in {
        "failure_of": 1,
        "warnings_of": 1,
        "stacks_of": 1,
        "rendezvous_of": 2,
        "next_of": 1,
        "pickle_of": 1,
        "log_of": 2,
    }.items()
]
NAMES = [value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str)]
# common words, such as "model", are file names only in a path
PLAIN_WORDS = [name for name in NAMES if name.isidentifier()]
# (file, literal): reason
ALLOWED_NAMES = {
    ("config/train.py", "manifest.json"): "a corpus has a manifest too",
    ("launch/prepare_jobs.py", "manifest.json"): "a corpus has a manifest too",
    ("cli/errors.py", "*/manifest.json"): "a corpus has a manifest too",
    ("cli/completion.py", "*/manifest.json"): "a corpus has a manifest too",
}
STATE_NAMES = {str(one) for kind in (RunState, state.EndingCause, state.JobState) for one in kind}
STATE_NAMES -= {"mistake"}
# (file, literal): reason
ALLOWED_STATE_NAMES: dict[tuple[str, str], str] = {}


@dataclass(frozen=True)
class Literal:
    """A string literal of a module.

    Attributes:
        text: the string; * stands for each value that an f-string inserts.
        in_path: True if the code builds a path from it.
    """

    file: str
    text: str
    line: int
    in_path: bool


def literals(source: str, file: str) -> Iterator[Literal]:
    """Yield the string literals of a module except docstrings.

    Args:
        source: the module's code.
        file: the module's path, which is copied into each literal.
    """
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        parent = parents.get(node)
        if isinstance(parent, ast.JoinedStr | ast.FormattedValue):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if isinstance(parent, ast.Expr):
                continue
            text = node.value
        elif isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
        else:
            continue
        yield Literal(file, text, node.lineno, _is_in_path(node, parent))


def _is_in_path(node: ast.AST, parent: ast.AST | None) -> bool:
    if isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Div):
        return parent.right is node
    is_call = isinstance(parent, ast.Call) and isinstance(parent.func, ast.Attribute)
    return is_call and parent.func.attr in ("glob", "joinpath", "with_name", "read_json", "write_json")  # type: ignore[union-attr]


def names_a_run_file(literal: Literal) -> bool:
    if re.search(r"\s", literal.text):  # a file name has no spaces
        return False
    parts = literal.text.split("/")
    if literal.in_path and set(parts) & set(PLAIN_WORDS):
        return True
    known = [*(name for name in NAMES if name not in PLAIN_WORDS), *PATTERNS, "step-*"]
    return any(
        part == name or (set(part) != {"*"} and fnmatch.fnmatch(part, name))
        for part in parts
        for name in known
    )


def all_literals(excluded: str) -> Iterator[Literal]:
    for path in sorted(SOURCE.rglob("*.py")):
        file = str(path.relative_to(SOURCE))
        if file != excluded:
            yield from literals(path.read_text(encoding="utf-8"), file)


def test_only_the_layout_module_spells_file_names_of_a_run_folder() -> None:
    found = [one for one in all_literals(excluded="runs/layout.py") if names_a_run_file(one)]
    assert [one for one in found if (one.file, one.text) not in ALLOWED_NAMES] == []
    assert {(one.file, one.text) for one in found} >= ALLOWED_NAMES.keys(), "an exception is unused"


def test_only_the_state_module_spells_states() -> None:
    found = [one for one in all_literals(excluded="runs/state.py") if one.text in STATE_NAMES]
    assert [one for one in found if (one.file, one.text) not in ALLOWED_STATE_NAMES] == []
    assert {(one.file, one.text) for one in found} >= ALLOWED_STATE_NAMES.keys(), "an exception is unused"


@pytest.mark.parametrize(
    "line",
    [
        'run.read_json("outcome.json")',
        'run / "jobs" / name',
        'folder.glob("step-*")',
        'f"failure-rank-{rank}.json"',
        'path / f"step-{step:08d}"',
        'runs.glob("*/config.yaml")',
        'jobs / f"{job}_submitted.pkl"',
        'run.path / ".lock"',
    ],
)
def test_a_spelled_file_name_is_found(line: str) -> None:
    assert any(map(names_a_run_file, literals(line, "x.py")))


@pytest.mark.parametrize(
    "line", ['"the run has no outcome.json yet"', '{"model": 1}', 'mode = "stop"', 'f"{a}_{b}"']
)
def test_other_strings_are_not_taken_for_file_names(line: str) -> None:
    assert not any(map(names_a_run_file, literals(line, "x.py")))


def test_the_submission_of_an_earlier_version_is_read_until_the_run_is_submitted_again(
    tmp_path: Path,
) -> None:
    """Versions before November 2026 named the submission's file attempt.json."""
    run = RunFolder(tmp_path)
    (tmp_path / "attempt.json").write_text(
        '{"job_id": "7", "host": "login1", "scheduler": "slurm", "code": "ab"}'
    )
    assert run.submission() == Submission("7", "login1", "slurm", "ab")
    records.move_submission(tmp_path, "8", "node1")
    assert run.submission() == Submission("8", "login1", "slurm", "ab")
    run.clear_attempt_files()
    assert run.submission() is None
    assert not list(tmp_path.glob("*.json"))


def test_a_resubmission_by_the_code_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """A queued job's helper runs the code of its submission, which may be an earlier version."""
    Submission("7", "login1", "slurm", "ab").write(tmp_path / "submission.json")
    (tmp_path / "attempt.json").write_text('{"job_id": "9"}')
    os.utime(tmp_path / "attempt.json", (2e9, 2e9))
    assert records.read_submission(tmp_path) == Submission("9", "login1", "slurm", "ab")
    os.utime(tmp_path / "attempt.json", (1e9, 1e9))
    assert records.read_submission(tmp_path) == Submission("7", "login1", "slurm", "ab")


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"state"', '"stopped"'])
def test_an_invalid_record_is_an_error_or_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "outcome.json"
    path.write_text(content)
    assert Outcome.read_or_none(path) is None
    if content != "null":
        with pytest.raises(ValueError):  # noqa: PT011
            Outcome.read(path)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    outcome = Outcome(RunState.STOPPED, asked_by="a stop file")
    outcome.write(tmp_path / "outcome.json")
    assert json.loads((tmp_path / "outcome.json").read_text()) == {
        "state": "stopped",
        "asked_by": "a stop file",
    }
    assert Outcome.read(tmp_path / "outcome.json") == outcome
    metrics = Metrics(1, 2, {TRAIN_LOSS: 0.5})  # metric names are of a subclass of str
    assert json.dumps(metrics.to_json()) == '{"step": 1, "time_ms": 2, "values": {"train/loss": 0.5}}'
    assert Failure.from_json({"rank": 1, "error": "x", "of a later version": 1}) == Failure(rank=1, error="x")


def test_a_reader_never_sees_a_part_of_a_file_with_several_writers(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            layout.write_json(tmp_path / "a.json", {"number": number, "text": "x" * 10_000})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        body = layout.read_json(tmp_path / "a.json")
        assert body is None or len(body["text"]) == 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    layout.write_text(tmp_path / "a", "old")

    def fill_the_disk() -> None:
        with layout.replace_atomically(tmp_path / "a") as temporary:
            temporary.write_text("ne")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_an_incomplete_line_does_not_damage_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 1}\n{"n": ')
    layout.append_json_line(path, {"n": 3})
    assert layout.read_json_lines(path) == [{"n": 1}, {"n": 3}]
    assert layout.read_json_lines(path, tail=12) == [{"n": 3}]
    assert layout.read_json_lines(tmp_path / "none") == []


def test_a_checkpoint_is_named_by_its_step(tmp_path: Path) -> None:
    for name in ("step-00000012", "step-00000100", ".step-00000200.tmp", "broken-step-00000300-1", "step-x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    found = layout.list_checkpoints(tmp_path / "checkpoints")
    assert [layout.step_of(path) for path in found] == [100, 12]
    assert [layout.checkpoint_name(layout.step_of(path)) for path in found] == [path.name for path in found]
    assert layout.newest_step(tmp_path) == 100


def test_each_state_has_a_status_in_mlflow_and_is_alive_or_ended() -> None:
    assert set(MLFLOW_STATUS) == set(RunState)
    assert {*state.ALIVE_STATES, *state.ENDED_STATES} == set(RunState)
    assert not set(state.ALIVE_STATES) & set(state.ENDED_STATES)
    assert f"{RunState.DEAD}" == str(RunState.DEAD) == "dead"


def test_a_users_request_is_the_highest_stop_reason() -> None:
    assert max(StopReason) is StopReason.STOPPED
    assert [reason.state for reason in StopReason] == [
        RunState.COMPLETED,
        RunState.INTERRUPTED,
        RunState.STOPPED,
    ]


def test_an_ending_is_read_as_it_was_written(tmp_path: Path) -> None:
    ending = attempts.Ending(state.EndingCause.DEAD_NODE, 1, 2, 1, "n1 went down", ("n1",))
    attempts.begin(tmp_path, "7", ["n1"], 1.0, 1)
    attempts.end(tmp_path, 1, ending, "dead node", 2.0)
    assert attempts.read(tmp_path)[0].ending == ending
