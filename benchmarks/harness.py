"""Runs one system in its own environment and measures it from outside; what both tables share."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
import time
import uuid
import venv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import rules

HERE = Path(__file__).parent
MARK = "FINETUNE_BENCH_RUN"
FINETUNE = Path(sys.executable).with_name("finetune")
JEMALLOC = "libjemalloc.so.2"


@dataclass
class Measurement:
    """One training run of one system, warm-up, start-up and evaluation left out.

    Attributes:
        seconds: of the measured steps.
        peak_memory: bytes of resident memory of all processes of the run together, sampled while steps were
            measured; pages they share are counted once for each.
        largest_process: the same, of the largest process alone.
        others_cpu: share of the machine's CPU time that processes outside the run used meanwhile.
        isolated: whether documents in one row see only themselves; None where every row holds one document.
    """

    system: str
    round: int
    tokens_per_second: float
    tokens: list[int]
    seconds: float
    peak_memory: int
    largest_process: int
    others_cpu: float
    allocator: str
    trainable_parameters: int
    isolated: bool | None
    versions: dict[str, str]
    gpu_memory: int | None = None


class Sampler(threading.Thread):
    """Watches the processes that carry a run's mark in their environment, twice a second, wherever their
    parents went."""

    def __init__(self, mark: str, gpu: bool) -> None:
        super().__init__(daemon=True)
        self._mark, self._gpu = mark, gpu
        self._ours: dict[tuple[int, float], bool] = {}
        self._ended = threading.Event()
        self.samples: list[dict[str, float]] = []
        self.jemalloc = False

    def run(self) -> None:
        while not self._ended.wait(0.5):
            self.samples.append(self._sample())

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def between(self, start: float, end: float) -> list[dict[str, float]]:
        window = [sample for sample in self.samples if start <= sample["time"] <= end]
        if len(window) < 2:
            raise ValueError("the measured steps took less than a second: raise --steps")
        return window

    def _sample(self) -> dict[str, float]:
        resident, busy = [], 0.0
        for process in psutil.process_iter():
            try:
                key = (process.pid, process.create_time())
                if key not in self._ours:
                    self._ours[key] = process.environ().get(MARK) == self._mark
                if not self._ours[key]:
                    continue
                with process.oneshot():
                    resident.append(process.memory_info().rss)
                    times = process.cpu_times()
                    busy += times.user + times.system
                if resident[-1] == max(resident):
                    self.jemalloc = "jemalloc" in Path(f"/proc/{process.pid}/maps").read_text()
            except (psutil.Error, OSError):
                continue  # it ended between two looks, or is not ours to read
        machine = psutil.cpu_times()
        total = sum(machine) - getattr(machine, "guest", 0) - getattr(machine, "guest_nice", 0)
        idle = machine.idle + getattr(machine, "iowait", 0)
        return {
            "time": time.time(),
            "resident": sum(resident),
            "largest": max(resident, default=0),
            "busy": busy,
            "machine_busy": total - idle,
            "machine_total": total,
            "gpu": _gpu_memory() if self._gpu else 0,
        }


def others_cpu(window: list[dict[str, float]]) -> float:
    """Share of the machine's CPU time that went to other processes; a run's processes that ended meanwhile
    count as others."""
    first, last = window[0], window[-1]
    elsewhere = (last["machine_busy"] - first["machine_busy"]) - (last["busy"] - first["busy"])
    return max(0.0, elsewhere / (last["machine_total"] - first["machine_total"]))


@dataclass
class Bench:
    """What is the same for every system of a table."""

    cache: Path
    corpus: Path
    documents: Path
    model: Path
    warmup: int
    steps: int
    settings: dict[str, Any]
    allocator: str = "glibc"
    threads: int | None = 2
    gpu: bool = False

    def environment(self, mark: str) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if key not in ("LD_PRELOAD", "PYTHONPATH", "OMP_NUM_THREADS")
        }
        kept |= {
            MARK: mark,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "AXOLOTL_DO_NOT_TRACK": "1",
        }
        kept |= {"DO_NOT_TRACK": "1", "HF_HOME": str(self.cache / "huggingface")}
        if self.threads:
            kept |= {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        if self.allocator == "jemalloc":
            kept["LD_PRELOAD"] = find_jemalloc()
        return kept

    def measure(self, system: str, round: int, command: list[str], folder: Path, read: Any) -> Measurement:
        """Run `command`; `read(folder)` then gives its steps. Its output goes to `folder`/log.txt."""
        mark = uuid.uuid4().hex
        sampler = Sampler(mark, self.gpu)
        sampler.start()
        try:
            with (folder / "log.txt").open("w", encoding="utf-8") as log:
                done = subprocess.run(
                    command, stdout=log, stderr=log, env=self.environment(mark), cwd=folder, check=False
                )
        finally:
            sampler.stop()
        if done.returncode:
            raise RuntimeError(f"{system} ended with exit code {done.returncode}: see {folder / 'log.txt'}")
        raw = read(folder)
        tokens, ends = raw["tokens"], raw["ends"]
        if len(tokens) != self.warmup + self.steps:
            raise RuntimeError(
                f"{system} took {len(tokens)} steps, not {self.warmup + self.steps}: see {folder / 'log.txt'}"
            )
        window = sampler.between(ends[self.warmup - 1], ends[-1])
        return Measurement(
            system,
            round,
            rules.tokens_per_second(tokens, ends, self.warmup),
            tokens,
            ends[-1] - ends[self.warmup - 1],
            int(max(sample["resident"] for sample in window)),
            int(max(sample["largest"] for sample in window)),
            others_cpu(window),
            "jemalloc" if sampler.jemalloc else "glibc",
            raw["trainable_parameters"],
            raw["isolated"],
            raw["versions"],
            int(max(sample["gpu"] for sample in window)) or None,
        )

    def ours(self, system: str, round: int, overrides: list[str]) -> Measurement:
        """Our product, as a user runs it: `finetune train`, MLflow included; measured from its own
        metrics.jsonl."""
        folder = fresh(self.cache / "out" / system)
        return self.measure(system, round, self.our_command(folder, round, overrides), folder, _read_ours)

    def our_command(self, folder: Path, round: int, overrides: list[str]) -> list[str]:
        s = self.settings
        return [
            str(FINETUNE),
            "train",
            f"data.corpus={self.corpus}",
            f"model={self.model}",
            f"runs_dir={folder / 'runs'}",
            f"data.sequence_length={s['sequence_length']}",
            f"micro_batch_size={s['batch_size']}",
            f"global_batch_size={s['batch_size']}",
            f"max_steps={self.warmup + self.steps}",
            f"lr={s['lr']}",
            f"precision={s['precision']}",
            f"seed={s['seed'] + round}",
            "checkpoint_every=0",
            "check_first_loss=false",  # the base is random on purpose
            *overrides,
        ]

    def peer(self, system: str, round: int, python: Path, **special: Any) -> Measurement:
        """A peer in its own environment, through meter.py."""
        folder = fresh(self.cache / "out" / system)
        settings = self.settings | {"seed": self.settings["seed"] + round} | special
        settings |= {
            "num_steps": self.warmup + self.steps,
            "documents": str(self.documents),
            "model": str(self.model),
        }
        settings |= {"output": str(folder / "output"), "result": str(folder / "measured.json")}
        path = folder / "settings.json"
        path.write_text(json.dumps(settings), encoding="utf-8")
        return self.measure(
            system, round, [str(python), str(HERE / "meter.py"), str(path)], folder, _read_peer
        )


def environment_of(peer: str, cache: Path, wheels: str | None = None) -> Path:
    """The python of a peer's own environment, made on the first call. requirements/<peer>.txt says what is in
    it and how.

    Args:
        wheels: a folder of wheel files to install from instead of the index.
    """
    requirements = HERE / "requirements" / f"{peer}.txt"
    folder = cache / "venvs" / f"{peer}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]}"
    python = folder / "bin" / "python"
    if not (folder / ".done").exists():
        print(f"making the environment of {peer} in {folder} (some minutes)", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        torch = [line for line in requirements.read_text().splitlines() if line.startswith("torch==")]
        source = ["--no-index", "--find-links", wheels] if wheels else []
        # torch alone, with what it needs; the rest is a whole lock: resolved again, some pins exclude each
        # other
        for what in ([torch] if torch else []) + [["--no-deps", "-r", str(requirements)]]:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *source, *what], check=True)
        (folder / ".done").touch()
    return python


def write_model(
    folder: Path,
    shape: rules.Shape,
    tokenizer: Path,
    dtype: str = "float32",
    max_positions: int = 2048,
    device: str = "cpu",
) -> None:
    """A Llama with random weights and the corpus' tokenizer: the same files for every system.

    Args:
        device: where the weights are drawn; a GPU is quicker for billions of them.
    """
    if (folder / ".done").exists():
        return
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    ids = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    eos, pad = (next(t["id"] for t in ids if t["content"] == token) for token in ("</s>", "<pad>"))
    config = LlamaConfig(
        **asdict(shape),
        max_position_embeddings=max_positions,
        eos_token_id=eos,
        pad_token_id=pad,
        bos_token_id=None,
        dtype=dtype,
    )
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype))
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    model.save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    (folder / ".done").touch()


PRODUCTS = {
    "torch.mm": "torch.mm(a, b)",
    "oneDNN": "torch.ops.mkldnn._linear_pointwise(a, transposed, None, 'none', [], '')",
}


def matmul_limit(
    shape: rules.Shape,
    tokens: int,
    threads: int | None,
    dtype: str = "float32",
    seconds: float = 1.0,
    by: str = "torch.mm",
) -> float:
    """The best FLOP/s that a product sustains for `seconds` over the shapes of the model's own matrix
    products.

    Args:
        by: key of PRODUCTS. torch.mm is what torch's linear layer runs; on a CPU with AVX-512 oneDNN may be
            faster.
    """
    product = PRODUCTS[by]
    code = f"""
