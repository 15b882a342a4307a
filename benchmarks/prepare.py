"""Speed of data preparation, in MB/s.

    python -m benchmarks.prepare peers --corpora FOLDER [--megabytes 60]
        compares the whole pipeline with datatrove, and its tokenising with `datasets.map`
    python -m benchmarks.prepare growth --corpora FOLDER [--megabytes 10,100,2000]
        measures the pipeline on several sizes of input

--record writes the table into RESULTS.md; --workers sets the number of processes of each system.

The text is real (norwegian.py), repeated with every seventh word changed. All systems read the same
JSON lines from disk and write tokens of the same tokenizer. The tokenizer is trained before the
measurement. On a quiet machine, compare wall time; if other processes use the machine, compare CPU
time. CPU time and memory are summed over all processes of a system; memory is sampled.

The speed of tokenising alone is measured too. `datasets.map` gets exactly the documents of
finetune's own step `tokenise`. datatrove tokenises the documents that its own filters keep, which
is a different set. finetune's step `tokenise` writes tokens into the stages' folder, and the step
`publish` writes the corpus folder from them. The table shows the speed with and without `publish`.
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

from benchmarks import harness, report
from benchmarks.norwegian import read_documents, write_text
from data_prep.stage_files import StageFolder

# from linux/prctl.h: orphaned descendants become children of this process, which can wait for them
PR_SET_CHILD_SUBREAPER = 36
FILES = 4
VOCABULARY = 16_000


@dataclass
class Timed:
    """The cost and the output of a command.

    Attributes:
        wall: seconds of wall time.
        cpu: seconds of CPU time of all its processes.
        memory: peak resident memory of all its processes together, in bytes.
        largest: peak resident memory of its largest process, in bytes.
    """

    wall: float
    cpu: float
    memory: int
    largest: int
    out: str
    err: str


def run_timed(command: list[str | Path], **environment: str) -> Timed:
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
        sys.exit(f"{command[0]} ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    memory = max(sample["resident"] for sample in sampler.samples)
    largest = max(sample["largest"] for sample in sampler.samples)
    return Timed(wall, cpu, int(memory), int(largest), done.stdout, done.stderr)


def _reap() -> None:
    """Wait until orphaned processes, such as a fork server, end, so that their CPU time counts."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


