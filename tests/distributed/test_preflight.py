"""The preflight with planted faults, on three ranks. Each rank has a node of its own.

A failure must name the faulty node on every rank, so that all ranks end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune.job import preflight
from finetune.job.preflight import find_suspects
from tests.distributed.preflight_rank import CASES, RANKS, Case


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Run the preflight on all ranks; return the results of each case, ordered by rank."""
    folder = tmp_path_factory.mktemp("preflight")
    ranks = []
    for rank in range(RANKS):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(RANKS),
            "SLURMD_NODENAME": f"n{rank}",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "tests.distributed.preflight_rank", str(folder)]
        ranks.append(subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2]))
    assert [rank.wait(timeout=300) for rank in ranks] == [0] * RANKS
    found = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]
    return {case.id: [of_rank[case.id] for of_rank in found] for case in CASES}


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_faulty_node_is_named_on_every_rank(results: dict[str, list[dict[str, Any]]], case: Case) -> None:
    for result in results[case.id]:
        if case.passes:
            assert result == {"passed": True}
        elif not case.blamed:
            assert result["kind"] == "UserError"
            assert "no single node is to blame" in result["error"]
        else:
            assert result["nodes"] == list(case.blamed)
            assert case.blamed[0] in result["error"]


@pytest.mark.parametrize(
    ("wrong_pairs", "nodes"),
    [
        ([], set()),
        ([(1, 0), (1, 2), (1, 3)], {"b"}),
        ([(0, 2), (1, 2), (3, 2), (2, 0)], {"c"}),
        ([(0, 1), (1, 0)], set()),  # one link is broken: either of its nodes may be the cause
        ([(to, source) for to in range(4) for source in range(4) if to != source], set()),
    ],
)
def test_the_suspected_node_is_the_one_that_all_wrong_transfers_share(
    wrong_pairs: list[tuple[int, int]], nodes: set[str]
) -> None:
    wrong = [[(to, source) in wrong_pairs for source in range(4)] for to in range(4)]
    assert find_suspects(wrong, ["a", "b", "c", "d"]) == nodes


def test_a_folder_that_cannot_be_written_is_a_fault_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.config.train import DataConfig, ModelConfig, TrainConfig
    from finetune.runs.folder import RunFolder

    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    config = TrainConfig(model=ModelConfig(path="x"), data=DataConfig(corpus="x"))
    run = RunFolder(tmp_path / "run")
    preflight.check_node(config, run)
    assert [path.name for path in (run.jobs / "present").iterdir()] == ["n7"]
    (tmp_path / "file").touch()
    with pytest.raises(preflight.PreflightError, match="n7: cannot write into the shared folder") as error:
        preflight.check_node(config, RunFolder(tmp_path / "file"))
    assert error.value.nodes == ("n7",)
    with pytest.raises(preflight.PreflightError, match="n7: cannot write into"):
        preflight.check_free_space(tmp_path / "file", 1)
    with pytest.raises(preflight.PreflightError, match="GB free in"):
        preflight.check_free_space(tmp_path, 10**18)


def test_a_rank_selects_its_gpu_before_it_joins_the_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL sends objects from the GPU that the process has selected.

    If this is the GPU of another rank, NCCL fails or hangs.
    """
    import torch

    from finetune.distributed import World
    from finetune.training import engine

    calls: list[tuple[str, object]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set_device", device)))
    monkeypatch.setattr(
        engine.deepspeed,
        "init_distributed",
        lambda **settings: calls.append(("join", settings["dist_backend"])),
    )
    engine.init_distributed(World(rank=6, size=8, local_rank=2), "file:///none")
    assert calls == [("set_device", torch.device("cuda", 2)), ("join", "nccl")]
