"""Slurm's limits on a user's jobs, and the sweep points that wait because of them (job/waves.py).

A place in the queue is a job that the user may still submit under these limits.
"""

from __future__ import annotations

import getpass
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from finetune.config.cluster import ClusterConfig
from finetune.job import slurm_queue, waves
from finetune.job.slurm_command import CommandError
from finetune.job.slurm_queue import QueuedJob
from finetune.job.wave_files import Limit, Plan, SweepSubmission, open_submissions
from finetune.launch import observe
from finetune.launch.observe import slurm_lines
from finetune.runs.folder import RunFolder
from finetune.runs.state import RunState

DEFAULT_QOS = "normal"
SLURMS_ARRAY_SIZE = 1000  # a little below 1001, Slurm's default for MaxArraySize


def largest_array(cluster: ClusterConfig) -> int:
    """Return the largest number of tasks that Slurm accepts in a job array."""
    shown = "\n".join(slurm_lines("scontrol", "show", "config") or [])
    configured = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    sizes = [int(configured[1])] if configured else []
    if cluster.site.max_array_size is not None:
        sizes.append(cluster.site.max_array_size)
    return max(1, min(sizes, default=SLURMS_ARRAY_SIZE))


def submit_limits(cluster: ClusterConfig) -> list[Limit]:
    """Return the known limits on this user's number of jobs.

    They come from the cluster's profile, and from Slurm: it reports limits of the account, of the
    quality of service (QoS) and of the partition.
    """
    return [*_documented_limits(cluster), *_accounting_limits(cluster)]


def describe(plan: Plan, jobs: list[QueuedJob], num_points: int, submitted: int) -> str:
    """Return a message: how many points were submitted, why the others wait, and when they follow.

    Args:
        plan: the rules for submitting the waiting points.
        jobs: this user's jobs in the queue before the submission.
        num_points: number of points of the sweep.
        submitted: number of points that were submitted.
    """
    tightest = min(plan.limits, key=lambda limit: limit.free(jobs), default=None)
    follow = "the others follow as these end" if submitted else "they follow as jobs of yours end"
    if submitted == plan.parallel:
        reason = f"cluster.array_parallelism is {plan.parallel}"
    elif tightest is not None and tightest.free(jobs) < num_points:
        jobs_of_yours = "1 job of yours" if tightest.most == 1 else f"{tightest.most} jobs of yours"
        reason = f"Slurm takes {jobs_of_yours} at a time ({tightest.source})"
    else:
        reason = "Slurm took no more at once (its limit is not known)"
    if tightest is not None and tightest.most == 1:
        follow = (
            "a job still counts while it ends, so it cannot submit the next one; run `finetune status` "
            "whenever a job has ended, or submit with wait=true and leave that command running"
        )
    return f"{num_points} runs, {submitted} submitted now; {reason}: {follow}"


def _documented_limits(cluster: ClusterConfig) -> Iterator[Limit]:
    most = cluster.queue_limits().max_submitted
    if most is None:
        return
    queue = cluster.site.queues.get(cluster.qos or "")
    if queue is not None and queue.max_submitted == most:
        yield Limit(most, f"{cluster.name}'s documentation of {cluster.qos}", qos=cluster.qos or "")
    else:
        source = f"{cluster.name}'s documentation of {cluster.partition}"
        yield Limit(most, source, partition=cluster.partition or "")


def _accounting_limits(cluster: ClusterConfig) -> Iterator[Limit]:
    columns = "format=Account,Partition,DefaultQOS,MaxSubmitJobs"
    accounts = [f"account={cluster.account}"] if cluster.account else []
    user = f"user={getpass.getuser()}"
    lines = slurm_lines("sacctmgr", "-nP", "show", "assoc", "where", user, *accounts, columns) or []
    values = [row for row in (line.split("|") for line in lines) if len(row) == 4]
    rows = [row for row in values if row[1] in ("", cluster.partition)]
    default = {row[2] for row in rows if row[2]}
    if cluster.account:
        for account, partition, _, number in rows:
            if number.isdigit():
                yield Limit(int(number), f"account {account}", account=account, partition=partition)
    default_qos = default.pop() if len(default) == 1 else DEFAULT_QOS
    qos = cluster.qos or default_qos
    for most in _qos_limits(qos):
        yield Limit(most, f"qos {qos}", qos=qos)
    if not cluster.partition:
        return
    shown = " ".join(slurm_lines("scontrol", "show", "partition", cluster.partition) or [])
    found = re.search(r"\bQoS=(\S+)", shown)
    if found and found[1] != "N/A":
        for most in _qos_limits(found[1]):
            yield Limit(most, f"partition {cluster.partition}", partition=cluster.partition)


def _qos_limits(name: str) -> Iterator[int]:
    for line in slurm_lines("sacctmgr", "-nP", "show", "qos", name, "format=MaxSubmitJobsPU") or []:
        if line.strip().isdigit():
            yield int(line)


# --- waiting points -----------------------------------------------------------------------------


def submit_waiting_points(runs_dir: Path, quiet: bool = False, pause: bool = True) -> None:
    """Submit as many waiting sweep points as Slurm's limits allow.

    Print how many were submitted and how many still wait. An error is printed as a warning.

    Args:
        quiet: print nothing.
        pause: first pause each sweep whose latest jobs were all cancelled with scancel. Its points
            are then not submitted until the user runs `finetune retry`.
    """
    try:
        submissions = open_submissions(runs_dir)
        jobs = slurm_queue.queue() if submissions else []
        for submission in submissions:
            if pause and _is_cancelled(submission, jobs):
                submission.pause()
        submitted = waves.submit_waiting(runs_dir)
    except (CommandError, ValueError, OSError) as fault:
        if not quiet:
            message = f"warning: points that wait for a place in the queue were not submitted: {fault}"
            print(message, file=sys.stderr)  # noqa: T201
        return
    if submitted and not quiet:
        message = f"{submitted} points that waited for a place in the queue were submitted"
        print(message, file=sys.stderr)  # noqa: T201
    waiting = sum(len(submission.waiting()) for submission in open_submissions(runs_dir))
    if waiting and not quiet:
        print(  # noqa: T201
            f"{waiting} points wait for a place in the queue; the jobs of their sweep submit them as they "
            f"end, and so does this command",
            file=sys.stderr,
        )


def _is_cancelled(submission: SweepSubmission, jobs: list[QueuedJob]) -> bool:
    """Return whether the jobs of a sweep's last submission were all cancelled with scancel."""
    if any(job.name == submission.plan.name for job in jobs):
        return False
    last = observe.observe([RunFolder(path) for path in submission.last_wave() if path.is_dir()])
    cancelled = (RunState.CANCELLED, observe.CANCELLED)
    return bool(last) and all((seen.state, seen.reason) == cancelled for seen in last)
