"""Speed, memory and time of a rank: tokens a second, model FLOPs utilisation, peak memory, seconds by
phase."""

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

# Dense peak of one device in TFLOP/s, tensor cores, without sparsity, from the vendors' data sheets. (bf16,
# fp32 as PyTorch multiplies it by default, without TF32). The first name that the device's name holds is
# taken.
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
    """FLOP/s that one rank's device could do at most, and where the number is from: "table" or "measured"."""

    flops: float
    origin: str


@functools.cache
def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """From the data sheet; of a device that is not listed, and of CPUs, the best of some large matrix
    products here and now, by the library that training multiplies with.

    Ranks that share a CPU measure at the same time, so that each gets its share. A CPU without instructions
    for bf16 takes seconds for one product; after a second no further one is begun.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, (bf16, fp32) in PEAK_TFLOPS.items():
            if known in name:
                return Peak((bf16 if dtype == torch.bfloat16 else fp32) * 1e12, "table")
    size = 8192 if device.type == "cuda" else 1024
    a, b = (
        torch.randn(size, size, device=device, dtype=dtype),
        torch.randn(size, size, device=device, dtype=dtype),
    )
    best, spent = float("inf"), 0.0
    for _ in range(6):
        if spent > 1:
            break
        began = time.perf_counter()
        linear(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - began
        best, spent = min(best, took), spent + took
    return Peak(2 * size**3 / best, "measured")


def flops_per_token(model: nn.Module) -> float:
    """FLOPs that training needs for one token, attention's products of queries and keys left out.

    2 for each weight of a matrix product forward, 2 backward towards the inputs, and 2 more towards the
    weight if it is trained: the 6 N of Kaplan et al. 2020 (Scaling Laws, §2.1) and, for an adapter on frozen
        weights, 4 N. The input embedding is a
    lookup and does not count; recomputed activations do not count either, which makes the share one of
    *model* FLOPs (Chowdhery et al. 2022, PaLM, appendix B).

    Raises:
        ValueError: a mixture of experts, where a token passes through a share of the weights only.
    """
    if any("expert" in name for name, _ in model.named_modules()):
        raise ValueError("a mixture of experts uses a share of its weights for a token")
    flops = 0.0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            size = module.in_features * module.out_features
            flops += size * (6 if module.weight.requires_grad else 4)
    return flops


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this rank had allocated on its GPU, or its largest resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Clock:
    """Where the time goes: seconds by phase, in this rank. On a GPU a phase ends when the device is done with
    it."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device, self._began = device, time.perf_counter()
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @staticmethod
    def now() -> float:
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Device time of what is launched inside; it is read later, by `read_events`, so that nothing waits
        for it now."""
        if self._device.type != "cuda":
            began = time.perf_counter()
            yield
            self.seconds[name] += time.perf_counter() - began
            return
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        yield
        stop.record()
        self._events.append((name, start, stop))

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """Host time of what is done inside, as for data, evaluations and checkpoints."""
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began

    def timed(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield items, counting the host time in which each is made."""
        iterator = iter(items)
        while True:
            with self.waiting(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def read_events(self) -> None:
        """Read the events of a step that has ended."""
        for name, start, stop in self._events:
            self.seconds[name] += start.elapsed_time(stop) / 1000
        self._events.clear()

    def count(self, earlier: dict[str, float]) -> None:
        """Count on from a breakdown: of earlier attempts of a run, say."""
        for name, value in earlier.items():
            if name == "total":
                self._began -= value
            elif name != "other":
                self.seconds[name] += value

    def breakdown(self) -> dict[str, float]:
        """Seconds by phase since the clock was made, with what it was told to count, and `other` for the
        rest."""
        total = time.perf_counter() - self._began
        return {**self.seconds, "other": max(0.0, total - sum(self.seconds.values())), "total": total}
