"""Ranks for tests that run in a single process."""

from __future__ import annotations

from finetune.distributed import World


class IsolatedWorld(World):
    """One of several ranks that a test runs one after another in a single process.

    There is no process group, so `barrier` returns at once. The ranks can share the folder with
    the plan of packed rows.
    """

    def barrier(self) -> None:
        pass
