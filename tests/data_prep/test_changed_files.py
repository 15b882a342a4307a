"""A task fails if its file changes after the tasks were planned and before the file has been read.

Otherwise documents would be recorded under the checksum of another version of the file.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_prep import pipeline, reading
from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig
from data_prep.document import Document
from data_prep.execute import FileChanged
from data_prep.stage_settings import TokenizerConfig

TEXT = "Kommunen har behandlet søknaden og gir tillatelse etter plan- og bygningsloven."
LINES = [json.dumps({"text": f"{TEXT} Sak nummer {n}."}, ensure_ascii=False) + "\n" for n in range(400)]
MESSAGE = (
    r"source letters: file .* was changed while it was read, or since its checksum was taken; "
    r"run `finetune prepare` again"
)


def make_corpus(tmp_path: Path, packed: bool = False) -> tuple[PrepareConfig, Path]:
    """Write a source of two files; return its corpus's settings, and the file that tests change."""
    folder = tmp_path / "raw"
    folder.mkdir()
    file = folder / "b.jsonl"
    content = "".join(LINES).encode()
    if packed:
        file = folder / "b.jsonl.gz"
        content = gzip.compress(content)
    file.write_bytes(content)
    (folder / "a.jsonl").write_text(json.dumps({"text": f"{TEXT} Ein annan."}))
    source = SourceConfig(reader="jsonl", path=str(folder), license="CC0-1.0")
    corpus = CorpusConfig(name="x", sources={"letters": source}, tokenizer=TokenizerConfig(vocab_size=400))
    corpora_dir = str(tmp_path / "corpora")
    config = PrepareConfig(corpus=corpus, corpora_dir=corpora_dir, workers=1, shard_characters=5_000)
    return config, file


def replace_file(file: Path) -> None:
    file.with_name("new").write_bytes(file.read_bytes().replace(b"tillatelse", b"avslag nok"))
    os.replace(file.with_name("new"), file)


def rewrite_file(file: Path) -> None:
    """Change bytes of a file, but keep its size and modification time."""
    stat = file.stat()
    file.write_bytes(file.read_bytes().replace(b"Sak nummer 7", b"Sak nummer 8"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "grows": lambda file: file.open("a").write(LINES[0]),
    "is cut": lambda file: os.truncate(file, file.stat().st_size // 4),
    "is emptied": lambda file: os.truncate(file, 0),
    "is replaced": replace_file,
    "is rewritten": rewrite_file,
    "vanishes": Path.unlink,
    "becomes another kind": lambda file: file.write_bytes(b"%PDF-1.7 " + b"x" * 1000),
}


def run_read_step(config: PrepareConfig) -> None:
    work = Path(config.corpora_dir) / ".x.stages"
    pipeline.run_task(work, "read")


def change_in_the_middle(monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], Any], file: Path) -> None:
    """Arrange that a file changes after 200 of its documents have been read."""
    read = reading.read

    def interrupted(*arguments: Any) -> Iterator[Document]:
        for number, document in enumerate(read(*arguments)):
            if number == 200:
                change(file)
            yield document

    monkeypatch.setattr(reading, "read", interrupted)


def list_read_stage(config: PrepareConfig) -> list[str]:
    return sorted(path.name for path in (Path(config.corpora_dir) / ".x.stages" / "0-read").glob("*"))


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_after_the_plan_fails_its_task(tmp_path: Path, change: str) -> None:
    config, file = make_corpus(tmp_path)
    pipeline.plan(config)
    CHANGES[change](file)
    with pytest.raises(ValueError, match=MESSAGE) as raised:
        run_read_step(config)
    assert "\n" not in str(raised.value)
    assert not list_read_stage(config), "nothing of an unfinished task is kept"


@pytest.mark.parametrize(
    ("change", "packed"),
    [
        (change, packed)
        for change in CHANGES
        for packed in (False, True)
        if not (packed and change == "is rewritten")
    ],
)
def test_a_file_that_changes_while_it_is_read_fails_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, packed: bool
) -> None:
    config, file = make_corpus(tmp_path, packed)
    change_in_the_middle(monkeypatch, CHANGES[change], file)
    with pytest.raises(ValueError, match=MESSAGE):
        pipeline.prepare(config)
    assert not list_read_stage(config)
    assert not (tmp_path / "corpora" / "x").exists()


def test_an_arrow_file_truncated_while_it_is_read_does_not_crash_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = make_corpus(tmp_path)
    folder = tmp_path / "saved"
    folder.mkdir()
    rows = pa.table({"text": [f"{TEXT * 20} {n}" for n in range(2000)]})
    with pa.ipc.new_stream(folder / "a.arrow", rows.schema) as stream:
        stream.write_table(rows, max_chunksize=100)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    config.corpus.sources["letters"] = SourceConfig(reader="huggingface", path=str(folder), license="CC0-1.0")
    change_in_the_middle(monkeypatch, CHANGES["is cut"], folder / "a.arrow")
    with pytest.raises(ValueError, match=MESSAGE):
        pipeline.prepare(config)


def test_a_changed_file_is_read_whole_by_the_next_prepare(tmp_path: Path) -> None:
    config, file = make_corpus(tmp_path)
    pipeline.plan(config)
    os.truncate(file, file.stat().st_size // 4)
    with pytest.raises(ValueError, match=MESSAGE):
        run_read_step(config)
    file.write_text("".join(LINES[:300]))
    counts = pipeline.prepare(config).manifest.stages[0].counts
    assert counts["read_letters"] == 301


def test_the_error_survives_pickling_as_one_line() -> None:
    error = pickle.loads(pickle.dumps(FileChanged("letters", "a.jsonl")))
    assert re.match(MESSAGE, str(error))


def test_an_error_in_an_unchanged_file_is_reported_as_it_is(tmp_path: Path) -> None:
    config, file = make_corpus(tmp_path)
    file.rename(file.with_suffix(".csv"))
    config.corpus.sources["letters"].reader = "table"
    with pytest.raises(ValueError, match="has no column 'text'"):
        pipeline.prepare(config)
