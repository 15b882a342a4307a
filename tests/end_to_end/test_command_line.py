"""Commands of `finetune` with real ranks; other processes read the results."""

from __future__ import annotations

import json
import os
import pickletools
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune.runs.folder import RunFolder
from finetune.tracking.spool import steps_done
from tests.end_to_end.commands import FINETUNE, command, run_of
from tests.models import LLAMA

pytestmark = pytest.mark.end_to_end


def test_the_base_beats_the_unigram_baseline_and_lora_improves_the_new_sources(
    sample: tuple[Path, RunFolder, RunFolder],
) -> None:
    _, base, lora = sample
    before, after = lora.summary().before, lora.summary().after  # type: ignore[union-attr]
    assert base.summary().after.loss < base.summary().after.unigram_loss  # type: ignore[union-attr]
    assert before.loss == pytest.approx(base.summary().after.loss)  # type: ignore[union-attr]
    assert before.by_source == pytest.approx(base.summary().after.by_source)  # type: ignore[union-attr]
    for source in ("minutes", "consultation_replies"):
        assert after.by_source[source] < before.by_source[source] - 0.02


def test_another_process_reads_the_same_numbers_from_mlflow(
    sample: tuple[Path, RunFolder, RunFolder],
) -> None:
    folder, base, lora = sample
    script = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(f"sqlite:///{sys.argv[1]}")
runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
print(json.dumps({r.data.tags["finetune.run_id"]: {
    "status": r.info.status, "params": r.data.params,
    "history": {k: [(m.step, m.value) for m in client.get_metric_history(r.info.run_id, k)]
                for k in r.data.metrics}} for r in runs}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "runs" / "mlflow.db")],
        capture_output=True,
        text=True,
        check=True,
    )
    stored = json.loads(done.stdout.splitlines()[-1])
    assert {base.id, lora.id} <= stored.keys()
    for run, steps in ((base, 40), (lora, 60)):
        history, summary = stored[run.id]["history"], run.summary()
        assert summary is not None
        assert stored[run.id]["status"] == "FINISHED"
        assert [step for step, _ in history["train/loss"]] == list(range(1, steps + 1))
        validation = dict(history["validation/loss"])
        assert validation[0] == summary.before.loss
        assert validation[steps] == summary.after.loss
        for source, loss in summary.after.by_source.items():
            assert dict(history[f"validation/loss/source/{source}"])[steps] == loss
        assert stored[run.id]["params"]["lr"] == str(run.config().lr)
    assert [step for step, _ in stored[lora.id]["history"]["validation/loss"]] == [0, 30, 60]


def test_a_second_sync_adds_nothing_even_without_its_record(
    sample: tuple[Path, RunFolder, RunFolder],
) -> None:
    from mlflow.tracking import MlflowClient

    folder, _, lora = sample
    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]

    def stored() -> list[tuple[int, float]]:
        (found,) = client.search_runs(experiments, f"tags.`finetune.run_id` = '{lora.id}'")
        return [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "train/loss")]

    before = stored()
    command(folder, "sync")
    assert stored() == before
    (lora.path / ".sent.json").unlink()
    command(folder, "sync")
    assert stored() == before


def test_evaluate_of_the_saved_adapter_gives_the_loss_of_the_summary(
    sample: tuple[Path, RunFolder, RunFolder],
) -> None:
    folder, _, lora = sample
    done = command(folder, "evaluate", lora.id, "--against", "base", "--json")
    assert "warning" not in done.stderr.lower()
    # a library warns about a feature that is not used
    assert "Failed to load" not in done.stderr
    before, recomputed = json.loads(done.stdout)["models"]
    summary = lora.summary()
    assert summary is not None
    assert before["loss"] == pytest.approx(summary.before.loss, abs=1e-4)
    assert before["by_source"] == pytest.approx(summary.before.by_source, abs=1e-4)
    assert recomputed["loss"] == pytest.approx(summary.after.loss, abs=1e-5)
    assert recomputed["by_source"] == pytest.approx(summary.after.by_source, abs=1e-5)
    assert recomputed["tokens"] == summary.after.tokens


def test_plain_peft_loads_the_adapter_on_the_base_folder(
    sample: tuple[Path, RunFolder, RunFolder],
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, base, lora = sample
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.model), lora.adapter)
    tokenizer = AutoTokenizer.from_pretrained(lora.adapter)
    text = "Kommunen har behandlet søknaden."
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == text
    assert model(input_ids=ids).logits.shape == (1, ids.shape[1], len(tokenizer))


def test_the_pickle_contains_one_importable_name_and_a_path(
    sample: tuple[Path, RunFolder, RunFolder],
) -> None:
    _, base, _ = sample
    (submitted,) = base.jobs.glob("*_submitted.pkl")
    names = [
        str(argument)
        for _, argument, _ in pickletools.genops(submitted.read_bytes())
        if isinstance(argument, str)
    ]
    assert "finetune.job.rank" in names
    assert "run_job" in names
    assert str(base.path) in names
    assert not any("omegaconf" in name or "hydra" in name for name in names)


