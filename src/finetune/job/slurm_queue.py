"""Slurm's queue as the batch script's helper and commands see it: this user's jobs, and what became of a job.

It runs on the batch host too, outside of a container: the standard library alone, from Python 3.8 on.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from finetune.job.slurm_command import Refused, run_command
from finetune.runs.state import JobState

TOO_MANY = re.compile(
    r"job submit limit|Invalid job array specification"
)  # Slurm's words for "fewer, perhaps"
COMMAND_SECONDS = 60.0


@dataclass(frozen=True)
class QueuedJob:
    """A job of this user, or a task of an array, that waits or runs."""

    array: str
    index: str
    state: str
    priority: str
    partition: str
    qos: str
    account: str
    name: str
    command: str

    @property
    def id(self) -> str:
        return f"{self.array}_{self.index}" if self.index.isdigit() else self.array

    @property
    def is_held(self) -> bool:
        return self.state == JobState.PENDING and self.priority == "0"

    @property
    def can_end(self) -> bool:
        """Whether the last lines of its batch script are still to come."""
        return self.state != JobState.COMPLETING and not self.is_held


def queue() -> list[QueuedJob]:
    """Return this user's jobs that wait or run, each task of an array as one.

    Raises:
        Refused: Slurm does not answer.
    """
    columns = "%F|%K|%T|%Q|%P|%q|%a|%j|%o"
    lines = run_slurm(
        "squeue", "--noheader", "--array", "--user", str(os.getuid()), "--format", columns
    ).splitlines()
    return [QueuedJob(*line.split("|", 8)) for line in lines if line.count("|") >= 8]


def run_slurm(*command: str) -> str:
    """Run one of Slurm's commands; return its output.

    Raises:
        Refused: it failed, is not on PATH, or does not answer.
    """
    return run_command(*command, seconds=COMMAND_SECONDS, environment=submission_environment())


def submission_environment() -> dict[str, str]:
    """Return the environment for a job that this process submits: in a batch script that in which the script
    was started, not what the script has made of it, or PYTHONPATH would grow by a folder with every wave."""
    inherited = dict(os.environ)
    if "SLURM_JOB_ID" in inherited:
        with contextlib.suppress(OSError, ValueError):
            raw = Path(f"/proc/{os.getppid()}/environ").read_bytes().decode(errors="surrogateescape")
            script = dict(item.split("=", 1) for item in raw.split("\0") if "=" in item)
            if script.get("SLURM_JOB_ID") == inherited["SLURM_JOB_ID"]:
                inherited = script
    own = ("SLURM_", "SBATCH_EXPORT")
    return {key: value for key, value in inherited.items() if not key.startswith(own) or key == "SLURM_CONF"}


def states_of(job: str) -> set[str]:
    """Return Slurm's states of a job, which may be an array; none if Slurm has forgotten it."""
    in_queue = ("squeue", "--noheader", "--states=all", "--jobs", job, "--format", "%T")
    accounted = ("sacct", "--noheader", "--parsable2", "--allocations", "--format", "State", "--jobs", job)
    for command in (in_queue, accounted):
        with contextlib.suppress(Refused):
            if lines := run_slurm(*command).splitlines():
                return {line.split()[0] for line in lines if line.strip()}  # of "CANCELLED by 1000" the first
    return set()
