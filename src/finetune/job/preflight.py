"""Checks of a job's nodes before training: shared folder, memory, GPUs, sums over the network.

They take a few seconds, and run before anything large is loaded. An error names the nodes at fault.
The run is then restarted without them (batch_script.py).
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

HOST_GB_A_RANK = 0.5  # memory in GB that a rank needs to start
FREE_SHARE_OF_GPU = 0.9  # at least this share is free on an unused GPU; the driver takes the rest
PATIENCE_SECONDS = 20.0  # network file systems show a new file to other nodes within a few seconds
# Lengths of the all-reduced tensors. On GPUs, each is sent by another of NCCL's protocols: LL for
# small messages, LL128 for larger ones, and Simple for the largest.
NUM_VALUES = {"cpu": (1_000, 50_000), "cuda": (1_000, 500_000, 16_000_000)}
REPEATS = 3

logger = logging.getLogger(__name__)


class PreflightError(RuntimeError):
    """One or more nodes of the job are not fit for training.

    Attributes:
        nodes: the nodes that a restart must avoid.
    """

    def __init__(self, message: str, nodes: Sequence[str]) -> None:
        super().__init__(f"preflight: {message}")
        self.nodes = tuple(nodes)


def node_name() -> str:
    """Return this node's name in Slurm; outside of Slurm, the host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def check_node(config: TrainConfig, run: RunFolder) -> None:
    """Check that this node can write into the run folder, and has enough memory to start its ranks.

    torch is not needed for this check.

    Raises:
        PreflightError: the folder cannot be written, or the memory is too small.
    """
    node = node_name()
    # A node without this file never reached the shared folder (batch_script.py reads it).
    present = run.jobs / layout.PRESENT / node
    try:
        present.parent.mkdir(parents=True, exist_ok=True)
        present.touch()
    except OSError as fault:
        raise PreflightError(
            f"{node}: cannot write into the shared folder {run.path}: {fault}", [node]
        ) from None
    free = psutil.virtual_memory().available / 1e9
    needed = HOST_GB_A_RANK * config.cluster.ranks_per_node
    if free < needed:
        raise PreflightError(
            f"{node}: has {free:.1f} GB of memory available, but its ranks need {needed:.1f} GB to start",
            [node],
        )


def check_device(config: TrainConfig, world: World) -> None:
    """Check that this rank's GPU is visible, unused and computes correctly.

    Without a GPU, the check passes if the job did not request one.

    Raises:
        PreflightError: the GPU is missing, in use, or computes wrong products.
    """
    import torch

    node = node_name()
    requested = config.cluster.gpu_request != "none" and config.cluster.env.get("CUDA_VISIBLE_DEVICES") != ""
    if requested and not torch.cuda.is_available():
        message = (
            f"{node}: torch {torch.__version__} finds no GPU; check the node's driver, and that torch is a "
            f"build for it"
        )
        raise PreflightError(message, [node])
    if world.device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(world.device)
    if requested and free < FREE_SHARE_OF_GPU * total:
        raise PreflightError(
            f"{node}: GPU {world.device.index} has only {free / 1e9:.1f} of {total / 1e9:.1f} GB free, "
            f"so another process uses it",
            [node],
        )
    ones = torch.ones(1024, 1024, device=world.device)
    if not bool((ones @ ones == 1024).all()):
        raise PreflightError(f"{node}: GPU {world.device.index} computes wrong products", [node])


