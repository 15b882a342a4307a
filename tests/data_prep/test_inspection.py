"""`finetune inspect` on the sample: traces, drops, tokens, lengths and the corpus card."""

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
def inspection(folder: Path) -> Inspection:
    return Inspection(folder)


def run_inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the exit code and all output of `finetune inspect` as one string."""
    with pytest.raises(SystemExit) as end:
        cli.main(["inspect", *arguments])
    captured = capsys.readouterr()
    return f"{end.value.code} {captured.out}{captured.err}"


def test_a_document_is_followed_through_every_stage(inspection: Inspection) -> None:
    ((source, name),) = inspection.find("brev-037")
    views = {view.stage: view for view in inspection.trace(source, name)}
    assert list(views) == ["read", *(stage.name for stage in inspection.stages[1:])]
    assert views["read"].text.startswith("Til beboerne i Fyrlyktveien")
    assert views["normalise"].outcome == "unchanged"
    assert any(line.startswith("-Åpningstider: ") for line in views["boilerplate"].diff)
    assert views["split"].fields["split"][1] in ("train", "validation")


def test_a_document_is_found_by_the_ids_of_its_copies_and_rows(inspection: Inspection) -> None:
    ((source, name),) = inspection.find("brev-037")
    for id in (f"{name}@3", f"{name}#2", f"{name}@3#2"):
        assert inspection.find(id) == inspection.find(f"{source}/{id}") == [(source, name)]
        assert inspection.trace(source, id) == inspection.trace(source, name)


def test_cut_lines_are_listed_with_counts_and_an_example(folder: Path, inspection: Inspection) -> None:
    cuts = inspection.cuts("guidance storvika.example.no")
    menu = next(cut for _, cut in cuts if cut.text.startswith("Hjem | Tjenester"))
    assert (menu.source, menu.documents, menu.example) == ("guidance", 4, "veileder-027")
    assert {(stage, cut.source) for stage, cut in inspection.cuts()} == {
        ("boilerplate", "guidance"),
        ("boilerplate", "letters"),
    }
    info = next(stage for stage in inspection.corpus.manifest.stages if stage.name == "boilerplate")
    assert sum(cut.documents for _, cut in inspection.cuts("boilerplate")) == info.counts["lines_cut"]
    card = (folder / CARD).read_text()
    assert f"lines_cut {info.counts['lines_cut']}" in card
    assert not [cut.text for _, cut in inspection.cuts() if cut.text in card]
    with pytest.raises(ValueError, match="nothing was cut for 'minutes'"):
        inspection.cuts("minutes")


def test_drops_are_shown_with_stage_and_reason(inspection: Inspection) -> None:
    (last,) = inspection.trace("guidance", "veileder-032")[-1:]
    assert (last.stage, last.outcome) == ("language", "dropped")
    assert last.drop is not None
    assert last.drop.reason == "language_eng"
    for drop, stage, text in inspection.dropped("exact_duplicate", 9):
        assert (drop.reason, stage) == ("exact_duplicate", "deduplicate")
        assert len(text) > 100
    with pytest.raises(ValueError, match="choose one of exact_duplicate, language_dan"):
        inspection.dropped("none such", 1)


def test_pieces_of_a_row_join_to_its_text_and_all_but_the_first_are_targets(inspection: Inspection) -> None:
    for source, name in inspection.sample(5):
        (view,) = inspection.tokens(source, name)
        whole = "".join(text for text, _, _ in view.pieces)
        documents = inspection.stages[-1].documents()
        text = next(d.text for d in documents if (d.source, d.id) == (source, name))
        assert whole.replace("</s>", "") == text
        assert view.targets == view.tokens - 1
    assert inspection.sample(5) == inspection.sample(5) != inspection.sample(5, seed=1)


def test_lengths_are_counted_and_plotted(inspection: Inspection, tmp_path: Path) -> None:
    lengths = inspection.lengths()
    manifest = inspection.corpus.manifest
    num_documents = manifest.documents("train") + manifest.documents("validation")
    assert sum(len(values) for values in lengths.values()) == num_documents
    assert sum(count for _, _, count in bin_lengths(lengths["laws"])) == len(lengths["laws"])
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        assert draw_lengths(lengths, tmp_path / f"lengths{suffix}").read_bytes().startswith(magic)


def test_the_sums_of_the_card_are_right_and_it_holds_no_text(folder: Path, inspection: Inspection) -> None:
    card = (folder / CARD).read_text()
    manifest = inspection.corpus.manifest
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [row for row in rows if row[0] in manifest.sources]
    # the card's table of sources has six columns, and its table of years has four
    tokens = {row[0]: int(row[3].replace(",", "")) for row in rows if len(row) == 6}
    assert sum(tokens.values()) == manifest.tokens("train") + manifest.tokens("validation")
    years = [row for row in rows if len(row) == 4 and re.fullmatch(r"\d{4}|unknown", row[1])]
    assert sum(int(row[3].replace(",", "")) for row in years) == sum(tokens.values())
    assert "| language | language_dan | 2 |" in card
    assert "| deduplicate | exact_duplicate | 5 |" in card
    documents = list(inspection.stages[0].documents())
    assert not [d.id for d in documents if d.title and d.title in card]
    assert not [n for n in re.findall(r"\d{6} ?\d{5}", card) if identity_number_kind(n.replace(" ", ""))]
    sentences = {s for d in documents for s in re.split(r"[.\n]", d.text) if len(s) > 30}
    assert not [s for s in sentences if s in card]


def test_finetune_inspect_prints_every_view(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def inspect(*arguments: str) -> str:
        return run_inspect(capsys, str(folder), *arguments)

    assert "deduplicate" in inspect()
    trace = run_inspect(capsys, folder.name, "--corpora-dir", str(folder.parent), "veileder-032")
    assert trace.count("dropped: language_eng") == 1
    assert "targets" in inspect("brev-045", "--tokens")
    assert "exact_duplicate (same text as" in inspect("--dropped", "exact_duplicate")
    first_lines = inspect("--cut", "--sample", "2")
    assert "boilerplate: guidance: frame of guidance storvika.example.no" in first_lines
    third_line = "4 documents, as guidance/veileder-027: Hopp til hovedinnhold"
    assert third_line not in first_lines, "--sample 2 shows two lines of each site"
    assert third_line in inspect("--cut", "guidance")
    assert "letters/" not in inspect("--cut", "guidance")
    assert inspect("--cut", "none such").startswith("2 error: nothing was cut for 'none such'")
    assert "█" in inspect("--lengths")
    assert str(tmp_path / "a.png") in inspect("--picture", str(tmp_path / "a.png"))
    assert "no document with the id 'none-such' was read" in inspect("none-such")
    assert run_inspect(capsys, str(tmp_path / "nothing")).startswith("2 error: no corpus in")
    assert inspect("--picture", str(tmp_path / "a.xyz")).startswith("2 error: ")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a corpus with unreadable records in a plain file, a gzip file and an archive."""
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


