"""The points of a sweep: their swept settings under short names, as in `lr=2e-4 r=16`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# Settings that are called otherwise on the command line than by their last part.
CALLED = {"model.path": "model"}
LONGEST_VALUE = 24


@dataclass(frozen=True)
class Sweep:
    """One batch of a sweep's points; a sweeper that learns from results submits several.

    Attributes:
        id: `<name>-<date>-<time>-<hex>`; the points' run ids begin with it.
        name: the setting `name` of its points, or what it would be if the sweep were not over it.
        points: swept keys and values of each point, in order.
        first: index of the batch's first point in the sweep.
    """

    id: str
    name: str
    points: list[dict[str, str]]
    first: int = 0

    def run_id(self, index: int, name: str) -> str:
        """Return the run id of the batch's point `index`. It begins with the sweep's id, unless the sweep is
        over `name`."""
        stem = self.id if name == self.name else name + self.id.removeprefix(self.name)
        return f"{stem}-{self.first + index:03d}"


def varying(points: list[dict[str, str]]) -> list[str]:
    """Return the keys whose values differ among the points, in the order in which they were given; all keys
    of one point."""
    keys = dict.fromkeys(key for point in points for key in point)
    if len(points) < 2:
        return list(keys)
    return [key for key in keys if len({point.get(key) for point in points}) > 1]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return a short name for each key: its last part, or the whole key where two keys would get the same
    name."""
    shortest = {key: CALLED.get(key, re.split(r"[./]", key.partition("@")[0])[-1]) for key in keys}
    uses = Counter(shortest.values())
    return {key: name if uses[name] == 1 else key for key, name in shortest.items()}


def short_value(value: str) -> str:
    """Return a value in few characters: three digits of a drawn number, the end of a path, the start of a
    long text."""
    number = _number(value)
    if number is not None and len(value) > 8:
        return f"{number:.3g}"
    if "/" in value and not re.search(r"[\s\[{]", value):
        value = value.rstrip("/").rpartition("/")[2]
    return value if len(value) <= LONGEST_VALUE else value[: LONGEST_VALUE - 1] + "…"


def short_values(values: list[str]) -> list[str]:
    """Return the values of one setting in few characters, and in full where two of them would look the
    same."""
    short = {value: short_value(value) for value in values}
    uses = Counter(short.values())
    return [short[value] if uses[short[value]] == 1 else value for value in values]


def describe(point: dict[str, str]) -> str:
    """Return a point as one line, as in `lr=2e-4 r=16`; "" for a run that is no point of a sweep."""
    names = short_names(point)
    return " ".join(f"{names[key]}={short_value(value)}" for key, value in point.items())


def as_typed(value: str, typed: str) -> str:
    """Return a value as it stands in the setting that was typed: 2e-4, which is 0.0002 once it has been
    read."""
    number = _number(value)
    if number is not None:
        words: list[str] = re.findall(r"[-+]?[\d.]+(?:[eE][-+]?\d+)?", typed)
        return next((word for word in words if _number(word) == number), value)
    return value


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