import time, torch
{f"torch.set_num_threads({threads})" if threads else ""}
device = "cuda" if torch.cuda.is_available() else "cpu"
wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
best = 0.0
for m, k, n in {shape.matmuls(tokens)}:
    a, b = (torch.randn(size, device=device, dtype=torch.{dtype}) for size in ((m, k), (k, n)))
    transposed = b.T.contiguous()
    for _ in range(3): {product}
    wait(); count, began = 0, time.perf_counter()
    while time.perf_counter() - began < {seconds}:
        for _ in range(8): {product}
        wait(); count += 8
    best = max(best, 2 * m * k * n * count / (time.perf_counter() - began))
print(best)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else dict(os.environ)
    return float(
        subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
        ).stdout
    )


def check_quiet(busy: bool) -> float:
    """The share of the CPU in use by others, over three seconds. Refuses a busy machine unless told that it
    is one."""
    share = psutil.cpu_percent(interval=3) / 100
    if share > 0.1 and not busy:
        sys.exit(
            f"{share:.0%} of the CPU is in use by other processes: wait, or pass --busy and have the result say so"
        )
    return share


def find_jemalloc() -> str:
    for folder in (
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/local/lib",
        "/usr/lib",
    ):
        if (Path(folder) / JEMALLOC).exists():
            return str(Path(folder) / JEMALLOC)
    sys.exit(f"--allocator jemalloc: {JEMALLOC} is not here: install it, e.g. apt install libjemalloc2")


