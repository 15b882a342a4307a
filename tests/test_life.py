"""Cancelling, pruning, resuming and retrying runs that have no job in Slurm's queue."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune.config import train as configuration
from finetune.config.cluster import ClusterConfig
from finetune.config.train import ModelConfig
from finetune.launch import cancel as end
from finetune.launch import observe, prepare_jobs, slurm, submit
from finetune.runs import checkpoint_files, shared_bases
from finetune.runs.folder import RunFolder

SLURM = ClusterConfig(name="there", scheduler="slurm")


def started(job_id: int, host: str | None = None) -> dict[str, dict[str, Any]]:
    return {
        "submission": {
            "job_id": str(job_id),
            "host": host or socket.gethostname(),
            "scheduler": "local",
            "code": None,
        }
    }


def sleeper(*arguments: str, when_asked: str = "sys.exit()") -> subprocess.Popen[str]:
    """Start a process that sleeps for a minute and has `arguments` in its command line.

    Args:
        when_asked: Python expression that the process evaluates on SIGTERM, after it has
            printed `asked`.
    """
    handle = f"signal.signal(signal.SIGTERM, lambda *_: (print('asked', flush=True), {when_asked}))"
    program = f"import signal, sys, time; {handle}; print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_run_on_another_machine_is_ended_only_there(make: Callable[..., RunFolder]) -> None:
    innocent = sleeper()
    run = make(files=started(innocent.pid, "elsewhere"))
    run.metrics.touch()
    message = "run mine: is running on elsewhere; run `finetune cancel --now mine` there"
    with pytest.raises(ValueError, match=message):
        list(end.cancel([run], now=True))
    assert innocent.poll() is None
    ((_, result),) = end.cancel([run], now=False)
    assert "after its next step" in result
    innocent.kill()
    innocent.wait()


def test_a_process_that_reuses_the_runs_process_id_is_not_killed(make: Callable[..., RunFolder]) -> None:
    innocent = sleeper()
    run = make(files=started(innocent.pid))
    rank = sleeper("submitit.core._submit", str(run.jobs))
    ((_, result),) = end.cancel([run], now=True)
    assert result.startswith("ended")
    assert rank.wait(10) == -signal.SIGKILL
    assert innocent.poll() is None
    assert run.state() == "cancelled"
    innocent.kill()
    innocent.wait()


@pytest.mark.parametrize(
    ("cluster", "when_asked", "output"),
    [(ClusterConfig(), "sys.exit()", ""), (SLURM, "sys.exit()", "asked\n"), (SLURM, "None", "asked\n")],
)
def test_srun_gets_sigterm_before_it_is_killed(
    make: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
    cluster: ClusterConfig,
    when_asked: str,
    output: str,
) -> None:
    """SIGKILL alone would end srun but leave its ranks running."""
    monkeypatch.setattr(end, "GRACE_SECONDS", 1.0)
    run = make(cluster=cluster)
    controller = sleeper(str(run.jobs), when_asked=when_asked)
    run.record_submission(str(controller.pid))
    list(end.cancel([run], now=True))
    assert run.state() == "cancelled"
    assert controller.communicate(timeout=10)[0] == output


def prune(run: RunFolder, failed: bool = True) -> list[str]:
    """Remove the paths that `prune --yes` removes; return them relative to the runs folder.

    Args:
        failed: also remove the folders of runs that failed, died or were cancelled.
    """
    runs_dir = run.path.parent
    removed = []
    for path, _ in end.find_prunable([run], runs_dir, failed):
        removed.append(str(path.relative_to(runs_dir)))
        end.remove(path)
    return removed


def test_a_run_that_another_machine_may_be_running_is_not_pruned(make: Callable[..., RunFolder]) -> None:
    run = make(files=started(1, "elsewhere"))
    assert run.state() == "dead"
    assert prune(run) == []
    run.write_json("outcome.json", {"state": "cancelled"})
    assert prune(run) == ["mine"]


def test_a_run_whose_lock_is_held_is_not_pruned(make: Callable[..., RunFolder]) -> None:
    run = make(files=started(2**22 + 1))
    with run.lock:
        assert prune(run) == []
    assert prune(run) == ["mine"]


@pytest.mark.parametrize("result", ["adapter", "model"])
def test_prune_keeps_the_base_that_a_result_needs(make: Callable[..., RunFolder], result: str) -> None:
    run = make(files={"outcome": {"state": "completed"}})
    for folder in (result, "merged_base", "checkpoints"):
        (run.path / folder).mkdir()
    assert prune(run) == ["mine/checkpoints"] + ["mine/merged_base"] * (result == "model")


def test_prune_keeps_the_best_checkpoint(make: Callable[..., RunFolder]) -> None:
    run = make(files={"outcome": {"state": "completed"}})
    for step, loss in ((10, 3.0), (20, 2.0), (30, 2.5)):
        folder = checkpoint_files.folder_of(run.checkpoints, step)
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(f'{{"held_out_loss": {loss}}}')
    assert prune(run) == ["mine/checkpoints/step-00000010", "mine/checkpoints/step-00000030"]
    assert prune(run) == []


def test_prune_keeps_an_export_that_is_another_runs_base(make: Callable[..., RunFolder]) -> None:
    run = make(files={"outcome": {"state": "completed"}})
    for step in (10, 20):
        run.export(step).mkdir(parents=True)
    other = RunFolder(run.path.with_name("other"))
    other.path.mkdir()
    other.write_json("provenance.json", {})
    model = ModelConfig(path="run:mine@20")
    config = dataclasses.replace(run.config(), model=model, runs_dir=str(run.path.parent))
    configuration.save(config, other.config_file)
    assert prune(run) == ["mine/exports/step-00000010"]


def test_prune_removes_a_shared_base_with_the_last_run_that_uses_it(make: Callable[..., RunFolder]) -> None:
    run = make(files={"outcome": {"state": "completed"}})
    (run.path / "merged_base").mkdir()
    (run.path / "merged_base" / "model.safetensors").write_bytes(b"weights")
    (run.path / "adapter").mkdir()
    shared_bases.publish(run.path / "merged_base", "digest")
    other = run.path.with_name("other")
    other.mkdir()
    assert shared_bases.link(other / "merged_base", "digest")
    weights = run.path / "merged_base" / "model.safetensors"
    assert (other / "merged_base" / "model.safetensors").samefile(weights)
    assert not shared_bases.link(other / "unknown", "another digest")
    end.remove(run.path / "merged_base")
    assert prune(run) == []
    end.remove(other)
    assert prune(run) == [".bases/digest"]


def test_a_submission_that_slurm_refuses_leaves_the_run_unchanged(
    make: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(
        cluster=SLURM, files={"attempt": {"job_id": "7", "host": "login", "scheduler": "slurm", "code": "ab"}}
    )
    run.write_json("failure.json", {"time": 1.0, "error": "a rank died"})
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho busy >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match="busy"):
        slurm.submit_array([run], run.jobs, run.id, tmp_path / ".code" / "ab")
    assert (run.state(), run.failure(), run.code()) == ("failed", "a rank died", "ab")


@dataclass(frozen=True)
class Prepared:
    """A preparation, and the job that a training on its corpus must wait for.

    Attributes:
        state: Slurm's state of the job that does the preparation's last step; empty if Slurm no
            longer has the job.
        age: seconds from the preparation's submission to the writing of the corpus. Negative:
            an earlier preparation wrote the corpus. None: there is no corpus.
        waits_for: id of the job that the training waits for; None if it does not wait.
        error: part of the error message; empty if the training is not refused.
    """

    id: str
    state: str
    age: int | None
    waits_for: str | None = None
    error: str = ""


PREPARED = [
    Prepared("done", "COMPLETED", age=1),
    Prepared("running on an older corpus", "RUNNING", age=-1, waits_for="9"),
    Prepared("queued", "PENDING", age=None, waits_for="9"),
    Prepared("done long ago", "", age=1),
    Prepared("failed", "FAILED", age=-1, error="ended without"),
    Prepared("cancelled", "CANCELLED", age=-1, error="ended without"),
    Prepared("ended long ago, before it wrote", "", age=-1, error="ended without"),
    Prepared("ended long ago, without a corpus", "", age=None, error="ended without"),
]


@pytest.fixture
def prepare_run(tmp_path: Path) -> Path:
    folder = tmp_path / "corpora" / ".mine.stages" / "slurm" / "prepare-1"
    folder.mkdir(parents=True)
    (folder / prepare_jobs.FILE).write_text('{"read": "8", "publish": "9"}')
    return folder


@pytest.mark.parametrize("prepared", PREPARED, ids=lambda prepared: prepared.id)
def test_a_training_waits_for_the_preparation_of_its_corpus(
    prepare_run: Path, monkeypatch: pytest.MonkeyPatch, prepared: Prepared
) -> None:
    corpora = prepare_run.parents[2]
    corpus = corpora / "mine"
    if prepared.age is not None:
        corpus.mkdir()
        (corpus / "manifest.json").touch()
        written = (prepare_run / prepare_jobs.FILE).stat().st_mtime + prepared.age
        os.utime(corpus / "manifest.json", (written, written))
    reading = "COMPLETED" if prepared.state else ""
    monkeypatch.setattr(observe, "states", lambda ids: {"8": reading, "9": prepared.state})
    if not prepared.error:
        assert prepare_jobs.find_awaited_job("prepare-1", str(corpora), [corpus]) == prepared.waits_for
        return
    with pytest.raises(ValueError, match=prepared.error):
        prepare_jobs.find_awaited_job("prepare-1", str(corpora), [corpus])


def test_a_training_does_not_wait_for_another_corpus(
    prepare_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "states", lambda ids: dict.fromkeys(ids, "RUNNING"))
    corpora = prepare_run.parents[2]
    with pytest.raises(ValueError, match=r"prepare-1 builds corpus .*/mine, not .*/other"):
        prepare_jobs.find_awaited_job("prepare-1", str(corpora), [corpora / "mine", corpora / "other"])


COMPLETED = {"outcome": {"state": "completed"}, "summary": {"steps": 6}}


def test_more_epochs_do_not_extend_a_run_with_max_steps(make: Callable[..., RunFolder]) -> None:
    run = make(files=COMPLETED, max_steps=6)
    (run.checkpoints / "step-00000006").mkdir(parents=True)
    with pytest.raises(ValueError, match="run mine: is completed; give it more steps, such as max_steps=12"):
        submit.resume(run, ["num_epochs=8"])
    assert run.config().num_epochs == 1


def test_a_completed_run_without_checkpoints_cannot_be_extended(make: Callable[..., RunFolder]) -> None:
    run = make(files=COMPLETED, max_steps=6)
    message = "run mine: has no checkpoint to resume from; start a new run from it"
    with pytest.raises(ValueError, match=message):
        submit.resume(run, ["max_steps=12"])
    assert run.config().max_steps == 6


def test_retry_skips_a_point_while_the_process_that_will_start_it_is_alive(
    make: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    started_again: list[RunFolder] = []
    monkeypatch.setattr(submit, "_restart", started_again.extend)
    monkeypatch.setattr(submit, "_check_inputs", lambda *_: None)
    point = {"provenance": {"sweep": "grid"}}
    first, second, third = (make(name, files=point) for name in "abc")
    first.write_json("outcome.json", {"state": "stopped"})
    running = sleeper(str(second.jobs))
    second.record_submission(str(running.pid))
    third.record_turn()
    assert submit.retry([first, second, third]) == [first]
    running.kill()
    running.wait()
    second.write_json("outcome.json", {"state": "cancelled"})
    turn = third.read_json("turn.json") or {}
    # the recorded process id now belongs to another process
    third.write_json("turn.json", {**turn, "started": 0.0})
    assert submit.retry([second, third]) == [second, third]
    assert started_again == [first, second, third]
