"""The preflight on three real ranks, each a node of its own, with planted faults: a failure must name the node that is to blame,
and on every rank, so that all of them end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.job import preflight
from finetune.job.preflight import suspected

RANKS = 3
# planted fault -> the nodes that must be named; None: it must pass; []: it must say that no node is to blame
CASES: dict[str, list[str] | None] = {
    "none": None, "receives_wrong_sums": ["n1"], "sends_wrong": ["n2"], "wrong_everywhere": [], "another_folder": ["n1"],
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each rank said, by case."""
    folder = tmp_path_factory.mktemp("preflight")
    ranks = []
    for rank in range(RANKS):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(RANKS), "SLURMD_NODENAME": f"n{rank}",
            "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]),
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.distributed.test_preflight", str(folder)]
        ranks.append(subprocess.Popen(command, env=environment))
    assert [rank.wait(timeout=300) for rank in ranks] == [0] * RANKS
    found = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]
    return {case: [one[case] for one in found] for case in CASES}


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_the_node_to_blame_is_named_on_every_rank(results: dict[str, list[dict[str, Any]]], case: str) -> None:
    expected = CASES[case]
    for said in results[case]:
        if expected is None:
            assert said == {"passed": True}
        elif not expected:
            assert said["kind"] == "ValueError"
            assert "no node alone is to blame" in said["error"]
        else:
            assert said["nodes"] == expected
            assert expected[0] in said["error"]


@pytest.mark.parametrize(
    ("wrong_pairs", "nodes"),
    [
        ([], set()),
        ([(1, 0), (1, 2), (1, 3)], {"b"}),
        ([(0, 2), (1, 2), (3, 2), (2, 0)], {"c"}),
        ([(0, 1), (1, 0)], set()),  # one link: either end
        ([(to, source) for to in range(4) for source in range(4) if to != source], set()),
    ],
)
def test_the_node_that_wrong_transfers_have_in_common(wrong_pairs: list[tuple[int, int]], nodes: set[str]) -> None:
    wrong = [[(to, source) in wrong_pairs for source in range(4)] for to in range(4)]
    assert suspected(wrong, ["a", "b", "c", "d"]) == nodes


def test_a_folder_that_cannot_be_written_is_the_nodes_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.config.train import DataConfig, ModelConfig, TrainConfig
    from finetune.runs.folder import RunFolder

    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    config = TrainConfig(model=ModelConfig(path="x"), data=DataConfig(corpus="x"))
    run = RunFolder(tmp_path / "run")
    preflight.check_node(config, run)
    assert [path.name for path in (run.jobs / "present").iterdir()] == ["n7"]
    (tmp_path / "file").touch()
    with pytest.raises(preflight.PreflightError, match="n7 cannot write into the shared folder") as fault:
        preflight.check_node(config, RunFolder(tmp_path / "file"))
    assert fault.value.nodes == ("n7",)
    with pytest.raises(preflight.PreflightError, match="n7 cannot write into"):
        preflight.check_room(tmp_path / "file", 1)
    with pytest.raises(preflight.PreflightError, match="GB left in"):
        preflight.check_room(tmp_path, 10**18)


def test_a_rank_takes_its_own_gpu_before_it_joins_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL sends objects from the current GPU, and another one than the group's is refused, or hangs."""
    import torch

    from finetune.distributed import World
    from finetune.training import engine

    calls: list[tuple[str, object]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set_device", device)))
    monkeypatch.setattr(engine.deepspeed, "init_distributed", lambda **settings: calls.append(("join", settings["dist_backend"])))
    engine.init_distributed(World(rank=6, size=8, local_rank=2), "file:///none")
    assert calls == [("set_device", torch.device("cuda", 2)), ("join", "nccl")]


# --- in each rank ------------------------------------------------------------------------------------------------------


def main(folder: Path) -> None:
    import torch.distributed as dist

    from finetune.distributed import World
    from finetune.runs.folder import RunFolder

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=World().rank, world_size=RANKS)
    preflight.PATIENCE_SECONDS = 0.5
    world, said = World(), {}
    for case in CASES:
        run = RunFolder(folder / (f"{case}-elsewhere" if case == "another_folder" and world.rank == 1 else case))
        run.jobs.mkdir(parents=True, exist_ok=True)
        undo = plant(case, world.rank)
        try:
            preflight.check_together(run, world)
            said[case] = {"passed": True}
        except (preflight.PreflightError, ValueError) as fault:
            said[case] = {"kind": type(fault).__name__, "error": str(fault), "nodes": list(getattr(fault, "nodes", ()))}
        finally:
            undo()
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(said))
    world.barrier()


def plant(case: str, rank: int) -> Callable[[], None]:
    """Corrupt what this rank gets from its peers, as a broken network would."""
    from finetune.distributed import World

    honest_sum, honest_broadcast = World.sum, World.broadcast

    def wrong_sum(self: World, values: Any) -> Any:
        honest_sum(self, values)
        values[7] += 1
        return values

    def wrong_broadcast(self: World, values: Any, source: int) -> Any:
        honest_broadcast(self, values, source)
        if source == 2 and self.rank != 2:
            values[7] += 1
        return values

    if case == "wrong_everywhere" or (case, rank) == ("receives_wrong_sums", 1) or case == "sends_wrong":
        World.sum = wrong_sum  # type: ignore[method-assign]
    if case == "sends_wrong":
        World.broadcast = wrong_broadcast  # type: ignore[method-assign]

    def undo() -> None:
        World.sum, World.broadcast = honest_sum, honest_broadcast  # type: ignore[method-assign]

    return undo


if __name__ == "__main__":
    main(Path(sys.argv[1]))
