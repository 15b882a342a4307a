"""A preparation as a chain of Slurm jobs: one array a step, each after the one before. Consecutive steps of
one task are one job; `train after=ID` follows the last.

All of it lies in corpora/.NAME.stages/slurm/<id>/: scripts, logs, and prepare.json with the ids of the jobs.
Until that is written the first job is held, so that a submitter killed on the way leaves nothing that runs.

A task whose process is killed (kill -9, want of memory) or whose node is lost goes back into the queue and
does what is missing; the steps behind wait for it. What fails otherwise cancels them: the same `finetune
prepare` goes on.

Which task does which share of a step changes nothing in the corpus. So tasks may share a job
(cluster.prepare.tasks_per_job), and there may be fewer of them where the queue takes few jobs of a user.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import platform
import re
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.user_error import NotFoundError, UserError
from finetune.config.cluster import ClusterConfig, check_log_folder
from finetune.launch import checks, observe, slurm
from finetune.launch.environment import environment_lines
from finetune.launch.freeze import new_id, snapshot_code, unwritable
from finetune.launch.job_python import check_line, job_python
from finetune.launch.prepare_layout import Layout, Share, Steps, num_jobs
from finetune.runs.layout import write_json
from finetune.runs.state import PENDING_JOB_STATES, RUNNING_JOB_STATES, JobState

PYTHON_SETTING = "cluster.prepare.python"
FILE = "prepare.json"
MAX_RESTARTS = 3  # of a task: one that needs more memory than it has would be killed for ever


@dataclass(frozen=True)
class PrepareRun:
    """A submitted preparation. `jobs`: the job of each step, in order."""

    folder: Path
    jobs: dict[str, str]
    layout: Layout | None = None  # not known of one that was found on disk

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
        """Raises NotFoundError if there is none of this id."""
        for path in Path(corpora_dir).glob(f".*.stages/slurm/{run_id}/{FILE}"):
            return cls(path.parent.absolute(), json.loads(path.read_text(encoding="utf-8")))
        raise NotFoundError(
            f"no prepare run '{run_id}' in {corpora_dir}: `finetune prepare … cluster=…` prints its id"
        )

    def states(self) -> dict[str, str]:
        """Of each step, from Slurm: PENDING, RUNNING, COMPLETED, FAILED, …; "" where it has forgotten."""
        return observe.states(list(self.jobs.values()))

    def logs(self) -> list[Path]:
        """Of its tasks, in the order in which they ended."""
        written = [log for log in self.folder.glob("*.log") if log.stat().st_size]
        return sorted(written, key=lambda log: log.stat().st_mtime)

    def step_at_work(self) -> str | None:
        """Return the step whose task has written last, as several steps may share a job; None if none has
        begun."""
        tasks = [log for log in self.folder.glob("*.log") if not log.stem.endswith("-jobs")]
        newest = max(tasks, key=lambda log: log.stat().st_mtime, default=None)
        return newest.stem.rpartition("-")[0] if newest else None

    def cancel(self) -> str:
        """Take its steps out of the queue, and end the one at work; what came of it, in words."""
        if not self.is_alive():
            return "has ended already"
        slurm.slurm_command("scancel", *self.jobs.values())
        return "cancelled; the same `finetune prepare` goes on from what is done"

    def is_alive(self) -> bool:
        """A step of it runs, or will."""
        return bool({*self.states().values()} & {*PENDING_JOB_STATES, *RUNNING_JOB_STATES})

    def has_published(self) -> bool:
        """It has ended, and well: an older corpus may be there though it failed. Where Slurm has forgotten,
        files' times say."""
        state, manifest = list(self.states().values())[-1], self.corpus / "manifest.json"
        if state or not manifest.is_file():
            return state == JobState.COMPLETED and manifest.is_file()
        return manifest.stat().st_mtime >= (self.folder / FILE).stat().st_mtime


