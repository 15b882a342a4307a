"""Cluster profiles, and the batch scripts that are rendered from them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from finetune.config.cluster import ClusterConfig
from finetune.config.train import conf_dir
from finetune.job import batch_script, scontrol, slurm_command, slurm_queue, wave_files, waves
from finetune.launch import slurm
from finetune.launch.environment import environment_file, environment_lines, profiles
from finetune.launch.render import batch_scripts
from finetune.runs import attempts, causes, known_causes, layout, records, state

ENVIRONMENTS = Path(__file__).parents[1] / "slurm" / "env"
SCRIPTS = Path(__file__).parent / "sbatch"
# The project chooses these settings; they are not facts about a site.
CHOICES = {"name", "scheduler", "nodes", "ranks_per_node", "timeout_min", "signal_lead_s"}
ABOUT_FACTS = {"site.confidence", "site.verified", "site.sources"}


def test_rendered_environments_and_batch_scripts_are_up_to_date() -> None:
    rendered = {name: environment_file(cluster) for name, cluster in profiles().items()}
    scripts = {file: text for cluster in profiles().values() for file, text in batch_scripts(cluster).items()}
    environments_on_disk = {path.stem: path.read_text(encoding="utf-8") for path in ENVIRONMENTS.glob("*.sh")}
    scripts_on_disk = {path.name: path.read_text(encoding="utf-8") for path in SCRIPTS.iterdir()}
    assert environments_on_disk == rendered, "run `make cluster-env`"
    assert scripts_on_disk == scripts, "run `make cluster-env`"
    sites = {"olivia", "lumi", "lumi_small", "saga", "betzy", "idun", "arrhenius", "testcluster"}
    assert sites <= rendered.keys()


@pytest.mark.parametrize("name", sorted(profiles()))
def test_each_fact_of_a_profile_names_its_source(name: str) -> None:
    node = OmegaConf.load(conf_dir() / "cluster" / f"{name}.yaml")
    facts = {str(key) for key in node if key != "site"} | {f"site.{key}" for key in node.site}
    sourced = {fact for source in profiles()[name].site.sources for fact in source.facts}
    for source in profiles()[name].site.sources:
        assert source.source, source
        assert re.fullmatch(r"20\d\d-\d\d(-\d\d)?", source.date)
    missing = {fact for fact in sourced if OmegaConf.select(node, fact) is None}
    assert missing == set(), "a source names a fact that the profile lacks"
    without = {fact for fact in facts - CHOICES - ABOUT_FACTS if not {fact, fact.partition(".")[0]} & sourced}
    assert without == set()


@pytest.mark.parametrize("name", sorted(profiles()))
def test_bash_parses_the_scripts_of_each_profile(name: str) -> None:
    cluster = profiles()[name]
    assert cluster.name == name
    for nodes, points in ((1, None), (2, 3)):
        script = slurm.render_script(
            replace(cluster, nodes=nodes),
            "sweep",
            Path("/runs/s w/points/%a"),
            Path("/runs/.code/ab"),
            points,
        )
        checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert ("#SBATCH --array=0-2%3\n" in script) == (points is not None)
        assert f"#SBATCH --ntasks-per-node={cluster.ranks_per_node}\n" in script
        assert "--kill-on-bad-exit=1" in script
        assert ("NCCL_NET='AWS Libfabric'" in script) == (name == "olivia" and nodes == 2)
    checked = subprocess.run(
        ["bash", "-n", str(ENVIRONMENTS / f"{name}.sh")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("on_interrupt", "option"), [("requeue", "requeue"), ("resubmit", "no-requeue"), ("stop", "no-requeue")]
)
def test_slurm_requeues_only_jobs_whose_profile_allows_it(on_interrupt: str, option: str) -> None:
    cluster = replace(profiles()["testcluster"], on_interrupt=on_interrupt)
    script = slurm.render_script(cluster, "run", Path("/runs/r/jobs"), Path("/runs/.code/ab"), None)
    assert [line for line in script.splitlines() if line.endswith("requeue")] == [f"#SBATCH --{option}"]


def test_an_old_python_on_the_host_ends_the_job_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    for host_python, code in (("python3", 1), (sys.executable, 0)):
        cluster = replace(
            profiles()["testcluster"], python="apptainer exec my.sif python3", host_python=host_python
        )
        script = slurm.render_script(cluster, "run", Path("/runs/r/jobs"), Path("/runs/.code/ab"), None)
        (line,) = [line for line in script.splitlines() if "sys.version_info" in line]
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == code
        assert ("error: cluster.host_python: python3 is missing" in done.stderr) == (code == 1)
        assert f"    {host_python} -m finetune.job.batch_script" in script


ON_THE_HOST = (
    attempts,
    causes,
    known_causes,
    layout,
    records,
    state,
    batch_script,
    scontrol,
    slurm_command,
    slurm_queue,
    wave_files,
    waves,
)


@pytest.mark.parametrize("module", ON_THE_HOST)
def test_modules_for_the_host_are_valid_python_3_8(module: ModuleType) -> None:
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))
    assert "from __future__ import annotations" in source
    assert not re.search(r"\.remove(prefix|suffix)\(|strict=|isinstance\([^()]*\|", source), "newer than 3.8"


def test_modules_for_the_host_need_no_package() -> None:
    """Import the batch script's helper with `python -S`, which ignores installed packages."""
    source = Path(str(batch_script.__file__)).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import finetune.job.batch_script"], env=environment, check=False
    )
    assert done.returncode == 0


