"""Declaration of settings and checks of their values, for the packages data_prep and finetune.

This module imports the standard library only.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Iterable
from typing import Any

from data_prep.user_error import UserError

REQUIRED: Any = dataclasses.MISSING


def setting(default: Any, help: str) -> Any:
    """Declare a setting of a dataclass.

    Args:
        default: the default, or REQUIRED. A list or mapping is copied for each instance.
        help: the help text, which `finetune train --help` or `finetune prepare --help` prints.
    """
    metadata = {"help": help}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(schema: type) -> Any:
    """Declare a section of settings, which is a nested dataclass.

    Its help text is the first paragraph of the dataclass' docstring.
    """
    return dataclasses.field(default_factory=schema, metadata={"help": heading(schema)})


def heading(schema: type) -> str:
    """Return the first paragraph of a dataclass' docstring as one line."""
    return " ".join((inspect.getdoc(schema) or "").partition("\n\n")[0].split())


def at_least(name: str, value: float | None, minimum: float) -> None:
    """Raise UserError if a setting's value is below `minimum` or NaN. None (unset) is accepted."""
    if value is not None and not value >= minimum:
        raise UserError(f"{name} is {value}: must be at least {minimum}")


def between(
    name: str, value: float, low: float, high: float, *, above_low: bool = False, below_high: bool = False
) -> None:
    """Raise UserError if a setting's value is NaN or not between `low` and `high`.

    Args:
        above_low: True if `low` itself is refused.
        below_high: True if `high` itself is refused.
    """
    is_inside = low <= value <= high
    if is_inside and not (above_low and value == low) and not (below_high and value == high):
        return
    lower = f"above {low}" if above_low else f"at least {low}"
    upper = f"below {high}" if below_high else f"at most {high}"
    is_open = above_low or below_high
    wanted = f"{lower} and {upper}" if is_open else f"between {low} and {high}"
    raise UserError(f"{name} is {value}: must be {wanted}")


def one_of(name: str, value: str, choices: Collection[str]) -> None:
    """Raise UserError if a setting's value is not one of `choices`."""
    if value not in choices:
        raise UserError(f"{name} is '{value}': choose one of {', '.join(choices)}")


def all_among(name: str, values: Iterable[str], choices: Collection[str]) -> None:
    """Raise UserError if a setting's list contains a value that is not one of `choices`."""
    unknown = set(values) - set(choices)
    if unknown:
        raise UserError(f"{name} names '{min(unknown)}': choose among {', '.join(choices)}")
