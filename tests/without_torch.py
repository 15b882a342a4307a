"""Runs the command line in a process where each import of torch, or of a package that imports it, fails.

`call` starts the process, and `main` runs in it. Failed imports are recorded. The packages have import
specs, so that code that looks for them finds them installed.
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
class CallResult:
    """The result of a call.

    Attributes:
        imports: heavy modules that it tried to import.
    """

    arguments: list[str]
    code: int
    output: str
    imports: list[str]


class FailingImporter(MetaPathFinder, Loader):
    """An importer of the heavy modules that records each import and fails."""

    def __init__(self) -> None:
        self.imports: list[str] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name.partition(".")[0] in HEAVY else None

    def exec_module(self, module: ModuleType) -> None:
        self.imports.append(module.__name__)
        raise ModuleNotFoundError(f"No module named {module.__name__!r}", name=module.__name__)


def call(*calls: list[str], folder: Path, modules: Sequence[str] = ()) -> list[CallResult]:
    """Run calls of the command line in one process, and return their results.

    Args:
        folder: working directory of the process, from which modules can be imported too.
        modules: modules in `folder` that are added as verbs of the same names.
    """
    root = Path(__file__).parents[1]
    code = f"import sys; sys.path.append({str(root)!r}); from tests.without_torch import main; main()"
    command = [sys.executable, "-c", code, json.dumps(calls), *modules]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return [CallResult(**json.loads(line)) for line in done.stdout.splitlines()]


def main() -> None:
    importer = FailingImporter()
    sys.meta_path.insert(0, importer)
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
        result = CallResult(arguments, int(str(code or 0)), output.read(), list(importer.imports))
        importer.imports.clear()
        print(json.dumps(asdict(result)))  # noqa: T201
