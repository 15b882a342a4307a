"""Checkpoints as files: which there are, whether they are whole, which is the best. No torch here: commands
read them too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.shards import sha256_file
from finetune.runs import layout
from finetune.runs.layout import list_checkpoints, step_of

if TYPE_CHECKING:
    from finetune.runs.layout import Json


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / layout.checkpoint_name(step)


def read_state(checkpoint: Path) -> Json | None:
    """Return state.json; None if it is gone or broken."""
    return layout.read_json_if_whole(checkpoint / layout.STATE)


def held_out_loss(checkpoint: Path) -> float | None:
    """Return the held-out loss of the weights in a checkpoint; None if they were not evaluated."""
    state = read_state(checkpoint)
    loss = state.get("held_out_loss") if state else None
    if loss is None and state:
        loss = (layout.read_json_if_whole(checkpoint / layout.HELD_OUT) or {}).get("loss")
    return loss


def note_held_out_loss(checkpoint: Path, loss: float) -> None:
    """Add a loss to a published checkpoint, beside the files that its manifest lists."""
    layout.write_text(checkpoint / layout.HELD_OUT, json.dumps({"loss": loss}))


def by_loss(checkpoints: Path) -> list[tuple[float, Path]]:
    """Return the trained checkpoints that were evaluated, the best first; of equal ones the earlier."""
    found = [(held_out_loss(path), path) for path in list_checkpoints(checkpoints) if step_of(path) > 0]
    return sorted((loss, path) for loss, path in found if loss is not None and math.isfinite(loss))


def best(checkpoints: Path) -> Path | None:
    """Return the checkpoint with the lowest held-out loss."""
    return next((path for _, path in by_loss(checkpoints)), None)


def find_fault(checkpoint: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint, held against its manifest; None if they are
    whole."""
    try:
        manifest = json.loads((checkpoint / layout.MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"no readable manifest ({error})"
    for name, entry in manifest.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return f"{name} is missing or truncated"
        if sha256_file(path) != entry["sha256"]:
            return f"{name} is corrupted"
    return None
