"""Descriptions of mistakes in files (YAML syntax, encoding), and positions of keys in files."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from finetune.cli.call import Call

GLOBAL_HEADER = "# @package _global_"


def describe_yaml(fault: yaml.YAMLError) -> str:
    """Return the message for a mistake in a YAML file: its place, the problem and the remedy."""
    if isinstance(fault, yaml.reader.ReaderError):
        file = shown_path(Path(str(fault.name)))
        number = fault.position + 1
        return f"{file}: character {number} is not allowed in YAML; save the file as plain UTF-8 text"
    if not isinstance(fault, yaml.MarkedYAMLError):
        return one_line(fault)
    problem = " ".join((fault.problem or fault.context or "is not YAML").split())
    mark = fault.problem_mark or fault.context_mark
    problem = re.sub(r"^found duplicate key (.*)", r"key '\1' is set twice; remove one of them", problem)
    for pattern, (meaning, at_context) in _YAML_PROBLEMS.items():
        if pattern in f"{fault.context} {problem}":
            problem = meaning
            if at_context and fault.context_mark:
                mark = fault.context_mark
            break
    if mark is None:
        return problem
    return f"{shown_path(Path(mark.name))}, line {mark.line + 1}, column {mark.column + 1}: {problem}"


# Maps a part of PyYAML's message to our message, and to True if the mistake is where the element
# begins that PyYAML was reading (its context mark).
_YAML_PROBLEMS = {
    "found character '\\t'": ("tab in the indentation; indent with spaces", False),
    "while scanning a quoted scalar": ("the quote opened here is not closed; close it", True),
    "while parsing a flow": ("the bracket opened here is not closed, or a comma is missing inside it", True),
    "mapping values are not allowed here": (
        "unexpected colon or indentation; indent all keys of a mapping alike, and quote text with ': '",
        False,
    ),
    "could not find expected ':'": ("key without a colon; write key: value", True),
    "while scanning an alias": ("text that begins with * or & must be in quotes", True),
    "found character '@'": ("text that begins with @ must be in quotes", False),
    "found character '`'": ("text that begins with ` must be in quotes", False),
    "found character '%'": ("text that begins with % must be in quotes", False),
    "expected a single document": ("a second YAML document begins; remove the --- line", False),
    "while parsing a block": ("does not fit the lines above; indent all keys of a mapping alike", False),
    "could not determine a constructor": ("unknown tag; text that begins with ! must be in quotes", False),
}


def describe_encoding(fault: UnicodeDecodeError, call: Call) -> str:
    """Return the message for a file that is not UTF-8, with path and line if they can be found."""
    for folder in call.files.folders():
        for path in filter(Path.is_file, sorted(folder.rglob("*.yaml"))):
            content = path.read_bytes()
            if fault.object in content:
                line = content[: content.index(fault.object) + fault.start].count(b"\n") + 1
                return f"{shown_path(path)}, line {line}: not UTF-8; save the file as UTF-8"
    return f"a file is not UTF-8 ({one_line(fault)}); save it as UTF-8"


def one_line(fault: BaseException) -> str:
    """Return an exception's message in one line. Some messages of Hydra are replaced by ours."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    text = " ".join(lines)
    if isinstance(fault, OSError) and fault.filename is not None and fault.strerror:
        text = f"{fault.filename}: {fault.strerror[0].lower()}{fault.strerror[1:]}"
    if "Only one of --run, --multirun" in text:
        return "-m and --cfg cannot be combined; leave -m out to print one composed config"
    no_folder = re.search(r"Additional config directory '(.+)' not found", text)
    if no_folder:
        return f"--config-dir: folder {shown_path(Path(no_folder[1]))} does not exist"
    return text or type(fault).__name__


def shown_path(path: Path) -> str:
    """Return a path relative to the working directory; a path outside of it is unchanged."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def locate_key(file: Path, key: str) -> str:
    """Return the file, line and column of a key.

    If the file lacks the key, return the position of the innermost section around the key that the
    file has.
    """
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text)
    except (OSError, ValueError, yaml.YAMLError):
        return shown_path(file)
    parts = key.split(".")
    if GLOBAL_HEADER[2:] not in text and parts[:1] == [file.parent.name]:
        parts = parts[1:]  # Hydra puts the file's settings below the name of its group
    mark = getattr(node, "start_mark", None)
    for part in parts:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((name, value) for name, value in node.value if name.value == part), None)
        if found is None:
            break
        name, node = found
        mark = name.start_mark
    if mark is None:
        return shown_path(file)
    return f"{shown_path(file)}, line {mark.line + 1}, column {mark.column + 1}"


def line_of(file: Path, *words: str) -> str:
    """Return `, line N` for the first line that has all words before any comment; "" if none."""
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        text = line.partition("#")[0]
        if all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in words):
            return f", line {number}"
    return ""
