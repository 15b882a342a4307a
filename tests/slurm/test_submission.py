"""Submission on the test cluster: a sweep is one array, runs are frozen, no job is lost."""

from __future__ import annotations

import json
import os
import pickletools
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import data_prep
import finetune
from finetune.config.train import conf_dir
from finetune.launch.observe import observe
from finetune.runs.folder import RunFolder
from finetune.tracking.spool import steps_done
from tests.slurm.conftest import Shell, losses, training, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

# One of these 2 × 3 points is invalid: 32 is not divisible by 3, but 48 is.
GRID = [
    "model.from_scratch.num_key_value_heads=1",
    "model.from_scratch.hidden_size=32,48",
    "model.from_scratch.num_attention_heads=2,3,4",
]


@pytest.fixture(scope="module")
def sweep(shell: Shell) -> tuple[subprocess.CompletedProcess[str], list[RunFolder]]:
    """Run the 2 × 3 points of the sweep to their end, two at a time, each on 2 nodes × 2 ranks."""
    shape = ["cluster.nodes=2", "cluster.ranks_per_node=2", "cluster.array_parallelism=2"]
    done = shell.finetune("train", "-m", *training("name=grid", "wait=true", *shape, *GRID), code=1)
    return done, shell.runs(done.stdout)


def test_a_sweep_is_one_array_and_a_failed_point_fails_everywhere(
    shell: Shell, sweep: tuple[subprocess.CompletedProcess[str], list[RunFolder]]
) -> None:
    done, runs = sweep
    assert len(runs) == 6
    jobs = [str((run.read_json("submission.json") or {})["job_id"]) for run in runs]
    (array,) = {job.partition("_")[0] for job in jobs}
    shapes = [(run, run.config().model.from_scratch) for run in runs]
    (bad,) = [run for run, shape in shapes if shape["hidden_size"] % shape["num_attention_heads"]]
    for run in runs:
        assert run.state() == ("failed" if run == bad else "completed"), run.failure()
        if run != bad:
            assert len(losses(run)) == 6
    assert "1 of 6 runs did not complete" in done.stderr
    columns = "JobID,State,ExitCode,NNodes"
    accounted = shell.cluster.slurm("sacct", "-n", "-X", "-P", "-j", array, "-o", columns).split()
    expected = [f"{array}_{index}|COMPLETED|0:0|2" for index in range(6)]
    index = runs.index(bad)
    expected[index] = f"{array}_{index}|FAILED|1:0|2"
    assert sorted(accounted) == sorted(expected)
    script = next((shell.folder / "runs" / "sweeps").glob("grid-*/0/submit.sh")).read_text()
    assert "#SBATCH --array=0-5%2" in script
    table = shell.finetune("status", str(runs[0].sweep())).stdout
    assert "6 runs: 5 completed, 1 failed" in table
    head, best = table.splitlines()[2:4]
    assert head.split()[:4] == ["run", "hidden_size", "num_attention_heads", "state"]
    assert best.split()[-1] == "best"
    assert best.strip() in done.stderr.replace("\n", " \n"), "wait=true ends with the same table"
    (file,) = (shell.folder / "runs" / "sweeps" / str(runs[0].sweep())).glob("points.tsv")
    assert file.read_text().splitlines()[1].split("\t")[0] == best.split()[0]
    assert str(bad.failure()) in table


def test_each_point_is_frozen_in_few_files_with_a_shared_copy_of_the_code(
    shell: Shell, sweep: tuple[subprocess.CompletedProcess[str], list[RunFolder]]
) -> None:
    _, runs = sweep
    for run in runs:
        provenance = run.read_json("provenance.json")
        assert provenance is not None
        assert {"torch", "deepspeed", "submitit"} <= provenance["packages"].keys()
        assert {"git_revision", "git_diff", "command", "sweep"} <= provenance.keys()
        num_files = sum(path.is_file() for path in run.path.rglob("*"))
        assert num_files < 60, "a thousand points must stay below a quota of 100,000 files"
        (submitted,) = run.jobs.glob("*_submitted.pkl")
        arguments = [argument for _, argument, _ in pickletools.genops(submitted.read_bytes())]
        names = [argument for argument in arguments if isinstance(argument, str)]
        assert {"finetune.job.rank", "run_job", str(run.path)} <= set(names)
        assert not any("omegaconf" in name or "hydra" in name for name in names)
    (code,) = {run.code() for run in runs}
    assert code is not None
    assert (shell.folder / "runs" / ".code" / code / "finetune" / "training" / "train.py").is_file()


