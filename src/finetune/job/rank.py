"""The start of a rank in a job: environment, preflight checks, process group, training.

submitit calls `run_job` with the path of the run folder. A job's pickle contains only this call.
"""

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
RENDEZVOUS_SECONDS = 600
COLLECTIVE_MARGIN_MIN = 5  # a collective times out this long after the watchdog, which ends the job first
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h

logger = logging.getLogger(__name__)


def run_job(path: str) -> None:
    """Train the run in the folder `path`; this process is one of its ranks.

    The outcome or the failure is written into the folder. After a failure, the process exits
    with 1.
    """
    run = RunFolder(Path(path))
    environment = submitit.JobEnvironment()
    rank = environment.global_rank
    stop = StopFlag(run.stop_file)
    # This comes before the imports, which take longer than some sites wait between signal and kill.
    stop.install_signal_handlers()
    faulthandler.enable()  # a crash in native code writes its signal and stack into the log (causes.py)
    lock = run.lock
    if rank == 0:  # two jobs that write into the same run folder would corrupt it
        try:
            lock.acquire()
        except Timeout:
            logger.error("run %s: is in use by another process; this job ends without training", run.id)
            os._exit(1)
        run.record_start()
    try:
        state = train_as_rank(run, environment, stop)
        if rank == 0:
            run.record_outcome(state, asked_by=stop.describe())
    except BaseException as error:
        try:
            traceback.print_exc()
            run.record_failure(rank, _one_line(error), _failure_kind(error), getattr(error, "nodes", ()))
            sys.stderr.flush()
        # Exit even if nothing can be written. The other ranks wait in a collective, and destructors
        # of this process would wait for the other ranks.
        finally:
            os._exit(1)


def train_as_rank(run: RunFolder, environment: submitit.JobEnvironment, stop: StopFlag) -> RunState:
    """Prepare this rank, train, and return the state that the run ended in."""
    config = run.config()
    stop.deadline = _deadline(config)
    _prepare_environment(config, environment)
    preflight.check_node(config, run)
    if config.after and environment.global_rank == 0:  # at submission, the corpus did not exist yet
        run_inputs.check_inputs(config)
    return _train(config, run, environment, stop)


def _deadline(config: TrainConfig) -> float | None:
    """Return the time, in seconds since the epoch, at which to stop even without a signal.

    Return None if the job has no known end.
    """
    end = os.environ.get("SLURM_JOB_END_TIME", "")  # the batch script sets it where Slurm does not
    if end.isdigit():
        return int(end) - config.cluster.signal_lead_s
    return None


def _prepare_environment(config: TrainConfig, environment: submitit.JobEnvironment) -> None:
    """Set rank, threads and offline mode in the environment, before torch is imported."""
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
        # A value with \$ is expanded inside the container, which has already been done.
        ours = {key: value for key, value in config.cluster.env.items() if "\\$" not in value}
        # The batch script has set these already. But srun overrides CUDA_VISIBLE_DEVICES, by which
        # a profile can hide GPUs.
        os.environ.update({key: os.path.expandvars(value) for key, value in ours.items()})
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // config.cluster.ranks_per_node)))
    if os.environ[SHELL_GPUS] == ALL_GPUS:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[SHELL_GPUS]
    os.environ.update(config.cluster.env)


