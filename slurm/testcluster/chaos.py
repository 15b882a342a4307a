"""Disturb runs on the test cluster at random moments; compare each with an undisturbed run.

    make chaos      each event three times; takes 12 to 30 minutes on two idle cores
    python -m slurm.testcluster.chaos --times 1 --only "kill -9 of a rank"

A disturbed run must complete without help, with the same documents in each step and the same losses
as the undisturbed run. The table shows the repeated steps, the seconds without training, and the
number of requeues.
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
from typing import Any

import psutil

from finetune.runs import attempts
from finetune.runs.folder import RunFolder
from slurm.testcluster.cluster import Cluster

LOSS_TOLERANCE = 1e-4
STEPS, EVALUATE_EVERY, FAULT_STEP = 30, 8, 12
LEAD_SECONDS, TIMEOUT_MIN = 20, 20
LIMIT_PERIOD = 30  # Slurm checks time limits at this interval, in seconds
PATIENCE = 900.0  # time limit of each wait, in seconds; on a busy machine, a rank starts in a minute
MODEL = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "tie_word_embeddings": False,
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
# The text of a sitecustomize.py, which each rank imports. It plants a fault in rank 1 at a step.
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
CRASH = 'raise RuntimeError("planted: a batch that no GPU can hold")'  # in every attempt
# in the first attempt only
HANG = 'os.path.exists(__file__ + ".hung") or (open(__file__ + ".hung", "w"), time.sleep(3600))'


@dataclass
class Sandbox:
    """A folder with a corpus and a tiny model, and the test cluster on which its runs train."""

    folder: Path
    cluster: Cluster

    def plant(self, fault: str, step: int) -> str:
        """Prepare a fault that rank 1 of a run executes at a step; return a setting for this run.

        Args:
            fault: one line of Python code.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="fault-"))
        (folder / "sitecustomize.py").write_text(FAULT.format(step=step, fault=fault))
        return f"+cluster.env.PYTHONPATH={folder}"

    def finetune(self, *arguments: str) -> str:
        """Run `finetune` with arguments and return its standard output."""
        done = subprocess.run(
            [sys.executable, "-m", "finetune.cli.main", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.cluster.environment},
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
        split = "corpus.split.validation_share=0.3"
        self.finetune("prepare", "corpus=sample", split, "corpus.tokenizer.vocab_size=2000")

    def submit(self, *settings: str) -> RunFolder:
        printed = self.finetune("train", *SETTINGS, *settings)
        return RunFolder.find(printed.splitlines()[-1], self.folder / "runs")

    def job(self, run: RunFolder) -> str:
        submitted = run.read_json("submission.json")
        assert submitted is not None
        return str(submitted["job_id"])

    def queue_state(self, run: RunFolder) -> str:
        """Return Slurm's state of a run's job, such as RUNNING.

        Return "" after the job has left the queue, and "unknown" if Slurm does not answer.
        """
        try:
            return self.cluster.slurm("squeue", "-h", "-j", self.job(run), "-o", "%T").strip()
        except (RuntimeError, subprocess.TimeoutExpired) as fault:
            has_left = "Invalid job id" in str(fault)
            return "" if has_left else "unknown"  # unknown: slurmctld does not answer

    def set_end(self, run: RunFolder, seconds: float) -> None:
        """Change the job's time limit so that the job ends `seconds` from now."""
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))
        self.cluster.slurm("scontrol", "update", f"jobid={self.job(run)}", f"EndTime={end}")

    def restore_time_limit(self, run: RunFolder) -> None:
        """Wait until the job is requeued, and undo the effect of `set_end` on its time limit."""
        wait_for(lambda: self.queue_state(run) == "PENDING", PATIENCE, "the job to be back in the queue")
        self.cluster.slurm("scontrol", "update", f"jobid={self.job(run)}", f"TimeLimit={TIMEOUT_MIN}")

    def wait_for_end(self, run: RunFolder, seconds: float = PATIENCE) -> None:
        wait_for(lambda: self.queue_state(run) == "", seconds, f"the end of {run.path}")

    def ranks(self, run: RunFolder) -> dict[int, psutil.Process]:
        """Return the run's training processes, by rank."""
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            arguments = process.info["cmdline"] or []
            if {"submitit.core._submit", str(run.jobs)} <= set(arguments) and "srun" not in arguments[0]:
                found[int(process.environ()["SLURM_PROCID"])] = process
        return found

    def on_node(self, node: str, *command: str) -> str:
        """Run a command in a node's mount namespace, which has its own disk; return the output."""
        pid = (self.cluster.base / "run" / f"{node}.pid").read_text()
        enter = ["nsenter", "-t", pid, "-m"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, check=True).stdout


