"""A run is refused if its corpus or its base has changed since it was submitted."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.config.train import DataConfig, ModelConfig, TrainConfig
from finetune.launch import submit
from finetune.launch.freeze import freeze
from finetune.runs import base_model as base
from finetune.runs import inputs as run_inputs
from finetune.runs import layout
from finetune.runs.base_model import Base
from tests.corpora import write_corpus
from tests.models import LORA, write_base


def config_of(folder: Path, model: str, **changes: object) -> TrainConfig:
    data = DataConfig(corpus=str(folder / "corpus"), sequence_length=64)
    return TrainConfig(data=data, model=ModelConfig(path=model), runs_dir=str(folder / "runs"), **changes)  # type: ignore[arg-type]


def digests_of(config: TrainConfig) -> dict[str, str | None]:
    return run_inputs.compute_digests(base.resolve_for_run(config), run_inputs.open_corpus(config.data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a corpus and a base.

    The base's embeddings are larger than WINDOW, the number of bytes of a tensor that a
    digest covers.
    """
    write_corpus(tmp_path / "corpus", num_documents=8, longest=20, seed=0)
    write_base(tmp_path / "base")
    return tmp_path


def retrain(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(file)
    for name, tensor in tensors.items():
        tensors[name] = tensor + 1e-4 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, file, metadata={"format": "pt"})


def retrain_one_matrix(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name] * 1.001}, file, metadata={"format": "pt"})


def rename_a_tensor(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content.replace(b"model.norm.weight", b"model.warm.weight", 1))


def change_a_config(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.1}))


@pytest.mark.parametrize("change", [retrain, retrain_one_matrix, rename_a_tensor, change_a_config])
def test_a_digest_depends_on_the_model_and_not_on_its_folder(
    folder: Path, change: Callable[[Path], None]
) -> None:
    before = run_inputs.compute_base_digest(Base("base", folder / "base"))
    shutil.copytree(folder / "base", folder / "copy")
    copy = Base("copy", folder / "copy")
    assert run_inputs.compute_base_digest(copy) == before, "the digest depends on the folder"
    change(folder / "copy")
    assert run_inputs.compute_base_digest(copy) != before


def test_a_digest_covers_the_adapters_of_a_base(folder: Path) -> None:
    write_base(folder / "adapter", seed=1)
    with_adapter = Base("base", folder / "base", (folder / "adapter",))
    digests = {
        run_inputs.compute_base_digest(Base("base", folder / "base")),
        run_inputs.compute_base_digest(with_adapter),
    }
    retrain(folder / "adapter")
    digests.add(run_inputs.compute_base_digest(with_adapter))
    assert len(digests) == 3


def test_a_digest_reads_little_of_a_large_model(tmp_path: Path) -> None:
    """The file is sparse: its 64 GiB take no disk space, but reading them would take minutes."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2**34], "data_offsets": [0, 2**36]}}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**36)
    before = run_inputs.compute_base_digest(Base("large", tmp_path))
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(8 + len(header) + 2**35)
        file.write(b"x")
    assert run_inputs.compute_base_digest(Base("large", tmp_path)) != before


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]", b'\x08\0\0\0\0\0\0\0{"a": 1}']
)
def test_damaged_weights_are_an_error_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    message = r"model.safetensors cannot be read .*; download or copy the model again"
    with pytest.raises(ValueError, match=message):
        run_inputs.compute_base_digest(Base("damaged", tmp_path))


def test_a_queued_run_is_refused_if_its_corpus_or_base_changes(folder: Path) -> None:
    config = config_of(folder, str(folder / "base")).with_absolute_paths()
    (run,) = freeze([config], None)
    run_inputs.record_inputs(run, digests_of(config))
    shutil.rmtree(folder / "corpus")
    write_corpus(folder / "corpus", num_documents=8, longest=20, seed=1)
    with pytest.raises(
        ValueError, match=rf"^corpus {folder}/corpus has changed since run {run.id} was submitted"
    ):
        run_inputs.record_inputs(run, digests_of(config))
    (run,) = freeze([config], None)
    retrain(folder / "base")
    with pytest.raises(
        ValueError, match=rf"^base {folder}/base has changed since run {run.id} was submitted"
    ):
        submit.resume(run, [])


@pytest.mark.parametrize("adapter", [{}, LORA])
def test_the_base_of_full_fine_tuning_may_change_after_the_first_checkpoint(
    folder: Path, adapter: dict[str, object]
) -> None:
    config = config_of(folder, str(folder / "base"), adapter=adapter).with_absolute_paths()
    (run,) = freeze([config], None)
    retrain(folder / "base")
    with pytest.raises(ValueError, match=r"^base "):
        run_inputs.record_inputs(run, digests_of(config))
    (run.checkpoints / "step-00000010").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^base ") if adapter else contextlib.nullcontext():
        run_inputs.record_inputs(run, digests_of(config))


def test_a_corpus_prepared_after_the_submission_is_recorded_at_the_first_start(folder: Path) -> None:
    config = config_of(folder, str(folder / "base"), after="prepare-1").with_absolute_paths()
    (run,) = freeze([config], None)
    shutil.rmtree(folder / "corpus")
    write_corpus(folder / "corpus", num_documents=8, longest=20, seed=1)
    run_inputs.record_inputs(run, digests_of(config))
    shutil.rmtree(folder / "corpus")
    write_corpus(folder / "corpus", num_documents=8, longest=20, seed=2)
    with pytest.raises(ValueError, match=r"^corpus "):
        run_inputs.record_inputs(run, digests_of(config))


def test_a_run_without_recorded_inputs_is_resumed(folder: Path) -> None:
    config = config_of(folder, str(folder / "base")).with_absolute_paths()
    (run,) = freeze([config], None)
    (run.path / layout.INPUTS).unlink()
    digests = digests_of(config)
    assert run_inputs.record_inputs(run, digests) == run.read_json(layout.INPUTS)


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_hub_id_stays_at_the_revision_of_its_submission(
    folder: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    cache = folder / "hub"
    old = "0" * 40
    new = "1" * 40
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    repository = cache / "models--some--model"
    for seed, commit in enumerate((old, new)):
        write_base(repository / "snapshots" / commit, seed=seed)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(old)
    config = config_of(folder, "some/model").with_absolute_paths()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, revision=revision))
    (run,) = freeze([config], None)
    (repository / "refs" / "main").write_text(new)
    model = run.config().model
    assert model.path == "some/model"
    assert base.resolve("some/model", folder / "runs", model.revision).folder.name == old
    run_inputs.record_inputs(run, digests_of(run.config()))
