"""The preparation of a corpus as a chain of Slurm jobs: a job array for each step.

Each array starts when the one before has completed. Consecutive steps that cannot be split into
tasks share a job. `train --after ID` waits for the last job. The scripts, the logs, and
prepare.json with the job ids are in corpora/.NAME.stages/slurm/<id>/. Slurm does not start the
first job before prepare.json is written. So no job runs if the submission is killed.

If a task's process is killed (kill -9, out of memory) or its node is lost, its job is run again and
does the rest of its work. The later steps wait for it. Any other failure cancels the later steps.
The same `finetune prepare` command, run again, then skips the steps and tasks that are done.

The corpus does not depend on how a step is split into tasks. So several tasks may share a job
(cluster.prepare.tasks_per_job). If Slurm accepts only a few jobs of a user, there are fewer tasks.
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
from finetune.launch.freeze import new_id, snapshot_code, unwritable_error
from finetune.launch.job_python import check_line, job_python
from finetune.launch.prepare_layout import Layout, Share, Steps, num_jobs
from finetune.runs.layout import write_json
from finetune.runs.state import PENDING_JOB_STATES, RUNNING_JOB_STATES, JobState

PYTHON_SETTING = "cluster.prepare.python"
FILE = "prepare.json"
# Restarts of a job after a killed task. A task that needs more memory would be killed each time.
MAX_RESTARTS = 3


@dataclass(frozen=True)
class PrepareRun:
    """A submitted preparation.

    Attributes:
        folder: the folder with prepare.json, the scripts and the logs.
        jobs: the ids of the jobs by name, in the order of the steps; see _name.
        layout: the split into jobs; None if the preparation was read from prepare.json.
    """

    folder: Path
    jobs: dict[str, str]
    layout: Layout | None = None

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def corpus(self) -> Path:
        """The folder of the corpus that it builds."""
        stages = self.folder.parents[1]
        return stages.with_name(stages.name.removeprefix(".").removesuffix(".stages"))

    @property
    def last_job(self) -> str:
        return list(self.jobs.values())[-1]

    @classmethod
    def find(cls, run_id: str, corpora_dir: str | Path) -> PrepareRun:
        """Return the preparation with this id.

        Raises:
            NotFoundError: there is none.
        """
        for path in Path(corpora_dir).glob(f".*.stages/slurm/{run_id}/{FILE}"):
            return cls(path.parent.absolute(), json.loads(path.read_text(encoding="utf-8")))
        raise NotFoundError(
            f"no prepare run '{run_id}' in {corpora_dir}; `finetune prepare … cluster=…` prints its id"
        )

    def states(self) -> dict[str, str]:
        """Return Slurm's state of each job, such as PENDING; "" if Slurm has forgotten the job."""
        return observe.states(list(self.jobs.values()))

    def logs(self) -> list[Path]:
        """Return the jobs' non-empty logs, sorted by the time of their last change."""
        written = [log for log in self.folder.glob("*.log") if log.stat().st_size]
        return sorted(written, key=lambda log: log.stat().st_mtime)

    def current_step(self) -> str | None:
        """Return the step that runs now or ran last; None if no task has started.

        It is the step whose log was changed last. The jobs' states do not show it, because several
        steps may share a job.
        """
        tasks = [log for log in self.folder.glob("*.log") if not log.stem.endswith("-jobs")]
        newest = max(tasks, key=lambda log: log.stat().st_mtime, default=None)
        if newest:
            return newest.stem.rpartition("-")[0]
        return None

    def cancel(self) -> str:
        """Cancel the preparation's jobs that are queued or running; return a message for the user."""
        if not self.is_alive():
            return "has already ended"
        slurm.slurm_command("scancel", *self.jobs.values())
        return "cancelled; to continue, run the same `finetune prepare` command again"

    def is_alive(self) -> bool:
        """Return whether at least one of its jobs is running or queued."""
        return bool({*self.states().values()} & {*PENDING_JOB_STATES, *RUNNING_JOB_STATES})

    def has_published(self) -> bool:
        """Return whether this preparation has completed its corpus. An older corpus does not count.

        The last job must have completed. If Slurm has forgotten that job, the corpus must be newer
        than prepare.json.
        """
        state = list(self.states().values())[-1]
        manifest = self.corpus / "manifest.json"
        if state or not manifest.is_file():
            return state == JobState.COMPLETED and manifest.is_file()
        return manifest.stat().st_mtime >= (self.folder / FILE).stat().st_mtime


