"""Calls of the batch script's helper for a run folder, with a simulated Slurm on PATH.

The helper is finetune.job.batch_script.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from finetune.job import batch_script
from finetune.runs import attempts

SBATCH = """\
#!/bin/sh
echo "sbatch $@" >> {log}
if [ -e {log}.breaks ]; then rm {log}.breaks; exit 1; fi
if [ -e {log}.full ]; then
    rm {log}.full
    echo "Job violates accounting/QOS policy (job submit limit, …)" >&2
    exit 1
fi
if [ -e {log}.slow ]; then sleep 2; fi
echo 8
"""
SCONTROL = """\
#!{python} -IS
import json, os, sys
words = sys.argv[1:]
with open("{log}", "a") as log:
    log.write(" ".join(words) + "\\n")
answers = json.load(open("{answers}"))
if words[:2] == ["show", "hostnames"]:
    print("\\n".join(words[2].split("+")))
elif words[:2] == ["show", "job"]:
    first = open("{log}").read().count("show job") == 1 and answers.get("job_first")
    reason = answers.get("reason" + words[2]) or answers.get("reason", "None")
    print("JobId=7 JobState=" + (first or answers.get("job", "RUNNING")) + " Reason=" + reason)
    print("Command=submit.sh")
elif words[:2] == ["show", "node"]:
    healthy = "BootTime=2020-01-01T00:00:00 State=ALLOCATED"
    print("NodeName=" + words[2] + " " + answers.get(words[2], healthy))
elif "refuses" in answers:
    print(answers["refuses"], file=sys.stderr)
    sys.exit(1)
"""


class Batch:
    """A run folder. The methods call the batch script's helper as a Slurm job does."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = folder / "run"
        (self.run / "jobs").mkdir(parents=True)
        self.log = folder / "log"
        self.answers = folder / "answers"
        self.answers.write_text("{}")
        (folder / "bin").mkdir()
        for name, text in {"scontrol": SCONTROL, "sbatch": SBATCH}.items():
            program = folder / "bin" / name
            program.write_text(text.format(python=sys.executable, log=self.log, answers=self.answers))
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
            monkeypatch.delenv(name, raising=False)
        # keep the signal handlers of pytest's process
        for name in ("signal", "pthread_sigmask", "sigtimedwait"):
            monkeypatch.setattr(batch_script.signal, name, lambda *_: signal.SIGTERM)
        self.setenv = monkeypatch.setenv
        self.job = "7"

    def call(self, when: str, *arguments: str, nodes: str = "n1+n2", on_interrupt: str = "requeue") -> int:
        self.setenv("SLURM_JOB_ID", self.job)
        self.setenv("SLURM_JOB_NODELIST", nodes)
        policy = ["--max-restarts", "3", "--on-interrupt", on_interrupt, "--world-size", "2"]
        return batch_script.main([when, str(self.run), *arguments, *policy])

    def begin(self, nodes: str = "n1+n2") -> int:
        return self.call("begin", nodes=nodes)

    def end(self, code: int, on_interrupt: str = "requeue") -> int:
        return self.call("end", "--code", str(code), on_interrupt=on_interrupt)

    def set_answers(self, **answers: str) -> None:
        """Set the answers of the simulated scontrol, by key (see SCONTROL)."""
        self.answers.write_text(json.dumps(answers))

    def requests(self) -> list[str]:
        """Return the requests that Slurm received; queries (`scontrol show`) are left out."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if not line.startswith("show")]

    def write(self, name: str, **body: Any) -> None:
        (self.run / name).write_text(json.dumps(body))

    def train(self, *steps: int, saved: int | None = None) -> None:
        with (self.run / "metrics.jsonl").open("a") as file:
            for step in steps:
                record = {"step": step, "time_ms": time.time() * 1000 + 1, "values": {"train/loss": 1.0}}
                file.write(json.dumps(record) + "\n")
        if saved is not None:
            (self.run / "checkpoints" / f"step-{saved:08d}").mkdir(parents=True)

    def causes(self) -> list[str | None]:
        return [attempt.ending.cause if attempt.ending else None for attempt in attempts.read(self.run)]
