"""Invented JSON records for the tests on JSON layouts."""

from __future__ import annotations

import json
from typing import Any

TEXT = 'Ombudet mener at {fristen} i sak NUMBER "burde" vært [oversittet]},{.'
RECORDS: list[dict[str, Any]] = [
    {"id": f"2019/{n}", "text": TEXT.replace("NUMBER", str(n)), "meta": {"parts": [{"id": 1}]}}
    for n in range(1, 5)
]
EXPECTED = [record["text"] for record in RECORDS]


def dump_json(value: Any, indent: int | None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
