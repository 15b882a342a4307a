"""Laws of how a base gets into the engine, on real processes: at ZeRO 3, cut up while it is read, as at ZeRO 0, whole.

Six steps of fp32 on two ranks, as in test_laws.py; each law is about the losses, the saved tensors, and the model that is
loaded from them again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from finetune.config.train import ClusterConfig, DataConfig, ModelConfig, TrainConfig, conf_dir
from finetune.evaluation.held_out import evaluate_on_corpus
from finetune.runs import base_model as base_models
from finetune.runs.folder import RunFolder
from tests.corpora import VOCAB_SIZE, write_corpus
from tests.distributed import worker
from tests.distributed.test_laws import LOSS_TOLERANCE, WEIGHT_TOLERANCE, ZERO, losses, make_run, weights
from tests.models import LLAMA, LORA, write_base

pytestmark = pytest.mark.distributed

STEPS = 6
ADDED = 20
EMBEDDINGS = ["embed_tokens", "lm_head"]


def zero_file(name: str) -> dict[str, Any]:
    settings = yaml.safe_load((conf_dir() / f"zero/{name}.yaml").read_text())
    assert isinstance(settings, dict)
    return settings


# name: (base, corpus, adapter); each is run at ZeRO 0 and 3
PAIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "full": ("base", "laws", {}),
    "lora": ("base", "laws", dict(LORA)),
    "tied": ("tied", "laws", dict(LORA)),
    "tied-matrix": ("tied", "laws", {**LORA, "target_modules": ["embed_tokens", "q_proj"]}),
    "dora": ("base", "laws", {**LORA, "use_dora": True}),
    "modules": ("base", "laws", {**LORA, "modules_to_save": ["lm_head"]}),
    "enlarged": ("base", "enlarged", {}),
    "enlarged-tied": ("tied", "enlarged", {**LORA, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "enlarged-lora": ("base", "enlarged", {**LORA, "modules_to_save": EMBEDDINGS}),
    "on-lora": ("run:dora-zero0", "laws", dict(LORA)),
    "on-enlarged": ("run:enlarged-lora-zero0", "enlarged", {}),
    "on-tied-matrix": ("run:tied-matrix-zero0", "laws", {}),
    "biases": ("biased", "laws", {**LORA, "bias": "all"}),
    "pissa": ("base", "laws", {**LORA, "init_lora_weights": "pissa"}),  # both take their start out of the base's weights
    "olora": ("base", "laws", {**LORA, "init_lora_weights": "olora"}),
    "converted": ("moe", "laws", dict(LORA)),  # transformers fuses its experts as it loads them: loaded whole at ZeRO 3 too
}
LORA_FILES = {name: yaml.safe_load((conf_dir() / f"adapter/{name}.yaml").read_text()) for name in ("rslora", "lokr", "ia3")}
PAIRS |= {name: ("base", "laws", settings) for name, settings in LORA_FILES.items()}
# equal to `full` or `lora` at ZeRO 0
SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "checkpointed-full-zero0": ("full", {"zero": ZERO[0], "activation_checkpointing": True}),
    "checkpointed-full-zero3": ("full", {"zero": ZERO[3], "activation_checkpointing": True}),
    "checkpointed-lora-zero0": ("lora", {"zero": ZERO[0], "activation_checkpointing": True}),
    "checkpointed-lora-zero3": ("lora", {"zero": ZERO[3], "activation_checkpointing": True}),
    "offload-zero2": ("full", {"zero": zero_file("stage2_offload")}),
    "offload-zero3": ("full", {"zero": {**zero_file("stage3_offload"), **ZERO[3]}}),
    "offload-lora-zero3": ("lora", {"zero": {**zero_file("stage3_offload"), **ZERO[3]}}),
}
REFUSED = {
    "stage3_zeropp": "zero.zero_quantized_weights needs CUDA",
    "stage3_superoffload": "zero.offload_optimizer.super_offload needs CUDA",
}
MOE = {"model_type": "qwen3_moe", "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
BF16 = {f"bf16-{files}-zero{stage}": (files, ZERO[stage]) for files in ("base", "half") for stage in (1, 2, 3)}
FAULTS = {f"{fault}-zero{stage}": (fault, ZERO[stage]) for fault, stages in
          {"weight_left_random": (0, 2, 3), "slice_at_wrong_offset": (3,)}.items() for stage in stages}  # fmt: skip


HYBRID = {**LLAMA, "model_type": "lfm2", "layer_types": ["conv", "full_attention"]}
# found out by weights that have learned something: random ones hide a leak below rounding
ENDED: dict[str, tuple[dict[str, Any], str]] = {
    "blown-up": ({"lr": 1e38, "max_steps": 1}, "the held-out loss after step 1 is nan"),
    "hybrid": ({"model": ModelConfig(from_scratch=HYBRID), "lr": 3e-2, "max_steps": 40}, "documents in a pack see each other"),
}
DAMAGE = {
    "missing": "lacks 1 weights of its kind, e.g. model.norm.weight",
    "misshapen": "lacks 1 weights of its kind, e.g. model.norm.weight",
    "unexpected": "holds 1 weights that its architecture has no place for, e.g. model.norm.bias",
    "truncated": "cannot be read",
}


def damaged(base: Path, fault: str) -> Path:
    file = base / "model.safetensors"
    tensors = load_file(file)
    norm = tensors["model.norm.weight"]
    if fault == "missing":
        del tensors["model.norm.weight"]
    elif fault == "misshapen":
        tensors["model.norm.weight"] = norm[:-1].clone()
    elif fault == "unexpected":
        tensors["model.norm.bias"] = norm.clone()
    save_file(tensors, file, metadata={"format": "pt"})
    if fault == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    return base


@pytest.fixture(scope="module")
def runs(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    folder = tmp_path_factory.mktemp("model")
    bases = {
        "base": write_base(folder / "base", shard="40KB"),
        "tied": write_base(folder / "tied", tie_word_embeddings=True, vocab_size=VOCAB_SIZE),
        "half": write_base(folder / "half", dtype=torch.bfloat16),
        "moe": write_base(folder / "moe", **MOE),
        "biased": write_base(folder / "biased", model_type="qwen2"),
        **{fault: damaged(write_base(folder / fault), fault) for fault in DAMAGE},
    }
    enlarged = write_corpus(folder / "corpora" / "enlarged", 60, 256, seed=2, added_tokens=ADDED)
    corpora = {"laws": law_corpus, "enlarged": enlarged}

    def config(base: str, corpus: str = "laws", **changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "check_first_loss": False,
            "data": DataConfig(corpus=str(corpora[corpus]), sequence_length=128), "runs_dir": str(folder / "runs"),
            "model": ModelConfig(path=str(bases.get(base, base))), "cluster": ClusterConfig(ranks_per_node=2),
            "global_batch_size": 8, "micro_batch_size": 2, "max_steps": STEPS, "lr": 3e-3, "seed": 3,
        }  # fmt: skip
        return TrainConfig(**{**settings, **changes})

    cases: list[dict[str, Any]] = []
    for name, (base, corpus, adapter) in PAIRS.items():
        for stage in (0, 3):
            run = config(base, corpus, adapter=adapter, zero=ZERO[stage])
            cases.append(make_run(folder, f"{name}-zero{stage}", run))
    for name, (files, zero) in BF16.items():
        cases.append(make_run(folder, name, config(files, zero=zero, precision="bf16", adapter=dict(LORA), max_steps=2)))
    for name, (fault, zero) in FAULTS.items():
        cases.append({**make_run(folder, name, config("base", zero=zero)), "fault": fault, "refused": True})
    for name, (kind, changes) in SAME.items():
        cases.append(make_run(folder, name, config("base", adapter=PAIRS[kind][2], **changes)))
    for name in REFUSED:
        cases.append({**make_run(folder, name, config("base", zero=zero_file(name))), "refused": True})
    for fault in DAMAGE:
        cases.append({**make_run(folder, fault, config(fault, zero=ZERO[3])), "refused": True})
    for name, (changes, _) in ENDED.items():
        cases.append({**make_run(folder, name, config("base", zero=ZERO[2], **changes)), "refused": True})
    frozen = config("base", "enlarged", adapter=dict(LORA), zero=ZERO[3])
    cases.append({**make_run(folder, "frozen-rows", frozen), "refused": True})
    worker.join(folder / "two", worker.start(folder / "two", cases, 2))
    return {path.name: RunFolder(path) for path in (folder / "runs").iterdir()}


def saved(run: RunFolder) -> dict[str, torch.Tensor]:
    folder = run.model if run.model.is_dir() else run.adapter
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("name", PAIRS)
def test_zero_3_from_slices_is_zero_0_from_the_whole(runs: dict[str, RunFolder], name: str) -> None:
    whole, cut = runs[f"{name}-zero0"], runs[f"{name}-zero3"]
    assert len(losses(whole)) == STEPS
    assert (losses(whole) - losses(cut)).abs().max() < LOSS_TOLERANCE
    a, b = saved(whole), saved(cut)
    assert a.keys() == b.keys()
    assert max(float((a[key] - b[key]).abs().max()) for key in a) < WEIGHT_TOLERANCE


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("name", PAIRS)
def test_what_was_saved_evaluates_as_the_run_said(runs: dict[str, RunFolder], name: str, stage: int) -> None:
    run = runs[f"{name}-zero{stage}"]
    summary = run.summary()
    assert summary is not None
    again = evaluate_on_corpus(f"run:{run.id}", run.config().data, str(run.path.parent))
    assert again.loss == pytest.approx(summary.after.loss, abs=1e-5)


@pytest.mark.parametrize("name", SAME)
def test_checkpointed_and_offloaded_is_the_same_training(runs: dict[str, RunFolder], name: str) -> None:
    run, plain = runs[name], runs[f"{SAME[name][0]}-zero0"]
    assert (losses(run) - losses(plain)).abs().max() < LOSS_TOLERANCE
    a, b = saved(run), saved(plain)
    assert max(float((a[key] - b[key]).abs().max()) for key in a) < WEIGHT_TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_this_machine_cannot_run_are_one_line(runs: dict[str, RunFolder], name: str) -> None:
    error = json.loads((runs[name].path / "outcome.json").read_text())["error"]
    assert REFUSED[name] in error
    assert "\n" not in error


def test_no_false_alarm_in_bf16(runs: dict[str, RunFolder]) -> None:
    for name in BF16:
        assert runs[name].summary() is not None, name
    for files in ("base", "half"):
        assert (losses(runs[f"bf16-{files}-zero2"]) - losses(runs[f"bf16-{files}-zero3"])).abs().max() < 0.02


@pytest.mark.parametrize("name", FAULTS)
def test_weights_that_are_not_the_files_stop_the_run(runs: dict[str, RunFolder], name: str) -> None:
    error = json.loads((runs[name].path / "outcome.json").read_text())["error"]
    assert "1 of 21 weights are not those of the base's files, e.g. model.layers.1.mlp.up_proj.weight on 2 of 2 ranks" in error


@pytest.mark.parametrize("name", ENDED)
def test_what_training_brings_to_light_ends_the_run_without_a_result(runs: dict[str, RunFolder], name: str) -> None:
    assert ENDED[name][1] in json.loads((runs[name].path / "outcome.json").read_text())["error"]
    assert not runs[name].model.exists()


def test_ranks_draw_dropout_each_their_own(runs: dict[str, RunFolder]) -> None:
    (newest,) = runs["full-zero0"].checkpoints.glob("step-*")
    first, second = (torch.load(newest / f"rng-0000{rank}.pt", weights_only=True)["cpu"] for rank in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_base_is_one_line(runs: dict[str, RunFolder], fault: str) -> None:
    error = json.loads((runs[fault].path / "outcome.json").read_text())["error"]
    assert DAMAGE[fault] in error
    assert "\n" not in error


def test_an_adapter_that_leaves_added_tokens_out_is_refused(runs: dict[str, RunFolder]) -> None:
    error = json.loads((runs["frozen-rows"].path / "outcome.json").read_text())["error"]
    assert f"adds {ADDED} tokens" in error
    assert "add +adapter.modules_to_save=[embed_tokens,lm_head]" in error


def test_new_rows_start_as_the_mean_and_are_learned(runs: dict[str, RunFolder]) -> None:
    old = load_file_of(runs["enlarged-zero3"], "model.embed_tokens.weight")
    new = saved(runs["enlarged-zero3"])["model.embed_tokens.weight"]
    assert new.shape[0] == VOCAB_SIZE + ADDED == old.shape[0] + ADDED
    rows = new[VOCAB_SIZE:] - old.mean(0)
    assert 0 < rows.abs().max() < 0.1, "six steps from the mean"
    assert len(rows.unique(dim=0)) > 1
    assert weights(runs["enlarged-lora-zero3"])["base_model.model.lm_head.weight"].shape[0] == VOCAB_SIZE + ADDED


def load_file_of(run: RunFolder, name: str) -> torch.Tensor:
    path = run.config().model.path
    assert path is not None
    folder = base_models.resolve(path, run.path.parent).folder
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}[name]
