"""Training speed on a CPU, compared with other systems.

Run it with `make bench-peers`, or `python -m benchmarks.peers --text FOLDER`.

The task is to train a Llama with 34M parameters and random weights in fp32, by LoRA (r=8, all
linear layers). It has 2,000 documents, 512 tokens per row, 4 rows per step, and one process with
two threads. The systems train in turn, on the same documents, from the same model folder, for the
same number of steps. rules.py defines how they are measured. Nothing else should run on the machine
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import documents, harness, report, rules
from benchmarks.harness import Bench, Measurement

SHAPE = rules.Shape(
    hidden_size=512,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    intermediate_size=1920,
    vocab_size=8000,
    tie_word_embeddings=True,
)
LORA_R = 8
NAMES = {
    "finetune": "**finetune** (ZeRO 1, packed, best fit)",
    "trl": "TRL, no packing (its default)",
    "trl-bfd": "TRL, packed: bfd",
    "trl-wrapped": "TRL, packed: wrapped",
    "llamafactory": "LLaMA-Factory, neat packing",
    "axolotl": "axolotl, sample packing",
}


def main() -> None:
    options = _options()
    cache = harness.cache_folder()
    busy_at_start = harness.check_quiet(options.busy)
    load_at_start = os.getloadavg()
    print(
        f"load averages {load_at_start}, {busy_at_start:.0%} of the CPU in use; working in {cache}",
        flush=True,
    )
    corpus, texts, description = documents.make_documents(cache, options.text, options.documents)
    model = cache / "models" / f"llama-34m-{corpus.name}"
    harness.write_model(model, SHAPE, corpus / "tokenizer")
    bench = Bench(
        cache=cache,
        corpus=corpus,
        documents=texts,
        model=model,
        warmup=options.warmup,
        steps=options.steps,
        settings=_settings(model),
        allocator=options.allocator,
    )
    runs = _runs(bench, options.systems)
    limits: dict[str, list[float]] = {product: [] for product in _products()}
    measurements = []
    for number in range(options.rounds):
        for product, rounds in limits.items():
            rounds.append(harness.measure_matmul_limit(SHAPE, 4 * 512, threads=2, by=product))
        for system in options.systems:
            measurement = runs[system](number)
            _check(measurement, options)
            measurements.append(measurement)
            print(
                f"round {number + 1}/{options.rounds} {system:<14} "
                f"{measurement.tokens_per_second:7.0f} tokens/s, {measurement.peak_memory / 2**30:.2f} GiB, "
                f"{measurement.seconds:.0f} s, other processes {measurement.others_cpu:.0%} of the CPU",
                flush=True,
            )
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": report.machine(),
        "command": report.command("benchmarks.peers"),
        "revision": report.revision(),
        "options": vars(options) | {"text": bool(options.text)},
        "documents": _describe_documents(corpus, description),
        "load_at_start": load_at_start,
        "busy_at_start": busy_at_start,
        "matmul_limits": limits,
        "shape": asdict(SHAPE),
    }
    section = _describe(facts, harness.summarise(measurements), report.raw_file("peers").name)
    print(section)
    if not options.trial:
        report.write_raw("peers", facts | {"measurements": [asdict(m) for m in measurements]})
        report.write_section("peers", section)


def _describe(facts: dict[str, Any], rows: dict[str, dict[str, Any]], raw: str) -> str:
    """Return the section of RESULTS.md: the table, with the task, the machine and the versions."""
    options = facts["options"]
    machine = facts["machine"]
    flop = rules.flop_per_token(SHAPE.non_embedding_parameters, lora=True)
    versions = []
    for system, row in rows.items():
        packages = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        versions.append(f"- {system}: {packages}")
    body = f"""## Training on a CPU, compared with other systems

LoRA r={LORA_R} on all linear layers of a Llama with random weights, {SHAPE.parameters / 1e6:.1f}M parameters
({SHAPE.non_embedding_parameters / 1e6:.1f}M without embeddings);
512 tokens per row, 4 rows per optimizer step, fp32, AdamW, no gradient checkpointing,
one training process with two threads, {options["allocator"]}'s allocator for all systems.
{facts["documents"]}

{facts["date"]}, revision {facts["revision"]},
{machine["cpu"]}, {machine["cores"]} cores, {machine["memory_gib"]} GiB, Python {machine["python"]};
at the start, the load average was {facts["load_at_start"][0]:.2f}
and other processes used {facts["busy_at_start"]:.0%} of the CPU.
Raw data: `results/{raw}`.

    {facts["command"]}

{chr(10).join(_table(rows, facts["matmul_limits"], flop))}

Tokens/s are non-padding tokens that enter the model,
over {options["steps"]} steps after {options["warmup"]} warm-up steps,
without start-up, tokenising, evaluation and saving; {options["rounds"]} rounds of all systems in turn.
The matmul limit is the highest speed sustained over this model's shapes:
{_describe_limits(facts["matmul_limits"])};
training takes {flop / 1e6:.1f} MFLOP per token.
Documents are isolated if other tokens in a row's first document leave the logits of the later ones
unchanged, tested on the last batch.
finetune runs with MLflow tracking, the other systems without; it configures glibc's allocator to keep
freed memory.
torch's linear layer runs torch.mm; finetune multiplies by oneDNN on CPUs with AVX-512, where that is faster.
Documents of more than 512 tokens are truncated, split or left out by each system's default."""
    return "\n".join([body, "", *versions])


