"""The checks that catch silent failure. Each raises GuardError with what is wrong and what to do; each has its planted fault
in tests/test_guards.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed
from safetensors import safe_open

from finetune.distributed import World
from finetune.weights import WeightFiles

CPU = torch.device("cpu")
Gathered = Callable[[Iterable[torch.nn.Parameter]], AbstractContextManager[None]]
Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class GuardError(ValueError):
    """A run that would look fine and is not."""


def check_isolation(logits: Logits, vocab_size: int, device: torch.device = CPU, tolerance: float = 1e-3) -> None:
    """Scramble one document of a pack: its neighbour's logits must not move.

    Run on the real model, device, precision and attention implementation before the first step, in evaluation mode, with
    three documents in a pack of 48 tokens. Masked attention leaves the neighbours' numbers as they are up to rounding.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (2, 48), generator=generator)
    ids[1] = ids[0]
    ids[1, :16] = torch.randint(vocab_size, (16,), generator=generator)
    positions = torch.cat([torch.arange(16), torch.arange(20), torch.arange(12)]).expand(2, -1)
    with torch.no_grad():
        out = logits(ids.to(device), positions.to(device))[:, 16:].float()
    moved = float((out[0] - out[1]).abs().max() / out[0].abs().max().clamp(min=1e-6))
    if not moved <= tolerance:
        raise GuardError(
            f"documents in a pack see each other (scrambling one moves its neighbours' logits by {moved:.1e} of their size): "
            f"this architecture does not isolate packed documents with this attention; choose another model.attention"
        )


def check_weights(files: WeightFiles, parameters: dict[str, torch.nn.Parameter], gathered: Gathered, world: World) -> None:
    """Every weight on every rank is the one in the base's files, number by number, after all that loaded and cut it up.

    Args:
        files: read by rank 0 alone, which sends the others one tensor at a time.
        parameters: by name in the files, in their order; one may have more rows (an enlarged vocabulary): the old ones count.
        gathered: a context in which partitioned parameters are whole.
    """
    wrong = torch.zeros(len(parameters))
    tensors = (tensor for name, tensor in files if name in parameters) if world.is_main else None
    for index, (name, parameter) in enumerate(parameters.items()):
        with torch.no_grad(), gathered([parameter]):
            held = parameter.detach()[: files.shapes[name][0]] if files.shapes[name] else parameter.detach()
            expected = torch.empty(held.shape, dtype=held.dtype, device=held.device)
            if tensors is not None:
                expected.copy_(next(tensors))  # to the parameter's precision, rounded as the load rounds
            if world.size > 1:
                torch.distributed.broadcast(expected, 0)
            wrong[index] = not torch.equal(held, expected)
    wrong = world.sum(wrong.to(world.device)).cpu()
    if bool(wrong.any()):
        name = list(parameters)[int(wrong.argmax())]
        raise GuardError(
            f"{int((wrong > 0).sum())} of {len(parameters)} weights are not those of the base's files, e.g. {name} on "
            f"{int(wrong.max())} of {world.size} ranks: the load went wrong: please report the model and the zero settings"
        )


def check_step(loss: float, grad_norm: float, step: int) -> None:
    """A loss or gradient that is not a number ruins the weights: stop while the last checkpoint is good."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise GuardError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}: the last checkpoint is older; lower lr, or look at the data"
        )


def check_planned(planned: int, step: int) -> None:
    """There is something to learn from in a step: its loss is divided by the number of targets."""
    if planned == 0:
        raise GuardError(f"step {step} has no token to learn from: check the corpus' loss mask, or raise global_batch_size")


def check_targets(counted: int, planned: int, step: int) -> None:
    """The tokens that the ranks trained on are those that the loss was divided by."""
    if counted != planned:
        raise GuardError(
            f"step {step}: the ranks counted {counted} supervised tokens, the plan {planned}: plan/ does not fit the corpus"
        )


def check_saved(folder: Path, expected: dict[str, torch.Tensor], at_start: dict[str, torch.Tensor] | None) -> None:
    """What was written is all there, and, for an adapter, not what training began with.

    Args:
        expected: whole tensors that were to be saved.
        at_start: the same tensors before the first step; None skips that comparison.
    """
    elements = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            elements += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    wanted = sum(tensor.numel() for tensor in expected.values())
    if elements < wanted or wanted == 0:
        raise GuardError(
            f"{folder} holds {elements} of {wanted} trained numbers: the save lost weights; `finetune resume` saves again"
        )
    if at_start is not None and all(torch.equal(tensor, at_start[name]) for name, tensor in expected.items()):
        raise GuardError(
            f"{folder} is what training began with: nothing was learned; check lr and that the adapter is on the loss's path"
        )
