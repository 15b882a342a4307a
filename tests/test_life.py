"""Life with runs that are no job in Slurm's queue: what ends, removes and starts again which of them."""

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


def sleeper(*words: str, when_asked: str = "sys.exit()") -> subprocess.Popen[str]:
    """A process with these words in its command line, once it is ready; SIGTERM makes it say so."""
    hear = f"signal.signal(signal.SIGTERM, lambda *_: (print('asked', flush=True), {when_asked}))"
    program = f"import signal, sys, time; {hear}; print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_what_another_machine_runs_is_ended_there_only(make: Callable[..., RunFolder]) -> None:
    innocent = sleeper()
    run = make(files=started(innocent.pid, "elsewhere"))
    run.metrics.touch()
    with pytest.raises(
        ValueError, match="run mine is at work on elsewhere: run `finetune cancel --now mine` there"
    ):
        list(end.cancel([run], now=True))
    assert innocent.poll() is None
    ((_, words),) = end.cancel([run], now=False)
    assert "after its next step" in words
    innocent.kill()
    innocent.wait()


def test_a_process_that_got_the_runs_number_is_left_alone(make: Callable[..., RunFolder]) -> None:
    innocent = sleeper()
    run = make(files=started(innocent.pid))
    rank = sleeper("submitit.core._submit", str(run.jobs))
    ((_, words),) = end.cancel([run], now=True)
    assert words.startswith("ended")
    assert rank.wait(10) == -signal.SIGKILL
    assert innocent.poll() is None
    assert run.state() == "cancelled"
    innocent.kill()
    innocent.wait()


@pytest.mark.parametrize(
    ("cluster", "when_asked", "heard"),
    [(ClusterConfig(), "sys.exit()", ""), (SLURM, "sys.exit()", "asked\n"), (SLURM, "None", "asked\n")],
)
def test_srun_is_asked_first(
    make: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
    cluster: ClusterConfig,
    when_asked: str,
    heard: str,
) -> None:
    """Killed, it would leave its ranks alone."""
    monkeypatch.setattr(end, "GRACE_SECONDS", 1.0)
    run = make(cluster=cluster)
    controller = sleeper(str(run.jobs), when_asked=when_asked)
    run.record_submission(str(controller.pid))
    list(end.cancel([run], now=True))
    assert run.state() == "cancelled"
    assert controller.communicate(timeout=10)[0] == heard


def pruned(run: RunFolder, failed: bool = True) -> list[str]:
    """What `prune --yes` removes, below the runs' folder."""
    runs_dir, removed = run.path.parent, []
    for path, _ in end.prunable([run], runs_dir, failed):
        removed.append(str(path.relative_to(runs_dir)))
        end.remove(path)
    return removed


def test_a_run_that_another_machine_may_have_is_not_removed(make: Callable[..., RunFolder]) -> None:
    run = make(files=started(1, "elsewhere"))
    assert run.state() == "dead"
    assert pruned(run) == []
    run.write_json("outcome.json", {"state": "cancelled"})
    assert pruned(run) == ["mine"]


def test_a_run_whose_lock_is_held_is_not_removed(make: Callable[..., RunFolder]) -> None:
    run = make(files=started(2**22 + 1))
    with run.lock:
        assert pruned(run) == []
    assert pruned(run) == ["mine"]


@pytest.mark.parametrize("result", ["adapter", "model"])
def test_a_result_keeps_the_base_that_it_needs(make: Callable[..., RunFolder], result: str) -> None:
    run = make(files={"outcome": {"state": "completed"}})
    for folder in (result, "merged_base", "checkpoints"):
        (run.path / folder).mkdir()
    assert pruned(run) == ["mine/checkpoints"] + ["mine/merged_base"] * (result == "model")


def test_prune_leaves_the_best_checkpoint(make: Callable[..., RunFolder]) -> None:
    run = make(files={"outcome": {"state": "completed"}})
    for step, loss in ((10, 3.0), (20, 2.0), (30, 2.5)):
        folder = checkpoint_files.folder_of(run.checkpoints, step)
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(f'{{"held_out_loss": {loss}}}')
    assert pruned(run) == ["mine/checkpoints/step-00000010", "mine/checkpoints/step-00000030"]
    assert pruned(run) == []


