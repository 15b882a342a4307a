"""Matrix products x Wᵀ in float32 on a CPU, with the library that is faster for their shape.

The libraries are oneDNN and torch's own BLAS (MKL). For matrices of a model's size, oneDNN was
faster on x86 CPUs with AVX-512: by a fifth to a third on Zen 4, and more than twice as fast on
Zen 5. MKL was a sixth faster on Zen 3, which lacks AVX-512. If one side is as short as an adapter's
rank, oneDNN is up to twice as fast, with and without AVX-512.

The choice depends on the CPU and the shape alone, so that a resumed run rounds like an
uninterrupted one.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor
from torch.nn import functional

# Longest short side of a thin matrix; the rank of an adapter is such a side.
THIN = 64

_HAS_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # internal, but torch.compile uses it too
)
_FAST_ONEDNN = _HAS_ONEDNN and torch.backends.cpu.get_cpu_capability() == "AVX512"


def can_use_onednn(x: Tensor) -> bool:
    """Return whether `linear` can multiply x with oneDNN.

    If not, `linear` calls torch.nn.functional.linear.
    """
    return _HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


def prefers_onednn(x: Tensor) -> bool:
    """Return whether oneDNN multiplies x by a weight of a model's size faster than MKL.

    It depends on the CPU and on x's device and dtype. The shape of x is not considered: `linear`
    also uses oneDNN if one side is short.
    """
    return _FAST_ONEDNN and can_use_onednn(x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + bias, without gradients, for use inside autograd functions.

    Args:
        x: [rows, in]
        weight: [out, in]
        bias: [out]

    Returns:
        [rows, out]
    """
    is_thin = min(*x.shape, len(weight)) <= THIN
    use_onednn = prefers_onednn(x) or (is_thin and can_use_onednn(x))
    if use_onednn and x.dtype == weight.dtype and len(x):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return functional.linear(x, weight, bias)