def check_together(run: RunFolder, world: World) -> None:
    """Check that all ranks share the run folder, and that sums over the network are correct.

    All ranks must call this function, and all raise the same error.

    Raises:
        PreflightError: some nodes do not share the folder, or sums are wrong because of them.
        UserError: sums are wrong, but no single node can be shown to be at fault.
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
    token = world.broadcast_object(secrets.token_hex(16))
    path = run.jobs / layout.PREFLIGHT_TOKEN
    if world.is_main:
        path.write_text(token, encoding="utf-8")
    world.barrier()
    found = world.all_gather_object(_wait_for_token(path, token))
    blind = sorted({node for node, seen in zip(nodes, found, strict=True) if not seen})
    if blind:
        raise PreflightError(
            f"{', '.join(blind)}: files that {nodes[0]} writes into {run.jobs} do not appear; "
            f"set runs_dir to a folder that all nodes share",
            blind,
        )


def _wait_for_token(path: Path, token: str) -> bool:
    """Return whether a file contains the token, now or within PATIENCE_SECONDS."""
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
    """Check all-reduces of numbers whose sum every rank can compute itself.

    Some versions of NCCL corrupt sums without an error, on some networks and at some sizes
    (NVIDIA/nccl#2001). A run would then train on wrong gradients.

    Raises:
        PreflightError, UserError: see check_together.
    """
    wrong = sum(_wrong_sums(world, size) for size in NUM_VALUES[world.device.type] for _ in range(REPEATS))
    counts = world.all_gather_object(wrong)
    if not any(counts):
        return
    suspects = {node for node, count in zip(nodes, counts, strict=True) if count}
    if 2 * len(suspects) >= len(set(nodes)):
        suspects = find_suspects(world.all_gather_object(_wrong_broadcasts(world)), nodes)
    if not suspects:
        raise UserError(
            f"preflight: all-reduces over {len(set(nodes))} nodes gave wrong sums ({max(counts)} wrong "
            f"numbers on a rank), and no single node is to blame, so the network library corrupts data; "
            f"set your site's documented NCCL variables in cluster.env_many_nodes, or NCCL_PROTO=^LL128 there"
        )
    named = ", ".join(sorted(suspects))
    message = f"{named}: all-reduces over the network gave wrong sums ({max(counts)} wrong numbers on a rank)"
    raise PreflightError(message, sorted(suspects))


def _values(rank: int, size: int, device: torch.device) -> torch.Tensor:
    """Return a rank's numbers for the check: integers as float32.

    They differ by rank. They are so small that float32 holds the sum of thousands of ranks exactly.
    """
    import torch

    return ((torch.arange(size, device=device) * 7 + rank * 13) % 1021).float()


def _wrong_sums(world: World, size: int) -> int:
    """Do an all-reduce of `size` numbers; return how many of the sums are wrong on this rank."""
    others = (_values(rank, size, world.device) for rank in range(1, world.size))
    expected = sum(others, _values(0, size, world.device))
    return int((world.all_reduce_sum(_values(world.rank, size, world.device)) != expected).sum())


def _wrong_broadcasts(world: World) -> list[bool]:
    """Do a broadcast from each rank; return for each whether it arrived wrong on this rank."""
    wrong = []
    size = NUM_VALUES[world.device.type][-1]
    for source in range(world.size):
        sent = _values(source, size, world.device)
        payload = sent.clone() if world.rank == source else sent.new_zeros(size)
        received = world.broadcast(payload, source)
        wrong.append(bool((received != sent).any()))
    return wrong


def find_suspects(wrong: list[list[bool]], nodes: list[str]) -> set[str]:
    """Return the nodes that took part in the largest number of wrong broadcasts.

    Return an empty set if these are half of all nodes or more: then no node can be singled out.

    Args:
        wrong: wrong[receiving rank][sending rank] is True if the broadcast arrived wrong.
        nodes: the node of each rank.
    """
    count: Counter[str] = Counter()
    for to, row in enumerate(wrong):
        for source, bad in enumerate(row):
            if bad:
                count.update({nodes[to], nodes[source]})
    most = max(count.values(), default=0)
    suspects = {node for node, number in count.items() if number == most}
    if most and 2 * len(suspects) < len(set(nodes)):
        return suspects
    return set()


def check_free_space(folder: Path, needed: int) -> None:
    """Check that a folder on this node's own disk is writable and has `needed` bytes free.

    Raises:
        PreflightError: the folder cannot be written, or has too little space.
    """
    node = node_name()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = psutil.disk_usage(str(folder)).free
    except OSError as fault:
        raise PreflightError(
            f"{node}: cannot write into {folder} (cluster.node_local): {fault}", [node]
        ) from None
    if free < needed:
        message = (
            f"{node}: has {free / 1e9:.1f} GB free in {folder}, but the corpus needs {needed / 1e9:.1f} GB"
        )
        raise PreflightError(message, [node])
