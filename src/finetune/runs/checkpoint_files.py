"""Checkpoints on disk: their state, held-out losses and integrity.

This module does not import torch, so that commands can use it.
"""

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
    """Return the content of state.json; None if the file is missing or unreadable."""
    return layout.read_json_or_none(checkpoint / layout.STATE)


def read_held_out_loss(checkpoint: Path) -> float | None:
    """Return the held-out loss of the weights in a checkpoint; None if they were not evaluated."""
    state = read_state(checkpoint)
    if not state:
        return None
    loss: float | None = state.get("held_out_loss")
    if loss is None:
        loss = (layout.read_json_or_none(checkpoint / layout.HELD_OUT) or {}).get("loss")
    return loss


def record_held_out_loss(checkpoint: Path, loss: float) -> None:
    """Write the held-out loss of a complete checkpoint into the checkpoint.

    It has its own file, which the manifest does not list, so the checkpoint stays valid.
    """
    layout.write_text(checkpoint / layout.HELD_OUT, json.dumps({"loss": loss}))


def rank_by_loss(checkpoints: Path) -> list[tuple[float, Path]]:
    """Return the evaluated checkpoints with their held-out losses, best first.

    The checkpoint of step 0 is left out. Of checkpoints with equal losses, the earlier comes first.
    """
    trained = [path for path in list_checkpoints(checkpoints) if step_of(path) > 0]
    found = [(read_held_out_loss(path), path) for path in trained]
    return sorted((loss, path) for loss, path in found if loss is not None and math.isfinite(loss))


def find_best(checkpoints: Path) -> Path | None:
    """Return the checkpoint with the lowest held-out loss; None if none was evaluated."""
    return next((path for _, path in rank_by_loss(checkpoints)), None)


def find_fault(checkpoint: Path) -> str | None:
    """Return the first difference between a checkpoint's files and its manifest; None if none."""
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
