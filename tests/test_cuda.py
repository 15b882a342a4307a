"""What only a GPU can show, on one of them: `make cuda`. Training there is training on a CPU, at every ZeRO
stage.

Two ranks cannot share a GPU (NCCL refuses): what several ranks do is tested on CPUs, in tests/distributed.
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
ALONE: dict[str, Any] = {"cluster": ClusterConfig(ranks_per_node=1), "micro_batch_size": 4}
BF16: dict[str, Any] = {"precision": "bf16", **ALONE}
# a GPU sums in another order than a CPU, and Adam makes a step of every sign
CPU_LOSS_TOLERANCE, GPU_WEIGHT_TOLERANCE = 1e-4, 1e-3
BF16_LOSS_TOLERANCE = 0.05
COMPARED = ["full", "lora", "dora"]  # with a CPU; QLoRA's products with 4-bit weights are other ones there


@dataclass(frozen=True)
class Same:
    """Another way to train by a method that must equal it at ZeRO 2."""

    id: str
    training: Training
    settings: dict[str, Any]


CHECKPOINTED = {"activation_checkpointing": True}
OFFLOADED = {"zero": {**zero_file("stage3_offload"), **ZERO[3]}}
SAME = [
    Same("checkpointed-full", Training("full", 2), CHECKPOINTED),
    Same("checkpointed-lora", Training("lora", 3), CHECKPOINTED),
    Same("offload-zero2", Training("full", 2), {"zero": zero_file("stage2_offload")}),
    Same("offload-zero3", Training("full", 3), OFFLOADED),
    Same("offload-lora-zero3", Training("lora", 3), OFFLOADED),
]
RESUMED = {"full": Training("full", 1), "lora": Training("lora", 3)}
SHARDED = [training for training in MATRIX if training.stage]


def case_id(case: Training | Same) -> str:
    return case.id


@pytest.fixture(scope="module")
def runs(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """All of them, by one rank each; in processes of their own, as CUDA does not outlive a fork."""
    folder = tmp_path_factory.mktemp("cuda")

    def case(name: str, training: Training, fault: str | None = None, **changes: Any) -> Case:
        return make_run(folder, name, training.config(law_corpus, **{**ALONE, **changes}), fault=fault)

    cases = {
        "fp32": [case(training.id, training) for training in MATRIX],
        "bf16": [case(f"{training.id}-bf16", training, **BF16) for training in SHARDED],
        "same": [case(same.id, same.training, **same.settings) for same in SAME],
        "cpu": [case(f"{method}-cpu", Training(method, 2)) for method in COMPARED],
        "whole": [case(f"{name}-whole", training, max_steps=LONG) for name, training in RESUMED.items()],
    }
    started = {name: start(folder / name, some, gpu=name != "cpu") for name, some in cases.items()}
    for name, training in RESUMED.items():
        killed = case(name, training, fault="killed_at_step", max_steps=LONG)
        join(start(folder / f"kill-{name}", [killed]), folder / f"kill-{name}", expected=-9)
        join(start(folder / f"resume-{name}", [Case(killed.path)]), folder / f"resume-{name}")
    for name, process in started.items():
        join(process, folder / name)
    return runs_by_name(folder)


def start(folder: Path, cases: list[Case], gpu: bool = True) -> subprocess.Popen[bytes]:
    worker.write_cases(folder, cases)
    environment = {**os.environ, **worker.environment(0, 1), **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})}
    with (folder / "rank-0.log").open("wb") as log:
        command = [sys.executable, "-m", "tests.distributed.worker", str(folder)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)


def join(process: subprocess.Popen[bytes], folder: Path, expected: int = 0) -> None:
    code = process.wait()
    assert code == expected, (
        f"{folder.name} ended with {code}\n{(folder / 'rank-0.log').read_text(errors='replace')[-3000:]}"
    )


@pytest.mark.parametrize("training", MATRIX, ids=case_id)
def test_zero_stages_are_the_same_training(runs: dict[str, RunFolder], training: Training) -> None:
    assert_same(runs[training.id], runs[f"{training.method}-zero2"], tolerance=GPU_WEIGHT_TOLERANCE)


@pytest.mark.parametrize("method", COMPARED)
def test_a_gpu_trains_as_a_cpu_does(runs: dict[str, RunFolder], method: str) -> None:
    assert loss_distance(runs[f"{method}-zero2"], runs[f"{method}-cpu"]) < CPU_LOSS_TOLERANCE


@pytest.mark.parametrize("training", SHARDED, ids=case_id)
def test_bf16_trains_as_fp32_does(runs: dict[str, RunFolder], training: Training) -> None:
    run, exact = runs[f"{training.id}-bf16"], runs[f"{training.method}-zero2"]
    assert loss_distance(run, exact) < BF16_LOSS_TOLERANCE
    learned, expected = (losses(r)[0] - losses(r)[-1] for r in (run, exact))
    assert learned > expected / 2 > 0


@pytest.mark.parametrize("same", SAME, ids=case_id)
def test_checkpointed_and_offloaded_is_the_same_training(runs: dict[str, RunFolder], same: Same) -> None:
    assert_same(runs[same.id], runs[f"{same.training.method}-zero2"], tolerance=GPU_WEIGHT_TOLERANCE)


@pytest.mark.parametrize("name", RESUMED)
def test_killed_and_resumed_is_never_interrupted(runs: dict[str, RunFolder], name: str) -> None:
    assert_same(runs[name], runs[f"{name}-whole"], LONG, tolerance=GPU_WEIGHT_TOLERANCE)


@pytest.mark.parametrize("method", ["full", "lora", "dora"])
@pytest.mark.parametrize("stage", [1, 3])
def test_a_saved_model_evaluates_as_its_run_logged(
    runs: dict[str, RunFolder], method: str, stage: int
) -> None:
    run = runs[f"{method}-zero{stage}"]
    summary = run.summary()
    assert summary is not None
    again = evaluate_on_corpus(f"run:{run.id}", run.config().data, str(run.path.parent))
    assert again.loss == pytest.approx(summary.after.loss, abs=1e-4)


def test_a_run_logs_its_speed_memory_and_time(runs: dict[str, RunFolder]) -> None:
    last = steps(runs["full-zero1-bf16"])[-1]
    assert 0 < last["train/mfu"] < 1
    assert 2**20 < last["train/peak_memory_bytes"] < 2**32
    summary = runs["full-zero1-bf16"].summary()
    assert summary is not None
    assert all(summary.seconds[phase] > 0 for phase in ("forward", "backward", "optimizer"))


@pytest.mark.parametrize("name", ["stage3_superoffload", "stage3_zeropp"])
def test_what_a_cpu_refuses_trains(law_corpus: Path, tmp_path: Path, name: str) -> None:
    """DeepSpeed compiles their kernels first, for a minute."""
    other = {**zero_file(name), **ZERO[3]}
    if name == "stage3_zeropp":
        other["zero_hpz_partition_size"] = 1  # GPUs a node
    plain = make_run(tmp_path, "plain", law_config(law_corpus, zero=ZERO[3], **BF16))
    case = make_run(tmp_path, name, law_config(law_corpus, zero=other, **BF16))
    join(start(tmp_path / "both", [plain, case]), tmp_path / "both")
    tolerance = 0.2 if name == "stage3_zeropp" else BF16_LOSS_TOLERANCE  # 8 bits
    assert loss_distance(case.run, plain.run) < tolerance


def on_gpu(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> PackedModel:
    return PackedModel(model.to(GPU, dtype))


def gradients(packed: PackedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    packed.model.zero_grad()
    inputs = PackInputs(**{name: tensor.to(GPU) for name, tensor in vars(batch()).items()})
    losses = packed.losses(inputs)
    losses.total.backward()
    return losses.per_token, {
        name: p.grad.float() for name, p in packed.model.named_parameters() if p.grad is not None
    }


def apart(packed: PackedModel, exact: PackedModel) -> float:
    """The largest distance of a loss, or of a gradient as a share of its size."""
    (each, grads), (each2, grads2) = gradients(packed), gradients(exact)
    assert grads.keys() == grads2.keys()
    shares = [
        float((grads[name] - grads2[name]).norm() / grads2[name].norm().clamp(min=1e-4)) for name in grads
    ]
    return max(float((each - each2).abs().max()), *shares)


@pytest.mark.parametrize("architecture", ATTENTION)
def test_flash_attention_by_document_is_exact_attention(architecture: str) -> None:
    model = causal_model(model_type=architecture, **ATTENTION[architecture])
    exact, packed = on_gpu(copy.deepcopy(model)), on_gpu(copy.deepcopy(model), torch.bfloat16)
    exact.attention = "eager"
    packed.attention = "eager"
    rounding = apart(packed, exact)
    packed.attention = DOCUMENTS
    assert apart(packed, exact) < 1.5 * rounding + 0.01
    assert rounding < 0.1, "bf16 alone is as far away as a fault would be"


def test_the_fastest_attention_that_takes_these_numbers_is_chosen() -> None:
    half, full = on_gpu(causal_model(), torch.bfloat16), on_gpu(causal_model())
    assert checks.choose_attention(half, "auto", VOCAB_SIZE, GPU) in (DOCUMENTS, "flash_attention_2")
    assert checks.choose_attention(full, "auto", VOCAB_SIZE, GPU) in ("flex_attention", "sdpa")


@pytest.mark.parametrize("implementation", ["flex_attention", "sdpa"])
def test_masked_attention_is_exact_attention(implementation: str) -> None:
    model = causal_model(hidden_size=64)  # flex_attention wants heads of 16 numbers
    exact, packed = on_gpu(copy.deepcopy(model)), on_gpu(model)
    exact.attention = "eager"
    assert checks.choose_attention(packed, implementation, VOCAB_SIZE, GPU) == implementation
    assert apart(packed, exact) < 2e-3


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
    assert (choice if choice == "liger" else "SwiGLU") in kernels.install(
        changed, choice, GPU, partitioned=False
    )
    assert apart(on_gpu(changed), on_gpu(model)) < 2e-3


@pytest.mark.parametrize("tied", [False, True])
def test_losses_by_chunks_are_those_of_the_whole_logits(monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    monkeypatch.setattr("finetune.models.loss.CHUNK_ELEMENTS", {"cuda": 2 * VOCAB_SIZE})
    monkeypatch.setattr("finetune.models.loss.MIN_CHUNK_ROWS", 1)
    model = causal_model(tie_word_embeddings=tied).to(GPU)
    plain = copy.deepcopy(model)
    each, grads = gradients(PackedModel(model))
    inputs = batch()
    logits = plain(
        input_ids=inputs.input_ids.to(GPU), position_ids=inputs.position_ids.to(GPU), use_cache=False
    ).logits
    supervised = logits.flatten(0, 1)[inputs.target_positions.to(GPU)]
    expected = torch.nn.functional.cross_entropy(supervised, inputs.targets.to(GPU), reduction="none")
    expected.sum().backward()
    assert torch.allclose(each, expected, atol=1e-4)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(
            grads[name], parameter.grad, atol=1e-4 + 1e-3 * float(parameter.grad.abs().max())
        ), name


def test_the_command_line_trains_on_the_gpu(law_corpus: Path, tmp_path: Path) -> None:
    """With its preflight, tracking and all."""
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