def _table(rows: dict[str, dict[str, Any]], matmul_limits: dict[str, list[float]], flop: int) -> list[str]:
    limits = {product: max(rounds) for product, rounds in matmul_limits.items()}
    columns = [
        "system",
        "tokens/s, median (min-max)",
        *(f"share of the limit of {product}" for product in limits),
        "tokens per step, of 2,048",
        "peak memory, all processes (largest)",
        "documents isolated",
        "CPU used by other processes, max",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for system, row in rows.items():
        shares = [rules.share_of_limit(row["median"], flop, limit) for limit in limits.values()]
        cells = [
            NAMES[system],
            f"{row['median']:,.0f} ({row['min']:,.0f}-{row['max']:,.0f})",
            *(f"{share:.0%}" for share in shares),
            f"{row['fill']:,.0f}",
            f"{row['peak_memory'] / 2**30:.2f} GiB ({row['largest_process'] / 2**30:.2f})",
            report.ISOLATED[row["isolated"]],
            f"{row['others_cpu']:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _runs(bench: Bench, systems: list[str]) -> dict[str, Callable[[int], Measurement]]:
    """Return, for each system, a function that measures one training run of it.

    The function takes the number of the round.
    """
    overrides = ["adapter=lora", f"adapter.r={LORA_R}", f"adapter.lora_alpha={2 * LORA_R}"]
    overrides += ["zero=stage1", "name=bench"]
    peers = sorted({system.split("-")[0] for system in systems} - {"finetune"})
    pythons = {peer: harness.environment_of(peer, bench.cache) for peer in peers}

    def run(system: str, peer: str, **special: Any) -> Callable[[int], Measurement]:
        return lambda number: bench.run_peer(system, number, pythons[peer], peer=peer, **special)

    return {
        "finetune": lambda number: bench.run_finetune("finetune", number, overrides),
        "trl": run("trl", "trl", packing=None),
        "trl-bfd": run("trl-bfd", "trl", packing="bfd"),
        "trl-wrapped": run("trl-wrapped", "trl", packing="wrapped"),
        "llamafactory": run("llamafactory", "llamafactory"),
        "axolotl": run("axolotl", "axolotl"),
    }


def _settings(model: Path) -> dict[str, Any]:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return {
        "sequence_length": 512,
        "batch_size": 4,
        "lr": 1e-4,
        "lora_r": LORA_R,
        "precision": "fp32",
        "seed": 0,
        "gradient_checkpointing": False,
        "eos_token": "</s>",
        "pad_token_id": config["pad_token_id"],
        "eos_token_id": config["eos_token_id"],
    }


def _check(measurement: Measurement, options: argparse.Namespace) -> None:
    """Exit with a message if a measurement cannot be compared with the others.

    Reasons are a wrong number of trained parameters, a wrong allocator and, without --busy, other
    processes that used more than 10% of the CPU.
    """
    if measurement.trainable_parameters != SHAPE.lora_parameters(LORA_R):
        sys.exit(
            f"{measurement.system}: trains {measurement.trainable_parameters:,} parameters instead of "
            f"{SHAPE.lora_parameters(LORA_R):,}, so its speed cannot be compared"
        )
    if measurement.allocator != options.allocator:
        sys.exit(
            f"{measurement.system}: ran with the allocator {measurement.allocator}, not {options.allocator}"
        )
    if measurement.others_cpu > 0.1 and not options.busy:
        sys.exit(
            f"other processes used {measurement.others_cpu:.0%} of the CPU during {measurement.system}; "
            f"run the benchmark again, or pass --busy"
        )


def _products() -> list[str]:
    """Return the names of the functions for matrix products whose speed is measured.

    They are torch.mm, because torch's linear layer runs it, and oneDNN if finetune uses it on this
    CPU. The names are keys of harness.PRODUCTS.
    """
    import torch

    from finetune.models.cpu_matmul import prefers_onednn

    return ["torch.mm", "oneDNN"] if prefers_onednn(torch.empty(1)) else ["torch.mm"]


def _describe_limits(limits: dict[str, list[float]]) -> str:
    described = []
    for product, rounds in limits.items():
        by_round = ", ".join(f"{limit / 1e9:.0f}" for limit in rounds)
        described.append(f"{product} {max(rounds) / 1e9:.0f} GFLOP/s (by round: {by_round})")
    return "; ".join(described)


def _describe_documents(corpus: Path, description: str) -> str:
    from data_prep.shards import Corpus

    opened = Corpus(corpus)
    lengths = sorted(len(row) for row in opened.split("train")["input_ids"])
    return (
        f"{len(lengths):,} documents with {sum(lengths):,} tokens of an 8,000-token BPE trained on them "
        f"(per document: median {statistics.median(lengths):.0f}, mean {statistics.mean(lengths):.0f}, "
        f"largest {lengths[-1]:,}): {description}."
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--text",
        metavar="FOLDER",
        help="downloads of Lovdata's public API (default: parts of the bundled sample)",
    )
    parser.add_argument("--documents", type=int, default=2000, help="number of documents (2000)")
    parser.add_argument("--steps", type=int, default=20, help="measured optimizer steps (20)")
    parser.add_argument("--warmup", type=int, default=2, help="optimizer steps before the measured ones (2)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each system (3)")
    parser.add_argument(
        "--systems", type=lambda given: given.split(","), default=list(NAMES), help=",".join(NAMES)
    )
    parser.add_argument(
        "--allocator", choices=["glibc", "jemalloc"], default="glibc", help="allocator of all systems (glibc)"
    )
    parser.add_argument(
        "--busy",
        action="store_true",
        help="measure although other processes use the CPU; the table shows how much",
    )
    parser.add_argument(
        "--trial", action="store_true", help="print the table without changing RESULTS.md and results/"
    )
    options = parser.parse_args()
    unknown = set(options.systems) - set(NAMES)
    if unknown:
        parser.error(f"--systems: unknown {', '.join(sorted(unknown))}; choose from {', '.join(NAMES)}")
    return options


if __name__ == "__main__":
    main()