def machine() -> dict[str, Any]:
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    names = [value.strip() for key, _, value in lines if key.strip() == "model name"]
    flags = {flag for key, _, value in lines if key.strip() == "flags" for flag in value.split()}
    vectors = next(
        (f" with {name}" for name, flag in (("AVX-512", "avx512f"), ("AVX2", "avx2")) if flag in flags), ""
    )
    cores = len(os.sched_getaffinity(0))
    return {
        "cpu": f"{names[0] if names else platform.processor()}{vectors}",
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpu": _gpu_name(),
    }


def command(module: str) -> str:
    """The call, with FOLDER for every path: they say nothing elsewhere."""
    given = ["FOLDER" if "/" in argument else argument for argument in sys.argv[1:]]
    return shlex.join(["python", "-m", module, *given])


def revision() -> str:
    """Of the checkout measured; "+" if it has changes."""
    asked = ["git", "-C", str(HERE.parent), "describe", "--always", "--abbrev=10", "--dirty=+"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def origin(module: str) -> str:
    """A line that says what a table was made by, of which revision, when, and on what."""
    where = machine()
    return (
        f"`{command(module)}`, revision {revision()}, {time.strftime('%Y-%m-%d')}; {where['cpu']}, {where['cores']} cores, "
        f"{where['memory_gib']} GiB, Python {where['python']}."
    )


def summary(measurements: list[Measurement]) -> dict[str, dict[str, Any]]:
    """By system: median, least and most over the rounds."""
    rows: dict[str, dict[str, Any]] = {}
    for system in dict.fromkeys(m.system for m in measurements):
        runs = [m for m in measurements if m.system == system]
        speeds = [m.tokens_per_second for m in runs]
        rows[system] = {
            "rounds": len(runs),
            "median": statistics.median(speeds),
            "min": min(speeds),
            "max": max(speeds),
            "fill": statistics.median(statistics.mean(m.tokens) for m in runs),
            "peak_memory": statistics.median(m.peak_memory for m in runs),
            "largest_process": statistics.median(m.largest_process for m in runs),
            "gpu_memory": max((m.gpu_memory or 0) for m in runs),
            "isolated": runs[0].isolated,
            "others_cpu": max(m.others_cpu for m in runs),
            "versions": runs[0].versions,
        }
    return rows


def write_section(name: str, body: str) -> None:
    """Replace the section between RESULTS.md's marks, or add it at the end."""
    path = HERE / "RESULTS.md"
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{body.strip()}\n{end}"
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    if begin in text:
        before, rest = text.split(begin, 1)
        text = before + section + rest.split(end, 1)[1]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    path.write_text(text, encoding="utf-8")


def raw_file(name: str) -> Path:
    return HERE / "results" / f"{time.strftime('%Y-%m-%d')}-{name}.json"


def write_raw(name: str, body: dict[str, Any]) -> None:
    path = raw_file(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def cache_folder() -> Path:
    return Path(os.environ.get("FINETUNE_BENCH_DIR") or Path.home() / ".cache" / "finetune-bench").resolve()


def _read_ours(folder: Path) -> dict[str, Any]:
    run = next(path.parent for path in (folder / "runs").glob("*/summary.json"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    tokens, ends = rules.spooled_steps(records)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    installed = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["packages"]
    named = ("torch", "transformers", "peft", "deepspeed")
    return {
        "tokens": tokens,
        "ends": ends,
        "trainable_parameters": summary["trainable_parameters"],
        # finetune train ends with an error where its own check of isolation fails (checks.check_isolation)
        "isolated": True,
        "versions": {
            "finetune": revision(),
            **{name: installed[name] for name in named if name in installed},
        },
    }


def _read_peer(folder: Path) -> dict[str, Any]:
    measured: dict[str, Any] = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    return measured


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _gpu_memory() -> float:
    """Bytes in use on the first GPU, by all processes, as its driver says."""
    asked = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.run(asked, capture_output=True, text=True, check=True).stdout) * 2**20


def _gpu_name() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    asked = ["nvidia-smi", "--id=0", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or None
