"""Supervised fine-tuning on questions and answers, starting from the base of the quick start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.shards import Corpus
from finetune.runs.folder import RunFolder
from tests.end_to_end.commands import command, run_of

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def sft(sample: tuple[Path, RunFolder, RunFolder]) -> tuple[Path, RunFolder]:
    folder, base, _ = sample
    command(folder, "prepare", "corpus=sample_chat")
    # conversations of more than 256 tokens are dropped
    short = ["data.sequence_length=256", "data.long_conversations=drop", "data.max_lost_share=1"]
    arguments = ["recipe=sample_sft", f"model=run:{base.id}", "max_steps=8", *short]
    return folder, run_of(folder, command(folder, "train", *arguments).stdout)


def test_only_answers_are_trained_on_and_counted(sft: tuple[Path, RunFolder]) -> None:
    folder, run = sft
    summary, corpus = run.summary(), Corpus(folder / "corpora" / "sample_chat")
    assert summary is not None
    assert summary.after.loss < summary.before.loss - 0.01
    rows = list(corpus.split("validation"))
    kept = [row for row in rows if len(row["input_ids"]) <= 256]
    assert summary.after.tokens == sum(sum(row["assistant_masks"][1:]) for row in kept)
    values = [json.loads(line)["values"] for line in run.metrics.read_text().splitlines()]
    steps = [step for step in values if "train/loss" in step]
    assert len(steps) == 8
    assert all(0 < step["train/supervised_tokens"] < step["train/tokens"] for step in steps)


def test_dropped_long_documents_are_reported(sft: tuple[Path, RunFolder]) -> None:
    folder, run = sft
    rows = list(Corpus(folder / "corpora" / "sample_chat").split("train"))
    long = sum(len(row["input_ids"]) > 256 for row in rows)
    assert long > 0
    summary = run.summary()
    assert summary is not None
    assert summary.data["documents"] == len(rows) - long
    assert summary.data["documents_too_long"] == long
    first = json.loads(run.metrics.read_text().splitlines()[0])
    assert (first["step"], first["values"]["data/documents_too_long"]) == (0, long)
    log = "".join(path.read_text() for path in run.jobs.glob("*_log.*"))
    assert f"train: {len(rows) - long} documents in" in log
    assert f"{long} documents too long" in log


def test_evaluate_gives_the_same_loss_and_the_adapter_has_its_chat_template(
    sft: tuple[Path, RunFolder],
) -> None:
    from transformers import AutoTokenizer

    folder, run = sft
    summary = run.summary()
    assert summary is not None
    evaluated = json.loads(command(folder, "evaluate", run.id, "--json").stdout)
    assert evaluated["loss"] == pytest.approx(summary.after.loss, abs=1e-5)
    assert evaluated["tokens"] == summary.after.tokens
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hei"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<s>user\nHei</s>\n<s>assistant\n"
