"""The values that settings may take, read from the checks in the dataclasses that declare them.

The checks are calls of `at_least`, `between`, `one_of` and `all_among` of data_prep/fields.py, such
as `at_least("max_steps", self.max_steps, 1)`, or `at_least(f"limits.{name}", …, 1)` in a loop.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

CHECKS = ("at_least", "between", "one_of", "all_among")


def allowed_values(schema: type[Any]) -> dict[str, str]:
    """Return, for each setting that a dataclass checks, a description of its allowed values."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(schema)))
    namespace = vars(sys.modules[schema.__module__])
    allowed = {}
    for call, loop_names in _calls(tree, {}):
        for key in _keys(call.args[0], loop_names):
            allowed[key.rpartition(".")[2]] = _describe(call, namespace)
    return allowed


def _calls(
    node: ast.AST, loop_names: dict[str, list[str]]
) -> Iterator[tuple[ast.Call, dict[str, list[str]]]]:
    """Yield each call of a function in CHECKS, with the values of the loop variables around it.

    Args:
        loop_names: for each loop variable around `node`, the strings that it takes.
    """
    if isinstance(node, ast.For) and isinstance(node.target, ast.Name) and isinstance(node.iter, ast.Tuple):
        strings = [str(item.value) for item in node.iter.elts if isinstance(item, ast.Constant)]
        loop_names = {**loop_names, node.target.id: strings}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CHECKS:
        yield node, loop_names
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, loop_names)


def _keys(argument: ast.expr, loop_names: dict[str, list[str]]) -> list[str]:
    """Return the names of the settings in the first argument of a check.

    Args:
        argument: a string, a loop variable, or an f-string that ends with either.
        loop_names: for each loop variable around the check, the strings that it takes.
    """
    if isinstance(argument, ast.Constant):
        return [str(argument.value)]
    if isinstance(argument, ast.Name):
        return loop_names.get(argument.id, [])
    if isinstance(argument, ast.JoinedStr):
        last = argument.values[-1]
        if isinstance(last, ast.FormattedValue) and isinstance(last.value, ast.Name):
            return loop_names.get(last.value.id, [])
        if isinstance(last, ast.Constant):
            return [str(last.value)]
    return []


def _describe(call: ast.Call, namespace: dict[str, Any]) -> str:
    """Return a description, for readers of the page, of the values that a check allows.

    Args:
        namespace: the names that the arguments of the check may use, with their values.
    """
    assert isinstance(call.func, ast.Name)
    kind = call.func.id
    if kind == "at_least":
        return f"at least {_evaluate(call.args[2], namespace)}"
    if kind == "between":
        excluded = {item.arg for item in call.keywords}
        low = _evaluate(call.args[2], namespace)
        high = _evaluate(call.args[3], namespace)
        above = f"above {low}" if "above_low" in excluded else f"from {low}"
        below = f"below {high}" if "below_high" in excluded else f"to {high}"
        return f"{above} {below}"
    try:
        choices = ", ".join(f"`{choice}`" for choice in _evaluate(call.args[2], namespace))
    except (NameError, AttributeError):  # names that depend on the corpus
        return f"names in {ast.unparse(call.args[2]).removeprefix('self.')}"
    if kind == "all_among":
        return f"among {choices}"
    return choices


def _evaluate(expression: ast.expr, namespace: dict[str, Any]) -> Any:
    """Return the value of an expression that has only constants, such as `(*LANGUAGES, "nor")`."""
    return eval(compile(ast.Expression(expression), "<check>", "eval"), namespace)
