"""Decontamination: planted overlaps with evaluation sets are found, and nothing else."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.containers.streams import zstd
from data_prep.document import Document, Report, Turn
from data_prep.evaluation_sets import texts
from data_prep.ngrams import ngram_hashes, word_hashes
from data_prep.stage_settings import DecontaminateConfig
from data_prep.stages.decontaminate import Decontaminate
from tests.data_prep.documents import make_config, make_document, run_shard_stage

CONTEXT = (
    "Ordføreren åpnet den nye brua over Storelva en lørdag i mai, mens korpset spilte og barna "
    "fikk is av kommunen."
)
QUESTION = "Hvem åpnet den nye brua over Storelva i mai?"
OWN_TEXT = (
    "Kommunestyret vedtok budsjettet for neste år etter en lang debatt der alle partiene tok "
    "ordet minst to ganger hver."
)


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    path = tmp_path / "norquad.json"
    answer = {"text": "Ordføreren", "answer_start": 0}
    paragraph = {"context": CONTEXT, "qas": [{"id": 1, "question": QUESTION, "answers": [answer]}]}
    path.write_text(json.dumps({"data": [{"title": "Brua", "paragraphs": [paragraph]}]}))
    return path


def run_decontaminate(
    documents: list[Document], path: Path, **settings: Any
) -> tuple[list[Document], Report]:
    rules = DecontaminateConfig(sets={"norquad": str(path)}, **settings)
    return run_shard_stage(Decontaminate(), documents, make_config(decontaminate=rules))


def test_planted_overlaps_are_found_and_nothing_else(squad: Path) -> None:
    # 15 words of the evaluation set's context, in capitals and with other punctuation
    planted = " ".join(CONTEXT.upper().replace(",", " –").split()[2:17])
    twelve = " ".join(CONTEXT.split()[2:14])
    documents = [
        make_document(OWN_TEXT, "ours"),
        make_document(f"{OWN_TEXT} {planted} {OWN_TEXT}", "planted"),
        make_document(f"{OWN_TEXT} {twelve}. {OWN_TEXT}", "twelve"),
        make_document(f"Vi spør: {QUESTION}", "question"),
        make_document("Ordføreren. Brua.", "answer"),
    ]
    kept, report = run_decontaminate(documents, squad)
    assert [d.id for d in kept] == ["ours", "twelve", "answer"]
    assert {d.id: d.reason for d in report.drops} == {
        "planted": "in_norquad",
        "question": "in_norquad",
    }


def test_action_cut_removes_only_matching_paragraphs(squad: Path) -> None:
    turns = [
        Turn(role="user", content=QUESTION, target=False),
        Turn(role="assistant", content="Hun.", target=True),
    ]
    documents = [
        make_document(f"{OWN_TEXT}\n\n{CONTEXT}\n\nSlutt."),
        make_document(CONTEXT, "all"),
        make_document("", "chat", turns=turns),
    ]
    kept, report = run_decontaminate(documents, squad, action="cut")
    assert [d.text for d in kept] == [f"{OWN_TEXT}\n\nSlutt."]
    assert report.counts == {"documents_cut_norquad": 1, "paragraphs_cut": 1}
    assert [d.id for d in report.drops] == ["all", "chat"]
    (cut,) = report.cuts.values()
    text = " ".join(CONTEXT.split())
    assert (cut.reason, cut.documents, cut.example, cut.text) == ("in_norquad", 1, "a", text)


def test_every_format_of_evaluation_set_yields_its_texts(tmp_path: Path, squad: Path) -> None:
    assert {CONTEXT, QUESTION, "Ordføreren"} <= set(texts(str(squad)))
    folder = tmp_path / "sets"
    folder.mkdir()
    (folder / "a.txt").write_text(CONTEXT)
    (folder / "b.csv").write_text(f'question,answer\n"{QUESTION}",ja\n')
    with gzip.open(folder / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps({"choices": {"text": [CONTEXT, "b"]}}) + "\n\n")
    (folder / "d.json").write_text(f"{json.dumps({'q': 'en'})}\n{json.dumps({'q': 'to'})}\n")
    (folder / "e.json.zst").write_bytes(zstd.compress(json.dumps(["tre"]).encode()))
    with zipfile.ZipFile(folder / "f.zip", "w") as archive:
        archive.writestr("set/test.jsonl", '"fire"\n')
    table = pa.table({"question": ["fem"], "choices": [["seks", "sju"]]})
    pq.write_table(table, folder / "g.parquet")
    with pa.ipc.new_stream(str(folder / "h.arrow"), table.schema) as stream:
        stream.write_table(table)
    expected = [
        CONTEXT,
        "question",
        "answer",
        QUESTION,
        "ja",
        CONTEXT,
        "b",
        "en",
        "to",
        "tre",
        "fire",
    ]
    assert list(texts(str(folder))) == [*expected, *["fem", "seks", "sju"] * 2]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_cell_of_a_table_is_one_text_whatever_the_delimiter(tmp_path: Path, separator: str) -> None:
    """If the cell were split at its commas, each piece would have fewer words than an n-gram."""
    cell = "Når, på hvilken måte, og av hvem, skal vedtaket, som er enkelt, påklages?"
    quoted = f'"{cell}"' if separator == "," else cell
    (tmp_path / "a.csv").write_text(f"nr{separator}tekst\n1{separator}{quoted}\n")
    assert cell in list(texts(str(tmp_path)))
    kept, _ = run_decontaminate([make_document(f"{OWN_TEXT} {cell}")], tmp_path / "a.csv")
    assert not kept


@pytest.mark.parametrize("body", ["{", "[" * 100_000, "\udcff"])
def test_an_unreadable_evaluation_set_is_a_one_line_error(body: str, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_bytes(body.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"broken\.json cannot be read"):
        run_decontaminate([make_document(OWN_TEXT)], tmp_path / "broken.json")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Decontaminate().settings(
            make_config(decontaminate=DecontaminateConfig(sets={"x": str(tmp_path / "none")}))
        )


def test_ngram_hashes_are_equal_only_for_equal_word_sequences() -> None:
    numbers = word_hashes(["a", "b", "c", "d", "a", "b", "c", "e", "c", "b", "a"])
    hashes = ngram_hashes(numbers, 3)
    assert len(hashes) == 9
    assert hashes[0] == hashes[4]
    assert len(np.unique(hashes)) == 8
    assert len(ngram_hashes(numbers, 12)) == 0


def test_norquads_own_contexts_are_found_and_our_text_is_not(real_corpora: Path) -> None:
    path = real_corpora / "norquad" / "data_evaluation_all_validation_dataset_flattened.json"
    contexts = sorted({text for text in texts(str(path)) if len(text) > 500})[:50]
    kept, report = run_decontaminate(
        [
            make_document(OWN_TEXT),
            *(make_document(text, str(i)) for i, text in enumerate(contexts)),
        ],
        path,
    )
    assert [d.text for d in kept] == [OWN_TEXT]
    assert len(report.drops) == len(contexts) > 10
