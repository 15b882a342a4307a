"""Each planted fault replaces an existing function, can be undone, and is used by a test."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import pytest

from tests.distributed.faults import FAULTS, NORMALISE_LOSS, TABLE, WATCHDOG_GRACE, Call, Fault


@pytest.mark.parametrize("fault", TABLE, ids=lambda fault: fault.name)
def test_a_planted_fault_replaces_its_target_and_is_undone(fault: Fault) -> None:
    original = pkgutil.resolve_name(fault.target)
    with fault.plant():
        assert pkgutil.resolve_name(fault.target) is not original
    assert pkgutil.resolve_name(fault.target) is original


@pytest.mark.parametrize("target", [NORMALISE_LOSS, WATCHDOG_GRACE])
def test_functions_that_faults_replace_for_one_call_exist(target: str) -> None:
    assert pkgutil.resolve_name(target) is not None


def double(number: int) -> int:
    return 2 * number


def test_each_planting_counts_its_own_calls() -> None:
    """A fault acts at the same call in each case that a rank trains.

    Calls are therefore counted from 1 in each case.
    """
    numbers: list[int] = []

    def record_number(call: Call, *args: object) -> object:
        numbers.append(call.number)
        return call.original(*args)

    fault = Fault("counted", "nothing: its calls are recorded", f"{__name__}.double", record_number)
    for _ in range(2):
        with fault.plant():
            assert [double(2), double(3)] == [4, 6]
    assert numbers == [1, 2, 1, 2]


def test_every_fault_has_a_unique_name_and_a_test_that_plants_it() -> None:
    assert len(FAULTS) == len(TABLE)
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert [fault.name for fault in TABLE if f'"{fault.name}"' not in tests] == []
