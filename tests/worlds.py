"""A rank for tests that run in a single process."""

from __future__ import annotations

from finetune.distributed import World


class IsolatedWorld(World):
    """One rank of several, without a process group; `barrier` does nothing.

    A rank that waits for others would hang in a single process. These ranks can run one after
    another, even if they share the folder with the plan of packed rows.
    """

    def barrier(self) -> None:
        pass
