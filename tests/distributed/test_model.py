"""A base that is loaded in slices (ZeRO 3) trains like one that is loaded completely (ZeRO 0).

Two ranks train six steps in fp32. The tests compare the losses, the saved tensors, and the models
that are loaded from the saved files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from finetune.config.train import ClusterConfig, DataConfig, ModelConfig, TrainConfig, conf_dir
from finetune.evaluation.held_out import evaluate_on_corpus
from finetune.models.safetensors_io import WeightFiles
from finetune.runs import base_model
from finetune.runs.folder import RunFolder
from tests.corpora import VOCAB_SIZE, write_corpus
from tests.distributed import worker
from tests.distributed.faults import DAMAGED
from tests.distributed.laws import (
    LOSS_TOLERANCE,
    WEIGHT_TOLERANCE,
    ZERO,
    loss_distance,
    losses,
    make_run,
    runs_by_name,
    weight_distance,
    weights,
    zero_file,
)
from tests.distributed.worker import Case
from tests.models import LLAMA, LORA, write_base

pytestmark = pytest.mark.distributed

STEPS = 6
ADDED = 20
EMBEDDINGS = ["embed_tokens", "lm_head"]


@dataclass(frozen=True)
class Pair:
    """Settings of two trainings, one at ZeRO 0 and one at ZeRO 3. Their results must be equal.

    Args:
        base: name of a base that the fixture writes, or `run:<name>` for the result of a run.
    """

    id: str
    base: str = "base"
    corpus: str = "laws"
    adapter: dict[str, Any] = field(default_factory=dict)


def adapter_file(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((conf_dir() / f"adapter/{name}.yaml").read_text())
    return settings


TIED = {**LORA, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
PAIRS = [
    Pair("full"),
    Pair("lora", adapter=LORA),
    Pair("tied", "tied", adapter=LORA),
    Pair("tied-matrix", "tied", adapter={**LORA, "target_modules": ["embed_tokens", "q_proj"]}),
    Pair("dora", adapter={**LORA, "use_dora": True}),
    Pair("modules", adapter={**LORA, "modules_to_save": ["lm_head"]}),
    Pair("enlarged", corpus="enlarged"),
    Pair("enlarged-tied", "tied", "enlarged", TIED),
    Pair("enlarged-lora", corpus="enlarged", adapter={**LORA, "modules_to_save": EMBEDDINGS}),
    Pair("on-lora", "run:dora-zero0", adapter=LORA),
    Pair("on-enlarged", "run:enlarged-lora-zero0", "enlarged"),
    Pair("on-tied-matrix", "run:tied-matrix-zero0"),
    Pair("biases", "biased", adapter={**LORA, "bias": "all"}),
    # the initialisations of these two change the base's weights
    Pair("pissa", adapter={**LORA, "init_lora_weights": "pissa"}),
    Pair("olora", adapter={**LORA, "init_lora_weights": "olora"}),
    # transformers fuses the experts when it loads them, so every rank loads the model completely at
    # ZeRO 3 too
    Pair("converted", "moe", adapter=LORA),
    *(Pair(name, adapter=adapter_file(name)) for name in ("rslora", "lokr", "ia3")),
]


@dataclass(frozen=True)
class Variant:
    """A training with the settings of a Pair and others, which must not change the result.

    Args:
        pair: id of the Pair whose run at ZeRO 0 must have the same result as this training.
        zero: ZeRO settings of this training.
        settings: settings added to those of the Pair.
    """

    id: str
    pair: str
    zero: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)


CHECKPOINTED = {"activation_checkpointing": True}
OFFLOADED = {**zero_file("stage3_offload"), **ZERO[3]}
VARIANTS = [
    Variant("checkpointed-full-zero0", "full", ZERO[0], CHECKPOINTED),
    Variant("checkpointed-full-zero3", "full", ZERO[3], CHECKPOINTED),
    Variant("checkpointed-lora-zero0", "lora", ZERO[0], CHECKPOINTED),
    Variant("checkpointed-lora-zero3", "lora", ZERO[3], CHECKPOINTED),
    Variant("offload-zero2", "full", zero_file("stage2_offload")),
    Variant("offload-zero3", "full", OFFLOADED),
    Variant("offload-lora-zero3", "lora", OFFLOADED),
]
REFUSED = {
    "stage3_zeropp": "zero.zero_quantized_weights: it needs CUDA",
    "stage3_superoffload": "zero.offload_optimizer.super_offload: it needs CUDA",
}
MOE = {
    "model_type": "qwen3_moe",
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}


@dataclass(frozen=True)
class AtStage:
    """A ZeRO stage, and the name of a base or of a planted fault."""

    name: str
    stage: int

    @property
    def id(self) -> str:
        return f"{self.name}-zero{self.stage}"


BF16 = [AtStage(base, stage) for base in ("base", "half") for stage in (1, 2, 3)]
FAULTS = [AtStage("weight_left_random", stage) for stage in (0, 2, 3)]
FAULTS.append(AtStage("slice_at_wrong_offset", 3))


@dataclass(frozen=True)
class Failing:
    """Settings with which training fails.

    Args:
        error: part of the error message.
    """

    id: str
    error: str
    settings: dict[str, Any]


HYBRID = {**LLAMA, "model_type": "lfm2", "layer_types": ["conv", "full_attention"]}
# many steps, because with random weights the leak between documents is smaller than rounding
LEAKY = {"model": ModelConfig(from_scratch=HYBRID), "lr": 3e-2, "max_steps": 40}
FAILING = [
    Failing("diverging", "step 1: the held-out loss is nan", {"lr": 1e38, "max_steps": 1}),
    Failing("hybrid", "packed documents attend to each other", LEAKY),
]
DAMAGE = {
    "missing": "1 weights are missing or have another shape, e.g. model.norm.weight",
    "misshapen": "1 weights are missing or have another shape, e.g. model.norm.weight",
    "unexpected": "1 weights have no place in its architecture, e.g. model.norm.bias",
    "truncated": "cannot be read",
}


def damage_base(base: Path, fault: str) -> Path:
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
        **{fault: damage_base(write_base(folder / fault), fault) for fault in DAMAGE},
    }
    enlarged = write_corpus(folder / "corpora" / "enlarged", 60, 256, seed=2, added_tokens=ADDED)
    corpora = {"laws": law_corpus, "enlarged": enlarged}

    def config(base: str, corpus: str = "laws", **changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "check_first_loss": False,
            "data": DataConfig(corpus=str(corpora[corpus]), sequence_length=128),
            "runs_dir": str(folder / "runs"),
            "model": ModelConfig(path=str(bases.get(base, base))),
            "cluster": ClusterConfig(ranks_per_node=2),
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "max_steps": STEPS,
            "lr": 3e-3,
            "seed": 3,
        }
        return TrainConfig(**{**settings, **changes})

    def case(name: str, config: TrainConfig, fault: str | None = None, refused: bool = False) -> Case:
        return make_run(folder, name, config, fault, refused)

    cases = []
    for pair in PAIRS:
        for stage in (0, 3):
            settings = config(pair.base, pair.corpus, adapter=pair.adapter, zero=ZERO[stage])
            cases.append(case(f"{pair.id}-zero{stage}", settings))
    for bf16 in BF16:
        settings = config(bf16.name, zero=ZERO[bf16.stage], precision="bf16", adapter=dict(LORA), max_steps=2)
        cases.append(case(f"bf16-{bf16.id}", settings))
    for fault in FAULTS:
        cases.append(case(fault.id, config("base", zero=ZERO[fault.stage]), fault.name, refused=True))
    for variant in VARIANTS:
        adapter = next(pair.adapter for pair in PAIRS if pair.id == variant.pair)
        settings = config("base", adapter=adapter, zero=variant.zero, **variant.settings)
        cases.append(case(variant.id, settings))
    for name in REFUSED:
        cases.append(case(name, config("base", zero=zero_file(name)), refused=True))
    for damage in DAMAGE:
        cases.append(case(damage, config(damage, zero=ZERO[3]), refused=True))
    for failing in FAILING:
        cases.append(case(failing.id, config("base", zero=ZERO[2], **failing.settings), refused=True))
    frozen = config("base", "enlarged", adapter=dict(LORA), zero=ZERO[3])
    cases.append(case("frozen-rows", frozen, refused=True))
    worker.run(folder / "two", cases, 2)
    return runs_by_name(folder)


def case_id(case: Pair | Variant | AtStage | Failing) -> str:
    return case.id


def error_of(run: RunFolder) -> str:
    """Return the error that ended the run."""
    error: str = (run.read_json("outcome.json") or {})["error"]
    return error


@pytest.mark.parametrize("pair", PAIRS, ids=case_id)
def test_a_base_loaded_by_slices_at_zero_3_trains_as_at_zero_0(
    runs: dict[str, RunFolder], pair: Pair
) -> None:
    complete = runs[f"{pair.id}-zero0"]
    partitioned = runs[f"{pair.id}-zero3"]
    assert len(losses(complete)) == STEPS
    assert loss_distance(complete, partitioned) < LOSS_TOLERANCE
    assert weight_distance(complete, partitioned) < WEIGHT_TOLERANCE


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("pair", PAIRS, ids=case_id)
def test_a_saved_model_evaluates_as_its_run_logged(
    runs: dict[str, RunFolder], pair: Pair, stage: int
) -> None:
    run = runs[f"{pair.id}-zero{stage}"]
    summary = run.summary()
    assert summary is not None
    held_out = evaluate_on_corpus(f"run:{run.id}", run.config().data, str(run.path.parent))
    assert held_out.loss == pytest.approx(summary.after.loss, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=case_id)
def test_activation_checkpointing_and_offload_do_not_change_training(
    runs: dict[str, RunFolder], variant: Variant
) -> None:
    run = runs[variant.id]
    plain = runs[f"{variant.pair}-zero0"]
    assert loss_distance(run, plain) < LOSS_TOLERANCE
    assert weight_distance(run, plain) < WEIGHT_TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_need_a_gpu_are_an_error_of_one_line(runs: dict[str, RunFolder], name: str) -> None:
    error = error_of(runs[name])
    assert REFUSED[name] in error
    assert "\n" not in error


def test_guards_pass_healthy_training_in_bf16(runs: dict[str, RunFolder]) -> None:
    for case in BF16:
        assert runs[f"bf16-{case.id}"].summary() is not None, case.id
    for base in ("base", "half"):
        assert loss_distance(runs[f"bf16-{base}-zero2"], runs[f"bf16-{base}-zero3"]) < 0.02


@pytest.mark.parametrize("fault", FAULTS, ids=case_id)
def test_weights_that_differ_from_the_files_stop_the_run(runs: dict[str, RunFolder], fault: AtStage) -> None:
    expected = f"1 of 21 loaded weights differ from the base's files, e.g. {DAMAGED} on 2 of 2 ranks"
    assert expected in error_of(runs[fault.id])


@pytest.mark.parametrize("failing", FAILING, ids=case_id)
def test_a_fault_that_training_reveals_ends_the_run_without_a_result(
    runs: dict[str, RunFolder], failing: Failing
) -> None:
    assert failing.error in error_of(runs[failing.id])
    assert not runs[failing.id].model.exists()


def test_dropout_differs_between_ranks(runs: dict[str, RunFolder]) -> None:
    (newest,) = runs["full-zero0"].checkpoints.glob("step-*")
    first, second = (torch.load(newest / f"rng-0000{rank}.pt", weights_only=True)["cpu"] for rank in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_base_is_an_error_of_one_line(runs: dict[str, RunFolder], fault: str) -> None:
    error = error_of(runs[fault])
    assert DAMAGE[fault] in error
    assert "\n" not in error


def test_an_adapter_that_does_not_train_added_tokens_is_rejected(runs: dict[str, RunFolder]) -> None:
    error = error_of(runs["frozen-rows"])
    assert f"adds {ADDED} tokens" in error
    assert "add +adapter.modules_to_save=[embed_tokens,lm_head]" in error


def test_rows_of_added_tokens_start_as_the_mean_and_are_trained(runs: dict[str, RunFolder]) -> None:
    old = load_base_tensor(runs["enlarged-zero3"], "model.embed_tokens.weight")
    new = weights(runs["enlarged-zero3"])["model.embed_tokens.weight"]
    assert new.shape[0] == VOCAB_SIZE + ADDED == old.shape[0] + ADDED
    rows = new[VOCAB_SIZE:] - old.mean(0)
    assert 0 < rows.abs().max() < 0.1, "rows are not within six steps of the mean"
    assert len(rows.unique(dim=0)) > 1
    head = weights(runs["enlarged-lora-zero3"])["base_model.model.lm_head.weight"]
    assert head.shape[0] == VOCAB_SIZE + ADDED


def load_base_tensor(run: RunFolder, name: str) -> torch.Tensor:
    """Return the tensor `name` from the files of the run's base."""
    path = run.config().model.path
    assert path is not None
    folder = base_model.resolve(path, run.path.parent).folder
    return dict(WeightFiles(folder))[name]
