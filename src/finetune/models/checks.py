"""Checks of the model that stop a run on silent errors.

They find random weights, packed documents that attend to each other, and saved files that lost
weights. Each raises GuardError with a remedy; tests/test_guards.py plants a fault for each.
"""

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
from finetune.models.load import build_placeholder
from finetune.models.packed import PackedModel, PackInputs
from finetune.models.safetensors_io import WeightFiles

CPU = torch.device("cpu")
Gathered = Callable[[Iterable[torch.nn.Parameter]], AbstractContextManager[None]]
Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
logger = logging.getLogger(__name__)


class GuardError(UserError):
    """An error in training that would otherwise go unnoticed."""


class NotFiniteError(GuardError):
    """A model's logits contain NaN or Inf whatever its attention."""


def choose_attention(packed: PackedModel, requested: str, vocab_size: int, device: torch.device = CPU) -> str:
    """Set the model's attention to the fastest correct implementation, or to the requested one.

    An implementation is correct on this model and device if one document of a pack does not change
    the logits of the others (check_isolation), and if the logits of a pack are those of its
    documents run one by one with `eager`, which is the architecture's definition (check_packed).

    Args:
        requested: model.attention; "auto" tries the implementations by speed.

    Returns:
        The name of the implementation.

    Raises:
        NotFiniteError: the logits contain NaN or Inf with `eager`.
        GuardError: the requested implementation, or each of them, is wrong.
    """
    candidates = attention.list_implementations(device) if requested == "auto" else [requested]
    faults: list[str] = []
    for candidate in candidates:
        try:
            packed.attention = "eager"
            reference = _run_one_by_one(packed.logits, vocab_size, device)
            check_logits(packed, reference, vocab_size, device)
            packed.attention = candidate
            check_isolation(packed.logits, vocab_size, device)
            with torch.no_grad():
                logits = packed.logits(*_make_probe(vocab_size, device))
            check_packed(logits, reference, packed.num_layers)
            if candidate == "eager" and faults:
                logger.warning(
                    "attention: eager is used, whose memory grows with the square of "
                    "data.sequence_length: %s",
                    "; ".join(faults),
                )
            return candidate
        except NotFiniteError:
            raise
        except (GuardError, ValueError, ImportError, NotImplementedError, RuntimeError) as fault:
            faults.append(f"{candidate}: {' '.join(str(fault).split())[:300]}")
            logger.info("attention %s", faults[-1])
    raise GuardError(
        "model.attention: no implementation isolates this model's packed documents "
        f"({'; '.join(faults)}); choose another model"
    )


def check_logits(
    packed: PackedModel, logits: torch.Tensor, vocab_size: int, device: torch.device = CPU
) -> None:
    """Check that logits are finite; if not, find out whether the adapter or the base is at fault.

    Raises:
        NotFiniteError: the logits contain NaN or Inf.
    """
    if bool(logits.isfinite().all()):
        return
    if isinstance(packed.model, PeftModel):
        with packed.model.disable_adapter():
            base_logits = _run_one_by_one(packed.logits, vocab_size, device)
        if bool(base_logits.isfinite().all()):
            method = packed.model.active_peft_config.peft_type.value
            raise NotFiniteError(
                f"adapter: the model's logits contain NaN or Inf with the adapter ({method}) and "
                "not without it; choose other adapter.target_modules, or another adapter"
            )
    raise NotFiniteError(
        "model.path: the base's logits contain NaN or Inf, so its weights or its config are "
        "damaged; download it again"
    )


def check_isolation(
    logits: Logits, vocab_size: int, device: torch.device = CPU, tolerance: float = 1e-3
) -> None:
    """Check that one document of a pack does not change the logits of the others.

    The pack has three documents and 48 tokens; it is run twice, the second time with other tokens
    in the first document. The check runs on the real model, device, precision and attention, in
    evaluation mode. With a correct mask, logits of the other documents change by rounding only.

    Args:
        tolerance: largest change of a logit, as a share of the largest logit.

    Raises:
        GuardError: the change is larger, or the logits contain NaN or Inf.
    """
    ids, positions = _make_probe(vocab_size, device)
    ids = ids.repeat(2, 1)
    ids[1, :16] = (ids[1, :16] + 1 + torch.arange(16, device=device)) % vocab_size
    with torch.no_grad():
        others = logits(ids, positions.repeat(2, 1))[:, 16:].float()
    if not bool(others.isfinite().all()):
        raise GuardError(
            "the model's logits contain NaN or Inf: its weights or its config are damaged; "
            "download it again, or lower lr"
        )
    change = float((others[0] - others[1]).abs().max() / others[0].abs().max().clamp(min=1e-6))
    if not change <= tolerance:
        raise GuardError(
            "packed documents attend to each other: changing the tokens of one changes the logits "
            f"of the others by {change:.1e} of their size, so this attention does not isolate "
            "documents in this architecture; choose another model.attention"
        )


