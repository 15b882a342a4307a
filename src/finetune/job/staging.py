"""The corpus on each node's own disk, for as long as a job runs: shared file systems are slow at many small
reads at once.

<cluster.node_local>/finetune-<run id>/<node>/    the node's copy; the folder above is removed when the job
ends
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.shards import Corpus
from data_prep.user_error import UserError
from finetune.config.train import TrainConfig
from finetune.distributed import World
from finetune.job.preflight import PreflightError, check_room, node_name
from finetune.runs import layout
from finetune.runs.folder import RunFolder
from finetune.runs.records import Staged

logger = logging.getLogger(__name__)


@contextmanager
def staged(config: TrainConfig, run: RunFolder, world: World) -> Iterator[TrainConfig]:
    """The config with its corpus copied to this node's disk, if data.stage asks for it; the copy is removed
    afterwards.

    One rank a node copies, and checks every file against the corpus' manifest. All ranks call it.

    Raises:
        PreflightError: a node has no room, or the copy came out wrong; on all ranks, naming the nodes.
        UserError: the folder has a variable that the job lacks.
    """
    if not config.data.stage:
        yield config
        return
    assert config.cluster.node_local is not None  # config/train.py
    parent = Path(os.path.expandvars(config.cluster.node_local))
    if "$" in str(parent):
        raise UserError(
            f"cluster.node_local is {config.cluster.node_local}, and the job has no such variable"
        )
    all_nodes = parent / f"finetune-{run.id}"
    folder = all_nodes / node_name()  # what a site calls node-local may be one folder of all nodes of the job
    if world.is_main:
        Staged(str(all_nodes)).write(
            run.path / layout.STAGED
        )  # the batch script removes what killed ranks could not
    began = time.monotonic()
    fault = _copy(config.data.corpus_folder, folder) if world.local_rank == 0 else None
    faults = [fault for fault in world.all_gather_object(fault) if fault]
    try:
        if faults:
            raise PreflightError(
                "; ".join(message for message, _ in faults), sorted(node for _, node in faults)
            )
        logger.info("corpus on the nodes' own disks (%s), %.1f s", all_nodes, time.monotonic() - began)
        yield dataclasses.replace(config, data=dataclasses.replace(config.data, corpus=str(folder)))
    finally:  # memory maps outlive the files
        if world.local_rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another node's copy is still in use there
                all_nodes.rmdir()
        if world.is_main:
            (run.path / layout.STAGED).unlink(missing_ok=True)


def _copy(corpus: Path, folder: Path) -> tuple[str, str] | None:
    """Copy and verify; a fault and the node it is of, or None. A whole copy of an attempt that was killed is
    used as it is."""
    try:
        if _is_copy(corpus, folder):
            return None
        shutil.rmtree(folder, ignore_errors=True)
        check_room(folder.parent, sum(path.stat().st_size for path in corpus.rglob("*") if path.is_file()))
        shutil.copytree(corpus, folder)
        Corpus(folder).verify()
    except PreflightError as fault:
        return str(fault).removeprefix("preflight: "), node_name()
    except (OSError, ValueError) as fault:
        return (
            f"{node_name()} could not copy the corpus to {folder}: {' '.join(str(fault).split())[:300]}",
            node_name(),
        )
    return None


def _is_copy(corpus: Path, folder: Path) -> bool:
    try:
        Corpus(folder).verify()
        return Corpus(folder).manifest.digest == Corpus(corpus).manifest.digest
    except (OSError, ValueError):
        return False