def test_dropped_shows_the_quarantine_with_place_error_and_raw_text(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run_inspect(capsys, str(broken), "--dropped", "quarantined")
    assert "s: a.jsonl:line 11: quarantined: not JSON" in output
    assert '{"text": "avbrutt Øksfjord\n' in output
    assert 's: b.jsonl.gz:line 1: quarantined: no string under \'text\'\n{"id": "gz", "text": 5}\n' in output
    assert (
        "s: c.zip:in/d.jsonl:line 1: quarantined: no string under 'text'\n"
        '{"id": "zip", "tekst": "feil felt"}\n'
    ) in output
    assert output.endswith("3 records are quarantined, 3 shown (--sample N): s 3\n")
    output = run_inspect(capsys, str(broken), "--dropped", "--sample", "1")
    assert output.endswith("3 records are quarantined, 1 shown (--sample N): s 3\n")
    assert "choose one of quarantined" in run_inspect(capsys, str(broken), "--dropped", "none such")
    assert "quarantined" not in run_inspect(capsys, str(broken), "--find", "sak 3 om")


def test_find_follows_a_text_through_the_stages(
    folder: Path, inspection: Inspection, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = run_inspect(capsys, str(folder), "--find", "HOPP til hovedinnhold")
    assert "guidance/veileder-027: read to normalise, cut or changed by boilerplate\n" in cut
    assert "Hopp til hovedinnhold" in cut
    dropped = next(drop for drop, _, _ in inspection.dropped("exact_duplicate", 1))
    documents = inspection.stages[0].documents()
    text = next(d.text for d in documents if (d.source, d.id) == (dropped.source, dropped.id))
    found = inspection.search(text[:200], number=5)
    fates = {hit.id: hit.drop and hit.drop[1].reason for hit in found.hits}
    assert fates[dropped.id] == "exact_duplicate"
    assert None in fates.values(), "one copy was kept"


def test_find_is_limited_counts_all_and_folds_norwegian_letters(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("ÆRFUGLVEGEN", "om  ærfuglvegen"):
        output = run_inspect(capsys, str(broken), "--find", text, "--sample", "2")
        assert output.count("read to mixture, kept") == 2
        assert f"30 documents contain '{text}', 2 shown (--sample N)" in output
    composed = unicodedata.normalize("NFC", "PA\u030a vei")
    assert compile_pattern("på").search(composed), (
        "å written as a and a combining ring is found once composed"
    )
    assert "1 quarantined record\n" in run_inspect(capsys, str(broken), "--find", "øksfjord")
    assert run_inspect(capsys, str(broken), "--find", "none such").startswith(
        "2 error: --find: no document contains 'none such'"
    )
    assert run_inspect(capsys, str(broken), "--find", " ").startswith("2 error: --find: the text is empty")


def test_find_reads_the_tokens_where_the_stages_are_missing(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = broken.with_name(".broken.stages")
    stages.rename(stages.with_name("elsewhere"))
    try:
        output = run_inspect(capsys, str(broken), "--find", "sak 7 OM ærfuglvegen")
        assert re.search(r"s/d7: tokenise \((train|validation)\), kept", output)
        assert "1 document contains" in output
    finally:
        stages.with_name("elsewhere").rename(stages)


def test_a_damaged_stage_file_is_a_one_line_error(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / folder.name)
    shutil.copytree(folder.with_name(f".{folder.name}.stages"), tmp_path / f".{folder.name}.stages")
    damaged = max((tmp_path / f".{folder.name}.stages").glob("*-quality/drops-*.parquet"))
    damaged.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=rf"{damaged.name} is damaged .*; restore it, or remove its folder"):
        list(StageFolder(damaged.parent).drops())
