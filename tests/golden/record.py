"""Measure the losses and corpora that refactoring must not change, and write them to golden.json.

python -m tests.golden.record    # only for an intended change, which the commit message explains
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from finetune.config import train as configuration
from finetune.config.train import ClusterConfig, DataConfig, ModelConfig, TrainConfig
from finetune.runs.folder import RunFolder
from tests.corpora import write_corpus
from tests.distributed import worker
from tests.end_to_end.commands import command
from tests.models import LLAMA, LORA, write_base

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = 24
RANKS = 2
# the threshold is 0 because by default ZeRO-3 does not partition parameters as small as these
ZERO: dict[int, dict[str, Any]] = {0: {"stage": 0}, 3: {"stage": 3, "stage3_param_persistence_threshold": 0}}
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": LORA,
    "dora": {**LORA, "use_dora": True},
    "sft": LORA,
}
# A mixture of the bundled sources: one has weights by written standard, another a single weight.
MIXTURE = (
    "corpus=sample",
    "corpus.name=sample_mixture",
    "corpus.tokenizer.path=${corpora_dir}/sample/tokenizer",
    "~corpus.sources.minutes",
    "+corpus.sources.letters.mixture=[{languages: [nno], weight: 2}, {languages: [nob], weight: 0.5}]",
    "+corpus.sources.guidance.mixture=[{weight: 1.5}]",
)
CORPORA = {"sample": ("corpus=sample",), "sample_chat": ("corpus=sample_chat",), "sample_mixture": MIXTURE}


def cpu_kind() -> str:
    """Return the properties that floating-point results depend on: CPU, instructions, torch."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    keys = ("vendor_id", "cpu family", "model")
    found = [re.search(rf"^{key}\s*: (.+)$", text, re.MULTILINE) for key in keys]
    model = " ".join(match[1] for match in found if match)
    return f"{model or 'unknown CPU'}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def measure_losses(folder: Path) -> dict[str, list[float]]:
    """Train every method on two ranks in fp32; return the losses of each run by the run's id."""
    write_base(folder / "base")
    texts = write_corpus(folder / "texts", num_documents=120, longest=512, seed=1)
    chats = write_corpus(
        folder / "chats", num_documents=120, longest=100, seed=2, mask_column="assistant_masks"
    )
    runs = {}
    for method, adapter in ADAPTERS.items():
        for stage, zero in ZERO.items():
            run = RunFolder(folder / "runs" / f"{method}-zero{stage}")
            run.path.mkdir(parents=True)
            corpus = chats if method == "sft" else texts
            configuration.save(_config(corpus, folder / "base", adapter, zero), run.config_file)
            runs[run.id] = run
    worker.run(folder / "ranks", [worker.Case(str(run.path)) for run in runs.values()], RANKS)
    return {name: _losses(run) for name, run in runs.items()}


def _config(corpus: Path, base: Path, adapter: dict[str, Any], zero: dict[str, Any]) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(corpus=str(corpus), sequence_length=128),
        model=ModelConfig(path=str(base)) if adapter else ModelConfig(from_scratch=LLAMA),
        adapter=adapter,
        zero=zero,
        cluster=ClusterConfig(ranks_per_node=RANKS),
        global_batch_size=8,
        micro_batch_size=2,
        max_steps=STEPS,
        lr=3e-3,
        warmup_ratio=0.2,
        weight_decay=0.1,
        max_grad_norm=0.2,
        seed=3,
        check_first_loss=False,
    )


def _losses(run: RunFolder) -> list[float]:
    records = [json.loads(line)["values"] for line in run.metrics.read_text().splitlines()]
    return [values["train/loss"] for values in records if "train/loss" in values]


def measure_corpora(folder: Path) -> dict[str, dict[str, str]]:
    """Prepare the bundled corpora; return the SHA-256 of each file, by corpus and relative path.

    The name and version of the library that encoded running text are left out of the manifest and
    the card before they are hashed.
    """
    digests = {}
    for name, arguments in CORPORA.items():
        command(folder, "prepare", *arguments)
        corpus = folder / "corpora" / name
        files = sorted(path for path in corpus.rglob("*") if path.is_file())
        digests[name] = {path.relative_to(corpus).as_posix(): _digest(path) for path in files}
    return digests


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.name == "manifest.json":
        manifest = json.loads(content)
        del manifest["digest"]  # the digest also covers the encoder's name and version
        manifest["tokenizer"].pop("encoder", None)
        content = json.dumps(manifest, sort_keys=True).encode()
    if path.name == "README.md":
        lines = content.decode().splitlines()
        kept = [line for line in lines if not line.startswith(("Tokenizer: ", "Made by "))]
        content = "\n".join(kept).encode()
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        losses = measure_losses(Path(folder) / "losses")
        corpora = measure_corpora(Path(folder))
    body = {"cpu": cpu_kind(), "losses": losses, "corpora": corpora}
    GOLDEN.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    sys.stderr.write(f"{GOLDEN}: {len(losses)} runs, {len(corpora)} corpora, on {body['cpu']}\n")


if __name__ == "__main__":
    main()
