"""Checkpoints on disk are complete or absent, and are verified before they are loaded.

Resumed runs are tested in distributed/test_laws.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.distributed import World
from finetune.training.checkpoint import Checkpoints

IDENTITY = {"zero_stage": 2, "corpus": "digest", "base": "digest"}


class FileEngine:
    """A stand-in for DeepSpeed's engine that saves and loads one small file."""

    def __init__(self) -> None:
        self.content = b"weights" * 100

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "state.pt").write_bytes(self.content)

    def load(self, folder: Path, same_ranks: bool) -> None:
        self.content = (folder / "state.pt").read_bytes()


def make(folder: Path, keep: int = 2, **identity: object) -> Checkpoints:
    return Checkpoints(folder, keep, {**IDENTITY, **identity}, World(0, 1, 0))


def save(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    """Save a checkpoint at each of the steps.

    Args:
        keep: number of newest checkpoints that are kept.
    """
    checkpoints = make(folder, keep)
    engine = FileEngine()
    for step in steps:
        engine.content = f"step {step}".encode() * 50
        checkpoints.save(engine, step)  # type: ignore[arg-type]
    return checkpoints


def load(folder: Path, **identity: object) -> tuple[int, bytes]:
    """Load the newest checkpoint; return its step and the engine's content."""
    engine = FileEngine()
    return make(folder, **identity).load_newest(engine).step, engine.content  # type: ignore[arg-type]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_without_a_checkpoint_a_run_starts_at_step_0(tmp_path: Path) -> None:
    assert load(tmp_path)[0] == 0


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 30)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]
    assert load(tmp_path) == (30, b"step 30" * 50)


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    checkpoints = make(tmp_path)
    engine = FileEngine()
    for step, loss in ((10, 3.0), (20, 2.0), (30, None), (40, float("nan")), (50, 2.6)):
        checkpoints.save(engine, step, held_out_loss=loss)  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000040", "step-00000050"]
    assert load(tmp_path)[0] == 50


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_a_damaged_newest_checkpoint_is_skipped(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 10, 20)
    damage(tmp_path / "step-00000020" / "engine" / "state.pt")
    assert load(tmp_path) == (10, b"step 10" * 50)
    assert "skipping checkpoint step-00000020" in caplog.text


def test_a_damaged_checkpoint_does_not_displace_the_last_good_one(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    flip_a_bit(tmp_path / "step-00000020" / "engine" / "state.pt")
    checkpoints = make(tmp_path, keep=1)
    engine = FileEngine()
    assert checkpoints.load_newest(engine).step == 10  # type: ignore[arg-type]
    checkpoints.save(engine, 15)  # type: ignore[arg-type]
    assert load(tmp_path)[0] == 15


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_again(tmp_path: Path) -> None:
    save(tmp_path, 10)
    truncate(tmp_path / "step-00000010" / "manifest.json")
    for _attempt in range(2):  # a second attempt fails in the same way
        with pytest.raises(ValueError, match="every checkpoint is damaged"):
            load(tmp_path)


def test_an_unfinished_checkpoint_is_ignored_and_overwritten(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / ".step-00000020.tmp" / "engine").mkdir(parents=True)
    (tmp_path / ".step-00000020.tmp" / "engine" / "state.pt").write_bytes(b"half")
    assert load(tmp_path)[0] == 10
    save(tmp_path, 20)
    assert load(tmp_path) == (20, b"step 20" * 50)


def test_a_kill_while_an_old_checkpoint_is_removed_loses_only_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10, 20)

    def killed(folder: Path, **_: object) -> None:
        (folder / "state.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(
            "finetune.training.checkpoint.shutil.rmtree",
            lambda path, **_: killed(path) if path.exists() else None,
        )
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 30)
    names = sorted(path.name for path in tmp_path.glob("step-*"))
    assert names == ["step-00000020", "step-00000030"], "a partial checkpoint has kept its name"
    assert load(tmp_path)[0] == 30
    assert not list(tmp_path.glob(".old-*")), "not removed at the next load"
    save(tmp_path, 40)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000030", "step-00000040"]


@pytest.mark.parametrize("content", [None, "", "{"])
def test_an_old_checkpoint_without_its_state_is_removed(tmp_path: Path, content: str | None) -> None:
    """A checkpoint without its state file must not count among the newest checkpoints.

    Such checkpoints exist because clusters purge old files one by one.
    """
    save(tmp_path, 10, 20)
    state = tmp_path / "step-00000010" / "state.json"
    state.unlink()
    if content is not None:
        state.write_text(content)
    assert load(tmp_path)[0] == 20
    save(tmp_path, 30, keep=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]


@pytest.mark.parametrize(("key", "value"), [("zero_stage", 3), ("corpus", "other"), ("base", "other")])
def test_a_checkpoint_of_another_identity_is_rejected_by_name(
    tmp_path: Path, key: str, value: object
) -> None:
    save(tmp_path, 10)
    with pytest.raises(ValueError, match=f"saved with {key}="):
        load(tmp_path, **{key: value})


def test_a_key_that_an_old_checkpoint_lacks_is_not_compared(tmp_path: Path) -> None:
    save(tmp_path, 10)
    assert load(tmp_path, added_later="digest")[0] == 10