def check_weights(
    files: WeightFiles, parameters: dict[str, torch.nn.Parameter], gathered: Gathered, world: World
) -> None:
    """Check that every loaded weight, on every rank, equals that in the base's files.

    Args:
        files: read by rank 0 alone, which broadcasts one tensor at a time.
        parameters: by name in the files, in the order of the files. A parameter may have more rows
            than its tensor (an enlarged vocabulary); only the tensor's rows are compared.
        gathered: context manager in which partitioned parameters are complete.

    Raises:
        GuardError: a weight differs on some rank.
    """
    differs = torch.zeros(len(parameters))
    tensors = (tensor for name, tensor in files if name in parameters) if world.is_main else None
    for index, (name, parameter) in enumerate(parameters.items()):
        with torch.no_grad(), gathered([parameter]):
            loaded = parameter.detach()
            if files.shapes[name]:
                loaded = loaded[: files.shapes[name][0]]
            expected = torch.empty(loaded.shape, dtype=loaded.dtype, device=loaded.device)
            if tensors is not None:
                # converts to the parameter's precision, with the rounding of the load
                expected.copy_(next(tensors))
            if world.size > 1:
                torch.distributed.broadcast(expected, 0)
            differs[index] = not torch.equal(loaded, expected)
    num_ranks = world.all_reduce_sum(differs.to(world.device)).cpu()
    if bool(num_ranks.any()):
        name = list(parameters)[int(num_ranks.argmax())]
        raise GuardError(
            f"model.path: {int((num_ranks > 0).sum())} of {len(parameters)} loaded weights differ "
            f"from the base's files, e.g. {name} on {int(num_ranks.max())} of {world.size} ranks; "
            "please report the model and the zero settings"
        )


def check_packed(packed: torch.Tensor, reference: torch.Tensor, num_layers: int) -> None:
    """Check that the logits of a pack are those of its documents run one by one, up to rounding.

    In bf16 (8 bits) two correct implementations differ by 0.0017 of the logits' size a layer:
    random Llamas of 16 and 32 layers (1B and 8B) differed by 2.4% and 5.4%. In the 1B model the
    difference was 110% if documents attended to each other, and 13% with attention scores that were
    1.1 times too large.

    Args:
        packed: [1, tokens, vocabulary] logits of the pack.
        reference: the logits of the documents, in the same shape.

    Raises:
        GuardError: the logits of some token differ by more than rounding.
    """
    tolerance = 1e-3 if reference.dtype == torch.float32 else max(0.05, 0.006 * num_layers)
    distance = (packed.float() - reference.float()).norm(dim=-1)
    size = reference.float().norm(dim=-1)
    largest = float((distance / size.clamp(min=1e-6)).max())
    if not largest <= tolerance:
        raise GuardError(
            f"packed documents have other logits than single ones (by {largest:.1e} of their "
            "size); choose another model.attention"
        )


def check_target_losses(packed: PackedModel, vocab_size: int, device: torch.device = CPU) -> None:
    """Check the losses of single positions against the model's full logits.

    A model that changes its logits after the LM head (a soft cap, a scale) fails the check of the
    chunked head, which is then switched off (`packed.head.chunked`).

    Raises:
        GuardError: the losses differ without the chunked head too.
    """
    ids, positions = _make_probe(vocab_size, device)
    # all positions are supervised, so that both matrix products round alike in bf16
    inputs = PackInputs(
        ids, positions, target_positions=torch.arange(48, device=device), targets=ids[0].roll(-1)
    )
    with torch.no_grad():
        full_logits = packed.logits(ids, positions)[0].float()
        expected = torch.nn.functional.cross_entropy(full_logits, inputs.targets, reduction="none")
        for chunked in (True, False) if packed.head.chunked else (False,):
            packed.head.chunked = chunked
            losses = packed.losses(inputs)
            # The chunked head returns the sum of losses in the place of logits. A soft cap leaves
            # small logits as they are, but would change that large sum, and so its gradient.
            sums_agree = torch.allclose(losses.total, losses.per_token.sum(), rtol=1e-3)
            if sums_agree and torch.allclose(losses.per_token, expected, rtol=1e-3, atol=1e-3):
                return
            logger.info(
                "the model changes its logits after the LM head: the loss uses the model's own logits"
            )
    raise GuardError(
        "model: the losses of single positions differ from those of its full logits: this "
        "architecture is not supported; choose another model"
    )


