#!/usr/bin/env bash
# The whole workflow on the bundled sample: prepare a corpus, train a tiny base model from random weights, and
# fine-tune it with LoRA on sources that the base was not trained on.
# Usage: quickstart.sh [path of the finetune command]
set -euo pipefail
finetune=${1:-finetune}
export CUDA_VISIBLE_DEVICES=  # two ranks on the CPU, even on a machine with GPUs

echo "== 1/3  prepare: turn the invented sample corpus into token shards"
"$finetune" prepare corpus=sample >/dev/null

echo "== 2/3  base: train a 5.7M-parameter Llama from random weights on three of the five sources, two ranks"
base=$("$finetune" train recipe=sample_base)

echo "== 3/3  LoRA: fine-tune the base on the other two sources, two ranks, ZeRO 2"
lora=$("$finetune" train recipe=sample_lora model=run:"$base")

cat <<TEXT

Done. Both runs are in MLflow (SQLite, runs/mlflow.db); nothing was sent to another machine.
  base     $base
  LoRA     $lora
  adapter  runs/$lora/adapter
Inspect:   $finetune status
           $finetune ui              (then http://127.0.0.1:5000)
Evaluate:  $finetune evaluate $lora
Next:      your own text: write my/corpus/letters.yaml after the model of conf/corpus/sample.yaml, then
           $finetune prepare corpus=letters --config-dir my
           sweep: $finetune train -m recipe=sample_lora model=run:$base lr=2e-3,5e-3
           Slurm: slurm/README.md
TEXT
