"""Checks of the model that stop a run on silent errors.

They find random weights, packed documents that attend to each other, and saved files that lack
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
    """An error in a training run that a check found, and that would otherwise go unnoticed."""


class NotFiniteError(GuardError):
    """The model's logits contain NaN or Inf with `eager`, the simplest attention of transformers.

    The fault is then in the model, not in the attention that is being checked, so no other
    implementation is tried.
    """


def choose_attention(packed: PackedModel, requested: str, vocab_size: int, device: torch.device = CPU) -> str:
    """Set the model's attention to the fastest correct implementation, or to the requested one.

    An implementation is correct on this model and device if it passes two checks. One document of a
    pack must not change the logits of the others (check_isolation). The logits of a pack must be
    those of its documents run one by one with `eager`, which defines the architecture
    (check_packed).

    Args:
        requested: the setting model.attention; "auto" tries the implementations, fastest first.

    Returns:
        The name of the implementation.

    Raises:
        NotFiniteError: the logits contain NaN or Inf with `eager`.
        GuardError: the requested implementation fails or, with "auto", each of them.
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
                    "model.attention: eager is used, and its memory grows with the square of "
                    "data.sequence_length; faster implementations failed: %s",
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
        f"({'; '.join(faults)}); choose model.attention=auto or, if it is auto, another model"
    )


def check_logits(
    packed: PackedModel, logits: torch.Tensor, vocab_size: int, device: torch.device = CPU
) -> None:
    """Check that logits are finite; if not, find out whether the adapter or the base is the cause.

    Args:
        logits: the model's logits for the three documents of _make_probe, each run alone.

    Raises:
        NotFiniteError: the logits contain NaN or Inf. The message names the cause.
    """
    if bool(logits.isfinite().all()):
        return
    if isinstance(packed.model, PeftModel):
        with packed.model.disable_adapter():
            base_logits = _run_one_by_one(packed.logits, vocab_size, device)
        if bool(base_logits.isfinite().all()):
            method = packed.model.active_peft_config.peft_type.value
            raise NotFiniteError(
                f"adapter: the model's logits contain NaN or Inf with the adapter ({method}), but "
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

    A pack of three documents and 48 tokens is run twice, the second time with other tokens in the
    first document. If documents are isolated, the logits of the others change by rounding only. The
    check uses the run's own model, device, precision and attention, in evaluation mode.

    Args:
        logits: function that returns the logits for token ids and positions.
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
            "model: the logits contain NaN or Inf; before the first step, download the model again, "
            "because its files are damaged; after it, lower lr"
        )
    change = float((others[0] - others[1]).abs().max() / others[0].abs().max().clamp(min=1e-6))
    if not change <= tolerance:
        raise GuardError(
            "model.attention: packed documents attend to each other: other tokens in one document "
            f"change the logits of the rest by {change:.1e} of their size; choose another "
            "model.attention, or another model"
        )


