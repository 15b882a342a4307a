"""The points of a sweep: runs that differ in the values of some settings.

Also short texts for these values, such as `lr=2e-4 r=16`.
"""

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
    """A sweep, with one batch of its points. A point is a run with its own values of some settings.

    A sweeper that learns from results submits several batches.

    Attributes:
        id: `<name>-<date>-<time>-<hex>`; the points' run ids begin with it.
        name: value of the setting `name`. In a sweep over `name`, it is the value in the config.
        points: for each point of the batch its values, by swept key.
        first: index of the batch's first point in the sweep.
    """

    id: str
    name: str
    points: list[dict[str, str]]
    first: int = 0

    def run_id(self, index: int, name: str) -> str:
        """Return the run id of a point of the batch: the sweep's id, then the point's number.

        In a sweep over `name`, the point's name replaces the sweep's name in the id.

        Args:
            index: position of the point in the batch, from 0.
            name: the point's value of the setting `name`.
        """
        stem = self.id if name == self.name else name + self.id.removeprefix(self.name)
        return f"{stem}-{self.first + index:03d}"


def find_varying_keys(points: list[dict[str, str]]) -> list[str]:
    """Return the keys whose values differ between points, in the order of their first appearance.

    Return all keys if there is only one point.
    """
    keys = dict.fromkeys(key for point in points for key in point)
    if len(points) < 2:
        return list(keys)
    return [key for key in keys if len({point.get(key) for point in points}) > 1]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return a short name for each key: its last part.

    Keys that would get the same short name keep their full name.
    """
    last_parts = {key: re.split(r"[./]", key.partition("@")[0])[-1] for key in keys}
    shortest = {key: SHORT_NAMES.get(key, part) for key, part in last_parts.items()}
    uses = Counter(shortest.values())
    return {key: name if uses[name] == 1 else key for key, name in shortest.items()}


def short_value(value: str) -> str:
    """Return a value in few characters.

    A number of more than eight characters is rounded to three digits. A path is shortened to its
    last part, and a long string to its beginning.
    """
    number = _parse_number(value)
    if number is not None and len(value) > 8:
        return f"{number:.3g}"
    if "/" in value and not re.search(r"[\s\[{]", value):
        value = value.rstrip("/").rpartition("/")[2]
    return value if len(value) <= MAX_VALUE_LENGTH else value[: MAX_VALUE_LENGTH - 1] + "…"


def short_values(values: list[str]) -> list[str]:
    """Return short forms of one setting's values; values with the same short form stay in full."""
    short = {value: short_value(value) for value in values}
    uses = Counter(short.values())
    return [short[value] if uses[short[value]] == 1 else value for value in values]


def describe(point: dict[str, str]) -> str:
    """Return a point as one line, such as `lr=2e-4 r=16`; "" for a run without a sweep."""
    names = short_names(point)
    return " ".join(f"{names[key]}={short_value(value)}" for key, value in point.items())


def restore_typed_number(value: str, typed: str) -> str:
    """Return a number in the notation in which it was typed, such as 2e-4 for 0.0002.

    Other values are returned unchanged.

    Args:
        value: one value of a swept setting, as Hydra writes it.
        typed: the override as it was typed, with all values of the sweep.
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
