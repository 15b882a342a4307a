"""What runs in a job, once a rank. submitit's pickle holds the name of `run_job` and a run folder's path, nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import traceback
from pathlib import Path

import submitit
from filelock import Timeout

from finetune.config import TrainConfig
from finetune.run_folder import RunFolder

SHELL_GPUS = "FINETUNE_CUDA_VISIBLE_DEVICES"
ALL_GPUS = "all"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

logger = logging.getLogger(__name__)


def run_job(path: str) -> None:
    """Train the run in the folder `path` as one of its ranks. How it ended is in the folder; the exit code says it too."""
    run = RunFolder(Path(path))
    environment = submitit.JobEnvironment()
    rank = environment.global_rank
    lock = run.lock
    if rank == 0:  # two processes that write one run would ruin it
        try:
            lock.acquire()
        except Timeout:
            logger.error("run %s is in use by another process: nothing done", run.id)
            os._exit(1)
    try:
        config = run.config()
        _prepare_environment(config, environment)
        state = _train(config, run, environment.job_id)
        if rank == 0:
            run.write_json("outcome.json", {"state": state})
    except BaseException as error:
        traceback.print_exc()
        run.record_failure(rank, _one_line(error))
        # Peers wait in a collective: leave at once, without the destructors that would wait for them.
        sys.stderr.flush()
        os._exit(1)


def _prepare_environment(config: TrainConfig, environment: submitit.JobEnvironment) -> None:
    """Before torch is imported: who this rank is, how many threads it gets, and no network."""
    cores = len(os.sched_getaffinity(0))
    os.environ.update(
        RANK=str(environment.global_rank),
        WORLD_SIZE=str(environment.num_tasks),
        LOCAL_RANK=str(environment.local_rank),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // config.cluster.ranks_per_node)))
    if os.environ[SHELL_GPUS] == ALL_GPUS:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[SHELL_GPUS]
    os.environ.update(config.cluster.env)


def _keep_freed_memory() -> None:
    """Tell glibc not to hand memory back after each large tensor: the page faults of getting it again took 5% of a CPU's step."""
    with contextlib.suppress(AttributeError, OSError):  # another libc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes


def _train(config: TrainConfig, run: RunFolder, job_id: str) -> str:
    # Heavy: torch, DeepSpeed, transformers, PEFT.
    import torch
    import torch.distributed as dist

    from finetune.distributed import World, configure_logging
    from finetune.engine import init_distributed
    from finetune.train import train

    world = World()
    configure_logging(world)
    if 0 < torch.cuda.device_count() < config.cluster.ranks_per_node:  # NCCL refuses two ranks on one GPU
        raise ValueError(
            f"cluster.ranks_per_node is {config.cluster.ranks_per_node}, but {torch.cuda.device_count()} GPUs are visible: "
            f"choose {torch.cuda.device_count()}, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    logger.info("%d ranks, this one on %s", world.size, world.device)
    if world.device.type == "cpu":
        _keep_freed_memory()
    # A file as meeting point: no port to race for. It must be new for every attempt.
    init_distributed(world, f"file://{run.jobs}/rendezvous-{job_id}")
    state = train(config, run, world)
    world.barrier()
    dist.destroy_process_group()
    return state


def _one_line(error: BaseException) -> str:
    """A ValueError is written for people; anything else is a fault of ours and needs its type, and the log."""
    text = " ".join(str(error).split())
    return (
        text
        if isinstance(error, ValueError | FileNotFoundError)
        else f"{type(error).__name__}: {text[:500]} (traceback in jobs/)"
    )
