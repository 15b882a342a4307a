"""Faster kernels for parts of a model: the same mathematics in fewer passes over memory.

On a GPU, Liger's Triton kernels (Hsu et al. 2024) are used if they are installed. Our own kernels,
in plain torch, are for LoRA, for RMSNorm and SwiGLU without Liger, and for linear layers on CPUs. A
kernel replaces the `forward` of a module only if the module computes exactly the same.
tests/test_kernels.py compares the values and gradients of our kernels with those of the original
modules.
"""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from data_prep.user_error import UserError
from finetune.models.cpu_matmul import can_use_onednn, linear, prefers_onednn

logger = logging.getLogger(__name__)


def find_liger_fault(device: torch.device) -> str | None:
    """Return why Liger's kernels cannot be used on a device, with a remedy; None if they can."""
    if device.type != "cuda":
        return "it needs a GPU; choose model.kernels=auto"
    if importlib.util.find_spec("liger_kernel") is None:
        return "it is not installed; run pip install 'finetune[liger]', or choose model.kernels=auto"
    return None


def install(model: nn.Module, choice: str, device: torch.device, partitioned: bool) -> str:
    """Install kernels in `model`.

    Args:
        choice: the setting model.kernels; "auto" uses Liger's kernels where possible.
        partitioned: True if weights are partitioned (ZeRO-3). Kernels then must not bypass
            submodules, because these gather their own weights.

    Returns:
        The names of the installed kernels, for the log.

    Raises:
        UserError: liger was requested and cannot be used.
    """
    if choice == "none":
        return "none"
    liger_fault = find_liger_fault(device)
    if choice == "liger" and liger_fault:
        raise UserError(f"model.kernels=liger: {liger_fault}")
    installed = []
    if choice in ("auto", "liger") and liger_fault is None:
        installed = _install_liger(model)
    elementwise = not installed  # Liger has its own RMSNorm and SwiGLU
    counts = Counter[str]()
    for module in model.modules():
        name = _replace_forward(module, elementwise=elementwise, device=device, partitioned=partitioned)
        if name:
            counts[name] += 1
    installed += [f"{name} ×{count}" for name, count in counts.items()]
    return ", ".join(installed) or "none"


def _install_liger(model: nn.Module) -> list[str]:
    """Install Liger's kernels for this architecture, except its loss; return their names.

    Liger's loss is not used. Our own (loss.py) does not compute the full logits either, and it
    returns the sum over tokens that training needs.
    """
    from liger_kernel.transformers.monkey_patch import (
        MODEL_TYPE_TO_APPLY_LIGER_FN,
        _apply_liger_kernel_to_instance,
    )

    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if base.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        logger.info("liger has no kernels for %s", base.config.model_type)
        return []
    _apply_liger_kernel_to_instance(model=base, fused_linear_cross_entropy=False, cross_entropy=False)
    return ["liger"]


def _replace_forward(
    module: nn.Module, elementwise: bool, device: torch.device, partitioned: bool
) -> str | None:
    """Replace the module's forward if there is a kernel for it; return the kernel's name."""
    if (
        type(module) is nn.Linear
        and device.type == "cpu"
        and not partitioned
        and prefers_onednn(module.weight)
    ):
        module.forward = MethodType(_linear_forward, module)  # type: ignore[method-assign]
        return "linear"
    if isinstance(module, LoraLinear):
        if partitioned or not _is_plain_lora(module):
            return None
        module.forward = MethodType(_lora_forward, module)
        return "LoRA"
    if elementwise and _is_plain_rms_norm(module):
        module.forward = MethodType(_rms_norm_forward, module)
        return "RMSNorm"
    if elementwise and _is_plain_swiglu(module):
        module.forward = MethodType(_swiglu_forward, module)
        return "SwiGLU"
    return None


# --- LoRA: y = x Wᵀ + s (x Aᵀ) Bᵀ, with the second term added in place ---


def _is_plain_lora(module: LoraLinear) -> bool:
    names = module.active_adapters
    return (
        len(names) == 1
        and not module.lora_variant  # DoRA and others
        and not module.merged
        and not module.fan_in_fan_out
        and type(module.base_layer) is nn.Linear
        and isinstance(module.lora_dropout[names[0]], nn.Identity)
        and module.lora_A[names[0]].bias is None
        and module.lora_B[names[0]].bias is None
        and not any(parameter.requires_grad for parameter in module.base_layer.parameters())
    )


