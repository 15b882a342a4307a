"""ZeRO-3's partitions: parameters of which each rank holds a slice, and how to gather them.

DeepSpeed marks such a parameter with `ds_id` and `ds_shape`; its own tensor is empty until it is gathered.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from finetune.config.train import TrainConfig

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed as deepspeed  # engine.py takes it from here, where the line above has come first


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """Return DeepSpeed's own config of a run: of its engine, and of partitions made before there is an
    engine."""
    return {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "zero_optimization": config.zero,
        "bf16": {"enabled": config.precision == "bf16"},
        "gradient_clipping": config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        # offload works with torch's AdamW too, and DeepSpeed's would be compiled first
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def has_async_io() -> bool:
    """Whether DeepSpeed's reads and writes of NVMe can be built here."""
    return bool(deepspeed.ops.op_builder.AsyncIOBuilder().is_compatible())


def compile_ahead(zero: Mapping[str, Any]) -> None:
    """Compile what DeepSpeed would compile where nobody waits for it: it gives SuperOffload's worker up after
    a minute (0.19)."""
    if (zero.get("offload_optimizer") or {}).get("super_offload"):
        deepspeed.ops.op_builder.CPUAdamBuilder().load(verbose=False)


def is_partitioned(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "ds_id")


def shape(parameter: torch.Tensor) -> torch.Size:
    """The whole parameter's, partitioned or not."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


@contextmanager
def gathered(parameters: Iterable[torch.nn.Parameter], modify: bool = False) -> Iterator[None]:
    """Partitioned parameters are whole inside; others are left as they are. Every rank must enter.

    Args:
        modify: what rank 0 makes of them is what all ranks keep.
    """
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    with deepspeed.zero.GatheredParameters(
        partitioned, modifier_rank=0 if modify else None, enabled=bool(partitioned)
    ):
        yield


def gather_to_rank0(
    named: Iterable[tuple[str, torch.Tensor]], is_main: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield copies on rank 0's CPU, gathered one at a time; elsewhere their shapes (meta tensors).

    Every rank must go through all of them.
    """
    for name, tensor in named:
        with gathered([tensor] if isinstance(tensor, torch.nn.Parameter) else []):
            copy = tensor.detach().to("cpu" if is_main else "meta", copy=True)
        yield name, copy


def read_weights(folder: Path, stage: int) -> dict[str, torch.Tensor]:
    """Read the trained weights and saved buffers out of DeepSpeed's checkpoint files, by parameter name.

    The files are pickles: call it only after their manifest has verified.
    """
    if stage < 3:  # every rank holds the model whole, in its own precision
        file = folder / "mp_rank_00_model_states.pt"
        module: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=False, mmap=True)[
            "module"
        ]
        return module
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(sys.stderr):  # it prints its progress
        whole = get_fp32_state_dict_from_zero_checkpoint(
            str(folder.parent), folder.name, exclude_frozen_parameters=True
        )
    return dict(whole)


class Partitioner:
    """Makes partitioned parameters of whole tensors, with a run's DeepSpeed settings.

    Args:
        settings: DeepSpeed's config of the run (deepspeed_config).
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)

    @contextmanager
    def partition(self) -> Iterator[Callable[[torch.Tensor], torch.nn.Parameter]]:
        """Inside, call the result with rank 0's whole tensor, and on other ranks with any of its shape and
        dtype."""
        # tensor_overrides: by default tensors made in the context change their dtype, torch.arange's
        # positions too
        with deepspeed.zero.Init(config_dict_or_path=self._settings, tensor_overrides=frozenset()):
            yield lambda tensor: _Holder(tensor).parameter

    @contextmanager
    def visible_to_peft(self) -> Iterator[None]:
        """Let PEFT gather what it reads of the base (DoRA's norms, PiSSA's factors).

        PEFT does so only if transformers reports that ZeRO-3 is on.
        """
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        alive = HfDeepSpeedConfig(
            self._settings
        )  # transformers keeps a weak reference: it is on as long as this lives
        yield
        del alive


class _Holder(torch.nn.Module):
    """zero.Init partitions what a module registers in its __init__, with rank 0's values."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.parameter = torch.nn.Parameter(tensor)


def move_unpartitioned_to_device(model: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Bring what was not partitioned (an adapter, buffers) to the device and the adapter to `dtype`:
    DeepSpeed leaves both to the caller where it meets a model that is partitioned already."""
    for parameter in model.parameters():
        if not is_partitioned(parameter):
            parameter.data = parameter.data.to(
                device, dtype if parameter.is_floating_point() else parameter.dtype
            )
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def show_dora_its_weights(model: torch.nn.Module) -> None:
    """PEFT's DoRA reads the weights of three modules beside it. ZeRO-3 gathers a module's own only, unless it
    is told of more."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_magnitude_vector")]
    for layer in layers:
        for name, dora in layer.lora_magnitude_vector.items():
            for neighbour in (layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name]):
                for parameter in neighbour.parameters():
                    deepspeed.zero.register_external_parameter(dora, parameter)