@dataclass(frozen=True)
class EndTime:
    """The end time that Slurm gives for a job, and the end time that the job's ranks must receive.

    Attributes:
        squeue: shell command that stands in for squeue.
        given: value of SLURM_JOB_END_TIME that Slurm sets.
        deadline: value of SLURM_JOB_END_TIME that the ranks must receive.
    """

    id: str
    squeue: str
    given: str
    deadline: str


END_TIMES = [
    EndTime("squeue alone", "echo 2030-01-01T00:00:00", given="", deadline="1893456000"),
    EndTime("both: the variable", "echo 2030-01-01T00:00:00", given="1800000000", deadline="1800000000"),
    EndTime("the variable alone", "exit 1", given="1800000000", deadline="1800000000"),
    EndTime("neither", "exit 1", given="", deadline=""),
    EndTime("an empty line", "echo", given="", deadline=""),
    EndTime("no limit", "echo N/A", given="", deadline=""),
]


@pytest.mark.parametrize("end", END_TIMES, ids=lambda end: end.id)
def test_ranks_receive_slurms_end_time_or_none(tmp_path: Path, end: EndTime) -> None:
    script = slurm.render_script(
        profiles()["testcluster"], "run", Path("/runs/r/jobs"), Path("/runs/.code/ab"), None
    )
    lines = script[script.index("job=${") : script.index("requeue begin")].splitlines()
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{end.squeue}\n")
    (tmp_path / "squeue").chmod(0o755)
    shown = subprocess.run(
        ["bash", "-c", "\n".join(["set -e", *lines, 'echo "$SLURM_JOB_END_TIME"'])],
        capture_output=True,
        text=True,
        check=True,
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_END_TIME": end.given,
            "TZ": "UTC",
        },
    ).stdout.strip()
    assert shown == end.deadline


def test_variables_of_the_job_are_expanded_in_the_job() -> None:
    cluster = ClusterConfig(
        env={"A": "/tmp/$SLURM_JOB_ID/x", "B": 'say "no" `now`', "C": 'it\'s $HOME "x" `y`'}
    )
    lines = "\n".join(line for line in environment_file(cluster).splitlines() if line.startswith("export"))
    shown = subprocess.run(
        ["bash", "-c", f'{lines}\nprintf "%s\\n" "$A" "$B" "$C"'],
        capture_output=True,
        text=True,
        check=True,
        env={"SLURM_JOB_ID": "7", "HOME": "/h"},
    ).stdout.splitlines()
    assert shown == ["/tmp/7/x", 'say "no" `now`', 'it\'s /h "x" `y`']


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scheduler": "pbs"}, "cluster.scheduler is 'pbs'"),
        ({"nodes": 2}, "cluster.nodes is 2, but cluster=local runs on this machine only"),
        ({"scheduler": "slurm", "gpu_request": "all"}, "cluster.gpu_request is 'all'"),
        ({"scheduler": "slurm", "gpu_request": "gpus-per-task"}, "cluster.gpu_request is 'gpus-per-task'"),
        ({"scheduler": "slurm", "on_interrupt": "ignore"}, "cluster.on_interrupt is 'ignore'"),
        ({"scheduler": "slurm", "timeout_min": 5, "signal_lead_s": 300}, "cluster.signal_lead_s is 300"),
        ({"sbatch": {"array": "0-3"}}, "cluster.sbatch.array: this option is set by a sweep (-m)"),
        (
            {"sbatch": {"ntasks_per_node": "4"}},
            "cluster.sbatch.ntasks_per_node: this option is set by cluster.ranks_per_node",
        ),
    ],
)
def test_invalid_cluster_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        ClusterConfig(**settings)  # type: ignore[arg-type]


