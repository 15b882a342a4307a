"""A layout of a preparation's jobs: tasks side by side on a node, consecutive steps of one task together in a
job."""

from __future__ import annotations

import math
from dataclasses import dataclass

Steps = list[tuple[str, bool]]  # names in order, and whether a step can be cut into tasks


@dataclass(frozen=True)
class Layout:
    """How a preparation is cut into jobs: into how many tasks a step, and how many of them run side by side
    in a job."""

    num_tasks: int
    per_job: int
    is_one_job: bool = False  # all steps in one job, one after the other

    def num_jobs(self, steps: Steps) -> int:
        """Return how many jobs Slurm counts: each task of an array is one."""
        return sum(num_jobs(group) for group in self.group(steps))

    def group(self, steps: Steps) -> list[list[Share]]:
        """Return the steps of each array, in order: steps of one task that follow each other share a job."""
        groups: list[list[Share]] = []
        for name, is_cut in steps:
            share = Share(name, self.num_tasks, self.per_job) if is_cut else Share(name, 1, 1)
            if groups and (self.is_one_job or share.num_tasks == groups[-1][-1].num_tasks == 1):
                groups[-1].append(share)
            else:
                groups.append([share])
        return groups

    def describe(self, steps: Steps) -> str:
        """Return the layout in words, for the person who submits."""
        if len(self.group(steps)) == 1:
            together = f", {self.per_job} tasks side by side" if self.per_job > 1 else ""
            return f"{len(steps)} steps in one job, one after the other{together}"
        together = f", {self.per_job} side by side in a job" if self.per_job > 1 else ""
        return f"{len(steps)} steps, each after the one before, in arrays of {self.num_tasks} tasks{together}"


@dataclass(frozen=True)
class Share:
    """A step in a job or an array: how many tasks it has, and how many of them run side by side in a job."""

    step: str
    num_tasks: int
    per_job: int


def num_jobs(group: list[Share]) -> int:
    return max(math.ceil(share.num_tasks / share.per_job) for share in group)
