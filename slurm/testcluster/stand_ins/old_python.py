"""Answers as an old Python: `old_python.py VERSION [-c CODE | -m MODULE | FILE] …`.

The real interpreter runs what the old one could: syntax, future features and modules that came later are refused,
in the code that is started and in all that it imports from outside of the standard library.
"""

import __future__

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import types
from pathlib import Path

NEW_MODULES = {"dataclasses": (3, 7), "contextvars": (3, 7), "zoneinfo": (3, 9), "graphlib": (3, 9), "tomllib": (3, 11)}
STANDARD_MODULES = (
    "argparse", "collections", "contextlib", "fcntl", "json", "pathlib", "platform", "shutil", "signal", "subprocess", "typing",
)  # fmt: skip
STANDARD_LIBRARY = str(Path(os.__file__).parent)


class OldVersion(tuple):
    """sys.version_info with its names."""

    major = property(lambda self: self[0])
    minor = property(lambda self: self[1])
    micro = property(lambda self: self[2])


def compiled(source, path, old):
    """Compile as the old Python would have; SyntaxError for what it did not know."""
    text = importlib.util.decode_source(source) if isinstance(source, bytes) else source
    tree = ast.parse(text, path, feature_version=old)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for name in node.names:
                if getattr(__future__, name.name).getOptionalRelease()[:2] > old:
                    raise SyntaxError(f"future feature {name.name} is not defined", (path, node.lineno, 1, text))
    return compile(text, path, "exec")


class OldLoader(importlib.machinery.SourceFileLoader):
    old = (3, 6)

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        return compiled(self.get_data(path), path, self.old)


class OldFinder(importlib.abc.MetaPathFinder):
    def __init__(self, old):
        self.old = old

    def find_spec(self, name, path=None, target=None):
        if NEW_MODULES.get(name, (0, 0)) > self.old and "." not in name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        origin = getattr(spec, "origin", None) or ""
        if origin.endswith(".py") and not origin.startswith(STANDARD_LIBRARY):
            spec.loader = OldLoader(name, origin)
            spec.loader.old = self.old
            return spec
        return None


def main():
    version = tuple(int(part) for part in sys.argv[1].split("."))
    old = version[:2]
    arguments = sys.argv[2:]
    if arguments and arguments[0] in ("-V", "--version"):
        print("Python " + sys.argv[1])
        return
    sys.path[:0] = [entry for entry in os.environ.get("PYTHONPATH", "").split(":") if entry]
    # as far as the standard library's own code needs it, these are imported before the version changes
    for name in STANDARD_MODULES:
        importlib.import_module(name)

    sys.version_info = OldVersion((*version, "final", 0))
    sys.version = re.sub(r"^\S+", sys.argv[1], sys.version)
    sys.hexversion = (version[0] << 24) | (version[1] << 16) | (version[2] << 8) | 0xF0
    sys.meta_path.insert(0, OldFinder(old))
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    if not arguments:
        source, path, sys.argv = sys.stdin.read(), "<stdin>", ["-"]
    elif arguments[0] == "-c":
        source, path, sys.argv = arguments[1], "<string>", ["-c", *arguments[2:]]
    elif arguments[0] == "-m":
        spec = importlib.util.find_spec(arguments[1])
        if spec is None:
            sys.exit(f"python3: No module named {arguments[1]}")
        path, sys.argv = spec.origin, [spec.origin, *arguments[2:]]
        module.__package__ = spec.parent
        source = Path(path).read_bytes()
    else:
        path, sys.argv = arguments[0], arguments
        sys.path.insert(0, str(Path(path).absolute().parent))
        source = Path(path).read_bytes()
    module.__file__ = path
    exec(compiled(source, path, old), module.__dict__)


main()
