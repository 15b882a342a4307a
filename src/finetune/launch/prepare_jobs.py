"""A preparation as a chain of Slurm jobs: one array per step, each starting after the one before.

Consecutive steps of a single task share a job; `train after=ID` waits for the last. Scripts, logs,
and prepare.json with the job ids lie in corpora/.NAME.stages/slurm/<id>/. Until prepare.json is
written the first job is held, so a submitter that is killed leaves no running job.

A task whose process is killed (kill -9, out of memory) or whose node is lost is requeued and does
the rest of its work; later steps wait for it. Any other failure cancels the later steps; the same
`finetune prepare` continues from what is done.

The corpus does not depend on which task does which share of a step. So tasks may share a job
(cluster.prepare.tasks_per_job), and there may be fewer of them where the queue takes few jobs of a
user.
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
MAX_RESTARTS = 3  # of a task: one that needs more memory than it has would be killed again and again


@dataclass(frozen=True)
class PrepareRun:
    """A submitted preparation.

    Attributes:
        jobs: the job id of each step, in order.
        layout: None if the preparation was found on disk.
    """

    folder: Path
    jobs: dict[str, str]
    layout: Layout | None = None

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def corpus(self) -> Path:
        """The folder of the resulting corpus, whose stages' folder contains `folder`."""
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
        """Return Slurm's state of each step's job, such as PENDING; "" for a forgotten job."""
        return observe.states(list(self.jobs.values()))

    def logs(self) -> list[Path]:
        """Return the non-empty logs of its tasks, in the order in which they were last written."""
        written = [log for log in self.folder.glob("*.log") if log.stat().st_size]
        return sorted(written, key=lambda log: log.stat().st_mtime)

    def current_step(self) -> str | None:
        """Return the step whose task wrote last (steps may share a job); None: none has started."""
        tasks = [log for log in self.folder.glob("*.log") if not log.stem.endswith("-jobs")]
        newest = max(tasks, key=lambda log: log.stat().st_mtime, default=None)
        if newest:
            return newest.stem.rpartition("-")[0]
        return None

    def cancel(self) -> str:
        """Cancel all its jobs, queued or running, and return a description of the result."""
        if not self.is_alive():
            return "has already ended"
        slurm.slurm_command("scancel", *self.jobs.values())
        return "cancelled; the same `finetune prepare` continues from what is done"

    def is_alive(self) -> bool:
        """Return whether a step of it runs or will run."""
        return bool({*self.states().values()} & {*PENDING_JOB_STATES, *RUNNING_JOB_STATES})

    def has_published(self) -> bool:
        """Return whether it has completed: after a failure, an older corpus may still be there.

        If Slurm has forgotten the job, the files' times decide.
        """
        state = list(self.states().values())[-1]
        manifest = self.corpus / "manifest.json"
        if state or not manifest.is_file():
            return state == JobState.COMPLETED and manifest.is_file()
        return manifest.stat().st_mtime >= (self.folder / FILE).stat().st_mtime


def choose_layout(
    num_tasks: int, steps: Steps, cluster: ClusterConfig, most_jobs: int | None = None
) -> Layout:
    """Choose a layout whose jobs the queue takes all at once.

    A job has cluster.prepare.tasks_per_job tasks, by default one; more if there would be too many
    jobs.

    Args:
        num_tasks: number of tasks of each step that can be split.
        most_jobs: limit of the queue; None: as documented in the profile.
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
    """Return the number of tasks per job; None: one, or more if that makes too many jobs."""
    wanted = cluster.prepare
    site = cluster.site
    if wanted.tasks_per_job is None and site.whole_nodes and wanted.partition in (None, cluster.partition):
        return wanted.compute_tasks_per_node(site)
    return wanted.tasks_per_job


def _free_places(cluster: ClusterConfig) -> int | None:
    """Return how many more jobs the queue of preparations takes; None if the profile has no limit.

    Raises:
        UserError: it takes none.
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
            f"cluster.prepare.partition: its queue takes {most} jobs of a user, and you have {present}; "
            f"wait, or choose another cluster.prepare.partition or cluster.prepare.qos"
        )
    return most - present


