"""Warnings of ranks, in `jobs/warnings-rank-<rank>.jsonl` of the run folder, where any process can
read them.

`collect` records log messages of level WARNING and above, and Python warnings, from this code base
and from the libraries that load and train a model. A repeated warning is shown once, with a count.
Standard library only: the Python of a command that reads the warnings may have no torch.
"""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from finetune.runs import layout
from finetune.runs.records import Record

PACKAGES = (
    "finetune",
    "data_prep",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "DeepSpeed",
    "bitsandbytes",
    "torch",
)
# libraries whose loggers do not propagate their records to the root logger
NON_PROPAGATING = ("transformers", "peft", "accelerate", "DeepSpeed", "deepspeed", "bitsandbytes")
# warnings for developers, which a user cannot act on
IGNORED = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)
# a 4-bit kernel for CPUs that bitsandbytes tries to load whenever it is imported
IGNORED_TEXTS = ("Failed to load CPU gemm_4bit_forward",)
MAX_WARNINGS = 50  # different warnings recorded per rank
MAX_CHARACTERS = 500  # longest text recorded for a warning
# numbers are masked, so that the same warning at another step is not a new one
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass
class RankWarning:
    """A warning of one or several ranks.

    Attributes:
        time: when it was first logged, in seconds since the epoch.
        times: how often a rank logged it; the largest count if several ranks did.
    """

    text: str
    time: float
    times: int
    ranks: list[int] = field(default_factory=list)

    def describe(self, world_size: int) -> str:
        """Return the warning as a line of text for users.

        The line ends with the ranks that logged it, unless only rank 0 did, and with its count, if
        it is above 1.
        """
        notes = []
        if len(self.ranks) == world_size > 1:
            notes.append(f"all {world_size} ranks")
        elif self.ranks != [0]:
            more = ", …" if len(self.ranks) > 8 else ""
            notes.append(f"rank {', '.join(map(str, self.ranks[:8]))}{more}")
        if self.times > 1:
            notes.append(f"{self.times} times")
        return f"{self.text} [{'; '.join(notes)}]" if notes else self.text


@dataclass(frozen=True)
class WarningRecord(Record):
    """A line of warnings-rank-<rank>.jsonl.

    Attributes:
        kind: identifies the warning. Warnings that differ only in numbers, or that come from the
            same line of code, are of one kind.
        text: the message of the newest warning of this kind.
        time: when it was logged, in seconds since the epoch.
        times: how many warnings of this kind the rank had logged by then.
    """

    kind: str
    text: str
    time: float
    times: int


class Collector(logging.Handler):
    """Logging handler that records the warnings of this rank.

    A repeated warning is recorded only when its count has doubled: the 1st, 2nd, 4th, 8th time.
    """

    def __init__(self, jobs: Path, rank: int) -> None:
        super().__init__(logging.WARNING)
        self._path = jobs / layout.warnings_of(rank)
        self._counts: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "collected", False):  # propagated from a logger with this handler
            return
        record.collected = True
        package = record.name.partition(".")[0]
        text = record.getMessage()
        if package in PACKAGES and not text.startswith(IGNORED_TEXTS):
            self.add(f"{record.name}: {_NUMBER.sub('#', text)}", text, record.created)

    def add(self, kind: str, text: str, when: float) -> None:
        """Count a warning, and write it at its first occurrence and whenever its count has doubled.

        After MAX_WARNINGS kinds of warnings, new kinds are ignored. If the file cannot be written,
        as on a full disk, the warning is lost and the run continues.

        Args:
            kind: as in WarningRecord.
            when: seconds since the epoch.
        """
        if kind not in self._counts and len(self._counts) >= MAX_WARNINGS:
            return
        times = self._counts.get(kind, 0) + 1
        self._counts[kind] = times
        if times & (times - 1):  # not a power of two
            return
        line = WarningRecord(kind, _shorten(text), when, times)
        try:
            layout.append_json_line(self._path, line.to_json())
        except OSError:
            return


@contextmanager
def collect(jobs: Path, rank: int) -> Iterator[None]:
    """While the context is open, also record this rank's warnings, in the folder `jobs`."""
    collector = Collector(jobs, rank)
    loggers = [logging.getLogger(name) for name in ("", *NON_PROPAGATING)]
    show = warnings.showwarning

    def show_and_collect(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        package = _package_of(filename)
        if package in PACKAGES and not issubclass(category, IGNORED):
            collector.add(f"{filename}:{lineno}", f"{package}: {message}", time.time())
        show(message, category, filename, lineno, file, line)

    for logger in loggers:
        logger.addHandler(collector)
    warnings.showwarning = show_and_collect
    try:
        yield
    finally:
        warnings.showwarning = show
        for logger in loggers:
            logger.removeHandler(collector)


def read(jobs: Path) -> list[RankWarning]:
    """Return the warnings of all ranks of a run, merged, in the order of their first appearance."""
    found: dict[str, RankWarning] = {}
    for path in sorted(jobs.glob(layout.warnings_of("*")), key=_rank_of):
        for line in _read_lines(path):
            known = found.setdefault(line.kind, RankWarning(line.text, line.time, 0))
            known.times = max(known.times, line.times)
            known.time = min(known.time, line.time)
            if _rank_of(path) not in known.ranks:
                known.ranks.append(_rank_of(path))
    return sorted(found.values(), key=lambda warning: warning.time)


def describe(jobs: Path, world_size: int) -> list[str]:
    """Return the warnings of a run as lines of text for users."""
    return [warning.describe(world_size) for warning in read(jobs)]


def remove(jobs: Path) -> None:
    """Remove the recorded warnings of a run, before it is started again."""
    for path in jobs.glob(layout.warnings_of("*")):
        path.unlink(missing_ok=True)


def _read_lines(path: Path) -> list[WarningRecord]:
    try:
        return [WarningRecord.from_json(record) for record in layout.read_json_lines(path)]
    except OSError:
        return []


def _rank_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _package_of(filename: str) -> str:
    """Return the package that a source file belongs to; finetune or data_prep for our own code."""
    parts = Path(filename).parts
    own = [part for part in parts if part in ("finetune", "data_prep")]
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1]
    return next(reversed(own), "")


def _shorten(text: str) -> str:
    one_line = re.sub(r"\s+", " ", text).strip()
    return one_line if len(one_line) <= MAX_CHARACTERS else f"{one_line[:MAX_CHARACTERS]} …"