def test_a_sweep_completes_its_valid_points_and_reports_the_failed_one(
    sample: tuple[Path, RunFolder, RunFolder],
) -> None:
    folder, base, _ = sample
    arguments = [
        "recipe=sample_lora",
        f"model=run:{base.id}",
        "max_steps=2",
        "name=sweep",
        # flash attention does not run on a CPU, which is detected only when the run starts
        "model.attention=auto,flash_attention_2",
        "cluster.ranks_per_node=1",
    ]
    done = command(folder, "train", "-m", *arguments, code=1)
    good, bad = (run_of(folder, run_id) for run_id in done.stdout.split())
    assert good.state() == "completed"
    assert good.config().model.attention == "auto"
    assert bad.state() == "failed"
    assert "1 of 2 runs did not complete" in done.stderr
    assert "no implementation isolates this model's packed documents" in (bad.failure() or "")
    sweep = str(good.sweep())
    table = command(folder, "status", sweep).stdout
    assert "model.attention: no implementation" in table
    assert any(line.split()[:3] == [good.id, "auto", "completed"] for line in table.splitlines())
    assert done.stderr.startswith(f"sweep {sweep}: 2 points")
    assert f"{bad.id} (attention=flash_attention_2)" in done.stderr
    rows = (folder / "runs" / "sweeps" / sweep / "points.tsv").read_text().splitlines()
    assert [row.split("\t")[:3] for row in rows[1:]] == [
        [good.id, "auto", "completed"],
        [bad.id, "flash_attention_2", "failed"],
    ]


def test_a_sweep_with_an_invalid_point_starts_nothing(sample: tuple[Path, RunFolder, RunFolder]) -> None:
    folder, base, _ = sample
    before = len(RunFolder.all(folder / "runs"))
    arguments = ["recipe=sample_lora", f"model=run:{base.id}", "lr=1e-3,-1"]
    done = command(folder, "train", "-m", *arguments, code=2)
    assert "lr is -1" in done.stderr
    assert len(RunFolder.all(folder / "runs")) == before


def long_run_arguments(folder: Path, corpus: Path) -> list[str]:
    """Write a model config; return the arguments of a two-rank run that would take minutes."""
    (folder / "my" / "model").mkdir(parents=True)
    (folder / "my" / "model" / "tiny.yaml").write_text(json.dumps({"from_scratch": LLAMA}))
    return [
        "train",
        "--config-dir",
        "my",
        "model=tiny",
        "adapter=none",
        f"corpus={corpus}",
        "cluster.ranks_per_node=2",
        "data.sequence_length=128",
        "global_batch_size=8",
        "micro_batch_size=1",
        "max_steps=2000",
        "checkpoint_every=5",
    ]


@pytest.fixture
def long_run(law_corpus: Path, tmp_path: Path) -> tuple[subprocess.Popen[str], RunFolder]:
    """Start a run in the foreground, and wait for step 11; return its process and its folder."""
    arguments = long_run_arguments(tmp_path, law_corpus)
    shell = subprocess.Popen(
        [*FINETUNE, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: any(steps_done(run.path) > 10 for run in RunFolder.all(tmp_path / "runs")))
    (run,) = RunFolder.all(tmp_path / "runs")
    assert run.state() == "running"
    return shell, run


def test_a_detached_run_returns_at_once_and_continues(law_corpus: Path, tmp_path: Path) -> None:
    arguments = long_run_arguments(tmp_path, law_corpus)
    run = run_of(tmp_path, command(tmp_path, *arguments, "detach=true").stdout)
    wait_for(lambda: steps_done(run.path) > 3)
    assert run.state() == "running"
    assert "running" in command(tmp_path, "status").stdout
    run.stop_file.touch()
    wait_for(lambda: run.state() == "stopped")


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true after {seconds} s"
        time.sleep(0.2)


def ranks_of(run: RunFolder) -> list[psutil.Process]:
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if "submitit.core._submit" in (p.info["cmdline"] or []) and str(run.jobs) in p.info["cmdline"]
    ]


def test_ctrl_c_saves_a_checkpoint_from_which_resume_continues(
    long_run: tuple[subprocess.Popen[str], RunFolder], tmp_path: Path
) -> None:
    shell, run = long_run
    shell.send_signal(signal.SIGINT)
    _, err = shell.communicate(timeout=120)
    assert shell.returncode == 1
    assert "stopped on request" in err
    assert run.state() == "stopped"
    stopped_at = steps_done(run.path)
    assert (run.checkpoints / f"step-{stopped_at:08d}" / "manifest.json").is_file()
    assert not ranks_of(run)
    assert run.state() == "stopped"
    # 2000 steps would take too long here
    config = run.config_file.read_text()
    run.config_file.write_text(config.replace("max_steps: 2000", f"max_steps: {stopped_at + 5}"))
    command(tmp_path, "resume", run.id)
    assert run.state() == "completed"
    assert run.summary().steps == stopped_at + 5  # type: ignore[union-attr]
    assert "is completed" in command(tmp_path, "resume", run.id, code=2).stderr


def test_a_killed_rank_ends_the_job_and_is_reported(
    long_run: tuple[subprocess.Popen[str], RunFolder], tmp_path: Path
) -> None:
    shell, run = long_run
    assert "is in use" in command(tmp_path, "resume", run.id, code=2).stderr
    (second,) = [p for p in ranks_of(run) if p.environ()["SUBMITIT_LOCAL_LOCALID"] == "1"]
    os.kill(second.pid, signal.SIGKILL)
    _, err = shell.communicate(timeout=120)
    assert shell.returncode == 1
    assert f"resume it: finetune resume {run.id}" in err, "the run has checkpoints"
    assert "rank 1: killed by SIGKILL, and its log shows no reason" in err
    assert run.state() == "failed"
    assert not ranks_of(run)
