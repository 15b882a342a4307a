"""Script that prepares a folder of JSON lines with datatrove.

It prints, as JSON, the seconds of each step, the seconds of each of datatrove's pipeline blocks, and
the size of the result. prepare.py runs it in datatrove's own environment.

Its steps are those of `finetune prepare`, as far as datatrove has them: ftfy, language
identification by py3langid (datatrove's own identifiers would have to be downloaded), Gopher's
rules, MinHash over 5-grams with the same number of bands, datatrove's masking of personal data, and
the same tokenizer. datatrove does not remove repeated boilerplate or text of evaluation sets, does
not split by group and writes no checksums. It splits text into words with spaCy.
"""

import json
import sys
import time
from pathlib import Path

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LambdaFilter
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig

LANGUAGE = "nob"


def is_norwegian(document: Document) -> bool:
    import py3langid

    return py3langid.classify(document.text)[0] in ("no", "nn")


def main() -> None:
    raw, out_folder, tokenizer, workers = sys.argv[1:]
    out = Path(out_folder)
    tasks = len(list(Path(raw).glob("*.jsonl")))
    minhash = MinhashConfig(
        hash_config=HashConfig(precision=64), num_buckets=21, hashes_per_bucket=6, n_grams=5
    )
    clean = str(out / "clean")
    hashes = str(out / "minhash")
    final = str(out / "final")
    steps = {
        "read, ftfy, language, quality": (
            tasks,
            [
                JsonlReader(raw),
                FTFYFormatter(),
                LambdaFilter(is_norwegian),
                GopherRepetitionFilter(language=LANGUAGE),
                GopherQualityFilter(language=LANGUAGE, min_stop_words=0),
                JsonlWriter(clean, compression=None),
            ],
        ),
        "signatures": (
            tasks,
            [JsonlReader(clean), MinhashDedupSignature(f"{hashes}/signatures", minhash, language=LANGUAGE)],
        ),
        "buckets": (21, [MinhashDedupBuckets(f"{hashes}/signatures", f"{hashes}/buckets", config=minhash)]),
        "cluster": (1, [MinhashDedupCluster(f"{hashes}/buckets", f"{hashes}/remove", config=minhash)]),
        "filter, personal data": (
            tasks,
            [
                JsonlReader(clean),
                MinhashDedupFilter(f"{hashes}/remove"),
                PIIFormatter(),
                JsonlWriter(final, compression=None),
            ],
        ),
        "tokenise": (
            tasks,
            [JsonlReader(final), DocumentTokenizer(str(out / "tokens"), tokenizer_name_or_path=tokenizer)],
        ),
    }
    seconds: dict[str, float] = {}
    blocks: dict[str, float] = {}
    for name, (number, pipeline) in steps.items():
        began = time.perf_counter()
        folder = out / "logs" / name.split(",")[0]
        executor = LocalPipelineExecutor(
            pipeline, tasks=number, workers=int(workers), logging_dir=str(folder), start_method="fork"
        )
        executor.run()
        seconds[name] = time.perf_counter() - began
        last = json.loads((folder / "stats.json").read_text())
        for block in last:
            title = " ".join(block["name"].encode("ascii", "ignore").decode().replace("-", "").split())
            blocks[title] = blocks.get(title, 0.0) + block["time_stats"]["total"]
    read, tokenised = (block["stats"] for block in last)
    result = {
        "documents": read["documents"]["total"],
        "tokens": tokenised["tokens"]["total"],
        "characters": read["doc_len"]["total"],
    }
    print(json.dumps({"seconds": seconds, "blocks": blocks, **result}))


if __name__ == "__main__":
    main()
