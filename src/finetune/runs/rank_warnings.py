"""Warnings of ranks, where whoever follows a run can read them: `jobs/warnings-rank-<rank>.jsonl` in its
folder.

`collect` takes in warnings and errors of our own loggers, of the libraries that load and train a model, and
of Python's warnings that those raise. What repeats is one warning with a count. Only the standard library:
the shell that reads has no torch.
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
# libraries whose loggers do not hand their records on to the root logger
APART = ("transformers", "peft", "accelerate", "DeepSpeed", "deepspeed", "bitsandbytes")
# for developers: of what a user can change nothing
IGNORED = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)
# a 4-bit kernel for CPUs, which bitsandbytes looks for whenever it is imported
IGNORED_TEXTS = ("Failed to load CPU gemm_4bit_forward",)
MOST = 50  # different warnings that a rank writes down
LONGEST = 500  # characters of one
_NUMBER = re.compile(r"\d+(?:\.\d+)?")  # the same warning of another step is the same warning


@dataclass
class RankWarning:
    """A warning, how often it was logged on its noisiest rank, and the ranks that logged it."""

    text: str
    time: float
    times: int
    ranks: list[int] = field(default_factory=list)

    def describe(self, world_size: int) -> str:
        """Return the text, with ranks and count where they are not simply rank 0 and once."""
        notes = []
        if len(self.ranks) == world_size > 1:
            notes.append(f"all {world_size} ranks")
        elif self.ranks != [0]:
            notes.append(f"rank {', '.join(map(str, self.ranks[:8]))}{', …' if len(self.ranks) > 8 else ''}")
        if self.times > 1:
            notes.append(f"{self.times} times")
        return f"{self.text} [{'; '.join(notes)}]" if notes else self.text


@dataclass(frozen=True)
class Line(Record):
    """A line of warnings-rank-<rank>.jsonl: a kind of warning, and how often it has been logged by then."""

    kind: str
    text: str
    time: float
    times: int


class Collector(logging.Handler):
    """Writes each kind of warning of this rank once, and its count anew whenever it has doubled."""

    def __init__(self, jobs: Path, rank: int) -> None:
        super().__init__(logging.WARNING)
        self._path = jobs / layout.warnings_of(rank)
        self._counts: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "collected", False):  # on its way up from one of the loggers in APART
            return
        record.collected = True
        package = record.name.partition(".")[0]
        text = record.getMessage()
        if package in PACKAGES and not text.startswith(IGNORED_TEXTS):
            self.add(f"{record.name}: {_NUMBER.sub('#', text)}", text, record.created)

    def add(self, kind: str, text: str, when: float) -> None:
        """Count a warning; a full disk loses it, never the run."""
        if kind not in self._counts and len(self._counts) >= MOST:
            return
        times = self._counts[kind] = self._counts.get(kind, 0) + 1
        if times & (times - 1):  # no power of two
            return
        line = Line(kind, _shorten(text), when, times)
        try:
            layout.append_json_line(self._path, line.to_json())
        except OSError:
            return


@contextmanager
def collect(jobs: Path, rank: int) -> Iterator[None]:
    """Write this rank's warnings into the folder meanwhile. They go on to where they went before, too."""
    collector = Collector(jobs, rank)
    loggers = [logging.getLogger(name) for name in ("", *APART)]
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
    """Return the warnings of a run as lines for people."""
    return [warning.describe(world_size) for warning in read(jobs)]


def forget(jobs: Path) -> None:
    """Remove those of a run that is started again."""
    for path in jobs.glob(layout.warnings_of("*")):
        path.unlink(missing_ok=True)


def _read_lines(path: Path) -> list[Line]:
    try:
        return [Line.from_json(record) for record in layout.read_json_lines(path)]
    except OSError:
        return []


def _rank_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _package_of(filename: str) -> str:
    """Return the package that a source file is of: what follows site-packages, or our own."""
    parts = Path(filename).parts
    own = [part for part in parts if part in ("finetune", "data_prep")]
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1]
    return own[-1] if own else ""


def _shorten(text: str) -> str:
    one_line = re.sub(r"\s+", " ", text).strip()
    return one_line if len(one_line) <= LONGEST else f"{one_line[:LONGEST]} …"
