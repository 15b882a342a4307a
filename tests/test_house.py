"""No module imports a test module, and tests/README.md lists all modules and the tests of each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
FOLDERS = ["src", "data_prep", "benchmarks", "slurm", "tests"]
PYTHON = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
SOURCES = {"finetune": ROOT / "src", "hydra_plugins": ROOT / "src", "data_prep": ROOT}


def imported_names(source: str) -> Iterator[str]:
    """Yield the dotted paths of imported names, and the strings that start with `tests.`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and str(node.value).startswith("tests."):
            yield str(node.value)


def uses_of_test_modules(source: str) -> list[str]:
    """Return the names of test modules that a module's source imports or starts."""
    return [name for name in imported_names(source) if re.search(r"(^|\.)test_\w+", name)]


def test_no_module_imports_a_test_module() -> None:
    uses = {str(path.relative_to(ROOT)): uses_of_test_modules(path.read_text("utf-8")) for path in PYTHON}
    assert {path: names for path, names in uses.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from tests.test_a import b",
        "import tests.x.test_a",
        "from tests import test_a",
        "run('-m', 'tests.x.test_a')",
    ],
)
def test_an_import_of_a_test_module_is_found(source: str) -> None:
    assert len(uses_of_test_modules(source)) == 1


def paths_in_readme() -> set[str]:
    """Return the paths of files and folders that tests/README.md puts in backticks."""
    return set(re.findall(r"`([\w./]+(?:\.py|/))`", (TESTS / "README.md").read_text("utf-8")))


def is_test(path: str) -> bool:
    return Path(path).name.startswith("test_")


def is_listed(path: str, listed: set[str]) -> bool:
    """Return whether a path, or a folder that contains it, is in `listed`."""
    return path in listed or any(name.endswith("/") and path.startswith(name) for name in listed)


def test_every_module_is_listed_in_the_readme() -> None:
    modules = [
        str(path.relative_to(base))
        for package, base in SOURCES.items()
        for path in (base / package).rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert len(modules) > 100
    assert [path for path in modules if not is_listed(path, paths_in_readme())] == []


def test_every_test_module_and_helper_is_listed_in_the_readme() -> None:
    listed = paths_in_readme()
    for path in TESTS.rglob("*.py"):
        relative = str(path.relative_to(TESTS))
        if path.name == "__init__.py":
            continue
        if is_test(relative):
            assert relative in listed
        else:
            assert f"tests/{relative}" in listed


def test_every_path_in_the_readme_exists() -> None:
    for path in paths_in_readme():
        base = SOURCES.get(path.partition("/")[0], ROOT)
        if is_test(path):
            base = TESTS
        assert (base / path).exists(), path


def test_every_module_of_tests_has_a_docstring() -> None:
    for path in TESTS.rglob("*.py"):
        if path.name != "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path
