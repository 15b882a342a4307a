"""Mistakes in files as one line: YAML that cannot be read, encodings, and where in a file a key stands."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from finetune.cli.call import Call

GLOBAL_HEADER = "# @package _global_"


def describe_yaml(fault: yaml.YAMLError) -> str:
    """Return the file, line and column of a mistake in a YAML file, and what it is."""
    if isinstance(fault, yaml.reader.ReaderError):
        file = shown_path(Path(str(fault.name)))
        return (
            f"{file}: character {fault.position + 1} cannot stand in YAML; save the file as plain UTF-8 text"
        )
    if not isinstance(fault, yaml.MarkedYAMLError):
        return one_line(fault)
    problem = " ".join((fault.problem or fault.context or "is not YAML").split())
    mark = fault.problem_mark or fault.context_mark
    problem = re.sub(r"^found duplicate key (.*)", r"key '\1' stands twice; take one of them out", problem)
    for words, (meaning, at_context) in _YAML_PROBLEMS.items():
        if words in f"{fault.context} {problem}":
            problem = meaning
            mark = fault.context_mark if at_context and fault.context_mark else mark
            break
    if mark is None:
        return problem
    return f"{shown_path(Path(mark.name))}, line {mark.line + 1}, column {mark.column + 1}: {problem}"


# messages of PyYAML -> ours, and whether the mistake is where the element began that it was reading
_YAML_PROBLEMS = {
    "found character '\\t'": ("a tab; indent with spaces", False),
    "while scanning a quoted scalar": ("a quote that is opened here is not closed", True),
    "while parsing a flow": (
        "a bracket that is opened here is not closed, or a comma is missing in it",
        True,
    ),
    "mapping values are not allowed here": (
        "a colon or an indentation that does not fit; indent keys of one mapping alike, and quote a text that holds ': '",
        False,
    ),
    "could not find expected ':'": ("a key without a colon; write key: value", True),
    "while scanning an alias": ("a text that begins with * or & stands in quotes", True),
    "found character '@'": ("a text that begins with @ stands in quotes", False),
    "found character '`'": ("a text that begins with ` stands in quotes", False),
    "found character '%'": ("a text that begins with % stands in quotes", False),
    "expected a single document": ("a second document begins; a file holds one, without --- lines", False),
    "while parsing a block": ("does not fit the lines above; indent keys of one mapping alike", False),
    "could not determine a constructor": (
        "an unknown tag; a text that begins with ! stands in quotes",
        False,
    ),
}


def describe_encoding(fault: UnicodeDecodeError, call: Call) -> str:
    for folder in call.files.folders():
        for path in sorted(folder.rglob("*.yaml")):
            if path.is_file() and fault.object in (content := path.read_bytes()):
                line = content[: content.index(fault.object) + fault.start].count(b"\n") + 1
                return f"{shown_path(path)}, line {line}: is not UTF-8; save the file in that encoding"
    return f"a file is not UTF-8 ({one_line(fault)}); save it in that encoding"


def one_line(fault: BaseException) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    text = " ".join(lines)
    if isinstance(fault, OSError) and fault.filename is not None and fault.strerror:
        text = f"{fault.filename}: {fault.strerror[0].lower()}{fault.strerror[1:]}"
    if "Only one of --run, --multirun" in text:
        return "-m and --cfg exclude each other; leave -m out to print one composed config"
    no_folder = re.search(r"Additional config directory '(.+)' not found", text)
    if no_folder:
        return f"--config-dir: folder {shown_path(Path(no_folder[1]))} does not exist"
    return text or type(fault).__name__


def shown_path(path: Path) -> str:
    """Return a path relative to the working directory where it lies below it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def locate_key(file: Path, key: str) -> str:
    """Return the file with the line and column of a key, as far as the key is there."""
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text)
    except (OSError, ValueError, yaml.YAMLError):
        return shown_path(file)
    parts = key.split(".")
    if GLOBAL_HEADER[2:] not in text and parts[:1] == [file.parent.name]:
        parts = parts[1:]  # what the file holds goes below the name of its group
    mark = node.start_mark if node else None
    for part in parts:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((name, value) for name, value in entries if name.value == part), None)
        if found is None:
            break
        mark, node = found[0].start_mark, found[1]
    return f"{shown_path(file)}, line {mark.line + 1}, column {mark.column + 1}" if mark else shown_path(file)


def line_of(file: Path, *words: str) -> str:
    """Return `, line N` of the first line of a file that holds the words, comments left out; nothing if none
    does."""
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        text = line.partition("#")[0]
        if all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in words):
            return f", line {number}"
    return ""
