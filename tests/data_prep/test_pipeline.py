"""The corpus is a function of raw files and settings: not of how many processes there are, who ends first,
where shards end, or how often it was killed."""

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

import psutil
import pytest

from data_prep import pipeline, stage_files
from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig
from data_prep.plan import Preparation
from data_prep.stage_files import StageFolder
from data_prep.stage_settings import TokenizerConfig
from data_prep.workers import Workers
from tests.data_prep.documents import document
from tests.data_prep.sample import SAMPLE, SHARD, checksums, markers
from tests.data_prep.sample import sharded_sample_config as config


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checksums of the corpus that one process makes."""
    return checksums(pipeline.prepare(config(tmp_path_factory.mktemp("one"))).folder)


def steps(corpora_dir: Path) -> tuple[Path, list[pipeline.Step]]:
    return corpora_dir / ".sample.stages", pipeline.plan(config(corpora_dir))


def python(*arguments: str | Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "data_prep.pipeline", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


def has_another_cache(expected: str, number: int) -> bool:
    return os.environ.get("HF_HOME") != expected


def test_processes_have_the_environment_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the time when the server that they are forked from was started."""
    for folder in ("one", "two"):
        monkeypatch.setenv("HF_HOME", folder)
        with Workers(2, ["step"]) as workers:
            assert not workers.run("look", has_another_cache, (folder,), [1, 1])


def end_by(number: int, task: int) -> bool:
    os.kill(os.getpid(), number)
    return True


def test_a_process_that_was_killed_is_reported_with_its_signal() -> None:
    with (
        pytest.raises(ValueError, match=r"step look: a process was killed by SIGKILL; run it again"),
        Workers(2, ["look"]) as workers,
    ):
        workers.run("look", end_by, (signal.SIGKILL,), [1, 1])  # type: ignore[arg-type]


def test_the_text_is_in_many_shards(expected: dict[str, str], tmp_path: Path) -> None:
    work, planned = steps(tmp_path)
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


def test_two_processes_make_the_same_corpus(expected: dict[str, str], tmp_path: Path) -> None:
    assert checksums(pipeline.prepare(config(tmp_path, workers=2)).folder) == expected


def test_where_shards_end_leaves_no_trace(expected: dict[str, str], tmp_path: Path) -> None:
    assert checksums(pipeline.prepare(config(tmp_path, shard_characters=16_000_000)).folder) == expected


def test_the_order_in_which_tasks_end_leaves_no_trace(expected: dict[str, str], tmp_path: Path) -> None:
    work, planned = steps(tmp_path)
    for step in planned:
        shares = list(range(7 if step.parallel else 1))
        random.Random(step.name).shuffle(shares)
        for share in shares:
            pipeline.run_task(work, step.name, share, len(shares))
    assert checksums(tmp_path / "sample") == expected
    assert pipeline.plan(config(tmp_path)) == [], "a corpus that is there needs no steps"


def test_an_array_of_four_with_one_killed_midway_goes_on(expected: dict[str, str], tmp_path: Path) -> None:
    work, planned = steps(tmp_path)
    for step in planned:
        if step.name != "normalise":
            for share in range(4 if step.parallel else 1):
                pipeline.run_task(work, step.name, share, 4 if step.parallel else 1)
            continue
        tasks = [python(work, step.name, "--task", str(share), "--of", "4") for share in range(4)]
        await_markers(work / "1-normalise", 1, tasks)
        tasks[2].kill()
        assert [task.wait() for task in tasks].count(0) >= 3
        before = markers(tmp_path)
        assert tasks[2].returncode == 0 or pipeline.run_task(work, step.name, 2, 4) > 0
        assert before.items() <= markers(tmp_path).items(), "what was done was done again"
    assert checksums(tmp_path / "sample") == expected


@pytest.mark.parametrize("stage", ["0-read", "3-language", "*-tokenise"])
def test_killed_at_any_moment_it_goes_on(expected: dict[str, str], tmp_path: Path, stage: str) -> None:
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
    assert not psutil.wait_procs(helpers, timeout=60)[1], "its processes outlive it"
    assert not (tmp_path / "sample").exists()
    before = (
        markers(tmp_path) if stage != "0-read" else {}
    )  # a file that was not read to its end is read again
    assert before or stage == "0-read"
    prepared = pipeline.prepare(config(tmp_path))
    assert checksums(prepared.folder) == expected
    assert before.items() <= markers(tmp_path).items(), "what was done was done again"
    assert not list(tmp_path.rglob("*.tmp"))


def await_markers(folder: Path, count: int, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.parent.glob(f"{folder.name}/done-0*.json"))) < count:
        assert time.monotonic() < deadline
        assert any(process.poll() is None for process in processes), "ended before it could be killed"
        time.sleep(0.005)


def test_a_damaged_shard_is_made_again_and_nothing_else(expected: dict[str, str], tmp_path: Path) -> None:
    pipeline.prepare(config(tmp_path))
    before = markers(tmp_path)
    part = tmp_path / ".sample.stages" / "3-language" / "part-00001-000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    shutil.rmtree(tmp_path / "sample")
    assert checksums(pipeline.prepare(config(tmp_path)).folder) == expected
    changed = {
        path.relative_to(tmp_path / ".sample.stages")
        for path, when in markers(tmp_path).items()
        if before.get(path) != when
    }
    assert changed == {Path("3-language/done-00001-000.json")}


