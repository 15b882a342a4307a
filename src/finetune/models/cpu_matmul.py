"""x Wᵀ in float32 on a CPU, by whichever library multiplies that shape fastest there.

torch's own BLAS (MKL) and oneDNN trade places: for products of a model's size oneDNN was a fifth to a third
faster (Zen 4), or more than twice as fast (Zen 5), on x86 CPUs with AVX-512, and MKL a sixth faster on one
without (Zen 3). Products with a side of an adapter's rank are up to twice as fast by oneDNN on both. The
choice rests on the CPU and the shape alone, so that a run and its resumption round alike.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor
from torch.nn import functional

THIN = 64  # rows or columns: at most an adapter's rank

_HAS_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # what torch.compile makes of a linear layer
)
_FAST_ONEDNN = _HAS_ONEDNN and torch.backends.cpu.get_cpu_capability() == "AVX512"


def on_cpu(x: Tensor) -> bool:
    """Whether `linear` has a choice to make: elsewhere it is torch.nn.functional.linear."""
    return _HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


def by_onednn(x: Tensor) -> bool:
    """Whether oneDNN multiplies matrices of a model's size faster than torch's own BLAS here."""
    return _FAST_ONEDNN and on_cpu(x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias, without a gradient: for use inside of autograd functions.

    Args:
        x: [rows, in]
        weight: [out, in]

    Returns:
        [rows, out]
    """
    thin = min(*x.shape, len(weight)) <= THIN
    if (by_onednn(x) or (thin and on_cpu(x))) and x.dtype == weight.dtype and len(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return functional.linear(x, weight, bias)
