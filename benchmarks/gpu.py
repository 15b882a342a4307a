"""Training speed on one GPU, compared with TRL: `python -m benchmarks.gpu --text FOLDER`.

Llamas with random weights and 1B or 8B parameters are trained in bf16, with 4,096 tokens per row
and without gradient checkpointing. They are trained by LoRA (r=16, all linear layers) or in full.
Full training keeps float32 weights and multiplies in bf16. It needs 16 bytes per parameter, so the
8B model does not fit on one GPU and is trained by LoRA only. To work offline, pass --trl-python
(the Python of an environment with TRL) or --wheels (a folder with TRL's wheels). --tiny tries the
script on a CPU.
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

from benchmarks import documents, harness, report, rules
from benchmarks.harness import Bench, Measurement

# The shapes are those of Llama 3.2 1B and Llama 3 8B, and of a tiny model.
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
        sys.exit("this machine has no GPU; pass --tiny to try the script on a CPU")
    cache = harness.cache_folder()
    corpus, texts, description = documents.make_documents(cache, options.text, 2000)
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": report.machine(),
        "revision": report.revision(),
        "documents": description,
        "command": report.command("benchmarks.gpu"),
    }
    sizes = ["tiny"] if options.tiny else options.sizes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for size in sizes:
        model = _model_folder(cache, corpus, size)
        harness.write_model(model, SHAPES[size], corpus / "tokenizer", "bfloat16", 8192, device)

    def make_bench(size: str, lora: bool) -> Bench:
        return _make_bench(options, cache, corpus, texts, size, lora)

    name, measure = ("gpu-memory", _measure_memory) if options.memory else ("gpu", _measure_speed)
    raw, section = measure(options, facts, sizes, make_bench)
    print(section)
    if not options.tiny:
        report.write_raw(name, facts | {"measurements": raw})
        report.write_section(name, section)


# --- speed, compared with TRL ---------------------------------------------------------------------


def _measure_speed(
    options: argparse.Namespace,
    facts: dict[str, Any],
    sizes: list[str],
    make_bench: Callable[[str, bool], Bench],
) -> tuple[list[dict[str, Any]], str]:
    """Run all systems in turn, round by round; start no run after --minutes minutes.

    Returns:
        The measurements of each run as a dictionary, and the section of the report.
    """
    python = options.trl_python
    if not python:
        python = harness.environment_of("trl", harness.cache_folder(), options.wheels)
    tokens = options.batch_size * options.sequence_length
    limits = {}
    for size in sizes:
        limits[size] = harness.measure_matmul_limit(SHAPES[size], tokens, threads=None, dtype="bfloat16")
    tasks = [(size, lora) for lora in (True, False) for size in sizes if lora or size != "8B"]
    raw: list[dict[str, Any]] = []
    end = time.monotonic() + 60 * (options.minutes or float("inf"))
    for number in range(options.rounds):
        for size, lora in tasks:
            for system, run in _runs(make_bench(size, lora), Path(python), options.systems).items():
                if time.monotonic() > end:
                    continue
                row: dict[str, Any] = {"size": size, "lora": lora, "matmul_limit": limits[size]}
                row |= {"system": system, "round": number}
                try:
                    row |= asdict(run(number))
                except (RuntimeError, ValueError) as fault:  # the other systems are still measured
                    row["error"] = str(fault)
                else:
                    _check(system, row["trainable_parameters"], size, lora)
                print(json.dumps(row), flush=True)
                raw.append(row)
    tables = []
    for size, lora in tasks:
        rows = [row for row in raw if (row["size"], row["lora"]) == (size, lora)]
        if rows:
            tables.append(_table(size, lora, limits[size], rows))
    return raw, _report(facts, options, tables)


def _model_folder(cache: Path, corpus: Path, size: str) -> Path:
    return cache / "models" / f"llama-{size}-{corpus.name}"


def _make_bench(
    options: argparse.Namespace, cache: Path, corpus: Path, texts: Path, size: str, lora: bool
) -> Bench:
    model = _model_folder(cache, corpus, size)
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
    """Return, for each system, a function that measures one training run of it.

    The function takes the number of the round.

    Args:
        python: the Python interpreter of TRL's environment.
        systems: names of the systems.
    """
    adapter = LORA if bench.settings["lora_r"] else ["adapter=none"]
    overrides = [*adapter, "zero=stage1", "name=bench"]
    trl: dict[str, Any] = {"peer": "trl", "packing": "bfd"}
    runs: dict[str, Callable[[int], Measurement]] = {
        "finetune": lambda number: bench.run_finetune("finetune", number, overrides),
        "trl": lambda number: bench.run_peer("trl", number, python, **trl),
        "trl-liger": lambda number: bench.run_peer("trl-liger", number, python, **trl, liger=True),
    }
    return {system: runs[system] for system in systems}


def _check(system: str, trainable: int, size: str, lora: bool) -> None:
    expected = SHAPES[size].lora_parameters(LORA_R) if lora else SHAPES[size].parameters
    if trainable != expected:
        sys.exit(
            f"{system}: trains {trainable:,} parameters instead of {expected:,}, so its speed cannot "
            "be compared"
        )


def _table(size: str, lora: bool, limit: float, rows: list[dict[str, Any]]) -> str:
    flop = rules.flop_per_token(SHAPES[size].non_embedding_parameters, lora)
    training = f"LoRA r={LORA_R}" if lora else "full"
    lines = [
        f"{size}, {training}; matmul limit {limit / 1e12:.1f} TFLOP/s\n",
        "| system | rounds | tokens/s, median (min-max) | share of matmul limit "
        "| GPU memory | documents isolated |",
        "|---|---|---|---|---|---|",
    ]
    names = {field.name for field in fields(Measurement)}
    measured = [Measurement(**{key: row[key] for key in names}) for row in rows if "error" not in row]
    for system, row in harness.summarise(measured).items():
        share = rules.share_of_limit(row["median"], flop, limit)
        speed = f"{row['median']:,.0f} ({row['min']:,.0f}-{row['max']:,.0f})"
        lines.append(
            f"| {NAMES[system]} | {row['rounds']} | {speed} | {share:.0%} "
            f"| {row['gpu_memory'] / 2**30:.1f} GiB | {report.ISOLATED[row['isolated']]} |"
        )
    for row in rows:
        if "error" in row:
            error = row["error"].partition(":")[0]
            lines.append(f"| {NAMES[row['system']]} | – | {error} | – | – | – |")
    return "\n".join(lines)


def _report(facts: dict[str, Any], options: argparse.Namespace, tables: list[str]) -> str:
    machine = facts["machine"]["gpu"] or facts["machine"]["cpu"]
    batch = f"{options.batch_size} rows per step, {options.steps} steps after {options.warmup} warm-up steps"
    return f"""## Training on one GPU, compared with TRL

