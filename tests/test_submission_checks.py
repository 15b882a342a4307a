"""Checks before a submission.

If a check fails, the submission is refused. If a check cannot be made, this is reported.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from finetune.config.cluster import ClusterConfig
from finetune.launch import checks
from finetune.launch.environment import profiles
from finetune.launch.torch_build import TorchBuild, installed_torch, lacks_support

Stub = Callable[[str, str], None]
CONTAINER = "apptainer exec --nv finetune.sif python3"
NOT_TRIED = "the nodes' Python (python3), which restarts runs: the profile's module commands do not work here"


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Put stubs of Slurm's commands on PATH; return a function that adds or replaces a stub."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "bash").symlink_to(str(shutil.which("bash")))
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("BASH_FUNC_module%%", raising=False)

    def write(name: str, body: str) -> None:
        path = programs / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    write("sbatch", "exit 0")
    write("scontrol", "exit 0")
    write("sinfo", "echo 'accel*|7-00:00:00|8'")
    return write


def saga() -> ClusterConfig:
    """Return Saga's A100 profile for a job in a container. The container's torch cannot be checked."""
    return replace(
        profiles()["saga_a100"], python=CONTAINER, host_python="true", modules=[], clean_modules=None
    )


@pytest.mark.parametrize(
    ("sinfo", "reason"),
    [
        ("echo 'slurm_load_partitions: Access/permission denied' >&2; exit 1", "Access/permission denied"),
        ("echo 'sinfo: error: not for users' >&2; exit 1", "not for users"),
        ("exit 3", "exit code 3"),
        (None, "sinfo is not on PATH"),
    ],
)
def test_partition_limits_that_cannot_be_read_are_not_checked(
    stub: Stub, tmp_path: Path, sinfo: str | None, reason: str
) -> None:
    if sinfo is None:
        (tmp_path / "bin" / "sinfo").unlink()
    else:
        stub("sinfo", sinfo)
    (unchecked,) = checks.check(saga(), 1)
    assert unchecked.startswith("the partition's limits (sinfo: ")
    assert reason in unchecked


def test_an_unknown_answer_of_sinfo_does_not_refuse(stub: Stub) -> None:
    stub("sinfo", "echo 'sinfo is replaced by freenodes on this system'")
    assert checks.check(saga(), 1) == []


def test_a_time_limit_above_the_partitions_is_refused(stub: Stub) -> None:
    stub("sinfo", "echo 'a100|1:00:00|8'")
    with pytest.raises(ValueError, match="must be at most 60, the limit of partition a100"):
        checks.check(saga(), 1)


@pytest.mark.parametrize(
    "answer",
    [
        "sbatch: error: Access/permission denied",
        "allocation failure: Access/permission denied",
        "sbatch: unrecognized option '--test-only'",
        "sbatch: error: --test-only is disabled on this system",
    ],
)
def test_a_site_that_denies_test_only_does_not_refuse(stub: Stub, answer: str) -> None:
    stub("sbatch", f'echo "{answer}" >&2; exit 1')
    (unchecked,) = checks.check(saga(), 1)
    assert unchecked.startswith("Slurm's acceptance of the job (sbatch --test-only: ")


@pytest.mark.parametrize(
    "answer",
    [
        "allocation failure: Invalid account or account/partition combination specified",
        "allocation failure: User's group not permitted to use this partition",
        "allocation failure: Requested node configuration is not available",
        "sbatch: error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: invalid partition specified: a1000",
        "sbatch: unrecognized option '--exclusiv'",
    ],
)
def test_a_job_that_slurm_would_refuse_is_refused_with_slurms_message(stub: Stub, answer: str) -> None:
    stub("sbatch", f'echo "{answer}" >&2; exit 1')
    with pytest.raises(ValueError, match=re.escape(answer.rpartition(": ")[2])):
        checks.check(saga(), 1)


def test_sbatch_runs_without_variables_that_limit_a_jobs_environment(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    monkeypatch.setenv("SLURM_EXPORT_ENV", "NONE")
    stub("sbatch", f'echo "${{SBATCH_EXPORT-unset}} ${{SLURM_EXPORT_ENV-unset}}" > {tmp_path}/seen')
    checks.check(saga(), 1)
    assert (tmp_path / "seen").read_text() == "unset unset\n"


# --- the host's Python --------------------------------------------------------------------------

OLD = 'case "$2" in *print*) echo 3.6.15;; *) exit 1;; esac'
NEW = 'case "$2" in *print*) echo 3.11.7;; esac'
MODULES = 'module() { case "$*" in *none*) return 1;; *cray-python) PATH=$NEWER:$PATH;; esac; }'


@pytest.mark.parametrize("profile", ["lumi", "olivia", "arrhenius"])
def test_an_old_python_on_the_host_is_refused_with_the_remedy(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    monkeypatch.setenv("BASH_FUNC_module%%", "() { :; }")
    stub("sites-python3", OLD)
    cluster = replace(profiles()[profile], host_python="sites-python3")
    with pytest.raises(
        ValueError,
        match=r"^cluster\.host_python: sites-python3 is Python 3\.6\.15 here; .* set a newer one, such as",
    ):
        checks.check(cluster, 1)


def test_the_login_nodes_python_is_not_tried_for_another_architecture(stub: Stub, tmp_path: Path) -> None:
    """The x86 login node cannot show which Python a job on Arm nodes finds.

    On the login node, a virtual environment is first on PATH; in the job, it is last.
    """
    stub("sh", f"touch {tmp_path}/from-the-shell")
    cluster = replace(profiles()["olivia"], host_python="sh", modules=[], clean_modules=None)
    checks.check(cluster, 1)
    assert not (tmp_path / "from-the-shell").exists()


def test_a_host_without_python_is_refused_with_the_remedy(stub: Stub) -> None:
    with pytest.raises(
        ValueError,
        match=r"^cluster\.host_python: python3 is not on this host; .* as cluster\.host_python=python3\.11",
    ):
        checks.check(replace(saga(), host_python="python3"), 1)


@pytest.mark.parametrize(
    ("modules", "unchecked"),
    [(["load cray-python"], []), (["load none"], [NOT_TRIED])],
)
def test_the_hosts_python_is_tried_after_the_module_commands(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: list[str], unchecked: list[str]
) -> None:
    newer = tmp_path / "newer"
    stub("python3", NEW)
    shutil.copytree(tmp_path / "bin", newer, symlinks=True)
    stub("python3", OLD)
    monkeypatch.setenv("NEWER", str(newer))
    monkeypatch.setenv("BASH_FUNC_module%%", MODULES.removeprefix("module"))
    cluster = replace(saga(), host_python="python3", clean_modules="purge", modules=modules)
    assert checks.check(cluster, 1) == unchecked


def test_where_there_are_no_modules_the_hosts_python_is_not_checked(stub: Stub) -> None:
    stub("python3", OLD)
    assert checks.check(replace(saga(), host_python="python3", clean_modules="reset"), 1) == [NOT_TRIED]


def test_setup_lines_may_change_the_hosts_python(stub: Stub) -> None:
    stub("python3", OLD)
    (unchecked,) = checks.check(replace(saga(), host_python="python3", setup=["PATH=/opt/new/bin:$PATH"]), 1)
    assert unchecked.endswith("cluster.setup may change it")


NEEDS_A_MODULE = (
    '[ -n "$TOOLS" ] || { echo "error while loading shared libraries: libpython3.11.so" >&2; exit 127; }'
)
TOOLS = '() { case "$*" in purge) unset TOOLS;; "load Python/3.11") export TOOLS=1;; esac; }'


def test_a_python_from_a_module_that_the_job_does_not_load_is_refused(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub("mine", NEEDS_A_MODULE)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "mine"))
    monkeypatch.setattr(checks, "installed_torch", lambda: None)
    monkeypatch.setenv("BASH_FUNC_module%%", TOOLS)
    monkeypatch.setenv("TOOLS", "1")
    monkeypatch.setenv("LOADEDMODULES", "GCCcore/13.2.0:Python/3.11")
    cluster = replace(profiles()["leonardo"], account="iscra")
    stub("sinfo", "exit 0")
    with pytest.raises(
        ValueError,
        match=r"^cluster\.modules: .*/mine\) does not start after `module purge`, "
        r".*GCCcore/13\.2\.0, Python/3\.11\)$",
    ):
        checks.check(cluster, 1)
    assert checks.check(replace(cluster, modules=["load Python/3.11"]), 1) == []


# --- GPUs that torch supports -------------------------------------------------------------------

BUILDS = [
    # Build (release and toolkit), and the architectures that it does not support. Those tested are
    # sm_60 (Pascal, P100), sm_70 (Volta, V100) and sm_80 (Ampere, A100).
    ("2.6.0+cu124", ""),
    ("2.8.0+cu126", ""),
    ("2.14.1+cu126", ""),
    ("2.15.0+cu126", "sm_60 sm_70"),
    ("2.8.0+cu128", "sm_60"),
    ("2.10.0+cu129", "sm_60"),
    ("2.11.0+cu128", "sm_60 sm_70"),
    ("2.9.0+cu130", "sm_60 sm_70"),
    ("2.13.0+cu130", "sm_60 sm_70"),
    ("2.13.0+cpu", "sm_60 sm_70 sm_80"),
]


@pytest.mark.parametrize(("version", "lacking"), BUILDS)
def test_a_build_of_torch_lacks_support_for_some_architectures(version: str, lacking: str) -> None:
    build = TorchBuild.of(version)
    assert [gpu for gpu in ("sm_60", "sm_70", "sm_80") if lacks_support(build, gpu)] == lacking.split()


@pytest.mark.parametrize(
    "version", ["2.7.1", "2.8.0a0+5228986c39.nv25.6", "2.10.0+rocm7.0", "2.9.0+das.opt1"]
)
def test_support_by_an_unofficial_build_is_unknown(version: str) -> None:
    assert lacks_support(TorchBuild.of(version), "sm_60") is None


def test_the_installed_torch_is_found_without_importing_it() -> None:
    import torch

    build = installed_torch()
    assert build is not None
    assert build.version == torch.__version__
    assert (build.cuda == (0, 0)) == (torch.version.cuda is None and torch.version.hip is None)


@dataclass(frozen=True)
class Build:
    """A build of torch, a cluster profile, and whether the build supports the profile's GPUs.

    Attributes:
        version: version of torch, with its CUDA version.
        error: part of the error message; empty if the build is accepted.
        unchecked: checks that are reported as impossible.
        settings: settings that replace those of the profile.
    """

    id: str
    profile: str
    version: str
    error: str = ""
    unchecked: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)


UNFIT = [
    Build(
        "Pascal",
        "saga",
        "2.13.0+cu130",
        "this Python's torch 2.13.0+cu130 does not support sm_60, the GPUs of saga",
    ),
    Build("Volta", "ex3", "2.12.0+cu128", "does not support sm_70, the GPUs of ex3"),
    Build(
        "a GPU type",
        "idun",
        "2.13.0+cu130",
        "does not support sm_70, the GPUs of idun",
        settings={"gpu_type": "v100"},
    ),
    Build("for CPUs", "saga_a100", "2.13.0+cpu", "this Python's torch 2.13.0+cpu is a build for CPUs"),
]
OF_THE_JOB = "support of the job's torch for sm_60, the GPUs of saga"
OF_THIS_PYTHON = "support of torch 2.7.1 for sm_60, the GPUs of saga"
FIT = [
    Build("an older toolkit", "saga", "2.13.0+cu126"),
    Build("any GPU type", "idun", "2.13.0+cu130"),
    Build("pretended GPUs", "testcluster", "2.13.0+cpu"),
    Build("not known", "saga", "2.7.1", unchecked=(OF_THIS_PYTHON,)),
    Build("a container", "saga", "2.13.0+cu130", unchecked=(OF_THE_JOB,), settings={"python": CONTAINER}),
    Build("a container for newer GPUs", "saga_a100", "2.13.0+cpu", settings={"python": CONTAINER}),
]


@pytest.mark.parametrize("build", UNFIT, ids=lambda build: build.id)
def test_gpus_that_torch_does_not_support_are_refused(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, build: Build
) -> None:
    monkeypatch.setattr(checks, "installed_torch", lambda: TorchBuild.of(build.version))
    with pytest.raises(ValueError, match=re.escape(build.error)):
        checks.check(replace(profiles()[build.profile], **build.settings), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("build", FIT, ids=lambda build: build.id)
def test_gpus_that_torch_may_support_are_not_refused(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, build: Build
) -> None:
    monkeypatch.setattr(checks, "installed_torch", lambda: TorchBuild.of(build.version))
    stub("sinfo", "exit 0")
    plain = replace(profiles()[build.profile], host_python="true", modules=[], clean_modules=None)
    cluster = replace(plain, **build.settings)  # type: ignore[arg-type]
    assert checks.check(cluster, 1) == list(build.unchecked)
