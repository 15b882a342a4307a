"""Settings of sources, metadata in records, and the limit on broken records."""

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
from tests.data_prep.documents import make_config as corpus_of
from tests.data_prep.reading import broken_places, read, texts, write_lines

TEXT = "Kommunen har behandlet søknaden og gir tillatelse etter plan- og bygningsloven."


# --- settings of a corpus file


@pytest.mark.parametrize(
    ("reader", "settings", "message"),
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
        (
            "parlamint",
            {"options": {"unit": 3}},
            "options.unit: must be a str for reader parlamint, not 3",
        ),
        (
            "ncc",
            {"options": {"doc_types": ["parliament", "newspapers_online_nb"]}},
            "newspapers were withdrawn",
        ),
        ("ncc", {"options": {"min_confidence": "0.5"}}, "must be a float for reader ncc"),
        ("parallel", {"options": {"pairs": ["nob"]}}, "options.pairs: each must be two of .*, not 'nob'"),
        ("parallel", {"options": {"form": "chat"}}, "options.form is 'chat'"),
        ("squad", {"options": {"form": "text"}}, "options.form is 'text'"),
        ("table", {"options": {"delimiter": "||"}}, "options.delimiter: must be a single character"),
        ("jsonl", {"max_broken_share": 2}, "max_broken_share is 2"),
        ("jsonl", {"limits": {"max_depth": 0}}, "limits.max_depth is 0: must be at least 1"),
        (
            "jsonl",
            {"fields": {"body": "text"}},
            "fields.body: unknown field of reader jsonl; "
            "its fields are text, id, group, language, title, date, url",
        ),
        (
            "maalfrid",
            {"fields": {"group": "site"}},
            "fields.group: unknown field of reader maalfrid; "
            "its fields are text, id, language, title, date, url",
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
def test_an_invalid_setting_is_a_one_line_error_before_reading(
    tmp_path: Path, reader: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read(reader, tmp_path, **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LanguageConfig(keep=["nob", "nb"]),
            "language.keep names 'nb': choose among nob, nno",
        ),
        (
            lambda: MixtureRule(languages=["nn"]),
            "mixture.languages names 'nn': choose among nob, nno",
        ),
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
def test_an_unknown_name_is_rejected(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_every_bundled_corpus_file_is_valid(tmp_path: Path) -> None:
    """All settings and options are valid, so the only error is that the data are missing."""
    for file in sorted((Path(__file__).parents[2] / "conf" / "corpus").glob("*.yaml")):
        placeholders = r"\$\{package_dir:data_prep\}|\$\{downloads_dir\}|\?\?\?"
        text = re.sub(placeholders, str(tmp_path), file.read_text()).replace("${corpora_dir}", "x")
        corpus = from_settings(CorpusConfig, OmegaConf.to_container(OmegaConf.create(text)))
        assert file.stem == corpus.name
        for source in corpus.sources.values():
            with pytest.raises(
                (FileNotFoundError, ValueError), match=r"contains no|does not exist|state.json"
            ):
                reading.files(source)


def test_a_path_without_files_for_its_reader_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(
        FileNotFoundError,
        match=r"contains no \.jsonl or \.json or \.ndjson file, compressed or not, and no archive",
    ):
        read("jsonl", tmp_path)


@pytest.mark.parametrize("key", ["id", "group", "title", "date"])
def test_metadata_of_a_record_must_not_be_a_list(tmp_path: Path, key: str) -> None:
    deep: Any = "x"
    for _ in range(700):
        deep = [deep]
    write_lines(tmp_path / "a.jsonl", [{"text": "En.", key: deep}, {"text": "To.", key: 2019}])
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["To."]
    assert broken_places(report) == [("a.jsonl:line 1", f"'{key}' must be a string or number, not a list")]


def test_an_unterminated_table_row_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nEn.\n" + "x" * 3_000_000 + "\nTo.\n")
    documents, report = read("table", tmp_path, limits={"max_record_bytes": 2**20})
    assert texts(documents) == ["En.", "To."]
    assert [place for place, _ in broken_places(report)] == ["a.csv:line 3"]


def test_ids_do_not_depend_on_how_the_folder_is_named(
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
    tasks = [path.absolute() for path in reading.files(source)]  # a plan records absolute paths
    assert list(reading.read("s", source, Report(), tasks)) == absolute


def test_an_invalid_language_claim_is_ignored(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "a.jsonl",
        [{"text": "En.", "language": claim} for claim in ("NN", "klingon", "x" * 500)],
    )
    documents, _ = read("jsonl", tmp_path)
    assert [document.language for document in documents] == ["nno", "", ""]


def test_a_file_name_that_is_not_utf8_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "s\udcf8knad.jsonl").write_text('{"text": "En."}')
    with pytest.raises(ValueError, match=r"søknad\.jsonl: its name is not valid UTF-8; rename it"):
        read("jsonl", tmp_path)


# --- the share of broken records


def prepare(tmp_path: Path, good: int, broken: int, **settings: Any) -> pipeline.Prepared:
    records = [{"text": f"{TEXT} Sak nummer {n}."} for n in range(good)]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, *["nei"] * broken]))
    source = SourceConfig(reader="jsonl", path=str(tmp_path / "a.jsonl"), license="CC0-1.0", **settings)
    corpus = CorpusConfig(name="x", sources={"letters": source}, tokenizer=TokenizerConfig(vocab_size=400))
    return pipeline.prepare(PrepareConfig(corpus=corpus, corpora_dir=str(tmp_path / "corpora"), workers=1))


def test_broken_records_up_to_max_broken_share_are_quarantined(tmp_path: Path) -> None:
    counts = prepare(tmp_path, good=30, broken=10).manifest.stages[0].counts
    assert (counts["read_letters"], counts["quarantined_letters"]) == (30, 10)
    stage = StageFolder(tmp_path / "corpora" / ".x.stages" / "0-read")
    places = [(broken.source, broken.file, broken.at) for broken in stage.quarantined()]
    assert places == [("letters", "a.jsonl", f"line {n}") for n in range(31, 41)]


def test_broken_records_over_max_broken_share_stop_the_stage(tmp_path: Path) -> None:
    line = (
        r"source letters: 11 of 41 records cannot be read, more than max_broken_share 0.01 .* "
        r"a.jsonl:line 31: not JSON"
    )
    with pytest.raises(ValueError, match=line):
        prepare(tmp_path, good=30, broken=11)
    assert not (tmp_path / "corpora" / "x").exists()
    prepared = prepare(tmp_path, good=30, broken=11, max_broken_share=0.5)
    assert prepared.manifest.stages[0].counts["quarantined_letters"] == 11
    with pytest.raises(
        ValueError, match=r"source letters: no document can be read; a.jsonl:line 1: not JSON"
    ):
        prepare(tmp_path, good=0, broken=1, max_broken_share=1.0)


def test_a_source_without_documents_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="source letters: no document can be read; its files hold no document"
    ):
        prepare(tmp_path, good=0, broken=0)


# --- checks before reading


@pytest.mark.parametrize("wrong", ["evaluation set", "tokenizer"])
def test_settings_of_late_steps_are_checked_before_reading(tmp_path: Path, wrong: str) -> None:
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
    corpus = CorpusConfig(name="x", sources={"s": source}, **settings)
    config = PrepareConfig(corpus=corpus, corpora_dir=str(tmp_path / "c"))
    for start in (pipeline.prepare, pipeline.plan):
        with pytest.raises(ValueError, match=r"norquad\.json cannot be read|names no eos_token"):
            start(config)
    assert not (tmp_path / "c" / ".x.stages" / "0-read").exists()
