"""A wrapper of DeepSpeed's engine, with the same interface for ZeRO stages 0 to 3."""

from __future__ import annotations

import logging
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from data_prep.user_error import UserError
from finetune.config.train import TrainConfig
from finetune.distributed import World
from finetune.models import save
from finetune.models.packed import PackedModel
from finetune.models.zero3 import (
    deepspeed,
    deepspeed_config,
    full_shape,
    precompile_super_offload,
    register_dora_weights,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """The result of an optimizer update.

    Attributes:
        grad_norm: gradient norm before clipping; infinite if the update was skipped.
        skipped: True if DeepSpeed skipped the update because gradients contain NaN or Inf.
    """

    grad_norm: float
    skipped: bool


def init_distributed(world: World, init_method: str, timeout: timedelta = timedelta(minutes=35)) -> None:
    """Join the process group of all ranks.

    Args:
        init_method: URL at which the ranks find each other, as torch.distributed takes it (file://
            or tcp://).
        timeout: time after which a collective fails. It must be longer than hang_timeout_min, so
            that the watchdog dumps the stacks of every rank first.
    """
    if world.device.type == "cuda":
        # Collectives of objects use the current GPU, by default the first GPU on every rank.
        torch.cuda.set_device(world.device)
    # On CPUs, DeepSpeed would compile a shared-memory all-reduce for 2 minutes. Only its inference
    # engine uses that.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    deepspeed.init_distributed(
        dist_backend=backend,
        init_method=init_method,
        timeout=timeout,
        rank=world.rank,
        world_size=world.size,
        auto_mpi_discovery=False,
        verbose=False,
    )


class Engine:
    """DeepSpeed's engine of a run: the model and its optimizer, on all ranks.

    Attributes:
        model: the trained model, without DeepSpeed's wrapper.
        packed: the forward pass on packs.

    Raises:
        UserError: DeepSpeed rejects the `zero` settings.
    """

    def __init__(self, model: torch.nn.Module, config: TrainConfig, world: World) -> None:
        self.model = model
        self.world = world
        self._stage = config.zero["stage"]
        optimizer = torch.optim.AdamW(
            _parameter_groups(model, config.weight_decay),
            lr=config.lr,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
            fused=True,  # updates all parameters in one pass over memory
        )
        if self._stage == 3:
            register_dora_weights(model)
        precompile_super_offload(config.zero)
        try:
            self._engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                config=deepspeed_config(config),
                dist_init_required=False,
            )
        except (ValueError, AssertionError) as fault:  # pydantic's errors are ValueErrors
            raise UserError(f"zero: DeepSpeed rejects these settings: {_join_lines(fault)}") from fault
        self.packed = PackedModel(model, self._engine)

    def set_train_mode(self) -> None:
        """Put the model into training mode."""
        self._engine.train()

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of the next update.

        Call it before the backward pass, because SuperOffload already updates during that pass.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr

    def set_eval_mode(self) -> None:
        """Put the model into evaluation mode."""
        self._engine.eval()

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of a micro-batch.

        The loss is already normalised over the global step, so DeepSpeed must not divide it by the
        number of micro-batches; scale_wrt_gas=False prevents that.
        """
        self._engine.backward(loss, scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            # This only counts the micro-batch. DeepSpeed updates the weights after the last one.
            self._engine.step()

    def step(self) -> Update:
        """Clip the gradients, update the weights and clear the gradients."""
        assert self._engine.is_gradient_accumulation_boundary()
        norm = self._unpartitioned_grad_norm()
        skipped_before = self._engine.skipped_steps
        self._engine.step()
        if self._engine.skipped_steps > skipped_before:
            # after a skipped update, get_global_grad_norm() returns the norm of the previous update
            return Update(math.inf, skipped=True)
        if norm is None:
            norm = float(self._engine.get_global_grad_norm())
        return Update(norm, skipped=False)

    def gather_trainable(self) -> dict[str, torch.Tensor]:
        """Return the complete trainable parameters by name, on rank 0's CPU.

        Other ranks return meta tensors. Use it for adapters only: rank 0 holds all tensors in
        memory at once. For a whole model, save.gather_weights yields one at a time.
        """
        return dict(save.gather_weights(self.model, trainable_only=True))

    def save(self, folder: Path) -> None:
        """Write DeepSpeed's checkpoint files of all ranks and the model's description.

        If an adapter is trained, the base's frozen weights are left out.
        """
        self._engine.save_checkpoint(
            str(folder.parent),
            tag=folder.name,
            save_latest=False,
            exclude_frozen_parameters=save.is_adapter(self.model),
        )
        if self.world.is_main:
            save.write_description(self.model, folder / save.DESCRIPTION)

    def load(self, folder: Path, same_ranks: bool) -> None:
        """Load the files that `save` wrote at the same ZeRO stage.

        Args:
            same_ranks: True if the files were saved by the same number of ranks. If they were not,
                and the stage is above 0, the files are first converted into DeepSpeed's universal
                checkpoint on disk. Each rank loads its share from that.

        Raises:
            RuntimeError: DeepSpeed cannot convert the files.
        """
        universal = not same_ranks and self._stage > 0
        if universal:
            joined = folder.with_name("universal")
            if self.world.is_main:
                _join_partitions(folder, joined)
            self.world.barrier()
            folder = joined
        self._engine._config.load_universal_checkpoint = universal
        loaded, _ = self._engine.load_checkpoint(
            str(folder.parent), tag=folder.name, load_module_strict=not save.is_adapter(self.model)
        )
        assert loaded is not None, folder
        self._engine._config.load_universal_checkpoint = False
        self.world.barrier()
        if universal and self.world.is_main:
            shutil.rmtree(folder)

    def close(self) -> None:
        """Remove DeepSpeed's hooks from the model and free its buffers."""
        self._engine.destroy()

    def _unpartitioned_grad_norm(self) -> float | None:
        """Return the gradient norm at ZeRO stage 0 in fp32, where DeepSpeed does not report it.

        Return None at other stages and in bf16, where DeepSpeed reports it.
        """
        if self._stage != 0 or self._engine.bfloat16_enabled():
            return None
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))


def _join_partitions(folder: Path, joined: Path) -> None:
    """Convert the checkpoint files of all ranks in `folder` into a universal checkpoint, `joined`.

    The converter runs in a separate process: it starts workers, which must not inherit this rank's
    threads and sockets.

    Raises:
        RuntimeError: the conversion failed.
    """
    shutil.rmtree(joined, ignore_errors=True)
    converter = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    arguments = ["--input_folder", str(folder), "--output_folder", str(joined), "--num_extract_workers", "2"]
    done = subprocess.run([*converter, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{folder}: DeepSpeed cannot convert this checkpoint to another number of ranks; resume "
            f"with the number that saved it:\n{done.stderr[-3000:]}"
        )
    (joined.parent / "latest_universal").unlink(missing_ok=True)


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: matrices with weight decay, biases and norms without it."""
    decayed: list[torch.nn.Parameter] = []
    not_decayed: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        module_path, _, own_name = name.rpartition(".")
        module_name = module_path.rpartition(".")[2]
        is_matrix = len(full_shape(parameter)) >= 2
        if is_matrix and not own_name.endswith("bias") and "norm" not in module_name:
            decayed.append(parameter)
        else:
            not_decayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _join_lines(fault: Exception) -> str:
    return "; ".join(line.strip() for line in str(fault).splitlines() if line.strip() and "http" not in line)
