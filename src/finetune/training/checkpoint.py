"""Checkpoints of a run. One rename publishes each; its checksums are verified before it is loaded.

    checkpoints/step-00000050/
      engine/            DeepSpeed's files: weights (or adapter) and optimizer state of every rank
      rng-00000.pt …     torch's random state of each rank (dropout)
      state.json         step, the loop's state (losses, totals), held-out loss if measured, number of
                         ranks, ZeRO stage, digests of corpus and base
      manifest.json      size and SHA-256 of every file above
      held_out.json      held-out loss, if it was measured after the checkpoint was published

The learning rate and the position in the data are not saved: both are functions of the step and the
skipped batches (schedule.py, run.py). DeepSpeed's files are pickles, so they are read only after
their checksums have been verified.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from data_prep.shards import sha256_file
from data_prep.user_error import UserError
from finetune.distributed import World
from finetune.runs import checkpoint_files, layout
from finetune.runs.summary import StepLoss
from finetune.training.engine import Engine

logger = logging.getLogger(__name__)


Identity = Mapping[str, str | int | None]


@dataclass(kw_only=True)
class LoopState:
    """The state of the training loop. A checkpoint stores it beside the state of the engine.

    Checkpoints of old versions lack it. All values are 0 or empty for these.

    Attributes:
        tokens, targets, seconds, rank_seconds: totals so far; see run.Progress.
        num_steps: total number of steps planned; 0 if unknown.
        losses: losses of the last good steps, from which guards.StepCheck detects spikes of the
            loss.
        clock: seconds spent so far in each phase of training (see throughput.Clock).
    """

    tokens: int = 0
    targets: int = 0
    seconds: float = 0.0
    rank_seconds: float = 0.0
    num_steps: int = 0
    losses: list[float] = field(default_factory=list)
    clock: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class CheckpointState:
    """The content of a checkpoint's state.json.

    Attributes:
        step: number of optimizer steps done.
        held_out_loss: held-out loss of the weights; None if it was not measured before saving.
        world_size: number of ranks that saved the checkpoint; 0 if there is no checkpoint.
        identity: properties that must not change when the run resumes, by name.
    """

    step: int
    loop_state: LoopState
    held_out_loss: float | None = None
    world_size: int = 0
    identity: Identity = field(default_factory=dict)

    @classmethod
    def read(cls, checkpoint: Path) -> CheckpointState:
        """Read state.json, which has the entries of `identity` at its top level."""
        body = json.loads((checkpoint / layout.STATE).read_text(encoding="utf-8"))
        loop_state = LoopState(**body.pop("seen", {}))
        known = {name: body.pop(name) for name in ("step", "held_out_loss", "world_size") if name in body}
        return cls(**known, loop_state=loop_state, identity=body)

    def write(self, checkpoint: Path) -> None:
        """Write state.json."""
        body = {
            "step": self.step,
            "seen": asdict(self.loop_state),
            "held_out_loss": self.held_out_loss,
            "world_size": self.world_size,
            **self.identity,
        }
        (checkpoint / layout.STATE).write_text(json.dumps(body), encoding="utf-8")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the folder of all checkpoints.
        keep: number of newest checkpoints to keep. The one with the best held-out loss is kept too.
        identity: properties that must not change when the run resumes, by name: the ZeRO stage, the
            digest of the corpus and, for an adapter, that of its base. The number of ranks may
            change.
    """

    def __init__(self, folder: Path, keep: int, identity: Identity, world: World) -> None:
        self.folder = folder
        self.keep = keep
        self.identity = identity
        self.world = world

    def save(
        self,
        engine: Engine,
        step: int,
        loop_state: LoopState | None = None,
        held_out_loss: float | None = None,
    ) -> float:
        """Save a checkpoint after `step` optimizer steps; all ranks call it.

        Args:
            loop_state: state of the training loop; only rank 0's is saved.
            held_out_loss: held-out loss of the weights; None if they were not evaluated. It decides
                which checkpoint is the best.

        Returns:
            The duration in seconds.
        """
        began = time.monotonic()
        final = checkpoint_files.folder_of(self.folder, step)
        temporary = layout.temporary_folder(final)
        if self.world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.world.barrier()
        engine.save(temporary / "engine")
        torch.save(_rng_state(), temporary / f"rng-{self.world.rank:05d}.pt")
        self.world.barrier()
        if self.world.is_main:
            state = CheckpointState(
                step=step,
                loop_state=loop_state or LoopState(),
                held_out_loss=held_out_loss,
                world_size=self.world.size,
                identity=self.identity,
            )
            state.write(temporary)
            self.publish(temporary, final)
            for old in self._list_outdated():
                # Renamed before it is removed, so that a kill in between leaves no partial
                # checkpoint under a valid name.
                old.rename(old.with_name(f".old-{old.name}-{time.time_ns()}"))
            self._remove_outdated()
        self.world.barrier()
        return time.monotonic() - began

    def load_newest(self, engine: Engine) -> CheckpointState:
        """Load the newest intact checkpoint into the engine; all ranks call it.

        Returns:
            The checkpoint's state; `step` is 0 if there is no checkpoint.

        Raises:
            UserError: the checkpoint was saved with another ZeRO stage, corpus or base, or all
                checkpoints are damaged.
        """
        newest: Path | None = None
        if self.world.is_main:
            self._remove_outdated()
            newest = self.find_newest()  # if this raises, the other ranks fail in the broadcast
        newest = self.world.broadcast_object(newest)
        if newest is None:
            return CheckpointState(step=0, loop_state=LoopState())
        state = self._load(newest, engine)
        logger.info("resumed from %s, saved by %d ranks", newest.name, state.world_size)
        return state

    def load_best(self, engine: Engine, current: int) -> int | None:
        """Load the weights with the best held-out loss into the engine; all ranks call it.

        Training cannot continue in this process afterwards. The newest checkpoint is kept, so that
        the run can still be resumed.

        Args:
            current: step of the weights in the engine. If they are the best, nothing is loaded.

        Returns:
            The step of the best weights; None if no intact checkpoint was evaluated.
        """
        best = self._find_best(current) if self.world.is_main else None
        best = self.world.broadcast_object(best)
        if best is None:
            return None
        step = layout.step_of(best)
        if step != current:
            self._load(best, engine)
            logger.info("the result is %s, which has the best held-out loss", best.name)
        return step

    def is_best(self, loss: float) -> bool:
        """Return whether a held-out loss is below those of all checkpoints; all ranks call it."""
        by_loss = checkpoint_files.rank_by_loss(self.folder) if self.world.is_main else []
        return bool(self.world.broadcast_object(not by_loss or loss < by_loss[0][0]))

    def held_out_loss(self, step: int) -> float:
        """Return the held-out loss of an evaluated checkpoint; all ranks call it."""
        folder = checkpoint_files.folder_of(self.folder, step)
        loss = checkpoint_files.read_held_out_loss(folder) if self.world.is_main else None
        return float(self.world.broadcast_object(loss))

    def find_best_loss(self) -> StepLoss | None:
        """Return the step and held-out loss of the best checkpoint; None if none was evaluated."""
        by_loss = checkpoint_files.rank_by_loss(self.folder)
        if not by_loss:
            return None
        loss, folder = by_loss[0]
        return StepLoss(step=layout.step_of(folder), loss=loss)

    def _find_best(self, current: int) -> Path | None:
        """Return the intact checkpoint with the best held-out loss; None if there is none.

        The checkpoint of step `current` is not verified, because the engine already has its
        weights.
        """
        for _, folder in checkpoint_files.rank_by_loss(self.folder):
            if layout.step_of(folder) == current:
                return folder
            fault = checkpoint_files.find_fault(folder)
            if fault is None:
                return folder
            logger.warning("skipping checkpoint %s, which has the best loss: %s", folder.name, fault)
        return None

    def _load(self, folder: Path, engine: Engine) -> CheckpointState:
        state = CheckpointState.read(folder)
        for key, value in self.identity.items():
            saved = state.identity.get(key, value)  # checkpoints of old versions lack some keys
            if saved != value:
                raise UserError(
                    f"checkpoint {folder.name}: was saved with {key}={saved}, but the run now has "
                    f"{key}={value}; resume with the original {key}, or start a new run with "
                    "model=run:<run id>"
                )
        same_ranks = state.world_size == self.world.size
        engine.load(folder / "engine", same_ranks)
        if same_ranks:
            _set_rng_state(torch.load(folder / f"rng-{self.world.rank:05d}.pt", weights_only=True))
        else:
            # The saved random states are those of other ranks, so each rank gets a new one for its
            # dropout.
            torch.manual_seed(zlib.crc32(f"{state.step}/{self.world.rank}".encode()))
        return state

    def has_step(self, step: int) -> bool:
        """Return whether there is a checkpoint of this step."""
        return checkpoint_files.folder_of(self.folder, step).is_dir()

    def is_evaluated(self, step: int) -> bool:
        """Return whether the weights of a checkpoint were evaluated; all ranks call it."""
        folder = checkpoint_files.folder_of(self.folder, step)
        evaluated = self.world.is_main and checkpoint_files.read_held_out_loss(folder) is not None
        return bool(self.world.broadcast_object(evaluated))

    def note_held_out_loss(self, step: int, loss: float) -> None:
        """Add a held-out loss to a checkpoint that was published before the evaluation."""
        if self.world.is_main:
            checkpoint_files.record_held_out_loss(checkpoint_files.folder_of(self.folder, step), loss)

    def find_newest(self) -> Path | None:
        """Return the newest intact checkpoint; None if there are no checkpoints.

        Damaged checkpoints that are newer are logged and renamed.

        Raises:
            UserError: all checkpoints are damaged.
        """
        damaged: list[Path] = []
        for folder in layout.list_checkpoints(self.folder):
            fault = checkpoint_files.find_fault(folder)
            if fault is None:
                for path in damaged:
                    # under its old name it would be kept as one of the newest checkpoints
                    path.rename(path.with_name(f"broken-{path.name}-{time.time_ns()}"))
                return folder
            logger.warning("skipping checkpoint %s: %s", folder.name, fault)
            damaged.append(folder)
        if damaged:
            raise UserError(
                f"{self.folder}: every checkpoint is damaged; start a new run, or delete the "
                "checkpoints in this folder and resume, which trains again from the first step"
            )
        return None

    def publish(self, temporary: Path, final: Path) -> None:
        """Write the manifest into `temporary`, sync all files to disk, and rename it to `final`."""
        written = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {
            str(path.relative_to(temporary)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in written
        }
        (temporary / layout.MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*written, temporary / layout.MANIFEST, temporary / "engine", temporary):
            _fsync(path)
        os.replace(temporary, final)
        _fsync(self.folder)

    def _list_outdated(self) -> list[Path]:
        """List the checkpoints to remove: all but the `keep` newest and the best.

        A checkpoint whose state.json cannot be read is removed too. Clusters that delete old files
        may leave such checkpoints.
        """
        published = layout.list_checkpoints(self.folder)
        readable = [path for path in published if checkpoint_files.read_state(path)]
        kept = (*readable[: self.keep], checkpoint_files.find_best(self.folder))
        return [path for path in published if path not in kept]

    def _remove_outdated(self) -> None:
        """Remove the checkpoints that were renamed for removal; the next call retries failures."""
        for old in self.folder.glob(".old-*"):
            shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rng_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_rng_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
