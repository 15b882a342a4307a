"""Ranks that need no peers."""

from __future__ import annotations

from finetune.distributed import World


class Alone(World):
    """A rank that shares the plan folder and needs no peers to agree."""

    def barrier(self) -> None:
        pass
