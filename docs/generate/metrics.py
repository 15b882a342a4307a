"""The page of metrics."""

from __future__ import annotations

from docs.generate.markdown import code, escape, table
from finetune.tracking.names import FAMILIES, METRICS

INTRODUCTION = """\
Rank 0 appends one JSON line a step to `metrics.jsonl` of the run: `step` (optimizer steps done),
`time_ms` and `values`, an object of the metrics below. MLflow receives the same names. A unit of
1 means a number without a unit.
"""


def body() -> str:
    """Return two tables: of the single metrics, and of the families of metrics.

    A family, `<prefix><name>`, has a metric for each source, language or other name.
    """
    single = [(code(metric), metric.unit, escape(metric.meaning)) for metric in METRICS]
    named = [(code(f"{family.prefix}<name>"), family.unit, escape(family.meaning)) for family in FAMILIES]
    header = ("metric", "unit", "meaning")
    return (
        INTRODUCTION
        + "\n## Single metrics\n\n"
        + table(header, single)
        + "\n## Metrics by name\n\n"
        + table(header, named)
    )
