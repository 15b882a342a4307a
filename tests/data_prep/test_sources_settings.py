"""What a corpus file may say of a source, what a record may say of itself, and how much of a source may be broken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from data_prep import pipeline, reading
from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig, TokenizerConfig, from_settings
from data_prep.stage_files import StageFolder
from tests.data_prep.reading import faults, read, texts, write_lines

TEXT = "Kommunen har behandlet søknaden og gir tillatelse etter plan- og bygningsloven."


# --- what a corpus file may say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "settings", "words"),
    [
        ("text", {"options": {"unit": "line"}}, "options.unit: reader text has no options"),
        ("text", {"fields": {"text": "body"}}, "fields.text: reader text reads no named fields"),
        ("stortinget", {"options": {"units": "item"}}, "options.units: reader stortinget has unit"),
        ("stortinget", {"options": {"unit": "paragraph"}}, "options.unit is 'paragraph': choose one of item, speech"),
        ("parlamint", {"options": {"unit": 3}}, "options.unit is 3: reader parlamint takes a str there"),
        ("ncc", {"options": {"doc_types": ["parliament", "newspapers_online_nb"]}}, "newspapers were withdrawn"),
        ("ncc", {"options": {"min_confidence": "0.5"}}, "takes a float there"),
        ("parallel", {"options": {"pairs": ["nob"]}}, "options.pairs names 'nob'"),
        ("parallel", {"options": {"form": "chat"}}, "options.form is 'chat'"),
        ("squad", {"options": {"form": "text"}}, "options.form is 'text'"),
        ("table", {"options": {"delimiter": "||"}}, "give one character"),
        ("jsonl", {"max_broken_share": 2}, "max_broken_share is 2"),
        ("jsonl", {"limits": {"max_depth": 0}}, "limits.max_depth is 0: give at least 1"),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_is_read(
    tmp_path: Path, reader: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        read(reader, tmp_path, **settings)
    assert "\n" not in str(raised.value)


def test_every_corpus_file_is_one_that_its_readers_take(tmp_path: Path) -> None:
    """Each composes to the schema, and names only options that its reader has. Without data, that is all there is to refuse."""
    for file in sorted((Path(__file__).parents[2] / "conf" / "corpus").glob("*.yaml")):
        text = re.sub(r"\$\{package_dir:data_prep\}|\$\{downloads_dir\}|\?\?\?", str(tmp_path), file.read_text())
        corpus = from_settings(CorpusConfig, OmegaConf.to_container(OmegaConf.create(text.replace("${corpora_dir}", "x"))))
        assert file.stem == corpus.name
        for source in corpus.sources.values():
            with pytest.raises((FileNotFoundError, ValueError), match=r"holds no|does not exist|state.json"):
                reading.files(source)


def test_a_place_without_files_for_a_reader_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"holds no \.jsonl or \.json or \.ndjson file, packed or not, and no archive"):
        read("jsonl", tmp_path)


@pytest.mark.parametrize("key", ["id", "group", "title", "date"])
def test_what_a_record_says_of_itself_is_no_list(tmp_path: Path, key: str) -> None:
    deep: Any = "x"
    for _ in range(700):
        deep = [deep]
    write_lines(tmp_path / "a.jsonl", [{"text": "En.", key: deep}, {"text": "To.", key: 2019}])
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["To."]
    assert faults(report) == [("a.jsonl:line 1", f"'{key}' is a list, not a string or a number")]


def test_a_row_of_a_table_that_never_ends_is_stepped_over(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nEn.\n" + "x" * 3_000_000 + "\nTo.\n")
    documents, report = read("table", tmp_path, limits={"max_record_bytes": 2**20})
    assert texts(documents) == ["En.", "To."]
    assert [place for place, _ in faults(report)] == ["a.csv:line 3"]


# --- how much may be broken ------------------------------------------------------------------------------------------------


def prepare(tmp_path: Path, good: int, broken: int, **settings: Any) -> pipeline.Prepared:
    lines = [json.dumps({"text": f"{TEXT} Sak nummer {n}."}, ensure_ascii=False) for n in range(good)] + ["nei"] * broken
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = SourceConfig(reader="jsonl", path=str(tmp_path / "a.jsonl"), license="CC0-1.0", **settings)
    corpus = CorpusConfig(name="x", sources={"letters": source}, tokenizer=TokenizerConfig(vocab_size=400))
    return pipeline.prepare(PrepareConfig(corpus=corpus, corpora_dir=str(tmp_path / "corpora"), workers=1))


def test_broken_records_up_to_the_share_are_quarantined_and_said(tmp_path: Path) -> None:
    counts = prepare(tmp_path, good=30, broken=10).manifest.stages[0].counts
    assert (counts["read_letters"], counts["quarantined_letters"]) == (30, 10)
    stage = StageFolder(tmp_path / "corpora" / ".x.stages" / "0-read")
    places = [(broken.source, broken.file, broken.at) for broken in stage.quarantined()]
    assert places == [("letters", "a.jsonl", f"line {n}") for n in range(31, 41)]


def test_more_broken_records_stop_the_stage_in_one_line(tmp_path: Path) -> None:
    line = r"source letters: 11 of 41 records cannot be read, more than max_broken_share 0.01 .* a.jsonl:line 31: not JSON"
    with pytest.raises(ValueError, match=line):
        prepare(tmp_path, good=30, broken=11)
    assert not (tmp_path / "corpora" / "x").exists()
    assert prepare(tmp_path, good=30, broken=11, max_broken_share=0.5).manifest.stages[0].counts["quarantined_letters"] == 11
    with pytest.raises(ValueError, match=r"source letters: nothing of it can be read; a.jsonl:line 1: not JSON"):
        prepare(tmp_path, good=0, broken=1, max_broken_share=1.0)