def check_weights(
    files: WeightFiles, parameters: dict[str, torch.nn.Parameter], gathered: Gathered, world: World
) -> None:
    """Check that the loaded weights equal those in the base's files, on every rank.

    Args:
        files: the base's files. Rank 0 reads them, and broadcasts one tensor at a time.
        parameters: parameters to compare, by their names in the files, in the order of the files.
            Rows that an enlarged vocabulary added are not compared.
        gathered: context manager in which partitioned parameters are complete (zero3.gathered).

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
                # converts to the parameter's precision, and rounds as the load did
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
    """Check that the logits of a pack equal those of its documents run one by one, up to rounding.

    In bf16 (8 significant bits), two correct implementations differ by 0.0017 of the logits' norm
    per layer: random Llamas of 16 and 32 layers (1B and 8B parameters) differed by 2.4% and 5.4%.
    With errors in attention, the 1B model differed more: by 110% if documents attended to each
    other, and by 13% if the attention scores were 1.1 times too large.

    Args:
        packed: [1, tokens, vocabulary] logits of the pack.
        reference: logits of the documents run one by one, in the same shape.
        num_layers: number of layers of the model; the tolerance in bf16 grows with it.

    Raises:
        GuardError: the logits of some token differ by more than rounding.
    """
    tolerance = 1e-3 if reference.dtype == torch.float32 else max(0.05, 0.006 * num_layers)
    distance = (packed.float() - reference.float()).norm(dim=-1)
    size = reference.float().norm(dim=-1)
    largest = float((distance / size.clamp(min=1e-6)).max())
    if not largest <= tolerance:
        raise GuardError(
            "model.attention: the logits of packed documents differ from those of the documents run "
            f"one by one (by {largest:.1e} of their size); choose another model.attention"
        )


def check_target_losses(packed: PackedModel, vocab_size: int, device: torch.device = CPU) -> None:
    """Check that the losses of supervised positions are those of the model's full logits.

    If `packed.head.chunked` is True, the LM head computes the losses itself, chunk by chunk. They
    are wrong if a model changes its logits after the LM head, by a soft cap or a scale. `chunked`
    is then set to False, and the losses are computed from the model's final logits.

    Raises:
        GuardError: the losses computed from the model's final logits differ too.
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
            # The chunked head returns the sum of losses instead of logits. A soft cap hardly
            # changes small logits, but it would change this large sum, and so its gradient.
            sums_agree = torch.allclose(losses.total, losses.per_token.sum(), rtol=1e-3)
            if sums_agree and torch.allclose(losses.per_token, expected, rtol=1e-3, atol=1e-3):
                return
            logger.info("the model changes its logits after the LM head, so the loss uses its final logits")
    raise GuardError(
        "model: the losses of supervised positions differ from those of its full logits, so this "
        "architecture is not supported; choose another model"
    )


def _make_probe(vocab_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a pack [1, 48] of three documents (16, 20 and 12 random tokens) and its positions."""
    ids = torch.randint(vocab_size, (1, 48), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(16), torch.arange(20), torch.arange(12)])[None]
    return ids.to(device), positions.to(device)


@torch.no_grad()
def _run_one_by_one(logits: Logits, vocab_size: int, device: torch.device) -> torch.Tensor:
    """Return logits for the three documents of _make_probe, each run alone: [1, 48, vocabulary]."""
    ids, positions = _make_probe(vocab_size, device)
    bounds = [(0, 16), (16, 36), (36, 48)]
    each = [logits(ids[:, a:b].contiguous(), positions[:, a:b].contiguous()) for a, b in bounds]
    return torch.cat(each, 1)


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raise GuardError if a trained tensor contains NaN or Inf; meta tensors are not checked."""
    if not tensor.is_meta and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise GuardError(f"{name} contains NaN or Inf after training, so nothing is saved; lower lr")


def check_saved(
    folder: Path, expected: dict[str, torch.Tensor], initial: dict[str, torch.Tensor] | None
) -> None:
    """Check that the files in `folder` contain all trained numbers, and that training changed them.

    Args:
        expected: complete tensors that should have been saved, by name.
        initial: the values of these tensors before the first step; None skips the comparison.

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
            f"{folder}: contains only {saved} of {wanted} trained numbers, so weights were lost; run "
            "`finetune resume` to save again"
        )
    if initial is not None and all(torch.equal(tensor, initial[name]) for name, tensor in expected.items()):
        raise GuardError(
            f"{folder}: the saved weights equal those before the first step, so training changed "
            "nothing; check lr, and that the loss depends on adapter.target_modules"
        )


def check_reloads(folder: Path, trained: PeftModel, state: dict[str, torch.Tensor]) -> None:
    """Check that PEFT loads the saved adapter with the trained tensors and settings.

    The adapter is loaded on a placeholder of its base, so the check needs no more memory than the
    adapter. The logits need not be compared: with equal tensors and settings, they are equal on the
    same base.

    Args:
        folder: the saved adapter.
        trained: the model with the trained adapter.
        state: complete trained tensors by parameter name.

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
                f"{folder}/adapter_config.json: {key} is {saved_settings[key]}, but was {value} in "
                "training; choose another adapter"
            )


def _sorted_if_list(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, set | list) else value
