"""What the distributed tests run in real worker processes: training cases, one after another in one process group.

Importing torch and DeepSpeed takes longer than a tiny run: the cases of a world size share a process group, and all ranks are
forked from one server, which has imported them and done nothing else. Each case is an ordinary run folder given to
`finetune.training.train.train`; the run's own files are the result.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any
from unittest import mock

IMPORTED = ["finetune.training.train", "bitsandbytes", "datasets", "transformers.models.llama.modeling_llama", "pytest"]


def start(folder: Path, cases: list[dict[str, Any]], world_size: int) -> list[ForkServerProcess]:
    """Start the ranks; give the result to `join`.

    Args:
        cases: {"run": folder, "fault": name in FAULTS or absent, "refused": True if train is to raise a ValueError,
            "deadline": seconds since the epoch at which the job's time is up}.
    """
    write_cases(folder, cases)
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):  # read where torch is imported
        ensure_running()
    ranks = [forks.Process(target=_forked, args=(folder, rank, world_size), daemon=True) for rank in range(world_size)]
    for rank in ranks:
        rank.start()
    return ranks


def write_cases(folder: Path, cases: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "cases.json").write_text(json.dumps(cases))


def environment(rank: int, world_size: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "GLOO_SOCKET_IFNAME": "lo"}


def join(folder: Path, ranks: list[ForkServerProcess], expected: int = 0, timeout: int = 500) -> None:
    end = time.monotonic() + timeout
    for rank in ranks:
        rank.join(max(0.0, end - time.monotonic()))
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    tail = (folder / "rank-0.log").read_text(errors="replace")[-3000:]
    assert all(code == expected for code in codes), f"ranks ended with {codes} (None: not within {timeout} s)\n{tail}"


def _forked(folder: Path, rank: int, world_size: int) -> None:
    with (folder / f"rank-{rank}.log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(environment(rank, world_size))
    run(folder)


def run(folder: Path) -> None:
    """Run the cases as the rank that the environment names; end the process if one fails."""
    try:
        main(folder)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def main(folder: Path) -> None:
    import torch.distributed as dist

    from finetune.distributed import World
    from finetune.runs.folder import RunFolder
    from finetune.runs.stop import StopFlag
    from finetune.training.engine import init_distributed
    from finetune.training.train import train

    world = World()
    init_distributed(world, f"file://{folder}/rendezvous")
    for case in json.loads((folder / "cases.json").read_text()):
        run = RunFolder(Path(case["run"]))
        undo = FAULTS[case["fault"]]() if case.get("fault") else (lambda: None)
        outcome: dict[str, str] = {}
        stop = StopFlag(run.stop_file, case.get("deadline"))
        stop.listen()
        try:
            outcome["state"] = train(run.config(), run, world, stop)
        except ValueError as fault:
            if not case.get("refused"):
                raise
            outcome["error"] = str(fault)
        finally:
            undo()
        if world.is_main:
            run.write_json("outcome.json", outcome)
        world.barrier()  # the next case may build on this one's result
    world.barrier()
    dist.destroy_process_group()


# --- planted faults: each breaks what one law is about, and the law must notice ---------------------------------------


def mean_of_means() -> Any:
    """The loss normalised by each micro-batch's own tokens instead of the global step's."""
    import finetune.training.loop as module

    honest = module.train_step

    def broken(run: Any, data: Any, lr: float) -> Any:
        micro_batches = list(data.micro_batches)
        counts = iter([batch.num_targets for batch in micro_batches])
        data.micro_batches = iter(micro_batches)
        original = module.normalise_loss
        steps = run.config.gradient_accumulation_steps
        module.normalise_loss = lambda loss_sum, _global_tokens, _world: loss_sum / max(1, next(counts)) / steps
        try:
            return honest(run, data, lr)
        finally:
            module.normalise_loss = original

    module.train_step = broken
    return lambda: setattr(module, "train_step", honest)


def positions_not_reset() -> Any:
    """Packed documents numbered through, as a plain concatenation would be: they see each other."""
    import torch

    import finetune.data.packs as module

    honest = module.PackedData._micro_batch

    def broken(self: Any, packs: Any) -> Any:
        batch = honest(self, packs)
        batch.position_ids = torch.arange(batch.position_ids.shape[1]).expand_as(batch.position_ids).contiguous()
        return batch

    module.PackedData._micro_batch = broken
    return lambda: setattr(module.PackedData, "_micro_batch", honest)


def schedule_starts_over() -> Any:
    """A resumed run that begins its learning-rate schedule again."""
    from finetune.training.schedule import Schedule

    honest, first = Schedule.learning_rate, []

    def broken(self: Any, step: int) -> float:
        first.append(step)
        return honest(self, step - first[0])

    Schedule.learning_rate = broken  # type: ignore[method-assign]
    return lambda: setattr(Schedule, "learning_rate", honest)


def killed_inside_checkpoint() -> Any:
    """Every rank dies by SIGKILL inside the second checkpoint's write: its files are there, its name is not."""
    import finetune.training.checkpoint as module

    honest, calls = module.Checkpoints.save, []

    def broken(self: Any, engine: Any, step: int, *rest: Any) -> float:
        calls.append(step)
        if len(calls) == 2:
            engine.save(self.folder / f".step-{step:08d}.tmp" / "engine")
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(self, engine, step, *rest)

    module.Checkpoints.save = broken
    return lambda: setattr(module.Checkpoints, "save", honest)


def killed_at_step() -> Any:
    """Every rank dies by SIGKILL before the update of a step from 17 to 24, drawn from the run's folder name."""
    import zlib

    import finetune.training.loop as module

    honest = module.train_step

    def broken(run: Any, data: Any, lr: float) -> Any:
        broken.calls += 1  # type: ignore[attr-defined]
        if broken.calls == 17 + zlib.crc32(str(run.folder.path).encode()) % 8:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(run, data, lr)

    broken.calls = 0  # type: ignore[attr-defined]
    module.train_step = broken
    return lambda: setattr(module, "train_step", honest)


def _signalled(number: int, where: str, name: str, rank: int, call: int) -> Any:
    """One rank gets a signal inside the `call`-th call of a function; the others know nothing of it."""
    import importlib

    module: Any = importlib.import_module(where)
    for part in name.split(".")[:-1]:
        module = getattr(module, part)
    name = name.split(".")[-1]
    honest, calls = getattr(module, name), []

    def broken(*args: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == call and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), number)
        return honest(*args, **settings)

    setattr(module, name, broken)
    return lambda: setattr(module, name, honest)


