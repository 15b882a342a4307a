"""Is this allocation fit to train on? A few seconds, in each job, before anything large is loaded.

A failure names the node and what it failed; the run then comes back without that node (batch_script.py).
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from data_prep.user_error import UserError
from finetune.config.train import TrainConfig
from finetune.runs import layout
from finetune.runs.folder import RunFolder

if TYPE_CHECKING:
    import torch

    from finetune.distributed import World

HOST_GB_A_RANK = 0.5  # less is not enough to start in
FREE_SHARE_OF_GPU = 0.9  # a GPU that is ours alone holds nothing but its driver's part
PATIENCE_SECONDS = 20.0  # network file systems show a new file to other nodes within a few
# numbers an all-reduce, for each of NCCL's protocols: LL for small messages, LL128, Simple for large ones
NUM_VALUES = {"cpu": (1_000, 50_000), "cuda": (1_000, 500_000, 16_000_000)}
REPEATS = 3

logger = logging.getLogger(__name__)


class PreflightError(RuntimeError):
    """A node is not fit to train on. `nodes` are to be avoided."""

    def __init__(self, message: str, nodes: Sequence[str]) -> None:
        super().__init__(f"preflight: {message}")
        self.nodes = tuple(nodes)


def node_name() -> str:
    """This node, as the scheduler calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def check_node(config: TrainConfig, run: RunFolder) -> None:
    """What needs neither torch nor the other nodes: the shared folder can be written, there is memory to
    start in.

    Raises:
        PreflightError: it fails here.
    """
    node = node_name()
    try:
        present = (
            run.jobs / layout.PRESENT / node
        )  # where this is missing, batch_script.py knows that the node never came so far
        present.parent.mkdir(parents=True, exist_ok=True)
        present.touch()
    except OSError as fault:
        raise PreflightError(
            f"{node} cannot write into the shared folder {run.path}: {fault}", [node]
        ) from None
    free, needed = psutil.virtual_memory().available / 1e9, HOST_GB_A_RANK * config.cluster.ranks_per_node
    if free < needed:
        raise PreflightError(
            f"{node} has {free:.1f} GB of memory left, {needed:.1f} are needed to start", [node]
        )


def check_device(config: TrainConfig, world: World) -> None:
    """The GPU is there, is ours, and multiplies right. Nothing where a job asks for none, or hides them.

    Raises:
        PreflightError: it fails here.
    """
    import torch

    node = node_name()
    asked = config.cluster.gpu_request != "none" and config.cluster.env.get("CUDA_VISIBLE_DEVICES") != ""
    if asked and not torch.cuda.is_available():
        raise PreflightError(
            f"{node} shows no GPU to torch {torch.__version__}: driver, or a build of torch for CPUs", [node]
        )
    if world.device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(world.device)
    if asked and free < FREE_SHARE_OF_GPU * total:
        raise PreflightError(
            f"{node}: GPU {world.device.index} has {free / 1e9:.1f} of {total / 1e9:.1f} GB free: something else holds it",
            [node],
        )
    ones = torch.ones(1024, 1024, device=world.device)
    if not bool((ones @ ones == 1024).all()):
        raise PreflightError(f"{node}: GPU {world.device.index} multiplies wrong", [node])


def check_together(run: RunFolder, world: World) -> None:
    """What the ranks can only see together: all see the same shared folder, and their sums over the network
    are right.

    Raises:
        PreflightError: on all ranks, naming the nodes.
        UserError: sums are wrong on so many nodes that no node is to blame.
    """
    began = time.monotonic()
    nodes: list[str] = world.all_gather_object(node_name())
    _check_shared_folder(run, world, nodes)
    _check_sums(world, nodes)
    logger.info(
        "preflight passed: %d ranks on %d nodes, %.1f s",
        world.size,
        len(set(nodes)),
        time.monotonic() - began,
    )


