"""What runs in a job, once a rank. submitit's pickle holds the name of `run_job` and a run folder's path,
nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import submitit
from filelock import Timeout

from data_prep.user_error import DAMAGED_FILE, UserError, is_refused_config
from finetune.config.train import TrainConfig
from finetune.job import preflight
from finetune.runs import inputs as run_inputs
from finetune.runs import layout
from finetune.runs.folder import RunFolder, restart_count
from finetune.runs.state import FailureKind, RunState
from finetune.runs.stop import StopFlag

SHELL_GPUS = "FINETUNE_CUDA_VISIBLE_DEVICES"
ALL_GPUS = "all"
MEETING_SECONDS = 600
COLLECTIVE_MARGIN_MIN = 5  # a collective fails this long after the watchdog, which has ended the job by then
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

logger = logging.getLogger(__name__)


def run_job(path: str) -> None:
    """Train the run in the folder `path` as one of its ranks. How it ended is in the folder; the exit code
    says it too."""
    run = RunFolder(Path(path))
    environment = submitit.JobEnvironment()
    rank = environment.global_rank
    stop = StopFlag(run.stop_file)
    stop.install_signal_handlers()  # before the imports, which take longer than some schedulers wait
    faulthandler.enable()  # a crash in native code leaves its signal and stack in the log (causes.py)
    lock = run.lock
    if rank == 0:  # two processes that write one run would ruin it
        try:
            lock.acquire()
        except Timeout:
            logger.error("run %s is in use by another process: nothing done", run.id)
            os._exit(1)
        run.record_start()
    try:
        state = train_as_rank(run, environment, stop)
        if rank == 0:
            run.record_outcome(state, asked_by=stop.describe())
    except BaseException as error:
        try:
            traceback.print_exc()
            run.record_failure(rank, _one_line(error), _kind(error), getattr(error, "nodes", ()))
            sys.stderr.flush()
        # whatever cannot be written: peers wait in a collective, and destructors would wait for them
        finally:
            os._exit(1)


def train_as_rank(run: RunFolder, environment: submitit.JobEnvironment, stop: StopFlag) -> RunState:
    """What a job is there for; what goes wrong is raised."""
    config = run.config()
    stop.deadline = _deadline(config)
    _prepare_environment(config, environment)
    preflight.check_node(config, run)
    if config.after and environment.global_rank == 0:  # its corpus was not there when it was submitted
        run_inputs.check_inputs(config)
    return _train(config, run, environment, stop)


def _deadline(config: TrainConfig) -> float | None:
    """When to leave at the latest (seconds since the epoch), should the scheduler's signal not come; None:
    the job has no end."""
    end = os.environ.get("SLURM_JOB_END_TIME", "")  # the batch script sets it where Slurm does not
    return int(end) - config.cluster.signal_lead_s if end.isdigit() else None


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
    if environment.cluster == "slurm":
        ours = {
            key: value for key, value in config.cluster.env.items() if "\\$" not in value
        }  # \$ was for the container
        variables = {key: os.path.expandvars(value) for key, value in ours.items()}
        os.environ.update(
            variables
        )  # again: Slurm says which GPUs are ours after the batch script hid pretended ones
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // config.cluster.ranks_per_node)))
    if os.environ[SHELL_GPUS] == ALL_GPUS:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[SHELL_GPUS]
    os.environ.update(config.cluster.env)


def _meeting_point(run: RunFolder, environment: submitit.JobEnvironment, suffix: str) -> str:
    """Where the ranks of this attempt find each other, as torch.distributed's URL.

    On one machine a file: no port to race for. Over nodes rank 0's address, which it tells the others through
        the run folder:
    file locks, which a file as meeting point needs, do not work between the nodes of every shared file
    system. Both are new for every attempt.
    """
    file = run.jobs / layout.rendezvous_of(environment.job_id, restart_count())
    if environment.cluster != "slurm":
        return f"file://{file}"
    if environment.global_rank == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        layout.write_text(file, f"tcp://{socket.gethostname()}{suffix}:{port}")
    deadline = time.monotonic() + MEETING_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            raise preflight.PreflightError(
                f"{preflight.node_name()} heard nothing of rank 0 within {MEETING_SECONDS} s", []
            )
        time.sleep(0.2)
        os.scandir(run.jobs).close()  # some network file systems look again only then
    return file.read_text(encoding="utf-8")


@contextlib.contextmanager
def lean_imports(*hidden: str) -> Iterator[None]:
    """As if these modules were not installed: DeepSpeed imports MLflow for its autotuner, and PEFT
    bitsandbytes, which imports torch's compiler, for layers that only a quantized base has: a third of the
    CPU time in which a rank starts. And without garbage collection, which goes through all that is imported
        again and again: a fifth of the rest."""
    absent = [name for name in hidden if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what was imported stays
        gc.enable()
        for name in absent:
            del sys.modules[name]


def _keep_freed_memory() -> None:
    """Tell glibc not to hand memory back after each large tensor: the page faults of getting it again took 5%
    of a CPU's step."""
    with contextlib.suppress(AttributeError, OSError):  # another libc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes


def _train(
    config: TrainConfig, run: RunFolder, environment: submitit.JobEnvironment, stop: StopFlag
) -> RunState:
    # Heavy: torch, DeepSpeed, transformers, PEFT.
    with lean_imports("mlflow", *(() if config.model.quantization else ("bitsandbytes",))):
        import torch
        import torch.distributed as dist

        from finetune.distributed import World, configure_logging
        from finetune.job.staging import staged
        from finetune.training.engine import init_distributed
        from finetune.training.train import train

    world = World()
    configure_logging(world)
    if 0 < torch.cuda.device_count() < config.cluster.ranks_per_node:  # NCCL refuses two ranks on one GPU
        raise UserError(
            f"cluster.ranks_per_node is {config.cluster.ranks_per_node}, but {torch.cuda.device_count()} GPUs are visible: "
            f"choose {torch.cuda.device_count()}, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    logger.info("%d ranks, this one on %s", world.size, world.device)
    if world.device.type == "cpu":
        _keep_freed_memory()
    preflight.check_device(config, world)
    meeting_point = _meeting_point(run, environment, config.cluster.master_suffix)
    init_distributed(world, meeting_point, timedelta(minutes=config.hang_timeout_min + COLLECTIVE_MARGIN_MIN))
    preflight.check_together(run, world)
    with staged(config, run, world) as with_local_corpus:
        state = train(with_local_corpus, run, world, stop)
    world.barrier()
    dist.destroy_process_group()
    return state


def _kind(error: BaseException) -> FailureKind:
    """Return what an error means for the run: see batch_script.py."""
    if isinstance(error, preflight.PreflightError):
        return FailureKind.PREFLIGHT
    return FailureKind.MISTAKE if _is_mistake(error) else FailureKind.CRASH


def _is_mistake(error: BaseException) -> bool:
    """Return whether it comes again however often the job does: a file is gone or damaged, or transformers
    refuses a config."""
    return isinstance(error, (UserError, FileNotFoundError, *DAMAGED_FILE)) or is_refused_config(error)


def _one_line(error: BaseException) -> str:
    """Return the message of a user's mistake; anything else is a fault of ours and needs its type, and the
    log."""
    text = " ".join(str(error).split())
    return (
        text
        if _is_mistake(error) or isinstance(error, preflight.PreflightError)
        else f"{type(error).__name__}: {text[:500]} (traceback in jobs/)"
    )