def choose_layout(
    num_tasks: int, steps: Steps, cluster: ClusterConfig, most_jobs: int | None = None
) -> Layout:
    """Choose a split into jobs and tasks with which Slurm accepts all jobs at once.

    If cluster.prepare.tasks_per_job is set, a job has at most that many tasks. Otherwise, a job has
    one task; at a site that allocates whole nodes, it has enough tasks to fill its node. If this
    gives more jobs than Slurm accepts, a job has more tasks.

    Args:
        num_tasks: wanted number of tasks of each step that can be split; the layout may have fewer.
        most_jobs: largest number of jobs; None: the profile's limit minus the jobs in the queue.

    Raises:
        UserError: the queue already has as many jobs as Slurm accepts.
    """
    site = cluster.site
    per_job = min(_tasks_per_job(cluster) or 1, num_tasks)
    if most_jobs is None:
        most_jobs = _free_places(cluster)
    num_cut = max(1, sum(is_cut for _, is_cut in steps))
    num_arrays = math.ceil(num_tasks / per_job)  # number of jobs in each array
    if site.max_array_size is not None:
        num_arrays = min(num_arrays, site.max_array_size)
    if most_jobs is not None:
        num_arrays = min(num_arrays, (most_jobs - (len(steps) - num_cut)) // num_cut)
    is_one_job = num_arrays < 1
    num_arrays = max(1, num_arrays)
    wanted = math.ceil(num_tasks / num_arrays)
    if wanted > per_job and cluster.prepare.tasks_per_job is None:
        per_job = _most_tasks_per_job(cluster, wanted)
    num_tasks = min(num_tasks, num_arrays * per_job)
    num_arrays = math.ceil(num_tasks / per_job)
    return Layout(num_tasks, math.ceil(num_tasks / num_arrays), is_one_job)


def _tasks_per_job(cluster: ClusterConfig) -> int | None:
    """Return the number of tasks per job; None: choose_layout chooses the number."""
    wanted = cluster.prepare
    site = cluster.site
    if wanted.tasks_per_job is None and site.whole_nodes and wanted.partition in (None, cluster.partition):
        return wanted.compute_tasks_per_node(site)
    return wanted.tasks_per_job


def _free_places(cluster: ClusterConfig) -> int | None:
    """Return how many more jobs of preparations Slurm accepts; None if the profile has no limit.

    Raises:
        UserError: Slurm accepts none.
    """
    most = _preparation_profile(cluster).queue_limits().max_submitted
    if most is None:
        return None
    wanted = cluster.prepare
    options = [f"--partition={wanted.partition}"] if wanted.partition else []
    if wanted.qos:
        options.append(f"--qos={wanted.qos}")
    user = getpass.getuser()
    try:
        listed = slurm.slurm_command("squeue", "--noheader", "--array", "-o", "%i", "--user", user, *options)
    except slurm.SlurmError:  # continue: sbatch itself refuses too many jobs
        listed = ""
    present = len(listed.split())
    if present >= most:
        raise UserError(
            f"cluster.prepare.partition: Slurm accepts at most {most} jobs of a user there, and you have "
            f"{present}; wait, or choose another cluster.prepare.partition or cluster.prepare.qos"
        )
    return most - present


def _most_tasks_per_job(cluster: ClusterConfig, num_tasks: int) -> int:
    """Return how many tasks, at most `num_tasks`, may share a job according to Slurm.

    `num_tasks` is halved until Slurm accepts such a job. Return 1 if Slurm does not allow the check.
    """
    while num_tasks > 1:
        try:
            if not _ask_slurm(cluster, num_tasks):
                return num_tasks
            return 1
        except ValueError:
            num_tasks = num_tasks // 2
    return num_tasks


def _ask_slurm(cluster: ClusterConfig, per_job: int) -> list[str]:
    """Ask Slurm whether it would accept a job of `per_job` tasks.

    Returns:
        a line for the user if Slurm does not allow this check, else nothing.

    Raises:
        UserError: Slurm would refuse the job.
    """
    nowhere = Path("/nowhere")
    share = Share("step", per_job, per_job)
    return checks.try_submission(_script(nowhere, nowhere, [share], nowhere, cluster, []))


def check(cluster: ClusterConfig) -> list[str]:
    """Check, before anything is read or written, that Slurm would accept a preparation's jobs.

    Returns:
        a line for each check that was not possible on this machine, with the reason.

    Raises:
        UserError: Slurm would refuse the jobs, or their nodes need another Python.
    """
    wanted = cluster.prepare
    site = cluster.site
    there = _architecture(cluster)
    if there != platform.machine() and wanted.python is None:
        raise UserError(
            f"{PYTHON_SETTING}: must be set, because nodes for preparations are {there} and this Python is "
            f"for {platform.machine()}; set the command of a Python for {there}, such as "
            f"{PYTHON_SETTING}='apptainer exec IMAGE python3'"
        )
    if wanted.account and site.account_pattern and not re.fullmatch(site.account_pattern, wanted.account):
        example = site.account_example or site.account_pattern
        raise UserError(
            f"cluster.prepare.account: '{wanted.account}' is not an account of {cluster.name}; "
            f"set one like {example}"
        )
    longest = _preparation_profile(cluster).queue_limits().max_timeout_min
    if longest is not None and wanted.timeout_min > longest:
        raise UserError(
            f"cluster.prepare.timeout_min: must be at most {longest}, the limit of the queue, "
            f"not {wanted.timeout_min}"
        )
    per_job = min(_tasks_per_job(cluster) or 1, wanted.tasks)
    try:
        not_checked = _ask_slurm(cluster, per_job)
    except ValueError as fault:
        if per_job == 1:
            raise
        raise UserError(
            f"{fault}; lower cluster.prepare.tasks_per_job, which requests jobs of {per_job} tasks"
        ) from None
    return [
        *not_checked,
        *checks.check_partition(_preparation_profile(cluster, wanted.timeout_min), "cluster.prepare"),
    ]


def _architecture(cluster: ClusterConfig) -> str:
    """Return the CPU architecture of the nodes for preparations, such as x86_64."""
    return cluster.prepare.architecture or cluster.site.login_architecture or platform.machine()


def _preparation_profile(cluster: ClusterConfig, timeout_min: int = 1) -> ClusterConfig:
    """Return the profile with the settings for preparations in place of those for training.

    Args:
        timeout_min: time limit of the jobs. Callers that do not check the time limit leave it at 1.
    """
    wanted = cluster.prepare
    site = cluster.site
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
    """Submit the steps of a preparation.

    If Slurm accepts fewer jobs than expected, the number of jobs is halved until it accepts them.

    Args:
        name: name of the corpus.
        work: the working folder, corpora/.NAME.stages.
        steps: the steps' names in order, and whether each can be split into tasks.
        num_tasks: wanted number of tasks of each step that can be split.

    Raises:
        UserError: Slurm refuses, or the folder cannot be written. Nothing is queued then.
    """
    layout = choose_layout(num_tasks, steps, cluster)
    while True:
        try:
            return _submit(name, work, steps, layout, cluster)
        except ValueError as fault:
            if "MaxSubmit" not in str(fault) or layout.num_jobs(steps) == 1:
                raise
            layout = choose_layout(num_tasks, steps, cluster, most_jobs=layout.num_jobs(steps) // 2)


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
            sbatch = ("sbatch", "--parsable", *hold, str(script))
            jobs[_name(group)] = slurm.slurm_command(*sbatch).partition(";")[0]
        write_json(folder / FILE, jobs)
        slurm.slurm_command("scontrol", "release", next(iter(jobs.values())))
    except BaseException as fault:
        if jobs:
            with contextlib.suppress(ValueError):
                slurm.slurm_command("scancel", *jobs.values())
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(fault, OSError):
            raise unwritable_error(folder, fault, "corpora_dir") from None
        raise
    return PrepareRun(folder, jobs, layout)


# --- the batch script ---------------------------------------------------------------------------


def _name(group: list[Share]) -> str:
    """Return the job's name: that of its step, or `<first step>-to-<last step>`."""
    if len(group) == 1:
        return group[0].step
    return f"{group[0].step}-to-{group[-1].step}"


def _script(
    folder: Path, work: Path, group: list[Share], code: Path, cluster: ClusterConfig, before: list[str]
) -> str:
    wanted = cluster.prepare
    python = job_python(wanted.python, PYTHON_SETTING)
    lines = [
        "#!/bin/bash",
        *_options(folder, group, cluster, before),
        *(f"export {name}=1" for name in _THREADS),
        *environment_lines(_preparation_profile(cluster)),
        slurm.code_line(code),
        *([] if wanted.python else [check_line(PYTHON_SETTING)]),
        f'task() {{ {python} -m data_prep.pipeline {shlex.quote(str(work.absolute()))} "$@"; }}',
        f"logs={shlex.quote(str(folder))}",
        *_RUN,
        "steps() {",
        *(f"  run {share.step} {share.per_job} {share.num_tasks} || return" for share in group),
        "}",
        "steps; code=$?",
        *(_RERUN_IN_PLACE if cluster.on_interrupt == "resubmit" else _REQUEUE),
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


# A task has one core. In a job of several tasks, its libraries must not use the other tasks' cores.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")

# A shell function that runs this job's tasks of a step side by side. It returns 0 if all succeed,
# 137 if each task that failed was killed, else the first other exit code.
_RUN = """\
run() {  # arguments: the step, its tasks per job, its total number of tasks
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

# Exit code 137: a task was killed by SIGKILL. If Slurm ends a job on purpose (cancelled, time
# limit), it sends SIGTERM first. After `scontrol requeue`, Slurm ends this script.
_REQUEUE = [
    f'if [ $code -eq 137 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_RESTARTS} ]; then',
    '  echo "job $SLURM_ARRAY_TASK_ID: a task was killed: requeued" >&2',
    '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" && sleep 60',
    "fi",
]
_RERUN_IN_PLACE = [  # for sites that forbid requeue
    f"for (( again = 0; again < {MAX_RESTARTS} && code == 137; again++ )); do",
    '  echo "job $SLURM_ARRAY_TASK_ID: a task was killed: the steps are run again" >&2',
    "  steps; code=$?",
    "done",
]


def find_awaited_job(run_id: str, corpora_dir: str, corpora: Iterable[Path]) -> str | None:
    """Return the id of the job that a training must wait for; None if its corpus exists already.

    Args:
        run_id: id of the preparation.
        corpora: the corpus folder of each point of the training.

    Raises:
        NotFoundError: there is no preparation with this id.
        UserError: it builds another corpus, or it ended without a corpus.
    """
    run = PrepareRun.find(run_id, corpora_dir)
    for folder in corpora:
        if folder.resolve() != run.corpus.resolve():
            raise UserError(
                f"--after: prepare run {run_id} builds corpus {run.corpus}, not {folder}; "
                f"train on {run.corpus}, or leave --after out"
            )
    if run.is_alive():
        return run.last_job
    if not run.has_published():
        raise UserError(
            f"--after: prepare run {run_id} ended without a corpus (logs: {run.folder}); "
            f"run `finetune prepare` again"
        )
    return None