def test_mlflow_has_a_parent_run_with_the_points_as_children(
    shell: Shell, sweep: tuple[subprocess.CompletedProcess[str], list[RunFolder]]
) -> None:
    from mlflow.tracking import MlflowClient

    _, runs = sweep
    client = MlflowClient(f"sqlite:///{shell.folder / 'runs' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (parent,) = client.search_runs(experiments, f"tags.`finetune.sweep` = '{runs[0].sweep()}'")
    children = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.data.tags["finetune.run_id"]: child.info.status for child in children} == {
        run.id: "FINISHED" if run.state() == "completed" else "FAILED" for run in runs
    }
    assert parent.info.status == "FAILED"


def test_losses_are_the_same_on_this_machine_and_on_the_cluster_and_more_steps_extend_the_run(
    shell: Shell,
) -> None:
    (far,) = shell.runs(shell.finetune("train", *training("cluster.nodes=2", "wait=true")).stdout)
    (here,) = shell.runs(
        shell.finetune("train", *training("cluster.ranks_per_node=2", cluster="local")).stdout
    )
    assert losses(far) == pytest.approx(losses(here), abs=1e-6)
    assert "is completed; give it more steps" in shell.finetune("resume", far.id, code=2).stderr
    shell.finetune("resume", far.id, "max_steps=9")
    assert far.summary().steps == 9  # type: ignore[index]
    assert len(losses(far)) == 9
    assert "add --yes" in shell.finetune("prune", far.id).stderr
    assert far.checkpoints.is_dir()
    shell.finetune("prune", far.id, "--yes")
    best = far.summary().best  # type: ignore[index]
    assert [path.name for path in far.checkpoints.glob("step-*")] == [f"step-{best.step:08d}"]
    assert Path(far.summary().result).is_dir()  # type: ignore[index]
    assert "completed" in shell.finetune("status", far.id).stdout


