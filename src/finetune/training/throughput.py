"""Measurements of a rank: model FLOPs of a token, the device's peak, memory, and seconds by phase."""

from __future__ import annotations

import functools
import resource
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from finetune.models.cpu_matmul import linear

T = TypeVar("T")

# Dense peak of one device in TFLOP/s on tensor cores, from the vendors' data sheets: (bf16, fp32 as
# PyTorch multiplies it by default, without TF32). The first key that the device's name contains is
# used.
PEAK_TFLOPS = {
    "H200": (989.4, 66.9),
    "GH200": (989.4, 66.9),
    "H100 PCIe": (756.0, 51.2),
    "H100": (989.4, 66.9),
    "A100": (312.0, 19.5),
    "A40": (149.7, 37.4),
    "L40S": (362.0, 91.6),
    "MI250": (191.5, 47.9),  # one of its two dies, which ROCm shows as a device
    "MI300A": (980.6, 122.6),
    "MI300X": (1307.4, 163.4),
}


@dataclass(frozen=True)
class Peak:
    """The highest FLOP/s of one rank's device.

    Attributes:
        flops: FLOP/s.
        origin: "table" (PEAK_TFLOPS) or "measured".
    """

    flops: float
    origin: str


@functools.cache
def find_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Return the device's peak from its data sheet, or measure it.

    The peak of a CPU, and of a GPU that is not in PEAK_TFLOPS, is the best of up to six large
    matrix products, by the library that training multiplies with. Ranks that share a CPU measure at
    the same time, so that each gets its share. A CPU without bf16 instructions takes seconds for
    one product: no further product starts after one second.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, (bf16, fp32) in PEAK_TFLOPS.items():
            if known in name:
                tflops = bf16 if dtype == torch.bfloat16 else fp32
                return Peak(tflops * 1e12, "table")
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    spent = 0.0
    for _ in range(6):
        if spent > 1:
            break
        began = time.perf_counter()
        linear(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        best = min(best, seconds)
        spent += seconds
    return Peak(2 * size**3 / best, "measured")


def flops_per_token(model: nn.Module) -> float:
    """Return the model FLOPs of training on one token.

    The matrix products of queries and keys in attention are left out, as they depend on the length.
    Each weight of a matrix product costs 2 FLOPs forward, 2 backward towards the inputs, and 2 more
    towards the weight if it is trained: the 6 N of Kaplan et al. 2020 (Scaling Laws, §2.1) and 4 N
    for an adapter on frozen weights. The input embedding is a lookup and does not count. Recomputed
    activations do not count either, so that the utilisation is one of model FLOPs (Chowdhery et al.
    2022, PaLM, appendix B).

    Raises:
        ValueError: the model is a mixture of experts, which uses a part of its weights for each
            token.
    """
    if any("expert" in name for name, _ in model.named_modules()):
        raise ValueError("a mixture of experts uses only a part of its weights for each token")
    flops = 0.0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            size = module.in_features * module.out_features
            flops += size * (6 if module.weight.requires_grad else 4)
    return flops


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this rank in bytes: allocated on its GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Clock:
    """Seconds by phase on this rank.

    Attributes:
        seconds: by phase so far, without device phases whose events are not read yet.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._began = time.perf_counter()
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @staticmethod
    def now() -> float:
        return time.perf_counter()

    @contextmanager
    def device_phase(self, name: str) -> Iterator[None]:
        """Count the time that the device spends on the work launched inside.

        On a GPU the time is read later, by `read_events`, so that the host does not wait for it
        here.
        """
        if self._device.type != "cuda":
            with self.host_phase(name):
                yield
            return
        start = torch.cuda.Event(enable_timing=True)
        stop = torch.cuda.Event(enable_timing=True)
        start.record()
        yield
        stop.record()
        self._events.append((name, start, stop))

    @contextmanager
    def host_phase(self, name: str) -> Iterator[None]:
        """Count the host's time inside, for data, evaluations and checkpoints."""
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began

    def time_items(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield items, and count the host's time for producing each."""
        iterator = iter(items)
        while True:
            with self.host_phase(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def read_events(self) -> None:
        """Count the device phases of a step whose work is done."""
        for name, start, stop in self._events:
            self.seconds[name] += start.elapsed_time(stop) / 1000
        self._events.clear()

    def add_breakdown(self, earlier: dict[str, float]) -> None:
        """Add the `breakdown` of the earlier attempts of a run."""
        for name, value in earlier.items():
            if name == "total":
                self._began -= value
            elif name != "other":
                self.seconds[name] += value

    def breakdown(self) -> dict[str, float]:
        """Return the seconds by phase, with `other` for the rest and `total`, over all attempts."""
        total = time.perf_counter() - self._began
        other = max(0.0, total - sum(self.seconds.values()))
        return {**self.seconds, "other": other, "total": total}
