"""A copy of the corpus on each node's own disk while a job runs (data.stage).

Shared file systems are slow when many processes read small pieces; hence the copies. Each node's
copy is in the folder <cluster.node_local>/finetune-<run id>/<node>/.
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
from finetune.job.preflight import PreflightError, check_free_space, node_name
from finetune.runs import layout
from finetune.runs.folder import RunFolder
from finetune.runs.records import Staged

logger = logging.getLogger(__name__)


@contextmanager
def stage_corpus(config: TrainConfig, run: RunFolder, world: World) -> Iterator[TrainConfig]:
    """Copy the corpus to this node's disk if data.stage is set, and remove the copy at the end.

    One rank per node does this, and checks each copied file against the corpus' manifest. All ranks
    must enter this context.

    Yields:
        the config, with the copy as its corpus; if data.stage is not set, the unchanged config.

    Raises:
        PreflightError: on at least one node, there is too little space or the copy failed. All
            ranks raise it, with the names of the nodes.
        UserError: cluster.node_local contains a variable that the job does not set.
    """
    if not config.data.stage:
        yield config
        return
    assert config.cluster.node_local is not None  # config/train.py
    parent = Path(os.path.expandvars(config.cluster.node_local))
    if "$" in str(parent):
        raise UserError(
            f"cluster.node_local: {config.cluster.node_local} contains a variable that the job does not set; "
            f"set a folder that exists on the compute nodes"
        )
    all_nodes = parent / f"finetune-{run.id}"
    folder = all_nodes / node_name()  # on some sites, the "node-local" folder is shared by the job's nodes
    if world.is_main:
        # From this record, the batch script removes the copies if ranks are killed.
        Staged(str(all_nodes)).write(run.path / layout.STAGED)
    began = time.monotonic()
    fault = _copy(config.data.corpus_folder, folder) if world.local_rank == 0 else None
    faults = [fault for fault in world.all_gather_object(fault) if fault]
    try:
        if faults:
            message = "; ".join(message for message, _ in faults)
            raise PreflightError(message, sorted(node for _, node in faults))
        logger.info("corpus copied to the nodes' own disks (%s), %.1f s", all_nodes, time.monotonic() - began)
        yield dataclasses.replace(config, data=dataclasses.replace(config.data, corpus=str(folder)))
    finally:  # ranks that have mapped the files into memory can still read them
        if world.local_rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # the folder may still contain the copy of another node
                all_nodes.rmdir()
        if world.is_main:
            (run.path / layout.STAGED).unlink(missing_ok=True)


def _copy(corpus: Path, folder: Path) -> tuple[str, str] | None:
    """Copy the corpus and verify the copy, unless a killed attempt has left a complete copy.

    Returns:
        None after success; else an error message, and this node's name.
    """
    try:
        if _is_complete_copy(corpus, folder):
            return None
        shutil.rmtree(folder, ignore_errors=True)
        size = sum(path.stat().st_size for path in corpus.rglob("*") if path.is_file())
        check_free_space(folder.parent, size)
        shutil.copytree(corpus, folder)
        Corpus(folder).verify()
    except PreflightError as fault:
        return str(fault).removeprefix("preflight: "), node_name()
    except (OSError, ValueError) as fault:
        reason = " ".join(str(fault).split())[:300]
        return f"{node_name()}: the corpus could not be copied to {folder}: {reason}", node_name()
    return None


def _is_complete_copy(corpus: Path, folder: Path) -> bool:
    try:
        Corpus(folder).verify()
        return Corpus(folder).manifest.digest == Corpus(corpus).manifest.digest
    except (OSError, ValueError):
        return False
