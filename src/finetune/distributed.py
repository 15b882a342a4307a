"""Ranks and collectives, through torch.distributed. DeepSpeed initialises the process group."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process' rank, the number of ranks, and collectives.

    With one rank, the collectives need no process group.
    """

    rank: int = field(default_factory=lambda: int(os.environ.get("RANK", "0")))
    size: int = field(default_factory=lambda: int(os.environ.get("WORLD_SIZE", "1")))
    local_rank: int = field(default_factory=lambda: int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return torch.device("cpu")

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the element-wise sum over all ranks, and write it into `values`."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values [n] of all ranks as one tensor [ranks, n], on every rank."""
        if self.size == 1:
            return values[None]
        rows = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(rows, values)
        return torch.stack(rows)

    def all_reduce_max(self, value: int) -> int:
        """Return the largest value of all ranks, on every rank."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the objects of all ranks, ordered by rank, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, values: torch.Tensor, source: int) -> torch.Tensor:
        """Return rank `source`'s tensor on every rank, and write it into `values`."""
        if self.size > 1:
            dist.broadcast(values, source)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's object on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def configure_logging(world: World) -> None:
    """Configure the root logger: rank 0 logs INFO and above, other ranks WARNING and above."""
    logging.basicConfig(
        level=logging.INFO if world.is_main else logging.WARNING,
        format=f"%(asctime)s rank {world.rank} %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    for name in ("deepspeed", "DeepSpeed", "httpx", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # liger_kernel logs a warning for each kind of device that the machine lacks
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)
