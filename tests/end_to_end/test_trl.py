"""TRL can train on the folder of a corpus, and finds the same targets as finetune.

`make slow` runs this test, with TRL in an environment of its own.
benchmarks/requirements/trl.txt lists the packages of that environment.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import harness, rules
from data_prep.shards import Corpus
from tests.end_to_end.commands import command

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end, pytest.mark.timeout(1800)]

TRAIN = """
import json, sys
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

corpus, model, out = sys.argv[1:]
rows = load_dataset("arrow", data_files=f"{corpus}/train/*.arrow", split="train")
tokenizer = AutoTokenizer.from_pretrained(f"{corpus}/tokenizer")
config = SFTConfig(output_dir=out, max_steps=3, per_device_train_batch_size=4, max_length=256,
                   logging_steps=1, report_to=[], use_cpu=True, save_strategy="no", shuffle_dataset=False,
                   data_seed=0, seed=0, bf16=False, packing=False)
model = AutoModelForCausalLM.from_pretrained(model)
trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
batch = next(iter(trainer.get_train_dataloader()))
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
learned = [ids[ids != -100].tolist() for ids in batch["labels"]]
print(json.dumps({"losses": losses, "learned": learned, "ids": batch["input_ids"].tolist()}))
"""


@pytest.mark.parametrize("name", ["sample", "sample_chat"])
def test_trl_trains_on_the_same_target_tokens(tmp_path: Path, name: str) -> None:
    command(tmp_path, "prepare", "corpus=sample")
    if name != "sample":
        command(tmp_path, "prepare", f"corpus={name}")
    corpus = Corpus(tmp_path / "corpora" / name)
    shape = rules.Shape(
        vocab_size=corpus.manifest.tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    harness.write_model(tmp_path / "model", shape, corpus.tokenizer_folder)
    python = harness.environment_of("trl", harness.cache_folder())
    (tmp_path / "train.py").write_text(TRAIN)
    arguments = [python, tmp_path / "train.py", corpus.folder, tmp_path / "model", tmp_path / "out"]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    output = json.loads(done.stdout.splitlines()[-1])
    assert len(output["losses"]) == 3
    assert all(0 < loss < 20 for loss in output["losses"])
    mask = corpus.manifest.mask_column
    assert (mask is not None) == (name == "sample_chat")
    rows = {tuple(row["input_ids"][:256]): row for row in corpus.split("train")}
    for ids, learned in zip(output["ids"], output["learned"], strict=True):
        row = next(row for key, row in rows.items() if tuple(ids[: len(key)]) == key)
        kept = row[mask] if mask else [1] * len(row["input_ids"])
        assert learned == [t for t, wanted in zip(row["input_ids"][:256], kept, strict=False) if wanted]
