"""Each kernel against what it replaces: values and gradients. The attention and the loss that the model is
called with, too."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from finetune.models import checks, cpu_matmul, kernels, loss
from finetune.models.attention import DOCUMENTS
from finetune.models.packed import PackedModel
from tests.corpora import VOCAB_SIZE
from tests.kernel_models import ATTENTION, batch, causal_model, with_adapter

CPU = torch.device("cpu")


def gradients(packed: PackedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    packed.model.zero_grad()
    losses = packed.losses(batch())
    losses.total.backward()
    assert float(losses.total) == pytest.approx(float(losses.per_token.sum()), rel=1e-6)
    return losses.per_token, {
        name: p.grad.clone() for name, p in packed.model.named_parameters() if p.grad is not None
    }


def assert_same_training(model: torch.nn.Module, changed: torch.nn.Module) -> None:
    (losses, grads), (losses2, grads2) = gradients(PackedModel(model)), gradients(PackedModel(changed))
    assert torch.allclose(losses, losses2, atol=1e-5)
    assert grads.keys() == grads2.keys()
    for name, gradient in grads.items():
        assert torch.allclose(gradient, grads2[name], atol=1e-5 + 1e-4 * float(gradient.abs().max())), name


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "olmo2", "mistral"])
@pytest.mark.parametrize("adapter", [None, {}, {"use_dora": True}, {"lora_dropout": 0.1}])
@pytest.mark.parametrize("onednn", ["all products", "thin products", "none"])
def test_kernels_change_no_loss_and_no_gradient(
    monkeypatch: pytest.MonkeyPatch, architecture: str, adapter: dict[str, object] | None, onednn: str
) -> None:
    if onednn != "none" and not cpu_matmul._HAS_ONEDNN:
        pytest.skip("no oneDNN here")
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
    assert ("RMSNorm" in installed) == (architecture != "olmo2")  # its code differs: it keeps its own
    if adapter and "lora_dropout" in adapter:
        model.eval(), changed.eval()
    assert_same_training(model, changed)


def test_biases_that_an_adapter_trains_get_their_gradient() -> None:
    model = with_adapter(causal_model(model_type="qwen2"), bias="all")
    changed = copy.deepcopy(model)
    assert "LoRA" in kernels.install(changed, "torch", CPU, partitioned=False), "of the layers without a bias"
    assert_same_training(model, changed)


def test_a_kernel_is_not_put_where_it_would_be_wrong() -> None:
    of_gemma = kernels.install(
        causal_model(model_type="gemma3_text", head_dim=8), "torch", CPU, partitioned=False
    )
    assert "RMSNorm" not in of_gemma
    assert "SwiGLU" not in of_gemma
    partitioned = kernels.install(with_adapter(causal_model()), "torch", CPU, partitioned=True)
    assert "LoRA" not in partitioned
    assert "linear" not in partitioned
    assert kernels.install(causal_model(), "none", CPU, partitioned=False) == "none"
    with pytest.raises(ValueError, match="liger"):
        kernels.install(causal_model(), "liger", CPU, partitioned=False)


@pytest.mark.parametrize("chunk", [VOCAB_SIZE, 4 * VOCAB_SIZE, 2**20])
@pytest.mark.parametrize("tied", [False, True])
def test_losses_by_chunks_are_those_of_the_whole_logits(
    monkeypatch: pytest.MonkeyPatch, chunk: int, tied: bool
) -> None:
    monkeypatch.setattr("finetune.models.loss.CHUNK_ELEMENTS", {"cpu": chunk})
    monkeypatch.setattr("finetune.models.loss.MIN_CHUNK_ROWS", 1)
    model = causal_model(tie_word_embeddings=tied)
    plain = copy.deepcopy(model)
    each, grads = gradients(PackedModel(model))
    inputs = batch()
    logits = plain(input_ids=inputs.input_ids, position_ids=inputs.position_ids, use_cache=False).logits
    supervised = logits.flatten(0, 1)[inputs.target_positions]
    expected = torch.nn.functional.cross_entropy(supervised, inputs.targets, reduction="none")
    expected.sum().backward()
    assert torch.allclose(each, expected, atol=1e-5)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(
            grads[name], parameter.grad, atol=1e-5 + 1e-4 * float(parameter.grad.abs().max())
        ), name


def test_whole_logits_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.models.loss.CHUNK_ELEMENTS", {"cpu": 16 * VOCAB_SIZE})
    monkeypatch.setattr("finetune.models.loss.MIN_CHUNK_ROWS", 1)
    seen = []
    honest = loss.linear

    def watched(*arguments: torch.Tensor) -> torch.Tensor:
        out = honest(*arguments)
        if out.shape[-1] == VOCAB_SIZE:
            seen.append(out.shape[0])
        return out

    packed = PackedModel(causal_model())
    monkeypatch.setattr(loss, "linear", watched)
    packed.losses(batch()).total.backward()
    assert sum(seen) == len(batch().targets), "positions without a target went through the head"
    assert max(seen) <= 16


def test_a_micro_batch_without_targets_has_a_gradient_of_zero() -> None:
    packed = PackedModel(causal_model())
    nothing = torch.zeros(0, dtype=torch.int64)
    losses = packed.losses(replace(batch(), target_positions=nothing, targets=nothing))
    losses.total.backward()
    assert len(losses.per_token) == 0
    assert all(not p.grad.any() for p in packed.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_a_model_that_caps_its_logits_keeps_its_own_way(cap: float) -> None:
    """A cap far above the logits leaves them as they are; the sum of many losses in their place would have no
    gradient."""
    packed = PackedModel(
        causal_model(
            model_type="gemma2", head_dim=8, final_logit_softcapping=cap, attn_logit_softcapping=None
        )
    )
    assert packed.head.chunked
    checks.check_target_losses(packed, VOCAB_SIZE)
    assert not packed.head.chunked
    assert all(bool(gradient.any()) for gradient in gradients(packed)[1].values())


def test_a_loss_that_is_not_of_the_logits_is_refused() -> None:
    packed = PackedModel(causal_model())
    honest = packed.losses
    packed.losses = lambda inputs: replace(honest(inputs), per_token=honest(inputs).per_token + 0.1)  # type: ignore[method-assign]
    with pytest.raises(checks.GuardError, match="differ"):
        checks.check_target_losses(packed, VOCAB_SIZE)


@pytest.mark.parametrize("architecture", ATTENTION)
def test_attention_by_document_is_masked_attention(architecture: str) -> None:
    model = causal_model(model_type=architecture, **ATTENTION[architecture])
    ids, positions = batch().input_ids, batch().position_ids
    packed = PackedModel(model)
    packed.attention = "sdpa"
    masked = packed.logits(ids, positions)
    packed.attention = DOCUMENTS
    assert torch.allclose(packed.logits(ids, positions), masked, atol=1e-5)
    assert checks.choose_attention(packed, "auto", VOCAB_SIZE) == DOCUMENTS


def test_attention_falls_back_where_the_fast_one_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AttentionInterface

    packed = PackedModel(causal_model())
    honest = AttentionInterface._global_mapping[DOCUMENTS]

    def leaky(module: object, query: torch.Tensor, *rest: object, **more: object) -> object:
        return honest(module, query, *rest, **{**more, "position_ids": torch.arange(query.shape[2])[None]})

    monkeypatch.setitem(AttentionInterface._global_mapping, DOCUMENTS, leaky)
    assert checks.choose_attention(packed, "auto", VOCAB_SIZE) == packed.attention == "sdpa"
    with pytest.raises(checks.GuardError, match="keeps this model's packed documents apart"):
        checks.choose_attention(packed, DOCUMENTS, VOCAB_SIZE)


def test_a_soft_cap_inside_attention_is_left_to_implementations_that_know_it() -> None:
    packed = PackedModel(causal_model(model_type="gemma2", head_dim=8))
    assert checks.choose_attention(packed, "auto", VOCAB_SIZE) != DOCUMENTS