def _check_shared_folder(run: RunFolder, world: World, nodes: list[str]) -> None:
    token, path = world.broadcast_object(secrets.token_hex(16)), run.jobs / layout.PREFLIGHT_TOKEN
    if world.is_main:
        path.write_text(token, encoding="utf-8")
    world.barrier()
    blind = [
        node
        for node, seen in zip(nodes, world.all_gather_object(_comes_to_hold(path, token)), strict=True)
        if not seen
    ]
    if blind:
        named = ", ".join(sorted(set(blind)))
        raise PreflightError(
            f"{named} does not see what {nodes[0]} writes into {run.jobs}: no shared folder",
            sorted(set(blind)),
        )


def _comes_to_hold(path: Path, token: str) -> bool:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            if path.read_text(encoding="utf-8") == token:
                return True
        except OSError:
            pass
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


def _check_sums(world: World, nodes: list[str]) -> None:
    """All-reduce numbers whose sum every rank knows. Some versions of NCCL corrupt sums without an error, on
    some networks and at some sizes (NVIDIA/nccl#2001): such a run trains, and learns nothing or worse."""
    wrong = sum(_wrong_sums(world, size) for size in NUM_VALUES[world.device.type] for _ in range(REPEATS))
    counts = world.all_gather_object(wrong)
    if not any(counts):
        return
    suspects = {node for node, count in zip(nodes, counts, strict=True) if count}
    if 2 * len(suspects) >= len(set(nodes)):
        suspects = suspected(world.all_gather_object(_wrong_broadcasts(world)), nodes)
    if not suspects:
        raise UserError(
            f"preflight: an all-reduce over {len(set(nodes))} nodes gives wrong sums ({max(counts)} numbers on a rank), and no "
            f"node alone is to blame: the network library corrupts data; set what your site documents for NCCL "
            f"(cluster.env_many_nodes), or NCCL_PROTO=^LL128"
        )
    named = ", ".join(sorted(suspects))
    raise PreflightError(
        f"sums over the network come out wrong on {named} ({max(counts)} numbers)", sorted(suspects)
    )


def _values(rank: int, size: int, device: torch.device) -> torch.Tensor:
    """Whole numbers that differ by rank; float32 holds their sum over thousands of ranks exactly."""
    import torch

    return ((torch.arange(size, device=device) * 7 + rank * 13) % 1021).float()


def _wrong_sums(world: World, size: int) -> int:
    """How many numbers of an all-reduce came out wrong on this rank."""
    expected = sum(
        (_values(rank, size, world.device) for rank in range(1, world.size)), _values(0, size, world.device)
    )
    return int((world.all_reduce_sum(_values(world.rank, size, world.device)) != expected).sum())


def _wrong_broadcasts(world: World) -> list[bool]:
    """For each rank, whether what it sends arrives wrong on this one."""
    wrong, size = [], NUM_VALUES[world.device.type][-1]
    for source in range(world.size):
        sent = _values(source, size, world.device)
        received = world.broadcast(sent.clone() if world.rank == source else sent.new_zeros(size), source)
        wrong.append(bool((received != sent).any()))
    return wrong


def suspected(wrong: list[list[bool]], nodes: list[str]) -> set[str]:
    """The nodes that most wrong transfers have in common; none where that is no minority of them.

    Args:
        wrong: [receiving rank][sending rank].
        nodes: of each rank.
    """
    count: Counter[str] = Counter()
    for to, row in enumerate(wrong):
        for source, bad in enumerate(row):
            if bad:
                count.update({nodes[to], nodes[source]})
    most = max(count.values(), default=0)
    chosen = {node for node, number in count.items() if number == most}
    return chosen if most and 2 * len(chosen) < len(set(nodes)) else set()


def check_room(folder: Path, needed: int) -> None:
    """A folder on this node's own disk can be written and has room.

    Raises:
        PreflightError: it cannot, or has not.
    """
    node = node_name()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = psutil.disk_usage(str(folder)).free
    except OSError as fault:
        raise PreflightError(
            f"{node} cannot write into {folder} (cluster.node_local): {fault}", [node]
        ) from None
    if free < needed:
        raise PreflightError(
            f"{node} has {free / 1e9:.1f} GB left in {folder}, the corpus takes {needed / 1e9:.1f}", [node]
        )
