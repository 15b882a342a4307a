"""Training speed on one GPU, ours beside TRL: `python -m benchmarks.gpu --text FOLDER`. `--tiny` tries it out
on a CPU.

The task: LoRA r=16 on every linear layer, or full training, of Llamas of 1B and 8B parameters with random
weights, bf16, 4,096 tokens a row. Nothing is downloaded when TRL's environment is given, by --trl-python, or
as wheels, by --wheels. No gradient checkpointing for anyone. Full training keeps its weights in float32 and
multiplies in bf16, everywhere; of 8B (16 bytes a parameter) it does not fit one GPU and is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
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
LORA = ["adapter=lora", f"adapter.r={LORA_R}", f"adapter.lora_alpha={2 * LORA_R}"]
PUBLISHED = "published by NeMo Automodel, Llama 3 8B, LoRA, one H100: 12,473 tokens/s (not measured here)"
NAMES = {
    "finetune": "**finetune** (ZeRO 1, packed)",
    "trl": "TRL, packed: bfd",
    "trl-liger": "TRL, packed: bfd, Liger kernels",
}


def main() -> None:
    options = _options()
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("no GPU at hand: --tiny tries the script out on a CPU")
    cache = harness.cache_folder()
    corpus, texts, what = documents.make(cache, options.text, 2000)
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": harness.machine(),
        "revision": harness.revision(),
        "documents": what,
        "command": harness.command("benchmarks.gpu"),
    }
    sizes = ["tiny"] if options.tiny else options.sizes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for size in sizes:
        harness.write_model(
            _model(cache, corpus, size), SHAPES[size], corpus / "tokenizer", "bfloat16", 8192, device
        )
    name, measure = ("gpu-memory", _memory) if options.memory else ("gpu", _speed)
    raw, report = measure(
        options, facts, sizes, lambda size, lora: _bench(options, cache, corpus, texts, size, lora)
    )
    print(report)
    if not options.tiny:
        harness.write_raw(name, facts | {"measurements": raw})
        harness.write_section(name, report)


# --- speed, beside TRL
# ------------------------------------------------------------------------------------------------


def _speed(
    options: argparse.Namespace, facts: dict[str, Any], sizes: list[str], bench: Callable[[str, bool], Bench]
) -> tuple[list[dict[str, Any]], str]:
    """All systems in turns, a round after the other, as many as there is time for."""
    python = Path(options.trl_python or harness.environment_of("trl", harness.cache_folder(), options.wheels))
    tokens = options.batch_size * options.sequence_length
    limits = {
        size: harness.matmul_limit(SHAPES[size], tokens, threads=None, dtype="bfloat16") for size in sizes
    }
    tasks = [(size, lora) for lora in (True, False) for size in sizes if lora or size != "8B"]
    raw: list[dict[str, Any]] = []
    end = time.monotonic() + 60 * (options.minutes or float("inf"))
    for number in range(options.rounds):
        for size, lora in tasks:
            for system, run in _runs(bench(size, lora), python, options.systems).items():
                if time.monotonic() > end:
                    continue
                row: dict[str, Any] = {"size": size, "lora": lora, "matmul_limit": limits[size]}
                row |= {"system": system, "round": number}
                try:
                    row |= asdict(run(number))
                except (RuntimeError, ValueError) as fault:  # must not take the others' results along
                    row["error"] = str(fault)
                else:
                    _check(system, row["trainable_parameters"], size, lora)
                print(json.dumps(row), flush=True)
                raw.append(row)
    by_task = {task: [row for row in raw if (row["size"], row["lora"]) == task] for task in tasks}
    return raw, _report(
        facts, options, [_table(*task, limits[task[0]], rows) for task, rows in by_task.items() if rows]
    )


def _model(cache: Path, corpus: Path, size: str) -> Path:
    return cache / "models" / f"llama-{size}-{corpus.name}"


def _bench(
    options: argparse.Namespace, cache: Path, corpus: Path, texts: Path, size: str, lora: bool
) -> Bench:
    model = _model(cache, corpus, size)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    settings = {
        "sequence_length": options.sequence_length,
        "batch_size": options.batch_size,
        "lr": 1e-4,
        "seed": 0,
        "lora_r": LORA_R if lora else 0,
        "precision": "bf16" if torch.cuda.is_available() else "fp32",
        "gradient_checkpointing": False,
        "attention": options.attention,
        "eos_token": "</s>",
        "pad_token_id": config["pad_token_id"],
        "eos_token_id": config["eos_token_id"],
    }
    return Bench(
        cache=cache,
        corpus=corpus,
        documents=texts,
        model=model,
        warmup=options.warmup,
        steps=options.steps,
        settings=settings,
        threads=None,
        gpu=torch.cuda.is_available(),
    )


def _runs(bench: Bench, python: Path, systems: list[str]) -> dict[str, Callable[[int], Measurement]]:
    adapter = LORA if bench.settings["lora_r"] else ["adapter=none"]
    runs: dict[str, Callable[[int], Measurement]] = {
        "finetune": lambda number: bench.ours("finetune", number, [*adapter, "zero=stage1", "name=bench"]),
        "trl": lambda number: bench.peer("trl", number, python, peer="trl", packing="bfd"),
        "trl-liger": lambda number: bench.peer(
            "trl-liger", number, python, peer="trl", packing="bfd", liger=True
        ),
    }
    return {system: runs[system] for system in systems}


def _check(system: str, trainable: int, size: str, lora: bool) -> None:
    expected = SHAPES[size].lora_parameters(LORA_R) if lora else SHAPES[size].parameters
    if trainable != expected:
        sys.exit(f"{system} trains {trainable:,} parameters, not {expected:,}: other work")


def _table(size: str, lora: bool, limit: float, rows: list[dict[str, Any]]) -> str:
    flop = rules.flop_per_token(SHAPES[size].non_embedding_parameters, lora)
    lines = [
        f"{size}, {f'LoRA r={LORA_R}' if lora else 'full'}; matmul limit {limit / 1e12:.1f} TFLOP/s\n",
        "| system | rounds | tokens/s, median (least-most) | share of matmul limit | GPU memory | documents isolated |",
        "|---|---|---|---|---|---|",
    ]
    names = {field.name for field in fields(Measurement)}
    measured = [Measurement(**{key: row[key] for key in names}) for row in rows if "error" not in row]
    for system, row in harness.summary(measured).items():
        share = rules.share_of_limit(row["median"], flop, limit)
        isolated = {True: "yes", False: "**no**", None: "one a row"}[row["isolated"]]
        lines.append(
            f"| {NAMES[system]} | {row['rounds']} | {row['median']:,.0f} ({row['min']:,.0f}-{row['max']:,.0f}) | {share:.0%} "
            f"| {row['gpu_memory'] / 2**30:.1f} GiB | {isolated} |"
        )
    lines += [
        f"| {NAMES[row['system']]} | – | {row['error'].partition(':')[0]} | – | – | – |"
        for row in rows
        if "error" in row
    ]
    return "\n".join(lines)


def _report(facts: dict[str, Any], options: argparse.Namespace, tables: list[str]) -> str:
    return f"""## Training on one GPU, beside TRL

