"""ARCHITECTURE.md names existing files and functions, and lists functions in the order of calls."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
PACKAGES = ("src/finetune", "data_prep")
STEP = re.compile(r"(\d+)\. `([\w/]+\.py)` `([\w.]+)`: ")
PATH = re.compile(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:py|md|toml))`")
JOURNEYS = 4


@dataclass(frozen=True)
class Step:
    """A numbered line of ARCHITECTURE.md: a function or class, and its file."""

    file: Path
    name: str

    def __str__(self) -> str:
        return f"{self.file} {self.name}"

    def uses(self) -> set[str]:
        """Return all names and attributes that the function's or class's code uses."""
        node: ast.AST = ast.parse((ROOT / self.file).read_text("utf-8"))
        for part in self.name.split("."):
            found = [child for child in ast.iter_child_nodes(node) if getattr(child, "name", "") == part]
            assert found, f"{self} does not exist"
            node = found[0]
        names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
        return names | {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)}


def find_file(path: str) -> Path:
    """Find a file or folder that ARCHITECTURE.md names; return its path in the repository.

    Args:
        path: path in ARCHITECTURE.md, relative to the repository or to a package.
    """
    candidates = [Path(path), *(Path(package, path) for package in PACKAGES)]
    found = [candidate for candidate in candidates if (ROOT / candidate).exists()]
    assert found, f"{path} does not exist"
    return found[0]


def read_chains(page: str) -> list[list[Step]]:
    """Return the numbered lists of ARCHITECTURE.md."""
    chains: list[list[Step]] = []
    for line in page.splitlines():
        if step := STEP.match(line):
            if step[1] == "1":
                chains.append([])
            assert int(step[1]) == len(chains[-1]) + 1, f"wrong number: {line}"
            chains[-1].append(Step(find_file(step[2]), step[3]))
    return chains


CHAINS = read_chains(PAGE.read_text("utf-8"))


def test_the_page_has_four_journeys_and_each_line_of_a_list_is_a_step() -> None:
    text = PAGE.read_text("utf-8")
    assert text.count("\n### ") == JOURNEYS
    assert len(re.findall(r"^\d+\. ", text, re.MULTILINE)) == sum(map(len, CHAINS))
    assert len(CHAINS) > 2 * JOURNEYS


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: str(chain[0]))
def test_each_function_is_called_by_one_above_it(chain: list[Step]) -> None:
    used = chain[0].uses()
    for step in chain[1:]:
        assert step.name.rpartition(".")[2] in used, f"{step} is not called by a function above it"
        used |= step.uses()


def test_every_path_on_the_page_exists() -> None:
    for path in PATH.findall(PAGE.read_text("utf-8")):
        if not path.startswith(("runs/<", "corpora/")):
            find_file(path)


def test_every_folder_of_the_package_is_on_the_page() -> None:
    text = PAGE.read_text("utf-8")
    folders = {path.name for path in (ROOT / "src/finetune").iterdir() if (path / "__init__.py").exists()}
    assert {f"`{folder}/`" for folder in folders - {"conf"}} <= set(re.findall(r"`\w+/`", text))