def _most_tasks_per_job(cluster: ClusterConfig, num_tasks: int) -> int:
    """Return how many of the tasks Slurm accepts in one job, given the nodes' cores and memory."""
    while num_tasks > 1:
        try:
            if not _ask_slurm(cluster, num_tasks):
                return num_tasks
            return 1
        except ValueError:
            num_tasks = num_tasks // 2
    return num_tasks


def _ask_slurm(cluster: ClusterConfig, per_job: int) -> list[str]:
    """Ask Slurm whether it would accept a job of that size; return a line if it gives no answer.

    Raises:
        UserError: Slurm would refuse it.
    """
    nowhere = Path("/nowhere")
    share = Share("step", per_job, per_job)
    return checks.try_submission(_script(nowhere, nowhere, [share], nowhere, cluster, []))


def check(cluster: ClusterConfig) -> list[str]:
    """Check, before anything is read or written, that Slurm would accept a preparation's jobs.

    Returns:
        a line for each check that could not be made here, with the reason.

    Raises:
        UserError: Slurm would refuse them, or they could not run there.
    """
    wanted = cluster.prepare
    site = cluster.site
    there = _architecture(cluster)
    if there != platform.machine() and wanted.python is None:
        raise UserError(
            f"{PYTHON_SETTING}: must be set, as nodes for preparations are {there} and this Python is for "
            f"{platform.machine()}; set the command of a Python there, such as "
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
    """Return the architecture of the nodes for preparations."""
    return cluster.prepare.architecture or cluster.site.login_architecture or platform.machine()


def _preparation_profile(cluster: ClusterConfig, timeout_min: int = 1) -> ClusterConfig:
    """Return the profile with the settings for preparations in place of those for training.

    Args:
        timeout_min: the default of 1 is below every limit, for callers that do not check the time.
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
    """Submit the steps of a plan, in as many jobs as Slurm takes.

    Args:
        name: of the corpus.
        work: the folder of its stages and its plan.
        steps: their names in order, and whether each can be split into tasks.
        num_tasks: number of tasks of each step that can be split, if the queue takes as many.

    Raises:
        UserError: Slurm refuses; nothing is queued then.
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
    """Return the name of the job that runs these steps."""
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


# A task has one core; in a job of several tasks its libraries must not use the others' cores.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")

# Runs this job's tasks of a step side by side. It returns 0 if all succeeded, 137 if tasks failed
# only by being killed, else the first other exit code.
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

# 137: killed by SIGKILL. When Slurm ends a job (cancelled, time limit) on purpose, it sends SIGTERM
# first. After `scontrol requeue`, Slurm ends this script.
_REQUEUE = [
    f'if [ $code -eq 137 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_RESTARTS} ]; then',
    '  echo "job $SLURM_ARRAY_TASK_ID: a task was killed: requeued" >&2',
    '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" && sleep 60',
    "fi",
]
_RERUN_IN_PLACE = [  # for sites that forbid requeue
    f"for (( again = 0; again < {MAX_RESTARTS} && code == 137; again++ )); do",
    '  echo "job $SLURM_ARRAY_TASK_ID: a task was killed: it is run again" >&2',
    "  steps; code=$?",
    "done",
]


def find_awaited_job(run_id: str, corpora_dir: str, corpora: Iterable[Path]) -> str | None:
    """Return the job that a training on these corpora must wait for; None if the corpus exists.

    Raises:
        NotFoundError, UserError: there is no such prepare run, it builds another corpus, or it
            ended without one.
    """
    run = PrepareRun.find(run_id, corpora_dir)
    for folder in corpora:
        if folder.resolve() != run.corpus.resolve():
            raise UserError(
                f"--after: prepare run {run_id} builds corpus {run.corpus}, not {folder}; "
                f"train on that corpus, or leave --after out"
            )
    if run.is_alive():
        return run.last_job
    if not run.has_published():
        raise UserError(
            f"--after: prepare run {run_id} ended without a corpus (logs: {run.folder}); "
            f"run `finetune prepare` again"
        )
    return None
