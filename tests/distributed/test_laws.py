"""Equal global batches give equal losses and weights.

This must hold for every ZeRO stage, number of ranks and micro-batch size, and after interruptions.
The ranks are real processes. laws.py defines the trainings and their comparison.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune.config import train as configuration
from finetune.config.train import ClusterConfig
from finetune.runs.folder import RunFolder
from finetune.training.checkpoint_weights import export
from tests.distributed import reference, worker
from tests.distributed.faults import POISONED
from tests.distributed.laws import (
    LONG,
    LOSS_TOLERANCE,
    MATRIX,
    STEPS,
    WEIGHT_TOLERANCE,
    Training,
    assert_same,
    checksums,
    law_config,
    loss_distance,
    losses,
    make_run,
    runs_by_name,
    spool,
    steps,
    weight_distance,
    weights,
)
from tests.distributed.worker import Case, Launched

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1500)]  # fixtures train for minutes

# On a CPU, bitsandbytes' products with 4-bit weights round more coarsely, and Adam's first steps
# depend only on a gradient's sign. Weights differed by 8e-5.
QLORA_WEIGHT_TOLERANCE = 5e-4
FAULTY = ["mean_of_means", "positions_not_reset"]


def training_id(training: Training) -> str:
    return training.id


@pytest.fixture(scope="module")
def runs(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Train on two ranks with micro-batches of 2, and on one with micro-batches of 4."""
    folder = tmp_path_factory.mktemp("laws")
    two = [make_run(folder, training.id, training.config(law_corpus)) for training in MATRIX]
    two.append(make_run(folder, "micro1", law_config(law_corpus, micro_batch_size=1)))
    two += [make_run(folder, fault, law_config(law_corpus), fault=fault) for fault in FAULTY]
    one_rank: dict[str, Any] = {"cluster": ClusterConfig(ranks_per_node=1), "micro_batch_size": 4}
    one = []
    for training in sorted(MATRIX, key=lambda training: training.stage):
        config = training.config(law_corpus, **one_rank)
        one.append(make_run(folder, f"{training.id}-one-rank", config))
    worker.run(folder / "two", two, 2)
    halves = {folder / "one": one[::2], folder / "other": one[1::2]}  # they train in parallel
    for launched in [worker.start(path, cases, 1) for path, cases in halves.items()]:
        launched.join()
    return runs_by_name(folder)


def test_the_trainings_cover_splits_unequal_ranks_and_clipping(
    runs: dict[str, RunFolder], law_corpus: Path
) -> None:
    plan = np.load(next(runs["full-zero2"].plan.glob("train-*-epoch-000.npy")))
    assert list(runs["full-zero2"].plan.glob("train-*-epoch-001.npy")), "the run ended within its first epoch"
    assert plan["supervised"].min() == 2
    assert plan["supervised"].max() == 127
    targets = np.bincount(plan["pack"], weights=plan["supervised"])
    num_steps = len(targets) // 8
    by_rank = targets[: num_steps * 8].reshape(num_steps, 4, 2).sum(1)  # [steps, ranks]
    assert (by_rank[:, 0] != by_rank[:, 1]).mean() > 0.5, "ranks have equal numbers of targets"
    grad_norms = [values["train/grad_norm"] for values in steps(runs["full-zero2"])]
    assert max(grad_norms) > 0.2, "no gradient was clipped"
    assert losses(runs["full-zero2"])[-1] < losses(runs["full-zero2"])[0] - 0.2, "the loss did not fall"


@pytest.mark.parametrize("ranks", ["", "-one-rank"])
@pytest.mark.parametrize("training", MATRIX, ids=training_id)
def test_zero_stages_and_numbers_of_ranks_give_equal_results(
    runs: dict[str, RunFolder], training: Training, ranks: str
) -> None:
    tolerance = QLORA_WEIGHT_TOLERANCE if training.method == "qlora" else WEIGHT_TOLERANCE
    assert_same(runs[f"{training.id}{ranks}"], runs[f"{training.method}-zero2"], tolerance=tolerance)


def test_micro_batches_of_2_equal_2_of_1(runs: dict[str, RunFolder]) -> None:
    assert_same(runs["micro1"], runs["full-zero2"])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_packed_training_equals_plain_torch_without_packing(runs: dict[str, RunFolder], method: str) -> None:
    run = runs[f"{method}-zero2"]
    expected_losses, expected_weights = reference.train(run.config(), STEPS)
    assert (losses(run) - torch.tensor(expected_losses)).abs().max() < LOSS_TOLERANCE
    names = {name.replace(".default", ""): weight for name, weight in expected_weights.items()}
    saved = weights(run)
    assert names.keys() == saved.keys()
    assert max(float((saved[name] - names[name]).abs().max()) for name in saved) < WEIGHT_TOLERANCE


