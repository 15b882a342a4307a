"""Does a run outlive what befalls it? Events on the real test cluster, at random moments, each against an
undisturbed run.

    make chaos                                            every event three times, 12 to 30 minutes on two
    idle cores python -m slurm.testcluster.chaos --times 1 --only "kill -9 of a rank"

A disturbed run must end by itself with the same documents in every step and the same losses as the
undisturbed one. Printed are the steps that were done twice, the seconds in which no step was done, and how
often the job went back into the queue.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import psutil

from finetune.runs import attempts
from finetune.runs.folder import RunFolder
from slurm.testcluster.cluster import Cluster

LOSS_TOLERANCE = 1e-4
STEPS, EVALUATE_EVERY, FAULT_STEP = 30, 8, 12
LEAD_SECONDS, TIMEOUT_MIN = 20, 20
LIMIT_PERIOD = 30  # seconds between two looks of Slurm at time limits
PATIENCE = 900.0  # seconds; on a machine that does other things, a rank takes a minute to start
MODEL = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
SETTINGS = [
    "--config-dir",
    "my",
    "model=tiny",
    "adapter=none",
    "corpus=sample",
    "cluster=testcluster",
    "cluster.nodes=2",
    "data.sequence_length=256",
    "global_batch_size=8",
    "micro_batch_size=4",
    f"max_steps={STEPS}",
    "lr=1e-3",
    "checkpoint_every=6",
    f"evaluate_every={EVALUATE_EVERY}",
    f"cluster.timeout_min={TIMEOUT_MIN}",
    f"cluster.signal_lead_s={LEAD_SECONDS}",
]
# what befalls rank 1 when it comes to a step; put on the ranks' PYTHONPATH
FAULT = """\
import os, sys, threading, time

def plant():
    while not hasattr(sys.modules.get("finetune.training.run"), "Progress"):
        time.sleep(0.01)
    run = sys.modules["finetune.training.run"].Run
    honest = run.batch_index
    def broken(self, step):
        if step + 1 == {step}:
            {fault}
        return honest(self, step)
    run.batch_index = broken

if os.environ.get("SLURM_PROCID") == "1" and "submitit.core._submit" in " ".join(sys.orig_argv):
    threading.Thread(target=plant, daemon=True).start()
"""
CRASH = 'raise RuntimeError("planted: a batch that no GPU can hold")'  # whatever the attempt
# the first one only
HANG = 'os.path.exists(__file__ + ".hung") or (open(__file__ + ".hung", "w"), time.sleep(3600))'


@dataclass
class Sandbox:
    """A folder with a corpus and a tiny model, and the cluster that trains there."""

    folder: Path
    cluster: Cluster

    def plant(self, fault: str, step: int) -> str:
        """The setting of a run in which that befalls rank 1 at a step."""
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="fault-"))
        (folder / "sitecustomize.py").write_text(FAULT.format(step=step, fault=fault))
        return f"+cluster.env.PYTHONPATH={folder}"

    def finetune(self, *arguments: str) -> str:
        """Run the command line; what it printed on stdout."""
        command = [sys.executable, "-m", "finetune.cli.main", *arguments]
        environment = {**os.environ, **self.cluster.environment}
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode:
            raise RuntimeError(f"finetune {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout.strip()

    def prepare(self) -> None:
        (self.folder / "my" / "model").mkdir(parents=True)
        (self.folder / "my" / "model" / "tiny.yaml").write_text(json.dumps({"from_scratch": MODEL}))
        self.finetune(
            "prepare",
            "corpus=sample",
            "corpus.split.validation_share=0.3",
            "corpus.tokenizer.vocab_size=2000",
        )

    def submit(self, *settings: str) -> RunFolder:
        return RunFolder.find(
            self.finetune("train", *SETTINGS, *settings).splitlines()[-1], self.folder / "runs"
        )

    def job(self, run: RunFolder) -> str:
        submitted = run.read_json("submission.json")
        assert submitted is not None
        return str(submitted["job_id"])

    def queue_state(self, run: RunFolder) -> str:
        """RUNNING, PENDING, COMPLETING, …; "" once it is no more in the queue."""
        try:
            return self.cluster.slurm("squeue", "-h", "-j", self.job(run), "-o", "%T").strip()
        except (RuntimeError, subprocess.TimeoutExpired) as fault:
            return "" if "Invalid job id" in str(fault) else "unknown"  # the controller is away

    def end_in(self, run: RunFolder, seconds: float) -> None:
        """Move a job's time limit."""
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))
        self.cluster.slurm("scontrol", "update", f"jobid={self.job(run)}", f"EndTime={end}")

    def give_time_back(self, run: RunFolder) -> None:
        """In the queue, where a job that was not meddled with has the whole of it."""
        wait_for(lambda: self.queue_state(run) == "PENDING", PATIENCE, "the job to be back in the queue")
        self.cluster.slurm("scontrol", "update", f"jobid={self.job(run)}", f"TimeLimit={TIMEOUT_MIN}")

    def wait_for_end(self, run: RunFolder, seconds: float = PATIENCE) -> None:
        wait_for(lambda: self.queue_state(run) == "", seconds, f"the end of {run.path}")

    def ranks(self, run: RunFolder) -> dict[int, psutil.Process]:
        """The processes that train, by rank."""
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if {"submitit.core._submit", str(run.jobs)} <= set(words) and "srun" not in words[0]:
                found[int(process.environ()["SLURM_PROCID"])] = process
        return found

    def on_node(self, node: str, *command: str) -> str:
        """Run a command where a node's own disk is; what it printed."""
        pid = (self.cluster.base / "run" / f"{node}.pid").read_text()
        return subprocess.run(
            ["nsenter", "-t", pid, "-m", *command], capture_output=True, text=True, check=True
        ).stdout


