"""A measure of a checkout, as benchmarks/structure.py prints it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One measure of a checkout.

    Attributes:
        key: its name in JSON and in tests.
        name: where the value was found, of a maximum.
        places: all that was counted.
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
    """Return a measure whose value is the number of `places` for each `per` of `total`."""
    found = list(places)
    return Row(key, what, round(per * len(found) / max(total, 1), 2), places=found)