def term_in_evaluation() -> Any:
    """Rank 1 is told to end in the middle of the evaluation after step 4, the second of the run."""
    import finetune.data.packs as module

    honest, calls = module.PackedData.iter_epoch, []

    def broken(self: Any, micro_batch_size: int) -> Any:
        calls.append(1)
        for number, batch in enumerate(honest(self, micro_batch_size)):
            if len(calls) == 2 and number == 1 and self.world.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    module.PackedData.iter_epoch = broken
    return lambda: setattr(module.PackedData, "iter_epoch", honest)


def term_in_last_evaluation() -> Any:
    """As above, after the last step."""
    return _signalled(signal.SIGTERM, "finetune.training.loop", "evaluate_if_due", 1, 24)


def usr2_while_loading() -> Any:
    """Rank 1 is told to end while it loads the base."""
    return _signalled(signal.SIGUSR2, "finetune.models.build", "build", 1, 1)


def usr2_in_step() -> Any:
    """Rank 1 is told to end in its 13th step."""
    return _signalled(signal.SIGUSR2, "finetune.training.engine", "Engine.step", 1, 13)


def usr2_alone() -> Any:
    """The only rank is told to end in its 17th step."""
    return _signalled(signal.SIGUSR2, "finetune.training.engine", "Engine.step", 0, 17)


POISONED = 18  # a batch: late enough for a mean to rise above


def _poisoned(factor: float) -> Any:
    import finetune.training.loop as module

    honest, original = module.train_step, module.normalise_loss

    def broken(run: Any, data: Any, lr: float) -> Any:
        poisoned = run.data.step(POISONED, run.config.global_batch_size, run.config.micro_batch_size)
        if data.segments.tobytes() != poisoned.segments.tobytes():
            return honest(run, data, lr)
        module.normalise_loss = lambda *arguments: original(*arguments) * factor
        try:
            result = honest(run, data, lr)
        finally:
            module.normalise_loss = original
        result.loss *= factor
        return result

    module.train_step = broken
    return lambda: setattr(module, "train_step", honest)


def no_number() -> Any:
    """One batch whose loss and gradients are NaN, and with them all weights."""
    return _poisoned(float("nan"))


def spike() -> Any:
    """One batch with three times the loss."""
    return _poisoned(3.0)


def rank_1_hangs() -> Any:
    """One rank stops in its sixth step; the other waits for it in a collective."""
    import time

    import finetune.training.loop as module
    from finetune.training import watchdog

    honest, calls = module.train_step, []
    watchdog.Watchdog.GRACE = 2.0

    def broken(run: Any, data: Any, lr: float) -> Any:
        calls.append(1)
        if len(calls) == 6 and run.world.rank == 1:
            time.sleep(600)
        return honest(run, data, lr)

    module.train_step = broken
    return lambda: setattr(module, "train_step", honest)


def loaded_whole() -> Any:
    """ZeRO-3 without the partitioned load: every rank reads the whole base first."""
    import finetune.models.load as module

    honest = module._load_partitioned
    module._load_partitioned = lambda base, config: None
    return lambda: setattr(module, "_load_partitioned", honest)


def _after_load(break_it: Any) -> Any:
    import finetune.models.build as module

    honest = module.load

    def broken(*args: Any, **settings: Any) -> Any:
        loaded = honest(*args, **settings)
        break_it(dict(loaded.named_parameters())["model.layers.1.mlp.up_proj.weight"])
        return loaded

    module.load = broken
    return lambda: setattr(module, "load", honest)


def weight_left_random() -> Any:
    """A parameter that no file reached, on all ranks the same."""
    return _after_load(lambda parameter: getattr(parameter, "ds_tensor", parameter).data.normal_(std=0.02))


def slice_at_wrong_offset() -> Any:
    """The last rank holds its slice of a parameter one number off."""

    def shift(parameter: Any) -> None:
        if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            own = parameter.ds_tensor
            own.data.copy_(own.data.roll(1))

    return _after_load(shift)


FAULTS = {
    f.__name__: f
    for f in (
        mean_of_means, positions_not_reset, schedule_starts_over, killed_inside_checkpoint, killed_at_step, no_number, spike,
        rank_1_hangs, loaded_whole, term_in_evaluation, term_in_last_evaluation,
        usr2_while_loading, usr2_in_step, usr2_alone, weight_left_random, slice_at_wrong_offset,
    )
}  # fmt: skip


if __name__ == "__main__":
    run(Path(sys.argv[1]))
