"""Slurm's queue: this user's jobs, and the states of a job.

This module also runs on the batch host, outside any container. It uses only the standard library
and Python 3.8.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from finetune.job.slurm_command import CommandError, run_command
from finetune.runs.state import JobState

# Messages with which Slurm refuses an array for its number of tasks. It may accept a smaller one.
TOO_MANY = re.compile(r"job submit limit|Invalid job array specification")
COMMAND_SECONDS = 60.0


@dataclass(frozen=True)
class QueuedJob:
    """A waiting or running job of this user, or a waiting or running task of a job array.

    Attributes:
        array: job id; for a task, the id of its array.
        index: index of a task in its array; not a number for other jobs.
        command: path of the batch script.
    """

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
        if self.index.isdigit():
            return f"{self.array}_{self.index}"
        return self.array

    @property
    def is_held(self) -> bool:
        return self.state == JobState.PENDING and self.priority == "0"

    @property
    def will_end(self) -> bool:
        """True if the job's batch script will still reach its last line, which submits waiting points."""
        return self.state != JobState.COMPLETING and not self.is_held


def queue() -> list[QueuedJob]:
    """Return this user's waiting and running jobs, with one entry per task of an array.

    Raises:
        CommandError: squeue failed, is not on PATH, or did not end in time.
    """
    columns = "%F|%K|%T|%Q|%P|%q|%a|%j|%o"
    user = str(os.getuid())
    lines = run_slurm("squeue", "--noheader", "--array", "--user", user, "--format", columns).splitlines()
    return [QueuedJob(*line.split("|", 8)) for line in lines if line.count("|") >= 8]


def run_slurm(*command: str) -> str:
    """Run a Slurm command in `submission_environment` and return its output.

    Raises:
        CommandError: the command failed, is not on PATH, or did not end in time.
    """
    return run_command(*command, seconds=COMMAND_SECONDS, environment=submission_environment())


def submission_environment() -> dict[str, str]:
    """Return the environment for a job that this process submits, without Slurm's own variables.

    In a job, the changes that the batch script has made to its environment are left out, too. With
    them, PYTHONPATH would become longer each time a job submits the next one.
    """
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
    """Return the states of a job, or of an array's tasks; empty if Slurm does not report any."""
    in_queue = ("squeue", "--noheader", "--states=all", "--jobs", job, "--format", "%T")
    accounted = ("sacct", "--noheader", "--parsable2", "--allocations", "--format", "State", "--jobs", job)
    for command in (in_queue, accounted):
        with contextlib.suppress(CommandError):
            lines = [line for line in run_slurm(*command).splitlines() if line.strip()]
            if lines:
                return {line.split()[0] for line in lines}  # CANCELLED of "CANCELLED by 1000"
    return set()
