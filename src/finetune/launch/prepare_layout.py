"""The split of a preparation's steps into jobs, and of a step into tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass

Steps = list[tuple[str, bool]]  # in order, each step's name and whether it can be split into tasks


@dataclass(frozen=True)
class Layout:
    """The split of a preparation into jobs.

    Attributes:
        num_tasks: number of tasks of each step that can be split.
        per_job: number of tasks that run side by side in a job.
        is_one_job: True if all steps run in one job, one after the other.
    """

    num_tasks: int
    per_job: int
    is_one_job: bool = False

    def num_jobs(self, steps: Steps) -> int:
        """Return the number of jobs. Each job of a job array counts, as it does for Slurm's limits."""
        return sum(num_jobs(group) for group in self.group(steps))

    def group(self, steps: Steps) -> list[list[Share]]:
        """Return the steps of each job array, in order.

        Consecutive steps that have only one task share an array. With `is_one_job`, all steps share
        one array.
        """
        groups: list[list[Share]] = []
        for name, is_cut in steps:
            share = Share(name, self.num_tasks, self.per_job) if is_cut else Share(name, 1, 1)
            if groups and (self.is_one_job or share.num_tasks == groups[-1][-1].num_tasks == 1):
                groups[-1].append(share)
            else:
                groups.append([share])
        return groups

    def describe(self, steps: Steps) -> str:
        """Return a description of the layout for the user."""
        if len(self.group(steps)) == 1:
            together = f", {self.per_job} tasks side by side" if self.per_job > 1 else ""
            return f"{len(steps)} steps in one job, one after the other{together}"
        together = f", {self.per_job} side by side in a job" if self.per_job > 1 else ""
        return f"{len(steps)} steps, each after the one before, in arrays of {self.num_tasks} tasks{together}"


@dataclass(frozen=True)
class Share:
    """The split of one step into tasks, in a job array.

    Attributes:
        step: name of the step.
        num_tasks: number of tasks of the step.
        per_job: number of these tasks that run side by side in each job.
    """

    step: str
    num_tasks: int
    per_job: int


def num_jobs(group: list[Share]) -> int:
    return max(math.ceil(share.num_tasks / share.per_job) for share in group)
