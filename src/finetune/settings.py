"""What the schemas are written with: a setting with its help text, and the checks that name key, value and remedy."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(default: Any, help: str) -> Any:
    """A dataclass field whose help text `finetune train --help` prints."""
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def at_least(name: str, value: float, minimum: float) -> None:
    """Raises ValueError if `value` is below `minimum`, or no number."""
    if not value >= minimum:
        raise ValueError(f"{name} is {value}: give at least {minimum}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError if `value` is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is '{value}': choose one of {', '.join(choices)}")
