"""Looking at the prepared sample: traces, drops, tokens, lengths, the card, and `finetune inspect`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data_prep import pipeline
from data_prep.card import CARD
from data_prep.inspection import Inspection, bins, draw_lengths
from data_prep.stages.deidentify import identity_number_kind
from finetune import cli
from tests.data_prep.test_sample import sample_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(sample_config(tmp_path_factory.mktemp("corpora"))).folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> Inspection:
    return Inspection(folder)


def test_a_document_is_followed_through_every_stage(seen: Inspection) -> None:
    ((source, name),) = seen.find("brev-037")
    views = {view.stage: view for view in seen.trace(source, name)}
    assert list(views) == ["read", *(stage.name for stage in seen.stages[1:])]
    assert views["read"].text.startswith("Til beboerne i Fyrlyktveien")
    assert views["normalise"].outcome == "unchanged"
    assert any(line.startswith("-Åpningstider: ") for line in views["boilerplate"].diff)
    assert views["split"].fields["split"][1] in ("train", "validation")


def test_a_document_is_found_by_the_ids_of_its_repetitions_and_rows(seen: Inspection) -> None:
    ((source, name),) = seen.find("brev-037")
    for id in (f"{name}@3", f"{name}#2", f"{name}@3#2"):
        assert seen.find(id) == seen.find(f"{source}/{id}") == [(source, name)]
        assert seen.trace(source, id) == seen.trace(source, name)


def test_lines_that_were_cut_are_listed_with_counts_and_an_example(folder: Path, seen: Inspection) -> None:
    cuts = seen.cuts("guidance storvika.example.no")
    menu = next(cut for _, cut in cuts if cut.text.startswith("Hjem | Tjenester"))
    assert (menu.source, menu.documents, menu.example) == ("guidance", 4, "veileder-027")
    assert {(stage, cut.source) for stage, cut in seen.cuts()} == {("boilerplate", "guidance"), ("boilerplate", "letters")}
    info = next(stage for stage in seen.corpus.manifest.stages if stage.name == "boilerplate")
    assert sum(cut.documents for _, cut in seen.cuts("boilerplate")) == info.counts["lines_cut"]
    card = (folder / CARD).read_text()
    assert f"lines_cut {info.counts['lines_cut']}" in card
    assert not [cut.text for _, cut in seen.cuts() if cut.text in card]
    with pytest.raises(ValueError, match="nothing was cut for 'minutes'"):
        seen.cuts("minutes")


def test_what_was_dropped_says_where_and_why(seen: Inspection) -> None:
    (last,) = seen.trace("guidance", "veileder-032")[-1:]
    assert (last.stage, last.outcome) == ("language", "dropped")
    assert last.drop is not None
    assert last.drop.reason == "language_eng"
    for drop, stage, text in seen.dropped("exact_duplicate", 9):
        assert (drop.reason, stage) == ("exact_duplicate", "deduplicate")
        assert len(text) > 100
    with pytest.raises(ValueError, match="the reasons are exact_duplicate, language_dan"):
        seen.dropped("none such", 1)


def test_the_pieces_of_a_row_are_its_text_and_all_but_the_first_token_are_targets(seen: Inspection) -> None:
    for source, name in seen.sample(5):
        (view,) = seen.tokens(source, name)
        whole = "".join(text for text, _, _ in view.pieces)
        assert whole.replace("</s>", "") == next(
            d.text for d in seen.stages[-1].documents() if (d.source, d.id) == (source, name)
        )
        assert view.targets == view.tokens - 1
    assert seen.sample(5) == seen.sample(5) != seen.sample(5, seed=1)


def test_lengths_are_counted_and_drawn(seen: Inspection, tmp_path: Path) -> None:
    lengths = seen.lengths()
    assert sum(len(values) for values in lengths.values()) == sum(
        seen.corpus.manifest.documents(s) for s in ("train", "validation")
    )
    assert sum(count for _, _, count in bins(lengths["laws"])) == len(lengths["laws"])
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        assert draw_lengths(lengths, tmp_path / f"lengths{suffix}").read_bytes().startswith(magic)


def test_the_card_adds_up_and_holds_no_text(folder: Path, seen: Inspection) -> None:
    card = (folder / CARD).read_text()
    manifest = seen.corpus.manifest
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("| ")]
    tokens = {row[0]: int(row[3].replace(",", "")) for row in cells if row[0] in manifest.sources and len(row) == 6}
    assert sum(tokens.values()) == manifest.tokens("train") + manifest.tokens("validation")
    years = [row for row in cells if len(row) == 4 and row[0] in manifest.sources and re.fullmatch(r"\d{4}|unknown", row[1])]
    assert sum(int(row[3].replace(",", "")) for row in years) == sum(tokens.values())
    assert "| language | language_dan | 2 |" in card
    assert "| deduplicate | exact_duplicate | 5 |" in card
    documents = list(seen.stages[0].documents())
    assert not [d.id for d in documents if d.title and d.title in card]
    assert not [n for n in re.findall(r"\d{6} ?\d{5}", card) if identity_number_kind(n.replace(" ", ""))]
    sentences = {s for d in documents for s in re.split(r"[.\n]", d.text) if len(s) > 30}
    assert not [s for s in sentences if s in card]


def test_the_verb_shows_it(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            cli.main(["inspect", *arguments])
        captured = capsys.readouterr()
        return f"{end.value.code} {captured.out}{captured.err}"

    assert "deduplicate" in said(str(folder))
    assert said(folder.name, "--corpora-dir", str(folder.parent), "veileder-032").count("dropped: language_eng") == 1
    assert "targets" in said(str(folder), "brev-045", "--tokens")
    assert "exact_duplicate (same text as" in said(str(folder), "--dropped", "exact_duplicate")
    listed = said(str(folder), "--cut", "--sample", "2")
    assert "boilerplate: guidance: frame of guidance storvika.example.no" in listed
    assert "4 documents, as guidance/veileder-027: Hopp til hovedinnhold" not in listed, (
        "only two lines of each site are asked for"
    )
    assert "4 documents, as guidance/veileder-027: Hopp til hovedinnhold" in said(str(folder), "--cut", "guidance")
    assert "letters/" not in said(str(folder), "--cut", "guidance")
    assert said(str(folder), "--cut", "none such").startswith("2 error: nothing was cut for 'none such'")
    assert "█" in said(str(folder), "--lengths")
    assert str(tmp_path / "a.png") in said(str(folder), "--picture", str(tmp_path / "a.png"))
    assert said(str(folder), "none-such").startswith("2 error: no document 'none-such'")
    assert said(str(tmp_path / "nothing")).startswith("2 error: no corpus in")
    assert said(str(folder), "--picture", str(tmp_path / "a.xyz")).startswith("2 error: ")
