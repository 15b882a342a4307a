"""DeepSpeed's engine behind one small class: backward, clipping, gradient norm, update. ZeRO 0 to 3 look the
same from outside."""

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
from finetune.models.zero3 import compile_ahead, deepspeed, deepspeed_config, shape, show_dora_its_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """An optimizer step: the gradient norm before clipping, and whether DeepSpeed skipped it because of
    gradients that are NaN or Inf (then the norm is infinite)."""

    grad_norm: float
    skipped: bool


def init_distributed(world: World, init_method: str, timeout: timedelta = timedelta(minutes=35)) -> None:
    """Join the process group.

    Args:
        init_method: a URL of torch.distributed (file:// or tcp://).
        timeout: after which a collective fails. It must be longer than the watchdog waits, which writes every
            rank's stack.
    """
    if (
        world.device.type == "cuda"
    ):  # collectives of objects send from the current GPU, which is else the first for every rank
        torch.cuda.set_device(world.device)
    # On CPUs DeepSpeed would compile a shared-memory all-reduce (2 minutes) that only its inference engine
    # uses.
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
    """Forward, backward, step and state of one model over all ranks.

    Raises:
        UserError: DeepSpeed refuses the `zero` settings.
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
            fused=True,  # all parameters in one pass over memory
        )
        if self._stage == 3:
            show_dora_its_weights(model)
        compile_ahead(config.zero)
        try:
            self._engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                config=deepspeed_config(config),
                dist_init_required=False,
            )
        except (ValueError, AssertionError) as fault:  # pydantic's errors are ValueErrors
            raise UserError(f"zero: DeepSpeed refuses these settings: {_one_line(fault)}") from fault
        self.packed = PackedModel(model, self._engine)

    def set_train_mode(self) -> None:
        """Put the model into training mode."""
        self._engine.train()

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of the next step: before its backward pass, in which SuperOffload updates."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr

    def set_eval_mode(self) -> None:
        """Put the model into evaluation mode."""
        self._engine.eval()

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate gradients. The loss is normalised over the whole step already: DeepSpeed must not divide
        again."""
        self._engine.backward(loss, scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch; nothing moves before the boundary

    def step(self) -> Update:
        """Clip, update the weights, clear the gradients."""
        assert self._engine.is_gradient_accumulation_boundary()
        norm, skipped = self._unpartitioned_grad_norm(), self._engine.skipped_steps
        self._engine.step()
        if self._engine.skipped_steps > skipped:  # DeepSpeed keeps the norm of the step before
            return Update(math.inf, skipped=True)
        return Update(float(self._engine.get_global_grad_norm()) if norm is None else norm, skipped=False)

    def state_on_main(self) -> dict[str, torch.Tensor]:
        """Whole trainable parameters by name on rank 0's CPU (elsewhere their shapes): an adapter, say. A
        model that is trained whole goes through save.weights, tensor by tensor."""
        return dict(save.weights(self.model, trainable_only=True))

    def save(self, folder: Path) -> None:
        """Write DeepSpeed's own resume files, of all ranks, into `folder`, and what describes the model;
        frozen weights are left out."""
        self._engine.save_checkpoint(
            str(folder.parent),
            tag=folder.name,
            save_latest=False,
            exclude_frozen_parameters=save.is_adapter(self.model),
        )
        if self.world.is_main:
            save.describe(self.model, folder / save.DESCRIPTION)

    def load(self, folder: Path, same_ranks: bool) -> None:
        """The counterpart of `save`, at the same ZeRO stage.

        Args:
            same_ranks: as many ranks saved it. Otherwise the partitions are joined on disk first, into
                DeepSpeed's universal checkpoint, from which each rank takes its share; at stage 0 every rank
                holds everything anyway.
        """
        universal = not same_ranks and self._stage > 0
        if universal:
            whole = folder.with_name("universal")
            if self.world.is_main:
                _join_partitions(folder, whole)
            self.world.barrier()
            folder = whole
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
        """Free what DeepSpeed hooked into the model."""
        self._engine.destroy()

    def _unpartitioned_grad_norm(self) -> float | None:
        """At stage 0 in fp32 DeepSpeed clips without telling the norm; None where it does tell."""
        if self._stage != 0 or self._engine.bfloat16_enabled():
            return None
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))


def _join_partitions(folder: Path, whole: Path) -> None:
    """In a process of its own: the converter starts workers, which must not inherit this rank's threads and
    sockets."""
    shutil.rmtree(whole, ignore_errors=True)
    converter = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    arguments = ["--input_folder", str(folder), "--output_folder", str(whole), "--num_extract_workers", "2"]
    done = subprocess.run([*converter, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"DeepSpeed could not convert {folder} for another number of ranks:\n{done.stderr[-3000:]}"
        )
    (whole.parent / "latest_universal").unlink(missing_ok=True)


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed; biases and norms, some of which have two dimensions, are not."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def is_decayed(name: str) -> bool:
        module, _, own = name.rpartition(".")
        return (
            len(shape(trainable[name])) >= 2
            and not own.endswith("bias")
            and "norm" not in module.rpartition(".")[2]
        )

    groups = [
        {"params": [p for name, p in trainable.items() if is_decayed(name)], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable.items() if not is_decayed(name)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _one_line(fault: Exception) -> str:
    return "; ".join(line.strip() for line in str(fault).splitlines() if line.strip() and "http" not in line)