{facts["date"]}, revision {facts["revision"]}, {machine}; bf16, rows of {options.sequence_length:,} tokens,
{batch}, all systems in turns. {facts["documents"]}.

    {facts["command"]}

{(chr(10) * 2).join(tables)}

For comparison, {PUBLISHED}."""


# --- memory of this product's configurations ------------------------------------------------------

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


def _measure_memory(
    options: argparse.Namespace,
    facts: dict[str, Any],
    sizes: list[str],
    make_bench: Callable[[str, bool], Bench],
) -> tuple[list[dict[str, Any]], str]:
    """Run a few steps of each configuration; return the raw rows and the section of the report."""

    def measure(size: str, name: str, overrides: list[str]) -> dict[str, Any]:
        bench = replace(make_bench(size, True), warmup=1, steps=5)
        slug = name.replace(", ", "-").replace(" ", "-")
        folder = harness.make_empty(bench.cache / "out" / f"memory-{size}-{slug}")
        command = bench.finetune_command(folder, 0, [*overrides, "name=bench"])
        environment = bench.environment("memory")
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=folder, check=False
        )
        (folder / "log.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        logs = [path.read_text(encoding="utf-8") for path in folder.glob("runs/*/jobs/*log*")]
        row = {"size": size, "what": name, "overrides": overrides}
        if done.returncode and "OutOfMemoryError" in "".join([done.stdout, *logs]):
            row["error"] = "did not fit"
        elif done.returncode:
            row["error"] = f"ended with exit code {done.returncode}: see {folder}"
        else:
            summary = json.loads(next(folder.glob("runs/*/summary.json")).read_text(encoding="utf-8"))
            row["peak_memory"] = summary["peak_memory_bytes"]
        print(json.dumps(row), flush=True)
        return row

    raw = [measure(size, name, overrides) for size in sizes for name, overrides in MEMORY[size]]
    machine = facts["machine"]["gpu"] or facts["machine"]["cpu"]
    table = ["| model | training | GPU memory |", "|---|---|---|"]
    for row in raw:
        peak = row.get("error", "").partition(":")[0]
        if not peak:
            peak = f"{row['peak_memory'] / 2**30:.1f} GiB"
        table.append(f"| {row['size']} | {row['what']} | {peak} |")
    section = f"""## Memory on one GPU

{facts["date"]}, revision {facts["revision"]}, {machine};
bf16, one row of {options.sequence_length:,} tokens per step.
The memory is the largest that torch had allocated in any step (`train/peak_memory_bytes`).

    {facts["command"]}

{chr(10).join(table)}"""
    return raw, section


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--text", metavar="FOLDER", help="downloads of Lovdata's public API (default: the bundled sample)"
    )
    parser.add_argument("--sizes", type=lambda given: given.split(","), default=["1B", "8B"], help="1B,8B")
    parser.add_argument(
        "--systems", type=lambda given: given.split(","), default=list(NAMES), help=",".join(NAMES)
    )
    parser.add_argument("--sequence-length", type=int, default=4096, help="tokens per row (4096)")
    parser.add_argument("--batch-size", type=int, default=1, help="rows per optimizer step (1)")
    parser.add_argument("--steps", type=int, default=30, help="measured optimizer steps (30)")
    parser.add_argument("--warmup", type=int, default=5, help="optimizer steps before the measured ones (5)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each system (3)")
    parser.add_argument("--minutes", type=float, help="start no run after this time (default: no limit)")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="measure the peak memory of finetune's configurations instead of speed",
    )
    parser.add_argument("--attention", default="sdpa", help="TRL's attention: sdpa, flash_attention_2 (sdpa)")
    parser.add_argument(
        "--trl-python", help="the python of an environment that has TRL (default: create one)"
    )
    parser.add_argument("--wheels", help="a folder of wheels to install TRL's environment from, offline")
    parser.add_argument(
        "--tiny", action="store_true", help="use a tiny model, on a CPU or GPU; RESULTS.md is not changed"
    )
    options = parser.parse_args()
    for name, known in (("sizes", MEMORY), ("systems", NAMES)):
        unknown = set(getattr(options, name)) - set(known)
        if unknown:
            parser.error(f"--{name}: unknown {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    return options


if __name__ == "__main__":
    main()
