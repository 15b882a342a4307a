"""A measure of a checkout, as benchmarks/structure.py prints it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One measure of a checkout.

    Attributes:
        key: the measure's name in JSON and in tests.
        what: the measure's name in the printed table, with its unit.
        name: for a maximum, the place in the source where it was found.
        places: the places in the source that were counted.
    """

    key: str
    what: str
    value: float
    name: str = ""
    places: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.value} {self.name}".rstrip()


def counted(key: str, what: str, places: Iterable[str]) -> Row:
    """Return a measure whose value is the number of `places`."""
    found = list(places)
    return Row(key, what, len(found), places=found)


def rate(key: str, what: str, places: Iterable[str], total: int, per: int) -> Row:
    """Return a measure whose value is a frequency, such as the number of places per 1,000 lines.

    Args:
        key, what, places: see Row.
        total: number of units that were searched, e.g. lines.
        per: number of units for which the frequency is given, e.g. 1,000.
    """
    found = list(places)
    return Row(key, what, round(per * len(found) / max(total, 1), 2), places=found)
