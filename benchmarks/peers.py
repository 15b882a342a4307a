"""Training speed on a CPU, ours beside its peers: `make bench-peers`, or `python -m benchmarks.peers --text
FOLDER`.

The task: LoRA r=8 on every linear layer of a 34M-parameter Llama with random weights, 512 tokens a row, 4
rows a step, fp32, one process of two threads, 2,000 documents. Every system trains on the same documents,
from the same model folder, the same number of steps, in turns, and is measured by rules.py. Nothing else
should run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import documents, harness, rules
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
    busy_at_start, load_at_start = harness.check_quiet(options.busy), os.getloadavg()
    print(
        f"load averages {load_at_start}, {busy_at_start:.0%} of the CPU in use; working in {cache}",
        flush=True,
    )
    corpus, texts, what = documents.make(cache, options.text, options.documents)
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
            rounds.append(harness.matmul_limit(SHAPE, 4 * 512, threads=2, by=product))
        for system in options.systems:
            measurement = runs[system](number)
            _check(measurement, options)
            measurements.append(measurement)
            print(
                f"round {number + 1}/{options.rounds} {system:<14} {measurement.tokens_per_second:7.0f} tokens/s, "
                f"{measurement.peak_memory / 2**30:.2f} GiB, {measurement.seconds:.0f} s, others {measurement.others_cpu:.0%}",
                flush=True,
            )
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": harness.machine(),
        "command": harness.command("benchmarks.peers"),
        "revision": harness.revision(),
        "options": vars(options) | {"text": bool(options.text)},
        "documents": _describe(corpus, what),
        "load_at_start": load_at_start,
        "busy_at_start": busy_at_start,
        "matmul_limits": limits,
        "shape": asdict(SHAPE),
    }
    report = markdown(facts, harness.summary(measurements), harness.raw_file("peers").name)
    print(report)
    if not options.trial:
        harness.write_raw("peers", facts | {"measurements": [asdict(m) for m in measurements]})
        harness.write_section("peers", report)


def markdown(facts: dict[str, Any], rows: dict[str, dict[str, Any]], raw: str) -> str:
    """The table, and beside it all that it takes to judge it."""
    options, machine = facts["options"], facts["machine"]
    limits = {product: max(rounds) for product, rounds in facts["matmul_limits"].items()}
    flop = rules.flop_per_token(SHAPE.non_embedding_parameters, lora=True)
    table = [
        f"| system | tokens/s, median (least-most) | {' | '.join(f'share of the limit of {product}' for product in limits)} "
        "| tokens a step, of 2,048 | peak memory, all processes (largest) | documents isolated | others' CPU, at most |",
        "|---" * (len(limits) + 6) + "|",
    ]
    for system, row in rows.items():
        isolated = {True: "yes", False: "**no**", None: "one a row"}[row["isolated"]]
        memory = f"{row['peak_memory'] / 2**30:.2f} GiB ({row['largest_process'] / 2**30:.2f})"
        shares = " | ".join(
            f"{rules.share_of_limit(row['median'], flop, limit):.0%}" for limit in limits.values()
        )
        table.append(
            f"| {NAMES[system]} | {row['median']:,.0f} ({row['min']:,.0f}-{row['max']:,.0f}) "
            f"| {shares} | {row['fill']:,.0f} | {memory} | {isolated} | {row['others_cpu']:.0%} |"
        )
    versions = "\n".join(
        f"- {s}: {', '.join(f'{n} {v}' for n, v in row['versions'].items())}" for s, row in rows.items()
    )
    body = f"""## Training on a CPU, beside peers

LoRA r={LORA_R} on all linear layers of a {SHAPE.parameters / 1e6:.1f}M-parameter Llama
({SHAPE.non_embedding_parameters / 1e6:.1f}M of them no embeddings), random weights, 512 tokens a row, 4 rows an optimizer step,
fp32, AdamW, no gradient checkpointing, one training process
with two threads, {options["allocator"]}'s allocator for all. {facts["documents"]}

{facts["date"]}, revision {facts["revision"]}, {machine["cpu"]}, {machine["cores"]} cores, {machine["memory_gib"]} GiB,
Python {machine["python"]}; at the start the load average was {facts["load_at_start"][0]:.2f} and others used
{facts["busy_at_start"]:.0%} of the CPU.
Raw data: `results/{raw}`.

    {facts["command"]}

{chr(10).join(table)}

