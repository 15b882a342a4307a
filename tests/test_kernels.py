"""Kernels, attention and the chunked loss give the same values and gradients as plain code."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from finetune.models import checks, cpu_matmul, kernels, loss
from finetune.models.attention import DOCUMENTS
from finetune.models.packed import PackedModel, PackInputs
from tests.corpora import VOCAB_SIZE
from tests.kernel_models import ATTENTION, batch, causal_model, with_adapter

CPU = torch.device("cpu")


def gradients(packed: PackedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    packed.model.zero_grad()
    losses = packed.losses(batch())
    losses.total.backward()
    assert float(losses.total) == pytest.approx(float(losses.per_token.sum()), rel=1e-6)
    parameters = packed.model.named_parameters()
    return losses.per_token, {name: p.grad.clone() for name, p in parameters if p.grad is not None}


def assert_same_training(model: torch.nn.Module, changed: torch.nn.Module) -> None:
    losses, grads = gradients(PackedModel(model))
    changed_losses, changed_grads = gradients(PackedModel(changed))
    assert torch.allclose(losses, changed_losses, atol=1e-5)
    assert grads.keys() == changed_grads.keys()
    for name, gradient in grads.items():
        tolerance = 1e-5 + 1e-4 * float(gradient.abs().max())
        assert torch.allclose(gradient, changed_grads[name], atol=tolerance), name


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "olmo2", "mistral"])
@pytest.mark.parametrize("adapter", [None, {}, {"use_dora": True}, {"lora_dropout": 0.1}])
@pytest.mark.parametrize("onednn", ["all products", "thin products", "none"])
def test_kernels_change_no_loss_and_no_gradient(
    monkeypatch: pytest.MonkeyPatch, architecture: str, adapter: dict[str, object] | None, onednn: str
) -> None:
    if onednn != "none" and not cpu_matmul._HAS_ONEDNN:
        pytest.skip("torch has no oneDNN on this machine")
    monkeypatch.setattr(cpu_matmul, "_HAS_ONEDNN", onednn != "none")
    monkeypatch.setattr(cpu_matmul, "_FAST_ONEDNN", onednn == "all products")
    model = causal_model(model_type=architecture)
    if adapter is not None:
        model = with_adapter(model, **adapter)
    changed = copy.deepcopy(model)
    installed = kernels.install(changed, "torch", CPU, partitioned=False)
    assert ("LoRA" in installed) == (adapter == {})
    assert ("linear" in installed) == (onednn == "all products")
    assert "SwiGLU" in installed
    assert ("RMSNorm" in installed) == (architecture != "olmo2")  # OLMo 2 has another norm
    if adapter and "lora_dropout" in adapter:
        model.eval()
        changed.eval()
    assert_same_training(model, changed)


def test_biases_that_an_adapter_trains_have_gradients() -> None:
    model = with_adapter(causal_model(model_type="qwen2"), bias="all")
    changed = copy.deepcopy(model)
    installed = kernels.install(changed, "torch", CPU, partitioned=False)
    assert "LoRA" in installed, "layers without a bias have the kernel"
    assert_same_training(model, changed)


def test_a_kernel_is_not_installed_where_it_would_be_wrong() -> None:
    gemma = causal_model(model_type="gemma3_text", head_dim=8)
    of_gemma = kernels.install(gemma, "torch", CPU, partitioned=False)
    assert "RMSNorm" not in of_gemma
    assert "SwiGLU" not in of_gemma
    partitioned = kernels.install(with_adapter(causal_model()), "torch", CPU, partitioned=True)
    assert "LoRA" not in partitioned
    assert "linear" not in partitioned
    assert kernels.install(causal_model(), "none", CPU, partitioned=False) == "none"
    with pytest.raises(ValueError, match="kernels=liger: it needs a GPU"):
        kernels.install(causal_model(), "liger", CPU, partitioned=False)


@pytest.mark.parametrize("chunk", [VOCAB_SIZE, 4 * VOCAB_SIZE, 2**20])
@pytest.mark.parametrize("tied", [False, True])
def test_losses_by_chunks_are_those_of_the_full_logits(
    monkeypatch: pytest.MonkeyPatch, chunk: int, tied: bool
) -> None:
    monkeypatch.setattr("finetune.models.loss.CHUNK_ELEMENTS", {"cpu": chunk})
    monkeypatch.setattr("finetune.models.loss.MIN_CHUNK_ROWS", 1)
    model = causal_model(tie_word_embeddings=tied)
    plain = copy.deepcopy(model)
    losses, grads = gradients(PackedModel(model))
    inputs = batch()
    logits = plain(input_ids=inputs.input_ids, position_ids=inputs.position_ids, use_cache=False).logits
    supervised = logits.flatten(0, 1)[inputs.target_positions]
    expected = torch.nn.functional.cross_entropy(supervised, inputs.targets, reduction="none")
    expected.sum().backward()
    assert torch.allclose(losses, expected, atol=1e-5)
    for name, parameter in plain.named_parameters():
        tolerance = 1e-5 + 1e-4 * float(parameter.grad.abs().max())
        assert torch.allclose(grads[name], parameter.grad, atol=tolerance), name


def test_the_full_logits_are_never_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.models.loss.CHUNK_ELEMENTS", {"cpu": 16 * VOCAB_SIZE})
    monkeypatch.setattr("finetune.models.loss.MIN_CHUNK_ROWS", 1)
    chunk_sizes = []
    original = loss.linear

    def record_chunk(*arguments: torch.Tensor) -> torch.Tensor:
        out = original(*arguments)
        if out.shape[-1] == VOCAB_SIZE:
            chunk_sizes.append(out.shape[0])
        return out

    packed = PackedModel(causal_model())
    monkeypatch.setattr(loss, "linear", record_chunk)
    packed.losses(batch()).total.backward()
    assert sum(chunk_sizes) == len(batch().targets), "positions without a target went through the head"
    assert max(chunk_sizes) <= 16


def test_a_micro_batch_without_targets_has_a_gradient_of_zero() -> None:
    packed = PackedModel(causal_model())
    empty = torch.zeros(0, dtype=torch.int64)
    losses = packed.losses(replace(batch(), target_positions=empty, targets=empty))
    losses.total.backward()
    assert len(losses.per_token) == 0
    assert all(not p.grad.any() for p in packed.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_a_model_that_caps_its_logits_is_not_given_the_chunked_loss(cap: float) -> None:
    """Even a cap far above all logits changes the sum of losses."""
    settings = {"final_logit_softcapping": cap, "attn_logit_softcapping": None}
    packed = PackedModel(causal_model(model_type="gemma2", head_dim=8, **settings))
    assert packed.head.chunked
    checks.check_target_losses(packed, VOCAB_SIZE)
    assert not packed.head.chunked
    assert all(bool(gradient.any()) for gradient in gradients(packed)[1].values())


def test_losses_that_are_not_those_of_the_logits_are_an_error() -> None:
    packed = PackedModel(causal_model())
    original = packed.losses

    def wrong_losses(inputs: PackInputs) -> loss.TargetLosses:
        losses = original(inputs)
        return replace(losses, per_token=losses.per_token + 0.1)

    packed.losses = wrong_losses  # type: ignore[method-assign]
    with pytest.raises(checks.GuardError, match="differ"):
        checks.check_target_losses(packed, VOCAB_SIZE)


@pytest.mark.parametrize("architecture", ATTENTION)
def test_attention_by_document_equals_masked_attention(architecture: str) -> None:
    model = causal_model(model_type=architecture, **ATTENTION[architecture])
    inputs = batch()
    packed = PackedModel(model)
    packed.attention = "sdpa"
    expected = packed.logits(inputs.input_ids, inputs.position_ids)
    packed.attention = DOCUMENTS
    logits = packed.logits(inputs.input_ids, inputs.position_ids)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert checks.choose_attention(packed, "auto", VOCAB_SIZE) == DOCUMENTS


def test_the_next_attention_is_chosen_if_the_fastest_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AttentionInterface

    packed = PackedModel(causal_model())
    original = AttentionInterface._global_mapping[DOCUMENTS]

    def leaky(module: object, query: torch.Tensor, *rest: object, **more: object) -> object:
        one_document = torch.arange(query.shape[2])[None]
        return original(module, query, *rest, **{**more, "position_ids": one_document})

    monkeypatch.setitem(AttentionInterface._global_mapping, DOCUMENTS, leaky)
    assert checks.choose_attention(packed, "auto", VOCAB_SIZE) == packed.attention == "sdpa"
    with pytest.raises(checks.GuardError, match="isolates this model's packed documents"):
        checks.choose_attention(packed, DOCUMENTS, VOCAB_SIZE)


def test_attention_by_document_is_not_chosen_for_attention_with_a_soft_cap() -> None:
    packed = PackedModel(causal_model(model_type="gemma2", head_dim=8))
    assert checks.choose_attention(packed, "auto", VOCAB_SIZE) != DOCUMENTS
