"""Runs are managed from a new shell while Slurm's accounting is stopped.

A submission is refused if its job cannot run, or if the disk is full.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune.cli import main as cli
from finetune.runs.folder import RunFolder
from finetune.tracking.spool import steps_done
from tests.slurm.conftest import Shell, training, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_status_logs_cancel_and_retry_work_from_a_new_shell_without_accounting(shell: Shell) -> None:
    long = training("max_steps=5000", "checkpoint_every=5", "name=long")
    (run,) = shell.runs(shell.finetune("train", *long).stdout)
    wait_for(lambda: "RUNNING" in shell.queue().values())
    with shell.closed():
        (waiting,) = shell.runs(shell.finetune("train", *training("name=waiting")).stdout)
        shell.cluster.stop_accounting()
        try:
            assert "queued (PartitionDown)" in " ".join(shell.finetune("status", waiting.id).stdout.split())
            wait_for(lambda: steps_done(run.path) > 5)
            assert "running" in shell.finetune("status", run.id).stdout
            assert "preflight passed" in shell.finetune("logs", run.id).stdout
            following = shell.start("logs", "-f", run.id)
            shell.finetune("cancel", waiting.id)
            assert waiting.state() == "cancelled"
            assert "after its next step" in shell.finetune("cancel", run.id).stderr
            wait_for(lambda: not shell.queue())
            out, _ = following.communicate(timeout=60)
            assert "stopped" in out
            assert f"{run.id} stopped" in " ".join(shell.finetune("status").stdout.split())
            assert shell.finetune("retry", waiting.id).stdout.split() == [waiting.id]
            assert list(shell.queue().values()) == ["PENDING"]
            shell.finetune("resume", run.id, "max_steps=6000")
            assert "is in use" in shell.finetune("resume", run.id, code=2).stderr
            assert "nothing to retry" in shell.finetune("retry", run.id, waiting.id).stderr
            shell.finetune("cancel", "--now", run.id, waiting.id)
            wait_for(lambda: not shell.queue())
            assert "cancelled" in shell.finetune("status", run.id).stdout
        finally:
            shell.cluster.start_accounting()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "full"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def refuse(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Return a function that makes a submission, asserts that it is refused, and returns the error.

    After the test, no job may be queued and no run folder may have been added.
    """
    monkeypatch.chdir(shell.folder)
    monkeypatch.setenv("SLURM_CONF", str(shell.cluster.conf))
    before = len(RunFolder.all("runs"))

    def run(*settings: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", *training(*settings)])
        out, err = capsys.readouterr()
        assert ended.value.code == 2
        assert out == ""
        lines = [line for line in err.splitlines() if line.strip()]
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        return lines[0]

    yield run
    assert not shell.queue()
    assert len(RunFolder.all("runs")) == before


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["cluster.partition=gpu"], ["invalid partition specified: gpu"]),
        (["cluster.account=nn1k"], ["Invalid account"]),
        (["cluster.qos=gold"], ["Invalid qos"]),
        (
            ["cluster.ranks_per_node=4", "cluster.cpus_per_rank=3"],
            ["cluster.cpus_per_rank × ranks_per_node is 12", "cores_per_node 8"],
        ),
        (
            ["cluster.ranks_per_node=8", "micro_batch_size=1"],
            ["cluster.ranks_per_node is 8", "gpus_per_node 4"],
        ),
        (
            ["cluster.ranks_per_node=8", "micro_batch_size=1", "cluster.site.gpus_per_node=null"],
            ["Slurm refuses"],
        ),
        (["cluster.nodes=4"], ["cluster.nodes is 4", "max_nodes 3"]),
        (["cluster.nodes=4", "cluster.site.max_nodes=null"], ["Slurm refuses"]),
        (["cluster.memory_per_node=900G"], ["cluster.memory_per_node is 900G", "memory_per_node_gb 8"]),
        (["cluster.memory_per_node=900G", "cluster.site.memory_per_node_gb=null"], ["Slurm refuses"]),
        (["cluster.timeout_min=2000"], ["cluster.timeout_min is 2000", "1440"]),
        (
            ["cluster.timeout_min=2000", "cluster.site.max_timeout_min=null"],
            ["cluster.timeout_min: must be at most 1440, the limit of partition debug"],
        ),
        (["cluster.timeout_min=1"], ["cluster.signal_lead_s is 60"]),
        (
            ["-m", "cluster.nodes=1,2"],
            ["must be the same for all points of a sweep, as they form one job array"],
        ),
        (["-m", "lr=1e-3,-1"], ["lr is -1"]),
        (["cluster.site.compute_architecture=aarch64"], ["cluster.python: must be set", "aarch64"]),
        (["runs_dir=/proc/none"], ["/proc/none", "cannot be written", "runs_dir="]),
        (
            ["+cluster.env.HF_TOKEN=hf_abcdefghijklmnopqrst"],
            ["cluster.env.HF_TOKEN: seems to contain a secret"],
        ),
    ],
)
def test_a_submission_that_cannot_run_is_refused_in_one_line(
    refuse: Callable[..., str], settings: list[str], parts: list[str]
) -> None:
    line = refuse(*settings)
    assert all(part in line for part in parts), line


def test_a_missing_sbatch_is_reported_by_name(
    refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        assert "sbatch is not on PATH" in refuse()


@pytest.mark.parametrize("settings", [[], ["-m", "seed=range(0,40)"]])
def test_a_full_disk_is_reported_in_one_line_and_no_run_is_left(
    refuse: Callable[..., str], full_disk: Path, settings: list[str]
) -> None:
    assert "No space left on device" in refuse(f"runs_dir={full_disk}/runs", *settings)
    assert not list(full_disk.glob("runs/*/config.yaml"))


def test_the_cluster_is_removed_when_its_owner_is_killed() -> None:
    from slurm.testcluster.cluster import Cluster

    cluster = Cluster("owned")
    owner = subprocess.Popen(["sleep", "600"])
    cluster.up(owner=owner.pid)
    bridge = Path(f"/sys/class/net/ftc{cluster.slot}")
    assert bridge.exists()
    owner.kill()
    owner.wait()
    wait_for(lambda: not cluster.base.exists() and not bridge.exists(), 30)
    if shutil.which("pgrep"):
        assert not subprocess.run(["pgrep", "-f", f"{cluster.base}/"], capture_output=True).stdout
