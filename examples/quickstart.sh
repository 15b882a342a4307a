#!/usr/bin/env bash
# The whole way on the bundled sample: prepare, a tiny base from scratch, LoRA on what the base has not seen, the numbers.
# Usage: quickstart.sh [path of the finetune command]
set -euo pipefail
finetune=${1:-finetune}
export CUDA_VISIBLE_DEVICES=  # two ranks on the CPU, on every machine

echo "== 1/3  prepare: the invented sample corpus becomes token shards"
"$finetune" prepare corpus=sample >/dev/null

echo "== 2/3  base: a 5.7M-parameter Llama, from scratch, full training on three of the five sources, two ranks"
base=$("$finetune" train recipe=sample_base)

echo "== 3/3  LoRA: that model folder, fine-tuned on the two sources it has not seen, two ranks, ZeRO 2"
lora=$("$finetune" train recipe=sample_lora model=run:"$base")

cat <<TEXT

Done. Both runs are in MLflow (SQLite, runs/mlflow.db); nothing left this machine.
  base     $base
  LoRA     $lora
  adapter  runs/$lora/adapter
Look:      $finetune status
           $finetune ui              (then http://127.0.0.1:5000)
Check:     $finetune evaluate $lora
Next:      your own text: write my/corpus/letters.yaml like conf/corpus/sample.yaml, then
           $finetune prepare corpus=letters --config-dir my
           sweep: $finetune train -m recipe=sample_lora model=run:$base lr=2e-3,5e-3
           Slurm: slurm/README.md
TEXT
