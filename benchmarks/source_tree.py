"""Modules of a checkout as syntax trees, and their imports, for benchmarks/structure.py."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

SCOPE = ("src", "data_prep", "slurm", "benchmarks")

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Import:
    """An imported name.

    Attributes:
        local: the name in the importing module.
        source: the module that it is imported from.
        name: the name in that module; empty if the module itself is imported.
    """

    local: str
    source: str
    name: str

    @property
    def target(self) -> str:
        """The full name of the object that the local name refers to."""
        package = self.source.partition(".")[0]
        if self.name:
            return f"{self.source}.{self.name}"
        return package if self.local == package else self.source


@dataclass(frozen=True, eq=False)
class Module:
    """A source file, with the name by which it is imported."""

    name: str
    path: Path
    lines: list[str]
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    def at(self, node: ast.expr | ast.stmt, what: str) -> str:
        """Return the place of `node` in the source as text: `path:line what`."""
        return f"{self.path}:{node.lineno} {what}"

    def imports(self, type_checking: bool) -> Iterator[Import]:
        """Yield all imports, including those inside functions.

        Args:
            type_checking: True to include the imports under `if TYPE_CHECKING`.
        """
        waiting: list[ast.AST] = [self.tree]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(alias.asname or alias.name.partition(".")[0], alias.name, "")
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield Import(alias.asname or alias.name, self._source(node), alias.name)
            elif isinstance(node, ast.If) and _is_type_checking(node.test) and not type_checking:
                waiting += node.orelse
            else:
                waiting += ast.iter_child_nodes(node)

    def _source(self, node: ast.ImportFrom) -> str:
        """Return the full name of the module in a `from` import, relative or absolute."""
        if not node.level:
            return node.module or ""
        parents = self.name.split(".")
        if self.path.stem == "__init__":
            parents.append("")
        return ".".join([*parents[: -node.level], *filter(None, [node.module])])


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def read_modules(root: Path, scopes: Iterable[str] = SCOPE) -> list[Module]:
    """Return the modules in the source folders of `root`.

    Linked and hidden folders are left out.
    """
    modules = []
    for scope in scopes:
        for parent, folders, files in os.walk(root / scope):
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            modules += [_read(Path(parent, file), root) for file in sorted(files) if file.endswith(".py")]
    return modules


def _read(file: Path, root: Path) -> Module:
    text = file.read_text("utf-8")
    path = file.relative_to(root)
    parts = [part for part in path.with_suffix("").parts if part not in ("src", "__init__")]
    return Module(".".join(parts), path, text.splitlines(), ast.parse(text, str(path)))
