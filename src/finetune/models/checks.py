"""Checks of a rank's model that stop a run on silent errors: random weights, documents that see each other,
saves that lost weights. Each raises GuardError with a remedy; each has its planted fault in
tests/test_guards.py."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from peft import PeftModel
from safetensors import safe_open

from data_prep.user_error import UserError
from finetune.distributed import World
from finetune.models import attention
from finetune.models.load import stand_in
from finetune.models.packed import PackedModel, PackInputs
from finetune.models.safetensors_io import WeightFiles

CPU = torch.device("cpu")
Gathered = Callable[[Iterable[torch.nn.Parameter]], AbstractContextManager[None]]
Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
logger = logging.getLogger(__name__)


class GuardError(UserError):
    """Raised for a run that would look fine and is not."""


class NotFiniteError(GuardError):
    """A model whose logits contain NaN or Inf, whatever its attention."""


def choose_attention(packed: PackedModel, requested: str, vocab_size: int, device: torch.device = CPU) -> str:
    """Give the model the fastest attention that is right on this model and device, or the one asked for, and
    name it.

    Right is: what one document is does not move its neighbours in a pack (check_isolation), and the pack's
        logits are those of
    its documents one by one under `eager`, which is the architecture's definition (check_packed).

    Raises:
        GuardError: the one asked for is wrong, or all are; or the model gives no numbers with any.
    """
    faults: list[str] = []
    for candidate in attention.by_speed(device) if requested == "auto" else [requested]:
        try:
            packed.attention = "eager"
            alone = _one_by_one(packed.logits, vocab_size, device)
            check_logits(packed, alone, vocab_size, device)
            packed.attention = candidate
            check_isolation(packed.logits, vocab_size, device)
            with torch.no_grad():
                check_packed(packed.logits(*_probe(vocab_size, device)), alone, packed.num_layers)
            if candidate == "eager" and faults:
                logger.warning(
                    "attention: eager, in memory that grows with the square of data.sequence_length: %s",
                    "; ".join(faults),
                )
            return candidate
        except NotFiniteError:
            raise
        except (GuardError, ValueError, ImportError, NotImplementedError, RuntimeError) as fault:
            faults.append(f"{candidate}: {' '.join(str(fault).split())[:300]}")
            logger.info("attention %s", faults[-1])
    raise GuardError(
        f"no attention implementation keeps this model's packed documents apart ({'; '.join(faults)})"
    )


def check_logits(
    packed: PackedModel, logits: torch.Tensor, vocab_size: int, device: torch.device = CPU
) -> None:
    """The logits of plain documents are numbers; else name the part of the model at fault: its adapter or its
    base.

    Raises:
        NotFiniteError: they contain NaN or Inf.
    """
    if bool(logits.isfinite().all()):
        return
    if isinstance(packed.model, PeftModel):
        with packed.model.disable_adapter():
            plain = _one_by_one(packed.logits, vocab_size, device)
        if bool(plain.isfinite().all()):
            raise NotFiniteError(
                f"the model's logits contain NaN or Inf with the adapter "
                f"({packed.model.active_peft_config.peft_type.value}), and do not without it: choose other "
                f"adapter.target_modules, or another adapter"
            )
    raise NotFiniteError(
        "the base's logits contain NaN or Inf: its weights, or its config, are broken: get it again"
    )


def check_isolation(
    logits: Logits, vocab_size: int, device: torch.device = CPU, tolerance: float = 1e-3
) -> None:
    """Scramble one document of a pack: its neighbours' logits must not move.

    Run on the real model, device, precision and attention implementation before the first step, in evaluation
    mode, with three documents in a pack of 48 tokens. Masked attention leaves the neighbours' numbers as they
    are up to rounding.
    """
    ids, positions = _probe(vocab_size, device)
    ids = ids.repeat(2, 1)
    ids[1, :16] = (ids[1, :16] + 1 + torch.arange(16, device=device)) % vocab_size
    with torch.no_grad():
        out = logits(ids, positions.repeat(2, 1))[:, 16:].float()
    if not bool(out.isfinite().all()):
        raise GuardError("the model's logits contain NaN or Inf: its weights, or its config, are broken")
    moved = float((out[0] - out[1]).abs().max() / out[0].abs().max().clamp(min=1e-6))
    if not moved <= tolerance:
        raise GuardError(
            f"documents in a pack see each other (scrambling one moves its neighbours' logits by {moved:.1e} of their size): "
            f"this architecture does not isolate packed documents with this attention; choose another model.attention"
        )


def check_weights(
    files: WeightFiles, parameters: dict[str, torch.nn.Parameter], gathered: Gathered, world: World
) -> None:
    """Every weight on every rank is the one in the base's files, number by number, after all that loaded and
    cut it up.

    Args:
        files: read by rank 0 alone, which sends the others one tensor at a time.
        parameters: by name in the files, in their order; one may have more rows (an enlarged vocabulary): the
            old ones count.
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
    wrong = world.all_reduce_sum(wrong.to(world.device)).cpu()
    if bool(wrong.any()):
        name = list(parameters)[int(wrong.argmax())]
        raise GuardError(
            f"{int((wrong > 0).sum())} of {len(parameters)} weights are not those of the base's files, e.g. {name} on "
            f"{int(wrong.max())} of {world.size} ranks: the load went wrong: please report the model and the zero settings"
        )


