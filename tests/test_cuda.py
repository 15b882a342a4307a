"""Tests that need a GPU (`make cuda`): training equals that on a CPU, at every ZeRO stage.

NCCL does not allow two ranks on one GPU, so several ranks are tested on CPUs only, in
tests/distributed.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.config.train import ClusterConfig
from finetune.evaluation.held_out import evaluate_on_corpus
from finetune.models import checks, kernels
from finetune.models.attention import DOCUMENTS
from finetune.models.packed import PackedModel, PackInputs
from finetune.runs.folder import RunFolder
from tests.corpora import VOCAB_SIZE
from tests.distributed import worker
from tests.distributed.laws import (
    LONG,
    MATRIX,
    ZERO,
    Training,
    assert_same,
    law_config,
    loss_distance,
    losses,
    make_run,
    runs_by_name,
    steps,
    zero_file,
)
from tests.distributed.worker import Case
from tests.kernel_models import ATTENTION, batch, causal_model, with_adapter

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no GPU: run `make cuda` on a machine that has one"
    ),
]

ROOT = Path(__file__).parents[1]
GPU = torch.device("cuda")
ONE_RANK: dict[str, Any] = {"cluster": ClusterConfig(ranks_per_node=1), "micro_batch_size": 4}
BF16: dict[str, Any] = {"precision": "bf16", **ONE_RANK}
# A GPU adds numbers in another order than a CPU, and Adam's first steps depend only on the signs of
# gradients, which rounding can change.
CPU_LOSS_TOLERANCE = 1e-4
GPU_WEIGHT_TOLERANCE = 1e-3
BF16_LOSS_TOLERANCE = 0.05
# Methods compared with a CPU; QLoRA is left out, since its 4-bit products differ on a CPU.
COMPARED = ["full", "lora", "dora"]


@dataclass(frozen=True)
class Variant:
    """A training with extra settings. Its result must equal that of the same method at ZeRO 2."""

    id: str
    training: Training
    settings: dict[str, Any]


CHECKPOINTED = {"activation_checkpointing": True}
OFFLOADED = {"zero": {**zero_file("stage3_offload"), **ZERO[3]}}
VARIANTS = [
    Variant("checkpointed-full", Training("full", 2), CHECKPOINTED),
    Variant("checkpointed-lora", Training("lora", 3), CHECKPOINTED),
    Variant("offload-zero2", Training("full", 2), {"zero": zero_file("stage2_offload")}),
    Variant("offload-zero3", Training("full", 3), OFFLOADED),
    Variant("offload-lora-zero3", Training("lora", 3), OFFLOADED),
]
RESUMED = {"full": Training("full", 1), "lora": Training("lora", 3)}
SHARDED = [training for training in MATRIX if training.stage]


def case_id(case: Training | Variant) -> str:
    return case.id


@pytest.fixture(scope="module")
def runs(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Train each run with one rank; return the runs by name.

    The ranks are not forked, because CUDA does not work after a fork.
    """
    folder = tmp_path_factory.mktemp("cuda")

    def case(name: str, training: Training, fault: str | None = None, **changes: Any) -> Case:
        return make_run(folder, name, training.config(law_corpus, **{**ONE_RANK, **changes}), fault=fault)

    cases = {
        "fp32": [case(training.id, training) for training in MATRIX],
        "bf16": [case(f"{training.id}-bf16", training, **BF16) for training in SHARDED],
        "variants": [case(variant.id, variant.training, **variant.settings) for variant in VARIANTS],
        "cpu": [case(f"{method}-cpu", Training(method, 2)) for method in COMPARED],
        "uninterrupted": [
            case(f"{name}-uninterrupted", training, max_steps=LONG) for name, training in RESUMED.items()
        ],
    }
    started = {name: start(folder / name, group, gpu=name != "cpu") for name, group in cases.items()}
    for name, training in RESUMED.items():
        killed = case(name, training, fault="killed_at_step", max_steps=LONG)
        join(start(folder / f"kill-{name}", [killed]), folder / f"kill-{name}", expected=-9)
        join(start(folder / f"resume-{name}", [Case(killed.path)]), folder / f"resume-{name}")
    for name, process in started.items():
        join(process, folder / name)
    return runs_by_name(folder)


def start(folder: Path, cases: list[Case], gpu: bool = True) -> subprocess.Popen[bytes]:
    worker.write_cases(folder, cases)
    environment = {**os.environ, **worker.environment(0, 1)}
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with (folder / "rank-0.log").open("wb") as log:
        command = [sys.executable, "-m", "tests.distributed.worker", str(folder)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)


def join(process: subprocess.Popen[bytes], folder: Path, expected: int = 0) -> None:
    code = process.wait()
    log = (folder / "rank-0.log").read_text(errors="replace")
    assert code == expected, f"{folder.name} ended with {code}\n{log[-3000:]}"