def lay_out(num_tasks: int, steps: Steps, cluster: ClusterConfig, most_jobs: int | None = None) -> Layout:
    """Choose a layout whose jobs the queue takes all at once.

    A job has as many tasks as cluster.prepare.tasks_per_job says, or else one; more where that would be too
    many jobs.

    Args:
        num_tasks: of a step that can be cut.
        most_jobs: that the queue takes; None: as far as the profile knows.
    """
    site, per_job = cluster.site, min(_tasks_per_job(cluster) or 1, num_tasks)
    if most_jobs is None:
        most_jobs = _room(cluster)
    num_cut = max(1, sum(is_cut for _, is_cut in steps))
    num_arrays = math.ceil(num_tasks / per_job)  # jobs of an array, that is
    if site.max_array_size is not None:
        num_arrays = min(num_arrays, site.max_array_size)
    if most_jobs is not None:
        num_arrays = min(num_arrays, (most_jobs - (len(steps) - num_cut)) // num_cut)
    is_one_job = num_arrays < 1
    num_arrays = max(1, num_arrays)
    wanted = math.ceil(num_tasks / num_arrays)
    if wanted > per_job and cluster.prepare.tasks_per_job is None:
        per_job = _most_side_by_side(cluster, wanted)
    num_tasks = min(num_tasks, num_arrays * per_job)
    num_arrays = math.ceil(num_tasks / per_job)
    return Layout(num_tasks, math.ceil(num_tasks / num_arrays), is_one_job)


def _tasks_per_job(cluster: ClusterConfig) -> int | None:
    """Return how many tasks a job is to have; None: one, or more if that makes too many jobs."""
    wanted, site = cluster.prepare, cluster.site
    if wanted.tasks_per_job is None and site.whole_nodes and wanted.partition in (None, cluster.partition):
        return wanted.compute_tasks_per_node(site)
    return wanted.tasks_per_job


def _room(cluster: ClusterConfig) -> int | None:
    """Return how many jobs of this user the queue of preparations still takes; None where the profile does
    not know its limit.

    Raises:
        UserError: none.
    """
    most = _as_jobs(cluster).queue_limits().max_submitted
    if most is None:
        return None
    wanted = cluster.prepare
    options = [f"--partition={wanted.partition}"] if wanted.partition else []
    options += [f"--qos={wanted.qos}"] if wanted.qos else []
    try:
        listed = slurm.slurm_command(
            "squeue", "--noheader", "--array", "-o", "%i", "--user", getpass.getuser(), *options
        )
    except slurm.SlurmError:  # then Slurm itself refuses what is too much
        listed = ""
    present = len(listed.split())
    if present >= most:
        raise UserError(
            f"cluster.prepare.partition: its queue takes {most} jobs of a user, and {present} of yours are there; wait, "
            f"or choose another cluster.prepare.partition or cluster.prepare.qos"
        )
    return most - present


def _most_side_by_side(cluster: ClusterConfig, num_tasks: int) -> int:
    """Return how many of so many tasks Slurm would run in one job: nodes have only so many cores, and so much
    memory."""
    while num_tasks > 1:
        try:
            return num_tasks if not _ask_slurm(cluster, num_tasks) else 1
        except ValueError:
            num_tasks = num_tasks // 2
    return num_tasks


def _ask_slurm(cluster: ClusterConfig, per_job: int) -> list[str]:
    """Ask Slurm whether it would take a job of so many tasks; return why that could not be found out, if so.

    Raises:
        UserError: it would not.
    """
    nowhere = Path("/nowhere")
    return checks.try_submission(
        _script(nowhere, nowhere, [Share("step", per_job, per_job)], nowhere, cluster, [])
    )


def check(cluster: ClusterConfig) -> list[str]:
    """Ask Slurm whether it would take jobs of a preparation, before anything is read or written.

    Returns:
        what could not be checked here and why, a line each.

    Raises:
        UserError: it would not, or they could not run there.
    """
    wanted, site = cluster.prepare, cluster.site
    there = _architecture(cluster)
    if there != platform.machine() and wanted.python is None:
        raise UserError(
            f"{PYTHON_SETTING} is missing: nodes for preparations are {there}, this Python is for {platform.machine()}; "
            f"set the command of a Python there, as in {PYTHON_SETTING}='apptainer exec IMAGE python3'"
        )
    if wanted.account and site.account_pattern and not re.fullmatch(site.account_pattern, wanted.account):
        example = site.account_example or site.account_pattern
        raise UserError(
            f"cluster.prepare.account is {wanted.account}: {cluster.name} takes one like {example}; set that"
        )
    longest = _as_jobs(cluster).queue_limits().max_timeout_min
    if longest is not None and wanted.timeout_min > longest:
        raise UserError(
            f"cluster.prepare.timeout_min is {wanted.timeout_min}: jobs there take {longest} minutes at most; lower it"
        )
    per_job = min(_tasks_per_job(cluster) or 1, wanted.tasks)
    try:
        not_checked = _ask_slurm(cluster, per_job)
    except ValueError as fault:
        if per_job == 1:
            raise
        raise UserError(
            f"{fault}; lower cluster.prepare.tasks_per_job, which makes jobs of {per_job} tasks"
        ) from None
    return [*not_checked, *checks.check_partition(_as_jobs(cluster, wanted.timeout_min), "cluster.prepare")]


def _architecture(cluster: ClusterConfig) -> str:
    """Return the architecture of the nodes for preparations."""
    return cluster.prepare.architecture or cluster.site.login_architecture or platform.machine()


def _as_jobs(cluster: ClusterConfig, timeout_min: int = 1) -> ClusterConfig:
    """Return the profile with what preparations use in place of the training's half.

    Args:
        timeout_min: 1 for what has nothing to do with time, as it is compared with the limits.
    """
    wanted, site = cluster.prepare, cluster.site
    return replace(
        cluster,
        nodes=1,
        ranks_per_node=1,
        cpus_per_rank=1,
        gpu_request="none",
        gpu_type=None,
        memory_per_node=None,
        timeout_min=timeout_min,
        signal_lead_s=0,
        partition=wanted.partition,
        qos=wanted.qos,
        constraint=wanted.constraint,
        python=wanted.python,
        modules=wanted.modules,
        setup=wanted.setup,
        env=wanted.env,
        env_one_node={},
        env_many_nodes={},
        sbatch={},
        srun=[],
        site=replace(
            site,
            compute_architecture=_architecture(cluster),
            gpus_per_node=None,
            cores_per_node=None,
            memory_per_node_gb=None,
        ),
    )


def submit(name: str, work: Path, steps: Steps, num_tasks: int, cluster: ClusterConfig) -> PrepareRun:
    """Submit the steps of a plan, in as many jobs as Slurm takes.

    Args:
        name: of the corpus.
        work: the folder of its stages, where the plan lies.
        steps: their names in order, and whether a step can be cut.
        num_tasks: of a step that can be, if the queue takes as many.

    Raises:
        UserError: Slurm refuses; nothing is queued then.
    """
    layout = lay_out(num_tasks, steps, cluster)
    while True:
        try:
            return _submit(name, work, steps, layout, cluster)
        except ValueError as fault:
            if "MaxSubmit" not in str(fault) or layout.num_jobs(steps) == 1:
                raise
            layout = lay_out(num_tasks, steps, cluster, most_jobs=layout.num_jobs(steps) // 2)


def _submit(name: str, work: Path, steps: Steps, layout: Layout, cluster: ClusterConfig) -> PrepareRun:
    jobs: dict[str, str] = {}
    folder = work.absolute() / "slurm" / new_id(f"prepare-{name}")
    check_log_folder("corpora_dir", str(folder), "slurm")
    try:
        folder.mkdir(parents=True)
        code = snapshot_code(folder.parent)
        for group in layout.group(steps):
            text = _script(folder, work, group, code, cluster, list(jobs.values())[-1:])
            script = folder / f"{_name(group)}.sh"
            script.write_text(text, encoding="utf-8")
            hold = [] if jobs else ["--hold"]
            jobs[_name(group)] = slurm.slurm_command("sbatch", "--parsable", *hold, str(script)).partition(
                ";"
            )[0]
        write_json(folder / FILE, jobs)
        slurm.slurm_command("scontrol", "release", next(iter(jobs.values())))
    except BaseException as fault:
        if jobs:
            with contextlib.suppress(ValueError):
                slurm.slurm_command("scancel", *jobs.values())
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(fault, OSError):
            raise unwritable(folder, fault, "corpora_dir") from None
        raise
    return PrepareRun(folder, jobs, layout)


# --- the batch script
# --------------------------------------------------------------------------------------------------


def _name(group: list[Share]) -> str:
    """Return the name of the job that does these steps."""
    return group[0].step if len(group) == 1 else f"{group[0].step}-to-{group[-1].step}"


def _script(
    folder: Path, work: Path, group: list[Share], code: Path, cluster: ClusterConfig, before: list[str]
) -> str:
    wanted = cluster.prepare
    python = job_python(wanted.python, PYTHON_SETTING)
    lines = [
        "#!/bin/bash",
        *_options(folder, group, cluster, before),
        *(f"export {name}=1" for name in _THREADS),
        *environment_lines(_as_jobs(cluster)),
        slurm.code_line(code),
        *([] if wanted.python else [check_line(PYTHON_SETTING)]),
        f'task() {{ {python} -m data_prep.pipeline {shlex.quote(str(work.absolute()))} "$@"; }}',
        f"logs={shlex.quote(str(folder))}",
        *_RUN,
        "steps() {",
        *(f"  run {share.step} {share.per_job} {share.num_tasks} || return" for share in group),
        "}",
        "steps; code=$?",
        *(_IN_PLACE if cluster.on_interrupt == "resubmit" else _BACK_INTO_QUEUE),
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def _options(folder: Path, group: list[Share], cluster: ClusterConfig, before: list[str]) -> list[str]:
    wanted = cluster.prepare
    per_job = max(share.per_job for share in group)
    options = {
        "job-name": f"{folder.name}.{_name(group)}",
        "output": f"{folder}/{_name(group)}-jobs.log",
        "array": f"0-{num_jobs(group) - 1}",
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(per_job),
        "time": str(wanted.timeout_min),
        "account": wanted.account or cluster.account,
        "partition": wanted.partition,
        "qos": wanted.qos,
        "constraint": wanted.constraint,
        "mem": wanted.format_memory(per_job),
        "dependency": f"afterok:{before[0]}" if before else None,
        "kill-on-invalid-dep": "yes",
        "open-mode": "append",
        **wanted.sbatch,
    }
    requeue = "no-requeue" if cluster.on_interrupt == "resubmit" else "requeue"
    return [
        f"#SBATCH --{requeue}",
        *(f"#SBATCH --{key}={shlex.quote(value)}" for key, value in options.items() if value is not None),
    ]


# A task has one core; that of a job with several must not take the others'.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")

# Does this job's tasks of a step, side by side. Its code: 0; 137 if all that happened is that tasks were
# killed; or a worse one.
_RUN = """\
run() {  # the step, how many of its tasks are a job's, how many it has
  local first=$(( SLURM_ARRAY_TASK_ID * $2 )) number process ended worst=0 processes=()
  for (( number = first; number < first + $2 && number < $3; number++ )); do
    task $1 --task $number --of $3 >>"$logs/$1-$number.log" 2>&1 &
    processes+=($!)
  done
  for process in "${processes[@]}"; do
    wait $process; ended=$?
    if [ $ended -ne 0 ] && { [ $worst -eq 0 ] || [ $worst -eq 137 ]; }; then worst=$ended; fi
  done
  return $worst
}""".splitlines()

# 137: SIGKILL. Slurm's own (cancelled, out of time) begin with SIGTERM, and are meant. Once requeued, it ends
# this script.
_BACK_INTO_QUEUE = [
    f'if [ $code -eq 137 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_RESTARTS} ]; then',
    '  echo "job $SLURM_ARRAY_TASK_ID: a task was killed: back into the queue" >&2',
    '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" && sleep 60',
    "fi",
]
_IN_PLACE = [  # where a site forbids requeue
    f"for (( again = 0; again < {MAX_RESTARTS} && code == 137; again++ )); do",
    '  echo "job $SLURM_ARRAY_TASK_ID: a task was killed: it is run again" >&2',
    "  steps; code=$?",
    "done",
]


def dependency(run_id: str, corpora_dir: str, corpora: Iterable[Path]) -> str | None:
    """The job that a training on these corpus folders must wait for, or None if the corpus is there.

    Raises:
        NotFoundError, UserError: there is no such prepare run, it makes another corpus, or it ended without
            one.
    """
    run = PrepareRun.find(run_id, corpora_dir)
    for folder in corpora:
        if folder.resolve() != run.corpus.resolve():
            raise UserError(
                f"prepare run {run_id} makes corpus {run.corpus}, not {folder}: choose its corpus, or leave --after out"
            )
    if run.is_alive():
        return run.last_job
    if not run.has_published():
        raise UserError(
            f"prepare run {run_id} ended without a corpus: its logs are in {run.folder}; run `finetune prepare` again"
        )
    return None
