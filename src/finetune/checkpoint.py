"""Checkpoints: written beside, listed with checksums, published by one rename. On start the newest that verifies is used.

    checkpoints/step-00000050/
      engine/            DeepSpeed's files: weights (or adapter), optimizer, of every rank
      rng-00000.pt …     torch's generator state of each rank (dropout)
      state.json         step, what the loop saw so far (losses, totals), held-out loss if known, world size, ZeRO stage,
                         digests of corpus and base
      manifest.json      every file above with size and sha256

The learning rate and the position in the data are functions of the step and the batches skipped (schedule.py, train.py).
DeepSpeed's files are pickles; they are read only after the manifest has verified them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
import zlib
from pathlib import Path
from typing import Any

import torch

from data_prep.shards import sha256_file
from finetune.distributed import World
from finetune.engine import Engine

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        keep: newest checkpoints kept; the one with the best held-out loss is kept besides.
        identity: what must be the same to resume, by name: zero_stage, corpus, an adapter's base. The world size may change.
    """

    def __init__(self, folder: Path, keep: int, identity: dict[str, Any], world: World) -> None:
        self.folder, self.keep, self.identity, self.world = folder, keep, identity, world

    def save(self, engine: Engine, step: int, seen: dict[str, Any] | None = None, held_out_loss: float | None = None) -> float:
        """Save after `step` optimizer steps; all ranks call it. Seconds that training stood still.

        Args:
            seen: what else the loop needs to go on (see train.py), from rank 0.
            held_out_loss: of the weights saved, if they were evaluated; decides which checkpoint is the best.
        """
        began = time.monotonic()
        temporary = self.folder / f".step-{step:08d}.tmp"
        if self.world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.world.barrier()
        engine.save(temporary / "engine")
        torch.save(_rng_state(), temporary / f"rng-{self.world.rank:05d}.pt")
        self.world.barrier()
        if self.world.is_main:
            state = {"step": step, "seen": seen or {}, "held_out_loss": held_out_loss, "world_size": self.world.size}
            (temporary / "state.json").write_text(json.dumps({**state, **self.identity}), encoding="utf-8")
            self.publish(temporary, self._of(step))
            for old in self._superfluous():  # a kill amid a removal must not leave half a checkpoint under its name
                old.rename(old.with_name(f".old-{old.name}-{time.time_ns()}"))
            self._sweep()
        self.world.barrier()
        return time.monotonic() - began

    def load_newest(self, engine: Engine) -> dict[str, Any]:
        """Restore the newest checkpoint that verifies; its state, whose `step` is 0 without one. All ranks call it.

        Raises:
            ValueError: the checkpoint is of another ZeRO stage, corpus or base.
        """
        if self.world.is_main:
            self._sweep()
        found = self.world.from_main(self.newest() if self.world.is_main else None)  # if rank 0 raises, its peers lose it and end
        if found is None:
            return {"step": 0}
        state: dict[str, Any] = json.loads((found / "state.json").read_text(encoding="utf-8"))
        for key, value in self.identity.items():
            if (saved := state.get(key, value)) != value:  # older ones say nothing of their base
                raise ValueError(
                    f"checkpoint {found.name} was made with {key}={saved}, this run has {value}: "
                    f"resume with the same, or start a new run with model=run:<run id>"
                )
        same_ranks = state["world_size"] == self.world.size
        engine.load(found / "engine", same_ranks)
        if same_ranks:
            _set_rng_state(torch.load(found / f"rng-{self.world.rank:05d}.pt", weights_only=True))
        else:  # dropout draws anew, each rank its own
            torch.manual_seed(zlib.crc32(f"{state['step']}/{self.world.rank}".encode()))
        logger.info("resumed from %s, saved by %d ranks", found.name, state["world_size"])
        return state

    def holds(self, step: int) -> bool:
        """Whether there is a checkpoint of this step."""
        return self._of(step).is_dir()

    def evaluated(self, step: int) -> bool:
        """Whether the weights of this checkpoint were evaluated before they were saved."""
        return json.loads((self._of(step) / "state.json").read_text(encoding="utf-8"))["held_out_loss"] is not None

    def _of(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def newest(self) -> Path | None:
        """The newest checkpoint that verifies; broken ones are named, set aside and passed over.

        Raises:
            ValueError: there are checkpoints, and none of them verifies.
        """
        broken: list[Path] = []
        for folder in self._published():
            fault = _fault(folder)
            if fault is None:
                for passed_over in broken:  # under its name it would count among those kept
                    passed_over.rename(passed_over.with_name(f"broken-{passed_over.name}-{time.time_ns()}"))
                return folder
            logger.warning("passing over checkpoint %s: %s", folder.name, fault)
            broken.append(folder)
        if broken:
            raise ValueError(
                f"every checkpoint in {self.folder} is broken: start a new run, or delete them to train from the first step"
            )
        return None

    def publish(self, temporary: Path, folder: Path) -> None:
        """Make a finished folder visible: list it, force it to disk, rename it."""
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {str(p.relative_to(temporary)): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*files, temporary / "manifest.json", temporary / "engine", temporary):
            _fsync(path)
        os.replace(temporary, folder)
        _fsync(self.folder)

    def _published(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _superfluous(self) -> list[Path]:
        """Neither among the newest nor the best; or without its state, as a site's purge of old files leaves it."""
        states = {path: _state(path) for path in self._published()}
        losses = {path: state["held_out_loss"] for path, state in states.items() if state}
        evaluated = [path for path, loss in losses.items() if loss is not None and math.isfinite(loss)]
        best = min(evaluated, key=lambda path: losses[path], default=None)
        return [path for path in states if path not in (*list(losses)[: self.keep], best)]

    def _sweep(self) -> None:
        """Remove what was put aside to be removed; what cannot be is tried again the next time."""
        for old in self.folder.glob(".old-*"):
            shutil.rmtree(old, ignore_errors=True)


def _state(folder: Path) -> dict[str, Any] | None:
    """state.json; None if it is gone or broken."""
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return state


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"no readable manifest ({error})"
    for name, entry in manifest.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return f"{name} is missing or truncated"
        if sha256_file(path) != entry["sha256"]:
            return f"{name} is corrupted"
    return None


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