def wait_for(condition: Callable[[], object], seconds: float, what: str, pause: float = 0.1) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"timed out after {seconds:.0f} s waiting for {what}")
        time.sleep(pause)


# --- events, each of which disturbs a run while it trains ----------------------------------------


def wait_for_step(run: RunFolder, step: int, chance: random.Random) -> None:
    """Wait until the current attempt has done a step, and then for a random time up to 0.4 s."""
    wait_for(lambda: newest_step(run) >= step, PATIENCE, f"step {step} of {run.path}", pause=0.02)
    time.sleep(chance.uniform(0, 0.4))


def time_limit(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    """Let the job reach its time limit after a step.

    The job's end time is changed, because Slurm accepts a time limit only in whole minutes. Slurm
    checks limits only every half minute. The ranks would complete the run before such a check, so
    they are suspended until Slurm's signal resumes them.
    """
    wait_for_step(run, step, chance)
    for rank in box.ranks(run).values():
        rank.suspend()
    box.set_end(run, LIMIT_PERIOD + LEAD_SECONDS)
    box.restore_time_limit(run)


def unannounced_limit(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    """Let the job reach its time limit while a rank hangs, so that no rank can save and exit.

    Slurm then kills the ranks together with the batch script.
    """
    wait_for_step(run, step, chance)
    box.set_end(run, 1)
    if run.config().cluster.on_interrupt == "requeue":  # a resubmitted job has its full limit anyway
        box.restore_time_limit(run)


def preemption(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    wait_for_step(run, step, chance)
    job = ["-p", "urgent", "-A", "nn9999k", "-N3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3"]
    box.cluster.slurm("sbatch", *job)


def kill_rank(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    wait_for_step(run, step, chance)
    chance.choice(list(box.ranks(run).values())).kill()


def power_cut(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    wait_for_step(run, step, chance)
    node = chance.choice(attempts.read(run.path)[-1].nodes)
    box.cluster.cut_power(node)
    at_work = ("RUNNING", "COMPLETING", "unknown")
    wait_for(lambda: box.queue_state(run) not in at_work, PATIENCE, f"Slurm to notice the loss of {node}")
    box.cluster.boot(node)  # at once, so that Slurm could allocate this node to the run again


def controller_restart(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    wait_for_step(run, step, chance)
    box.cluster.stop_controller()
    time.sleep(chance.uniform(1, 5))
    box.cluster.start_controller()


def outside_requeue(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    wait_for_step(run, step, chance)
    box.cluster.slurm("scontrol", "requeue", box.job(run))


def term_in_evaluation(box: Sandbox, run: RunFolder, step: int, chance: random.Random) -> None:
    evaluated = -(-step // EVALUATE_EVERY) * EVALUATE_EVERY
    wait_for(lambda: newest_step(run) >= evaluated, PATIENCE, f"step {evaluated} of {run.path}", pause=0.002)
    box.ranks(run)[chance.randint(0, 1)].terminate()


@dataclass(frozen=True)
class Event:
    """A disturbance of a run.

    Attributes:
        disturb: the function that disturbs a run after a given step.
        restarts: True if the run must be interrupted and restarted; False if it must not.
        fault: a line of Python code that rank 1 executes in the step after the given one; None: no
            code.
        settings: further settings of the run.
    """

    disturb: Callable[[Sandbox, RunFolder, int, random.Random], None]
    restarts: bool = True
    fault: str | None = None
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


# --- outcomes -----------------------------------------------------------------------------------


@dataclass
class Outcome:
    event: str
    steps_lost: int = 0
    seconds: float | None = None
    requeues: int = 0
    difference: float = 0.0
    causes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_metrics(run: RunFolder) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, in order."""
    if not run.metrics.exists():
        return []
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def metric_by_step(run: RunFolder, key: str) -> dict[int, float]:
    """Return the values of a metric, by step. For a repeated step, it is the last value."""
    return {record["step"]: record["values"][key] for record in read_metrics(run) if key in record["values"]}


def compare(run: RunFolder, undisturbed: RunFolder, outcome: Outcome) -> None:
    """Record in `outcome` each difference between a run and the undisturbed one."""
    if run.state() != "completed":
        outcome.faults.append(f"{run.state()}: {run.failure()}")
        return
    if metric_by_step(run, "data/checksum") != metric_by_step(undisturbed, "data/checksum"):
        outcome.faults.append("the documents of at least one step differ")
    for key in ("train/loss", "validation/loss"):
        mine = metric_by_step(run, key)
        theirs = metric_by_step(undisturbed, key)
        if mine.keys() != theirs.keys():
            only_one = sorted(mine.keys() ^ theirs.keys())
            outcome.faults.append(f"{key}: only one run has it at steps {only_one}")
            continue
        outcome.difference = max(outcome.difference, *(abs(mine[step] - theirs[step]) for step in mine))
    if not outcome.difference <= LOSS_TOLERANCE:
        outcome.faults.append(f"losses differ by {outcome.difference:.1e}")


def run_event(box: Sandbox, name: str, undisturbed: RunFolder, chance: random.Random) -> Outcome:
    """Train a run, disturb it with one event, and compare it with the undisturbed run."""
    event = EVENTS[name]
    outcome = Outcome(name)
    step = chance.randint(3, STEPS - 12)
    planted = [box.plant(event.fault, step + 1)] if event.fault else []
    run = box.submit(*event.settings, *planted)
    event.disturb(box, run, step, chance)
    box.wait_for_end(run)
    compare(run, undisturbed, outcome)
    history = attempts.read(run.path)
    outcome.requeues = len(history) - 1
    outcome.causes = [attempt.ending.cause if attempt.ending else "?" for attempt in history]
    repeated = [a.ending.last_step - b.from_step for a, b in pairwise(history) if a.ending]
    outcome.steps_lost = sum(max(0, steps) for steps in repeated)
    if event.restarts != (outcome.requeues > 0):
        outcome.faults.append("was not interrupted" if event.restarts else "was interrupted")
    if event.restarts and len(history) > 1:
        outcome.seconds = _seconds_away(run, history)
    if event.disturb is power_cut and set(attempts.excluded_nodes(run.path)) & set(history[-1].nodes):
        outcome.faults.append("ran on the dead node again")
    outcome.faults = [f"{fault} ({run.path})" for fault in outcome.faults]
    return outcome


def _seconds_away(run: RunFolder, history: list[attempts.Attempt]) -> float:
    """Return the seconds between the last step of attempt 1 and the first step after its restart."""
    records = [record for record in read_metrics(run) if "train/loss" in record["values"]]
    times: list[float] = [record["time_ms"] / 1000 for record in records]
    before = max((moment for moment in times if moment < history[1].time), default=history[0].time)
    return min(moment for moment in times if moment > history[1].time) - before


def restart_limit(box: Sandbox, chance: random.Random, max_restarts: int = 2, nodes: int = 2) -> Outcome:
    """Check that a run ends after exactly `max_restarts` restarts if a rank is killed in each attempt."""
    outcome = Outcome(f"killed again and again, max_restarts={max_restarts}")
    run = box.submit(f"cluster.max_restarts={max_restarts}", f"cluster.nodes={nodes}")
    for number in range(1, max_restarts + 2):
        _kill_in_attempt(box, run, number, chance)
    box.wait_for_end(run)
    outcome.requeues = len(attempts.read(run.path)) - 1
    if outcome.requeues != max_restarts or f"gave up after {max_restarts} restarts" not in str(run.failure()):
        outcome.faults.append(f"{outcome.requeues} restarts, {run.failure()}")
    outcome.causes = [str(run.failure())]
    return outcome


def _kill_in_attempt(box: Sandbox, run: RunFolder, number: int, chance: random.Random) -> None:
    """Kill a rank in an attempt, and wait for the end of the attempt.

    The step differs between attempts, since two deaths at the same step would end the run."""
    wait_for(lambda: len(attempts.read(run.path)) == number, PATIENCE, f"attempt {number}")
    step = attempts.read(run.path)[-1].from_step + 1 + number
    wait_for(lambda: newest_step(run) >= step, PATIENCE, f"step {step} of attempt {number}", pause=0.02)
    chance.choice(list(box.ranks(run).values())).kill()
    wait_for(lambda: attempts.read(run.path)[number - 1].ending, PATIENCE, f"the end of attempt {number}")


def newest_step(run: RunFolder) -> int:
    """Return the last optimizer step of the current attempt; 0 if it has done none."""
    history = attempts.read(run.path)
    began = history[-1].time * 1000 if history else 0.0
    records = [r for r in read_metrics(run) if r["time_ms"] > began and "train/loss" in r["values"]]
    return max((int(record["step"]) for record in records), default=0)


def same_crash(box: Sandbox, chance: random.Random) -> Outcome:
    """Check that a run ends, with the crash as its reason, if each attempt crashes at the same step."""
    outcome = Outcome(f"crash at step {FAULT_STEP} in every attempt")
    run = box.submit(box.plant(CRASH, FAULT_STEP))
    box.wait_for_end(run)
    outcome.requeues = len(attempts.read(run.path)) - 1
    outcome.causes = [str(run.failure())]
    expected = f"died 2 times at step {FAULT_STEP}: RuntimeError: planted"
    if outcome.requeues != 1 or expected not in str(run.failure()):
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
    for name in dict.fromkeys(outcome.event for outcome in outcomes):
        group = [outcome for outcome in outcomes if outcome.event == name]
        seconds = ", ".join("-" if outcome.seconds is None else f"{outcome.seconds:.0f}" for outcome in group)
        lost = ", ".join(str(outcome.steps_lost) for outcome in group)
        requeues = ", ".join(str(outcome.requeues) for outcome in group)
        difference = max(outcome.difference for outcome in group)
        expected = "same" if name in EVENTS else group[0].causes[0]
        result = "; ".join(fault for outcome in group for fault in outcome.faults) or expected
        lines.append(f"| {name} | {lost} | {seconds} | {requeues} | {difference:.0e} | {result} |")
    return "\n".join(lines)


def run_all(boxes: list[Sandbox], chosen: list[str], times: int, seed: int) -> list[Outcome]:
    """Run the chosen events. Each cluster has one run at a time, so an event disturbs only one run.

    Args:
        times: number of runs for each event of EVENTS. Those of LIMITS have one run.
        seed: seed of the random moments.
    """
    free: SimpleQueue[Sandbox] = SimpleQueue()
    for box in boxes:
        free.put(box)
    undisturbed = boxes[0].submit()
    boxes[0].wait_for_end(undisturbed)
    assert undisturbed.state() == "completed", undisturbed.failure()

    def run_one(name: str, chance: random.Random) -> Outcome:
        box = free.get()
        began = time.time()
        try:
            if name in LIMITS:
                outcome = LIMITS[name](box, chance)
            else:
                outcome = run_event(box, name, undisturbed, chance)
        except Exception as fault:
            outcome = Outcome(name, faults=[f"{type(fault).__name__}: {fault}"])
        free.put(box)
        row = table([outcome]).splitlines()[-1]
        print(f"{row} {', '.join(outcome.causes)}, {time.time() - began:.0f} s", flush=True)
        return outcome

    every = [*EVENTS, *LIMITS, *(list(EVENTS) * (times - 1))]
    names = [name for name in every if name in chosen]
    with ThreadPoolExecutor(len(boxes)) as pool:
        chances = [random.Random(f"{seed}/{index}") for index in range(len(names))]
        return list(pool.map(run_one, names, chances))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=3, help="runs of each event (3)")
    parser.add_argument("--only", nargs="*", choices=[*EVENTS, *LIMITS], help="these events")
    parser.add_argument(
        "--clusters", type=int, default=2, help="test clusters, each with one run at a time (2)"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of the random moments")
    options = parser.parse_args()
    began = time.time()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, ExitStack() as stack:
        names = [f"chaos-{os.getpid()}-{number}" for number in range(options.clusters)]
        boxes = [Sandbox(Path(folder), Cluster(name)) for name in names]
        boxes[0].prepare()
        for box in boxes:
            box.cluster.up(owner=os.getpid())
            stack.callback(box.cluster.down)
        outcomes = run_all(boxes, options.only or [*EVENTS, *LIMITS], options.times, options.seed)
    seconds = time.time() - began
    print(f"\n{table(outcomes)}\n\n{seconds:.0f} s, seed {options.seed}, {options.clusters} clusters at once")
    sys.exit(1 if any(outcome.faults for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
