"""Training speed on one GPU, ours beside TRL: `python -m benchmarks.gpu --text FOLDER`. `--tiny` tries it out on a CPU.

The task: LoRA r=16 on every linear layer, or full training, of Llamas of 1B and 8B parameters with random weights, bf16, 4,096
tokens a row. Nothing is downloaded when TRL's environment is given, by --trl-python, or as wheels, by --wheels. No gradient
checkpointing for anyone. Full training of 8B (16 bytes a parameter in mixed precision) does not fit one GPU and is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import documents, harness, rules
from benchmarks.harness import Bench, Measurement

# Llama 3.2 1B, Llama 3 8B
SHAPES = {
    "1B": rules.Shape(2048, 16, 32, 8, 8192, 128256, True),
    "8B": rules.Shape(4096, 32, 32, 8, 14336, 128256, False),
    "tiny": rules.Shape(64, 2, 4, 2, 128, 8000, True),
}
LORA_R = 16
PUBLISHED = "published by NeMo Automodel, Llama 3 8B, LoRA, one H100: 12,473 tokens/s (not measured here)"
NAMES = {"finetune": "**finetune** (ZeRO 1, packed)", "trl": "TRL, packed: bfd", "trl-liger": "TRL, packed: bfd, Liger kernels"}


def main() -> None:
    options = _options()
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("no GPU at hand: --tiny tries the script out on a CPU")
    cache = harness.cache_folder()
    corpus, texts, what = documents.make(cache, options.text, 2000)
    python = Path(options.trl_python) if options.trl_python else harness.environment_of("trl", cache, options.wheels)
    tables, raw = [], []
    for size in ["tiny"] if options.tiny else options.sizes:
        shape = SHAPES[size]
        model = cache / "models" / f"llama-{size}-{corpus.name}"
        device = "cuda" if torch.cuda.is_available() else "cpu"
        harness.write_model(model, shape, corpus / "tokenizer", "bfloat16", max_positions=8192, device=device)
        limit = harness.matmul_limit(shape, options.batch_size * options.sequence_length, threads=None, dtype="bfloat16")
        for lora in (True, False):
            if size == "8B" and not lora:
                continue
            bench = _bench(options, cache, corpus, texts, model, LORA_R if lora else 0)
            measurements = [run(number) for number in range(options.rounds) for run in _runs(bench, python, options.systems)]
            _check(measurements, shape.lora_parameters(LORA_R) if lora else shape.parameters)
            tables.append(_table(size, lora, shape, limit, measurements))
            raw += [{"size": size, "lora": lora, "matmul_limit": limit, **asdict(m)} for m in measurements]
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": harness.machine(),
        "revision": harness.revision(),
        "documents": what,
    }
    facts["command"] = harness.command("benchmarks.gpu")
    report = _report(facts, options, tables)
    print(report)
    if not options.tiny:
        harness.write_raw("gpu", facts | {"measurements": raw})
        harness.write_section("gpu", report)


def _bench(options: argparse.Namespace, cache: Path, corpus: Path, texts: Path, model: Path, lora_r: int) -> Bench:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    settings = {
        "sequence_length": options.sequence_length, "batch_size": options.batch_size, "lr": 1e-4, "lora_r": lora_r, "seed": 0,
        "precision": "bf16", "gradient_checkpointing": False, "attention": options.attention, "eos_token": "</s>",
        "pad_token_id": config["pad_token_id"], "eos_token_id": config["eos_token_id"],
    }  # fmt: skip
    return Bench(
        cache=cache, corpus=corpus, documents=texts, model=model, warmup=options.warmup, steps=options.steps, settings=settings,
        threads=None, gpu=torch.cuda.is_available(),
    )  # fmt: skip


def _runs(bench: Bench, python: Path, systems: list[str]) -> list[Callable[[int], Measurement]]:
    r = bench.settings["lora_r"]
    adapter = ["adapter=lora", f"adapter.r={r}", f"adapter.lora_alpha={2 * r}"] if r else ["adapter=none"]
    runs: dict[str, Callable[[int], Measurement]] = {
        "finetune": lambda number: bench.ours("finetune", number, [*adapter, "zero=stage1", "name=bench"]),
        "trl": lambda number: bench.peer("trl", number, python, peer="trl", packing="bfd"),
        "trl-liger": lambda number: bench.peer("trl-liger", number, python, peer="trl", packing="bfd", liger=True),
    }
    return [runs[system] for system in systems]


def _check(measurements: list[Measurement], trainable: int) -> None:
    for measurement in measurements:
        if measurement.trainable_parameters != trainable:
            sys.exit(
                f"{measurement.system} trains {measurement.trainable_parameters:,} parameters, not {trainable:,}: other work"
            )


def _table(size: str, lora: bool, shape: rules.Shape, limit: float, measurements: list[Measurement]) -> str:
    flop = rules.flop_per_token(shape.non_embedding_parameters, lora)
    lines = [
        f"{size}, {f'LoRA r={LORA_R}' if lora else 'full'}; matmul limit {limit / 1e12:.1f} TFLOP/s\n",
        "| system | tokens/s, median (least-most) | share of matmul limit | GPU memory | documents isolated |",
        "|---|---|---|---|---|",
    ]
    for system, row in harness.summary(measurements).items():
        share = rules.share_of_limit(row["median"], flop, limit)
        isolated = {True: "yes", False: "**no**", None: "one a row"}[row["isolated"]]
        lines.append(
            f"| {NAMES[system]} | {row['median']:,.0f} ({row['min']:,.0f}-{row['max']:,.0f}) | {share:.0%} "
            f"| {row['gpu_memory'] / 2**30:.1f} GiB | {isolated} |"
        )
    return "\n".join(lines)


def _report(facts: dict[str, Any], options: argparse.Namespace, tables: list[str]) -> str:
    return f"""## Training on one GPU, beside TRL

{facts["date"]}, revision {facts["revision"]}, {facts["machine"]["gpu"] or facts["machine"]["cpu"]}; bf16, rows of
{options.sequence_length:,} tokens, {options.batch_size} a step, {options.steps} steps after {options.warmup} of warm-up,
{options.rounds} rounds in turns. {facts["documents"]}.

    {facts["command"]}

{(chr(10) * 2).join(tables)}

Beside it, {PUBLISHED}."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--text", metavar="FOLDER", help="downloads of Lovdata's public API (default: the bundled sample)")
    parser.add_argument("--sizes", type=lambda given: given.split(","), default=["1B", "8B"], help="1B,8B")
    parser.add_argument("--systems", type=lambda given: given.split(","), default=list(NAMES), help=",".join(NAMES))
    parser.add_argument("--sequence-length", type=int, default=4096, help="tokens a row (4096)")
    parser.add_argument("--batch-size", type=int, default=1, help="rows an optimizer step (1)")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps measured (30)")
    parser.add_argument("--warmup", type=int, default=5, help="optimizer steps before them (5)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every system is run (3)")
    parser.add_argument("--attention", default="sdpa", help="TRL's attention: sdpa, flash_attention_2 (sdpa)")
    parser.add_argument("--trl-python", help="the python of an environment that has TRL (default: one is made)")
    parser.add_argument("--wheels", help="a folder of wheels to make TRL's environment from, without an index")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on whatever is here; RESULTS.md stays as it is")
    options = parser.parse_args()
    for name, known in (("sizes", SHAPES), ("systems", NAMES)):
        if unknown := set(getattr(options, name)) - set(known):
            parser.error(f"--{name}: unknown {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    return options


if __name__ == "__main__":
    main()
