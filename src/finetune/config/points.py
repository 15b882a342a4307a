"""The points of a sweep, and short texts for their swept settings, such as `lr=2e-4 r=16`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# short names of settings that are not the last part of the key
SHORT_NAMES = {"model.path": "model"}
MAX_VALUE_LENGTH = 24


@dataclass(frozen=True)
class Sweep:
    """One batch of a sweep's points; a sweeper that uses results submits several batches.

    Attributes:
        id: `<name>-<date>-<time>-<hex>`; the points' run ids begin with it.
        name: the setting `name` of the points; if the sweep is over `name`, the value from the
            config.
        points: swept keys and values of each point, in order.
        first: index of the batch's first point in the sweep.
    """

    id: str
    name: str
    points: list[dict[str, str]]
    first: int = 0

    def run_id(self, index: int, name: str) -> str:
        """Return the run id of a point of the batch. It begins with the sweep's id; in a sweep over
        `name`, with the point's name instead of the sweep's.

        Args:
            index: of the point in the batch.
            name: the point's value of the setting `name`.
        """
        stem = self.id if name == self.name else name + self.id.removeprefix(self.name)
        return f"{stem}-{self.first + index:03d}"


def find_varying_keys(points: list[dict[str, str]]) -> list[str]:
    """Return the keys whose values differ between points, in the order of their first appearance;
    all keys if there is one point."""
    keys = dict.fromkeys(key for point in points for key in point)
    if len(points) < 2:
        return list(keys)
    return [key for key in keys if len({point.get(key) for point in points}) > 1]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return a short name for each key: its last part, or the whole key where two keys would get
    the same name."""
    last_parts = {key: re.split(r"[./]", key.partition("@")[0])[-1] for key in keys}
    shortest = {key: SHORT_NAMES.get(key, part) for key, part in last_parts.items()}
    uses = Counter(shortest.values())
    return {key: name if uses[name] == 1 else key for key, name in shortest.items()}


def short_value(value: str) -> str:
    """Return a value in few characters: a long number (as drawn by a sweeper) with three digits,
    the last part of a path, the beginning of a long text."""
    number = _parse_number(value)
    if number is not None and len(value) > 8:
        return f"{number:.3g}"
    if "/" in value and not re.search(r"[\s\[{]", value):
        value = value.rstrip("/").rpartition("/")[2]
    return value if len(value) <= MAX_VALUE_LENGTH else value[: MAX_VALUE_LENGTH - 1] + "…"


def short_values(values: list[str]) -> list[str]:
    """Return the values of one setting in few characters, or in full if two would look the same."""
    short = {value: short_value(value) for value in values}
    uses = Counter(short.values())
    return [short[value] if uses[short[value]] == 1 else value for value in values]


def describe(point: dict[str, str]) -> str:
    """Return a point as one line, such as `lr=2e-4 r=16`; "" for a run without a sweep."""
    names = short_names(point)
    return " ".join(f"{names[key]}={short_value(value)}" for key, value in point.items())


def restore_typed_number(value: str, typed: str) -> str:
    """Return a number in the notation of the typed setting, as 2e-4 for the parsed value 0.0002;
    other values unchanged.

    Args:
        typed: the override as it was typed, with all its values.
    """
    number = _parse_number(value)
    if number is None:
        return value
    candidates: list[str] = re.findall(r"[-+]?[\d.]+(?:[eE][-+]?\d+)?", typed)
    return next((text for text in candidates if _parse_number(text) == number), value)


def _parse_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
