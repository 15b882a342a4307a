"""Checks of settings: each error names the key, the value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from data_prep.fields import all_among, at_least, between, one_of


@pytest.mark.parametrize(
    ("check", "line"),
    [
        (lambda: at_least("a.b", 0, 1), "a.b is 0: must be at least 1"),
        (lambda: at_least("a.b", math.nan, 1), "a.b is nan: must be at least 1"),
        (lambda: between("a.b", 1.5, 0, 1), "a.b is 1.5: must be between 0 and 1"),
        (lambda: between("a.b", -1, 0, 1), "a.b is -1: must be between 0 and 1"),
        (lambda: between("a.b", math.nan, 0, 1), "a.b is nan: must be between 0 and 1"),
        (
            lambda: between("a.b", math.nan, 0, 1, above_low=True),
            "a.b is nan: must be above 0 and at most 1",
        ),
        (
            lambda: between("a.b", 0, 0, 1, above_low=True),
            "a.b is 0: must be above 0 and at most 1",
        ),
        (
            lambda: between("a.b", 1.0, 0, 1, below_high=True),
            "a.b is 1.0: must be at least 0 and below 1",
        ),
        (lambda: one_of("a.b", "c", ("d", "e")), "a.b is 'c': choose one of d, e"),
        (lambda: all_among("a.b", ["d", "c"], ("d", "e")), "a.b names 'c': choose among d, e"),
    ],
)
def test_an_error_names_key_value_and_remedy(check: Callable[[], None], line: str) -> None:
    with pytest.raises(ValueError, match=r"^a\.b ") as raised:
        check()
    assert str(raised.value) == line


def test_bounds_are_accepted_unless_excluded() -> None:
    at_least("a.b", 1, 1)
    at_least("a.b", None, 1)
    between("a.b", 0, 0, 1, below_high=True)
    between("a.b", 1, 0, 1, above_low=True)
    one_of("a.b", "d", ("d", "e"))
    all_among("a.b", [], ("d", "e"))
