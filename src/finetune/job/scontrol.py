"""Requests of the batch script's helper to Slurm about its own job: requeue, resubmit, release, dead nodes.

On the batch host, outside of a container: the standard library alone, from Python 3.8 on.
"""

from __future__ import annotations

import re
import time
from datetime import datetime

from finetune.job.slurm_command import Refused, run_command
from finetune.job.slurm_queue import TOO_MANY, submission_environment

TRIES = 6  # a controller that restarts is away for seconds
PAUSE = 5.0
ACCOUNTING_SECONDS = 10.0  # a question that is only nice to have answered
SCONTROL_SECONDS = 30.0
SBATCH_SECONDS = 60.0  # what outlives them is a job that is held, and never starts
PLACE_SECONDS = 120.0  # that a job waits for a place for the one that goes on after it


def scontrol(*words: str, check: bool = False) -> str:
    """What scontrol prints; "" where it fails.

    Raises:
        RuntimeError: it failed, again and again, and `check` is set.
    """
    fault = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE)
        try:
            return run_command("scontrol", *words, seconds=SCONTROL_SECONDS)
        except Refused as refusal:
            fault = str(refusal)
            if (
                not refusal.is_silent and "contact" not in fault.lower()
            ):  # only an absent controller is worth waiting for
                break
    if check:
        raise RuntimeError(f"{fault} (scontrol {' '.join(words)})")
    return ""


def memory_used(job: str) -> str:
    """Return what Slurm accounted of the memory of a job's ranks; "" where there is no accounting, or it does
    not answer."""
    command = ["sacct", "--noheader", "--parsable2", "-j", job, "-o", "JobID,MaxRSS,ReqMem"]
    try:
        rows = [line.split("|") for line in run_command(*command, seconds=ACCOUNTING_SECONDS).splitlines()]
    except Refused:
        return ""
    steps = [row for row in rows if len(row) == 3 and row[1] and not row[0].endswith(("batch", "extern"))]
    asked = next((row[2] for row in rows if len(row) == 3 and row[2]), "")
    if not steps:
        return ""
    return f"Slurm counted {steps[-1][1]} of memory in its largest task{f', {asked} were asked for' if asked else ''}"


def hostnames(nodelist: str) -> list[str]:
    """node[1-3,7] written out."""
    return scontrol("show", "hostnames", nodelist, check=True).split()


def sbatch(command: list[str]) -> str:
    """Return the id of the submitted job. Where Slurm takes no more jobs of this user, wait for the place of
    another that leaves: jobs of a sweep come to their time limit together, and each still counts while it
        submits the next.

    Raises:
        RuntimeError: Slurm refuses.
    """
    deadline = time.monotonic() + PLACE_SECONDS
    while True:
        environment = submission_environment()
        try:
            return run_command(*command, seconds=SBATCH_SECONDS, environment=environment).partition(";")[0]
        except Refused as refusal:
            if not TOO_MANY.search(str(refusal)) or time.monotonic() > deadline:
                raise
        time.sleep(PAUSE)


def may_be_held(job_id: str) -> bool:
    shown = scontrol("show", "job", job_id)
    return not shown or "Reason=JobHeldUser" in shown


def dead_nodes(nodes: tuple[str, ...], since: float) -> tuple[str, ...]:
    """Those that are down, do not answer, or have started anew since then."""
    return tuple(node for node in nodes if _is_dead(scontrol("show", "node", node, "--oneliner"), since))


def _is_dead(line: str, since: float) -> bool:
    """From what scontrol says of a node."""
    state = re.search(r"\bState=(\S+)", line)
    if state and ("*" in state[1] or any(word in state[1] for word in ("DOWN", "FAIL", "NOT_RESPONDING"))):
        return True
    starts = [
        datetime.fromisoformat(text).timestamp()
        for text in re.findall(r"\b(?:BootTime|SlurmdStartTime)=(\d\S+)", line)
    ]
    return any(start > since for start in starts)
