"""A rank that runs the preflight, the checks before training, with each planted fault.

python -m tests.distributed.preflight_rank FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from finetune.job import preflight

RANKS = 3


@dataclass(frozen=True)
class Case:
    """A planted fault, and the result that the preflight must have.

    Attributes:
        blamed: nodes that the error must name; empty if no single node is to blame.
        passes: True if the preflight must pass.
    """

    id: str
    blamed: tuple[str, ...] = ()
    passes: bool = False


CASES = [
    Case("none", passes=True),
    Case("receives_wrong_sums", blamed=("n1",)),
    Case("sends_wrong", blamed=("n2",)),
    Case("wrong_everywhere"),
    Case("another_folder", blamed=("n1",)),
]


def main(folder: Path) -> None:
    """Write the result of each case on this rank to `rank-<number>.json`."""
    import torch.distributed as dist

    from finetune.distributed import World
    from finetune.runs.folder import RunFolder

    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=World().rank, world_size=RANKS)
    preflight.PATIENCE_SECONDS = 0.5
    world = World()
    results: dict[str, object] = {}
    for case in CASES:
        elsewhere = case.id == "another_folder" and world.rank == 1
        run = RunFolder(folder / (f"{case.id}-elsewhere" if elsewhere else case.id))
        run.jobs.mkdir(parents=True, exist_ok=True)
        try:
            with plant_fault(case.id, world.rank):
                preflight.check_together(run, world)
            results[case.id] = {"passed": True}
        except (preflight.PreflightError, ValueError) as error:
            nodes = list(getattr(error, "nodes", ()))
            results[case.id] = {"kind": type(error).__name__, "error": str(error), "nodes": nodes}
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(results))
    world.barrier()


@contextmanager
def plant_fault(name: str, rank: int) -> Iterator[None]:
    """Corrupt data that this rank receives from other ranks, as a broken network would.

    Args:
        name: id of a case. Nothing is corrupted for a case without wrong transfers.
    """
    from finetune.distributed import World

    original_sum = World.all_reduce_sum
    original_broadcast = World.broadcast

    def wrong_sum(self: World, values: Any) -> Any:
        original_sum(self, values)
        values[7] += 1
        return values

    def wrong_broadcast(self: World, values: Any, source: int) -> Any:
        original_broadcast(self, values, source)
        if source == 2 and self.rank != 2:
            values[7] += 1
        return values

    with ExitStack() as faults:
        if name in ("wrong_everywhere", "sends_wrong") or (name, rank) == ("receives_wrong_sums", 1):
            faults.enter_context(mock.patch.object(World, "all_reduce_sum", wrong_sum))
        if name == "sends_wrong":
            faults.enter_context(mock.patch.object(World, "broadcast", wrong_broadcast))
        yield


if __name__ == "__main__":
    main(Path(sys.argv[1]))