def letters_and_minutes(folder: Path) -> PrepareConfig:
    """A corpus of copies of two files of the sample, which a test may change."""
    sources = {}
    for name in ("letters", "minutes"):
        shutil.copy(SAMPLE / f"{name}.jsonl", folder)
        sources[name] = SourceConfig(reader="jsonl", path=str(folder / f"{name}.jsonl"), license="CC0-1.0")
    corpus = CorpusConfig(name="sample", sources=sources, tokenizer=TokenizerConfig(vocab_size=400))
    return PrepareConfig(corpus=corpus, corpora_dir=str(folder), workers=1, shard_characters=SHARD)


def test_a_changed_file_is_read_again_and_the_others_are_not(tmp_path: Path) -> None:
    prepared = letters_and_minutes(tmp_path)
    pipeline.prepare(prepared)
    before = markers(tmp_path)
    text = "Kommunen har behandlet søknaden om bruksendring og gir tillatelse til tiltaket etter loven."
    with (tmp_path / "minutes.jsonl").open("a") as file:
        file.write(json.dumps({"id": "new", "text": text}) + "\n")
    assert pipeline.prepare(prepared).skipped == []
    same = {path.parent.name for path, when in markers(tmp_path).items() if before.get(path) == when}
    assert same == {"0-read", "1-normalise"}, "boilerplate looks at all of a site"
    assert all(
        when == before[path]
        for path, when in markers(tmp_path).items()
        if path.match("1-normalise/done-00000-*.json")
    )


# --- the disk, and others in the folder
# ------------------------------------------------------------------------------------


def command(tmp_path: Path, workers: int = 1, **options: object) -> subprocess.CompletedProcess[str]:
    settings = [f"corpora_dir={tmp_path}", f"workers={workers}", f"shard_characters={SHARD}"]
    arguments = [sys.executable, "-m", "finetune.cli.main", "prepare", "corpus=sample", *settings]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def refused(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_a_full_disk_is_one_line_and_publishes_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], check=False, capture_output=True
    ).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        line = refused(command(disk, workers=2))
        assert "No space left on device; free some space" in line
        assert not (disk / "sample").exists()
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        done = command(disk)
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_that_may_not_grow_is_one_line(tmp_path: Path) -> None:
    """As a quota does it; the corpus that was there stays."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))

    line = refused(command(tmp_path, preexec_fn=limited))
    assert "File too large" in line
    assert not (tmp_path / "sample").exists()


def test_a_folder_that_may_not_be_written_to_is_one_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid():
        disk.chmod(0o555)
        assert "choose a corpora_dir that is writable" in refused(command(disk))
        return
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], check=False, capture_output=True
    ).returncode:
        pytest.skip("a disk that cannot be written to cannot be mounted here")
    try:
        assert "Read-only file system; choose a corpora_dir" in refused(command(disk))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_prepare_and_a_task_do_not_share_a_folder(tmp_path: Path) -> None:
    work, _ = steps(tmp_path)
    with pipeline._exclusive_lock(work), pytest.raises(ValueError, match="does these tasks itself"):
        pipeline.run_task(work, "read")
    with (
        pipeline._shared_lock(work),
        pytest.raises(ValueError, match="another `finetune prepare` is writing"),
    ):
        pipeline.prepare(config(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["normalise"], "step read: task 0 is not done"),
        (["clean"], "in step 'clean'; tasks count from 0, and the steps are read, normalise"),
        (["read", "--task", "4", "--of", "4"], "no task 4 of 4"),
    ],
)
def test_a_wrong_task_is_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    work, _ = steps(tmp_path)
    process = python(work, *arguments)
    _, said = process.communicate()
    assert process.returncode == 2
    assert words in said
    assert said.startswith("error: ")


def test_steps_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    work, _ = steps(tmp_path)
    pipeline.run_task(work, "read")
    with pytest.raises(ValueError, match="step normalise: shard 00000-000 is not done"):
        pipeline.run_task(work, "boilerplate.collect")
    pipeline.run_task(work, "normalise")
    with pytest.raises(ValueError, match=r"step boilerplate\.collect: shard 00000-000 is not done"):
        pipeline.run_task(work, "boilerplate.decide")


def test_what_was_decided_before_a_change_decides_nothing_after_it(tmp_path: Path) -> None:
    made = config(tmp_path)
    pipeline.prepare(made)
    made.corpus.deduplicate.similarity = 0.9
    pipeline.plan(made)
    work = tmp_path / ".sample.stages"
    with pytest.raises(ValueError, match=r"step deduplicate\.decide is not done; run it first"):
        pipeline.run_task(work, "deduplicate")
    with pytest.raises(ValueError, match=r"step deduplicate\.collect: shard 00000-000 is not done"):
        pipeline.run_task(work, "deduplicate.decide")


def test_nothing_is_left_of_a_source_that_was_taken_out(tmp_path: Path) -> None:
    prepared = letters_and_minutes(tmp_path)
    with (tmp_path / "letters.jsonl").open("a") as file:
        file.write("nei\n")
    pipeline.prepare(prepared)
    read = Preparation.load(tmp_path / ".sample.stages").stage_folder("read")
    assert len(list(read.quarantined())) == 1
    before = set((tmp_path / ".sample.stages").glob("*/*-*-*"))
    del prepared.corpus.sources["minutes"]
    (tmp_path / "letters.jsonl").write_bytes((SAMPLE / "letters.jsonl").read_bytes())
    pipeline.prepare(prepared)
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


def test_a_shard_that_cannot_be_written_whole_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(documents: object) -> object:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stage_files, "_to_table", full)
    with (
        pytest.raises(OSError, match="No space left"),
        stage_files.open_shard_file(tmp_path / "part.parquet") as file,
    ):
        file.add(document("Kort."))
    assert not list(tmp_path.iterdir())