def test_an_account_must_match_the_sites_pattern() -> None:
    olivia = profiles()["olivia"]
    for account in (None, "project_465000000"):
        with pytest.raises(
            ValueError, match=r"set an account of olivia such as nn9999k \(`projects` lists yours\)"
        ):
            replace(olivia, account=account)


@dataclass(frozen=True)
class Account:
    """An account, and whether it matches the pattern for accounts in a cluster profile."""

    profile: str
    name: str
    fits: bool


ACCOUNTS = [
    Account("olivia", "nn30001k", fits=True),
    Account("olivia", "nn9999o", fits=True),
    Account("saga", "nn12k", fits=True),
    Account("betzy", "nn9999x", fits=False),
    Account("lumi_small", "project_465001234", fits=True),
    Account("lumi", "465001234", fits=False),
    Account("marenostrum5", "ehpc7", fits=True),
    Account("arrhenius", "naiss2026-4-1102-gpu", fits=True),
    Account("arrhenius", "naiss2026-4-1102", fits=False),
    Account("idun", "share-ime-imf", fits=True),
]


@pytest.mark.parametrize("account", ACCOUNTS, ids=lambda account: f"{account.profile}-{account.name}")
def test_each_site_has_its_own_pattern_of_accounts(account: Account) -> None:
    profile = profiles()[account.profile]
    if account.fits:
        assert replace(profile, account=account.name).account == account.name
        return
    expected = f"^cluster.account is {account.name}; set an account of {account.profile} such as "
    with pytest.raises(ValueError, match=expected):
        replace(profile, account=account.name)


def test_profiles_contain_no_account() -> None:
    for path in (conf_dir() / "cluster").glob("*.yaml"):
        assert OmegaConf.select(OmegaConf.load(path), "account") is None or path.stem == "testcluster"


@dataclass(frozen=True)
class Request:
    """A job's settings on a cluster profile, and the expected error.

    Attributes:
        id: the profile's name, a colon and a description.
        error: part of the error message; None if the settings are accepted.
    """

    id: str
    settings: dict[str, Any]
    error: str | None = None

    @property
    def profile(self) -> str:
        return self.id.partition(":")[0]


REQUESTS = [
    Request(
        "lumi: too long",
        {"timeout_min": 4320},
        "cluster.timeout_min is 4320, above the limit of profile lumi (max_timeout_min 2880)",
    ),
    Request("lumi: long in a partition for it", {"partition": "small-g", "timeout_min": 4320}),
    Request(
        "lumi_small: too many nodes",
        {"nodes": 5},
        "cluster.nodes is 5, above the limit of profile lumi_small (max_nodes 4)",
    ),
    Request(
        "lumi_small: too long for dev-g", {"partition": "dev-g", "timeout_min": 181}, "max_timeout_min 180"
    ),
    Request("olivia: all nodes", {"nodes": 8}),
    Request("olivia: one more", {"nodes": 9}, "max_nodes 8"),
    Request(
        "olivia: too many ranks for devel",
        {"nodes": 5, "qos": "devel", "timeout_min": 120},
        "cluster.nodes × ranks_per_node is 20",
    ),
    Request("saga: too long for devel", {"qos": "devel"}, "max_timeout_min 120"),
    Request("betzy: too long for devel", {"qos": "devel", "timeout_min": 61}, "max_timeout_min 60"),
    Request("leonardo: too long", {"timeout_min": 1500}, "max_timeout_min 1440"),
    Request("leonardo: long in a QOS for it", {"timeout_min": 5000, "qos": "boost_qos_lprod"}),
    Request(
        "leonardo: too many nodes for debug",
        {"nodes": 3, "timeout_min": 30, "qos": "boost_qos_dbg"},
        "max_nodes 2",
    ),
    Request("leonardo: too much memory", {"memory_per_node": "512G"}, "memory_per_node_gb 494"),
    Request("marenostrum5: too many nodes", {"nodes": 101}, "max_nodes 100"),
    Request("marenostrum5: too long for debug", {"qos": "acc_debug"}, "max_timeout_min 120"),
    Request("arrhenius: too long", {"timeout_min": 4321}, "max_timeout_min 4320"),
]


