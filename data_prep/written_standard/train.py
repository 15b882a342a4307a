"""Makes the table: python -m data_prep.written_standard.train --ton FOLDER --nav FILE [--out FILE]

FOLDER holds sentences_talk_of_norway_7k_nob.txt and …_nno.txt (parliament, one sentence a line), FILE is NAV's letters in
parallel (JSON lines with `path`, `nob`, `nno`). Three in ten of NAV's files are kept out of the training, and tested on:
`python -m benchmarks.language` prints the figures. The result is weights, no text, and the same bytes for the same input.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data_prep.shards import sha256_file
from data_prep.written_standard.table import TABLE, features, words

STANDARDS = ("nob", "nno")
SENTENCES = "sentences_talk_of_norway_7k_{}.txt"
MIN_COUNT = 3  # a feature seen less often says nothing, and may be a name
SMOOTHING = 0.5  # added to each count, so that a feature of one standard alone gets no infinite weight
MIN_WEIGHT = 0.1  # nats; less is noise
TEST_TENTHS = 3


def is_test(path: str) -> bool:
    """Whether a file of NAV's letters is kept for the test: a pure function of its name."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=4).digest(), "big") % 10 < TEST_TENTHS


def nav_records(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def fit(texts: dict[str, Iterable[str]]) -> dict[str, float]:
    """Log-odds of each feature: of its frequency in Nynorsk against that in Bokmål, rounded to hundredths, by name."""
    counts = {s: Counter(f for text in texts[s] for word in words(text) for f in features(word)) for s in STANDARDS}
    nob, nno = (counts[standard] for standard in STANDARDS)
    known = {feature for feature in nob.keys() | nno.keys() if nob[feature] + nno[feature] >= MIN_COUNT}
    total = {s: sum(counts[s].values()) + SMOOTHING * len(known) for s in STANDARDS}
    odds = math.log(total["nob"]) - math.log(total["nno"])
    weights = {f: round(math.log(nno[f] + SMOOTHING) - math.log(nob[f] + SMOOTHING) + odds, 2) for f in sorted(known)}
    return {feature: weight for feature, weight in weights.items() if abs(weight) >= MIN_WEIGHT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ton", type=Path, required=True, help="folder with Talk of Norway's sentences")
    parser.add_argument("--nav", type=Path, required=True, help="NAV's letters in parallel, JSON lines")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(TABLE))
    options = parser.parse_args()
    letters = [record for record in nav_records(options.nav) if not is_test(record["path"])]
    sources = {s: options.ton / SENTENCES.format(s) for s in STANDARDS}
    texts: dict[str, Iterable[str]] = {
        s: [*sources[s].read_text(encoding="utf-8").splitlines(), *(record[s] for record in letters if s in record)]
        for s in STANDARDS
    }
    weights = fit(texts)
    digests = "".join(f"# sha256 {sha256_file(path)}  {path.name}\n" for path in (*sources.values(), options.nav))
    head = "# log-odds of Nynorsk against Bokmål; licences and figures: README.md; made by train.py from\n" + digests
    options.out.write_text(head + "".join(f"{f}\t{w:g}\n" for f, w in weights.items()), encoding="utf-8")


if __name__ == "__main__":
    main()