{facts["date"]}, revision {facts["revision"]}, {facts["machine"]["gpu"] or facts["machine"]["cpu"]}; bf16, rows of
{options.sequence_length:,} tokens, {options.batch_size} a step, {options.steps} steps after {options.warmup} of warm-up,
all systems in turns. {facts["documents"]}.

    {facts["command"]}

{(chr(10) * 2).join(tables)}

Beside it, {PUBLISHED}."""


# --- memory, ours alone
# -----------------------------------------------------------------------------------------------

CHECKPOINTED = "activation_checkpointing=true"
MEMORY: dict[str, list[tuple[str, list[str]]]] = {
    "1B": [
        ("full", ["adapter=none", "zero=stage1"]),
        ("full, activation checkpointing", ["adapter=none", "zero=stage1", CHECKPOINTED]),
        ("LoRA", [*LORA, "zero=stage1"]),
        ("LoRA, activation checkpointing", [*LORA, "zero=stage1", CHECKPOINTED]),
        ("QLoRA", [*LORA, "zero=stage1", "model.quantization=nf4"]),
        ("full, optimizer offloaded", ["adapter=none", "zero=stage2_offload"]),
    ],
    "8B": [
        ("LoRA, activation checkpointing", [*LORA, "zero=stage1", CHECKPOINTED]),
        ("QLoRA, activation checkpointing", [*LORA, "zero=stage1", "model.quantization=nf4", CHECKPOINTED]),
        ("QLoRA", [*LORA, "zero=stage1", "model.quantization=nf4"]),
        ("LoRA", [*LORA, "zero=stage1"]),
    ],
}
MEMORY["tiny"] = MEMORY["1B"][:2]


def _memory(
    options: argparse.Namespace, facts: dict[str, Any], sizes: list[str], bench: Callable[[str, bool], Bench]
) -> tuple[list[dict[str, Any]], str]:
    """A few steps of each configuration, one at a time: beside another it might not fit where it does
    alone."""

    def measure(size: str, name: str, overrides: list[str]) -> dict[str, Any]:
        few = replace(bench(size, True), warmup=1, steps=5)
        folder = harness.fresh(
            few.cache / "out" / f"memory-{size}-{name.replace(', ', '-').replace(' ', '-')}"
        )
        command = few.our_command(folder, 0, [*overrides, "name=bench"])
        done = subprocess.run(
            command, capture_output=True, text=True, env=few.environment("memory"), cwd=folder, check=False
        )
        (folder / "log.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        log = done.stdout + "".join(
            path.read_text(encoding="utf-8") for path in folder.glob("runs/*/jobs/*log*")
        )
        row = {"size": size, "what": name, "overrides": overrides}
        if done.returncode:
            row["error"] = (
                "did not fit"
                if "OutOfMemoryError" in log
                else f"ended with exit code {done.returncode}: see {folder}"
            )
        else:
            summary = json.loads(next(folder.glob("runs/*/summary.json")).read_text(encoding="utf-8"))
            row["peak_memory"] = summary["peak_memory_bytes"]
        print(json.dumps(row), flush=True)
        return row

    raw = [measure(size, *what) for size in sizes for what in MEMORY[size]]
    table = ["| model | training | GPU memory |", "|---|---|---|"]
    for row in raw:
        peak = row["error"].partition(":")[0] if "error" in row else f"{row['peak_memory'] / 2**30:.1f} GiB"
        table.append(f"| {row['size']} | {row['what']} | {peak} |")
    report = f"""## Memory on one GPU