class Bench:
    """The raw text and the tokenizer of the benchmark. Both are kept in a cache folder."""

    def __init__(self, corpora: Path, workers: int) -> None:
        self.cache = harness.cache_folder() / "prepare"
        self.workers = workers
        self.texts = [document.whole_text for document in read_documents(corpora)]
        self.tokenizer = self.cache / "tokenizer"

    def write_raw_text(self, megabytes: int) -> Path:
        """Return the folder with raw text of this size; create it and the tokenizer if missing."""
        folder = self.cache / f"raw-{megabytes}"
        if not (folder / ".done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            write_text(folder, self.texts, megabytes, max(FILES, megabytes // 50))
            (folder / ".done").touch()
        if not self.tokenizer.exists():
            self._train_tokenizer()
        return folder

    def _train_tokenizer(self) -> None:
        from data_prep.config import CorpusConfig, SourceConfig
        from data_prep.stage_settings import TokenizerConfig
        from data_prep.tokens.tokenizer_files import place_files

        source = SourceConfig(reader="text", path="-", license="-")
        config = CorpusConfig(
            name="bench", sources={"s": source}, tokenizer=TokenizerConfig(vocab_size=VOCABULARY)
        )
        place_files(config, self.texts, self.tokenizer)

    def run_finetune(self, raw: Path, name: str = "bench") -> tuple[Timed, dict[str, float], dict[str, int]]:
        """Run `finetune prepare`.

        Returns:
            Its cost; the seconds of each step; and the numbers of documents and tokens.
        """
        conf = self.cache / "conf"
        out = self.cache / "corpora"
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
        done = run_timed([harness.FINETUNE, "prepare", *arguments])
        logged = re.findall(r"^([\w.]+): \d+ tasks, ([\d.]+) s$", done.err, re.M)
        steps = {step: float(seconds) for step, seconds in logged}
        manifest = json.loads((out / name / "manifest.json").read_text())
        shards = [shard for split in manifest["splits"].values() for shard in split]
        found = {
            "read": manifest["stages"][0]["documents_out"],
            "documents": sum(s["documents"] for s in shards),
            "tokens": sum(s["tokens"] for s in shards),
        }
        return done, steps, found

    def write_tokenised_documents(self, name: str = "bench") -> tuple[Path, int]:
        """Write a file of JSON lines with the documents that finetune's tokenise step reads.

        Call it after `run_finetune`, which prepares these documents.

        Returns:
            Their folder, and their number of characters.
        """
        (last,) = (self.cache / "corpora" / f".{name}.stages").glob("*-mixture")
        folder = harness.make_empty(self.cache / "tokenised")
        characters = 0
        with (folder / "documents.jsonl").open("w", encoding="utf-8") as out:
            for document in StageFolder(last).documents():
                out.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
                characters += len(document.text)
        return folder, characters


def compare(bench: Bench, megabytes: int) -> Iterator[str]:
    """Run all systems on the same text; yield the lines of the tables."""
    raw = bench.write_raw_text(megabytes)
    size = sum(path.stat().st_size for path in raw.glob("*.jsonl")) / 1e6
    ours, our_steps, found = bench.run_finetune(raw)
    datatrove = harness.environment_of("datatrove", harness.cache_folder())
    folder = harness.make_empty(bench.cache / "datatrove")
    tokenizer = bench.tokenizer / "tokenizer.json"
    workers = str(bench.workers)
    theirs = run_timed([datatrove, harness.HERE / "datatrove_steps.py", raw, folder, tokenizer, workers])
    printed = json.loads(theirs.out.splitlines()[-1])
    documents, characters = bench.write_tokenised_documents()
    folder = harness.make_empty(bench.cache / "datasets")
    script = harness.HERE / "datasets_map.py"
    mapped = run_timed([sys.executable, script, documents, folder, bench.tokenizer, workers])
    yield f"{size:.0f} MB, {found['read']:,} documents, {bench.workers} processes each."
    yield f"finetune keeps {found['documents']:,} documents with {found['tokens']:,} tokens."
    yield "datatrove, whose rules are stricter for laws and minutes,"
    yield f"keeps {printed['documents']:,} with {printed['tokens']:,}, so its later steps have less to do."
    yield ""
    yield "| whole pipeline | seconds | MB/s | documents/s | CPU seconds | MB per CPU second | memory |"
    yield "|---|---|---|---|---|---|---|"
    for name, run in (("finetune prepare", ours), ("datatrove", theirs)):
        speed = f"{run.wall:.1f} | {size / run.wall:.2f} | {found['read'] / run.wall:,.0f}"
        cpu = f"{run.cpu:.1f} | {size / run.cpu:.2f}"
        yield f"| {name} | {speed} | {cpu} | {run.memory / 2**20:,.0f} MiB |"
    yield (
        f"\nfinetune is {theirs.wall / ours.wall:.1f} times as fast by wall time, "
        f"and {theirs.cpu / ours.cpu:.1f} times by CPU time.\n"
    )
    blocks = [f"{name} {seconds:.0f}" for name, seconds in printed["blocks"].items() if seconds >= 1]
    yield f"Seconds of all of datatrove's processes, by block: {', '.join(blocks)}."
    yield "datatrove identifies the language of a document by all its text, finetune by up to 600"
    yield "characters of each stretch of 200 to 1,500. datatrove has no stages for repeated boilerplate,"
    yield "evaluation sets, held-out groups and checksums.\n"
    yield from _step_table(size, list(our_steps.items()), list(printed["seconds"].items()))
    map_steps = json.loads(mapped.out.splitlines()[-1])
    rows = [
        ("finetune prepare", characters, our_steps["tokenise"]),
        ("finetune prepare, with `publish`", characters, our_steps["tokenise"] + our_steps["publish"]),
        ("datatrove", printed["characters"], printed["seconds"]["tokenise"]),
        *((f"datasets.map, {name}", characters, seconds) for name, seconds in map_steps.items()),
    ]
    yield from _tokenising_table(rows)


def _step_table(size: float, ours: list[tuple[str, float]], theirs: list[tuple[str, float]]) -> Iterator[str]:
    yield "| finetune's step | seconds | MB/s | | datatrove's step | seconds | MB/s |"
    yield "|---|---|---|---|---|---|---|"
    for row in range(max(len(ours), len(theirs))):
        cells = []
        for steps in (ours, theirs):
            if row < len(steps):
                step, seconds = steps[row]
                cells.append(f"{step} | {seconds:.1f} | {size / max(seconds, 0.05):.1f}")
            else:
                cells.append(" | | ")
        yield f"| {cells[0]} | | {cells[1]} |"


def _tokenising_table(rows: list[tuple[str, int, float]]) -> Iterator[str]:
    """Yield the lines of a table of (system, characters, seconds); the first row is finetune's."""
    yield (
        "\n| tokenising alone | million characters | seconds | million characters/s "
        "| finetune is … times as fast |"
    )
    yield "|---|---|---|---|---|"
    _, characters, seconds = rows[0]
    our_speed = characters / seconds
    for name, characters, seconds in rows:
        speed = characters / seconds
        figures = f"{characters / 1e6:.1f} | {seconds:.2f} | {speed / 1e6:.1f} | {our_speed / speed:.1f}"
        yield f"| {name} | {figures} |"


def measure_growth(bench: Bench, sizes: list[int]) -> Iterator[str]:
    """Run `finetune prepare` on texts of several sizes; yield the lines of the table."""
    columns = ("MB", "documents", "seconds", "MB/s", "CPU seconds per MB", "memory of all processes")
    yield f"| {' | '.join(columns)} | of the largest |"
    yield "|---|---|---|---|---|---|---|"
    for megabytes in sizes:
        raw = bench.write_raw_text(megabytes)
        size = sum(path.stat().st_size for path in raw.glob("*.jsonl")) / 1e6
        done, _, found = bench.run_finetune(raw)
        speed = f"{done.wall:,.0f} | {size / done.wall:.2f} | {done.cpu / size:.2f}"
        memory = f"{done.memory / 2**20:,.0f} MiB | {done.largest / 2**20:,.0f} MiB"
        line = f"| {size:,.0f} | {found['read']:,} | {speed} | {memory} |"
        print(line, file=sys.stderr, flush=True)
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure data preparation in MB/s, compared with other systems or by size of the input."
    )
    parser.add_argument("table", choices=["peers", "growth"])
    parser.add_argument("--corpora", type=Path, required=True, help="a folder like ../shared/corpora")
    parser.add_argument(
        "--megabytes", type=lambda text: [int(part) for part in text.split(",")], help="size of the raw text"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of each system (2)")
    parser.add_argument("--note", default="", help="a line for the report, e.g. on other use of the machine")
    parser.add_argument("--record", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    bench = Bench(options.corpora, options.workers)
    if options.table == "peers":
        title = "Data preparation, compared with other systems"
        lines = compare(bench, (options.megabytes or [60])[0])
    else:
        title = "Data preparation, by size of the input"
        lines = measure_growth(bench, options.megabytes or [10, 100, 2000])
    head = [f"## {title}", "", report.origin("benchmarks.prepare")]
    if options.note:
        head.append(options.note)
    body = "\n".join([*head, "", *lines])
    print(body)
    if options.record:
        report.write_section(f"prepare-{options.table}", body)


if __name__ == "__main__":
    main()
