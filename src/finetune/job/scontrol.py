"""Requests of the batch script's helper to Slurm: requeue, resubmit, release, find dead nodes.

This module runs on the batch host, outside any container. It uses only the standard library and
Python 3.8.
"""

from __future__ import annotations

import re
import time
from datetime import datetime

from finetune.job.slurm_command import CommandError, run_command
from finetune.job.slurm_queue import TOO_MANY, submission_environment

TRIES = 6  # with the pauses, enough for a restart of slurmctld, which takes seconds
PAUSE = 5.0  # seconds between two tries
ACCOUNTING_SECONDS = 10.0  # time limit of sacct; its output only improves a message
SCONTROL_SECONDS = 30.0  # time limit of scontrol
SBATCH_SECONDS = 60.0  # time limit of sbatch; if it submits a job later, the job is held for ever
PLACE_SECONDS = 120.0  # how long to try to submit while Slurm accepts no more jobs of this user


def scontrol(*arguments: str, check: bool = False) -> str:
    """Return the output of scontrol; "" if it fails. If slurmctld does not answer, try again.

    Args:
        check: raise an error if it fails.

    Raises:
        RuntimeError: it failed, and `check` is set.
    """
    fault = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE)
        try:
            return run_command("scontrol", *arguments, seconds=SCONTROL_SECONDS)
        except CommandError as error:
            fault = str(error)
            is_unreachable = error.is_timeout or "contact" in fault.lower()
            if not is_unreachable:  # slurmctld has refused the request, and would refuse it again
                break
    if check:
        raise RuntimeError(f"{fault} (scontrol {' '.join(arguments)})")
    return ""


def memory_used(job: str) -> str:
    """Return a description of the memory that a job's largest task used, from Slurm's accounting.

    Return "" if there is no accounting, or it does not answer.
    """
    command = ["sacct", "--noheader", "--parsable2", "-j", job, "-o", "JobID,MaxRSS,ReqMem"]
    try:
        output = run_command(*command, seconds=ACCOUNTING_SECONDS)
    except CommandError:
        return ""
    rows = [row for row in (line.split("|") for line in output.splitlines()) if len(row) == 3]
    steps = [row for row in rows if row[1] and not row[0].endswith(("batch", "extern"))]
    if not steps:
        return ""
    requested = next((row[2] for row in rows if row[2]), "")
    request = f", {requested} were requested" if requested else ""
    return f"Slurm counted {steps[-1][1]} of memory in its largest task{request}"


def hostnames(nodelist: str) -> list[str]:
    """Return the nodes of a Slurm node list such as node[1-3,7]."""
    return scontrol("show", "hostnames", nodelist, check=True).split()


def sbatch(command: list[str]) -> str:
    """Run an sbatch command and return the id of the new job.

    If Slurm accepts no more jobs of this user, try again for PLACE_SECONDS. This happens if many
    jobs of a sweep reach their time limit together: each submits a new job for its run, and Slurm
    counts both jobs until the first has ended.

    Raises:
        RuntimeError: Slurm refuses.
    """
    deadline = time.monotonic() + PLACE_SECONDS
    while True:
        environment = submission_environment()
        try:
            return run_command(*command, seconds=SBATCH_SECONDS, environment=environment).partition(";")[0]
        except CommandError as error:
            if not TOO_MANY.search(str(error)) or time.monotonic() > deadline:
                raise
        time.sleep(PAUSE)


def may_be_held(job_id: str) -> bool:
    """Return whether a job is held by its user; True if scontrol fails, so that it is unknown."""
    shown = scontrol("show", "job", job_id)
    return not shown or "Reason=JobHeldUser" in shown


def dead_nodes(nodes: tuple[str, ...], since: float) -> tuple[str, ...]:
    """Return the nodes that are down, do not respond, or have restarted.

    Args:
        since: time in seconds since the epoch; an earlier restart does not count.
    """
    return tuple(node for node in nodes if _is_dead(scontrol("show", "node", node, "--oneliner"), since))


def _is_dead(line: str, since: float) -> bool:
    """Return whether a node is dead, by its line in the output of `scontrol show node`."""
    state = re.search(r"\bState=(\S+)", line)
    dead_states = ("*", "DOWN", "FAIL", "NOT_RESPONDING")  # "*": the node does not respond
    if state and any(mark in state[1] for mark in dead_states):
        return True
    starts = [
        datetime.fromisoformat(text).timestamp()
        for text in re.findall(r"\b(?:BootTime|SlurmdStartTime)=(\d\S+)", line)
    ]
    return any(start > since for start in starts)
