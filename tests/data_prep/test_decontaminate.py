"""Evaluation sets are kept out: a planted overlap is found, and nothing else."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.containers.streams import zstd
from data_prep.document import Turn
from data_prep.evaluation_sets import texts
from data_prep.ngrams import ngram_hashes, word_hashes
from data_prep.stage_settings import DecontaminateConfig
from data_prep.stages.decontaminate import Decontaminate
from tests.data_prep.documents import config, document, through

CONTEXT = "Ordføreren åpnet den nye brua over Storelva en lørdag i mai, mens korpset spilte og barna fikk is av kommunen."
QUESTION = "Hvem åpnet den nye brua over Storelva i mai?"
OURS = "Kommunestyret vedtok budsjettet for neste år etter en lang debatt der alle partiene tok ordet minst to ganger hver."


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    path = tmp_path / "norquad.json"
    answer = {"text": "Ordføreren", "answer_start": 0}
    paragraph = {"context": CONTEXT, "qas": [{"id": 1, "question": QUESTION, "answers": [answer]}]}
    path.write_text(json.dumps({"data": [{"title": "Brua", "paragraphs": [paragraph]}]}))
    return path


def run(documents: list[object], path: Path, **settings: object) -> tuple[list[object], object]:
    rules = DecontaminateConfig(sets={"norquad": str(path)}, **settings)  # type: ignore[arg-type]
    return through(Decontaminate(), documents, config(decontaminate=rules))  # type: ignore[arg-type, return-value]


def test_a_planted_overlap_is_found_and_nothing_else(squad: Path) -> None:
    planted = " ".join(
        CONTEXT.upper().replace(",", " –").split()[2:17]
    )  # fifteen words, in other letters and signs
    twelve = " ".join(CONTEXT.split()[2:14])
    documents = [
        document(OURS, "ours"),
        document(f"{OURS} {planted} {OURS}", "planted"),
        document(f"{OURS} {twelve}. {OURS}", "twelve"),
        document(f"Vi spør: {QUESTION}", "question"),
        document("Ordføreren. Brua.", "answer"),
    ]
    kept, said = run(list(documents), squad)
    assert [d.id for d in kept] == ["ours", "twelve", "answer"]  # type: ignore[attr-defined]
    assert {d.id: d.reason for d in said.drops} == {"planted": "in_norquad", "question": "in_norquad"}  # type: ignore[attr-defined]


def test_cut_takes_the_paragraphs_and_drops_what_has_no_others(squad: Path) -> None:
    talk = [
        Turn(role="user", content=QUESTION, target=False),
        Turn(role="assistant", content="Hun.", target=True),
    ]
    documents = [
        document(f"{OURS}\n\n{CONTEXT}\n\nSlutt."),
        document(CONTEXT, "all"),
        document("", "chat", turns=talk),
    ]
    kept, said = run(list(documents), squad, action="cut")
    assert [d.text for d in kept] == [f"{OURS}\n\nSlutt."]  # type: ignore[attr-defined]
    assert said.counts == {"documents_cut_norquad": 1, "paragraphs_cut": 1}  # type: ignore[attr-defined]
    assert [d.id for d in said.drops] == ["all", "chat"]  # type: ignore[attr-defined]
    ((cut,), wanted) = said.cuts.values(), " ".join(CONTEXT.split())  # type: ignore[attr-defined]
    assert (cut.reason, cut.documents, cut.example, cut.text) == ("in_norquad", 1, "a", wanted)


def test_every_form_of_set_gives_its_texts(tmp_path: Path, squad: Path) -> None:
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
    expected = [CONTEXT, "question", "answer", QUESTION, "ja", CONTEXT, "b", "en", "to", "tre", "fire"]
    assert list(texts(str(folder))) == [*expected, *["fem", "seks", "sju"] * 2]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_cell_of_a_set_is_one_text_whatever_parts_the_columns(tmp_path: Path, separator: str) -> None:
    """Cut at its commas, each piece would have fewer words than are looked for."""
    cell = "Når, på hvilken måte, og av hvem, skal vedtaket, som er enkelt, påklages?"
    quoted = f'"{cell}"' if separator == "," else cell
    (tmp_path / "a.csv").write_text(f"nr{separator}tekst\n1{separator}{quoted}\n")
    assert cell in list(texts(str(tmp_path)))
    kept, _ = run([document(f"{OURS} {cell}")], tmp_path / "a.csv")
    assert not kept


@pytest.mark.parametrize("body", ["{", "[" * 100_000, "\udcff"])
def test_a_set_that_cannot_be_read_is_one_line_and_never_ignored(body: str, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_bytes(body.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"broken\.json cannot be read"):
        run([document(OURS)], tmp_path / "broken.json")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Decontaminate().settings(
            config(decontaminate=DecontaminateConfig(sets={"x": str(tmp_path / "none")}))
        )


def test_ngram_hashes_are_the_same_for_the_same_words_in_the_same_order_only() -> None:
    numbers = word_hashes(["a", "b", "c", "d", "a", "b", "c", "e", "c", "b", "a"])
    hashes = ngram_hashes(numbers, 3)
    assert len(hashes) == 9
    assert hashes[0] == hashes[4]
    assert len(np.unique(hashes)) == 8
    assert len(ngram_hashes(numbers, 12)) == 0


def test_no_law_is_in_norquad_and_its_own_contexts_are(real_corpora: Path) -> None:
    path = real_corpora / "norquad" / "data_evaluation_all_validation_dataset_flattened.json"
    contexts = sorted({text for text in texts(str(path)) if len(text) > 500})[:50]
    kept, said = run([document(OURS), *(document(text, str(i)) for i, text in enumerate(contexts))], path)
    assert [d.text for d in kept] == [OURS]  # type: ignore[attr-defined]
    assert len(said.drops) == len(contexts) > 10  # type: ignore[attr-defined]
