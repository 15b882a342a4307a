"""Laws of training, on real processes: the same global batches give the same losses and weights, however the
work is cut.

The trainings, and how two of them are compared: laws.py.
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

# bitsandbytes' products with 4-bit weights on a CPU round more coarsely, and Adam makes a step of every sign:
# measured 8e-5
QLORA_WEIGHT_TOLERANCE = 5e-4
FAULTY = ["mean_of_means", "positions_not_reset"]


def training_id(training: Training) -> str:
    return training.id


@pytest.fixture(scope="module")
def runs(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """All cases, trained: by two ranks in micro-batches of 2, and by one rank in micro-batches of 4."""
    folder = tmp_path_factory.mktemp("laws")
    two = [make_run(folder, training.id, training.config(law_corpus)) for training in MATRIX]
    two.append(make_run(folder, "micro1", law_config(law_corpus, micro_batch_size=1)))
    two += [make_run(folder, fault, law_config(law_corpus), fault=fault) for fault in FAULTY]
    alone: dict[str, Any] = {"cluster": ClusterConfig(ranks_per_node=1), "micro_batch_size": 4}
    one = []
    for training in sorted(MATRIX, key=lambda training: training.stage):
        one.append(make_run(folder, f"{training.id}-alone", training.config(law_corpus, **alone)))
    worker.run(folder / "two", two, 2)
    halves = {folder / "one": one[::2], folder / "other": one[1::2]}  # a core each
    for launched in [worker.start(path, cases, 1) for path, cases in halves.items()]:
        launched.join()
    return runs_by_name(folder)


def test_the_cases_are_hard_enough(runs: dict[str, RunFolder], law_corpus: Path) -> None:
    plan = np.load(next(runs["full-zero2"].plan.glob("train-*-epoch-000.npy")))
    assert list(runs["full-zero2"].plan.glob("train-*-epoch-001.npy")), "the run ended within its first epoch"
    assert plan["supervised"].min() == 2
    assert plan["supervised"].max() == 127
    targets = np.bincount(plan["pack"], weights=plan["supervised"])
    by_rank = (
        targets[: len(targets) // 8 * 8].reshape(-1, 4, 2).sum(1)
    )  # [steps, ranks]: packs are dealt in turn
    assert (by_rank[:, 0] != by_rank[:, 1]).mean() > 0.5, "ranks have equal numbers of targets"
    assert any(values["train/grad_norm"] > 0.2 for values in steps(runs["full-zero2"])), "clipping never bit"
    assert losses(runs["full-zero2"])[-1] < losses(runs["full-zero2"])[0] - 0.2, "nothing was learned"


@pytest.mark.parametrize("ranks", ["", "-alone"])
@pytest.mark.parametrize("training", MATRIX, ids=training_id)
def test_zero_stages_and_ranks_are_the_same_training(
    runs: dict[str, RunFolder], training: Training, ranks: str
) -> None:
    tolerance = QLORA_WEIGHT_TOLERANCE if training.method == "qlora" else WEIGHT_TOLERANCE
    assert_same(runs[f"{training.id}{ranks}"], runs[f"{training.method}-zero2"], tolerance=tolerance)


def test_micro_batches_of_2_are_2_of_1(runs: dict[str, RunFolder]) -> None:
    assert_same(runs["micro1"], runs["full-zero2"])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_packed_is_unpacked_is_plain_torch(runs: dict[str, RunFolder], method: str) -> None:
    run = runs[f"{method}-zero2"]
    expected_losses, expected_weights = reference.train(run.config(), STEPS)
    assert (losses(run) - torch.tensor(expected_losses)).abs().max() < LOSS_TOLERANCE
    names = {name.replace(".default", ""): weight for name, weight in expected_weights.items()}
    saved = weights(run)
    assert names.keys() == saved.keys()
    assert max(float((saved[name] - names[name]).abs().max()) for name in saved) < WEIGHT_TOLERANCE


@pytest.mark.parametrize("fault", FAULTY)
def test_the_laws_notice_a_planted_fault(runs: dict[str, RunFolder], fault: str) -> None:
    assert loss_distance(runs[fault], runs["full-zero2"]) > 20 * LOSS_TOLERANCE
    assert weight_distance(runs[fault], runs["full-zero2"]) > 20 * WEIGHT_TOLERANCE


@pytest.mark.parametrize("ranks", ["", "-alone"])
@pytest.mark.parametrize("training", [t for t in MATRIX if t.method != "qlora"], ids=training_id)
def test_validation_loss_is_that_of_the_saved_model(
    runs: dict[str, RunFolder], law_corpus: Path, training: Training, ranks: str
) -> None:
    """Recomputed from the files, document by document, without packing. (QLoRA's adapter is merged into the
    base's own numbers, which are not those of 4 bits.)"""
    from data_prep.shards import Corpus
    from finetune.models import load as pretrained
    from finetune.runs import base_model as base

    run = runs[f"{training.id}{ranks}"]
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
@pytest.mark.parametrize("training", MATRIX, ids=training_id)
def test_a_checkpoint_as_a_folder_is_the_result_of_its_step_to_the_bit(
    runs: dict[str, RunFolder], training: Training, ranks: str
) -> None:
    run = runs[f"{training.id}{ranks}"]
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


KILLED = {"full": Training("full", 2), "lora": Training("lora", 3)}


@pytest.fixture(scope="module")
def resumed(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Runs killed in their second epoch, then gone on with by 1, 2 and 4 ranks, as a user would: new
    processes on the folder."""
    folder = tmp_path_factory.mktemp("resumed")
    whole = [
        make_run(folder, f"{name}-whole", training.config(law_corpus, max_steps=LONG))
        for name, training in KILLED.items()
    ]
    worker.run(folder / "whole", whole, 2)
    later: dict[int, list[Case]] = {1: [], 2: [], 4: []}
    for name, training in KILLED.items():
        config = training.config(law_corpus, max_steps=LONG)
        killed = make_run(folder, name, config, fault="killed_at_step")
        worker.run(folder / f"kill-{name}", [killed], 2, expected=-9)
        for ranks, cases in later.items():
            again = folder / "runs" / f"{name}-{ranks}"
            shutil.copytree(killed.path, again)
            cluster = ClusterConfig(ranks_per_node=ranks)
            configuration.save(dataclasses.replace(config, cluster=cluster), again / "config.yaml")
            cases.append(Case(str(again)))
    again = folder / "runs" / "schedule_starts_over"
    shutil.copytree(folder / "runs" / "full", again)
    later[2].append(Case(str(again), fault="schedule_starts_over"))
    config = Training("lora", 3).config(law_corpus)
    killed = make_run(folder, "in-checkpoint", config, fault="killed_inside_checkpoint")
    worker.run(folder / "kill-in-checkpoint", [killed], 2, expected=-9)
    later[2].append(Case(killed.path))
    for ranks, cases in later.items():
        worker.run(folder / f"resume-{ranks}", cases, ranks)
    return runs_by_name(folder)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", KILLED)
def test_killed_and_resumed_is_never_interrupted(
    resumed: dict[str, RunFolder], name: str, ranks: int
) -> None:
    run, whole = resumed[f"{name}-{ranks}"], resumed[f"{name}-whole"]
    before = max(record["step"] for record in spool(resumed[name]) if "train/loss" in record["values"])
    first = min(
        record["step"]
        for record in spool(run)[len(spool(resumed[name])) :]
        if "train/loss" in record["values"]
    )
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
    assert weight_distance(resumed["schedule_starts_over"], resumed["full-whole"]) > 20 * WEIGHT_TOLERANCE


@pytest.fixture(scope="module")
def hung(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Launched]:
    """A run of which one rank hangs, and its ranks; it waits while other runs train."""
    folder = tmp_path_factory.mktemp("hung")
    case = make_run(folder, "hung", law_config(law_corpus, hang_timeout_min=0.2), fault="rank_1_hangs")
    return case.run, worker.start(folder / "all", [case], 2)


@pytest.fixture(scope="module")
def rewound(law_corpus: Path, tmp_path_factory: pytest.TempPathFactory, hung: object) -> dict[str, RunFolder]:
    """Runs that met a poisoned batch and went back, and one that never saw that batch."""
    folder = tmp_path_factory.mktemp("rewound")
    settings: dict[str, Any] = {"on_bad_step": "rewind", "spike_stds": 4.0}
    config = law_config(law_corpus, **settings)
    poisoned = [make_run(folder, fault, config, fault=fault) for fault in ("no_number", "spike")]
    clean = make_run(folder, "clean", config)
    clean.run.write_json("skipped.json", {"batches": [POISONED]})
    adapter = Training("lora", 3).config(law_corpus, **settings)
    lora = make_run(folder, "lora", adapter, fault="no_number")
    worker.run(folder / "all", [*poisoned, clean, lora], 2)
    return runs_by_name(folder)


@pytest.mark.parametrize("fault", ["no_number", "spike"])
def test_rewound_is_as_if_the_batch_had_never_been(rewound: dict[str, RunFolder], fault: str) -> None:
    assert_same(rewound[fault], rewound["clean"])
    assert rewound[fault].summary().skipped_batches == [POISONED]  # type: ignore[index]
    assert any(record["values"].get("guard/rewinds") == 1 for record in spool(rewound[fault]))


def test_an_adapter_under_zero_3_rewinds_too(
    rewound: dict[str, RunFolder], runs: dict[str, RunFolder]
) -> None:
    assert losses(rewound["lora"]).isfinite().all()
    assert checksums(rewound["lora"]) == checksums(rewound["clean"])
    assert checksums(rewound["lora"])[:18] == checksums(runs["lora-zero3"])[:18]
    assert checksums(rewound["lora"])[18:-1] == checksums(runs["lora-zero3"])[19:], (
        "more than one batch was left out"
    )


def test_a_hung_rank_ends_the_job_with_a_stack_of_every_rank(hung: tuple[RunFolder, Launched]) -> None:
    run, ranks = hung
    ranks.join(expected=1)
    assert "faults.py" in run.stacks(1).read_text()
    assert "in hang\n" in run.stacks(1).read_text()
    assert "train_step" in run.stacks(0).read_text()
    assert "no progress for 12 s" in str(run.failure())
