"""The measures of benchmarks/line_style.py count correctly in made-up modules.

For this repository, each measure is within its bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import structure
from benchmarks.line_style import style_rows
from benchmarks.measures import Row


@dataclass(frozen=True)
class Case:
    """The source of a module, and the number of places that the measure `key` counts in it."""

    id: str
    key: str
    source: str
    count: int = 1


CASES = [
    Case("100 columns", "over 100", "#" * 100, 0),
    Case("101 columns", "over 100", "#" * 101),
    Case("111 columns", "over 110", "#" * 111),
    Case("skip in a function", "skips", "def f():\n    return [1, 2]  # fmt: skip"),
    Case("skip of a computed value", "skips", "a = [x for x in y]  # fmt: skip"),
    Case("skip of an operator", "skips", "a = [1 + b]  # fmt: skip"),
    Case("skip of a table", "skips", "A: dict[int, str] = {\n    1: f('a'), 2: B.c,\n}  # fmt: skip", 0),
    Case("ternary", "ternaries", "a = b if c else (d if e else f)", 2),
    Case("walrus", "walruses", "while a := f():\n    pass"),
    Case("tuple assignment", "tuple assignments", "a, b = 1, 2"),
    Case("unpacked call", "tuple assignments", "a, b = f()", 0),
    Case("one value", "tuple assignments", "shape = 1, 2", 0),
    Case(
        "what-clause of a docstring", "what-clauses", 'def f():\n    """What f returns. Who calls it."""', 2
    ),
    Case("what-clause of a comment", "what-clauses", "a = 1  # what a is"),
    Case("what-clause over two lines", "what-clauses", "# Ends here.\n# Whether a comment\n# goes on"),
    Case("question", "what-clauses", '"""What is this?"""', 0),
    Case("what inside a sentence", "what-clauses", "# counts what is lost", 0),
    Case("speech", "speech", '"""It says what it was told; the last word."""', 3),
    Case("speech in code", "speech", "say = 'told'", 0),
    Case("comments with code between", "speech", "# it says\na = 1\n# they say", 2),
]


def measure(root: Path, file: str, source: str) -> dict[str, Row]:
    (root / file).parent.mkdir(parents=True)
    (root / file).write_text(source, "utf-8")
    return {row.key: row for row in style_rows(root)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_measure_counts_its_places(tmp_path: Path, case: Case) -> None:
    row = measure(tmp_path, "tests/one.py", case.source)[case.key]
    assert (row.value > 0, len(row.places)) == (case.count > 0, case.count), row.places


def test_the_term_word_is_not_counted_in_data_prep(tmp_path: Path) -> None:
    rows = measure(tmp_path, "data_prep/one.py", "# words that say much")
    assert rows["speech"].places == ["data_prep/one.py:1 'say'"]


def test_rates_are_per_thousand_lines_and_words(tmp_path: Path) -> None:
    rows = measure(tmp_path, "src/one.py", "a = b if c else d\n" + "\n" * 99 + "# what four words here")
    assert (rows["ternaries"].value, rows["what-clauses"].value) == (round(1000 / 101, 2), 250.0)
    assert rows["over 100"].value == 0


def test_lines_and_words_of_the_readme(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Title\n\ntwo words\n", "utf-8")
    rows = {row.key: row.value for row in style_rows(tmp_path)}
    assert (rows["readme lines"], rows["readme words"]) == (3, 4)


@pytest.fixture(scope="module")
def repository() -> dict[str, Row]:
    return {row.key: row for row in style_rows(structure.ROOT)}


BOUNDS = {
    "over 100": 3.0,
    "skips": 0,
    "ternaries": 12.0,
    "tuple assignments": 5.0,
    "walruses": 3.0,
    "what-clauses": 0.2,
    "speech": 0.5,
    "readme lines": 110,
    "readme words": 900,
}


@pytest.mark.parametrize("key", BOUNDS)
def test_style_of_this_repository(repository: dict[str, Row], key: str) -> None:
    assert repository[key].value <= BOUNDS[key], "\n".join([str(repository[key]), *repository[key].places])
