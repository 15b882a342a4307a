"""Matrix products x Wᵀ in float32 on a CPU, by the library that is faster for their shape.

For products of a model's size, oneDNN was a fifth to a third faster than torch's own BLAS (MKL) on
x86 CPUs with AVX-512 (Zen 4), or more than twice as fast (Zen 5), and MKL a sixth faster on one
without (Zen 3). Products with a side as short as an adapter's rank are up to twice as fast with
oneDNN on both kinds. The choice depends on the CPU and the shape alone, so that a run and its
resumption round alike.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor
from torch.nn import functional

# Rows or columns of a thin matrix, at most: the rank of an adapter.
THIN = 64

_HAS_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # torch.compile uses it for linear layers
)
_FAST_ONEDNN = _HAS_ONEDNN and torch.backends.cpu.get_cpu_capability() == "AVX512"


def can_use_onednn(x: Tensor) -> bool:
    """Return whether `linear` can use oneDNN for x; otherwise it is torch.nn.functional.linear."""
    return _HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


def prefers_onednn(x: Tensor) -> bool:
    """Return whether oneDNN is faster here for matrices of a model's size."""
    return _FAST_ONEDNN and can_use_onednn(x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + bias, without a gradient: for use inside autograd functions.

    Args:
        x: [rows, in]
        weight: [out, in]

    Returns:
        [rows, out]
    """
    is_thin = min(*x.shape, len(weight)) <= THIN
    use_onednn = prefers_onednn(x) or (is_thin and can_use_onednn(x))
    if use_onednn and x.dtype == weight.dtype and len(x):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return functional.linear(x, weight, bias)
