"""Print measures of the structure and the style of a checkout.

    python -m benchmarks.structure [--root FOLDER] [--beside FOLDER_OR_REVISION] [--json] [--verbose]

The source is parsed but not run, so that any revision can be measured. The column "before" is the
revision or folder given as --beside. --verbose lists all places that were counted.

A room is a folder of src/finetune, or a module directly in src/finetune. An arrow leads
from a room to a room that it imports. Imports inside functions count, but not those for type
checking only. The number of floors is the number of rooms in the longest chain in which each room
imports the next; a cycle counts as one room. An arrow counts as upward if its two rooms are in one
cycle. benchmarks/config_stops.py defines a stop of the config, and benchmarks/line_style.py defines
the measures of style.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TypeAlias

from benchmarks.config_stops import find_stops
from benchmarks.line_style import style_rows
from benchmarks.measures import Row, counted
from benchmarks.source_tree import FUNCTIONS, Function, Module, read_modules

STATES = ("queued", "running", "completed", "failed", "cancelled", "stopped", "interrupted", "dead")
METRIC = re.compile("(train|validation|data|guard|checkpoint|result|time)/")
STATES_OWNER = "finetune.runs.state"
METRICS_OWNER = "finetune.tracking.names"
MAX_FUNCTION = 80
MAX_FILE = 500

ROOT = Path(__file__).parents[1]

Graph: TypeAlias = dict[str, set[str]]


def measure(root: Path) -> list[Row]:
    """Return all measures of the checkout in `root`."""
    modules = read_modules(root)
    finetune = [module for module in modules if module.package == "finetune"]
    rows = [*import_rows(modules, finetune), *literal_rows(modules, finetune)]
    return [*rows, *length_rows(modules), *stop_rows(finetune), *style_rows(root)]


def import_rows(modules: list[Module], finetune: list[Module]) -> Iterator[Row]:
    rooms = room_graph(finetune)
    chain = longest_chain(rooms)
    arrows = [(source, target) for source, targets in rooms.items() for target in sorted(targets)]
    upward = [arrow for arrow in arrows if any(set(arrow) <= set(cycle) for cycle in cycles(rooms))]
    yield counted("rooms", "rooms of src/finetune", rooms)
    yield Row("floors", "floors of src/finetune", len(chain), places=[" > ".join(chain)])
    yield counted("arrows", "arrows between rooms", map(" > ".join, arrows))
    yield counted("upward", "arrows that run upward", map(" > ".join, upward))
    data_prep = [module for module in modules if module.package == "data_prep"]
    for package, members in (("src/finetune", finetune), ("data_prep", data_prep)):
        found = map(" - ".join, cycles(import_graph(members)))
        yield counted(f"cycles of {package}", f"import cycles between modules of {package}", found)


def literal_rows(modules: list[Module], finetune: list[Module]) -> Iterator[Row]:
    literals = [(module, node, text) for module in finetune for node, text in strings(module.tree)]
    states = [
        module.at(node, repr(text))
        for module, node, text in literals
        if text in STATES and isinstance(node, ast.Constant) and module.name != STATES_OWNER
    ]
    metrics = [
        module.at(node, ast.unparse(node))
        for module, node, text in literals
        if METRIC.match(text) and module.name != METRICS_OWNER
    ]
    yield counted("states", "literals of run states outside runs/state.py", states)
    yield counted("metrics", "metric names outside tracking/names.py", metrics)
    for folder, packages in (("src", ("finetune", "hydra_plugins")), ("data_prep", ("data_prep",))):
        dicts = [
            module.at(annotation, ast.unparse(annotation))
            for module in modules
            if module.package in packages
            for annotation in annotation_nodes(module.tree)
            for _ in range(ast.unparse(annotation).count("dict[str, Any]"))
        ]
        yield counted(f"dicts of {folder}", f"dict[str, Any] in annotations of {folder}", dicts)


def length_rows(modules: list[Module]) -> Iterator[Row]:
    functions = [
        (length(node), module.at(node, node.name))
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, FUNCTIONS)
    ]
    files = [(len(module.lines), str(module.path)) for module in modules]
    for kind, lengths, limit in (("function", functions, MAX_FUNCTION), ("file", files, MAX_FILE)):
        longest, name = max(lengths, default=(0, ""))
        long = [f"{place}: {lines} lines" for lines, place in lengths if lines > limit]
        yield Row(f"longest {kind}", f"longest {kind}, lines", longest, name)
        yield counted(f"long {kind}s", f"{kind}s of more than {limit} lines", long)


def stop_rows(finetune: list[Module]) -> Iterator[Row]:
    stops = find_stops(finetune)
    yield counted("stops", "stops of the config from train on", stops.functions)
    yield counted("stop calls", "calls from train on that pass it whole", stops.calls)


def import_graph(modules: Iterable[Module]) -> Graph:
    """Return, for the name of each module, the names of the other `modules` that it imports.

    Imports for type checking only are not counted.
    """
    by_name = {module.name: module for module in modules}
    graph: Graph = {name: set() for name in by_name}
    for module in by_name.values():
        for one in module.imports(type_checking=False):
            submodule = f"{one.source}.{one.name}"
            graph[module.name].add(submodule if submodule in by_name else one.source)
    return {name: (targets & set(by_name)) - {name} for name, targets in graph.items()}


def room_graph(modules: list[Module]) -> Graph:
    """Return, for each room of a package, the other rooms that it imports.

    A room is a folder of the package, or a module directly in the package.
    """
    rooms = {module.name: module.name.split(".")[1] for module in modules if "." in module.name}
    graph: Graph = {room: set() for room in sorted(rooms.values())}
    for name, targets in import_graph(modules).items():
        if name in rooms:
            graph[rooms[name]] |= {rooms[target] for target in targets if target in rooms} - {rooms[name]}
    return graph


def cycles(graph: Graph) -> list[list[str]]:
    """Return each group of two or more nodes that can all reach each other, in sorted order."""
    reach = {node: reachable(graph, node) for node in graph}
    components = {tuple(sorted(other for other in reach[node] if node in reach[other])) for node in graph}
    return [list(component) for component in sorted(components) if len(component) > 1]


def reachable(graph: Graph, node: str) -> set[str]:
    found: set[str] = set()
    waiting = [node]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def longest_chain(graph: Graph) -> list[str]:
    """Return the longest path along the edges of `graph`, with at most one node of each cycle.

    If several paths are longest, return one of them.
    """
    cycle_of = {node: cycle for cycle in cycles(graph) for node in cycle}

    @cache
    def chain(node: str) -> list[str]:
        together = cycle_of.get(node, [node])
        beneath = {target for one in together for target in graph[one]} - set(together)
        return [node, *max(map(chain, sorted(beneath)), key=len, default=[])]

    return max(map(chain, graph), key=len, default=[])


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes of a tree, in the order of the source."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from walk(child)


def strings(tree: ast.Module) -> Iterator[tuple[ast.expr, str]]:
    """Yield the strings of the code except docstrings, each with its text.

    For an f-string, the text is its beginning.
    """
    left_out: set[ast.expr] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            left_out.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            left_out.update(node.values)
    for node in walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in left_out:
            yield node, node.value
        elif isinstance(node, ast.JoinedStr) and node.values and isinstance(node.values[0], ast.Constant):
            yield node, str(node.values[0].value)


def annotation_nodes(tree: ast.Module) -> Iterator[ast.expr]:
    """Yield the annotations of parameters, return values and variables."""
    for node in walk(tree):
        annotation = node.returns if isinstance(node, FUNCTIONS) else getattr(node, "annotation", None)
        if annotation is not None:
            yield annotation


def length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def unpack(revision: str, repository: Path, folder: Path) -> Path:
    """Write the files of a revision of `repository` to `folder`.

    Raises:
        ValueError: `revision` does not exist.
    """
    command = ["git", "-C", str(repository), "archive", "--format=zip", revision]
    result = subprocess.run(command, check=False, capture_output=True)
    if result.returncode:
        reason = result.stderr.decode().strip()
        raise ValueError(f"--beside: '{revision}' is no folder and no revision of the checkout: {reason}")
    with zipfile.ZipFile(io.BytesIO(result.stdout)) as files:
        files.extractall(folder)
    return folder


def table(columns: dict[str, list[Row]]) -> str:
    """Return the measures as an aligned table, with one column for each checkout."""
    names = [row.what for row in next(iter(columns.values()))]
    cells = [["what", *names]]
    cells += [[title, *map(str, rows)] for title, rows in columns.items()]
    widths = [max(map(len, column)) for column in cells]
    return "\n".join(" | ".join(map(str.ljust, line, widths)).rstrip() for line in zip(*cells, strict=True))


def listing(title: str, rows: list[Row]) -> str:
    """List the places in the source that were counted for each measure; return the list as text.

    Args:
        title: title of the checkout's column; it is added to each measure's name.
        rows: the checkout's measures.
    """
    lines = []
    for row in rows:
        lines += ["", f"{row.what} ({title}): {row}", *(f"  {place}" for place in row.places)]
    return "\n".join(lines)


def measure_columns(root: Path, beside: str | None) -> dict[str, list[Row]]:
    """Measure one or two checkouts; return a column of measures for each, by column title.

    The title for `root` is "value", or "after" if `beside` is given. The title for `beside` is
    "before".

    Args:
        beside: another checkout to measure: a folder, or a git revision of `root`.
    """
    if beside is None:
        return {"value": measure(root)}
    if Path(beside).is_dir():
        return {"before": measure(Path(beside)), "after": measure(root)}
    with tempfile.TemporaryDirectory() as folder:
        before = measure(unpack(beside, root, Path(folder)))
    return {"before": before, "after": measure(root)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structure")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure (default: this one)")
    parser.add_argument("--beside", help="a folder, or a git revision of --root, to compare with")
    parser.add_argument("--json", action="store_true", help="print JSON, with all places")
    parser.add_argument("--verbose", action="store_true", help="list all places that were counted")
    given = parser.parse_args(arguments)
    try:
        columns = measure_columns(given.root, given.beside)
    except ValueError as fault:
        parser.exit(1, f"{fault}\n")
    if given.json:
        values = {title: {row.key: asdict(row) for row in rows} for title, rows in columns.items()}
        print(json.dumps(values, indent=2))
        return
    print(table(columns))
    if given.verbose:
        print("\n".join(listing(title, rows) for title, rows in columns.items()))


if __name__ == "__main__":
    main()
