"""Looking at the prepared sample: traces, drops, tokens, lengths, the card, and `finetune inspect`."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import unicodedata
import zipfile
from pathlib import Path

import pytest

from data_prep import pipeline
from data_prep.card import CARD
from data_prep.config import CorpusConfig, PrepareConfig, SourceConfig
from data_prep.inspection import Inspection, bin_lengths, draw_lengths
from data_prep.stage_files import StageFolder
from data_prep.stage_settings import DeduplicateConfig, QualityConfig, TokenizerConfig
from data_prep.stages.deidentify import identity_number_kind
from data_prep.text_search import compile_pattern
from data_prep.user_error import UserError
from finetune.cli import main as cli
from tests.data_prep.sample import sample_config


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
    assert {(stage, cut.source) for stage, cut in seen.cuts()} == {
        ("boilerplate", "guidance"),
        ("boilerplate", "letters"),
    }
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
    assert sum(count for _, _, count in bin_lengths(lengths["laws"])) == len(lengths["laws"])
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        assert draw_lengths(lengths, tmp_path / f"lengths{suffix}").read_bytes().startswith(magic)


def test_the_card_adds_up_and_holds_no_text(folder: Path, seen: Inspection) -> None:
    card = (folder / CARD).read_text()
    manifest = seen.corpus.manifest
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in card.splitlines()
        if line.startswith("| ")
    ]
    tokens = {
        row[0]: int(row[3].replace(",", "")) for row in cells if row[0] in manifest.sources and len(row) == 6
    }
    assert sum(tokens.values()) == manifest.tokens("train") + manifest.tokens("validation")
    years = [
        row
        for row in cells
        if len(row) == 4 and row[0] in manifest.sources and re.fullmatch(r"\d{4}|unknown", row[1])
    ]
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
    assert (
        said(folder.name, "--corpora-dir", str(folder.parent), "veileder-032").count("dropped: language_eng")
        == 1
    )
    assert "targets" in said(str(folder), "brev-045", "--tokens")
    assert "exact_duplicate (same text as" in said(str(folder), "--dropped", "exact_duplicate")
    listed = said(str(folder), "--cut", "--sample", "2")
    assert "boilerplate: guidance: frame of guidance storvika.example.no" in listed
    assert "4 documents, as guidance/veileder-027: Hopp til hovedinnhold" not in listed, (
        "only two lines of each site are asked for"
    )
    assert "4 documents, as guidance/veileder-027: Hopp til hovedinnhold" in said(
        str(folder), "--cut", "guidance"
    )
    assert "letters/" not in said(str(folder), "--cut", "guidance")
    assert said(str(folder), "--cut", "none such").startswith("2 error: nothing was cut for 'none such'")
    assert "█" in said(str(folder), "--lengths")
    assert str(tmp_path / "a.png") in said(str(folder), "--picture", str(tmp_path / "a.png"))
    assert said(str(folder), "none-such").startswith("2 error: no document 'none-such'")
    assert said(str(tmp_path / "nothing")).startswith("2 error: no corpus in")
    assert said(str(folder), "--picture", str(tmp_path / "a.xyz")).startswith("2 error: ")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose source holds records that cannot be read: in a plain file, a packed one and an
    archive."""
    folder = tmp_path_factory.mktemp("broken")
    raw = folder / "raw"
    raw.mkdir()
    texts = [f"Kommunen svarer på sak {n} om Ærfuglvegen. " * 8 for n in range(30)]
    letters = [json.dumps({"id": f"d{n}", "text": text}) for n, text in enumerate(texts)]
    (raw / "a.jsonl").write_text(
        "\n".join([*letters[:10], '{"text": "avbrutt Øksfjord', *letters[10:]]) + "\n"
    )
    (raw / "b.jsonl.gz").write_bytes(gzip.compress(b'{"id": "gz", "text": 5}\n'))
    with zipfile.ZipFile(raw / "c.zip", "w") as archive:
        archive.writestr("in/d.jsonl", '{"id": "zip", "tekst": "feil felt"}\n')
    source = SourceConfig(
        reader="jsonl", path=str(raw), license="CC0-1.0", language="nob", max_broken_share=0.5
    )
    corpus = CorpusConfig(
        name="broken",
        sources={"s": source},
        quality=QualityConfig(min_words=3),
        deduplicate=DeduplicateConfig(near=False),
        tokenizer=TokenizerConfig(vocab_size=300),
    )
    return pipeline.prepare(
        PrepareConfig(corpus=corpus, corpora_dir=str(folder / "corpora"), workers=1)
    ).folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main(["inspect", *arguments])
    captured = capsys.readouterr()
    return f"{end.value.code} {captured.out}{captured.err}"