def wait_for(condition: Callable[[], object], seconds: float, what: str, pause: float = 0.1) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(pause)


# --- events: each befalls a run that trains ---------------------------------------


def at_step(run: RunFolder, step: int, chance: random.Random) -> None:
    """Wait until the attempt that runs has done a step, and a random part of the next."""
    wait_for(lambda: by_step_since(run) >= step, PATIENCE, f"step {step} of {run.path}", pause=0.02)
    time.sleep(chance.uniform(0, 0.4))


def time_limit(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    """The job's end is moved to soon after a random moment, as Slurm gives limits in whole minutes. It looks
    at them every half minute; the ranks, who would be done by then, stand still until its signal wakes
    them."""
    at_step(run, step, chance)
    for rank in box.ranks(run).values():
        rank.suspend()
    box.end_in(run, LIMIT_PERIOD + LEAD_SECONDS)
    box.give_time_back(run)


def unannounced_limit(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    """A rank hangs in the step after that one, so that none can save or leave, and the limit strikes: Slurm
    kills them, and the batch script with them."""
    at_step(run, step, chance)
    box.end_in(run, 1)
    if run.config().cluster.on_interrupt == "requeue":  # another job has its own
        box.give_time_back(run)


def preemption(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    at_step(run, step, chance)
    box.cluster.slurm(
        "sbatch",
        "-p",
        "urgent",
        "-A",
        "nn9999k",
        "-N3",
        "--exclusive",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 3",
    )


def kill_rank(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    at_step(run, step, chance)
    chance.choice(list(box.ranks(run).values())).kill()


def power_cut(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    at_step(run, step, chance)
    node = chance.choice(attempts.read(run.path)[-1].nodes)
    box.cluster.cut_power(node)
    wait_for(
        lambda: box.queue_state(run) not in ("RUNNING", "COMPLETING", "unknown"),
        PATIENCE,
        f"Slurm to miss {node}",
    )
    box.cluster.boot(node)  # at once, so that it could be given to the run again


def controller_restart(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    at_step(run, step, chance)
    box.cluster.stop_controller()
    time.sleep(chance.uniform(1, 5))
    box.cluster.start_controller()


def outside_requeue(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    at_step(run, step, chance)
    box.cluster.slurm("scontrol", "requeue", box.job(run))


def term_in_evaluation(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    evaluated = -(-step // EVALUATE_EVERY) * EVALUATE_EVERY
    wait_for(
        lambda: by_step_since(run) >= evaluated, PATIENCE, f"step {evaluated} of {run.path}", pause=0.002
    )
    box.ranks(run)[chance.randint(0, 1)].terminate()


@dataclass(frozen=True)
class Event:
    befall: Callable[[Sandbox, RunFolder, int, random.Random], None]  # …, after that step
    restarts: bool = True
    fault: str | None = None  # planted from the start, in the step after it
    settings: tuple[str, ...] = ()


EVENTS = {
    "time limit": Event(time_limit),
    "time limit while a rank hangs": Event(unannounced_limit, fault=HANG),
    "time limit in a hang, requeue forbidden": Event(
        unannounced_limit, fault=HANG, settings=("cluster.on_interrupt=resubmit",)
    ),
    "preemption by the urgent partition": Event(preemption),
    "kill -9 of a rank": Event(kill_rank),
    "power cut of a node": Event(power_cut),
    "slurmctld restart": Event(controller_restart, restarts=False),
    "scontrol requeue from outside": Event(outside_requeue),
    "SIGTERM in an evaluation": Event(term_in_evaluation),
}


# --- what came of it
# ---------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    event: str
    steps_lost: int = 0
    seconds: float | None = None
    requeues: int = 0
    difference: float = 0.0
    causes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def spool(run: RunFolder) -> list[dict[str, float]]:
    """Lines of metrics.jsonl, in order."""
    if not run.metrics.exists():
        return []
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def by_step(run: RunFolder, key: str) -> dict[int, float]:
    """A metric of every step; where a step was done twice, the last word counts."""
    return {record["step"]: record["values"][key] for record in spool(run) if key in record["values"]}  # type: ignore


def compare(run: RunFolder, whole: RunFolder, outcome: Outcome) -> None:
    """Note every way in which a run is not the undisturbed one."""
    if run.state() != "completed":
        outcome.faults.append(f"{run.state()}: {run.failure()}")
        return
    if by_step(run, "data/checksum") != by_step(whole, "data/checksum"):
        outcome.faults.append("other documents went into a step")
    for key in ("train/loss", "validation/loss"):
        mine, theirs = by_step(run, key), by_step(whole, key)
        if mine.keys() != theirs.keys():
            outcome.faults.append(f"{key} of other steps: {sorted(mine.keys() ^ theirs.keys())}")
            continue
        outcome.difference = max(outcome.difference, *(abs(mine[step] - theirs[step]) for step in mine))
    if not outcome.difference <= LOSS_TOLERANCE:
        outcome.faults.append(f"losses differ by {outcome.difference:.1e}")


def disturb(box: Sandbox, name: str, whole: RunFolder, chance: random.Random) -> Outcome:
    """One run, one event."""
    event, outcome, step = EVENTS[name], Outcome(name), chance.randint(3, STEPS - 12)
    run = box.submit(*event.settings, *([box.plant(event.fault, step + 1)] if event.fault else []))
    event.befall(box, run, step, chance)
    box.wait_for_end(run)
    compare(run, whole, outcome)
    history = attempts.read(run.path)
    outcome.requeues, outcome.causes = (
        len(history) - 1,
        [a.ending.cause if a.ending else "?" for a in history],
    )
    outcome.steps_lost = sum(
        max(0, a.ending.last_step - b.from_step) for a, b in pairwise(history) if a.ending
    )
    if event.restarts != (outcome.requeues > 0):
        outcome.faults.append("it was not interrupted" if event.restarts else "it was interrupted")
    if event.restarts and len(history) > 1:
        outcome.seconds = _seconds_away(run, history)
    if event.befall is power_cut and set(attempts.excluded_nodes(run.path)) & set(history[-1].nodes):
        outcome.faults.append("it ran on the dead node again")
    outcome.faults = [f"{fault} ({run.path})" for fault in outcome.faults]
    return outcome


def _seconds_away(run: RunFolder, history: list[attempts.Attempt]) -> float:
    """From the last step before the first interruption to the next step that was new."""
    times = [
        (record["step"], record["time_ms"] / 1000)
        for record in spool(run)
        if "train/loss" in record["values"]
    ]  # type: ignore
    before = max((when for _, when in times if when < history[1].time), default=history[0].time)
    return min(when for _, when in times if when > history[1].time) - before


def restart_limit(box: Sandbox, chance: random.Random, max_restarts: int = 2, nodes: int = 2) -> Outcome:
    """Killed in every attempt, the run must give up after its restarts, and not before."""
    outcome = Outcome(f"killed again and again, max_restarts={max_restarts}")
    run = box.submit(f"cluster.max_restarts={max_restarts}", f"cluster.nodes={nodes}")
    for number in range(1, max_restarts + 2):
        wait_for(lambda n=number: len(attempts.read(run.path)) == n, PATIENCE, f"attempt {number}")  # type: ignore
        step = attempts.read(run.path)[-1].from_step + 1 + number  # another one each time: not the same crash
        wait_for(
            lambda s=step: by_step_since(run) >= s, PATIENCE, f"step {step} of attempt {number}", pause=0.02
        )  # type: ignore
        chance.choice(list(box.ranks(run).values())).kill()
        wait_for(
            lambda n=number: attempts.read(run.path)[n - 1].ending, PATIENCE, f"the end of attempt {number}"
        )  # type: ignore
    box.wait_for_end(run)
    outcome.requeues = len(attempts.read(run.path)) - 1
    if outcome.requeues != max_restarts or f"gave up after {max_restarts} restarts" not in str(run.failure()):
        outcome.faults.append(f"{outcome.requeues} restarts, {run.failure()}")
    outcome.causes = [str(run.failure())]
    return outcome


def by_step_since(run: RunFolder) -> int:
    """The newest step of the attempt that runs; 0 before its first."""
    history = attempts.read(run.path)
    began = history[-1].time * 1000 if history else 0.0
    return max(
        (int(r["step"]) for r in spool(run) if r["time_ms"] > began and "train/loss" in r["values"]),
        default=0,
    )  # type: ignore


def same_crash(box: Sandbox, chance: random.Random) -> Outcome:
    """A crash that repeats at one step must end the run with its diagnosis."""
    outcome = Outcome(f"crash at step {FAULT_STEP} in every attempt")
    run = box.submit(box.plant(CRASH, FAULT_STEP))
    box.wait_for_end(run)
    outcome.requeues = len(attempts.read(run.path)) - 1
    outcome.causes = [str(run.failure())]
    if outcome.requeues != 1 or f"died 2 times at step {FAULT_STEP}: RuntimeError: planted" not in str(
        run.failure()
    ):
        outcome.faults.append(f"{outcome.requeues} restarts, {run.failure()}")
    return outcome


LIMITS: dict[str, Callable[[Sandbox, random.Random], Outcome]] = {
    "killed again and again, max_restarts=2": restart_limit,
    f"crash at step {FAULT_STEP} in every attempt": same_crash,
}


def table(outcomes: list[Outcome]) -> str:
    columns = (
        "event",
        "steps lost",
        "seconds until running again",
        "requeues",
        "largest loss difference",
        "result",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in dict.fromkeys(o.event for o in outcomes):
        group = [o for o in outcomes if o.event == name]
        seconds = ", ".join("-" if o.seconds is None else f"{o.seconds:.0f}" for o in group)
        verdict = "; ".join(fault for o in group for fault in o.faults) or (
            "same" if name in EVENTS else group[0].causes[0]
        )
        lost, requeues = (
            ", ".join(str(getattr(o, key)) for o in group) for key in ("steps_lost", "requeues")
        )
        lines.append(
            f"| {name} | {lost} | {seconds} | {requeues} | {max(o.difference for o in group):.0e} | {verdict} |"
        )
    return "\n".join(lines)


def survey(boxes: list[Sandbox], chosen: list[str], times: int, seed: int) -> list[Outcome]:
    """All runs, as many at a time as there are clusters: what befalls a run must not befall its
    neighbours."""
    free: SimpleQueue[Sandbox] = SimpleQueue()
    for box in boxes:
        free.put(box)
    whole = boxes[0].submit()
    boxes[0].wait_for_end(whole)
    assert whole.state() == "completed", whole.failure()

    def one(name: str, chance: random.Random) -> Outcome:
        box, began = free.get(), time.time()
        try:
            outcome = LIMITS[name](box, chance) if name in LIMITS else disturb(box, name, whole, chance)
        except Exception as fault:
            outcome = Outcome(name, faults=[f"{type(fault).__name__}: {fault}"])
        free.put(box)
        print(
            f"{table([outcome]).splitlines()[-1]} {', '.join(outcome.causes)}, {time.time() - began:.0f} s",
            flush=True,
        )
        return outcome

    names = [
        name
        for number in range(times)
        for name in (*EVENTS, *(LIMITS if number == 0 else ()))
        if name in chosen
    ]
    with ThreadPoolExecutor(len(boxes)) as pool:
        return list(pool.map(one, names, [random.Random(f"{seed}/{index}") for index in range(len(names))]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=3, help="runs of each event (3)")
    parser.add_argument("--only", nargs="*", choices=[*EVENTS, *LIMITS], help="these events")
    parser.add_argument(
        "--clusters", type=int, default=2, help="test clusters, each with one run at a time (2)"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments")
    options = parser.parse_args()
    began = time.time()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, ExitStack() as stack:
        boxes = [
            Sandbox(Path(folder), Cluster(f"chaos-{os.getpid()}-{number}"))
            for number in range(options.clusters)
        ]
        boxes[0].prepare()
        for box in boxes:
            box.cluster.up(owner=os.getpid())
            stack.callback(box.cluster.down)
        outcomes = survey(boxes, options.only or [*EVENTS, *LIMITS], options.times, options.seed)
    print(
        f"\n{table(outcomes)}\n\n{time.time() - began:.0f} s, seed {options.seed}, {options.clusters} clusters at once"
    )
    sys.exit(1 if any(outcome.faults for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
