"""Local sweeps without training: stand-ins replace the ranks; commands, signals and files are real.

`python -m tests.local_sweep ARGUMENTS` runs `finetune ARGUMENTS`. A stand-in completes its run as
soon as the file `finish` is in the working directory. It stops its run as soon as the run's stop
file exists.
"""

from __future__ import annotations

import subprocess
import sys

import psutil

from finetune.cli import main as cli
from finetune.config.train import TrainConfig
from finetune.launch import follow, local, submit
from finetune.launch.follow import Controller
from finetune.runs.folder import RunFolder

STAND_IN = """
import json, os, pathlib, sys, time
run = pathlib.Path(sys.argv[2]).parent
while not (stopped := (run / "stop").exists()) and not pathlib.Path("finish").exists():
    time.sleep(0.02)
time.sleep(0.1)  # like a rank that is about to exit
if not stopped:
    loss = 5.0 - 1000 * float(next(l for l in open(run / "config.yaml") if l.startswith("lr:")).split()[1])
    body = {"after": {"loss": loss}, "before": {"loss": 9.0}, "warnings": []}
    (run / "summary.json").write_text(json.dumps(body))
(run / "outcome.json").write_text(json.dumps({"state": "stopped" if stopped else "completed"}))
"""


def start_stand_in(run: RunFolder, config: TrainConfig) -> Controller:
    """Start a stand-in for a run's ranks and their controller, in a session of its own."""
    run.jobs.mkdir(exist_ok=True)
    command = [sys.executable, "-c", STAND_IN, "submitit.core._submit", str(run.jobs)]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = psutil.Popen(command, start_new_session=True, **silent)
    return Controller(process, lambda: process.poll() is not None, owns_ranks=False)


def main() -> None:
    local._local_ranks = start_stand_in
    submit._check_models = lambda points: None
    follow._sync = lambda run, console: None
    follow.POLL_SECONDS = 0.02
    from finetune.cli import result_tables

    result_tables.print_summary = lambda run: sys.stderr.write(f"summary of {run.id}\n")
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
