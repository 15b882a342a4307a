"""Laws of training, on real processes: the same global batches give the same losses and weights, however the work is cut.

Every case trains 24 steps over more than one epoch on documents of 3 to 512 tokens in packs of 128 (so some are split), with
accumulation, warm-up and cosine, weight decay, clipping that bites, and unequal numbers of targets a rank; fp32, no dropout.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune.config import train as configuration
from finetune.config.train import ClusterConfig, DataConfig, ModelConfig, TrainConfig
from finetune.runs.folder import RunFolder
from finetune.training.checkpoint_weights import export
from tests.distributed import reference, worker
from tests.models import LLAMA, LORA

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1500)]  # fixtures train for minutes

STEPS = 24
# fp32 on other partitions sums in another order. Measured on x86-64: losses within 2e-8, weights within 9e-7.
LOSS_TOLERANCE = 2e-6
WEIGHT_TOLERANCE = 2e-5
# bitsandbytes' products with 4-bit weights on a CPU round more coarsely, and Adam makes a step of every sign: measured 8e-5
QLORA_WEIGHT_TOLERANCE = 5e-4

# threshold 0: by default ZeRO-3 keeps parameters this small whole, and nothing would be tested
ZERO = {stage: {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})} for stage in range(4)}


def law_config(corpus: Path, quantized: bool = False, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": DataConfig(corpus=str(corpus), sequence_length=128), "model": ModelConfig(from_scratch=LLAMA),
        "zero": ZERO[2], "cluster": ClusterConfig(ranks_per_node=2),
        "global_batch_size": 8, "micro_batch_size": 2, "max_steps": STEPS, "lr": 3e-3, "warmup_ratio": 0.2,
        "weight_decay": 0.1, "max_grad_norm": 0.2, "seed": 3, "checkpoint_every": 5, "check_first_loss": False,
    }  # fmt: skip
    if changes.get("adapter"):  # an adapter needs a base on disk; this one lies beside the corpus
        settings["model"] = ModelConfig(path=str(corpus.parent / "base"))
    if quantized:
        settings["model"] = ModelConfig(path=str(corpus.parent / "wide"), quantization="nf4")
    return TrainConfig(**{**settings, **changes})


METHODS: dict[str, dict[str, Any]] = {
    "full": {}, "lora": {"adapter": LORA}, "dora": {"adapter": {**LORA, "use_dora": True}}, "qlora": {"adapter": LORA},
}  # fmt: skip
# bitsandbytes' packed numbers cannot be partitioned: QLoRA ends at stage 2
MATRIX = [(kind, stage) for kind in METHODS for stage in range(4) if (kind, stage) != ("qlora", 3)]
CASES: dict[str, dict[str, Any]] = {
    **{f"{kind}-zero{stage}": {"zero": ZERO[stage], **METHODS[kind]} for kind, stage in MATRIX},
    "micro1": {"micro_batch_size": 1},
}
FAULTY = {"mean_of_means": {}, "positions_not_reset": {}}


def make_run(folder: Path, name: str, config: TrainConfig) -> dict[str, str]:
    run = RunFolder(folder / "runs" / name)
    run.path.mkdir(parents=True)
    configuration.save(config, run.config_file)
    return {"run": str(run.path)}


@pytest.fixture(scope="module")
def runs(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """All cases, trained: by two ranks in micro-batches of 2, and by one rank in micro-batches of 4."""
    folder = tmp_path_factory.mktemp("laws")
    two = [make_run(folder, name, law_config(law_corpus, name.startswith("qlora"), **changes)) for name, changes in CASES.items()]
    two += [{**make_run(folder, name, law_config(law_corpus)), "fault": name} for name in FAULTY]
    alone: dict[str, Any] = {"cluster": ClusterConfig(ranks_per_node=1), "micro_batch_size": 4}
    one = []
    for kind, stage in sorted(MATRIX, key=lambda case: case[1]):
        config = law_config(law_corpus, kind == "qlora", zero=ZERO[stage], **METHODS[kind], **alone)
        one.append(make_run(folder, f"{kind}-zero{stage}-alone", config))
    worker.join(folder / "two", worker.start(folder / "two", two, 2))
    halves = {folder / "one": one[::2], folder / "other": one[1::2]}  # a core each
    for path, ranks in [(path, worker.start(path, cases, 1)) for path, cases in halves.items()]:
        worker.join(path, ranks)
    return {path.name: RunFolder(path) for path in (folder / "runs").iterdir()}


def losses(run: RunFolder) -> torch.Tensor:
    return torch.tensor([value["train/loss"] for value in steps(run)], dtype=torch.float64)


def checksums(run: RunFolder) -> list[int]:
    return [value["data/checksum"] for value in steps(run)]


def steps(run: RunFolder) -> list[dict[str, Any]]:
    """Metrics by step; a resumed run says some steps twice, and its last word counts."""
    by_step = {record["step"]: record["values"] for record in spool(run) if "train/loss" in record["values"]}
    return [by_step[step] for step in sorted(by_step)]


def spool(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    folder = run.model if run.model.is_dir() else run.adapter
    return load_file(next(folder.glob("*.safetensors")))


def distance(run: RunFolder, other: RunFolder) -> tuple[float, float]:
    """Largest difference of a step's loss, and of a weight."""
    a, b = weights(run), weights(other)
    assert a.keys() == b.keys()
    return float((losses(run) - losses(other)).abs().max()), max(float((a[k] - b[k]).abs().max()) for k in a)


