"""Jobs of a preparation: their settings, and the division of tasks into jobs. Slurm is not used."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.config.cluster import ClusterConfig, PrepareJobs
from finetune.launch import freeze, prepare_jobs
from finetune.launch.environment import profiles
from finetune.launch.prepare_layout import Layout, Share, Steps
from finetune.launch.slurm import SlurmError

STEPS = [("read", True), ("decide", False), ("tokenise", True)]
OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}[platform.machine()]


ONE_TASK = Share("read", 1, 1)


def render(cluster: ClusterConfig, share: Share = ONE_TASK) -> str:
    """Return the batch script for one step of a preparation.

    Args:
        share: the step, its number of tasks, and how many of them run in one job.
    """
    folder = Path("/projects/letters/corpora/.l.stages/slurm/prepare-l")
    code = folder.parent / ".code" / "ab"
    return prepare_jobs._script(folder, folder.parents[1], [share], code, cluster, ["7"])


@pytest.mark.parametrize("name", sorted(profiles()))
def test_settings_for_gpu_nodes_are_not_in_the_script_of_a_preparation(name: str) -> None:
    cluster = profiles()[name]
    script = render(
        replace(cluster, python="apptainer exec --nv my.sif python3", qos=cluster.qos or "gpu_qos")
    )
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.MULTILINE))
    assert options.get("account") == cluster.account
    assert options.get("partition") == cluster.prepare.partition
    assert options.get("qos") == cluster.prepare.qos
    assert "--gpu" not in script
    assert "apptainer exec" not in script
    for module in cluster.modules:
        assert module not in script
    for variable in cluster.env.keys() - set(prepare_jobs._THREADS):
        assert f"export {variable}=" not in script
    if cluster.clean_modules:
        assert f"\nmodule {cluster.clean_modules} " in script
    assert ("#SBATCH --requeue" in script) == (cluster.on_interrupt != "resubmit")
    assert ("scontrol requeue" in script) == (cluster.on_interrupt != "resubmit")


def test_settings_for_preparations_are_in_their_script() -> None:
    jobs = PrepareJobs(
        partition="small",
        qos="devel",
        account="nn2k",
        constraint="amd",
        memory="3G",
        timeout_min=30,
        python="singularity exec cpu.sif python3",
        modules=["load NRIS/CPU"],
        setup=["ulimit -n 4096"],
        env={"A": "1"},
        sbatch={"reservation": "course"},
    )
    script = render(replace(profiles()["testcluster"], prepare=jobs), Share("read", 8, 4))
    for line in (
        "--partition=small",
        "--qos=devel",
        "--account=nn2k",
        "--constraint=amd",
        "--mem=12G",
        "--time=30",
        "--array=0-1",
        "--cpus-per-task=4",
        "--reservation=course",
        "--dependency=afterok:7",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "task() { singularity exec cpu.sif python3 -m data_prep.pipeline" in script
    lines = script.splitlines()
    assert lines.index("run_module load NRIS/CPU") < lines.index("export A=1") < lines.index("ulimit -n 4096")


def test_on_whole_nodes_the_tasks_of_a_step_share_a_node() -> None:
    jupiter = profiles()["jupiter"]
    assert prepare_jobs.choose_layout(32, STEPS, jupiter) == Layout(32, 32)
    script = render(jupiter, Share("read", 32, 32))
    assert "#SBATCH --array=0-0\n" in script
    assert "#SBATCH --mem=256G\n" in script
    elsewhere = replace(jupiter, prepare=replace(jupiter.prepare, partition="shared"))
    assert prepare_jobs.choose_layout(32, STEPS, elsewhere) == Layout(32, 1), (
        "only the training partition is known to allocate whole nodes"
    )
    small = replace(jupiter, site=replace(jupiter.site, memory_per_node_gb=100))
    assert prepare_jobs.choose_layout(32, STEPS, small) == Layout(32, 11), (
        "12 tasks of 8G fit a node: three nodes, evenly"
    )


@pytest.mark.parametrize(
    ("layout", "jobs", "description"),
    [
        (Layout(1, 1), ["read,sift,decide,tokenise,publish"], "5 steps in one job, one after the other"),
        (
            Layout(3, 1),
            ["read", "sift", "decide", "tokenise", "publish"],
            "5 steps, each after the one before, in arrays of 3",
        ),
        (Layout(8, 4, is_one_job=True), ["read,sift,decide,tokenise,publish"], "other, 4 tasks side by side"),
    ],
)
def test_consecutive_single_task_steps_share_a_job(layout: Layout, jobs: list[str], description: str) -> None:
    steps = [("read", True), ("sift", True), ("decide", False), ("tokenise", True), ("publish", False)]
    assert [",".join(share.step for share in group) for group in layout.group(steps)] == jobs
    assert description in layout.describe(steps)
    assert [len(group) for group in Layout(2, 1).group([*steps, ("sign", False)])] == [1, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("ends", "code"),
    [("0 0 0", 0), ("0 137 0", 137), ("137 2 137", 2), ("1 137 137", 1), ("137 137 139", 139)],
)
def test_a_job_exits_with_the_worst_code_of_its_tasks_where_137_is_the_least(
    tmp_path: Path, ends: str, code: int
) -> None:
    lines = [
        f"ends=({ends}); logs={tmp_path}; SLURM_ARRAY_TASK_ID=1",
        'task() { echo "task $3"; return ${ends[$3 - 3]}; }',
    ]
    script = "\n".join([*lines, *prepare_jobs._RUN, "run read 3 9"])
    assert subprocess.run(["bash", "-c", script], check=False).returncode == code
    logs = {path.name: path.read_text() for path in tmp_path.glob("*.log")}
    assert logs == {f"read-{number}.log": f"task {number}\n" for number in (3, 4, 5)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": OTHER}, "cluster.prepare.python: must be set, because nodes for preparations are "),
        (
            {"account": "me"},
            "cluster.prepare.account: 'me' is not an account of olivia; set one like nn9999k",
        ),
        (
            {"timeout_min": 20_000},
            "cluster.prepare.timeout_min: must be at most 10080, the limit of the queue, not 20000",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_slurm_is_queried(
    settings: dict[str, object], message: str
) -> None:
    olivia = profiles()["olivia"]
    site = replace(olivia.site, login_architecture=platform.machine())
    jobs = replace(olivia.prepare, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare_jobs.check(replace(olivia, prepare=jobs, site=site))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"memory": "lots"}, "cluster.prepare.memory is lots"),
        ({"tasks_per_job": 0}, "cluster.prepare.tasks_per_job is 0"),
        ({"architecture": "arm"}, "cluster.prepare.architecture is 'arm'"),
        ({"sbatch": {"qos": "x"}}, "cluster.prepare.sbatch.qos: this option is set by cluster.prepare.qos"),
    ],
)
def test_invalid_settings_of_preparations_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        ClusterConfig(prepare=PrepareJobs(**settings))  # type: ignore[arg-type]


def test_a_secret_for_preparations_is_refused() -> None:
    cluster = ClusterConfig(prepare=PrepareJobs(env={"HF_TOKEN": "x"}))
    with pytest.raises(ValueError, match=r"^cluster\.prepare\.env\.HF_TOKEN: seems to contain a secret"):
        freeze.check_no_secrets(cluster, "cluster")


def test_if_slurm_refuses_the_number_of_jobs_fewer_are_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(
        name: str, work: Path, steps: Steps, layout: Layout, cluster: ClusterConfig
    ) -> prepare_jobs.PrepareRun:
        tried.append(layout)
        if layout.num_jobs(steps) > 9:
            raise SlurmError("Slurm refuses (sbatch): AssocMaxSubmitJobLimit", "AssocMaxSubmitJobLimit")
        return prepare_jobs.PrepareRun(tmp_path, {}, layout)

    monkeypatch.setattr(prepare_jobs, "_submit", refuse)
    monkeypatch.setattr(prepare_jobs, "_ask_slurm", lambda cluster, num_tasks: [])
    run = prepare_jobs.submit("l", tmp_path, STEPS, 32, profiles()["testcluster"])
    assert run.layout == Layout(32, 16), "the same tasks in fewer jobs"
    num_jobs = [layout.num_jobs(STEPS) for layout in tried]
    assert num_jobs[0] == 65
    assert num_jobs[-1] <= 9 < num_jobs[-2]
