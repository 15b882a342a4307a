"""ZeRO-3 trains a model that is larger than a rank's memory.

The tests limit the address space of the ranks. Under the same limit, a run fails if every rank
loads the complete model.
"""

from __future__ import annotations

import functools
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from finetune.config.train import ClusterConfig, DataConfig, ModelConfig, TrainConfig
from finetune.models import safetensors_io
from tests.corpora import EOS, VOCAB_SIZE, write_corpus, write_tokenizer
from tests.distributed import worker
from tests.distributed.laws import losses, make_run, weights
from tests.distributed.worker import Case
from tests.models import LLAMA, LORA

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(2400)]

RANKS = 4
# Limit of each rank's address space, as a share of the model's size. It is for libraries (1.1 GB),
# the rank's quarter of the model, files and gathered parameters.
SHARE = 0.7
# Few, wide layers: DeepSpeed's hooks, LoRA and their states take 6 MB per layer of any width.
LARGE = {
    **LLAMA,
    "hidden_size": 1536,
    "intermediate_size": 3072,
    "num_hidden_layers": 48,
    "num_attention_heads": 24,
    "num_key_value_heads": 24,
    "max_position_embeddings": 64,
}
# By default, DeepSpeed keeps up to 1e9 gathered parameters (this whole model) and 2 GB of
# gradients.
ZERO = {
    "stage": 3,
    "stage3_max_live_parameters": 2e7,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "reduce_bucket_size": 1e6,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Write a random base in shards, tensor by tensor; return its folder and its size in bytes."""
    folder = tmp_path_factory.mktemp("large") / "base"
    write_tokenizer(folder)
    config = AutoConfig.for_model(**LARGE, vocab_size=VOCAB_SIZE, eos_token_id=EOS, bos_token_id=None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    largest = max(math.prod(shape) for shape in shapes.values())
    noise = torch.randn(largest, generator=generator) * 0.02

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for index, (name, shape) in enumerate(shapes.items()):
            if len(shape) == 1:
                yield name, torch.ones(shape)
            else:
                yield name, noise[: math.prod(shape)].roll(index).view(shape)

    safetensors_io.write(folder, tensors(), shard_bytes=300_000_000)
    config.dtype = torch.float32
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return folder, 4 * sum(math.prod(shape) for shape in shapes.values())


def large_run(folder: Path, base: Path, corpus: Path, fault: str | None = None) -> Case:
    config = TrainConfig(
        data=DataConfig(corpus=str(corpus), sequence_length=32),
        model=ModelConfig(path=str(base)),
        adapter=dict(LORA),
        zero=ZERO,
        cluster=ClusterConfig(ranks_per_node=RANKS),
        global_batch_size=RANKS,
        micro_batch_size=1,
        max_steps=2,
        lr=1e-3,
        activation_checkpointing=True,
        check_first_loss=False,
    )
    return make_run(folder, "large", config, fault=fault)


def train_under_limit(
    folder: Path, case: Case, address_space: int, timeout: int
) -> tuple[list[int], list[str]]:
    """Train a case on ranks with limited address space; return their exit codes and logs.

    The ranks are new processes, not forks, so that the limit includes their libraries.

    Args:
        address_space: limit of each rank, in bytes.
    """
    worker.write_cases(folder, [case])
    ranks = []
    logs = [folder / f"rank-{rank}.log" for rank in range(RANKS)]
    for rank, log in enumerate(logs):
        environment = {
            **os.environ,
            **worker.environment(rank, RANKS),
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",  # each arena reserves 64 MiB of addresses
            "MALLOC_MMAP_THRESHOLD_": "1000000",  # otherwise freed tensors leave unused holes
            "ARROW_DEFAULT_MEMORY_POOL": "system",  # mimalloc reserves 1 GB of addresses
        }
        command = [sys.executable, "-m", "tests.distributed.worker", str(folder)]
        limit = functools.partial(resource.setrlimit, resource.RLIMIT_AS, (address_space, address_space))
        with log.open("wb") as out:
            started = subprocess.Popen(
                command,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[2],
                preexec_fn=limit,
            )
        ranks.append(started)
    codes = [rank.wait(timeout=timeout) for rank in ranks]
    return codes, [log.read_text(errors="replace") for log in logs]


def test_a_model_larger_than_a_ranks_memory_trains(base: tuple[Path, int], tmp_path: Path) -> None:
    folder, size = base
    corpus = write_corpus(tmp_path / "tiny", num_documents=16, longest=24, seed=5)
    case = large_run(tmp_path, folder, corpus)
    codes, logs = train_under_limit(tmp_path / "ranks", case, int(SHARE * size), timeout=2000)
    assert codes == [0] * RANKS, logs[0][-3000:]
    assert len(losses(case.run)) == 2
    trained = {name: tensor for name, tensor in weights(case.run).items() if "lora_B" in name}
    assert all(bool(tensor.any()) for tensor in trained.values()), "an empty or untrained adapter was saved"


def test_a_model_that_every_rank_loads_completely_does_not_fit(
    base: tuple[Path, int], tmp_path: Path
) -> None:
    folder, size = base
    corpus = write_corpus(tmp_path / "tiny", num_documents=16, longest=24, seed=5)
    case = large_run(tmp_path, folder, corpus, fault="loaded_complete")
    codes, logs = train_under_limit(tmp_path / "ranks", case, int(SHARE * size), timeout=500)
    assert all(codes)
    assert any("allocate memory" in log or "MemoryError" in log for log in logs), logs[0][-2000:]
