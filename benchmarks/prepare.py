"""Data preparation in MB/s, stage by stage, beside datatrove and `datasets.map`, and how it grows.

    python -m benchmarks.prepare peers --corpora FOLDER [--megabytes 60]         # the whole pipeline, and
    tokenising python -m benchmarks.prepare growth --corpora FOLDER [--megabytes 10,100,2000]
    … --record puts the table into RESULTS.md, --workers 2 is how many processes each system gets

The text is real (norwegian.py), over and over with every seventh word changed. All systems read the same JSON
lines from disk and write tokens of the same tokenizer, trained before the clock starts. Wall time is what
counts on a quiet machine; CPU time, of all processes together, says more where others use the machine too.
Memory is that of all processes together, sampled.

Tokenising alone: `datasets.map` is given the very documents that our own step is given. datatrove's filters
let others through, so its rate is of what it has left. Our step leaves tokens in the stages' folder;
`publish` makes the corpus folder of them.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import harness
from benchmarks.norwegian import documents, write_text
from data_prep.stage_files import StageFolder

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: what processes leave behind becomes this one's to wait for
FILES = 4
VOCABULARY = 16_000


@dataclass
class Timed:
    """What a command took: seconds on the wall, CPU seconds of all its processes, their memory at most, and
    what it printed."""

    wall: float
    cpu: float
    memory: int
    largest: int
    out: str
    err: str


def timed(command: list[str | Path], **environment: str) -> Timed:
    mark = uuid.uuid4().hex
    sampler = harness.Sampler(mark, gpu=False)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    sampler.start()
    began = time.perf_counter()
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, harness.MARK: mark, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    wall = time.perf_counter() - began
    _reap()
    sampler.stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    memory, largest = (max(sample[key] for sample in sampler.samples) for key in ("resident", "largest"))
    return Timed(wall, cpu, int(memory), int(largest), done.stdout, done.stderr)


def _reap() -> None:
    """Wait for what processes left behind (a server that others were forked from), so that their CPU time is
    counted too."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


