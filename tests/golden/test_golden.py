"""Losses and corpora equal those recorded in golden.json; record.py measures them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden import record

pytestmark = [pytest.mark.distributed, pytest.mark.end_to_end]

GOLDEN = json.loads(record.GOLDEN.read_text(encoding="utf-8"))
SAME_CPU = record.cpu_kind() == GOLDEN["cpu"]
TOLERANCE = 1e-6 if SAME_CPU else 1e-3
KIND = "the kind of CPU that recorded them" if SAME_CPU else "another kind of CPU"


@pytest.mark.parametrize("tolerance", [TOLERANCE], ids=[f"within {TOLERANCE:g} on {KIND}"])
def test_losses_are_those_recorded(tmp_path: Path, tolerance: float) -> None:
    losses = record.measure_losses(tmp_path)
    assert losses.keys() == GOLDEN["losses"].keys()
    for name, recorded in GOLDEN["losses"].items():
        assert len(losses[name]) == len(recorded) == record.STEPS
        assert losses[name] == pytest.approx(recorded, abs=tolerance), f"{name}, recorded on {GOLDEN['cpu']}"


def test_corpora_are_those_recorded(tmp_path: Path) -> None:
    corpora = record.measure_corpora(tmp_path)
    assert corpora == GOLDEN["corpora"]
