"""Each warning is recorded once in the run folder, with its count and the ranks that logged it."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from finetune.cli.run_tables import print_warnings
from finetune.launch.follow import MOST_WARNINGS, _show_warnings
from finetune.runs import rank_warnings
from finetune.runs.folder import RunFolder
from finetune.runs.rank_warnings import Collector


@pytest.fixture
def collected(tmp_path: Path) -> Iterator[None]:
    """Record the warnings of this process as if it were rank 1."""
    with rank_warnings.collect(tmp_path, rank=1):
        yield


def test_only_warnings_of_this_code_base_and_its_libraries_are_collected(
    collected: None, tmp_path: Path
) -> None:
    library = logging.getLogger("transformers.modeling_utils")
    logging.getLogger("transformers").propagate = False  # transformers sets this
    library.warning("Some weights were newly initialized: %s", "lm_head.weight")
    logging.getLogger("finetune.training.run").warning("the grace time is too short")
    logging.getLogger("finetune.training.run").info("not this")
    logging.getLogger("urllib3").warning("nor this")
    logging.getLogger("peft").error("nor less than an error")
    assert rank_warnings.describe(tmp_path, world_size=2) == [
        "Some weights were newly initialized: lm_head.weight [rank 1]",
        "the grace time is too short [rank 1]",
        "nor less than an error [rank 1]",
    ]


def test_python_warnings_of_libraries_are_collected_unless_meant_for_developers(
    collected: None, tmp_path: Path
) -> None:
    place = "/venv/lib/python3.11/site-packages/peft/tuners/lora.py"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn_explicit("found missing adapter keys", UserWarning, place, 3)
        warnings.warn_explicit("will be renamed", FutureWarning, place, 4)
        warnings.warn_explicit("elsewhere", UserWarning, "/venv/lib/site-packages/pandas/io.py", 3)
    assert rank_warnings.describe(tmp_path, world_size=1) == ["peft: found missing adapter keys [rank 1]"]


def test_a_repeated_warning_is_one_record_with_a_count(collected: None, tmp_path: Path) -> None:
    for step in range(9):
        logging.getLogger("finetune.tracking.spool").warning("metrics of step %d are lost: disk full", step)
    (warning,) = rank_warnings.read(tmp_path)
    assert warning.describe(2) == "metrics of step 0 are lost: disk full [rank 1; 8 times]"
    assert len((tmp_path / "warnings-rank-1.jsonl").read_text().splitlines()) == 4


def test_the_same_warning_of_several_ranks_is_one_with_their_numbers(tmp_path: Path) -> None:
    for rank in range(4):
        Collector(tmp_path, rank).add("kind", "the tokenizer differs", float(rank))
    Collector(tmp_path, 2).add("other", "late", 9.0)
    assert rank_warnings.describe(tmp_path, 4) == ["the tokenizer differs [all 4 ranks]", "late [rank 2]"]
    assert rank_warnings.describe(tmp_path, 8)[0] == "the tokenizer differs [rank 0, 1, 2, 3]"


def test_the_number_and_length_of_warnings_are_bounded(tmp_path: Path) -> None:
    collector = Collector(tmp_path, 0)
    for number in range(1000):
        collector.add(f"kind {number}", "x" * 10_000, 1.0)
    found = rank_warnings.read(tmp_path)
    assert len(found) == rank_warnings.MAX_WARNINGS
    assert max(len(warning.text) for warning in found) < 600


def test_a_failed_write_or_an_incomplete_line_loses_no_other_warning(tmp_path: Path) -> None:
    Collector(tmp_path / "not there", 0).add("kind", "lost", 1.0)
    Collector(tmp_path, 0).add("kind", "kept", 1.0)
    with (tmp_path / "warnings-rank-0.jsonl").open("a") as file:
        file.write('{"kind": "to')
    assert rank_warnings.describe(tmp_path, 1) == ["kept"]


def test_a_followed_run_shows_new_warnings_and_its_status_the_first(
    make: Callable[..., RunFolder],
) -> None:
    run = make()
    console = Console(file=io.StringIO(), width=200)
    shown = set[str]()
    collector = Collector(run.jobs, 0)
    for number in range(30):
        collector.add(f"kind {number}", f"warning number {number}", float(number))
        _show_warnings(run, console, shown)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [f"warning: warning number {number}" for number in range(MOST_WARNINGS)]
    out = Console(file=io.StringIO(), width=200)
    print_warnings(out, run, most=2)
    print_warnings(out, run, most=0)
    assert out.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "mine: warning: warning number 0",
        "mine: warning: warning number 1",
        "mine: 28 more warnings: finetune logs mine",
        "mine: 30 warnings: finetune status mine",
    ]
    run.clear_attempt_files()
    assert run.warnings() == [], "warnings of the previous submission are left"
