"""A rank for tests that run in a single process."""

from __future__ import annotations

from finetune.distributed import World


class IsolatedWorld(World):
    """One rank of several, without a process group; `barrier` does nothing.

    Ranks that share a plan folder can therefore run one after another.
    """

    def barrier(self) -> None:
        pass
