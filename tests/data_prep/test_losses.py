"""Text that preparation drops or cuts is counted by stage, source and reason.

The manifest, the corpus card and the console show the counts, and warnings about sources.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep import pipeline
from data_prep.card import CARD
from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig
from data_prep.document import Report
from data_prep.shards import Loss, Manifest, SourceInfo, StageInfo, TokenizerInfo, _digest
from data_prep.stage_files import sum_losses
from data_prep.stage_settings import QualityConfig, SplitConfig, TokenizerConfig
from finetune.cli.corpus_tables import print_corpus
from tests.data_prep.documents import make_document

SENTENCES = [
    "Kommunen skal sørge for at alle som bor der får hjelp når de trenger det.",
    "Fristen for å klage på et vedtak er tre uker fra den dagen det kom fram.",
    "Den som har fått avslag kan be om innsyn i sakens dokumenter.",
    "Departementet gir forskrift om gebyr, og om hvem som skal betale det.",
]

NO_TOKENIZER = TokenizerInfo(sha256="", vocab_size=0, eos_token_id=0)


def make_text(number: int) -> str:
    return "\n\n".join(
        [f"Vedtak {number} om sak {7 * number}", *SENTENCES[number % 4 :], *SENTENCES[: number % 4]]
    )


def write_source(folder: Path, name: str, records: list[dict[str, Any]]) -> SourceConfig:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return SourceConfig(reader="jsonl", path=str(path), license="CC0-1.0", language="nob")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Prepared:
    """Return a prepared corpus of three sources. From each, another share of the text is dropped.

    The source `letters` has repeated ids, a copy and a short document. All documents of `notes`
    belong to one group, so they are in the same split. No document of `minutes` is dropped.
    """
    folder = tmp_path_factory.mktemp("raw")
    letters = [
        {"id": str(n % 15), "text": make_text(n), "group": str(n), "date": f"{2000 + n}"} for n in range(20)
    ]
    letters += [
        {"id": "copy", "text": make_text(3).upper(), "group": "3", "date": "1990"},
        {"id": "short", "text": "Ring oss", "group": "short"},
    ]
    notes = [{"id": str(n), "text": make_text(100 + n), "group": "all"} for n in range(5)]
    minutes = [{"id": str(n), "text": make_text(200 + n), "group": str(n)} for n in range(40)]
    sources = {
        name: write_source(folder, name, records)
        for name, records in (("letters", letters), ("notes", notes), ("minutes", minutes))
    }
    corpus = CorpusConfig(
        name="losses",
        sources=sources,
        split=SplitConfig(validation_share=0.2),
        quality=QualityConfig(min_words=3),
        tokenizer=TokenizerConfig(vocab_size=300),
    )
    return pipeline.prepare(PrepareConfig(corpus=corpus, corpora_dir=str(folder / "corpora"), workers=1))


def test_drops_and_cuts_are_summed_by_source_and_reason() -> None:
    report = Report()
    report.drop(make_document("Ti tegn her", "a"), "too_short")
    report.drop(make_document("Kort", "b"), "too_short")
    report.cut(make_document("En lang tekst", "c"), "frame", ["En lang"], 8, "of a.example")
    report.cut(make_document("En lang tekst", "d", source="laws"), "frame", ["tekst"], 5, "of b.example")
    report.cut(make_document("En lang tekst", "e"), "frame", ["En  lang"], 9, "of a.example")
    assert sum_losses(report) == [
        Loss(source="laws", reason="frame", cut=1, characters=5),
        Loss(source="letters", reason="frame", cut=2, characters=17),
        Loss(source="letters", reason="too_short", documents=2, characters=15),
    ]


def test_each_stage_records_its_losses_by_source(prepared: pipeline.Prepared) -> None:
    manifest = Manifest.read(prepared.folder)
    by_reason = {
        (stage.name, loss.source, loss.reason): loss for stage in manifest.stages for loss in stage.losses
    }
    assert by_reason["quality", "letters", "too_short"] == Loss(
        source="letters", reason="too_short", documents=1, characters=8
    )
    copy = by_reason["deduplicate", "letters", "exact_duplicate"]
    assert (copy.documents, copy.characters) == (1, len(make_text(3)))
    assert {source for _, source, _ in by_reason} == {"letters"}
    read = {
        name: (source.documents_read, source.characters_read) for name, source in manifest.sources.items()
    }
    assert read["letters"] == (
        22,
        sum(len(make_text(n)) for n in range(20)) + len(make_text(3)) + len("Ring oss"),
    )
    assert read["notes"] == (5, sum(len(make_text(100 + n)) for n in range(5)))


def test_card_and_console_show_shares_of_the_text(
    prepared: pipeline.Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    total = prepared.manifest.sources["letters"].characters_read
    card = (prepared.folder / CARD).read_text()
    length = len(make_text(3))
    row = f"| deduplicate | exact_duplicate | letters | 1 | 4.55% | 0 | {length} | {length / total:.2%} |"
    assert row in card
    assert f"| quality | too_short | letters | 1 | 4.55% | 0 | 8 | {8 / total:.2%} |" in card
    print_corpus(prepared)
    console = capsys.readouterr().err
    assert f"exact_duplicate {len(make_text(3)) / total:.1%}, too_short {8 / total:.1%}" in console


def test_repeated_ids_and_sources_without_validation_are_warned_about(
    prepared: pipeline.Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    warnings = prepared.manifest.warnings()
    assert len(warnings) == 2
    assert warnings[0].startswith(
        "source letters: 5 documents have an id that an earlier document has; all are kept"
    )
    assert warnings[1].startswith(
        "source notes: no validation documents, because all its documents are one group"
    )
    assert warnings[1].endswith(
        "set corpus.sources.notes.fields.group to a finer field, or raise "
        "corpus.split.validation_share (now 0.2)"
    )
    assert sum(prepared.manifest.sources["letters"].documents.values()) == 20, (
        "no document is dropped for its id"
    )
    card = (prepared.folder / CARD).read_text()
    print_corpus(prepared)
    console = capsys.readouterr().err
    assert all(line in card and line in console for line in warnings)
    years = [line.split(" | ")[1:3] for line in card.splitlines() if line.startswith("| letters | 20")]
    assert years[-20:] == [[str(2000 + n), "1"] for n in range(20)], (
        "documents with repeated ids keep their own dates"
    )


def test_a_source_whose_groups_all_fell_in_training_gets_its_own_warning() -> None:
    sources = {"laws": SourceInfo(license="CC0-1.0", attribution="", sha256="", documents={"train/nob": 3})}
    manifest = Manifest(
        name="x",
        fingerprint="",
        mask_column=None,
        unigram_loss=None,
        tokenizer=NO_TOKENIZER,
        splits={},
        sources=sources,
        stages=[],
    )
    assert manifest.warnings() == [], "without a held-out share no validation documents are expected"
    split = StageInfo(
        name="split",
        version=1,
        settings={"validation_share": 0.1},
        documents_in=3,
        documents_out=3,
        dropped={},
        counts={},
    )
    manifest.stages.append(split)
    (line,) = manifest.warnings()
    assert "by chance none of its groups is in the validation split; set another corpus.split.seed" in line


def test_a_manifest_without_losses_is_read_and_keeps_its_digest(
    prepared: pipeline.Prepared, tmp_path: Path
) -> None:
    body = json.loads((prepared.folder / "manifest.json").read_text())
    del body["digest"]
    for stage in body["stages"]:
        stage.pop("losses", None)
    for source in body["sources"].values():
        for name in ("documents_read", "characters_read", "repeated_ids", "single_group"):
            source.pop(name, None)
    (tmp_path / "manifest.json").write_text(json.dumps({**body, "digest": _digest(body)}))
    manifest = Manifest.read(tmp_path)
    assert manifest.digest == _digest(body)
    assert [stage.losses for stage in manifest.stages if stage.losses] == []
