"""Calculations of the training benchmarks: token counts, measured time, FLOP per token, and tables.

The other systems that the benchmarks measure need not be installed.
"""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import gpu, harness, peers, report, rules
from finetune.data.packs import PADDING, MicroBatch
from tests.models import LLAMA


def test_padding_is_not_counted() -> None:
    """Tokens are counted in a batch padded on the right, then in a packed row without padding."""
    assert int(rules.non_padding_tokens(torch.tensor([[5, 6, 7, 3], [5, 3, 3, 3]]), 3)) == 4
    assert int(rules.non_padding_tokens(torch.tensor([[5, 6, 1, 8, 9, 1]]), 3)) == 6


def test_tokens_of_finetune_and_of_other_systems_are_counted_alike() -> None:
    """For finetune, tokens of documents are counted; for others, all tokens except padding."""
    documents = np.array([[0, 0, 0, 1, 1, PADDING], [2, 2, PADDING, PADDING, PADDING, PADDING]])
    ids = torch.where(torch.from_numpy(documents) == PADDING, 3, 50)
    batch = MicroBatch(ids, torch.zeros_like(ids), torch.zeros_like(ids), documents)
    assert batch.num_tokens == int(rules.non_padding_tokens(ids, pad_token_id=3)) == 7


def test_warmup_counts_neither_as_tokens_nor_as_time() -> None:
    assert rules.tokens_per_second([1000, 10, 20], [50.0, 51.0, 53.0], warmup=1) == 10.0


@pytest.mark.parametrize(
    ("tokens", "ends", "warmup"), [([1, 2], [1.0], 1), ([1, 2], [1.0, 2.0], 2), ([1, 2], [1.0, 2.0], 0)]
)
def test_nothing_to_measure_is_an_error(tokens: list[int], ends: list[float], warmup: int) -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        rules.tokens_per_second(tokens, ends, warmup)


def test_a_resumed_spool_is_refused() -> None:
    def line(step: int) -> dict[str, object]:
        return {"step": step, "time_ms": 1000 * step, "values": {"train/tokens": 7}}

    evaluation = {"step": 0, "time_ms": 1, "values": {"eval/loss": 1.0}}
    assert rules.read_steps([evaluation, line(1), line(2)]) == ([7, 7], [1.0, 2.0])
    with pytest.raises(ValueError, match="measure a run that was not resumed"):
        rules.read_steps([line(1), line(2), line(2)])


def test_the_parameters_of_a_shape_are_those_of_transformers() -> None:
    fields = {key: LLAMA[key] for key in rules.Shape.__dataclass_fields__ if key in LLAMA}
    shape = rules.Shape(**fields, vocab_size=300)  # type: ignore[arg-type]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA, vocab_size=300))
    embeddings = 2 * 300 * shape.hidden_size
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.non_embedding_parameters == shape.parameters - embeddings


def test_flop_per_token_are_those_of_the_linear_layers() -> None:
    """The formula equals the count of torch's FlopCounterMode in one forward and backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    settings = {
        **LLAMA,
        "num_hidden_layers": 6,
        "hidden_size": 64,
        "intermediate_size": 128,
        "vocab_size": 300,
    }
    shape = rules.Shape(**{key: settings[key] for key in rules.Shape.__dataclass_fields__})  # type: ignore[arg-type]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), attn_implementation="eager")
    ids = torch.randint(0, 300, (2, 16))
    for frozen in (True, False):
        model.requires_grad_(not frozen)
        with FlopCounterMode(display=False) as counter:
            # as in LoRA, every layer's input has a gradient, even if weights are frozen
            embeds = torch.randn(2, 16, 64, requires_grad=True)
            hidden = model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
            hidden.sum().backward()
        counted = counter.get_flop_counts()["Global"]
        linear = counted[torch.ops.aten.mm]
        weights = shape.non_embedding_parameters - (2 * shape.num_hidden_layers + 1) * shape.hidden_size
        assert linear == ids.numel() * rules.flop_per_token(weights, lora=frozen)


def test_the_model_of_the_task_has_34m_parameters() -> None:
    assert round(peers.SHAPE.parameters / 1e6) == 34
    assert round(peers.SHAPE.non_embedding_parameters / 1e6, 1) == 29.9
    share = rules.share_of_limit(912, rules.flop_per_token(29_900_000, lora=True), 281e9)
    assert share == pytest.approx(0.39, abs=0.005)


def test_cpu_time_of_other_processes_is_the_machines_without_the_runs() -> None:
    first = {"machine_busy": 100.0, "machine_total": 1000.0, "busy": 50.0}
    last = {"machine_busy": 108.0, "machine_total": 1010.0, "busy": 57.0}
    assert harness.compute_others_cpu([first, last]) == pytest.approx(0.1)


def test_the_median_over_rounds_is_shown_with_its_range() -> None:
    def run(round: int, speed: float) -> harness.Measurement:
        return harness.Measurement("trl", round, speed, [5, 7], 1.0, 10, 9, 0.0, "glibc", 3, None, {})

    row = harness.summarise([run(0, 10.0), run(1, 30.0), run(2, 11.0)])["trl"]
    assert (row["median"], row["min"], row["max"], row["rounds"]) == (11.0, 10.0, 30.0, 3)


def test_a_failed_run_is_a_row_of_the_gpu_table() -> None:
    good = harness.Measurement("finetune", 0, 1000.0, [7], 1.0, 10, 9, 0.0, "glibc", 3, True, {}, 2**31)
    row = {"size": "1B", "lora": True, "matmul_limit": 1e12}
    rows = [
        {**row, **asdict(good)},
        {**row, "system": "trl", "round": 0, "error": "trl ended with exit code 1: see /home/me/log"},
    ]
    measured, failed = gpu._table("1B", True, 1e12, rows).splitlines()[-2:]
    flop = 4 * gpu.SHAPES["1B"].non_embedding_parameters
    assert f"| 1,000 (1,000-1,000) | {1000 * flop / 1e12:.0%} | 2.0 GiB | yes |" in measured
    assert "TRL" in failed
    assert "| trl ended with exit code 1 |" in failed


def test_a_section_is_replaced_and_others_are_kept(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "HERE", tmp_path)
    for body in ("first", "second"):
        report.write_section("peers", body)
        report.write_section("gpu", "beside")
    text = (tmp_path / "RESULTS.md").read_text()  # type: ignore[operator]
    assert [text.count(word) for word in ("first", "second", "beside")] == [0, 1, 1]


def test_a_system_that_does_other_work_than_the_task_is_refused() -> None:
    run = harness.Measurement(
        "trl", 0, 1.0, [1], 1.0, 1, 1, 0.0, "glibc", peers.SHAPE.lora_parameters(peers.LORA_R) + 1, None, {}
    )
    with pytest.raises(SystemExit, match="so its speed cannot be compared"):
        peers._check(run, SimpleNamespace(allocator="glibc", busy=False))  # type: ignore[arg-type]