def _rendezvous_url(run: RunFolder, environment: submitit.JobEnvironment, suffix: str) -> str:
    """Return the URL at which torch.distributed connects the ranks. Each attempt has its own URL.

    Outside of Slurm, it is the URL of a file. A port would be less safe: another process can take
    it after it was chosen. In Slurm, it is the address and a port of rank 0, which rank 0 writes
    into the run folder. There, the URL of a file might not work, because some shared file systems
    do not support the necessary locks.

    Args:
        suffix: text that is appended to rank 0's host name (cluster.master_suffix).

    Raises:
        PreflightError: rank 0's address did not appear within RENDEZVOUS_SECONDS.
    """
    file = run.jobs / layout.rendezvous_of(environment.job_id, restart_count())
    if environment.cluster != "slurm":
        return f"file://{file}"
    if environment.global_rank == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        layout.write_text(file, f"tcp://{socket.gethostname()}{suffix}:{port}")
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            raise preflight.PreflightError(
                f"{preflight.node_name()}: received no address from rank 0 within {RENDEZVOUS_SECONDS} s", []
            )
        time.sleep(0.2)
        os.scandir(run.jobs).close()  # some network file systems refresh a folder only when it is listed
    return file.read_text(encoding="utf-8")


@contextlib.contextmanager
def lean_imports(*hidden: str) -> Iterator[None]:
    """Make imports in the `with` block faster.

    The modules `hidden` appear not to be installed, so that libraries do not import them. Garbage
    collection is paused.

    DeepSpeed imports MLflow, for its autotuner. PEFT imports bitsandbytes, for quantized base
    models, and bitsandbytes imports torch's compiler. These imports take a third of the CPU time of
    a rank's start. Garbage collection takes a fifth of the rest, because it scans all imported
    objects again and again.
    """
    absent = [name for name in hidden if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # imported objects are needed until the process ends
        gc.enable()
        for name in absent:
            del sys.modules[name]


def _keep_freed_memory() -> None:
    """Keep glibc from returning freed memory to the kernel.

    On a CPU, the page faults on getting the memory back take 5% of the time of a step.
    """
    with contextlib.suppress(AttributeError, OSError):  # raised if the C library is not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the highest value that it accepts


def _train(
    config: TrainConfig, run: RunFolder, environment: submitit.JobEnvironment, stop: StopFlag
) -> RunState:
    hidden = ["mlflow"] if config.model.quantization else ["mlflow", "bitsandbytes"]
    with lean_imports(*hidden):
        import torch
        import torch.distributed as dist

        from finetune.distributed import World, configure_logging
        from finetune.job.staging import stage_corpus
        from finetune.training.engine import init_distributed
        from finetune.training.train import train

    world = World()
    configure_logging(world)
    num_gpus = torch.cuda.device_count()
    if 0 < num_gpus < config.cluster.ranks_per_node:  # NCCL refuses two ranks on one GPU
        raise UserError(
            f"cluster.ranks_per_node: must be at most {num_gpus}, the number of visible GPUs; "
            f"lower it, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    logger.info("%d ranks, this one on %s", world.size, world.device)
    if world.device.type == "cpu":
        _keep_freed_memory()
    preflight.check_device(config, world)
    url = _rendezvous_url(run, environment, config.cluster.master_suffix)
    init_distributed(world, url, timedelta(minutes=config.hang_timeout_min + COLLECTIVE_MARGIN_MIN))
    preflight.check_together(run, world)
    with stage_corpus(config, run, world) as with_local_corpus:
        state = train(with_local_corpus, run, world, stop)
    world.barrier()
    dist.destroy_process_group()
    return state


def _failure_kind(error: BaseException) -> FailureKind:
    """Return an error's kind, by which batch_script.py decides whether to restart the run."""
    if isinstance(error, preflight.PreflightError):
        return FailureKind.PREFLIGHT
    if _is_mistake(error):
        return FailureKind.MISTAKE
    return FailureKind.CRASH


def _is_mistake(error: BaseException) -> bool:
    """Return whether an error would come back after a restart: a wrong setting, or a bad file."""
    return isinstance(error, (UserError, FileNotFoundError, *DAMAGED_FILE)) or is_refused_config(error)


def _one_line(error: BaseException) -> str:
    """Return an error's message as one line, with the error's type unless the text is for users."""
    text = " ".join(str(error).split())
    if _is_mistake(error) or isinstance(error, preflight.PreflightError):
        return text
    return f"{type(error).__name__}: {text[:500]} (traceback in jobs/)"
