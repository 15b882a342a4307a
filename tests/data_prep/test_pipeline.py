"""The corpus depends on the raw files and the settings alone.

It does not depend on the number of processes, the order of tasks, shard boundaries or
interruptions.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_prep import pipeline, stage_files
from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig
from data_prep.plan import Preparation
from data_prep.stage_files import StageFolder
from data_prep.stage_settings import TokenizerConfig
from data_prep.workers import Workers
from tests.data_prep.documents import make_document
from tests.data_prep.sample import SAMPLE, SHARD, checksums, markers
from tests.data_prep.sample import sharded_sample_config as config


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the checksums of the corpus that one process writes."""
    return checksums(pipeline.prepare(config(tmp_path_factory.mktemp("one"))).folder)


def plan_steps(corpora_dir: Path) -> tuple[Path, list[pipeline.Step]]:
    return corpora_dir / ".sample.stages", pipeline.plan(config(corpora_dir))


def start_pipeline(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "data_prep.pipeline", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def has_another_cache(expected: str, number: int) -> bool:
    return os.environ.get("HF_HOME") != expected


def test_worker_processes_have_the_current_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork server may have been started earlier, with another environment."""
    for folder in ("one", "two"):
        monkeypatch.setenv("HF_HOME", folder)
        with Workers(2, ["step"]) as workers:
            assert not workers.run("look", has_another_cache, (folder,), [1, 1])


def kill_process(number: int, task: int) -> bool:
    os.kill(os.getpid(), number)
    return True


def test_a_killed_process_is_reported_with_its_signal() -> None:
    with (
        pytest.raises(ValueError, match=r"step look: a worker process was killed by SIGKILL; run the same"),
        Workers(2, ["look"]) as workers,
    ):
        workers.run("look", kill_process, (signal.SIGKILL,), [1, 1])  # type: ignore[arg-type]


def test_the_sample_is_split_into_many_shards(expected: dict[str, str], tmp_path: Path) -> None:
    work, planned = plan_steps(tmp_path)
    pipeline.run_task(work, "read")
    preparation = Preparation.load(work)
    assert len(preparation.tasks) == 5
    assert len(preparation.shards("read")) >= 30
    assert [step.name for step in planned if not step.parallel] == [
        "boilerplate.decide",
        "deduplicate.decide",
        "deidentify.decide",
        "mixture.decide",
        "tokenizer",
        "publish",
    ]


def test_two_processes_write_the_same_corpus(expected: dict[str, str], tmp_path: Path) -> None:
    assert checksums(pipeline.prepare(config(tmp_path, workers=2)).folder) == expected


def test_shard_boundaries_leave_no_trace_in_the_corpus(expected: dict[str, str], tmp_path: Path) -> None:
    assert checksums(pipeline.prepare(config(tmp_path, shard_characters=16_000_000)).folder) == expected


def test_the_order_of_tasks_leaves_no_trace_in_the_corpus(expected: dict[str, str], tmp_path: Path) -> None:
    work, planned = plan_steps(tmp_path)
    for step in planned:
        shares = list(range(7 if step.parallel else 1))
        random.Random(step.name).shuffle(shares)
        for share in shares:
            pipeline.run_task(work, step.name, share, len(shares))
    assert checksums(tmp_path / "sample") == expected
    assert pipeline.plan(config(tmp_path)) == [], "a finished corpus needs no steps"


def test_an_array_of_four_resumes_after_one_task_was_killed(expected: dict[str, str], tmp_path: Path) -> None:
    work, planned = plan_steps(tmp_path)
    for step in planned:
        if step.name != "normalise":
            for share in range(4 if step.parallel else 1):
                pipeline.run_task(work, step.name, share, 4 if step.parallel else 1)
            continue
        tasks = [start_pipeline(work, step.name, "--task", str(share), "--of", "4") for share in range(4)]
        await_markers(work / "1-normalise", 1, tasks)
        tasks[2].kill()
        assert [task.wait() for task in tasks].count(0) >= 3
        before = markers(tmp_path)
        assert tasks[2].returncode == 0 or pipeline.run_task(work, step.name, 2, 4) > 0
        assert before.items() <= markers(tmp_path).items(), "a finished shard was processed again"
    assert checksums(tmp_path / "sample") == expected


@pytest.mark.parametrize("stage", ["0-read", "3-language", "*-tokenise"])
def test_a_killed_preparation_resumes(expected: dict[str, str], tmp_path: Path, stage: str) -> None:
    code = f"""
import pickle
from data_prep import pipeline
if __name__ == "__main__":
    pipeline.prepare(pickle.loads({pickle.dumps(config(tmp_path, workers=2))!r}))
"""
    (tmp_path / "killed.py").write_text(code)
    process = subprocess.Popen([sys.executable, tmp_path / "killed.py"], start_new_session=True)
    await_markers(tmp_path / ".sample.stages" / stage, 2, [process])
    helpers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(helpers, timeout=60)[1], "worker processes outlive the killed process"
    assert not (tmp_path / "sample").exists()
    before: dict[Path, int] = {}
    if stage != "0-read":  # an interrupted file is read from its start
        before = markers(tmp_path)
        assert before
    prepared = pipeline.prepare(config(tmp_path))
    assert checksums(prepared.folder) == expected
    assert before.items() <= markers(tmp_path).items(), "a finished shard was processed again"
    assert not list(tmp_path.rglob("*.tmp"))


def await_markers(folder: Path, count: int, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.parent.glob(f"{folder.name}/done-0*.json"))) < count:
        assert time.monotonic() < deadline
        assert any(process.poll() is None for process in processes), (
            "the process ended before it could be killed"
        )
        time.sleep(0.005)


def test_only_a_damaged_shard_is_rebuilt(expected: dict[str, str], tmp_path: Path) -> None:
    pipeline.prepare(config(tmp_path))
    before = markers(tmp_path)
    part = tmp_path / ".sample.stages" / "3-language" / "part-00001-000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    shutil.rmtree(tmp_path / "sample")
    assert checksums(pipeline.prepare(config(tmp_path)).folder) == expected
    changed = [path for path, when in markers(tmp_path).items() if before.get(path) != when]
    assert changed == [tmp_path / ".sample.stages" / "3-language" / "done-00001-000.json"]


def copy_letters_and_minutes(folder: Path) -> PrepareConfig:
    """Copy two files of the sample that tests can change; return the settings of their corpus."""
    sources = {}
    for name in ("letters", "minutes"):
        shutil.copy(SAMPLE / f"{name}.jsonl", folder)
        sources[name] = SourceConfig(reader="jsonl", path=str(folder / f"{name}.jsonl"), license="CC0-1.0")
    corpus = CorpusConfig(name="sample", sources=sources, tokenizer=TokenizerConfig(vocab_size=400))
    return PrepareConfig(corpus=corpus, corpora_dir=str(folder), workers=1, shard_characters=SHARD)


def test_only_a_changed_file_is_read_again(tmp_path: Path) -> None:
    settings = copy_letters_and_minutes(tmp_path)
    pipeline.prepare(settings)
    before = markers(tmp_path)
    text = "Kommunen har behandlet søknaden om bruksendring og gir tillatelse til tiltaket etter loven."
    with (tmp_path / "minutes.jsonl").open("a") as file:
        file.write(json.dumps({"id": "new", "text": text}) + "\n")
    assert pipeline.prepare(settings).skipped == []
    unchanged = {path.parent.name for path, when in markers(tmp_path).items() if before.get(path) == when}
    assert unchanged == {"0-read", "1-normalise"}, "later stages depend on all documents of a site"
    assert all(
        when == before[path]
        for path, when in markers(tmp_path).items()
        if path.match("1-normalise/done-00000-*.json")
    )


# --- disk errors and concurrent processes


def run_prepare(tmp_path: Path, workers: int = 1, **options: Any) -> subprocess.CompletedProcess[str]:
    settings = [f"corpora_dir={tmp_path}", f"workers={workers}", f"shard_characters={SHARD}"]
    arguments = [sys.executable, "-m", "finetune.cli.main", "prepare", "corpus=sample", *settings]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, **options)


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """Return the only error line of a command; its exit code must be 2."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def mount(disk: Path, options: str) -> bool:
    """Mount a file system in memory at a folder; return whether this succeeded."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_a_full_disk_is_a_one_line_error_and_publishes_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mount(disk, "size=300k"):
        pytest.skip("a small file system cannot be mounted here")
    try:
        line = error_line(run_prepare(disk, workers=2))
        assert "No space left on device; free some space" in line
        assert not (disk / "sample").exists()
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        result = run_prepare(disk)
        assert result.returncode == 0, result.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_size_limit_is_a_one_line_error(tmp_path: Path) -> None:
    """A quota has the same effect. No corpus is published."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))

    line = error_line(run_prepare(tmp_path, preexec_fn=limited))
    assert "File too large" in line
    assert not (tmp_path / "sample").exists()


def test_a_read_only_folder_is_a_one_line_error(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid():
        disk.chmod(0o555)
        assert "choose a corpora_dir that is writable" in error_line(run_prepare(disk))
        return
    if not mount(disk, "ro"):
        pytest.skip("a read-only file system cannot be mounted here")
    try:
        assert "Read-only file system; choose a corpora_dir" in error_line(run_prepare(disk))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_prepare_and_a_task_exclude_each_other(tmp_path: Path) -> None:
    work, _ = plan_steps(tmp_path)
    with pipeline._exclusive_lock(work), pytest.raises(ValueError, match="does these tasks itself"):
        pipeline.run_task(work, "read")
    with (
        pipeline._shared_lock(work),
        pytest.raises(ValueError, match="another `finetune prepare` is writing"),
    ):
        pipeline.prepare(config(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["normalise"], "step read: task 0 is not done"),
        (["clean"], "no task 0 of 1 in step 'clean'; --task must be at least 0"),
        (["read", "--task", "4", "--of", "4"], "no task 4 of 4"),
    ],
)
def test_an_invalid_task_is_a_one_line_error(tmp_path: Path, arguments: list[str], message: str) -> None:
    work, _ = plan_steps(tmp_path)
    process = start_pipeline(work, *arguments)
    _, stderr = process.communicate()
    assert process.returncode == 2
    assert message in stderr
    assert stderr.startswith("error: ")


def test_steps_in_the_wrong_order_are_rejected(tmp_path: Path) -> None:
    work, _ = plan_steps(tmp_path)
    pipeline.run_task(work, "read")
    with pytest.raises(ValueError, match="step normalise: shard 00000-000 is not done"):
        pipeline.run_task(work, "boilerplate.collect")
    pipeline.run_task(work, "normalise")
    with pytest.raises(ValueError, match=r"step boilerplate\.collect: shard 00000-000 is not done"):
        pipeline.run_task(work, "boilerplate.decide")


def test_decisions_made_before_a_change_of_settings_are_not_used(tmp_path: Path) -> None:
    settings = config(tmp_path)
    pipeline.prepare(settings)
    settings.corpus.deduplicate.similarity = 0.9
    pipeline.plan(settings)
    work = tmp_path / ".sample.stages"
    with pytest.raises(ValueError, match=r"step deduplicate\.decide is not done; run it first: python -m"):
        pipeline.run_task(work, "deduplicate")
    with pytest.raises(ValueError, match=r"step deduplicate\.collect: shard 00000-000 is not done"):
        pipeline.run_task(work, "deduplicate.decide")


def test_files_of_a_removed_source_are_deleted(tmp_path: Path) -> None:
    settings = copy_letters_and_minutes(tmp_path)
    with (tmp_path / "letters.jsonl").open("a") as file:
        file.write("nei\n")
    pipeline.prepare(settings)
    read = Preparation.load(tmp_path / ".sample.stages").stage_folder("read")
    assert len(list(read.quarantined())) == 1
    before = set((tmp_path / ".sample.stages").glob("*/*-*-*"))
    del settings.corpus.sources["minutes"]
    (tmp_path / "letters.jsonl").write_bytes((SAMPLE / "letters.jsonl").read_bytes())
    pipeline.prepare(settings)
    gone = before - set((tmp_path / ".sample.stages").glob("*/*-*-*"))
    assert {path.name.partition("-")[0] for path in gone} >= {
        "part",
        "drops",
        "done",
        "quarantine",
        "train",
        "validation",
    }
    assert not list(read.quarantined())
    for folder in (tmp_path / ".sample.stages").glob("[0-9]*"):
        assert {drop.source for drop in StageFolder(folder).drops()} <= {"letters"}
        if list(folder.glob("part-*")):
            assert {document.source for document in StageFolder(folder).documents()} == {"letters"}


def test_a_partly_written_shard_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(documents: object) -> object:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stage_files, "_to_table", full)
    with (
        pytest.raises(OSError, match="No space left"),
        stage_files.open_shard_file(tmp_path / "part.parquet") as file,
    ):
        file.add(make_document("Kort."))
    assert not list(tmp_path.iterdir())
