"""Laws of how a base gets into the engine, on real processes: at ZeRO 3, cut up while it is read, as at ZeRO
0, whole.

Six steps of fp32 on two ranks, as in test_laws.py; each law is about the losses, the saved tensors, and the
model that is loaded from them again.
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
    """What is trained at ZeRO 0 and at ZeRO 3.

    Args:
        base: a base of the fixture's, or a run's result.
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
    # both take their start out of the base's weights
    Pair("pissa", adapter={**LORA, "init_lora_weights": "pissa"}),
    Pair("olora", adapter={**LORA, "init_lora_weights": "olora"}),
    # transformers fuses its experts as it loads them: loaded whole at ZeRO 3 too
    Pair("converted", "moe", adapter=LORA),
    *(Pair(name, adapter=adapter_file(name)) for name in ("rslora", "lokr", "ia3")),
]


@dataclass(frozen=True)
class Same:
    """Another way to train a pair, by its id, that must equal it at ZeRO 0."""

    id: str
    pair: str
    zero: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)


CHECKPOINTED = {"activation_checkpointing": True}
OFFLOADED = {**zero_file("stage3_offload"), **ZERO[3]}
SAME = [
    Same("checkpointed-full-zero0", "full", ZERO[0], CHECKPOINTED),
    Same("checkpointed-full-zero3", "full", ZERO[3], CHECKPOINTED),
    Same("checkpointed-lora-zero0", "lora", ZERO[0], CHECKPOINTED),
    Same("checkpointed-lora-zero3", "lora", ZERO[3], CHECKPOINTED),
    Same("offload-zero2", "full", zero_file("stage2_offload")),
    Same("offload-zero3", "full", OFFLOADED),
    Same("offload-lora-zero3", "lora", OFFLOADED),
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
    """Bases' files, or a planted fault, at a ZeRO stage."""

    what: str
    stage: int

    @property
    def id(self) -> str:
        return f"{self.what}-zero{self.stage}"


BF16 = [AtStage(files, stage) for files in ("base", "half") for stage in (1, 2, 3)]
FAULTS = [*(AtStage("weight_left_random", stage) for stage in (0, 2, 3)), AtStage("slice_at_wrong_offset", 3)]


@dataclass(frozen=True)
class Ended:
    """Settings with which training ends a run without a result, and a part of the error."""

    id: str
    error: str
    settings: dict[str, Any]


HYBRID = {**LLAMA, "model_type": "lfm2", "layer_types": ["conv", "full_attention"]}
# found out by weights that have learned something: random ones hide a leak below rounding
LEAKY = {"model": ModelConfig(from_scratch=HYBRID), "lr": 3e-2, "max_steps": 40}
ENDED = [
    Ended("blown-up", "step 1: the held-out loss is nan", {"lr": 1e38, "max_steps": 1}),
    Ended("hybrid", "packed documents attend to each other", LEAKY),
]
DAMAGE = {
    "missing": "1 weights are missing or have another shape, e.g. model.norm.weight",
    "misshapen": "1 weights are missing or have another shape, e.g. model.norm.weight",
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
        settings = config(bf16.what, zero=ZERO[bf16.stage], precision="bf16", adapter=dict(LORA), max_steps=2)
        cases.append(case(f"bf16-{bf16.id}", settings))
    for fault in FAULTS:
        cases.append(case(fault.id, config("base", zero=ZERO[fault.stage]), fault.what, refused=True))
    for same in SAME:
        adapter = next(pair.adapter for pair in PAIRS if pair.id == same.pair)
        cases.append(case(same.id, config("base", adapter=adapter, zero=same.zero, **same.settings)))
    for name in REFUSED:
        cases.append(case(name, config("base", zero=zero_file(name)), refused=True))
    for damage in DAMAGE:
        cases.append(case(damage, config(damage, zero=ZERO[3]), refused=True))
    for ended in ENDED:
        cases.append(case(ended.id, config("base", zero=ZERO[2], **ended.settings), refused=True))
    frozen = config("base", "enlarged", adapter=dict(LORA), zero=ZERO[3])
    cases.append(case("frozen-rows", frozen, refused=True))
    worker.run(folder / "two", cases, 2)
    return runs_by_name(folder)


def case_id(case: Pair | Same | AtStage | Ended) -> str:
    return case.id


def error_of(run: RunFolder) -> str:
    """Return the error that ended the run."""
    error: str = (run.read_json("outcome.json") or {})["error"]
    return error


@pytest.mark.parametrize("pair", PAIRS, ids=case_id)
def test_zero_3_from_slices_is_zero_0_from_the_whole(runs: dict[str, RunFolder], pair: Pair) -> None:
    whole, cut = runs[f"{pair.id}-zero0"], runs[f"{pair.id}-zero3"]
    assert len(losses(whole)) == STEPS
    assert loss_distance(whole, cut) < LOSS_TOLERANCE
    assert weight_distance(whole, cut) < WEIGHT_TOLERANCE


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("pair", PAIRS, ids=case_id)
def test_a_saved_model_evaluates_as_its_run_logged(
    runs: dict[str, RunFolder], pair: Pair, stage: int
) -> None:
    run = runs[f"{pair.id}-zero{stage}"]
    summary = run.summary()
    assert summary is not None
    again = evaluate_on_corpus(f"run:{run.id}", run.config().data, str(run.path.parent))
    assert again.loss == pytest.approx(summary.after.loss, abs=1e-5)


@pytest.mark.parametrize("same", SAME, ids=case_id)
def test_checkpointed_and_offloaded_is_the_same_training(runs: dict[str, RunFolder], same: Same) -> None:
    run, plain = runs[same.id], runs[f"{same.pair}-zero0"]
    assert loss_distance(run, plain) < LOSS_TOLERANCE
    assert weight_distance(run, plain) < WEIGHT_TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_this_machine_cannot_run_are_one_line(runs: dict[str, RunFolder], name: str) -> None:
    error = error_of(runs[name])
    assert REFUSED[name] in error
    assert "\n" not in error


def test_no_false_alarm_in_bf16(runs: dict[str, RunFolder]) -> None:
    for case in BF16:
        assert runs[f"bf16-{case.id}"].summary() is not None, case.id
    for files in ("base", "half"):
        assert loss_distance(runs[f"bf16-{files}-zero2"], runs[f"bf16-{files}-zero3"]) < 0.02


@pytest.mark.parametrize("fault", FAULTS, ids=case_id)
def test_weights_that_are_not_the_files_stop_the_run(runs: dict[str, RunFolder], fault: AtStage) -> None:
    expected = f"1 of 21 loaded weights differ from the base's files, e.g. {DAMAGED} on 2 of 2 ranks"
    assert expected in error_of(runs[fault.id])


@pytest.mark.parametrize("ended", ENDED, ids=case_id)
def test_a_fault_that_training_reveals_ends_the_run_without_a_result(
    runs: dict[str, RunFolder], ended: Ended
) -> None:
    assert ended.error in error_of(runs[ended.id])
    assert not runs[ended.id].model.exists()


def test_ranks_draw_dropout_each_their_own(runs: dict[str, RunFolder]) -> None:
    (newest,) = runs["full-zero0"].checkpoints.glob("step-*")
    first, second = (torch.load(newest / f"rng-0000{rank}.pt", weights_only=True)["cpu"] for rank in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_base_is_one_line(runs: dict[str, RunFolder], fault: str) -> None:
    error = error_of(runs[fault])
    assert DAMAGE[fault] in error
    assert "\n" not in error


def test_an_adapter_that_leaves_added_tokens_out_is_refused(runs: dict[str, RunFolder]) -> None:
    error = error_of(runs["frozen-rows"])
    assert f"adds {ADDED} tokens" in error
    assert "add +adapter.modules_to_save=[embed_tokens,lm_head]" in error


def test_new_rows_start_as_the_mean_and_are_learned(runs: dict[str, RunFolder]) -> None:
    old = load_file_of(runs["enlarged-zero3"], "model.embed_tokens.weight")
    new = weights(runs["enlarged-zero3"])["model.embed_tokens.weight"]
    assert new.shape[0] == VOCAB_SIZE + ADDED == old.shape[0] + ADDED
    rows = new[VOCAB_SIZE:] - old.mean(0)
    assert 0 < rows.abs().max() < 0.1, "six steps from the mean"
    assert len(rows.unique(dim=0)) > 1
    assert (
        weights(runs["enlarged-lora-zero3"])["base_model.model.lm_head.weight"].shape[0] == VOCAB_SIZE + ADDED
    )


def load_file_of(run: RunFolder, name: str) -> torch.Tensor:
    path = run.config().model.path
    assert path is not None
    folder = base_model.resolve(path, run.path.parent).folder
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}[name]