class Bench:
    """The raw text and the tokenizer, made once in a cache folder."""

    def __init__(self, corpora: Path, workers: int) -> None:
        self.cache, self.workers = harness.cache_folder() / "prepare", workers
        self.texts = [document.whole_text for document in documents(corpora)]
        self.tokenizer = self.cache / "tokenizer"

    def raw(self, megabytes: int) -> Path:
        folder = self.cache / f"raw-{megabytes}"
        if not (folder / ".done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            write_text(folder, self.texts, megabytes, max(FILES, megabytes // 50))
            (folder / ".done").touch()
        if not self.tokenizer.exists():
            self._train()
        return folder

    def _train(self) -> None:
        from data_prep.config import CorpusConfig, SourceConfig
        from data_prep.stage_settings import TokenizerConfig
        from data_prep.tokens.tokenizer_files import place_files

        source = SourceConfig(reader="text", path="-", license="-")
        config = CorpusConfig(
            name="bench", sources={"s": source}, tokenizer=TokenizerConfig(vocab_size=VOCABULARY)
        )
        place_files(config, self.texts, self.tokenizer)

    def ours(self, raw: Path, name: str = "bench") -> tuple[Timed, dict[str, float], dict[str, int]]:
        """Time, seconds by step, and documents and tokens that came out."""
        conf, out = self.cache / "conf", self.cache / "corpora"
        shutil.rmtree(out, ignore_errors=True)
        (conf / "corpus").mkdir(parents=True, exist_ok=True)
        sources = {"raw": {"reader": "jsonl", "path": str(raw), "license": "-"}}
        body = {"name": name, "sources": sources, "tokenizer": {"path": str(self.tokenizer)}}
        (conf / "corpus" / "bench.yaml").write_text(json.dumps(body))
        arguments: list[str | Path] = [
            "corpus=bench",
            "--config-dir",
            conf,
            f"corpora_dir={out}",
            f"workers={self.workers}",
        ]
        done = timed([harness.FINETUNE, "prepare", *arguments])
        steps = {
            step: float(seconds)
            for step, seconds in re.findall(r"^([\w.]+): \d+ tasks, ([\d.]+) s$", done.err, re.M)
        }
        manifest = json.loads((out / name / "manifest.json").read_text())
        shards = [shard for split in manifest["splits"].values() for shard in split]
        found = {
            "read": manifest["stages"][0]["documents_out"],
            "documents": sum(s["documents"] for s in shards),
            "tokens": sum(s["tokens"] for s in shards),
        }
        return done, steps, found

    def tokenised(self, name: str = "bench") -> tuple[Path, int]:
        """The documents that our tokenise step was given, as JSON lines, and their characters."""
        (last,) = (self.cache / "corpora" / f".{name}.stages").glob("*-mixture")
        folder, characters = harness.fresh(self.cache / "tokenised"), 0
        with (folder / "documents.jsonl").open("w", encoding="utf-8") as out:
            for document in StageFolder(last).documents():
                out.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
                characters += len(document.text)
        return folder, characters


def peers(bench: Bench, megabytes: int) -> Iterator[str]:
    raw = bench.raw(megabytes)
    size = sum(path.stat().st_size for path in raw.glob("*.jsonl")) / 1e6
    done, steps, found = bench.ours(raw)
    datatrove = harness.environment_of("datatrove", harness.cache_folder())
    folder = harness.fresh(bench.cache / "datatrove")
    tokenizer = str(bench.tokenizer / "tokenizer.json")
    theirs = timed(
        [datatrove, harness.HERE / "datatrove_steps.py", raw, folder, tokenizer, str(bench.workers)]
    )
    said = json.loads(theirs.out.splitlines()[-1])
    their_steps = said["seconds"]
    documents, characters = bench.tokenised()
    folder = harness.fresh(bench.cache / "datasets")
    mapped = timed(
        [
            sys.executable,
            harness.HERE / "datasets_map.py",
            documents,
            folder,
            bench.tokenizer,
            str(bench.workers),
        ]
    )
    map_steps = json.loads(mapped.out.splitlines()[-1])
    yield f"{size:.0f} MB, {found['read']:,} documents, {bench.workers} processes each."
    yield f"{found['documents']:,} documents and {found['tokens']:,} tokens come out of ours; out of datatrove, whose rules are"
    yield f"stricter on law and minutes, {said['documents']:,} and {said['tokens']:,}: its later steps have less to do."
    yield ""
    yield "| whole pipeline | seconds | MB/s | documents/s | CPU seconds | MB a CPU second | memory |"
    yield "|---|---|---|---|---|---|---|"
    for name, run in (("finetune prepare", done), ("datatrove", theirs)):
        yield (
            f"| {name} | {run.wall:.1f} | {size / run.wall:.2f} | {found['read'] / run.wall:,.0f} | {run.cpu:.1f} | "
            f"{size / run.cpu:.2f} | {run.memory / 2**20:,.0f} MiB |"
        )
    yield f"\nOurs is {theirs.wall / done.wall:.1f} times as fast on the wall, {theirs.cpu / done.cpu:.1f} times by CPU time.\n"
    blocks = ", ".join(f"{name} {seconds:.0f}" for name, seconds in said["blocks"].items() if seconds >= 1)
    yield f"Seconds of datatrove's processes together, by block: {blocks}."
    yield "It reads a document whole for its language, we up to 600 characters of each stretch of 200 to 1,500; it has no stages"
    yield "for repeated boilerplate, evaluation sets, groups that are held out, and checksums.\n"
    yield "| our step | seconds | MB/s | | datatrove's step | seconds | MB/s |"
    yield "|---|---|---|---|---|---|---|"
    left, right = list(steps.items()), list(their_steps.items())
    for row in range(max(len(left), len(right))):
        cells = [
            f"{side[row][0]} | {side[row][1]:.1f} | {size / max(side[row][1], 0.05):.1f}"
            if row < len(side)
            else " | | "
            for side in (left, right)
        ]
        yield f"| {cells[0]} | | {cells[1]} |"
    yield "\n| tokenising alone | million characters | seconds | million characters/s | ours is … times as fast |"
    yield "|---|---|---|---|---|"
    ours = characters / steps["tokenise"]
    for name, amount, seconds in (
        ("finetune prepare", characters, steps["tokenise"]),
        ("finetune prepare, with `publish`", characters, steps["tokenise"] + steps["publish"]),
        ("datatrove", said["characters"], their_steps["tokenise"]),
        *((f"datasets.map, {name}", characters, seconds) for name, seconds in map_steps.items()),
    ):
        yield f"| {name} | {amount / 1e6:.1f} | {seconds:.2f} | {amount / seconds / 1e6:.1f} | {ours * seconds / amount:.1f} |"


def growth(bench: Bench, sizes: list[int]) -> Iterator[str]:
    yield "| MB | documents | seconds | MB/s | CPU seconds a MB | memory of all processes | of the largest |"
    yield "|---|---|---|---|---|---|---|"
    for megabytes in sizes:
        raw = bench.raw(megabytes)
        size = sum(path.stat().st_size for path in raw.glob("*.jsonl")) / 1e6
        done, _, found = bench.ours(raw)
        line = (
            f"| {size:,.0f} | {found['read']:,} | {done.wall:,.0f} | {size / done.wall:.2f} | {done.cpu / size:.2f} | "
            f"{done.memory / 2**20:,.0f} MiB | {done.largest / 2**20:,.0f} MiB |"
        )
        print(line, file=sys.stderr, flush=True)
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description="Data preparation in MB/s, beside peers, and how it grows.")
    parser.add_argument("table", choices=["peers", "growth"])
    parser.add_argument("--corpora", type=Path, required=True, help="a folder like ../shared/corpora")
    parser.add_argument(
        "--megabytes", type=lambda text: [int(part) for part in text.split(",")], help="of raw text"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--note", default="", help="a line for the table, on what else the machine did")
    parser.add_argument("--record", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    bench = Bench(options.corpora, options.workers)
    if options.table == "peers":
        title, lines = "Preparation beside peers", list(peers(bench, (options.megabytes or [60])[0]))
    else:
        title, lines = "Preparation: growth", list(growth(bench, options.megabytes or [10, 100, 2000]))
    body = "\n".join(
        [
            f"## {title}",
            "",
            harness.origin("benchmarks.prepare"),
            *([options.note] if options.note else []),
            "",
            *lines,
        ]
    )
    print(body)
    if options.record:
        harness.write_section(f"prepare-{options.table}", body)


if __name__ == "__main__":
    main()
