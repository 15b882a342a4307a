"""Checkpoints on disk: published whole or not at all, and never trusted unseen. (Resuming runs:
distributed/test_laws.py.)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.distributed import World
from finetune.training.checkpoint import Checkpoints

IDENTITY = {"zero_stage": 2, "corpus": "digest", "base": "digest"}


class FileEngine:
    """Stands where DeepSpeed writes its files."""

    def __init__(self) -> None:
        self.content = b"weights" * 100

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "state.pt").write_bytes(self.content)

    def load(self, folder: Path, same_ranks: bool) -> None:
        self.content = (folder / "state.pt").read_bytes()


def make(folder: Path, keep: int = 2, **identity: object) -> Checkpoints:
    return Checkpoints(folder, keep, {**IDENTITY, **identity}, World(0, 1, 0))


def saved(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints, engine = make(folder, keep), FileEngine()
    for step in steps:
        engine.content = f"step {step}".encode() * 50
        checkpoints.save(engine, step)  # type: ignore[arg-type]
    return checkpoints


def load(folder: Path, **identity: object) -> tuple[int, bytes]:
    engine = FileEngine()
    return make(folder, **identity).load_newest(engine).step, engine.content  # type: ignore[arg-type]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_without_a_checkpoint_a_run_begins_at_step_0(tmp_path: Path) -> None:
    assert load(tmp_path)[0] == 0


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 10, 20, 30)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]
    assert load(tmp_path) == (30, b"step 30" * 50)


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    checkpoints, engine = make(tmp_path), FileEngine()
    for step, loss in ((10, 3.0), (20, 2.0), (30, None), (40, float("nan")), (50, 2.6)):
        checkpoints.save(engine, step, held_out_loss=loss)  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000040", "step-00000050"]
    assert load(tmp_path)[0] == 50


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_a_damaged_newest_falls_back(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 10, 20)
    damage(tmp_path / "step-00000020" / "engine" / "state.pt")
    assert load(tmp_path) == (10, b"step 10" * 50)
    assert "passing over checkpoint step-00000020" in caplog.text


def test_a_broken_one_does_not_push_out_the_last_good_one(tmp_path: Path) -> None:
    saved(tmp_path, 10, 20)
    flip_a_bit(tmp_path / "step-00000020" / "engine" / "state.pt")
    checkpoints, engine = make(tmp_path, keep=1), FileEngine()
    assert checkpoints.load_newest(engine).step == 10  # type: ignore[arg-type]
    checkpoints.save(engine, 15)  # type: ignore[arg-type]
    assert load(tmp_path)[0] == 15


def test_if_all_are_broken_the_run_does_not_silently_begin_again(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    truncate(tmp_path / "step-00000010" / "manifest.json")
    for _attempt in range(2):  # asking again changes nothing
        with pytest.raises(ValueError, match="every checkpoint"):
            load(tmp_path)


def test_an_unfinished_write_is_invisible_and_swept_away(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    (tmp_path / ".step-00000020.tmp" / "engine").mkdir(parents=True)
    (tmp_path / ".step-00000020.tmp" / "engine" / "state.pt").write_bytes(b"half")
    assert load(tmp_path)[0] == 10
    saved(tmp_path, 20)
    assert load(tmp_path) == (20, b"step 20" * 50)


def test_a_kill_while_an_old_one_is_removed_costs_that_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 10, 20)

    def killed(folder: Path, **_: object) -> None:
        (folder / "state.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(
            "finetune.training.checkpoint.shutil.rmtree",
            lambda path, **_: killed(path) if path.exists() else None,
        )
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path, 30)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000020", "step-00000030"], (
        "half of one has its name"
    )
    assert load(tmp_path)[0] == 30
    assert not list(tmp_path.glob(".old-*")), "not swept at the start"
    saved(tmp_path, 40)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000030", "step-00000040"]


@pytest.mark.parametrize("content", [None, "", "{"])
def test_an_old_one_whose_state_was_purged_is_removed(tmp_path: Path, content: str | None) -> None:
    """A site deletes old files one by one; what is left takes no place among the newest."""
    saved(tmp_path, 10, 20)
    state = tmp_path / "step-00000010" / "state.json"
    state.unlink()
    if content is not None:
        state.write_text(content)
    assert load(tmp_path)[0] == 20
    saved(tmp_path, 30, keep=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]


@pytest.mark.parametrize(("key", "value"), [("zero_stage", 3), ("corpus", "other"), ("base", "other")])
def test_another_identity_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    saved(tmp_path, 10)
    with pytest.raises(ValueError, match=f"made with {key}="):
        load(tmp_path, **{key: value})


def test_what_an_older_checkpoint_does_not_say_is_not_held_against_it(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    assert load(tmp_path, said_since="digest")[0] == 10