@pytest.mark.parametrize("training", MATRIX, ids=case_id)
def test_every_zero_stage_gives_the_same_result(runs: dict[str, RunFolder], training: Training) -> None:
    assert_same(runs[training.id], runs[f"{training.method}-zero2"], tolerance=GPU_WEIGHT_TOLERANCE)


@pytest.mark.parametrize("method", COMPARED)
def test_a_gpu_trains_as_a_cpu_does(runs: dict[str, RunFolder], method: str) -> None:
    assert loss_distance(runs[f"{method}-zero2"], runs[f"{method}-cpu"]) < CPU_LOSS_TOLERANCE


@pytest.mark.parametrize("training", SHARDED, ids=case_id)
def test_bf16_trains_as_fp32_does(runs: dict[str, RunFolder], training: Training) -> None:
    run = runs[f"{training.id}-bf16"]
    fp32_run = runs[f"{training.method}-zero2"]
    assert loss_distance(run, fp32_run) < BF16_LOSS_TOLERANCE
    decrease, expected = (losses(r)[0] - losses(r)[-1] for r in (run, fp32_run))
    assert decrease > expected / 2 > 0


@pytest.mark.parametrize("variant", VARIANTS, ids=case_id)
def test_activation_checkpointing_and_offloading_change_no_result(
    runs: dict[str, RunFolder], variant: Variant
) -> None:
    assert_same(runs[variant.id], runs[f"{variant.training.method}-zero2"], tolerance=GPU_WEIGHT_TOLERANCE)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_killed_and_resumed_equals_an_uninterrupted_one(runs: dict[str, RunFolder], name: str) -> None:
    assert_same(runs[name], runs[f"{name}-uninterrupted"], LONG, tolerance=GPU_WEIGHT_TOLERANCE)


@pytest.mark.parametrize("method", ["full", "lora", "dora"])
@pytest.mark.parametrize("stage", [1, 3])
def test_a_saved_model_evaluates_as_its_run_logged(
    runs: dict[str, RunFolder], method: str, stage: int
) -> None:
    run = runs[f"{method}-zero{stage}"]
    summary = run.summary()
    assert summary is not None
    held_out = evaluate_on_corpus(f"run:{run.id}", run.config().data, str(run.path.parent))
    assert held_out.loss == pytest.approx(summary.after.loss, abs=1e-4)


def test_a_run_logs_its_speed_memory_and_time(runs: dict[str, RunFolder]) -> None:
    last = steps(runs["full-zero1-bf16"])[-1]
    assert 0 < last["train/mfu"] < 1
    assert 2**20 < last["train/peak_memory_bytes"] < 2**32
    summary = runs["full-zero1-bf16"].summary()
    assert summary is not None
    assert all(summary.seconds[phase] > 0 for phase in ("forward", "backward", "optimizer"))


@pytest.mark.parametrize("name", ["stage3_superoffload", "stage3_zeropp"])
def test_zero_settings_that_need_a_gpu_train(law_corpus: Path, tmp_path: Path, name: str) -> None:
    """DeepSpeed first compiles kernels for these settings, which takes about a minute."""
    zero = {**zero_file(name), **ZERO[3]}
    if name == "stage3_zeropp":
        zero["zero_hpz_partition_size"] = 1  # GPUs per node
    plain = make_run(tmp_path, "plain", law_config(law_corpus, zero=ZERO[3], **BF16))
    case = make_run(tmp_path, name, law_config(law_corpus, zero=zero, **BF16))
    join(start(tmp_path / "both", [plain, case]), tmp_path / "both")
    # ZeRO++ communicates in 8 bits
    tolerance = 0.2 if name == "stage3_zeropp" else BF16_LOSS_TOLERANCE
    assert loss_distance(case.run, plain.run) < tolerance


