"""Classes and functions shared by the benchmarks.

`Bench` measures training runs from outside their processes.
"""

from __future__ import annotations

import hashlib
import json
import os
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

from benchmarks import report, rules

HERE = Path(__file__).parent
MARK = "FINETUNE_BENCH_RUN"
FINETUNE = Path(sys.executable).with_name("finetune")
JEMALLOC = "libjemalloc.so.2"
JEMALLOC_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/lib",
)


@dataclass
class Measurement:
    """Measurements of one training run of one system.

    Attributes:
        round: number of the round.
        tokens: number of non-padding tokens of each step, warm-up steps included.
        seconds: duration of the measured steps: all steps after the warm-up.
        peak_memory: highest resident memory of all processes of the run together, in bytes, sampled
            during the measured steps; shared pages count once per process.
        largest_process: highest resident memory of a single process, in bytes.
        others_cpu: share of the machine's CPU time that processes outside the run used during the
            measured steps.
        isolated: True if documents in one row attend only to themselves; None if every row holds
            one document.
        gpu_memory: highest memory in use on the first GPU, by all processes, in bytes; None without
            a GPU.
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
    """Thread that samples memory and CPU time of a run's processes twice a second.

    The processes of the run are those whose environment variable MARK has the run's value. They are
    found even if the process that started them has ended.

    Args:
        mark: the run's value of MARK.
        gpu: True to sample the memory of the first GPU too.
    """

    def __init__(self, mark: str, gpu: bool) -> None:
        super().__init__(daemon=True)
        self._mark = mark
        self._gpu = gpu
        self._belongs: dict[tuple[int, float], bool] = {}  # by process id and start time
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
            raise ValueError("--steps: the measured steps took less than a second; set a higher number")
        return window

    def _sample(self) -> dict[str, float]:
        resident = []
        busy = 0.0
        for process in psutil.process_iter():
            try:
                key = (process.pid, process.create_time())
                if key not in self._belongs:
                    self._belongs[key] = process.environ().get(MARK) == self._mark
                if not self._belongs[key]:
                    continue
                with process.oneshot():
                    resident.append(process.memory_info().rss)
                    times = process.cpu_times()
                    busy += times.user + times.system
                if resident[-1] == max(resident):
                    self.jemalloc = "jemalloc" in Path(f"/proc/{process.pid}/maps").read_text()
            except (psutil.Error, OSError):
                continue  # the process has ended, or belongs to another user
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


def compute_others_cpu(window: list[dict[str, float]]) -> float:
    """Return the share of the machine's CPU time that processes outside the run used.

    The CPU time is that between the first and the last sample. Processes of the run that ended
    between the two count as outside.

    Args:
        window: samples of the CPU times, in the order in which they were taken.
    """
    first = window[0]
    last = window[-1]
    elsewhere = (last["machine_busy"] - first["machine_busy"]) - (last["busy"] - first["busy"])
    return max(0.0, elsewhere / (last["machine_total"] - first["machine_total"]))


@dataclass
class Bench:
    """A training task. It is the same for every system of a table.

    Attributes:
        cache: folder for all files of the benchmark.
        corpus, documents: the same documents, as a corpus folder for finetune and as JSON lines for
            other systems.
        warmup: number of optimizer steps before the measured ones.
        steps: number of measured optimizer steps.
        settings: settings that all systems share, such as `sequence_length` and `lr`.
        allocator: memory allocator of the processes, `glibc` or `jemalloc`.
        threads: number of CPU threads of each process; None for the library's default.
        gpu: True if the task runs on a GPU.
    """

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
        """Return the environment variables of a run's processes.

        The variable MARK is set to `mark`, so that the sampler finds the processes.
        """
        dropped = ("LD_PRELOAD", "PYTHONPATH", "OMP_NUM_THREADS")
        variables = {key: value for key, value in os.environ.items() if key not in dropped}
        variables |= {
            MARK: mark,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.cache / "huggingface"),
            "TOKENIZERS_PARALLELISM": "false",
            "AXOLOTL_DO_NOT_TRACK": "1",
            "DO_NOT_TRACK": "1",
        }
        if self.threads:
            variables |= {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        if self.allocator == "jemalloc":
            variables["LD_PRELOAD"] = find_jemalloc()
        return variables

    def measure(self, system: str, round: int, command: list[str], folder: Path, read: Any) -> Measurement:
        """Run a training command and measure it.

        Args:
            folder: working directory of the command. The command's output is written to log.txt in
                this folder.
            read: a function that takes the folder and returns the tokens and end times of the
                steps, and other facts about the run.

        Raises:
            RuntimeError: the command failed, or took a wrong number of steps.
            ValueError: the measured steps took less than a second.
        """
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
            raise RuntimeError(f"{system} ended with exit code {done.returncode}: read {folder / 'log.txt'}")
        raw = read(folder)
        tokens = raw["tokens"]
        ends = raw["ends"]
        if len(tokens) != self.warmup + self.steps:
            raise RuntimeError(
                f"{system} took {len(tokens)} steps, not {self.warmup + self.steps}: "
                f"read {folder / 'log.txt'}"
            )
        window = sampler.between(ends[self.warmup - 1], ends[-1])
        return Measurement(
            system=system,
            round=round,
            tokens_per_second=rules.tokens_per_second(tokens, ends, self.warmup),
            tokens=tokens,
            seconds=ends[-1] - ends[self.warmup - 1],
            peak_memory=int(max(sample["resident"] for sample in window)),
            largest_process=int(max(sample["largest"] for sample in window)),
            others_cpu=compute_others_cpu(window),
            allocator="jemalloc" if sampler.jemalloc else "glibc",
            trainable_parameters=raw["trainable_parameters"],
            isolated=raw["isolated"],
            versions=raw["versions"],
            gpu_memory=int(max(sample["gpu"] for sample in window)) or None,
        )

    def run_finetune(self, system: str, round: int, overrides: list[str]) -> Measurement:
        """Measure `finetune train` with MLflow tracking, as a user runs it."""
        folder = make_empty(self.cache / "out" / system)
        command = self.finetune_command(folder, round, overrides)
        return self.measure(system, round, command, folder, _read_finetune)

    def finetune_command(self, folder: Path, round: int, overrides: list[str]) -> list[str]:
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
            "check_first_loss=false",  # the base model has random weights
            *overrides,
        ]

    def run_peer(self, system: str, round: int, python: Path, **special: Any) -> Measurement:
        """Measure another system in its own environment, with meter.py.

        Args:
            python: the Python interpreter of that environment.
            special: settings of meter.py in addition to the task's, such as `peer` and `packing`.
        """
        folder = make_empty(self.cache / "out" / system)
        settings = self.settings | {"seed": self.settings["seed"] + round} | special
        settings |= {
            "num_steps": self.warmup + self.steps,
            "documents": str(self.documents),
            "model": str(self.model),
            "output": str(folder / "output"),
            "result": str(folder / "measured.json"),
        }
        path = folder / "settings.json"
        path.write_text(json.dumps(settings), encoding="utf-8")
        command = [str(python), str(HERE / "meter.py"), str(path)]
        return self.measure(system, round, command, folder, _read_peer)


def environment_of(peer: str, cache: Path, wheels: str | None = None) -> Path:
    """Return the Python interpreter of another system's environment; create it on the first call.

    Args:
        peer: name of the system; requirements/<peer>.txt lists its packages.
        wheels: a folder of wheel files to install from; None installs from the package index.
    """
    requirements = HERE / "requirements" / f"{peer}.txt"
    folder = cache / "venvs" / f"{peer}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]}"
    python = folder / "bin" / "python"
    if not (folder / ".done").exists():
        print(f"creating the environment of {peer} in {folder} (some minutes)", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        lines = requirements.read_text().splitlines()
        torch = [line for line in lines if line.startswith("torch==")]
        source = ["--no-index", "--find-links", wheels] if wheels else []
        # torch is installed with its dependencies. The other lines are a complete list, and are
        # installed without dependencies, because pip's resolver rejects some of the pins together.
        installs = [torch] if torch else []
        installs.append(["--no-deps", "-r", str(requirements)])
        for arguments in installs:
            install = [str(python), "-m", "pip", "install", "--quiet", *source, *arguments]
            subprocess.run(install, check=True)
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
    """Write a Llama with random weights, and the corpus' tokenizer, into a folder for all systems.

    Args:
        device: the device that draws the random weights; a GPU is faster for billions of them.
    """
    if (folder / ".done").exists():
        return
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    added = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    id_of = {token["content"]: token["id"] for token in added}
    config = LlamaConfig(
        **asdict(shape),
        max_position_embeddings=max_positions,
        eos_token_id=id_of["</s>"],
        pad_token_id=id_of["<pad>"],
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


def measure_matmul_limit(
    shape: rules.Shape,
    tokens: int,
    threads: int | None,
    dtype: str = "float32",
    seconds: float = 1.0,
    by: str = "torch.mm",
) -> float:
    """Measure the speed of each matrix product of a model; return the highest, in FLOP/s.

    Args:
        shape: shape of the model; it determines the sizes of the matrices.
        tokens: number of rows of each product.
        threads: number of torch's threads; None uses its default.
        seconds: time for each shape.
        by: name of the function that multiplies, a key of PRODUCTS. torch's linear layer runs
            torch.mm; oneDNN may be faster on CPUs with AVX-512.
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
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


