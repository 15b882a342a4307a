"""The spool, metrics.jsonl: rank 0 appends one JSON line a step. Jobs do nothing else for tracking."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from types import TracebackType

logger = logging.getLogger(__name__)


class Spool:
    """Appends metrics of one run. Only rank 0 holds an enabled one. A full disk loses metrics, never the run."""

    def __init__(self, path: Path, enabled: bool) -> None:
        self._file = None
        if enabled:
            torn = path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
            self._file = path.open("a", encoding="utf-8")
            if torn:  # a kill cut the last line short: it must not swallow the next one
                self._file.write("\n")

    def log(self, step: int, values: dict[str, float]) -> None:
        """`step` counts optimizer steps done: 0 is before the first."""
        if self._file is None:
            return
        line = json.dumps({"step": step, "time_ms": int(time.time() * 1000), "values": values})
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as fault:
            logger.warning("metrics of step %d are lost: %s", step, fault)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as fault:
                logger.warning("the last metrics are lost: %s", fault)
