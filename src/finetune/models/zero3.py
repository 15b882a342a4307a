"""ZeRO-3's partitioned parameters, of which each rank holds a slice, and how to gather them.

DeepSpeed marks such a parameter with `ds_id` and `ds_shape`; its own tensor is empty until it is
gathered.
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

# engine.py imports deepspeed from this module, so that the accelerator is set before
import deepspeed as deepspeed


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """Return DeepSpeed's config of a run, for its engine and for partitioning before that."""
    return {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "zero_optimization": config.zero,
        "bf16": {"enabled": config.precision == "bf16"},
        "gradient_clipping": config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        # offload works with torch's AdamW too; DeepSpeed's own would have to be compiled first
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def has_async_io() -> bool:
    """Return whether DeepSpeed can build its asynchronous I/O, which offload to NVMe needs."""
    return bool(deepspeed.ops.op_builder.AsyncIOBuilder().is_compatible())


def precompile_super_offload(zero: Mapping[str, Any]) -> None:
    """Compile the CPU Adam of SuperOffload, if the settings use it.

    SuperOffload's worker would compile it, and DeepSpeed 0.19 gives up on that worker after a
    minute.
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
        parameters: those that are not partitioned are left as they are.
        modify: broadcast rank 0's changes to all ranks at the end.
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
    """Yield copies of complete tensors, gathered one at a time: on rank 0's CPU, elsewhere on meta.

    Every rank must iterate over all of them.
    """
    device = "cpu" if is_main else "meta"
    for name, tensor in named:
        parameters = [tensor] if isinstance(tensor, torch.nn.Parameter) else []
        with gathered(parameters):
            copy = tensor.detach().to(device, copy=True)
        yield name, copy


def read_weights(folder: Path, stage: int) -> dict[str, torch.Tensor]:
    """Return the trained weights and saved buffers in DeepSpeed's checkpoint files, by parameter name.

    The files are pickles: call it only after their manifest has verified them.

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

    with contextlib.redirect_stdout(sys.stderr):  # it prints its progress
        weights = get_fp32_state_dict_from_zero_checkpoint(
            str(folder.parent), folder.name, exclude_frozen_parameters=True
        )
    return dict(weights)


class Partitioner:
    """A factory of partitioned parameters.

    Args:
        settings: DeepSpeed's config of the run (deepspeed_config).
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)

    @contextmanager
    def partition(self) -> Iterator[Callable[[torch.Tensor], torch.nn.Parameter]]:
        """Yield a function that makes a partitioned parameter of a tensor.

        Rank 0 calls it with the complete tensor, other ranks with any tensor of the same shape and
        dtype.
        """
        # tensor_overrides: by default all tensors created in the context change their dtype, also
        # torch.arange's
        with deepspeed.zero.Init(config_dict_or_path=self._settings, tensor_overrides=frozenset()):
            yield lambda tensor: _ParameterModule(tensor).parameter

    @contextmanager
    def let_peft_gather(self) -> Iterator[None]:
        """Let PEFT gather the base's weights that it reads (for DoRA's norms, PiSSA's factors).

        PEFT does so only if transformers reports that ZeRO-3 is on.
        """
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        # transformers holds a weak reference to it: ZeRO-3 is reported as on for as long as it
        # exists
        config = HfDeepSpeedConfig(self._settings)
        yield
        del config


class _ParameterModule(torch.nn.Module):
    """A module with one parameter; zero.Init partitions parameters when a module registers them."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.parameter = torch.nn.Parameter(tensor)


def move_unpartitioned_to_device(model: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Move the parameters that are not partitioned (an adapter's), and all buffers, to the device.

    The parameters also get `dtype`. DeepSpeed leaves that to the caller if the model is already
    partitioned when its engine is created.
    """
    for parameter in model.parameters():
        if not is_partitioned(parameter):
            new_dtype = dtype if parameter.is_floating_point() else parameter.dtype
            parameter.data = parameter.data.to(device, new_dtype)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def register_dora_weights(model: torch.nn.Module) -> None:
    """Register the weights that PEFT's DoRA modules read from three other modules.

    ZeRO-3 gathers only a module's own weights and those registered for it.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_magnitude_vector")]
    for layer in layers:
        for name, dora in layer.lora_magnitude_vector.items():
            for module in (layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name]):
                for parameter in module.parameters():
                    deepspeed.zero.register_external_parameter(dora, parameter)
