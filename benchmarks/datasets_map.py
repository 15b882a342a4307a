"""Script that tokenises a folder of JSON lines with `datasets.map`, as training libraries do.

It prints its duration in seconds as JSON. prepare.py runs it.
"""

import json
import sys
import time

from datasets import load_dataset
from transformers import AutoTokenizer


def main() -> None:
    raw, cache, tokenizer_folder, workers = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    eos = tokenizer.eos_token_id
    rows = load_dataset("json", data_files=f"{raw}/*.jsonl", split="train", cache_dir=cache)
    began = time.perf_counter()
    # TRL tokenises one text at a time. The second call tokenises batches, as a careful user would.
    rows.map(
        lambda row: {"input_ids": [*tokenizer(row["text"])["input_ids"], eos]},
        num_proc=int(workers),
        remove_columns=rows.column_names,
    )
    single = time.perf_counter() - began
    began = time.perf_counter()
    rows.map(
        lambda batch: {"input_ids": [[*ids, eos] for ids in tokenizer(batch["text"])["input_ids"]]},
        batched=True,
        num_proc=int(workers),
        remove_columns=rows.column_names,
    )
    print(json.dumps({"one at a time": single, "by batches": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