@pytest.mark.parametrize("fault", FAULTY)
def test_a_planted_fault_breaks_the_laws(runs: dict[str, RunFolder], fault: str) -> None:
    assert loss_distance(runs[fault], runs["full-zero2"]) > 20 * LOSS_TOLERANCE
    assert weight_distance(runs[fault], runs["full-zero2"]) > 20 * WEIGHT_TOLERANCE


@pytest.mark.parametrize("ranks", ["", "-one-rank"])
@pytest.mark.parametrize("training", [t for t in MATRIX if t.method != "qlora"], ids=training_id)
def test_the_logged_held_out_loss_is_that_of_the_saved_model(
    runs: dict[str, RunFolder], law_corpus: Path, training: Training, ranks: str
) -> None:
    """The test computes the loss from the saved files, document by document, without packing.

    QLoRA is left out: its adapter is trained on 4-bit weights, but merged into unquantized ones.
    """
    from data_prep.shards import Corpus
    from finetune.models import load as pretrained
    from finetune.runs import base_model as base

    run = runs[f"{training.id}{ranks}"]
    summary = run.summary()
    assert summary is not None
    trained = pretrained.load_for_evaluation(base.resolve(f"run:{run.id}", run.path.parent))
    loss_sum = 0.0
    targets = 0
    for document in Corpus(law_corpus).split("validation")["input_ids"]:
        for start in range(0, len(document) - 1, 127):
            ids = torch.tensor([document[start : start + 128]])
            with torch.no_grad():
                out = trained(input_ids=ids).logits[0, :-1]
            loss_sum += float(torch.nn.functional.cross_entropy(out, ids[0, 1:], reduction="sum"))
            targets += ids.shape[1] - 1
    assert summary.after.tokens == targets
    assert summary.after.loss == pytest.approx(loss_sum / targets, abs=1e-5)


@pytest.mark.parametrize("ranks", ["", "-one-rank"])
@pytest.mark.parametrize("training", MATRIX, ids=training_id)
def test_an_exported_checkpoint_equals_the_result_of_its_step_to_the_bit(
    runs: dict[str, RunFolder], training: Training, ranks: str
) -> None:
    run = runs[f"{training.id}{ranks}"]
    folder = export(run, STEPS)
    result = run.adapter if run.adapter.is_dir() else run.model
    assert {path.name for path in folder.iterdir()} == {path.name for path in result.iterdir()}
    for name in ("config.json", "adapter_config.json", "tokenizer.json"):
        if (result / name).is_file():
            assert read_sorted(folder / name) == read_sorted(result / name)
    exported = load_file(next(folder.glob("*.safetensors")))
    saved = weights(run)
    assert exported.keys() == saved.keys()
    assert all(torch.equal(exported[key], saved[key]) for key in saved)


def read_sorted(file: Path) -> dict[str, Any]:
    """Return a JSON file's content with its lists sorted, because PEFT writes sets in any order."""
    body: dict[str, Any] = json.loads(file.read_text())
    lists = {key: sorted(value, key=str) for key, value in body.items() if isinstance(value, list)}
    return {**body, **lists}


KILLED = {"full": Training("full", 2), "lora": Training("lora", 3)}


