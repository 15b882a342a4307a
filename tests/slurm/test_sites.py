"""The test cluster, made to imitate each site of docs/sites (see slurm/testcluster/sites.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from docs.walk import Command, File, missing_line, read_page
from finetune.runs import attempts
from finetune.runs.folder import RunFolder
from finetune.runs.state import EndingCause
from finetune.tracking.spool import steps_done
from slurm.testcluster.cluster import Cluster, unavailable_reason
from slurm.testcluster.site_profiles import DENIED, JUPITER, LUMI, MARENOSTRUM5, OLIVIA, SAGA, SITES, Site
from slurm.testcluster.sites import SiteCluster, limit, union
from slurm.testcluster.walk import PAGES, walk_on_login_node
from tests.corpora import write_corpus
from tests.slurm.conftest import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

SCRIPTS = Path(__file__).parents[1] / "sbatch"


@dataclass
class Login:
    """A login node, and a folder on it that the nodes share.

    Attributes:
        folder: path of the folder on the login node.
    """

    cluster: SiteCluster
    folder: str

    @property
    def here(self) -> Path:
        """The folder's path on this machine."""
        return self.cluster.path(self.folder)

    def run(self, *command: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = [f"{key}={value}" for key, value in environment.items()]
        login = self.cluster.login("env", *variables, *command, folder=self.folder)
        done = subprocess.run(login, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == code, f"{done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        return done

    def train(
        self, *settings: str, code: int = 0, program: tuple[str, ...] = ("finetune",), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Submit a run of a small model on the CPU with one rank, or a sweep (-m) of such runs.

        Args:
            code: expected exit code.
            program: command that is run instead of `finetune`.
            environment: environment variables of the command.
        """
        model = [
            "model=llama_tiny",
            "model.from_scratch.hidden_size=64",
            "model.from_scratch.num_hidden_layers=2",
        ]
        data = ["corpus=laws", "data.sequence_length=128", "global_batch_size=2", "micro_batch_size=2"]
        fixed = [
            *model,
            "adapter=none",
            *data,
            "checkpoint_every=5",
            "evaluate_every=1000",
            "cluster.ranks_per_node=1",
        ]
        return self.run(*program, "train", *fixed, *settings, code=code, **environment)

    def runs(self, ids: str) -> list[RunFolder]:
        return [RunFolder.find(run_id, self.here / "runs") for run_id in ids.split()]

    def job(self, run: RunFolder) -> str:
        return str((run.read_json("submission.json") or {})["job_id"])

    def wait(self, run: RunFolder, state: str = "completed") -> None:
        def has_ended() -> bool:
            queued = self.cluster.slurm("squeue", "--noheader", "--array", "--format", "%i").split()
            return self.job(run) not in queued and run.state() != "queued"

        wait_for(has_ended)
        logs = [log.read_text()[-2000:] for log in run.jobs.glob("*.out")]
        assert run.state() == state, f"{run.failure()}\n{logs}"


@contextmanager
def login_to(site: Site, project: str) -> Iterator[Login]:
    reason = unavailable_reason()
    if reason:
        pytest.skip(reason)
    cluster = SiteCluster.of(site, f"tests-{site.name}-{os.getpid()}")
    cluster.up(owner=os.getpid())
    try:
        login = Login(cluster, project)
        write_corpus(login.here / "corpora" / "laws", num_documents=60, longest=256, seed=1)
        yield login
    finally:
        cluster.down()


def test_slurm_accepts_the_golden_batch_scripts_of_each_profile() -> None:
    """The cluster has the queues, accounts and GPU types of all sites.

    The limits of a site are set before its scripts are tried.
    """
    reason = unavailable_reason()
    if reason:
        pytest.skip(reason)
    cluster = Cluster(f"tests-all-{os.getpid()}", union(list(SITES.values())))
    cluster.up(owner=os.getpid())
    try:
        refused = {}
        for site in SITES.values():
            limit(cluster, site)
            scripts = sorted(SCRIPTS.glob(f"{site.name}*.sh"))
            assert len(scripts) >= 2, f"{site.name} has no golden batch scripts"
            for script in scripts:
                try:
                    cluster.slurm("sbatch", "--test-only", str(script))
                except RuntimeError as fault:
                    refused[script.name] = str(fault)
        assert refused == {}
        # the limits of the last site are still set
        too_long = ["sbatch", "--test-only", "--time=999999", str(SCRIPTS / "ex3.sh")]
        assert "time limit" in refusal(lambda: cluster.slurm(*too_long)).lower()
    finally:
        cluster.down()


@pytest.fixture(scope="module")
def lumi() -> Iterator[Login]:
    with login_to(LUMI, "/scratch/project_465001234/kari") as login:
        yield login


def test_a_page_is_compared_line_by_line_with_the_outputs_of_its_commands() -> None:
    page = (
        "```yaml\n# my/a.yaml\nx: 1\n```\n"
        "```console\n$ cat \\\n> runs\n run  lr-20261128-084202-b602  6.9\n…\nlast …\n```\n"
    )
    file, command = read_page(page)
    assert file == File("my/a.yaml", "# my/a.yaml\nx: 1\n")
    assert isinstance(command, Command)
    assert command.text == "cat \\\nruns"
    printed = "first\n run lr-20261129-000000-ffff   12.5\nanything\nlast of all\n"
    assert missing_line(command.expected, printed) is None
    assert missing_line(command.expected, printed.replace("last", "least")) == "last …"
    assert missing_line(command.expected, printed.replace("lr-", "seed-")) == command.expected[0]


MINE = [
    "cluster=lumi_small",
    "cluster.account=project_465001234",
    f"cluster.python=singularity exec {LUMI.image} python3",
]


def test_a_sweep_on_lumi_completes_though_a_job_is_requeued_from_outside(lumi: Login) -> None:
    """The test cluster has the obstacles of LUMI, and two more.

    On LUMI, ranks run in a container without Slurm's commands, the nodes' Python is old, modules
    must be loaded in a given order, and the login node has a wrapped Python without torch. In
    addition, sinfo is denied, and SBATCH_EXPORT=NONE is set.
    """
    denied = lumi.cluster.path("/site/bin/sinfo")
    denied.write_text(f"#!/bin/bash\n{DENIED}\n")
    denied.chmod(0o755)
    try:
        submitted = lumi.train("-m", *MINE, "max_steps=20", "lr=1e-3,2e-3", SBATCH_EXPORT="NONE")
    finally:
        denied.unlink()
    assert "not checked" in submitted.stderr
    first, second = lumi.runs(submitted.stdout)
    wait_for(lambda: steps_done(first.path) >= 6)
    lumi.cluster.slurm("scontrol", "requeue", lumi.job(first))
    for run in (first, second):
        lumi.wait(run)
        assert steps_done(run.path) == 20
    causes = [attempt.ending.cause for attempt in attempts.read(first.path) if attempt.ending]
    assert causes[0] in (EndingCause.INTERRUPTED, EndingCause.KILLED)
    assert causes[-1] == EndingCause.COMPLETED


def test_an_old_python_on_the_nodes_and_a_wrong_account_are_refused_in_one_line(lumi: Login) -> None:
    """The submission is refused before a job is queued.

    If `finetune` itself runs in a container, it cannot try the nodes' Python at submission. The job
    then reports the error.
    """
    path = f"PYTHONPATH={':'.join(sys.path)}"
    old = [*MINE, "cluster.modules=[]", "max_steps=2"]
    refused = lumi.train(*old, code=2, program=("env", path, sys.executable, "/site/login/start.py")).stderr
    assert "cluster.host_python" in refused
    assert "3.6.15" in refused
    assert "project_" in lumi.train(*MINE, "cluster.account=nn9999k", "max_steps=2", code=2).stderr
    assert lumi.cluster.slurm("squeue", "--noheader") == ""
    submitted = lumi.train(*old)
    assert "not checked: the nodes' Python" in submitted.stderr
    (run,) = lumi.runs(submitted.stdout)
    wait_for(lambda: not lumi.cluster.slurm("squeue", "--noheader"))
    status = " ".join(lumi.run("finetune", "status", run.id).stdout.split())
    assert "cluster.host_python: python3 is missing on this node or older than 3.8" in status


@pytest.mark.slow
def test_a_sweep_larger_than_the_queue_for_trials_completes(lumi: Login) -> None:
    """LUMI's partition dev-g accepts two jobs per user and runs one at a time. Each point is a job."""
    trial = ["cluster.partition=dev-g", "cluster.timeout_min=30", "max_steps=2", "lr=1e-3,2e-3,3e-3"]
    runs = lumi.runs(lumi.train("-m", *MINE, *trial).stdout)
    wait_for(lambda: all(run.state() == "completed" for run in runs))


@pytest.mark.slow
@pytest.mark.parametrize("site", ["lumi", "olivia", "saga"])
def test_the_commands_on_a_sites_page_print_what_the_page_shows(site: str) -> None:
    reason = unavailable_reason()
    if reason:
        pytest.skip(reason)
    cluster = SiteCluster.of(SITES[site], f"tests-page-{site}-{os.getpid()}")
    cluster.up(owner=os.getpid())
    try:
        faults, _ = walk_on_login_node(cluster, (PAGES / f"{site}.md").read_text(encoding="utf-8"))
    finally:
        cluster.down()
    assert faults == []


@pytest.mark.slow
def test_where_requeue_is_forbidden_an_interrupted_run_is_submitted_again() -> None:
    """On JUPITER, Slurm refuses a requeue, and the nodes see only the file system /e."""
    with login_to(JUPITER, "/e/project/jureap123/kari") as login:
        python = f"cluster.python=apptainer exec --bind /e {JUPITER.image} python3"
        settings = ["cluster=jupiter", "cluster.account=jureap123", python, "max_steps=60"]
        (run,) = login.runs(login.train(*settings).stdout)
        job = login.job(run)
        wait_for(lambda: steps_done(run.path) >= 6)
        assert "disabled" in refusal(lambda: login.cluster.slurm("scontrol", "requeue", job))
        login.cluster.slurm("scancel", "--signal=USR2", job)
        wait_for(lambda: login.job(run) != job)
        login.wait(run)
        assert "--no-requeue" in next((login.here / "runs").rglob("submit.sh")).read_text()


@dataclass(frozen=True)
class User:
    """A user's folder on a site, and the settings that all trainings of the user have."""

    site: Site
    folder: str
    settings: tuple[str, ...]


USERS = (
    User(LUMI, "/scratch/project_465001234/kari", tuple(MINE)),
    User(
        OLIVIA,
        "/cluster/work/projects/nn30001k/kari",
        (
            "cluster=olivia",
            "cluster.account=nn30001k",
            f"cluster.python=apptainer exec --bind /cluster {OLIVIA.image} python3",
            "cluster.host_python=python3.11",
        ),
    ),
    User(SAGA, "/cluster/work/users/kari", ("cluster=saga_a100", "cluster.account=nn9999k")),
    User(  # the site denies sinfo, and its Open OnDemand exports SBATCH_EXPORT=NONE
        MARENOSTRUM5,
        "/gpfs/projects/ehpc123/kari",
        (
            "cluster=marenostrum5",
            "cluster.account=ehpc123",
            f"cluster.python=singularity exec --bind /gpfs {MARENOSTRUM5.image} python3",
        ),
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("event", ["requeue", "power cut"])
@pytest.mark.parametrize("user", USERS, ids=lambda user: user.site.name)
def test_a_disturbed_run_is_restarted(user: User, event: str) -> None:
    with login_to(user.site, user.folder) as login:
        (run,) = login.runs(login.train(*user.settings, "max_steps=60").stdout)
        wait_for(lambda: steps_done(run.path) >= 6)
        if event == "power cut":
            login.cluster.cut_power(attempts.read(run.path)[-1].nodes[0])
        else:
            login.cluster.slurm("scontrol", "requeue", login.job(run))
        login.wait(run)
        assert steps_done(run.path) == 60
        assert len(attempts.read(run.path)) == 2


def refusal(command: Callable[[], object]) -> str:
    with pytest.raises(RuntimeError) as fault:
        command()
    return str(fault.value)