def on_gpu(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> PackedModel:
    return PackedModel(model.to(GPU, dtype))


def gradients(packed: PackedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    packed.model.zero_grad()
    inputs = PackInputs(**{name: tensor.to(GPU) for name, tensor in vars(batch()).items()})
    losses = packed.losses(inputs)
    losses.total.backward()
    parameters = packed.model.named_parameters()
    return losses.per_token, {name: p.grad.float() for name, p in parameters if p.grad is not None}


def distance(packed: PackedModel, exact: PackedModel) -> float:
    """Return the largest difference between the losses and gradients of two models.

    The difference between two gradients is relative to the norm of the exact gradient.
    """
    losses_, grads = gradients(packed)
    exact_losses, exact_grads = gradients(exact)
    assert grads.keys() == exact_grads.keys()
    shares = []
    for name, exact_grad in exact_grads.items():
        share = (grads[name] - exact_grad).norm() / exact_grad.norm().clamp(min=1e-4)
        shares.append(float(share))
    return max(float((losses_ - exact_losses).abs().max()), *shares)


@pytest.mark.parametrize("architecture", ATTENTION)
def test_flash_attention_by_document_equals_exact_attention(architecture: str) -> None:
    model = causal_model(model_type=architecture, **ATTENTION[architecture])
    exact = on_gpu(copy.deepcopy(model))
    packed = on_gpu(copy.deepcopy(model), torch.bfloat16)
    exact.attention = "eager"
    packed.attention = "eager"
    rounding = distance(packed, exact)
    packed.attention = DOCUMENTS
    assert distance(packed, exact) < 1.5 * rounding + 0.01
    assert rounding < 0.1, "rounding in bf16 hides a fault"


def test_the_fastest_attention_that_supports_the_precision_is_chosen() -> None:
    bf16 = on_gpu(causal_model(), torch.bfloat16)
    fp32 = on_gpu(causal_model())
    assert checks.choose_attention(bf16, "auto", VOCAB_SIZE, GPU) in (DOCUMENTS, "flash_attention_2")
    assert checks.choose_attention(fp32, "auto", VOCAB_SIZE, GPU) in ("flex_attention", "sdpa")


@pytest.mark.parametrize("implementation", ["flex_attention", "sdpa"])
def test_masked_attention_equals_exact_attention(implementation: str) -> None:
    model = causal_model(hidden_size=64)  # flex_attention needs heads of at least 16
    exact = on_gpu(copy.deepcopy(model))
    packed = on_gpu(model)
    exact.attention = "eager"
    assert checks.choose_attention(packed, implementation, VOCAB_SIZE, GPU) == implementation
    assert distance(packed, exact) < 2e-3


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "olmo2", "mistral"])
@pytest.mark.parametrize("adapter", [None, {}, {"use_dora": True}])
@pytest.mark.parametrize("choice", ["torch", "liger"])
def test_kernels_change_no_loss_and_no_gradient(
    choice: str, architecture: str, adapter: dict[str, object] | None
) -> None:
    if choice == "liger" and importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("liger-kernel is not installed: pip install 'finetune[liger]'")
    model = causal_model(model_type=architecture, hidden_size=64, intermediate_size=128)
    if adapter is not None:
        model = with_adapter(model, **adapter)
    changed = copy.deepcopy(model)
    expected = "liger" if choice == "liger" else "SwiGLU"
    assert expected in kernels.install(changed, choice, GPU, partitioned=False)
    assert distance(on_gpu(changed), on_gpu(model)) < 2e-3


@pytest.mark.parametrize("tied", [False, True])
def test_losses_by_chunks_are_those_of_the_full_logits(monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    monkeypatch.setattr("finetune.models.loss.CHUNK_ELEMENTS", {"cuda": 2 * VOCAB_SIZE})
    monkeypatch.setattr("finetune.models.loss.MIN_CHUNK_ROWS", 1)
    model = causal_model(tie_word_embeddings=tied).to(GPU)
    plain = copy.deepcopy(model)
    chunked_losses, grads = gradients(PackedModel(model))
    inputs = batch()
    logits = plain(
        input_ids=inputs.input_ids.to(GPU), position_ids=inputs.position_ids.to(GPU), use_cache=False
    ).logits
    supervised = logits.flatten(0, 1)[inputs.target_positions.to(GPU)]
    expected = torch.nn.functional.cross_entropy(supervised, inputs.targets.to(GPU), reduction="none")
    expected.sum().backward()
    assert torch.allclose(chunked_losses, expected, atol=1e-4)
    for name, parameter in plain.named_parameters():
        tolerance = 1e-4 + 1e-3 * float(parameter.grad.abs().max())
        assert torch.allclose(grads[name], parameter.grad, atol=tolerance), name


def test_the_command_line_trains_on_the_gpu(law_corpus: Path, tmp_path: Path) -> None:
    """Run `finetune train` with all its parts, including preflight and tracking."""
    settings = [
        f"data.corpus={law_corpus}",
        f"model={law_corpus.parent / 'base'}",
        f"runs_dir={tmp_path / 'runs'}",
        "adapter=lora",
        "zero=stage1",
        "precision=bf16",
        "data.sequence_length=128",
        "max_steps=4",
        "check_first_loss=false",
    ]
    command = [sys.executable, "-m", "finetune.cli.main", "train", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = RunFolder(next((tmp_path / "runs").glob("*/summary.json")).parent)
    log = "".join(path.read_text() for path in run.jobs.glob("*_log.*"))
    assert f"attention: {DOCUMENTS}" in log or "attention: flash_attention_2" in log
    assert "preflight passed" in log
    assert json.loads(run.metrics.read_text().splitlines()[-1])