def assert_same(run: RunFolder, other: RunFolder, num_steps: int = STEPS, tolerance: float = WEIGHT_TOLERANCE) -> None:
    assert len(steps(run)) == len(steps(other)) == num_steps
    assert checksums(run) == checksums(other), "other documents went into a step"
    loss, weight = distance(run, other)
    assert loss < LOSS_TOLERANCE
    assert weight < tolerance


def test_the_cases_are_hard_enough(runs: dict[str, RunFolder], law_corpus: Path) -> None:
    plan = np.load(next(runs["full-zero2"].plan.glob("train-*-epoch-000.npy")))
    assert list(runs["full-zero2"].plan.glob("train-*-epoch-001.npy")), "the run ended within its first epoch"
    assert plan["supervised"].min() == 2
    assert plan["supervised"].max() == 127
    targets = np.bincount(plan["pack"], weights=plan["supervised"])
    by_rank = targets[: len(targets) // 8 * 8].reshape(-1, 4, 2).sum(1)  # [steps, ranks]: packs are dealt in turn
    assert (by_rank[:, 0] != by_rank[:, 1]).mean() > 0.5, "ranks have equal numbers of targets"
    assert any(values["train/grad_norm"] > 0.2 for values in steps(runs["full-zero2"])), "clipping never bit"
    assert losses(runs["full-zero2"])[-1] < losses(runs["full-zero2"])[0] - 0.2, "nothing was learned"


@pytest.mark.parametrize("ranks", ["", "-alone"])
@pytest.mark.parametrize(("kind", "stage"), MATRIX)
def test_zero_stages_and_ranks_are_the_same_training(runs: dict[str, RunFolder], kind: str, stage: int, ranks: str) -> None:
    tolerance = QLORA_WEIGHT_TOLERANCE if kind == "qlora" else WEIGHT_TOLERANCE
    assert_same(runs[f"{kind}-zero{stage}{ranks}"], runs[f"{kind}-zero2"], tolerance=tolerance)


def test_micro_batches_of_2_are_2_of_1(runs: dict[str, RunFolder]) -> None:
    assert_same(runs["micro1"], runs["full-zero2"])


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_packed_is_unpacked_is_plain_torch(runs: dict[str, RunFolder], law_corpus: Path, kind: str) -> None:
    run = runs[f"{kind}-zero2"]
    expected_losses, expected_weights = reference.train(run.config(), STEPS)
    assert (losses(run) - torch.tensor(expected_losses)).abs().max() < LOSS_TOLERANCE
    names = {name.replace(".default", ""): weight for name, weight in expected_weights.items()}
    saved = weights(run)
    assert names.keys() == saved.keys()
    assert max(float((saved[name] - names[name]).abs().max()) for name in saved) < WEIGHT_TOLERANCE


@pytest.mark.parametrize("fault", FAULTY)
def test_the_laws_notice_a_planted_fault(runs: dict[str, RunFolder], fault: str) -> None:
    loss, weight = distance(runs[fault], runs["full-zero2"])
    assert loss > 20 * LOSS_TOLERANCE
    assert weight > 20 * WEIGHT_TOLERANCE


@pytest.mark.parametrize("ranks", ["", "-alone"])
@pytest.mark.parametrize(("kind", "stage"), [(kind, stage) for kind, stage in MATRIX if kind != "qlora"])
def test_validation_loss_is_that_of_the_saved_model(
    runs: dict[str, RunFolder], law_corpus: Path, kind: str, stage: int, ranks: str
) -> None:
    """Recomputed from the files, document by document, without packing. (QLoRA's adapter is merged into the base's own numbers,
    which are not those of 4 bits.)"""
    from data_prep.shards import Corpus
    from finetune.models import load as pretrained
    from finetune.runs import base_model as base

    run = runs[f"{kind}-zero{stage}{ranks}"]
    summary = run.summary()
    assert summary is not None
    trained = pretrained.load_for_evaluation(base.resolve(f"run:{run.id}", run.path.parent))
    loss_sum, targets = 0.0, 0
    for document in Corpus(law_corpus).split("validation")["input_ids"]:
        for start in range(0, len(document) - 1, 127):
            ids = torch.tensor([document[start : start + 128]])
            with torch.no_grad():
                out = trained(input_ids=ids).logits[0, :-1]
            loss_sum += float(torch.nn.functional.cross_entropy(out, ids[0, 1:], reduction="sum"))
            targets += ids.shape[1] - 1
    assert summary.after.tokens == targets
    assert summary.after.loss == pytest.approx(loss_sum / targets, abs=1e-5)


@pytest.mark.parametrize("ranks", ["", "-alone"])
@pytest.mark.parametrize(("kind", "stage"), MATRIX)
def test_a_checkpoint_as_a_folder_is_the_result_of_its_step_to_the_bit(
    runs: dict[str, RunFolder], kind: str, stage: int, ranks: str
) -> None:
    run = runs[f"{kind}-zero{stage}{ranks}"]
    folder = export(run, STEPS)
    result = run.adapter if run.adapter.is_dir() else run.model
    assert {path.name for path in folder.iterdir()} == {path.name for path in result.iterdir()}
    for name in ("config.json", "adapter_config.json", "tokenizer.json"):
        assert not (result / name).is_file() or stated(folder / name) == stated(result / name)
    exported, saved = load_file(next(folder.glob("*.safetensors"))), weights(run)
    assert exported.keys() == saved.keys()
    assert all(torch.equal(exported[key], saved[key]) for key in saved)


def stated(file: Path) -> dict[str, Any]:
    """A JSON file's content; PEFT writes sets in any order."""
    body: dict[str, Any] = json.loads(file.read_text())
    return {key: sorted(value, key=str) if isinstance(value, list) else value for key, value in body.items()}


LONG = 42
KILLED: dict[str, dict[str, Any]] = {"full": {}, "lora": {"adapter": LORA, "zero": ZERO[3]}}


@pytest.fixture(scope="module")
def resumed(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Runs killed in their second epoch, then gone on with by 1, 2 and 4 ranks, as a user would: new processes on the folder."""
    folder = tmp_path_factory.mktemp("resumed")
    whole = [
        make_run(folder, f"{kind}-whole", law_config(law_corpus, max_steps=LONG, **changes)) for kind, changes in KILLED.items()
    ]
    worker.join(folder / "whole", worker.start(folder / "whole", whole, 2))
    later: dict[int, list[dict[str, Any]]] = {1: [], 2: [], 4: []}
    for kind, changes in KILLED.items():
        case = make_run(folder, kind, law_config(law_corpus, max_steps=LONG, **changes))
        worker.join(folder / f"kill-{kind}", worker.start(folder / f"kill-{kind}", [{**case, "fault": "killed_at_step"}], 2), -9)
        for ranks, cases in later.items():
            again = folder / "runs" / f"{kind}-{ranks}"
            shutil.copytree(case["run"], again)
            config = law_config(law_corpus, max_steps=LONG, cluster=ClusterConfig(ranks_per_node=ranks), **changes)
            configuration.save(config, again / "config.yaml")
            cases.append({"run": str(again)})
    again = folder / "runs" / "schedule_starts_over"
    shutil.copytree(folder / "runs" / "full", again)
    later[2].append({"run": str(again), "fault": "schedule_starts_over"})
    case = make_run(folder, "in-checkpoint", law_config(law_corpus, adapter=LORA, zero=ZERO[3]))
    broken = [{**case, "fault": "killed_inside_checkpoint"}]
    worker.join(folder / "kill-in-checkpoint", worker.start(folder / "kill-in-checkpoint", broken, 2), expected=-9)
    later[2].append(case)
    for ranks, cases in later.items():
        worker.join(folder / f"resume-{ranks}", worker.start(folder / f"resume-{ranks}", cases, ranks))
    return {path.name: RunFolder(path) for path in (folder / "runs").iterdir()}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", KILLED)
def test_killed_and_resumed_is_never_interrupted(resumed: dict[str, RunFolder], kind: str, ranks: int) -> None:
    run, whole = resumed[f"{kind}-{ranks}"], resumed[f"{kind}-whole"]
    before = max(record["step"] for record in spool(resumed[kind]) if "train/loss" in record["values"])
    first = min(record["step"] for record in spool(run)[len(spool(resumed[kind])) :] if "train/loss" in record["values"])
    packs = int(np.load(next(run.plan.glob("train-*-epoch-000.npy")))["pack"][-1]) + 1
    assert packs < 8 * (first - 1), "it was not resumed in its second epoch"
    assert LONG - first >= 20
    assert first <= before + 1
    assert_same(run, whole, LONG)


def test_killed_inside_a_checkpoint_and_resumed_is_never_interrupted(
    runs: dict[str, RunFolder], resumed: dict[str, RunFolder]
) -> None:
    assert_same(resumed["in-checkpoint"], runs["lora-zero3"])


def test_the_resume_law_notices_a_schedule_that_starts_over(resumed: dict[str, RunFolder]) -> None:
    a, b = weights(resumed["schedule_starts_over"]), weights(resumed["full-whole"])
    assert max(float((a[k] - b[k]).abs().max()) for k in a) > 20 * WEIGHT_TOLERANCE


@pytest.fixture(scope="module")
def hung(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Callable[[], None]]:
    """A run of which one rank hangs, and the way to wait for its end; it waits while other runs train."""
    folder = tmp_path_factory.mktemp("hung")
    case = make_run(folder, "hung", law_config(law_corpus, hang_timeout_min=0.2))
    ranks = worker.start(folder / "all", [{**case, "fault": "rank_1_hangs"}], 2)
    return RunFolder(Path(case["run"])), lambda: worker.join(folder / "all", ranks, expected=1)


@pytest.fixture(scope="module")
def rewound(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory, hung: object) -> dict[str, RunFolder]:
    """Runs that met a poisoned batch and went back, and one that never saw that batch."""
    folder = tmp_path_factory.mktemp("rewound")
    settings: dict[str, Any] = {"on_bad_step": "rewind", "spike_stds": 4.0}
    cases = [{**make_run(folder, name, law_config(law_corpus, **settings)), "fault": name} for name in ("no_number", "spike")]
    clean = make_run(folder, "clean", law_config(law_corpus, **settings))
    RunFolder(Path(clean["run"])).write_json("skipped.json", {"batches": [worker.POISONED]})
    lora = make_run(folder, "lora", law_config(law_corpus, adapter=LORA, zero=ZERO[3], **settings))
    worker.join(folder / "all", worker.start(folder / "all", [*cases, clean, {**lora, "fault": "no_number"}], 2))
    return {path.name: RunFolder(path) for path in (folder / "runs").iterdir()}


@pytest.mark.parametrize("fault", ["no_number", "spike"])
def test_rewound_is_as_if_the_batch_had_never_been(rewound: dict[str, RunFolder], fault: str) -> None:
    assert_same(rewound[fault], rewound["clean"])
    assert rewound[fault].summary().skipped_batches == [worker.POISONED]  # type: ignore[index]
    assert any(record["values"].get("guard/rewinds") == 1 for record in spool(rewound[fault]))


def test_an_adapter_under_zero_3_rewinds_too(rewound: dict[str, RunFolder], runs: dict[str, RunFolder]) -> None:
    assert losses(rewound["lora"]).isfinite().all()
    assert checksums(rewound["lora"]) == checksums(rewound["clean"])
    assert checksums(rewound["lora"])[:18] == checksums(runs["lora-zero3"])[:18]
    assert checksums(rewound["lora"])[18:-1] == checksums(runs["lora-zero3"])[19:], "more than one batch was left out"


def test_a_hung_rank_ends_the_job_with_a_stack_of_every_rank(hung: tuple[RunFolder, Callable[[], None]]) -> None:
    run, ended = hung
    ended()
    assert "time.sleep" in run.stacks(1).read_text() or "in broken" in run.stacks(1).read_text()
    assert "train_step" in run.stacks(0).read_text()
    assert "no progress for 12 s" in str(run.failure())
