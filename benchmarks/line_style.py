"""Measures of a checkout's style: its lines, and the English of its docstrings and comments.

benchmarks/structure.py prints these measures. They cover src, data_prep, slurm, benchmarks and
tests.

- A tuple assignment has a tuple on both sides (`a, b = x, y`).
- A table of data is a value that a module assigns to a name. It consists of constants, containers
  and calls.
- A what-clause is a sentence that begins with What, Who or Whether and is not a question.
- Speech is "say", "tell" and "word" in all their forms. data_prep counts words of texts, so "word"
  is not counted in data_prep and its tests.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measures import Row, counted, rate
from benchmarks.source_tree import FUNCTIONS, SCOPE, Module, read_modules

WIDE = 100
MAX_COLUMNS = 110
SKIP = "# fmt: skip"

WORD = re.compile(r"[A-Za-zæøåÆØÅ'_-]+")
SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+|\n\s*\n")
WHAT_CLAUSE = re.compile(r"\W*(what|whatever|who|whoever|whether)\b[^?]*$", re.IGNORECASE)
SPEECH = re.compile(r"\b(say|says|said|saying|tell|tells|told|telling)\b", re.IGNORECASE)
SPEECH_AND_WORDS = re.compile(rf"{SPEECH.pattern}|\bwords?\b", re.IGNORECASE)

CONTAINERS = (ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Call)
LEAVES = (ast.Constant, ast.Name, ast.Attribute, ast.JoinedStr)
DATA = (*CONTAINERS, *LEAVES, ast.keyword, ast.Starred, ast.UnaryOp, ast.unaryop, ast.expr_context)


@dataclass(frozen=True)
class Prose:
    """A docstring, or the comments of adjacent lines."""

    line: int
    text: str


def style_rows(root: Path) -> Iterator[Row]:
    """Yield the measures of lines, statements and prose in `root`, and the size of its README."""
    modules = read_modules(root, (*SCOPE, "tests"))
    yield from width_rows(modules)
    yield from statement_rows(modules)
    yield from prose_rows(modules)
    readme = root / "README.md"
    text = readme.read_text("utf-8") if readme.exists() else ""
    yield Row("readme lines", "README.md, lines", len(text.splitlines()))
    yield Row("readme words", "README.md, words", len(text.split()))


def width_rows(modules: list[Module]) -> Iterator[Row]:
    lines = [
        (f"{module.path}:{number}", line) for module in modules for number, line in enumerate(module.lines, 1)
    ]
    for columns in (WIDE, MAX_COLUMNS):
        places = [place for place, line in lines if len(line) > columns]
        yield rate(f"over {columns}", f"lines over {columns} columns, %", places, len(lines), per=100)
    skips = [place for place, line in lines if line.endswith(SKIP)]
    tables = {place for module in modules for place in table_ends(module)}
    yield counted(
        "skips", "fmt: skip outside tables of data", [place for place in skips if place not in tables]
    )
    yield counted(
        "skipped tables", "fmt: skip of a table of data", [place for place in skips if place in tables]
    )


def table_ends(module: Module) -> Iterator[str]:
    """Yield the place of the last line of each table of data."""
    for statement in module.tree.body:
        value = getattr(statement, "value", None)
        if isinstance(statement, ast.Assign | ast.AnnAssign) and value is not None and is_data(value):
            yield f"{module.path}:{statement.end_lineno}"


def is_data(value: ast.expr) -> bool:
    """Return True for a container or call built only from constants, names, containers and calls."""
    return isinstance(value, CONTAINERS) and all(isinstance(node, DATA) for node in ast.walk(value))


def statement_rows(modules: list[Module]) -> Iterator[Row]:
    num_lines = sum(len(module.lines) for module in modules)
    kinds: dict[str, Callable[[ast.AST], bool]] = {
        "ternaries": lambda node: isinstance(node, ast.IfExp),
        "tuple assignments": is_tuple_assignment,
        "walruses": lambda node: isinstance(node, ast.NamedExpr),
    }
    for kind, is_kind in kinds.items():
        places = [
            f"{module.path}:{node.lineno}"
            for module in modules
            for node in ast.walk(module.tree)
            if isinstance(node, ast.expr | ast.stmt) and is_kind(node)
        ]
        yield rate(kind, f"{kind} per 1,000 lines", places, num_lines, per=1000)


def is_tuple_assignment(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign):
        return False
    return isinstance(node.value, ast.Tuple) and any(isinstance(target, ast.Tuple) for target in node.targets)


def prose_rows(modules: list[Module]) -> Iterator[Row]:
    num_words = 0
    clauses: list[str] = []
    speech: list[str] = []
    for module in modules:
        pattern = SPEECH if "data_prep" in module.path.parts else SPEECH_AND_WORDS
        for prose in prose_of(module):
            place = f"{module.path}:{prose.line}"
            num_words += len(WORD.findall(prose.text))
            sentences = SENTENCE_END.split(prose.text)
            clauses += [f"{place} {sentence[:80]!r}" for sentence in sentences if WHAT_CLAUSE.match(sentence)]
            speech += [f"{place} {match.group()!r}" for match in pattern.finditer(prose.text)]
    yield rate("what-clauses", "what-clauses per 1,000 words of prose", clauses, num_words, per=1000)
    yield rate("speech", "say, tell, word per 1,000 words of prose", speech, num_words, per=1000)


def prose_of(module: Module) -> Iterator[Prose]:
    """Yield the docstrings and comments of a module."""
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield Prose(getattr(node, "lineno", 1), docstring)
    lines = iter([f"{line}\n" for line in module.lines])
    block: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(lambda: next(lines, "")):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] > block[-1].start[0] + 1:
                yield join_comments(block)
                block = []
            block.append(token)
    if block:
        yield join_comments(block)


def join_comments(block: list[tokenize.TokenInfo]) -> Prose:
    return Prose(block[0].start[0], " ".join(token.string.lstrip("#: ") for token in block))
