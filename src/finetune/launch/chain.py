"""A preparation as a chain of Slurm jobs: one array a step, each after the one before; `train after=ID` goes behind the last.

Everything of it lies in corpora/.NAME.stages/slurm/<id>/: scripts, logs, and prepare.json with the ids of the jobs. Until that is
written the first job is held, so that a submitter killed on the way leaves nothing that runs.

A task whose process is killed (kill -9, want of memory) or whose node is lost goes back into the queue and does what is missing;
the steps behind wait for it. What fails otherwise cancels them: the same `finetune prepare` goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune.cluster import ClusterConfig
from finetune.launch import observe, slurm
from finetune.launch.freeze import new_id, snapshot_code, unwritable
from finetune.settings import check_log_folder

FILE = "prepare.json"
MAX_RESTARTS = 3  # of a task: what needs more memory than it has would be killed for ever


@dataclass(frozen=True)
class PrepareRun:
    """A submitted preparation. `jobs`: the job of each step, in order."""

    folder: Path
    jobs: dict[str, str]

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def corpus(self) -> Path:
        """The folder that it makes, and whose stages' folder (data_prep.pipeline) this lies in."""
        stages = self.folder.parents[1]
        return stages.with_name(stages.name.removeprefix(".").removesuffix(".stages"))

    @property
    def last_job(self) -> str:
        return list(self.jobs.values())[-1]

    @classmethod
    def find(cls, run_id: str, corpora_dir: str | Path) -> PrepareRun:
        """Raises FileNotFoundError if there is none of this id."""
        for path in Path(corpora_dir).glob(f".*.stages/slurm/{run_id}/{FILE}"):
            return cls(path.parent.absolute(), json.loads(path.read_text(encoding="utf-8")))
        raise FileNotFoundError(f"no prepare run '{run_id}' in {corpora_dir}: `finetune prepare … cluster=…` prints its id")

    def states(self) -> dict[str, str]:
        """Of each step, from Slurm: PENDING, RUNNING, COMPLETED, FAILED, …; "" where it has forgotten."""
        return observe.states(list(self.jobs.values()))

    def logs(self) -> list[Path]:
        """Of its tasks, in the order in which they ended."""
        return sorted(self.folder.glob("*.log"), key=lambda log: log.stat().st_mtime)

    def cancel(self) -> str:
        """Take its steps out of the queue, and end the one at work; what came of it, in words."""
        if not self.is_alive():
            return "has ended already"
        slurm.slurm_command("scancel", *self.jobs.values())
        return "cancelled; the same `finetune prepare` goes on from what is done"

    def is_alive(self) -> bool:
        """A step of it runs, or will."""
        return bool({*self.states().values()} & {*observe.WAITING, *observe.AT_WORK})

    def has_published(self) -> bool:
        """It has ended, and well: an older corpus may be there though it failed. Where Slurm has forgotten, files' times say."""
        state, manifest = list(self.states().values())[-1], self.corpus / "manifest.json"
        if state or not manifest.is_file():
            return state == "COMPLETED" and manifest.is_file()
        return manifest.stat().st_mtime >= (self.folder / FILE).stat().st_mtime


def submit(name: str, work: Path, steps: list[tuple[str, bool]], num_tasks: int, cluster: ClusterConfig) -> PrepareRun:
    """Submit the steps of a plan.

    Args:
        name: of the corpus.
        work: the folder of its stages, where the plan lies.
        steps: their names in order, and whether a step can be cut.
        num_tasks: of the array of a step that can be.

    Raises:
        ValueError: Slurm refuses; nothing is queued then.
    """
    jobs: dict[str, str] = {}
    folder = work.absolute() / "slurm" / new_id(f"prepare-{name}")
    check_log_folder("corpora_dir", str(folder), "slurm")
    try:
        folder.mkdir(parents=True)
        code = snapshot_code(folder.parent)
        for step, is_cut in steps:
            script = folder / f"{step}.sh"
            before = list(jobs.values())[-1:]
            script.write_text(_script(folder, work, step, num_tasks if is_cut else 1, code, cluster, before), encoding="utf-8")
            hold = [] if jobs else ["--hold"]
            jobs[step] = slurm.slurm_command("sbatch", "--parsable", *hold, str(script)).partition(";")[0]
        temporary = folder / f".{FILE}.tmp"
        temporary.write_text(json.dumps(jobs, indent=1), encoding="utf-8")
        os.replace(temporary, folder / FILE)
        slurm.slurm_command("scontrol", "release", next(iter(jobs.values())))
    except BaseException as fault:
        if jobs:
            with contextlib.suppress(ValueError):
                slurm.slurm_command("scancel", *jobs.values())
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(fault, OSError):
            raise unwritable(folder, fault, "corpora_dir") from None
        raise
    return PrepareRun(folder, jobs)


def _script(folder: Path, work: Path, step: str, num_tasks: int, code: Path, cluster: ClusterConfig, before: list[str]) -> str:
    wanted = cluster.prepare
    options = {
        "job-name": f"{folder.name}.{step}", "output": f"{folder}/{step}-%a.log", "array": f"0-{num_tasks - 1}", "ntasks": "1",
        "time": str(wanted.timeout_min), "account": cluster.account, "partition": wanted.partition, "mem": wanted.memory,
        "dependency": f"afterok:{before[0]}" if before else None, "kill-on-invalid-dep": "yes", "open-mode": "append",
    }  # fmt: skip
    lines = [
        "#SBATCH --requeue",
        *(f"#SBATCH --{key}={shlex.quote(value)}" for key, value in options.items() if value is not None),
    ]
    python = f"{shlex.quote(sys.executable)} -m data_prep.pipeline {shlex.quote(str(work.absolute()))} {step}"
    share = f" --task $SLURM_ARRAY_TASK_ID --of {num_tasks}" if num_tasks > 1 else ""
    return "\n".join(["#!/bin/bash", *lines, slurm.code_line(code), f"{python}{share}", _COME_BACK, ""])


# 137: SIGKILL. Slurm's own (cancelled, out of time) begin with SIGTERM, and are meant. Once requeued, it ends this script.
_COME_BACK = f"""\
code=$?
if [ $code -eq 137 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_RESTARTS} ]; then
  echo "killed: back into the queue" >&2
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}" && sleep 60
fi
exit $code"""


def dependency(run_id: str, corpora_dir: str, corpora: Iterable[Path]) -> str | None:
    """The job that a training on these corpus folders must wait for, or None if the corpus is there.

    Raises:
        FileNotFoundError, ValueError: there is no such prepare run, it makes another corpus, or it ended without one.
    """
    run = PrepareRun.find(run_id, corpora_dir)
    for folder in corpora:
        if folder.resolve() != run.corpus.resolve():
            raise ValueError(
                f"prepare run {run_id} makes corpus {run.corpus}, not {folder}: choose its corpus, or leave --after out"
            )
    if run.is_alive():
        return run.last_job
    if not run.has_published():
        raise ValueError(
            f"prepare run {run_id} ended without a corpus: its logs are in {run.folder}; run `finetune prepare` again"
        )
    return None