def check_quiet(busy: bool) -> float:
    """Check that other processes use little of the CPU; return the share that they use.

    The share is measured over three seconds. Exit if it is above 10% and `busy` is False.
    """
    share = psutil.cpu_percent(interval=3) / 100
    if share > 0.1 and not busy:
        sys.exit(
            f"other processes use {share:.0%} of the CPU; wait until they end, or pass --busy to "
            "measure in spite of them"
        )
    return share


def find_jemalloc() -> str:
    for folder in JEMALLOC_FOLDERS:
        if (Path(folder) / JEMALLOC).exists():
            return str(Path(folder) / JEMALLOC)
    sys.exit(
        f"--allocator jemalloc: {JEMALLOC} is not installed; install it, e.g. with apt install libjemalloc2"
    )


def summarise(measurements: list[Measurement]) -> dict[str, dict[str, Any]]:
    """Return, for each system by name, summary statistics of its measurements."""
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


def cache_folder() -> Path:
    default = Path.home() / ".cache" / "finetune-bench"
    return Path(os.environ.get("FINETUNE_BENCH_DIR") or default).resolve()


def _read_finetune(folder: Path) -> dict[str, Any]:
    run = next(path.parent for path in (folder / "runs").glob("*/summary.json"))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    tokens, ends = rules.read_steps([json.loads(line) for line in lines])
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    installed = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["packages"]
    packages = ("torch", "transformers", "peft", "deepspeed")
    versions = {name: installed[name] for name in packages if name in installed}
    return {
        "tokens": tokens,
        "ends": ends,
        "trainable_parameters": summary["trainable_parameters"],
        # If documents were not isolated, finetune train would have ended with an error
        # (checks.check_isolation).
        "isolated": True,
        "versions": {"finetune": report.revision(), **versions},
    }


def _read_peer(folder: Path) -> dict[str, Any]:
    measured: dict[str, Any] = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    return measured


def make_empty(folder: Path) -> Path:
    """Create a folder, or empty an existing one; return its path."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _gpu_memory() -> float:
    """Return the bytes in use on the first GPU by all processes, according to its driver."""
    command = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 2**20
