"""FLOPs, peak FLOP/s and times that a run measures are compared with independent counts."""

from __future__ import annotations

import time

import pytest
import torch
from peft import get_peft_config, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from finetune.training import throughput as metrics
from tests.corpora import VOCAB_SIZE
from tests.models import LLAMA, LORA

CPU = torch.device("cpu")


def causal_model(**changes: object) -> torch.nn.Module:
    config = AutoConfig.for_model(
        **{**LLAMA, **changes}, vocab_size=VOCAB_SIZE, eos_token_id=1, bos_token_id=None
    )
    return AutoModelForCausalLM.from_config(config)  # type: ignore[no-any-return]


def count_matmul_flops(model: torch.nn.Module) -> int:
    """Count the FLOPs of the matrix products in one training step on 16 tokens.

    The count is that of torch's FlopCounterMode.
    """
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.arange(16)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    total = 0
    for operator, count in counter.get_flop_counts()["Global"].items():
        if "mm" in str(operator) and "bmm" not in str(operator):
            total += count
    return total


def test_flops_of_full_training_are_those_of_its_matrix_products() -> None:
    model = causal_model()
    assert metrics.flops_per_token(model) * 16 == count_matmul_flops(model)


def test_flops_of_lora_leave_out_the_frozen_weights_gradients() -> None:
    model = get_peft_model(causal_model(), get_peft_config({"task_type": "CAUSAL_LM", **LORA}))
    first = model.base_model.model.model.layers[0].self_attn
    projections = (first.q_proj, first.k_proj, first.v_proj)
    # the formula includes the gradients of the frozen embedding's output, which are not computed
    unused = sum(2 * p.base_layer.weight.numel() for p in projections)
    unused += sum(2 * p.lora_A["default"].weight.numel() for p in projections)
    assert metrics.flops_per_token(model) * 16 == count_matmul_flops(model) + unused * 16


def test_flops_of_a_mixture_of_experts_are_not_known() -> None:
    experts = causal_model(model_type="mixtral", num_local_experts=2, num_experts_per_tok=1)
    with pytest.raises(ValueError, match="mixture of experts"):
        metrics.flops_per_token(experts)


def test_the_peak_of_a_cpu_is_measured_and_plausible() -> None:
    peak = metrics.find_peak(CPU, torch.float32)
    assert peak.origin == "measured"
    assert 1e8 < peak.flops < 1e14


def test_the_peak_of_a_cpu_is_that_of_the_products_that_training_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The peak is measured with `linear`, the function that training uses.

    On some CPUs, torch.mm is less than half as fast. A peak measured with it would be too low, and
    the MFU would be above 100%.
    """
    monkeypatch.setattr(
        "finetune.training.throughput.linear",
        lambda x, weight: time.sleep(0.02) or torch.nn.functional.linear(x, weight),
    )
    assert metrics.find_peak.__wrapped__(CPU, torch.float32).flops < 2 * 1024**3 / 0.02


def test_the_clock_continues_from_an_earlier_attempt() -> None:
    clock = metrics.Clock(CPU)
    clock.add_breakdown({"forward": 40.0, "evaluation": 3.0, "other": 7.0, "total": 50.0})
    with clock.device_phase("forward"):
        time.sleep(0.01)
    out = clock.breakdown()
    assert 40.01 <= out["forward"] < out["total"] - 10
    assert out["evaluation"] == 3
    assert out["other"] >= 7
    assert out["total"] >= 50.01


def test_the_phases_of_the_clock_sum_to_the_total_time() -> None:
    clock = metrics.Clock(CPU)
    began = time.perf_counter()
    with clock.device_phase("forward"):
        time.sleep(0.05)
    with clock.host_phase("data"):
        time.sleep(0.02)
    time.sleep(0.03)
    clock.read_events()
    out = clock.breakdown()
    assert out["forward"] >= 0.05
    assert out["data"] >= 0.02
    assert out["other"] >= 0.03
    assert sum(value for name, value in out.items() if name != "total") == pytest.approx(out["total"])
    assert out["total"] == pytest.approx(time.perf_counter() - began, abs=0.05)
