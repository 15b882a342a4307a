"""Checks of a job's nodes before training: shared folder, memory, GPUs, sums over the network.

They take a few seconds, before anything large is loaded. A failure names the node; the run is then
restarted without it (batch_script.py).
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

HOST_GB_A_RANK = 0.5  # the least memory in which a rank can start
FREE_SHARE_OF_GPU = 0.9  # on an unused GPU only the driver's memory is taken
PATIENCE_SECONDS = 20.0  # network file systems show a new file to other nodes within a few seconds
# Sizes in numbers for all-reduces that use each of NCCL's protocols: LL for small messages, LL128,
# and Simple for large ones.
NUM_VALUES = {"cpu": (1_000, 50_000), "cuda": (1_000, 500_000, 16_000_000)}
REPEATS = 3

logger = logging.getLogger(__name__)


class PreflightError(RuntimeError):
    """A node is not fit to train on.

    Attributes:
        nodes: the nodes that a restart must avoid.
    """

    def __init__(self, message: str, nodes: Sequence[str]) -> None:
        super().__init__(f"preflight: {message}")
        self.nodes = tuple(nodes)


def node_name() -> str:
    """Return this node's name in the scheduler."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def check_node(config: TrainConfig, run: RunFolder) -> None:
    """Check this node without torch: a writable shared folder, and enough memory to start.

    Raises:
        PreflightError: this node fails.
    """
    node = node_name()
    # batch_script.py reads from these files which nodes never reached the shared folder.
    present = run.jobs / layout.PRESENT / node
    try:
        present.parent.mkdir(parents=True, exist_ok=True)
        present.touch()
    except OSError as fault:
        raise PreflightError(
            f"{node} cannot write into the shared folder {run.path}: {fault}", [node]
        ) from None
    free = psutil.virtual_memory().available / 1e9
    needed = HOST_GB_A_RANK * config.cluster.ranks_per_node
    if free < needed:
        raise PreflightError(
            f"{node} has {free:.1f} GB of memory available; its ranks need {needed:.1f} GB to start", [node]
        )


def check_device(config: TrainConfig, world: World) -> None:
    """Check that this rank's GPU, if the job uses one, is visible, unused and computes correctly.

    Raises:
        PreflightError: this node fails.
    """
    import torch

    node = node_name()
    requested = config.cluster.gpu_request != "none" and config.cluster.env.get("CUDA_VISIBLE_DEVICES") != ""
    if requested and not torch.cuda.is_available():
        message = f"{node}: torch {torch.__version__} finds no GPU; check the driver and torch's CUDA build"
        raise PreflightError(message, [node])
    if world.device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(world.device)
    if requested and free < FREE_SHARE_OF_GPU * total:
        raise PreflightError(
            f"{node}: GPU {world.device.index} has only {free / 1e9:.1f} of {total / 1e9:.1f} GB free; "
            f"another process uses it",
            [node],
        )
    ones = torch.ones(1024, 1024, device=world.device)
    if not bool((ones @ ones == 1024).all()):
        raise PreflightError(f"{node}: GPU {world.device.index} computes wrong products", [node])


def check_together(run: RunFolder, world: World) -> None:
    """Check with all ranks that they share one folder and that sums over the network are right.

    Raises:
        PreflightError: on all ranks, naming the nodes.
        UserError: sums are wrong on so many nodes that no single node is to blame.
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
            f"runs_dir must be a folder that all nodes share",
            blind,
        )


def _wait_for_token(path: Path, token: str) -> bool:
    """Return whether the file holds the token within PATIENCE_SECONDS."""
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
    (NVIDIA/nccl#2001): such a run trains on wrong gradients.
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
            f"preflight: an all-reduce over {len(set(nodes))} nodes gives wrong sums ({max(counts)} numbers "
            f"on a rank), and no single node is to blame: the network library corrupts data; set what your "
            f"site documents for NCCL (cluster.env_many_nodes), or NCCL_PROTO=^LL128"
        )
    named = ", ".join(sorted(suspects))
    raise PreflightError(f"{named}: wrong sums over the network ({max(counts)} numbers)", sorted(suspects))


def _values(rank: int, size: int, device: torch.device) -> torch.Tensor:
    """Return integers that differ by rank; float32 holds the sum of thousands of ranks exactly."""
    import torch

    return ((torch.arange(size, device=device) * 7 + rank * 13) % 1021).float()


def _wrong_sums(world: World, size: int) -> int:
    """Count the numbers of an all-reduce that arrive wrong on this rank."""
    others = (_values(rank, size, world.device) for rank in range(1, world.size))
    expected = sum(others, _values(0, size, world.device))
    return int((world.all_reduce_sum(_values(world.rank, size, world.device)) != expected).sum())


def _wrong_broadcasts(world: World) -> list[bool]:
    """Return, for each sending rank, whether its broadcast arrives wrong on this rank."""
    wrong = []
    size = NUM_VALUES[world.device.type][-1]
    for source in range(world.size):
        sent = _values(source, size, world.device)
        payload = sent.clone() if world.rank == source else sent.new_zeros(size)
        received = world.broadcast(payload, source)
        wrong.append(bool((received != sent).any()))
    return wrong


def find_suspects(wrong: list[list[bool]], nodes: list[str]) -> set[str]:
    """Return the nodes that most wrong transfers have in common; none unless they are a minority.

    Args:
        wrong: [receiving rank][sending rank].
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
        PreflightError: it is not, or has not.
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
        message = f"{node} has {free / 1e9:.1f} GB free in {folder}; the corpus needs {needed / 1e9:.1f} GB"
        raise PreflightError(message, [node])
