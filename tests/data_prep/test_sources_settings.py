"""What a corpus file may say of a source, what a record may say of itself, and how much of a source may be
broken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from tokenizers.models import BPE

from data_prep import pipeline, reading
from data_prep.config import CorpusConfig, MixtureRule, PrepareConfig, SourceConfig, from_settings
from data_prep.document import Report
from data_prep.stage_files import StageFolder
from data_prep.stage_settings import (
    BoilerplateConfig,
    DecontaminateConfig,
    LanguageConfig,
    QualityConfig,
    TokenizerConfig,
)
from tests.data_prep.documents import config as corpus_of
from tests.data_prep.reading import faults, read, texts, write_lines

TEXT = "Kommunen har behandlet søknaden og gir tillatelse etter plan- og bygningsloven."


# --- what a corpus file may say
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "settings", "words"),
    [
        ("text", {"options": {"unit": "line"}}, "options.unit: reader text has no options"),
        ("text", {"fields": {"text": "body"}}, "fields.text: unknown field of reader text; it has no fields"),
        (
            "stortinget",
            {"options": {"units": "item"}},
            "options.units: unknown option of reader stortinget; its options are unit",
        ),
        (
            "stortinget",
            {"options": {"unit": "paragraph"}},
            "options.unit is 'paragraph': choose one of item, speech",
        ),
        ("parlamint", {"options": {"unit": 3}}, "options.unit: must be a str for reader parlamint, not 3"),
        (
            "ncc",
            {"options": {"doc_types": ["parliament", "newspapers_online_nb"]}},
            "newspapers were withdrawn",
        ),
        ("ncc", {"options": {"min_confidence": "0.5"}}, "must be a float for reader ncc"),
        ("parallel", {"options": {"pairs": ["nob"]}}, "options.pairs: must be two of .*, not 'nob'"),
        ("parallel", {"options": {"form": "chat"}}, "options.form is 'chat'"),
        ("squad", {"options": {"form": "text"}}, "options.form is 'text'"),
        ("table", {"options": {"delimiter": "||"}}, "options.delimiter: must be a single character"),
        ("jsonl", {"max_broken_share": 2}, "max_broken_share is 2"),
        ("jsonl", {"limits": {"max_depth": 0}}, "limits.max_depth is 0: must be at least 1"),
        (
            "jsonl",
            {"fields": {"body": "text"}},
            "fields.body: unknown field of reader jsonl; its fields are text, id, group, language, title, date, url",
        ),
        (
            "maalfrid",
            {"fields": {"group": "site"}},
            "fields.group: unknown field of reader maalfrid; its fields are text, id, language, title, date, url",
        ),
        ("jsonl", {"language": "nb"}, "language is 'nb'; give an ISO 639-3 code"),
        ("jsonl", {"language": "nor"}, "language is 'nor'; give an ISO 639-3 code"),
        (
            "huggingface",
            {"options": {"split": "train[:1%]"}},
            r"options.split: slices such as 'train\[:1%\]' are not supported",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_is_read(
    tmp_path: Path, reader: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        read(reader, tmp_path, **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: LanguageConfig(keep=["nob", "nb"]), "language.keep names 'nb': choose among nob, nno"),
        (lambda: MixtureRule(languages=["nn"]), "mixture.languages names 'nn': choose among nob, nno"),
        (
            lambda: corpus_of(boilerplate=BoilerplateConfig(readers=["web"])),
            "boilerplate.readers names 'web': choose among jsonl",
        ),
        (
            lambda: corpus_of(quality=QualityConfig(skip_sources=["laws"])),
            "quality.skip_sources names 'laws': choose",
        ),
    ],
)
def test_a_name_that_nothing_has_is_refused(made: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made()


def test_every_corpus_file_is_one_that_its_readers_take(tmp_path: Path) -> None:
    """Each composes to the schema, and names only options that its reader has. Without data, that is all
    there is to refuse."""
    for file in sorted((Path(__file__).parents[2] / "conf" / "corpus").glob("*.yaml")):
        text = re.sub(
            r"\$\{package_dir:data_prep\}|\$\{downloads_dir\}|\?\?\?", str(tmp_path), file.read_text()
        )
        corpus = from_settings(
            CorpusConfig, OmegaConf.to_container(OmegaConf.create(text.replace("${corpora_dir}", "x")))
        )
        assert file.stem == corpus.name
        for source in corpus.sources.values():
            with pytest.raises(
                (FileNotFoundError, ValueError), match=r"contains no|does not exist|state.json"
            ):
                reading.files(source)


def test_a_place_without_files_for_a_reader_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(
        FileNotFoundError,
        match=r"contains no \.jsonl or \.json or \.ndjson file, compressed or not, and no archive",
    ):
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


def test_a_document_is_called_the_same_however_its_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (tmp_path / "docs" / folder).mkdir(parents=True)
        (tmp_path / "docs" / folder / "index.md").write_text(f"# Rettleiing\n\n{TEXT}")
    monkeypatch.chdir(tmp_path)
    documents, _ = read("markdown", Path("docs"))
    assert [document.id for document in documents] == ["a/index", "b/index"]
    absolute, _ = read("markdown", tmp_path / "docs")
    assert documents == absolute
    source = SourceConfig(reader="markdown", path="docs", license="CC0-1.0")
    tasks = [path.absolute() for path in reading.files(source)]  # as a plan writes them down
    assert list(reading.read("s", source, Report(), tasks)) == absolute


def test_a_claim_that_is_no_language_is_none(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "a.jsonl", [{"text": "En.", "language": claim} for claim in ("NN", "klingon", "x" * 500)]
    )
    documents, _ = read("jsonl", tmp_path)
    assert [document.language for document in documents] == ["nno", "", ""]


def test_a_file_whose_name_is_no_utf8_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "s\udcf8knad.jsonl").write_text('{"text": "En."}')
    with pytest.raises(ValueError, match=r"søknad\.jsonl: its name is not valid UTF-8; rename it"):
        read("jsonl", tmp_path)


# --- how much may be broken
# ------------------------------------------------------------------------------------------------


def prepare(tmp_path: Path, good: int, broken: int, **settings: Any) -> pipeline.Prepared:
    lines = [json.dumps({"text": f"{TEXT} Sak nummer {n}."}, ensure_ascii=False) for n in range(good)] + [
        "nei"
    ] * broken
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
    assert (
        prepare(tmp_path, good=30, broken=11, max_broken_share=0.5)
        .manifest.stages[0]
        .counts["quarantined_letters"]
        == 11
    )
    with pytest.raises(
        ValueError, match=r"source letters: no document can be read; a.jsonl:line 1: not JSON"
    ):
        prepare(tmp_path, good=0, broken=1, max_broken_share=1.0)


def test_a_source_that_gives_nothing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="source letters: no document can be read; its files hold no document"
    ):
        prepare(tmp_path, good=0, broken=0)


# --- what would be refused at the end is refused at the beginning
# ---------------------------------------------------------


@pytest.mark.parametrize("wrong", ["evaluation set", "tokenizer"])
def test_what_a_late_step_would_refuse_is_refused_before_anything_is_read(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": TEXT}))
    (tmp_path / "norquad.json").write_text("{")
    (tmp_path / "tokenizer.json").write_text(Tokenizer(BPE()).to_str())
    settings: dict[str, Any] = {
        "evaluation set": {
            "decontaminate": DecontaminateConfig(sets={"norquad": str(tmp_path / "norquad.json")})
        },
        "tokenizer": {"tokenizer": TokenizerConfig(path=str(tmp_path))},
    }[wrong]
    source = SourceConfig(reader="jsonl", path=str(tmp_path / "a.jsonl"), license="CC0-1.0")
    config = PrepareConfig(
        corpus=CorpusConfig(name="x", sources={"s": source}, **settings), corpora_dir=str(tmp_path / "c")
    )
    for begin in (pipeline.prepare, pipeline.plan):
        with pytest.raises(ValueError, match=r"norquad\.json cannot be read|names no eos_token"):
            begin(config)
    assert not (tmp_path / "c" / ".x.stages" / "0-read").exists()