@pytest.mark.parametrize("wanted", REQUESTS, ids=lambda wanted: wanted.id)
def test_limits_of_partitions_and_qualities_of_service_are_enforced(wanted: Request) -> None:
    profile = profiles()[wanted.profile]
    if wanted.error is None:
        replace(profile, **wanted.settings)
        return
    with pytest.raises(ValueError, match=re.escape(wanted.error)):
        replace(profile, **wanted.settings)


def test_documented_limits_on_submitted_jobs_are_in_the_profiles() -> None:
    limits = {name: cluster.queue_limits() for name, cluster in profiles().items()}
    assert (limits["lumi"].max_submitted, limits["lumi"].max_running) == (210, 200)
    assert (limits["lumi_small"].max_submitted, limits["lumi_small"].max_running) == (210, 200)
    assert limits["marenostrum5"].max_submitted == 366
    for name in ("olivia", "saga", "saga_a100", "betzy"):
        assert profiles()[name].site.max_array_size == 1000


@pytest.mark.parametrize("name", sorted(profiles()))
def test_notes_printed_at_submission_are_complete(name: str) -> None:
    lines = profiles()[name].describe_submission(1)
    assert not any("None" in line or "  " in line for line in lines), lines
    assert profiles()[name].site.docs


def test_jobs_start_from_the_sites_clean_modules() -> None:
    for name, clean in (("olivia", "reset"), ("saga", "reset"), ("lumi", "purge"), ("marenostrum5", "purge")):
        cluster = replace(profiles()[name], modules=["load mine/1"])
        lines = slurm.render_script(
            cluster, "run", Path("/runs/r/jobs"), Path("/runs/.code/ab"), None
        ).splitlines()
        (first, second) = (i for i, line in enumerate(lines) if line.startswith(("module ", "run_module ")))
        assert lines[first].startswith(f"module {clean} > /dev/null")
        assert lines[second] == "run_module load mine/1"
        assert second < next(i for i, line in enumerate(lines) if line.startswith("export "))


def test_srun_gets_a_mask_of_cores_or_their_number_but_not_both() -> None:
    for name, cluster in profiles().items():
        script = slurm.render_script(cluster, "run", Path("/runs/r/jobs"), Path("/runs/.code/ab"), None)
        assert ("export SRUN_CPUS_PER_TASK=" in script) == ("mask_cpu" not in script) == (name != "lumi")


def test_a_container_on_several_nodes_of_olivia_gets_the_hosts_network_library() -> None:
    exports = [
        line
        for line in environment_lines(replace(profiles()["olivia"], nodes=2))
        if line.startswith("export") and ("APPTAINER_BIND=" in line or "APPTAINERENV" in line)
    ]
    show = 'printf "%s\n" "$APPTAINER_BIND" "$APPTAINERENV_LD_LIBRARY_PATH"'
    shown = subprocess.run(
        ["bash", "-c", "\n".join([*exports, show])],
        capture_output=True,
        text=True,
        check=True,
        env={"EBROOTLIBFABRIC": "/e/fabric", "EBROOTNCCL": "/e/nccl", "EBROOTAWSMINOFIMINNCCL": "/e/ofi"},
    ).stdout.splitlines()
    assert shown[0].split(",") == [
        "/e/fabric/lib:/opt/libfabric/lib",
        "/e/nccl:/opt/nccl",
        "/e/ofi/lib:/opt/aws-ofi-nccl/lib",
        "/usr/lib64",
    ]
    # Apptainer replaces the last part by the value in the container.
    assert shown[1] == "/opt/libfabric/lib:/opt/nccl/lib:/opt/aws-ofi-nccl/lib:/usr/lib64:$LD_LIBRARY_PATH"


