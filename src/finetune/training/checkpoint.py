"""Checkpoints of a run: written aside, listed with checksums, published by one rename. A resume uses the
newest that verifies.

    checkpoints/step-00000050/
      engine/            DeepSpeed's files: weights (or adapter), optimizer, of every rank
      rng-00000.pt …     torch's generator state of each rank (dropout)
      state.json         step, what the loop saw so far (losses, totals), held-out loss if known, world size,
      ZeRO stage,
                         digests of corpus and base
      manifest.json      every file above with size and sha256
      held_out.json      held-out loss, if it was measured only after the checkpoint was published

The learning rate and the position in the data are functions of the step and the batches skipped (schedule.py,
run.py). DeepSpeed's files are pickles; they are read only after the manifest has verified them.
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
    """What the loop needs besides the engine's state to go on as if it had never stopped; empty in older
    checkpoints.

    Attributes:
        tokens, targets, seconds, rank_seconds: totals, see run.Progress.
        num_steps: steps that the run was to take; 0: unknown.
        losses: of the last steps, for spikes.
        clock: seconds by phase.
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
    """state.json of a checkpoint.

    Attributes:
        step: optimizer steps done.
        world_size: ranks that saved it; 0: there is no checkpoint.
        identity: what must be the same to resume.
    """

    step: int
    seen: LoopState
    held_out_loss: float | None = None
    world_size: int = 0
    identity: Identity = field(default_factory=dict)

    @classmethod
    def read(cls, checkpoint: Path) -> CheckpointState:
        """Read state.json, in which the keys of `identity` stand beside the others."""
        body = json.loads((checkpoint / layout.STATE).read_text(encoding="utf-8"))
        seen = LoopState(**body.pop("seen", {}))
        known = {name: body.pop(name) for name in ("step", "held_out_loss", "world_size") if name in body}
        return cls(**known, seen=seen, identity=body)

    def write(self, checkpoint: Path) -> None:
        """Write state.json."""
        body = asdict(self)
        identity = body.pop("identity")
        (checkpoint / layout.STATE).write_text(json.dumps({**body, **identity}), encoding="utf-8")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        keep: newest checkpoints kept; the one with the best held-out loss is kept besides.
        identity: what must be the same to resume, by name: zero_stage, corpus, an adapter's base. The world
            size may change.
    """

    def __init__(self, folder: Path, keep: int, identity: Identity, world: World) -> None:
        self.folder, self.keep, self.identity, self.world = folder, keep, identity, world

    def save(
        self, engine: Engine, step: int, seen: LoopState | None = None, held_out_loss: float | None = None
    ) -> float:
        """Save after `step` optimizer steps; all ranks call it. Return the seconds that training stood still.

        Args:
            seen: what else the loop needs to go on, from rank 0.
            held_out_loss: of the weights saved, if they were evaluated; decides which checkpoint is the best.
        """
        began = time.monotonic()
        temporary = layout.temporary_folder(checkpoint_files.folder_of(self.folder, step))
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
                seen=seen or LoopState(),
                held_out_loss=held_out_loss,
                world_size=self.world.size,
                identity=self.identity,
            )
            state.write(temporary)
            self.publish(temporary, checkpoint_files.folder_of(self.folder, step))
            for (
                old
            ) in self._superfluous():  # a kill amid a removal must not leave half a checkpoint under its name
                old.rename(old.with_name(f".old-{old.name}-{time.time_ns()}"))
            self._sweep()
        self.world.barrier()
        return time.monotonic() - began

    def load_newest(self, engine: Engine) -> CheckpointState:
        """Restore the newest checkpoint that verifies; return its state, whose `step` is 0 without one. All
        ranks call it.

        Raises:
            UserError: the checkpoint is of another ZeRO stage, corpus or base.
        """
        if self.world.is_main:
            self._sweep()
        found = self.world.broadcast_object(
            self.newest() if self.world.is_main else None
        )  # if rank 0 raises, its peers lose it and end
        if found is None:
            return CheckpointState(step=0, seen=LoopState())
        state = self._load(found, engine)
        logger.info("resumed from %s, saved by %d ranks", found.name, state.world_size)
        return state

    def load_best(self, engine: Engine, current: int) -> int | None:
        """Restore the weights with the best held-out loss, unless those of step `current`, which are in the
        engine, are.

        Training cannot go on from here, but the newest checkpoint stays as it is, for a later resume. All
        ranks call it.

        Returns:
            the step whose weights the engine holds now; None if no checkpoint was evaluated.
        """
        found = self.world.broadcast_object(self._best_whole(current) if self.world.is_main else None)
        if found is not None and layout.step_of(found) != current:
            self._load(found, engine)
            logger.info("the result is %s, which has the best held-out loss", found.name)
        return None if found is None else layout.step_of(found)

    def is_best(self, loss: float) -> bool:
        """Whether a held-out loss is below those of all checkpoints; the same answer on all ranks."""
        known = checkpoint_files.rank_by_loss(self.folder) if self.world.is_main else []
        return bool(self.world.broadcast_object(not known or loss < known[0][0]))

    def loss_of(self, step: int) -> float:
        """Return the held-out loss of a checkpoint that was evaluated; the same answer on all ranks."""
        folder = checkpoint_files.folder_of(self.folder, step)
        return float(
            self.world.broadcast_object(
                checkpoint_files.read_held_out_loss(folder) if self.world.is_main else None
            )
        )

    def best_loss(self) -> StepLoss | None:
        """Return the step and held-out loss of the best checkpoint; None if none was evaluated."""
        found = checkpoint_files.rank_by_loss(self.folder)
        if not found:
            return None
        loss, folder = found[0]
        return StepLoss(step=layout.step_of(folder), loss=loss)

    def _best_whole(self, current: int) -> Path | None:
        """The best checkpoint whose files verify; those of step `current` are in memory and need not be
        read."""
        for _, folder in checkpoint_files.rank_by_loss(self.folder):
            fault = None if layout.step_of(folder) == current else checkpoint_files.find_fault(folder)
            if fault is None:
                return folder
            logger.warning("the best checkpoint, %s, is passed over: %s", folder.name, fault)
        return None

    def _load(self, folder: Path, engine: Engine) -> CheckpointState:
        state = CheckpointState.read(folder)
        for key, value in self.identity.items():
            if (saved := state.identity.get(key, value)) != value:  # older ones say nothing of their base
                raise UserError(
                    f"checkpoint {folder.name} was made with {key}={saved}, this run has {value}: "
                    f"resume with the same, or start a new run with model=run:<run id>"
                )
        same_ranks = state.world_size == self.world.size
        engine.load(folder / "engine", same_ranks)
        if same_ranks:
            _set_rng_state(torch.load(folder / f"rng-{self.world.rank:05d}.pt", weights_only=True))
        else:  # dropout draws anew, each rank its own
            torch.manual_seed(zlib.crc32(f"{state.step}/{self.world.rank}".encode()))
        return state

    def holds(self, step: int) -> bool:
        """Whether there is a checkpoint of this step."""
        return checkpoint_files.folder_of(self.folder, step).is_dir()

    def evaluated(self, step: int) -> bool:
        """Whether the weights of this checkpoint were evaluated; the same answer on all ranks."""
        known = (
            self.world.is_main
            and checkpoint_files.read_held_out_loss(checkpoint_files.folder_of(self.folder, step)) is not None
        )
        return bool(self.world.broadcast_object(known))

    def note_held_out_loss(self, step: int, loss: float) -> None:
        """Add the loss of weights that were evaluated after their checkpoint was published."""
        if self.world.is_main:
            checkpoint_files.record_held_out_loss(checkpoint_files.folder_of(self.folder, step), loss)

    def newest(self) -> Path | None:
        """The newest checkpoint that verifies; broken ones are named, set aside and passed over.

        Raises:
            UserError: there are checkpoints, and none of them verifies.
        """
        broken: list[Path] = []
        for folder in layout.list_checkpoints(self.folder):
            fault = checkpoint_files.find_fault(folder)
            if fault is None:
                for passed_over in broken:  # under its name it would count among those kept
                    passed_over.rename(passed_over.with_name(f"broken-{passed_over.name}-{time.time_ns()}"))
                return folder
            logger.warning("passing over checkpoint %s: %s", folder.name, fault)
            broken.append(folder)
        if broken:
            raise UserError(
                f"every checkpoint in {self.folder} is broken: start a new run, or delete them to train from the first step"
            )
        return None

    def publish(self, temporary: Path, folder: Path) -> None:
        """Make a finished folder visible: list it, force it to disk, rename it."""
        written = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {
            str(p.relative_to(temporary)): {"bytes": p.stat().st_size, "sha256": sha256_file(p)}
            for p in written
        }
        (temporary / layout.MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*written, temporary / layout.MANIFEST, temporary / "engine", temporary):
            _fsync(path)
        os.replace(temporary, folder)
        _fsync(self.folder)

    def _superfluous(self) -> list[Path]:
        """Neither among the newest nor the best; or without its state, as a site's purge of old files leaves
        it."""
        published = layout.list_checkpoints(self.folder)
        readable = [path for path in published if checkpoint_files.read_state(path)]
        kept = (*readable[: self.keep], checkpoint_files.find_best(self.folder))
        return [path for path in published if path not in kept]

    def _sweep(self) -> None:
        """Remove what was put aside to be removed; what cannot be is tried again the next time."""
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