def test_prune_leaves_a_checkpoint_that_another_run_was_given_as_its_base(
    make: Callable[..., RunFolder],
) -> None:
    run = make(files={"outcome": {"state": "completed"}})
    for step in (10, 20):
        run.export(step).mkdir(parents=True)
    other = RunFolder(run.path.with_name("other"))
    other.path.mkdir()
    other.write_json("provenance.json", {})
    model = ModelConfig(path="run:mine@20")
    configuration.save(
        dataclasses.replace(run.config(), model=model, runs_dir=str(run.path.parent)), other.config_file
    )
    assert pruned(run) == ["mine/exports/step-00000010"]


def test_prune_removes_a_shared_base_with_the_last_run_that_has_it(make: Callable[..., RunFolder]) -> None:
    run = make(files={"outcome": {"state": "completed"}})
    (run.path / "merged_base").mkdir()
    (run.path / "merged_base" / "model.safetensors").write_bytes(b"weights")
    (run.path / "adapter").mkdir()
    shared_bases.publish(run.path / "merged_base", "digest")
    again = run.path.with_name("again")
    again.mkdir()
    assert shared_bases.link(again / "merged_base", "digest")
    assert (again / "merged_base" / "model.safetensors").samefile(
        run.path / "merged_base" / "model.safetensors"
    )
    assert not shared_bases.link(again / "other", "another digest")
    end.remove(run.path / "merged_base")
    assert pruned(run) == []
    end.remove(again)
    assert pruned(run) == [".bases/digest"]


def test_a_submission_that_slurm_refuses_leaves_the_run_as_it_was(
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
    """A preparation, and what a training that is to follow it waits for.

    Args:
        state: Slurm's for the last step; empty where it is not known any more.
        age: seconds by which the corpus is newer than the preparation's submission; None: there is no corpus.
        waits_for: the job; None: nothing.
        error: where the training is refused.
    """

    id: str
    state: str
    age: int | None
    waits_for: str | None = None
    error: str = ""


PREPARED = [
    Prepared("done", "COMPLETED", age=1),
    Prepared("at work on an older corpus", "RUNNING", age=-1, waits_for="9"),
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
def test_a_training_waits_for_a_preparation_that_makes_its_corpus(
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
        assert prepare_jobs.dependency("prepare-1", str(corpora), [corpus]) == prepared.waits_for
        return
    with pytest.raises(ValueError, match=prepared.error):
        prepare_jobs.dependency("prepare-1", str(corpora), [corpus])


def test_a_training_does_not_wait_for_another_corpus(
    prepare_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "states", lambda ids: dict.fromkeys(ids, "RUNNING"))
    corpora = prepare_run.parents[2]
    with pytest.raises(ValueError, match=r"prepare-1 makes corpus .*/mine, not .*/other"):
        prepare_jobs.dependency("prepare-1", str(corpora), [corpora / "mine", corpora / "other"])


COMPLETED = {"outcome": {"state": "completed"}, "summary": {"steps": 6}}


def test_epochs_are_no_more_steps_where_steps_are_counted(make: Callable[..., RunFolder]) -> None:
    run = make(files=COMPLETED, max_steps=6)
    (run.checkpoints / "step-00000006").mkdir(parents=True)
    with pytest.raises(ValueError, match="run mine is completed: give it more steps, as in max_steps=12"):
        submit.resume(run, ["num_epochs=8"])
    assert run.config().num_epochs == 1


def test_a_completed_run_without_checkpoints_does_not_begin_anew(make: Callable[..., RunFolder]) -> None:
    run = make(files=COMPLETED, max_steps=6)
    with pytest.raises(
        ValueError, match="run mine has no checkpoint left to go on from: start a new run from it"
    ):
        submit.resume(run, ["max_steps=12"])
    assert run.config().max_steps == 6


def test_retry_leaves_a_point_to_the_shell_that_is_to_start_it_as_long_as_there_is_one(
    make: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    started_again: list[RunFolder] = []
    monkeypatch.setattr(submit, "_start_again", started_again.extend)
    monkeypatch.setattr(submit, "_check_inputs", lambda *_: None)
    point = {"provenance": {"sweep": "grid"}}
    first, second, third = (make(name, files=point) for name in "abc")
    first.write_json("outcome.json", {"state": "stopped"})
    at_work = sleeper(str(second.jobs))
    second.record_submission(str(at_work.pid))
    third.record_turn()
    assert submit.retry([first, second, third]) == [first]
    at_work.kill()
    at_work.wait()
    second.write_json("outcome.json", {"state": "cancelled"})
    third.write_json(
        "turn.json", {**(third.read_json("turn.json") or {}), "started": 0.0}
    )  # another process has its number
    assert submit.retry([second, third]) == [second, third]
    assert started_again == [first, second, third]