def test_dropped_shows_the_quarantine_with_place_error_and_raw_text(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = printed(capsys, str(broken), "--dropped", "quarantined")
    assert "s: a.jsonl:line 11: quarantined: not JSON" in shown
    assert '{"text": "avbrutt Øksfjord\n' in shown
    assert 's: b.jsonl.gz:line 1: quarantined: no string under \'text\'\n{"id": "gz", "text": 5}\n' in shown
    assert (
        's: c.zip:in/d.jsonl:line 1: quarantined: no string under \'text\'\n{"id": "zip", "tekst": "feil felt"}\n'
        in shown
    )
    assert shown.endswith("3 records are quarantined, 3 shown (--sample N): s 3\n")
    every = printed(capsys, str(broken), "--dropped", "--sample", "1")
    assert every.endswith("3 records are quarantined, 1 shown (--sample N): s 3\n")
    assert "the reasons are quarantined" in printed(capsys, str(broken), "--dropped", "none such")
    assert "quarantined" not in printed(capsys, str(broken), "--find", "sak 3 om")


def test_find_follows_a_text_through_the_stages(
    folder: Path, seen: Inspection, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = printed(capsys, str(folder), "--find", "HOPP til hovedinnhold")
    assert "guidance/veileder-027: read to normalise, cut or changed by boilerplate\n" in cut
    assert "Hopp til hovedinnhold" in cut
    dropped = next(drop for drop, _, _ in seen.dropped("exact_duplicate", 1))
    text = next(
        d.text for d in seen.stages[0].documents() if (d.source, d.id) == (dropped.source, dropped.id)
    )
    found = seen.search(text[:200], number=5)
    fates = {hit.id: hit.drop and hit.drop[1].reason for hit in found.hits}
    assert fates[dropped.id] == "exact_duplicate"
    assert None in fates.values(), "the one that was kept in its place"


def test_find_is_bounded_counts_all_and_knows_our_letters(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("ÆRFUGLVEGEN", "om  ærfuglvegen"):
        shown = printed(capsys, str(broken), "--find", text, "--sample", "2")
        assert shown.count("read to mixture, kept") == 2
        assert f"30 documents contain '{text}', 2 shown (--sample N)" in shown
    assert compile_pattern("på").search(unicodedata.normalize("NFC", "PA\u030a vei")), (
        "a ring that is a letter of its own"
    )
    assert "1 quarantined record\n" in printed(capsys, str(broken), "--find", "øksfjord")
    assert printed(capsys, str(broken), "--find", "none such").startswith(
        "2 error: --find: no document contains 'none such'"
    )
    assert printed(capsys, str(broken), "--find", " ").startswith("2 error: --find: the text is empty")


def test_find_reads_the_tokens_where_the_stages_are_gone(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = broken.with_name(".broken.stages")
    stages.rename(stages.with_name("elsewhere"))
    try:
        shown = printed(capsys, str(broken), "--find", "sak 7 OM ærfuglvegen")
        assert re.search(r"s/d7: tokenise \((train|validation)\), kept", shown)
        assert "1 document contains" in shown
    finally:
        stages.with_name("elsewhere").rename(stages)


def test_a_damaged_file_of_a_stage_is_one_line_that_names_it(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / folder.name)
    shutil.copytree(folder.with_name(f".{folder.name}.stages"), tmp_path / f".{folder.name}.stages")
    damaged = max((tmp_path / f".{folder.name}.stages").glob("*-quality/drops-*.parquet"))
    damaged.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=rf"{damaged.name} is damaged .*; restore it, or remove its folder"):
        list(StageFolder(damaged.parent).drops())