def check_packed(packed: torch.Tensor, alone: torch.Tensor, num_layers: int) -> None:
    """Logits of a pack [1, tokens, vocabulary] are those of its documents on their own, up to rounding.

    In bf16 (8 bits) two right implementations differ by 0.0017 of the logits' size a layer: measured on
    random Llamas of 16 and 32 layers (1B and 8B), 2.4% and 5.4%. In the first, documents that see each other
    made 110%, scores 1.1 times too large 13%.
    """
    tolerance = 1e-3 if alone.dtype == torch.float32 else max(0.05, 0.006 * num_layers)
    distance, size = (packed.float() - alone.float()).norm(dim=-1), alone.float().norm(dim=-1)
    apart = float((distance / size.clamp(min=1e-6)).max())  # of the token where they differ most
    if not apart <= tolerance:
        raise GuardError(f"packed documents get other logits than alone (by {apart:.1e} of their size)")


def check_target_losses(packed: PackedModel, vocab_size: int, device: torch.device = CPU) -> None:
    """Losses by chunks of the LM head are those of the model's whole logits; a model that changes its logits
    after the head (a soft cap, a scale) is found here, and keeps its own way.

    Raises:
        GuardError: they differ either way.
    """
    ids, positions = _probe(vocab_size, device)
    # all rows, so that both products round alike in bf16
    inputs = PackInputs(
        ids, positions, target_positions=torch.arange(48, device=device), targets=ids[0].roll(-1)
    )
    with torch.no_grad():
        whole = torch.nn.functional.cross_entropy(
            packed.logits(ids, positions)[0].float(), inputs.targets, reduction="none"
        )
        for chunked in (True, False) if packed.head.chunked else (False,):
            packed.head.chunked = chunked
            losses = packed.losses(inputs)
            # the sum goes where logits would: small ones pass a soft cap unchanged, it would not, and have no
            # gradient
            same_sum = torch.allclose(losses.total, losses.each.sum(), rtol=1e-3)
            if same_sum and torch.allclose(losses.each, whole, rtol=1e-3, atol=1e-3):
                return
            logger.info("the loss needs the model's own logits: it changes them after its LM head")
    raise GuardError(
        "losses of single positions differ from those of the model's logits: this architecture is not supported"
    )


def _probe(vocab_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A pack [1, 48] of three documents of 16, 20 and 12 random tokens, and its positions."""
    ids = torch.randint(vocab_size, (1, 48), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(16), torch.arange(20), torch.arange(12)])[None]
    return ids.to(device), positions.to(device)


@torch.no_grad()
def _one_by_one(logits: Logits, vocab_size: int, device: torch.device) -> torch.Tensor:
    ids, positions = _probe(vocab_size, device)
    cuts = [(0, 16), (16, 36), (36, 48)]
    return torch.cat([logits(ids[:, a:b].contiguous(), positions[:, a:b].contiguous()) for a, b in cuts], 1)


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """A trained tensor holds numbers; of one without data (on the meta device) nothing is known."""
    if not tensor.is_meta and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise GuardError(
            f"{name} holds values that are no numbers after training: lower lr; nothing is saved"
        )


def check_saved(
    folder: Path, expected: dict[str, torch.Tensor], at_start: dict[str, torch.Tensor] | None
) -> None:
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


def check_reloads(folder: Path, trained: PeftModel, state: dict[str, torch.Tensor]) -> None:
    """PEFT, reading the saved adapter for a base of the same shape, gets the very adapter that was trained.

    The base is a stand-in, so this costs no more memory than the adapter, whatever the size of the base and
    the ZeRO stage. An equal adapter with equal settings on an equal base has equal logits.

    Args:
        state: whole trained tensors by parameter name.

    Raises:
        GuardError: a tensor is not restored, or is another; or the settings changed.
    """
    writes = (
        str(getattr(trained.active_peft_config, "init_lora_weights", "")).lower() == "olora"
    )  # into the base's own tensors
    skeleton = stand_in(trained.get_base_model().config, writable=writes)
    try:
        reloaded = PeftModel.from_pretrained(skeleton, str(folder), torch_device="cpu")
    except (ValueError, KeyError, RuntimeError) as fault:
        raise GuardError(
            f"adapter: PEFT cannot load what it saved of this one: {' '.join(str(fault).split())[:300]}"
        ) from None
    parameters = dict(reloaded.named_parameters()) | dict(reloaded.named_buffers())
    for name, tensor in state.items():
        found = parameters.get(name)
        if found is None or not torch.equal(found.detach().to(tensor.dtype), tensor):
            raise GuardError(
                f"{folder} does not restore {name}: loading it would give another model than was trained"
            )
    saved, meant = (config.to_dict() for config in (reloaded.active_peft_config, trained.active_peft_config))
    for key in meant.keys() - {"inference_mode"}:
        if _ordered(saved[key]) != _ordered(meant[key]):
            raise GuardError(
                f"{folder}/adapter_config.json says {key}={saved[key]}, trained was {meant[key]}"
            )


def _ordered(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, set | list) else value
