"""Ranks for tests in a single process."""

from __future__ import annotations

from finetune.distributed import World


class IsolatedWorld(World):
    """One rank of several, without a process group: its barriers do nothing.

    Ranks that share a plan folder can so be run one after another.
    """

    def barrier(self) -> None:
        pass