def _make_probe(vocab_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a pack [1, 48] of three documents (16, 20, 12 random tokens), and its positions."""
    ids = torch.randint(vocab_size, (1, 48), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(16), torch.arange(20), torch.arange(12)])[None]
    return ids.to(device), positions.to(device)


@torch.no_grad()
def _run_one_by_one(logits: Logits, vocab_size: int, device: torch.device) -> torch.Tensor:
    """Return the logits of the probe's documents, each run on its own: [1, 48, vocabulary]."""
    ids, positions = _make_probe(vocab_size, device)
    bounds = [(0, 16), (16, 36), (36, 48)]
    each = [logits(ids[:, a:b].contiguous(), positions[:, a:b].contiguous()) for a, b in bounds]
    return torch.cat(each, 1)


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raise GuardError if a trained tensor contains NaN or Inf; meta tensors are not checked."""
    if not tensor.is_meta and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise GuardError(f"{name} contains NaN or Inf after training, and nothing is saved; lower lr")


def check_saved(
    folder: Path, expected: dict[str, torch.Tensor], initial: dict[str, torch.Tensor] | None
) -> None:
    """Check that the files in `folder` hold all trained numbers, and a changed adapter.

    Args:
        expected: full tensors that were to be saved.
        initial: the same tensors before the first step; None skips that comparison.

    Raises:
        GuardError: numbers are missing, or no tensor changed.
    """
    saved = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
            saved += sum(math.prod(shape) for shape in shapes)
    wanted = sum(tensor.numel() for tensor in expected.values())
    if saved < wanted or wanted == 0:
        raise GuardError(
            f"{folder}: it holds {saved} of {wanted} trained numbers, so the save lost weights; "
            "run `finetune resume` to save again"
        )
    if initial is not None and all(torch.equal(tensor, initial[name]) for name, tensor in expected.items()):
        raise GuardError(
            f"{folder}: the saved weights are those from before the first step, so training "
            "changed nothing; check lr, and that the loss depends on adapter.target_modules"
        )


def check_reloads(folder: Path, trained: PeftModel, state: dict[str, torch.Tensor]) -> None:
    """Check that PEFT loads the saved adapter with the tensors and settings that were trained.

    The adapter is loaded on a placeholder of its base, so the check needs no more memory than the
    adapter, whatever the size of the base and the ZeRO stage. An equal adapter with equal settings
    on an equal base has equal logits.

    Args:
        state: full trained tensors by parameter name.

    Raises:
        GuardError: PEFT cannot load the adapter, or a tensor or a setting differs.
    """
    initialisation = str(getattr(trained.active_peft_config, "init_lora_weights", "")).lower()
    writes_base = initialisation == "olora"  # it changes the base's own tensors
    skeleton = build_placeholder(trained.get_base_model().config, writable=writes_base)
    try:
        reloaded = PeftModel.from_pretrained(skeleton, str(folder), torch_device="cpu")
    except (ValueError, KeyError, RuntimeError) as fault:
        raise GuardError(
            "adapter: PEFT cannot load the adapter that it saved: "
            f"{' '.join(str(fault).split())[:300]}; choose another adapter"
        ) from None
    loaded = dict(reloaded.named_parameters()) | dict(reloaded.named_buffers())
    for name, tensor in state.items():
        found = loaded.get(name)
        if found is None or not torch.equal(found.detach().to(tensor.dtype), tensor):
            raise GuardError(
                f"{folder}: loading it does not restore {name}, so the loaded model is not the "
                "trained one; choose another adapter"
            )
    saved_settings = reloaded.active_peft_config.to_dict()
    for key, value in trained.active_peft_config.to_dict().items():
        if key != "inference_mode" and _sorted_if_list(saved_settings[key]) != _sorted_if_list(value):
            raise GuardError(
                f"{folder}/adapter_config.json: {key} is {saved_settings[key]}, and was {value} in "
                "training; choose another adapter"
            )


def _sorted_if_list(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, set | list) else value
