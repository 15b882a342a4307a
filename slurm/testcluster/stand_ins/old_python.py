"""Stand-in for an old Python: `old_python.py VERSION [-c CODE | -m MODULE | FILE] …`.

The current interpreter runs the program, but refuses syntax, future features and modules that the
old version lacks. This holds for the program, and for its imports outside the standard library.
"""

from __future__ import annotations
import __future__ as future_features

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path

NEW_MODULES = {
    "dataclasses": (3, 7),
    "contextvars": (3, 7),
    "zoneinfo": (3, 9),
    "graphlib": (3, 9),
    "tomllib": (3, 11),
}
# Modules that are imported before the version is changed, because they read sys.version_info.
FIRST = [
    "argparse", "collections", "contextlib", "fcntl", "json", "pathlib", "platform", "shutil", "signal",
    "subprocess", "typing",
]  # fmt: skip
STANDARD_LIBRARY = str(Path(os.__file__).parent)


class OldVersion(tuple[object, ...]):
    """A replacement for sys.version_info, with its named fields."""

    major = property(lambda self: self[0])
    minor = property(lambda self: self[1])
    micro = property(lambda self: self[2])


def compile_as(source: bytes, path: str, old: tuple[int, int]) -> types.CodeType:
    """Compile source code for this Python, if the old Python could compile it, too.

    Args:
        old: major and minor version of the old Python.

    Raises:
        SyntaxError: the code uses syntax or a future feature that the old Python lacks.
    """
    text = importlib.util.decode_source(source)
    tree = ast.parse(text, path, feature_version=old)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for name in node.names:
                if getattr(future_features, name.name).getOptionalRelease()[:2] > old:
                    raise SyntaxError(
                        f"future feature {name.name} is not defined", (path, node.lineno, 1, text)
                    )
    code: types.CodeType = compile(text, path, "exec")
    return code


class OldLoader(importlib.machinery.SourceFileLoader):
    """A loader of modules. It refuses code that the old Python cannot compile."""

    def __init__(self, name: str, path: str, old: tuple[int, int]) -> None:
        super().__init__(name, path)
        self.old = old

    def get_code(self, fullname: str) -> types.CodeType:
        return compile_as(self.get_data(self.path), self.path, self.old)


class OldFinder(importlib.abc.MetaPathFinder):
    """A finder of modules. It does not find the modules that the old Python lacks."""

    def __init__(self, old: tuple[int, int]) -> None:
        self.old = old

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if NEW_MODULES.get(fullname, (0, 0)) > self.old:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if (
            spec is None
            or not spec.origin
            or not spec.origin.endswith(".py")
            or spec.origin.startswith(STANDARD_LIBRARY)
        ):
            return None
        spec.loader = OldLoader(fullname, spec.origin, self.old)
        return spec


def become(version: str) -> tuple[int, int]:
    """Make this interpreter report another version; return its major and minor number."""
    for name in FIRST:
        importlib.import_module(name)
    major, minor, micro = (int(part) for part in version.split("."))
    sys.version_info = OldVersion((major, minor, micro, "final", 0))  # type: ignore[assignment]
    sys.version = re.sub(r"^\S+", version, sys.version)
    sys.hexversion = (major << 24) | (minor << 16) | (micro << 8) | 0xF0
    sys.meta_path.insert(0, OldFinder((major, minor)))
    return major, minor


def read_program(arguments: list[str]) -> tuple[bytes, str]:
    """Return source and path of the program that the arguments name; set sys.argv for it."""
    if not arguments:
        sys.argv = ["-"]
        return sys.stdin.buffer.read(), "<stdin>"
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        return arguments[1].encode(), "<string>"
    path = arguments[0]
    if path == "-m":
        spec = importlib.util.find_spec(arguments[1])
        if spec is None or spec.origin is None:
            sys.exit(f"python3: No module named {arguments[1]}")
        path = spec.origin
        arguments = arguments[1:]
    else:
        sys.path.insert(0, str(Path(path).absolute().parent))
    sys.argv = [path, *arguments[1:]]
    return Path(path).read_bytes(), path


def main() -> None:
    version, *arguments = sys.argv[1:]
    if arguments and arguments[0] in ("-V", "--version"):
        print(f"Python {version}")
        return
    sys.path[:0] = [entry for entry in os.environ.get("PYTHONPATH", "").split(":") if entry]
    old = become(version)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    source, path = read_program(arguments)
    module.__dict__["__file__"] = path
    exec(compile_as(source, path, old), module.__dict__)


if __name__ == "__main__":
    main()
