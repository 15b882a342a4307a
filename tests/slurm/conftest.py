"""A Slurm cluster for the session, and a folder with commands that use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune.runs.folder import RunFolder
from slurm.testcluster.cluster import Cluster, unavailable_reason
from tests.corpora import write_corpus
from tests.models import LLAMA

FINETUNE = [sys.executable, "-m", "finetune.cli.main"]


@dataclass
class Shell:
    """A folder, and functions that run commands in it on the cluster."""

    folder: Path
    cluster: Cluster

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.cluster.environment}

    def run(self, *command: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=800,
        )
        assert done.returncode == code, f"{done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        return done

    def finetune(
        self, *arguments: str, code: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run(*FINETUNE, *arguments, code=code, **environment)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command and return its process without waiting for its end."""
        return subprocess.Popen(
            [*FINETUNE, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def runs(self, ids: str) -> list[RunFolder]:
        return [RunFolder.find(run_id, self.folder / "runs") for run_id in ids.split()]

    def queue(self) -> dict[str, str]:
        """Return the state of each running or waiting job. The key is the job's id."""
        lines = self.cluster.slurm("squeue", "--noheader", "--array", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Close the partition: it accepts jobs but starts none."""
        self.cluster.slurm("scontrol", "update", "partition=debug", "state=down")
        try:
            yield
        finally:
            self.cluster.slurm("scontrol", "update", "partition=debug", "state=up")

    def empty_queue(self) -> None:
        self.cluster.slurm("scancel", "--user=root")
        wait_for(lambda: not self.queue())


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    reason = unavailable_reason()
    if reason:
        pytest.skip(reason)
    cluster = Cluster(f"tests-{os.getpid()}")
    try:
        cluster.up(owner=os.getpid())
    except RuntimeError as fault:
        if "apt-get" in str(fault):
            pytest.skip(f"the test cluster's packages cannot be installed: {fault}")
        raise
    folder = tmp_path_factory.mktemp("slurm")
    write_corpus(folder / "corpora" / "laws", num_documents=120, longest=512, seed=1)
    (folder / "my" / "model").mkdir(parents=True)
    (folder / "my" / "model" / "tiny.yaml").write_text(json.dumps({"from_scratch": LLAMA}))
    yield Shell(folder, cluster)
    cluster.down()


def training(*settings: str, cluster: str = "testcluster") -> list[str]:
    """Return the arguments of a run that trains a tiny model for six steps."""
    return [
        "--config-dir",
        "my",
        "model=tiny",
        "adapter=none",
        "corpus=laws",
        f"cluster={cluster}",
        "data.sequence_length=128",
        "global_batch_size=8",
        "micro_batch_size=2",
        "max_steps=6",
        *settings,
    ]


def losses(run: RunFolder) -> list[float]:
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [record["values"]["train/loss"] for record in records if "train/loss" in record["values"]]


def wait_for(condition: Callable[[], Any], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"timed out after {seconds} s"
        time.sleep(0.3)