{facts["date"]}, revision {facts["revision"]}, {facts["machine"]["gpu"] or facts["machine"]["cpu"]}; bf16, one row of
{options.sequence_length:,} tokens, the most that torch had allocated in any step (`train/peak_memory_bytes`).

    {facts["command"]}

{chr(10).join(table)}"""
    return raw, report


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--text", metavar="FOLDER", help="downloads of Lovdata's public API (default: the bundled sample)"
    )
    parser.add_argument("--sizes", type=lambda given: given.split(","), default=["1B", "8B"], help="1B,8B")
    parser.add_argument(
        "--systems", type=lambda given: given.split(","), default=list(NAMES), help=",".join(NAMES)
    )
    parser.add_argument("--sequence-length", type=int, default=4096, help="tokens a row (4096)")
    parser.add_argument("--batch-size", type=int, default=1, help="rows an optimizer step (1)")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps measured (30)")
    parser.add_argument("--warmup", type=int, default=5, help="optimizer steps before them (5)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every system is run (3)")
    parser.add_argument(
        "--minutes", type=float, help="begin no run after so many, as on a node lent for an hour"
    )
    parser.add_argument("--memory", action="store_true", help="instead: peak memory of our configurations")
    parser.add_argument("--attention", default="sdpa", help="TRL's attention: sdpa, flash_attention_2 (sdpa)")
    parser.add_argument(
        "--trl-python", help="the python of an environment that has TRL (default: one is made)"
    )
    parser.add_argument(
        "--wheels", help="a folder of wheels to make TRL's environment from, without an index"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model, on whatever is here; RESULTS.md stays as it is"
    )
    options = parser.parse_args()
    for name, known in (("sizes", MEMORY), ("systems", NAMES)):
        if unknown := set(getattr(options, name)) - set(known):
            parser.error(f"--{name}: unknown {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    return options


if __name__ == "__main__":
    main()
