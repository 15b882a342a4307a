"""Measurements on a rank: model FLOPs per token, the device's peak, memory, seconds by phase."""

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

# Peak TFLOP/s of one device, from the vendors' data sheets: (dense bf16, fp32). fp32 is without
# TF32, which PyTorch does not use by default. The first key that is part of the device's name is
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
    """The peak FLOP/s of one rank's device.

    Attributes:
        flops: FLOP/s.
        origin: "table" (from PEAK_TFLOPS) or "measured".
    """

    flops: float
    origin: str


@functools.cache
def find_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Return the device's peak FLOP/s from PEAK_TFLOPS, or measure it.

    A measured peak is the best of up to six large matrix products, computed by the same library as
    in training. Ranks that share a CPU must measure at the same time, so that each measures its
    share. No product starts after one second, because a CPU without bf16 instructions takes seconds
    for one product.
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

    Each weight of a linear layer costs 2 FLOPs in the forward pass and 2 for the gradient of the
    inputs. If it is trained, it costs 2 more for its own gradient. For N weights, this gives 6 N
    FLOPs in full training (Kaplan et al. 2020, Scaling Laws, §2.1), and 4 N if they are frozen
    under an adapter.

    Three things are not counted. The products of queries and keys depend on the length. The input
    embedding is a lookup. Recomputed activations are left out, as is usual for model FLOPs
    utilisation (Chowdhery et al. 2022, PaLM, appendix B).

    Raises:
        ValueError: the model is a mixture of experts, which uses only a part of its weights for
            each token.
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
    """Return this rank's peak memory in bytes: allocated on its GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Clock:
    """Timer of the phases of training on this rank, such as the wait for data or an evaluation.

    Attributes:
        seconds: seconds spent so far in each phase, by its name. On a GPU, the times of
            `device_phase` are added only when `read_events` is called.
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
        """Add to phase `name` the time that the device needs for the work launched in the context.

        On a GPU, `read_events` reads the time later, so that the host does not wait here.
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
        """Add the host's time in the context to phase `name` (data, evaluation, checkpoint)."""
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began

    def time_items(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and add the host's time for producing each to phase `name`."""
        iterator = iter(items)
        while True:
            with self.host_phase(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def read_events(self) -> None:
        """Add the GPU times of a step's device phases; the GPU must have finished the step."""
        for name, start, stop in self._events:
            self.seconds[name] += start.elapsed_time(stop) / 1000
        self._events.clear()

    def add_breakdown(self, earlier: dict[str, float]) -> None:
        """Add the seconds by phase that `breakdown` returned in earlier attempts of the run."""
        for name, value in earlier.items():
            if name == "total":
                self._began -= value
            elif name != "other":
                self.seconds[name] += value

    def breakdown(self) -> dict[str, float]:
        """Return the seconds by phase over all attempts, with their `total`.

        `other` is the part of the total that belongs to no phase.
        """
        total = time.perf_counter() - self._began
        other = max(0.0, total - sum(self.seconds.values()))
        return {**self.seconds, "other": other, "total": total}
