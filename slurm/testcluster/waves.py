"""Check that a sweep completes if Slurm accepts only a part of it, and its user's shell is killed.

    python -m slurm.testcluster.waves                          300 points with a limit of 20
    python -m slurm.testcluster.waves --points 12 --limit 1    `finetune status` submits each point

Submission, queue and batch scripts are real. Instead of ranks, the jobs start a program that
records its start and soon succeeds, because 300 trainings would take hours. Each point must start
exactly once.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from finetune.runs.folder import RunFolder
from slurm.testcluster.chaos import Sandbox
from slurm.testcluster.cluster import Cluster

QOS = "few"
RANK = """\
#!/bin/bash
# runs in place of the job's Python; its last argument is the folder of the run's job files
folder="${@: -1}"
cd -P "${folder//%a/$SLURM_ARRAY_TASK_ID}" || exit 1
run=$(cd -P .. && pwd)
# a rank could not start without its pickle
[ -e "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_submitted.pkl" ] || exit 1
echo "$(basename "$run") $SLURM_ARRAY_JOB_ID" >> STARTED
if grep -qx "seed: FAILING" "$run/config.yaml" && mkdir "$run/failed-once" 2>/dev/null; then
    failure='{"time": 1, "rank": 0, "error": "lr is too high", "kind": "mistake", "nodes": []}'
    echo "$failure" > "$run/failure-rank-0.json"
    exit 1
fi
sleep SECONDS
echo '{"state": "completed", "asked_by": ""}' > "$run/outcome.json"
"""


def limit_submissions(cluster: Cluster, limit: int) -> None:
    """Limit a user's submitted jobs in the quality of service QOS, which is added if necessary."""
    if not cluster.slurm("sacctmgr", "-nP", "show", "qos", QOS).strip():
        cluster.slurm("sacctmgr", "-i", "-Q", "add", "qos", QOS)
        cluster.slurm("sacctmgr", "-i", "-Q", "modify", "user", "root", "set", f"qos+={QOS}")
    cluster.slurm("sacctmgr", "-i", "-Q", "modify", "qos", QOS, "set", f"MaxSubmitJobsPerUser={limit}")


def write_rank_stand_in(folder: Path, seconds: float, failing_seed: int | None = None) -> list[str]:
    """Write the program that replaces the ranks; return the settings with which a run uses it.

    Args:
        folder: folder for the program and for its record of starts.
        seconds: duration of each job.
        failing_seed: seed of the point that fails at its first start; None: no point fails.
    """
    program = folder / "rank.sh"
    values = {"STARTED": folder / "started", "SECONDS": seconds, "FAILING": failing_seed}
    text = RANK
    for name, value in values.items():
        text = text.replace(name, str(value))
    program.write_text(text)
    program.chmod(0o755)
    return [f"cluster.python={program}", f"cluster.host_python={sys.executable}"]


def read_starts(folder: Path) -> list[tuple[str, str]]:
    """Return, for each start of a job, the ids of its run and of its array."""
    path = folder / "started"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(run, array) for run, array in (line.split() for line in lines)]


def submit_from_a_shell_that_is_killed(box: Sandbox, settings: list[str]) -> str:
    """Submit a sweep from a shell, kill this shell, and return the output of the submission."""
    log = box.folder / "submission.log"
    command = [sys.executable, "-m", "finetune.cli.main", "train", "-m", *settings]
    with log.open("w") as output:
        shell = subprocess.Popen(
            ["bash", "-c", '"$@"; echo done; sleep 3600', "bash", *command],
            cwd=box.folder,
            env={**os.environ, **box.cluster.environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    while not log.read_text().endswith("done\n"):
        time.sleep(0.2)
    os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()
    return log.read_text()


@dataclass
class Watched:
    """A summary of the queue between the submission and the end of all points.

    Attributes:
        most: largest number of jobs in the queue at a time.
        stalls: how often points waited although no job was in the queue.
        seconds: time between the submission and the end of all points.
        sizes: number of started points of each job array, by the array's id.
    """

    most: int = 0
    stalls: int = 0
    seconds: float = 0.0
    sizes: Counter[str] = field(default_factory=Counter)


def watch_to_the_end(box: Sandbox, runs: list[RunFolder], help_stalled: bool) -> Watched:
    """Read the queue twice a second until all points have ended.

    Args:
        help_stalled: what to do if points wait and no job is in the queue. True: run
            `finetune status`, which submits points. False: return.
    """
    seen = Watched()
    began = time.monotonic()
    while True:
        queued = box.cluster.slurm("squeue", "-h", "-r", "-o", "%i", "-t", "PD,R,CF,S", timeout=60).split()
        seen.most = max(seen.most, len(queued))
        ended = sum((run.path / "outcome.json").exists() for run in runs)
        if not queued and (ended == len(runs) or not help_stalled):
            break
        if not queued:
            seen.stalls += 1
            box.finetune("status")
        time.sleep(0.5)
    seen.seconds = time.monotonic() - began
    seen.sizes = Counter(array for _, array in read_starts(box.folder))
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=300, help="points of the sweep (300)")
    parser.add_argument("--limit", type=int, default=20, help="most jobs of a user in the queue (20)")
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of each job (1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        box = Sandbox(Path(folder), Cluster(f"waves-{os.getpid()}"))
        box.prepare()
        box.cluster.up(owner=os.getpid())
        try:
            limit_submissions(box.cluster, options.limit)
            settings = [
                "--config-dir",
                "my",
                "model=tiny",
                "adapter=none",
                "corpus=sample",
                "cluster=testcluster",
                "max_steps=5",
                "data.sequence_length=256",
                f"cluster.qos={QOS}",
                f"seed=range(0,{options.points})",
                *write_rank_stand_in(box.folder, options.seconds),
            ]
            printed = submit_from_a_shell_that_is_killed(box, settings)
            print("\n".join(line for line in printed.splitlines() if line.startswith("sweep ")), flush=True)
            runs = RunFolder.all(box.folder / "runs")
            seen = watch_to_the_end(box, runs, help_stalled=options.limit == 1)
        finally:
            box.cluster.down()
        times = Counter(run for run, _ in read_starts(box.folder))
        completed = sum(run.state() == "completed" for run in runs)
    once = sum(number == 1 for number in times.values())
    repeated = sum(number > 1 for number in times.values())
    print(
        f"{len(runs)} points, limit {options.limit}: {completed} completed, started once: {once}, "
        f"more often: {repeated}; {len(seen.sizes)} submissions, at most {seen.most} jobs in the queue, "
        f"{seen.stalls} stalls, {seen.seconds:.0f} s"
    )
    all_started_once = len(runs) == options.points == len(times) == times.total()
    is_right = all_started_once and completed == len(runs) and seen.most <= options.limit
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
