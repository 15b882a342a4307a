"""The command line as a process: fast help, one-line errors, results on stdout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.corpora import write_corpus
from tests.login_node import run_on_login_node

FINETUNE = [sys.executable, "-m", "finetune.cli.main"]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FINETUNE, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def test_help_imports_no_heavy_package() -> None:
    script = (
        "import sys\nfrom finetune.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'hydra', 'mlflow', 'deepspeed', 'transformers', 'numpy', 'omegaconf'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resume RUN" in done.stdout


def test_a_package_missing_on_a_login_node_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpora" / "c", num_documents=8, longest=64, seed=1)
    train = ["train", "model=llama_tiny", "adapter=none", "corpus=c"]
    (tmp_path / "runs").mkdir()
    calls = (
        [*train, "cluster=testcluster"],
        train,
        ["evaluate", "corpora", "--corpus", "c"],
        ["sync"],
        ["ui"],
        ["status"],
    )
    lines = run_on_login_node(*calls, cwd=tmp_path)
    assert [line for line in lines if line.startswith("exit")] == ["exit 2"] * 5 + ["exit 0"]
    expected = [
        ("cluster.python is missing", "finetune[train]"),
        ("cluster=local: this Python lacks torch", "finetune[train]"),
        ("evaluating a model needs torch", "finetune[train]"),
        ("sending runs to MLflow needs mlflow", "finetune[tracking]"),
        ("sending runs to MLflow needs mlflow", "finetune[tracking]"),
    ]
    errors = [line for line in lines if line.startswith("error")]
    for error, (begins, remedy) in zip(errors, expected, strict=True):
        assert error.startswith(f"error: {begins}")
        assert f"pip install '{remedy}'" in error


def test_train_help_lists_settings_with_type_and_default() -> None:
    text = run("train", "--help").stdout
    for part in (
        "lr  ",
        "peak learning rate  [float; 0.0001]",
        "data.corpus",
        "required",
        "stage0, stage1, stage2*, stage2_offload, stage3, stage3_nvme",
        "lora*, none, qlora, rslora",
        "sample_base",
        "-m",
    ):
        assert part in text


def test_status_without_runs_succeeds_and_of_an_unknown_run_fails(tmp_path: Path) -> None:
    assert run("status", cwd=tmp_path).returncode == 0
    unknown = run("status", "none", cwd=tmp_path)
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: no run 'none'")


def test_cfg_prints_the_composed_config_and_starts_no_run(tmp_path: Path) -> None:
    done = run("train", "recipe=sample_lora", "model=run:x", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0
    assert "peft_type: LORA" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_recipe_is_found_in_config_dir(tmp_path: Path) -> None:
    (tmp_path / "my" / "recipe").mkdir(parents=True)
    (tmp_path / "my" / "recipe" / "mine.yaml").write_text("# @package _global_\nlr: 0.125\n")
    done = run("train", "recipe=mine", "--config-dir", "my", "--cfg", "job", cwd=tmp_path)
    assert "lr: 0.125" in done.stdout


def test_completion_lists_all_verbs_and_inspect_reports_a_missing_corpus(tmp_path: Path) -> None:
    usage = [line.split()[0] for line in run("--help").stdout.splitlines() if line.startswith("  ")]
    assert sorted(run("completion", "words", "").stdout.split()) == sorted(usage)
    missing = run("inspect", "nowhere", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: ")


def test_the_id_of_a_sweep_selects_its_points(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "runs" / name
        (folder / "jobs").mkdir(parents=True)
        (folder / "config.yaml").write_text("data: {corpus: c}\nmodel: {from_scratch: {model_type: llama}}\n")
        (folder / "provenance.json").write_text('{"sweep": "grid"}')
        (folder / "jobs" / "7_0_log.out").write_text(f"rank 0 of {name}\n")
    assert run("logs", "grid", cwd=tmp_path).stdout.splitlines() == [
        "==> a <==",
        "rank 0 of a",
        "==> b <==",
        "rank 0 of b",
    ]
    assert run("logs", "b", cwd=tmp_path).stdout == "rank 0 of b\n"
    for arguments, message in (
        (["logs", "-f", "grid"], "follows one run"),
        (["resume", "grid"], "is a sweep of 2 runs"),
    ):
        refused = run(*arguments, cwd=tmp_path)
        assert refused.returncode == 2
        assert message in refused.stderr
