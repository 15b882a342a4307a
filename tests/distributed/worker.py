"""Worker processes that train the cases of the distributed tests, one after another.

A case is an ordinary run folder. finetune.training.train.train trains it, and the run's own files
are the result.

Importing torch and DeepSpeed takes longer than a tiny run. Cases with the same number of ranks
therefore share a process group, and all ranks are forked from a server that has imported these
libraries.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from unittest import mock

from data_prep.user_error import UserError
from finetune.runs.folder import RunFolder
from tests.distributed.faults import FAULTS

IMPORTED = [
    "finetune.training.train",
    "bitsandbytes",
    "datasets",
    "transformers.models.llama.modeling_llama",
    "pytest",
]


@dataclass(frozen=True)
class Case:
    """A run to train.

    Args:
        path: the run's folder.
        fault: name of the fault that is planted in every rank, from FAULTS; None for no fault.
        refused: True if training should raise a UserError. The error's message is then the
            `error` of the run's outcome.
        deadline: end of the job's time, in seconds since the epoch; None for no end.
    """

    path: str
    fault: str | None = None
    refused: bool = False
    deadline: float | None = None

    @property
    def run(self) -> RunFolder:
        return RunFolder(Path(self.path))


@dataclass(frozen=True)
class Launched:
    """The running ranks that train the cases in a folder."""

    folder: Path
    ranks: list[ForkServerProcess]

    def join(self, expected: int = 0, timeout: int = 500) -> None:
        """Wait for the ranks to end; assert that each has the exit code `expected`."""
        end = time.monotonic() + timeout
        for rank in self.ranks:
            rank.join(max(0.0, end - time.monotonic()))
        codes = [rank.exitcode for rank in self.ranks]
        for rank in self.ranks:
            rank.kill()
        tail = (self.folder / "rank-0.log").read_text(errors="replace")[-3000:]
        message = f"ranks ended with {codes} (None: not within {timeout} s)\n{tail}"
        assert all(code == expected for code in codes), message


def run(folder: Path, cases: list[Case], world_size: int, expected: int = 0) -> None:
    """Train the cases on new ranks, and wait for them to end."""
    start(folder, cases, world_size).join(expected)


def start(folder: Path, cases: list[Case], world_size: int) -> Launched:
    """Start ranks that train the cases, and return at once."""
    write_cases(folder, cases)
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):  # torch reads it when it is imported
        ensure_running()
    ranks = []
    for number in range(world_size):
        rank = forks.Process(target=_run_fork, args=(folder, number, world_size), daemon=True)
        rank.start()
        ranks.append(rank)
    return Launched(folder, ranks)


def write_cases(folder: Path, cases: list[Case]) -> None:
    """Write the cases into `folder`, where the ranks read them."""
    folder.mkdir(parents=True)
    (folder / "cases.json").write_text(json.dumps([dataclasses.asdict(case) for case in cases]))


def environment(rank: int, world_size: int) -> dict[str, str]:
    """Return the environment variables of a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _run_fork(folder: Path, rank: int, world_size: int) -> None:
    with (folder / f"rank-{rank}.log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(environment(rank, world_size))
    run_rank(folder)


def run_rank(folder: Path) -> None:
    """Train the cases on the rank whose number is in RANK; end the process if a case fails."""
    try:
        _train_cases(folder)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _train_cases(folder: Path) -> None:
    import torch.distributed as dist

    from finetune.distributed import World
    from finetune.runs.stop import StopFlag
    from finetune.training.engine import init_distributed
    from finetune.training.train import train

    world = World()
    init_distributed(world, f"file://{folder}/rendezvous")
    for case in [Case(**fields) for fields in json.loads((folder / "cases.json").read_text())]:
        outcome: dict[str, str] = {}
        stop_flag = StopFlag(case.run.stop_file, case.deadline)
        stop_flag.install_signal_handlers()
        try:
            with FAULTS[case.fault].plant() if case.fault else nullcontext():
                outcome["state"] = train(case.run.config(), case.run, world, stop_flag)
        except UserError as error:
            if not case.refused:
                raise
            outcome["error"] = str(error)
        if world.is_main:
            case.run.write_json("outcome.json", outcome)
        world.barrier()  # the next case may use the result of this one
    world.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    run_rank(Path(sys.argv[1]))
