"""Calls of the command line in a process that cannot import torch and other heavy packages.

`call` starts the process, and `main` runs in it. Each attempt to import one of the packages is
recorded and fails. Code that only checks whether a package is installed still finds it.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType

HEAVY = ("torch", "transformers", "deepspeed", "peft", "accelerate", "datasets", "mlflow")


@dataclass(frozen=True)
class Result:
    """The result of a call of the command line.

    Attributes:
        arguments: the call's arguments.
        code: exit code.
        output: stdout and stderr together.
        imports: the heavy modules that the call tried to import.
    """

    arguments: list[str]
    code: int
    output: str
    imports: list[str]


class ImportBlocker(MetaPathFinder, Loader):
    """An importer that records and refuses imports of the packages in HEAVY."""

    def __init__(self) -> None:
        self.imports: list[str] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name.partition(".")[0] in HEAVY else None

    def exec_module(self, module: ModuleType) -> None:
        self.imports.append(module.__name__)
        raise ModuleNotFoundError(f"No module named {module.__name__!r}", name=module.__name__)


def call(*calls: list[str], folder: Path, modules: Sequence[str] = ()) -> list[Result]:
    """Run calls of the command line in one process; return the result of each.

    Args:
        folder: the process's working directory.
        modules: names of modules in `folder`; for each, a verb of this name is added.
    """
    root = Path(__file__).parents[1]
    code = f"import sys; sys.path.append({str(root)!r}); from tests.without_torch import main; main()"
    command = [sys.executable, "-c", code, json.dumps(calls), *modules]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return [Result(**json.loads(line)) for line in done.stdout.splitlines()]


def main() -> None:
    blocker = ImportBlocker()
    sys.meta_path.insert(0, blocker)
    from finetune.cli import verbs
    from finetune.cli.main import main as finetune

    calls, *modules = sys.argv[1:]
    verbs.VERBS += tuple(verbs.Verb(name, "", "planted", module=name) for name in modules)
    for arguments in json.loads(calls):
        output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        code: object = None
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                finetune(arguments)
            except SystemExit as end:
                code = end.code
        output.seek(0)
        result = Result(arguments, int(str(code or 0)), output.read(), list(blocker.imports))
        blocker.imports.clear()
        print(json.dumps(asdict(result)))  # noqa: T201
