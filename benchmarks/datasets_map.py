"""Tokenises a folder of JSON lines with `datasets.map`, as training libraries do; prepare.py runs it. Prints
seconds as JSON."""

import json
import sys
import time

from datasets import load_dataset
from transformers import AutoTokenizer


def main() -> None:
    raw, cache, tokenizer, workers = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    tok = AutoTokenizer.from_pretrained(tokenizer)
    rows = load_dataset("json", data_files=f"{raw}/*.jsonl", split="train", cache_dir=cache)
    began = time.perf_counter()
    # one text at a time is what TRL's own tokenize does; by batches is what a careful user writes
    rows.map(
        lambda row: {"input_ids": [*tok(row["text"])["input_ids"], tok.eos_token_id]},
        num_proc=workers,
        remove_columns=rows.column_names,
    )
    single = time.perf_counter() - began
    began = time.perf_counter()
    rows.map(
        lambda batch: {"input_ids": [[*ids, tok.eos_token_id] for ids in tok(batch["text"])["input_ids"]]},
        batched=True,
        num_proc=workers,
        remove_columns=rows.column_names,
    )
    print(json.dumps({"one at a time": single, "by batches": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
