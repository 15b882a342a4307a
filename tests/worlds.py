"""A rank for tests that run in a single process."""

from __future__ import annotations

from finetune.distributed import World


class IsolatedWorld(World):
    """One rank of several, without a process group; `barrier` does nothing.

    Such ranks can therefore run one after another, even if they share the folder with the plan of
    packed rows.
    """

    def barrier(self) -> None:
        pass