def _lora_forward(self: LoraLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    name = self.active_adapters[0]
    a = self.lora_A[name].weight
    b = self.lora_B[name].weight
    base = self.base_layer
    if args or kwargs or self.disable_adapters or not x.dtype == a.dtype == base.weight.dtype:
        return type(self).forward(self, x, *args, **kwargs)  # type: ignore[no-any-return]
    function = _MergedLora if can_use_onednn(x) else _Lora
    out: Tensor = function.apply(  # type: ignore[no-untyped-call]
        x, base.weight, base.bias, a, b, self.scaling[name]
    )
    return out


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.flatten(0, -2)
        low = rows @ a.T
        out = nn.functional.linear(rows, weight, bias).addmm_(low, b.T, alpha=scaling)
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.scaling = scaling
        ctx.shape = x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, low = ctx.saved_tensors
        d_out = gradients[0].flatten(0, -2)
        # a product with few columns is up to five times as fast if it is computed transposed
        d_low = (b.T @ d_out.T).T.mul_(ctx.scaling)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (d_out @ weight).addmm_(d_low, a).view(ctx.shape)
        d_a = d_low.T @ rows
        d_b = (low.T @ d_out).T.mul(ctx.scaling)
        return d_x, None, None, d_a, d_b, None


class _MergedLora(torch.autograd.Function):
    """LoRA as y = x (W + s B A)ᵀ: it adds the weights of base and adapter, not their outputs.

    This usually takes fewer additions, because the outputs for a micro-batch are more numbers than
    the weights of a layer. Use it for float32 only: in bf16 the sum of weights would round a small
    adapter to nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.flatten(0, -2)
        out = linear(rows, torch.addmm(weight, b, a, alpha=scaling), bias)
        ctx.save_for_backward(rows, weight, a, b)
        ctx.scaling = scaling
        ctx.shape = x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b = ctx.saved_tensors
        d_out = gradients[0].flatten(0, -2)
        d_x = None
        if ctx.needs_input_grad[0]:
            # computing the transposed sum instead would take five times as long
            merged = torch.addmm(weight, b, a, alpha=ctx.scaling)
            d_x = linear(d_out, merged.T).view(ctx.shape)
        low = linear(rows, a)
        d_low = linear(d_out, b.T).mul_(ctx.scaling)
        d_a = linear(d_low.T, rows.T)
        d_b = linear(low.T, d_out.T).T.mul(ctx.scaling)
        return d_x, None, None, d_a, d_b, None


# --- linear layer: y = x Wᵀ + b ---


def _linear_forward(self: nn.Linear, x: Tensor) -> Tensor:
    if x.dtype != self.weight.dtype:  # torch then raises its own error
        return nn.functional.linear(x, self.weight, self.bias)
    return _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.flatten(0, -2)
        ctx.save_for_backward(rows if weight.requires_grad else None, weight)
        ctx.shape = x.shape
        return linear(rows, weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        d_out = gradients[0].flatten(0, -2)
        d_x: Tensor | None = None
        d_weight: Tensor | None = None
        d_bias: Tensor | None = None
        if ctx.needs_input_grad[0]:
            d_x = linear(d_out, weight.T).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            d_weight = d_out.T @ rows
        if ctx.needs_input_grad[2]:
            d_bias = d_out.sum(0)
        return d_x, d_weight, d_bias


# --- RMSNorm (Zhang & Sennrich 2019): y = w x / sqrt(mean(x²) + eps) ---


def _is_plain_rms_norm(module: nn.Module) -> bool:
    """Return whether the module is a plain RMSNorm; Gemma's is not, as it multiplies by 1 + w."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return type(module).__name__.endswith("RMSNorm") and _has_same_code(type(module), LlamaRMSNorm)


def _rms_norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.dtype != torch.float32 or self.weight.dtype != torch.float32:
        return type(self).forward(self, hidden_states)  # type: ignore[no-any-return]
    out: Tensor = _RmsNorm.apply(  # type: ignore[no-untyped-call]
        hidden_states, self.weight, self.variance_epsilon
    )
    return out


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square: Tensor = torch.linalg.vecdot(x, x).div_(x.shape[-1])
        inverse: Tensor = mean_square.add_(eps).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(x, weight, inverse)
        scaled: Tensor = (x * inverse).mul_(weight)
        return scaled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        d_out = gradients[0]
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (d_out * x).mul_(inverse).flatten(0, -2).sum(0)
        d_scaled = d_out * weight
        projection = torch.linalg.vecdot(d_scaled, x).unsqueeze(-1).mul_(inverse**3).div_(x.shape[-1])
        return d_scaled.mul_(inverse).addcmul_(x, projection, value=-1), d_weight, None


# --- SwiGLU (Shazeer 2020): down(silu(gate(x)) · up(x)); only gate and up are kept for backward ---


def _is_plain_swiglu(module: nn.Module) -> bool:
    from transformers.models.llama.modeling_llama import LlamaMLP

    return (
        type(module).__name__.endswith("MLP")
        and _has_same_code(type(module), LlamaMLP)
        and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")
    )


def _swiglu_forward(self: Any, x: Tensor) -> Tensor:
    product = _SwiGlu.apply(self.gate_proj(x), self.up_proj(x))  # type: ignore[no-untyped-call]
    out: Tensor = self.down_proj(product)
    return out


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        d_out = gradients[0]
        d_up = nn.functional.silu(gate).mul_(d_out)
        return torch.ops.aten.silu_backward(d_out * up, gate), d_up


def _has_same_code(kind: type[nn.Module], reference: type[nn.Module]) -> bool:
    """Return whether the forwards of two classes have the same bytecode, names and constants."""
    a = kind.forward.__code__
    b = reference.forward.__code__
    return (a.co_code, a.co_names, a.co_consts) == (b.co_code, b.co_names, b.co_consts)
