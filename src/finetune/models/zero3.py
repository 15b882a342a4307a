"""Partitioned parameters of ZeRO-3: making, gathering and reading them.

Each rank holds a slice of a partitioned parameter. The parameter has the attributes `ds_id` and
`ds_shape`, and its own tensor is empty until it is gathered.
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

# engine.py imports deepspeed from this module, so that DS_ACCELERATOR is set first
import deepspeed as deepspeed


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """Translate a run's config into DeepSpeed's config, for the engine and for `Partitioner`."""
    return {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "zero_optimization": config.zero,
        "bf16": {"enabled": config.precision == "bf16"},
        "gradient_clipping": config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        # offload also works with torch's AdamW; DeepSpeed's own would have to be compiled first
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def has_async_io() -> bool:
    """Return whether DeepSpeed can build its asynchronous I/O; offload to NVMe needs it."""
    return bool(deepspeed.ops.op_builder.AsyncIOBuilder().is_compatible())


def precompile_super_offload(zero: Mapping[str, Any]) -> None:
    """Compile the CPU Adam of SuperOffload, if the settings use it.

    Without this, SuperOffload's worker would compile it. DeepSpeed 0.19 waits only a minute for
    that worker, and compiling may take longer.
    """
    if (zero.get("offload_optimizer") or {}).get("super_offload"):
        deepspeed.ops.op_builder.CPUAdamBuilder().load(verbose=False)


def is_partitioned(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "ds_id")


def full_shape(parameter: torch.Tensor) -> torch.Size:
    """Return the shape of the complete parameter, partitioned or not."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


@contextmanager
def gathered(parameters: Iterable[torch.nn.Parameter], modify: bool = False) -> Iterator[None]:
    """Gather partitioned parameters while the context is open; every rank must enter it.

    Args:
        parameters: parameters to gather; those that are not partitioned stay as they are.
        modify: True to broadcast rank 0's changes to all ranks at the end.
    """
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    modifier_rank = 0 if modify else None
    with deepspeed.zero.GatheredParameters(
        partitioned, modifier_rank=modifier_rank, enabled=bool(partitioned)
    ):
        yield


def gather_to_rank0(
    named: Iterable[tuple[str, torch.Tensor]], is_main: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Gather tensors one at a time; yield each one's name and a complete copy on rank 0's CPU.

    The other ranks yield meta tensors. Every rank must iterate to the end.
    """
    device = "cpu" if is_main else "meta"
    for name, tensor in named:
        parameters = [tensor] if isinstance(tensor, torch.nn.Parameter) else []
        with gathered(parameters):
            copy = tensor.detach().to(device, copy=True)
        yield name, copy


def read_weights(folder: Path, stage: int) -> dict[str, torch.Tensor]:
    """Read the trained weights and the saved buffers, by name, from DeepSpeed's checkpoint files.

    Verify the checksums of the files before you call this function: they are pickles, which can
    run code when they are read.

    Args:
        folder: a checkpoint's engine/ folder.
        stage: the run's ZeRO stage.
    """
    if stage < 3:
        # rank 0's file holds the complete model, in the run's precision
        file = folder / "mp_rank_00_model_states.pt"
        states = torch.load(file, map_location="cpu", weights_only=False, mmap=True)
        return dict(states["module"])
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints its progress
        weights = get_fp32_state_dict_from_zero_checkpoint(
            str(folder.parent), folder.name, exclude_frozen_parameters=True
        )
    return dict(weights)


class Partitioner:
    """Maker of partitioned parameters, of which each rank holds only a slice (ZeRO-3).

    Args:
        settings: DeepSpeed's config of the run, from deepspeed_config.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)

    @contextmanager
    def partition(self) -> Iterator[Callable[[torch.Tensor], torch.nn.Parameter]]:
        """Yield a function that makes a partitioned parameter from a tensor.

        Rank 0 calls the function with the complete tensor; the other ranks with any tensor of the
        same shape and dtype.
        """
        # By default, zero.Init changes the dtype of all tensors created in the context, even those
        # of torch.arange; an empty tensor_overrides turns that off.
        with deepspeed.zero.Init(config_dict_or_path=self._settings, tensor_overrides=frozenset()):
            yield lambda tensor: _ParameterModule(tensor).parameter

    @contextmanager
    def let_peft_gather(self) -> Iterator[None]:
        """Let PEFT gather the weights of the base that it reads, e.g. for DoRA's norms.

        PEFT gathers them only if transformers reports that ZeRO-3 is on.
        """
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        # transformers keeps a weak reference to this object, and reports ZeRO-3 as on while the
        # object exists
        config = HfDeepSpeedConfig(self._settings)
        yield
        del config


class _ParameterModule(torch.nn.Module):
    """Module around one parameter, because zero.Init partitions only parameters of modules."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.parameter = torch.nn.Parameter(tensor)


def move_unpartitioned_to_device(model: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Move all buffers, and the parameters that are not partitioned (an adapter's), to the device.

    These parameters are also converted to `dtype` if they are floating-point. DeepSpeed does
    neither if the model is already partitioned when the engine is created.
    """
    for parameter in model.parameters():
        if not is_partitioned(parameter):
            new_dtype = dtype if parameter.is_floating_point() else parameter.dtype
            parameter.data = parameter.data.to(device, new_dtype)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def register_dora_weights(model: torch.nn.Module) -> None:
    """Register the weights that PEFT's DoRA modules read from other modules.

    ZeRO-3 gathers only a module's own weights and those that are registered for it. DoRA reads the
    weights of the base layer and of LoRA's A and B.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_magnitude_vector")]
    for layer in layers:
        for name, dora in layer.lora_magnitude_vector.items():
            for module in (layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name]):
                for parameter in module.parameters():
                    deepspeed.zero.register_external_parameter(dora, parameter)
