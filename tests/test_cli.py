"""The command line as a process: quick help, what can be set, and what stands on stdout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.corpora import write_corpus
from tests.login_node import run_on_login_node

FINETUNE = [sys.executable, "-m", "finetune.cli.main"]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FINETUNE, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def test_help_needs_no_heavy_import() -> None:
    script = (
        "import sys\nfrom finetune.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'hydra', 'mlflow', 'deepspeed', 'transformers', 'numpy', 'omegaconf'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resume RUN" in done.stdout


def test_what_a_login_node_lacks_is_one_line_with_what_to_install(tmp_path: Path) -> None:
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


def test_train_help_names_every_setting_its_kind_and_its_default() -> None:
    text = run("train", "--help").stdout
    for words in (
        "lr  ",
        "peak learning rate  [float; 0.0001]",
        "data.corpus",
        "required",
        "stage0, stage1, stage2*, stage2_offload, stage3, stage3_nvme",
        "lora*, none, qlora, rslora",
        "sample_base",
        "-m",
    ):
        assert words in text


def test_status_of_nothing_and_of_an_unknown_run(tmp_path: Path) -> None:
    assert run("status", cwd=tmp_path).returncode == 0
    unknown = run("status", "none", cwd=tmp_path)
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: no run 'none'")


def test_the_composed_config_can_be_printed_without_a_run(tmp_path: Path) -> None:
    done = run("train", "recipe=sample_lora", "model=run:x", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0
    assert "peft_type: LORA" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_users_recipe_is_found_by_config_dir(tmp_path: Path) -> None:
    (tmp_path / "my" / "recipe").mkdir(parents=True)
    (tmp_path / "my" / "recipe" / "mine.yaml").write_text("# @package _global_\nlr: 0.125\n")
    done = run("train", "recipe=mine", "--config-dir", "my", "--cfg", "job", cwd=tmp_path)
    assert "lr: 0.125" in done.stdout


def test_each_verb_completes_and_inspect_runs(tmp_path: Path) -> None:
    usage = [line.split()[0] for line in run("--help").stdout.splitlines() if line.startswith("  ")]
    assert sorted(run("completion", "words", "").stdout.split()) == sorted(usage)
    missing = run("inspect", "nowhere", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: ")


def test_a_sweep_stands_for_its_points(tmp_path: Path) -> None:
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
    for arguments, words in (
        (["logs", "-f", "grid"], "follows one run"),
        (["resume", "grid"], "is a sweep of 2 runs"),
    ):
        refused = run(*arguments, cwd=tmp_path)
        assert refused.returncode == 2
        assert words in refused.stderr