def test_edits_of_code_recipe_and_profile_after_submission_change_nothing(
    shell: Shell, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    for package in (finetune, data_prep):
        shutil.copytree(Path(str(package.__file__)).parent, checkout / package.__name__)
    shutil.copytree(conf_dir(), checkout / "finetune" / "conf", dirs_exist_ok=True)
    my = shell.folder / "my" / "recipe"
    my.mkdir()
    (my / "edited.yaml").write_text("# @package _global_\nlr: 0.003\n")
    with shell.closed():
        (run,) = shell.runs(
            shell.finetune("train", *training("recipe=edited"), PYTHONPATH=str(checkout)).stdout
        )
        (my / "edited.yaml").write_text("# @package _global_\nlr: 100.0\n")
        (checkout / "finetune" / "training" / "train.py").write_text("raise RuntimeError('edited')\n")
    wait_for(lambda: not observe_in(shell, run).alive)
    assert run.state() == "completed", run.failure()
    assert run.config().lr == 0.003
    assert "edited" not in run.log(0).read_text()  # type: ignore[union-attr]


def observe_in(shell: Shell, run: RunFolder):  # type: ignore[no-untyped-def]
    os.environ["SLURM_CONF"] = str(shell.cluster.conf)
    try:
        return observe([run])[0]
    finally:
        del os.environ["SLURM_CONF"]


def test_a_job_has_its_own_environment_and_starts_from_clean_modules(shell: Shell, tmp_path: Path) -> None:
    """Open OnDemand sets SBATCH_EXPORT=NONE. A stand-in for `module` logs its calls."""
    log = tmp_path / "modules"
    login = {
        "SBATCH_EXPORT": "NONE",
        "SLURM_EXPORT_ENV": "NONE",
        "BASH_FUNC_module%%": f'() {{ echo "$*" >> {log}; [ "$2" != absent ]; }}',
        "HF_HOME": "/of/the/shell",
    }
    cleaned = ["cluster.clean_modules=reset", "cluster.shared_cache=/work/$SLURM_JOB_ACCOUNT"]
    setup = f"cluster.setup=['env > {tmp_path}/env']"
    arguments = training(*cleaned, "cluster.modules=['load a/1','use /b']", setup)
    (good,) = shell.runs(shell.finetune("train", *arguments, **login).stdout)
    wait_for(lambda: not observe_in(shell, good).alive)
    with shell.closed():  # an open partition could start the job before the submission returns
        arguments = training("cluster.modules=['load absent','load c']")
        (broken,) = shell.runs(shell.finetune("train", *arguments, **login).stdout)
    wait_for(lambda: not observe_in(shell, broken).alive)
    assert good.state() == "completed", good.failure()
    good_job = ["reset", "load a/1", "use /b"]
    trial_at_submission = ["load absent"]
    broken_job = ["load absent"]
    assert log.read_text().splitlines() == [*good_job, *trial_at_submission, *broken_job]
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert "SBATCH_EXPORT" not in seen
    assert seen["HF_HOME"] == "/of/the/shell"
    assert seen["APPTAINER_CACHEDIR"] == "/work/nn9999k/apptainer"
    assert seen["TRITON_CACHE_DIR"].endswith(f"-{seen['SLURM_JOB_ID']}/triton")
    (job_log,) = broken.jobs.glob("*_log.out")
    pattern = r"error: cluster.modules: 'module load absent' failed on node\d; .*\n"
    assert re.fullmatch(pattern, job_log.read_text())
    reason = "FAILED: rank 0: cluster.modules: 'module load absent' failed on node"
    assert reason in observe_in(shell, broken).reason
    assert not broken.metrics.exists()


def test_two_sweeps_submitted_in_the_same_second_do_not_collide(shell: Shell) -> None:
    shell.empty_queue()
    arguments = training("name=twin", "seed=range(0,3)", "zero=glob('stage[01]')")
    with shell.closed():
        both = [shell.start("train", "-m", *arguments) for _ in range(2)]
        dry = shell.finetune("train", "-m", "--dry-run", *arguments)
        assert "#SBATCH --array=0-5%" in dry.stdout
        ids = []
        for submitted in both:
            out, err = submitted.communicate(timeout=120)
            assert submitted.returncode == 0, err
            assert "GPU-hours of nn9999k" in err
            ids.append(out.split())
        assert len({*ids[0], *ids[1]}) == 12
        assert len(shell.queue()) == 12
        runs = shell.runs("\n".join([*ids[0], *ids[1]]))
        sweeps = {run.sweep() for run in runs}
        assert len(sweeps) == 2
        rendered = (shell.folder / "runs" / "sweeps" / str(runs[0].sweep()) / "0" / "submit.sh").read_text()
        tried = re.search(r"--job-name=(\S+)", dry.stdout)[1]  # type: ignore[index]
        assert dry.stdout.replace(tried, str(runs[0].sweep())) == rendered
        assert len({(run.config().seed, run.config().zero["stage"]) for run in runs}) == 6
        shell.finetune("cancel", *(str(sweep) for sweep in {run.sweep() for run in runs}))
        assert not shell.queue()
        assert {run.state() for run in runs} == {"cancelled"}


@pytest.mark.parametrize("moment", ["sbatch", "release"])
def test_a_submitter_that_is_killed_leaves_no_job_that_runs(
    shell: Shell, tmp_path: Path, moment: str
) -> None:
    """A submitter first submits a job array that is on hold, and later releases it.

    Here it is killed before it reads the array's id, or before it releases the array.
    """
    shell.empty_queue()
    name = {"sbatch": "sbatch", "release": "scontrol"}[moment]
    fake = tmp_path / name
    real = shutil.which(name)
    when = '[[ " $* " == *" --hold "* ]]' if moment == "sbatch" else '[[ "$1" == release ]]'
    kill = "kill -9 $PPID"
    body = f'{real} "$@" >/dev/null; {kill}' if moment == "sbatch" else kill
    fake.write_text(f'#!/bin/bash\nif {when}; then {body}; exit 1; fi\nexec {real} "$@"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    arguments = training(f"name=killed-{moment}", "seed=1,2")
    submitted = subprocess.run(
        [sys.executable, "-m", "finetune.cli.main", "train", "-m", *arguments],
        cwd=shell.folder,
        env={**shell.environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        check=False,
    )
    assert submitted.returncode == -signal.SIGKILL
    assert set(shell.queue().values()) == {"PENDING"}, "the jobs must be held: the partition is open"
    time.sleep(3)
    assert set(shell.queue().values()) == {"PENDING"}
    runs = [run for run in RunFolder.all(shell.folder / "runs") if run.id.startswith(f"killed-{moment}-")]
    assert len(runs) == 2
    table = " ".join(shell.finetune("status", str(runs[0].sweep())).stdout.split())
    assert table.count("its submission was interrupted") == 2
    shell.finetune("cancel", str(runs[0].sweep()))
    assert not shell.queue()
    assert not any(run.metrics.exists() for run in runs)


def test_a_small_preparation_is_one_job_and_a_training_waits_for_it(shell: Shell) -> None:
    chained = ["corpus=sample", "corpora_dir=chained", "cluster=testcluster", "shard_characters=20000"]
    prepared = shell.finetune("prepare", *chained).stdout.strip()
    arguments = training("corpus=sample", "data.corpora_dir=chained")
    (run,) = shell.runs(shell.finetune("train", *arguments, "--after", prepared).stdout)

    def waits_for_dependency() -> bool:
        return "queued (Dependency)" in " ".join(shell.finetune("status", run.id).stdout.split())

    wait_for(waits_for_dependency, seconds=30)  # Slurm sets the reason at its next scheduling cycle
    wait_for(lambda: not observe_in(shell, run).alive)
    assert run.state() == "completed", run.failure()
    steps = shell.finetune("status", prepared, "--corpora-dir", "chained").stdout.splitlines()[1:]
    assert [step.split()[1::2] for step in steps] == [["read-to-publish", "completed"]], (
        "steps of a single task share a job, which waits in the queue once"
    )
    assert shell.finetune("logs", prepared, "--corpora-dir", "chained").stdout.count("==> ") > 8
    assert "has already ended" in shell.finetune("cancel", prepared, "--corpora-dir", "chained").stderr
    assert "is up to date" in shell.finetune("prepare", *chained).stderr
    assert "no prepare run 'none'" in shell.finetune("train", *training(), "--after", "none", code=2).stderr


def test_a_preparation_in_the_queue_is_cancelled_by_its_id(shell: Shell) -> None:
    shell.empty_queue()
    with shell.closed():
        settings = ["corpus=sample", "corpora_dir=unwanted", "cluster=testcluster"]
        prepared = shell.finetune("prepare", *settings).stdout.strip()
        assert shell.queue()
        assert (
            "-f follows only training runs"
            in shell.finetune("logs", "-f", prepared, "--corpora-dir", "unwanted", code=2).stderr
        )
        assert "cancelled" in shell.finetune("cancel", prepared, "--corpora-dir", "unwanted").stderr
        wait_for(lambda: not shell.queue(), 60)


def test_optuna_receives_the_losses_of_each_array(shell: Shell) -> None:
    study = [
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.sampler.seed=1",
    ]
    study += ["hydra.sweeper.direction=minimize", "max_steps=2", "lr=interval(1e-4,1e-2)", "name=optuna"]
    shell.finetune("train", "-m", *training(*study))
    runs = [run for run in RunFolder.all(shell.folder / "runs") if run.id.startswith("optuna-")]
    assert {run.state() for run in runs} == {"completed"}
    arrays = [str((run.read_json("submission.json") or {})["job_id"]) for run in runs]
    assert sorted("_" in job for job in arrays) == [False, True, True]
    assert len({run.sweep() for run in runs}) == 1
    (found,) = (shell.folder / "runs" / "sweeps").glob("*/optimization_results.yaml")
    best = min(run.summary().after.loss for run in runs)  # type: ignore[index]
    assert f"best_value: {best}" in found.read_text()


def test_in_an_allocation_runs_start_at_once_and_debug_opens_the_debugger(shell: Shell) -> None:
    allocation = ["salloc", "--quiet", "--account=nn9999k", "--nodes=1", "--ntasks=2", "--gpus-per-node=2"]
    arguments = training("max_steps=2", "cluster.ranks_per_node=2")
    command = [sys.executable, "-m", "finetune.cli.main", "train", *arguments]
    (run,) = shell.runs(shell.run(*allocation, *command).stdout)
    assert run.state() == "completed"
    assert run.read_json("started.json")["host"].startswith("node")  # type: ignore[index]
    assert (shell.folder / "runs" / ".code" / str(run.code())).is_dir(), (
        "otherwise prune would remove it as unused code"
    )
    too_big = shell.run(*allocation, *command, "cluster.nodes=2", code=2)
    assert "cluster.nodes: must be at most 1 in this allocation" in too_big.stderr
    assert "must be run in an allocation" in shell.finetune("train", *training("debug=true"), code=2).stderr
    debugged = subprocess.run(
        [*allocation, *command, "cluster.ranks_per_node=1", "debug=true"],
        cwd=shell.folder,
        env=shell.environment,
        input="p run.id\nc\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert debugged.returncode == 0, debugged.stderr[-2000:]
    assert "(Pdb) 'run-" in debugged.stdout
    (debugged_run,) = shell.runs(debugged.stdout.split()[-1])
    assert json.loads((debugged_run.path / "outcome.json").read_text())["state"] == "completed"


def test_cancel_now_ends_a_run_in_an_allocation_with_all_its_ranks(shell: Shell) -> None:
    arguments = training("max_steps=5000", "cluster.ranks_per_node=2", "name=now")
    command = [sys.executable, "-m", "finetune.cli.main", "train", *arguments]
    allocation = ["salloc", "--quiet", "--account=nn9999k", "--nodes=1", "--ntasks=2", "--gpus-per-node=2"]
    attached = subprocess.Popen([*allocation, *command], cwd=shell.folder, env=shell.environment)
    wait_for(lambda: list((shell.folder / "runs").glob("now-*/config.yaml")))
    (run,) = [run for run in RunFolder.all(shell.folder / "runs") if run.id.startswith("now-")]
    wait_for(lambda: steps_done(run.path) > 2)
    assert len(run.find_ranks()) > 2, "the ranks, and srun"
    shell.finetune("cancel", "--now", run.id)
    assert not run.find_ranks()
    assert run.state() == "cancelled"
    assert attached.wait(120) == 1