@pytest.fixture(scope="module")
def resumed(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Return runs that were killed in their second epoch and resumed on 1, 2 and 4 ranks.

    New processes resume them from their folders, as when a user resumes a run.
    """
    folder = tmp_path_factory.mktemp("resumed")
    uninterrupted = [
        make_run(folder, f"{name}-uninterrupted", training.config(law_corpus, max_steps=LONG))
        for name, training in KILLED.items()
    ]
    worker.run(folder / "uninterrupted", uninterrupted, 2)
    to_resume: dict[int, list[Case]] = {1: [], 2: [], 4: []}
    for name, training in KILLED.items():
        config = training.config(law_corpus, max_steps=LONG)
        killed = make_run(folder, name, config, fault="killed_at_step")
        worker.run(folder / f"kill-{name}", [killed], 2, expected=-9)
        for ranks, cases in to_resume.items():
            copy = folder / "runs" / f"{name}-{ranks}"
            shutil.copytree(killed.path, copy)
            cluster = ClusterConfig(ranks_per_node=ranks)
            configuration.save(dataclasses.replace(config, cluster=cluster), copy / "config.yaml")
            cases.append(Case(str(copy)))
    copy = folder / "runs" / "schedule_starts_over"
    shutil.copytree(folder / "runs" / "full", copy)
    to_resume[2].append(Case(str(copy), fault="schedule_starts_over"))
    config = Training("lora", 3).config(law_corpus)
    killed = make_run(folder, "in-checkpoint", config, fault="killed_inside_checkpoint")
    worker.run(folder / "kill-in-checkpoint", [killed], 2, expected=-9)
    to_resume[2].append(Case(killed.path))
    for ranks, cases in to_resume.items():
        worker.run(folder / f"resume-{ranks}", cases, ranks)
    return runs_by_name(folder)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", KILLED)
def test_a_run_killed_and_resumed_equals_an_uninterrupted_one(
    resumed: dict[str, RunFolder], name: str, ranks: int
) -> None:
    run = resumed[f"{name}-{ranks}"]
    records_of_killed = spool(resumed[name])
    last_before_kill = max(trained_steps(records_of_killed))
    first_after_resume = min(trained_steps(spool(run)[len(records_of_killed) :]))
    num_packs = int(np.load(next(run.plan.glob("train-*-epoch-000.npy")))["pack"][-1]) + 1
    assert num_packs < 8 * (first_after_resume - 1), "it was not resumed in its second epoch"
    assert LONG - first_after_resume >= 20
    assert first_after_resume <= last_before_kill + 1
    assert_same(run, resumed[f"{name}-uninterrupted"], LONG)


def trained_steps(records: list[dict[str, Any]]) -> list[int]:
    return [record["step"] for record in records if "train/loss" in record["values"]]


def test_a_run_killed_inside_a_checkpoint_and_resumed_equals_an_uninterrupted_one(
    runs: dict[str, RunFolder], resumed: dict[str, RunFolder]
) -> None:
    assert_same(resumed["in-checkpoint"], runs["lora-zero3"])


def test_a_schedule_that_starts_over_breaks_the_law_of_resuming(resumed: dict[str, RunFolder]) -> None:
    distance = weight_distance(resumed["schedule_starts_over"], resumed["full-uninterrupted"])
    assert distance > 20 * WEIGHT_TOLERANCE


@pytest.fixture(scope="module")
def hung(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Launched]:
    """Start a run in which one rank hangs. Return the run and its ranks, which end by themselves."""
    folder = tmp_path_factory.mktemp("hung")
    case = make_run(folder, "hung", law_config(law_corpus, hang_timeout_min=0.2), fault="rank_1_hangs")
    return case.run, worker.start(folder / "all", [case], 2)


@pytest.fixture(scope="module")
def rewound(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory, hung: object) -> dict[str, RunFolder]:
    """Train runs that go back to a checkpoint at a bad batch, and one that never uses this batch.

    The bad batch is number POISONED: its loss is NaN or a spike.
    """
    folder = tmp_path_factory.mktemp("rewound")
    settings: dict[str, Any] = {"on_bad_step": "rewind", "spike_stds": 4.0}
    config = law_config(law_corpus, **settings)
    poisoned = [make_run(folder, fault, config, fault=fault) for fault in ("nan", "spike")]
    clean = make_run(folder, "clean", config)
    clean.run.write_json("skipped.json", {"batches": [POISONED]})
    adapter = Training("lora", 3).config(law_corpus, **settings)
    lora = make_run(folder, "lora", adapter, fault="nan")
    worker.run(folder / "all", [*poisoned, clean, lora], 2)
    return runs_by_name(folder)


@pytest.mark.parametrize("fault", ["nan", "spike"])
def test_a_rewound_run_equals_one_that_skips_the_batch(rewound: dict[str, RunFolder], fault: str) -> None:
    assert_same(rewound[fault], rewound["clean"])
    assert rewound[fault].summary().skipped_batches == [POISONED]  # type: ignore[index]
    assert any(record["values"].get("guard/rewinds") == 1 for record in spool(rewound[fault]))


def test_an_adapter_under_zero_3_is_rewound_too(
    rewound: dict[str, RunFolder], runs: dict[str, RunFolder]
) -> None:
    assert losses(rewound["lora"]).isfinite().all()
    assert checksums(rewound["lora"]) == checksums(rewound["clean"])
    expected = checksums(runs["lora-zero3"])
    assert checksums(rewound["lora"])[:POISONED] == expected[:POISONED]
    after = checksums(rewound["lora"])[POISONED:-1]
    assert after == expected[POISONED + 1 :], "more than one batch was skipped"


def test_a_hung_rank_ends_the_job_after_a_stack_dump_of_every_rank(hung: tuple[RunFolder, Launched]) -> None:
    run, ranks = hung
    ranks.join(expected=1)
    assert "faults.py" in run.stacks(1).read_text()
    assert "in hang\n" in run.stacks(1).read_text()
    assert "train_step" in run.stacks(0).read_text()
    assert "no progress for 12 s" in str(run.failure())