Non-padding tokens that enter the model a second, over {options["steps"]} steps after {options["warmup"]} of warm-up; start-up,
tokenising, evaluation and saving left out; {options["rounds"]} rounds of all systems in turns. Matmul limit, the best that was
sustained over this model's shapes: {_describe_limits(facts["matmul_limits"])};
{flop / 1e6:.1f} MFLOP a token.
Documents isolated: whether other tokens in a row's first document leave the next one's logits alone, tried on the last batch.
finetune runs with its MLflow tracking on, the peers with none; it tells glibc's allocator to keep freed memory.
torch's linear layer runs torch.mm; finetune multiplies by oneDNN on CPUs with AVX-512, where that is faster.
What a system does with documents of more than 512 tokens (cut off, cut into pieces, left out) is its own default."""
    return f"{body}\n\n{versions}"


def _runs(bench: Bench, systems: list[str]) -> dict[str, Callable[[int], Measurement]]:
    """By system: what measures one round of it."""
    alpha = 2 * LORA_R
    ours = ["adapter=lora", f"adapter.r={LORA_R}", f"adapter.lora_alpha={alpha}", "zero=stage1", "name=bench"]
    pythons = {
        peer: harness.environment_of(peer, bench.cache)
        for peer in sorted({s.split("-")[0] for s in systems} - {"finetune"})
    }

    def peer(system: str, name: str, **special: Any) -> Callable[[int], Measurement]:
        return lambda number: bench.peer(system, number, pythons[name], peer=name, **special)

    return {
        "finetune": lambda number: bench.ours("finetune", number, ours),
        "trl": peer("trl", "trl", packing=None),
        "trl-bfd": peer("trl-bfd", "trl", packing="bfd"),
        "trl-wrapped": peer("trl-wrapped", "trl", packing="wrapped"),
        "llamafactory": peer("llamafactory", "llamafactory"),
        "axolotl": peer("axolotl", "axolotl"),
    }


def _settings(model: Path) -> dict[str, Any]:
    import json

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
    """The same work for every system, or no table."""
    if measurement.trainable_parameters != SHAPE.lora_parameters(LORA_R):
        sys.exit(
            f"{measurement.system} trains {measurement.trainable_parameters:,} parameters, "
            f"not {SHAPE.lora_parameters(LORA_R):,}: it does other work"
        )
    if measurement.allocator != options.allocator:
        sys.exit(f"{measurement.system} ran with {measurement.allocator}, not {options.allocator}")
    if measurement.others_cpu > 0.1 and not options.busy:
        sys.exit(
            f"other processes used {measurement.others_cpu:.0%} of the CPU during {measurement.system}: run again, or pass --busy"
        )


def _products() -> list[str]:
    """The ways to multiply whose limits matter here: torch's linear layer runs torch.mm, and ours oneDNN
    where that is faster."""
    import torch

    from finetune.models.cpu_matmul import prefers_onednn

    return ["torch.mm", "oneDNN"] if prefers_onednn(torch.empty(1)) else ["torch.mm"]


def _describe_limits(limits: dict[str, list[float]]) -> str:
    return "; ".join(
        f"{product} {max(rounds) / 1e9:.0f} GFLOP/s (by round: {', '.join(f'{x / 1e9:.0f}' for x in rounds)})"
        for product, rounds in limits.items()
    )


def _describe(corpus: Path, what: str) -> str:
    from data_prep.shards import Corpus

    opened = Corpus(corpus)
    lengths = sorted(len(row) for row in opened.split("train")["input_ids"])
    return (
        f"{len(lengths):,} documents, {sum(lengths):,} tokens (an 8,000-token BPE of their own), a document's median "
        f"{statistics.median(lengths):.0f}, mean {statistics.mean(lengths):.0f}, longest {lengths[-1]:,}: {what}."
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--text",
        metavar="FOLDER",
        help="downloads of Lovdata's public API (default: the bundled sample, cut up)",
    )
    parser.add_argument("--documents", type=int, default=2000, help="documents taken of it (2000)")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps measured (20)")
    parser.add_argument("--warmup", type=int, default=2, help="optimizer steps before them (2)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every system is run (3)")
    parser.add_argument(
        "--systems", type=lambda given: given.split(","), default=list(NAMES), help=",".join(NAMES)
    )
    parser.add_argument(
        "--allocator", choices=["glibc", "jemalloc"], default="glibc", help="of every system (glibc)"
    )
    parser.add_argument(
        "--busy",
        action="store_true",
        help="measure although other processes use the CPU; the table says how much",
    )
    parser.add_argument(
        "--trial", action="store_true", help="print the table, leave RESULTS.md and results/ as they are"
    )
    options = parser.parse_args()
    if unknown := set(options.systems) - set(NAMES):
        parser.error(f"--systems: unknown {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    return options


if __name__ == "__main__":
    main()