@dataclass(frozen=True)
class Cost:
    """A job's settings on a cluster profile, and the cost that is printed for three such jobs.

    Attributes:
        line: start of the printed line.
    """

    id: str
    settings: dict[str, Any]
    line: str

    @property
    def profile(self) -> str:
        return self.id.partition(":")[0]


NINETY_GB = {"timeout_min": 60, "ranks_per_node": 1, "memory_per_node": "90G"}
WHOLE_MEMORY = {"timeout_min": 60, "ranks_per_node": 1, "memory_per_node": "360G"}
COSTS = [
    Cost(
        "lumi: whole nodes",
        {"nodes": 2, "ranks_per_node": 4, "timeout_min": 90},
        "uses up to 36 GPU-hours of project_465000000",
    ),
    Cost("lumi_small: of 3 half MI250X", {"timeout_min": 60}, "uses up to 2 GPU-hours"),
    Cost(
        "lumi_small: 8 cores count as a GPU",
        {"timeout_min": 120, "cpus_per_rank": 32},
        "uses up to 12 GPU-hours",
    ),
    Cost("olivia", {"nodes": 2, "timeout_min": 60}, "uses up to 24 GPU-hours of nn9999k"),
    Cost("saga", {"timeout_min": 60}, "uses up to 72 billing hours of nn9999k"),
    Cost("saga: a quarter of the memory", NINETY_GB, "uses up to 18 billing hours"),
    Cost("saga: all memory", WHOLE_MEMORY, "uses up to 71 billing hours"),
    Cost("saga_a100", {"timeout_min": 60}, "uses up to 96 billing hours"),
    Cost("betzy", {"timeout_min": 60}, "uses up to 192 billing hours"),
    Cost("jupiter", {"timeout_min": 60, "ranks_per_node": 1}, "uses up to 12 GPU-hours of your account"),
]


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.id)
def test_a_submission_of_three_jobs_prints_their_cost_in_the_sites_unit(cost: Cost) -> None:
    lines = replace(profiles()[cost.profile], **cost.settings).describe_submission(3)
    assert lines[0].startswith(cost.line)
    assert ("a job gets, and is charged for, whole nodes" in lines[1]) == (
        cost.profile in ("lumi", "jupiter")
    )


def test_a_sweep_larger_than_the_limit_on_running_jobs_is_reported() -> None:
    lumi = profiles()["lumi"]
    line = "lumi runs 200 of your jobs at once: the others wait in the queue"
    assert line in lumi.describe_submission(201)
    assert line not in lumi.describe_submission(200)


def test_a_submission_prints_what_a_user_must_know_about_the_site() -> None:
    for name, days in (("saga", 21), ("betzy", 21), ("olivia", 21)):
        expected = f"{name} deletes files in its work area after {days} days: keep results elsewhere"
        notes = profiles()[name].describe_submission(1)
        assert [line for line in notes if "deletes files in its work area" in line] == [expected]
    # LUMI has this rule but does not enforce it.
    assert not any(
        "deletes files in its work area" in line for line in profiles()["lumi"].describe_submission(1)
    )
    assert any("under /e" in line for line in profiles()["jupiter"].describe_submission(1))
    assert any(
        "not tried there yet (documented 2026-05" in line
        for line in profiles()["olivia"].describe_submission(1)
    )
    assert profiles()["testcluster"].describe_submission(1) == [
        "uses up to 1 GPU-hours of nn9999k (if the jobs run to their time limit)"
    ]


@pytest.mark.parametrize(
    ("memory", "says"),
    [("900G", "node_gb 808"), ("1T", "choose a smaller value"), ("lots", "write a number")],
)
def test_more_memory_than_a_node_has_is_refused(memory: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(profiles()["olivia"], account="nn1234k", memory_per_node=memory)


def test_profiles_state_their_confidence() -> None:
    for name, cluster in profiles().items():
        assert cluster.site.confidence in ("tested", "documented", "community")
        first = (conf_dir() / "cluster" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ")
