"""`prepare` on the bundled sample: planted defects are handled, and other text is unchanged."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep import pipeline
from data_prep.shards import Corpus
from data_prep.stage_files import StageFolder
from data_prep.stage_settings import SplitConfig
from data_prep.stages import TEXT_STAGES
from data_prep.stages.deidentify import identity_number_kind
from tests.data_prep.sample import JSONL, SAMPLE, checksums, sample_config

STAGES = [stage.name for stage in TEXT_STAGES]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Prepared:
    return pipeline.prepare(sample_config(tmp_path_factory.mktemp("corpora")))


def read_raw_records() -> list[dict[str, str]]:
    texts = [(SAMPLE / f"{name}.jsonl").read_text() for name in JSONL]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def read_stage(prepared: pipeline.Prepared, stage: str) -> dict[str, dict[str, str]]:
    """Return the documents after a stage, by id."""
    folder = prepared.folder.with_name(".sample.stages")
    parts = sorted(folder.glob(f"*-{stage}/part-*.parquet"))
    return {row["id"]: row for part in parts for row in pq.read_table(part).to_pylist()}


def test_the_sample_is_large_varied_and_in_both_standards() -> None:
    texts = Counter[str]()
    for record in read_raw_records():
        texts[record["language"]] += len(record["text"])
    for path in (SAMPLE / "consultation_replies").glob("*.txt"):
        texts[path.stem.rpartition(".")[2]] += len(path.read_bytes().decode(errors="replace"))
    assert texts["nob"] + texts["nno"] > 120_000
    assert 2.5 < texts["nob"] / texts["nno"] < 3.5


def test_only_planted_duplicates_and_languages_are_dropped(prepared: pipeline.Prepared) -> None:
    """Of two planted duplicates, one must be kept; the test accepts either."""
    expected = {
        r["id"]: f"language_{r['language']}"
        for r in read_raw_records()
        if r["language"] not in ("nob", "nno")
    }
    for path in (SAMPLE / "consultation_replies").glob("*.txt"):
        language = path.stem.rpartition(".")[2]
        if language not in ("nob", "nno"):
            expected[path.stem] = f"language_{language}"
    planted = {
        r["id"]: r["planted"]
        for r in read_raw_records()
        if r["planted"] in ("exact_duplicate", "near_duplicate")
    }
    planted["svar-05.nob"] = "exact_duplicate"
    stages = prepared.folder.with_name(".sample.stages").glob("[0-9]*")
    dropped = [drop for stage in stages for drop in StageFolder(stage).drops()]
    pairs = [
        ({drop.id, drop.detail.rpartition("/")[2]}, drop.reason)
        for drop in dropped
        if "duplicate" in drop.reason
    ]
    assert len(pairs) == len(planted)
    for name, reason in planted.items():
        assert any(name in pair and reason == found for pair, found in pairs), name
    assert {drop.id: drop.reason for drop in dropped if "duplicate" not in drop.reason} == expected
    same_form = {r["id"] for r in read_raw_records() if r["planted"] == "same_form"} | {
        "svar-07.nob",
        "svar-26.nno",
    }
    kept = read_stage(prepared, "deduplicate")
    assert same_form <= kept.keys(), "letters to different persons are different documents"


def test_planted_boilerplate_is_cut_and_nothing_else(prepared: pipeline.Prepared) -> None:
    before = read_stage(prepared, "normalise")
    after = read_stage(prepared, "boilerplate")
    changed = {name for name in before if before[name]["text"] != after[name]["text"]}
    assert changed == {r["id"] for r in read_raw_records() if r["planted"] == "boilerplate" and "url" in r}
    for name in changed:
        assert "Informasjonskapsler" not in after[name]["text"]
        assert len(after[name]["text"]) > 150


def test_written_standards_are_distinguished(prepared: pipeline.Prepared) -> None:
    gold = {r["id"]: r["language"] for r in read_raw_records()}
    gold |= {p.stem: p.stem.rpartition(".")[2] for p in (SAMPLE / "consultation_replies").glob("*.txt")}
    found = read_stage(prepared, "language")
    wrong = [name for name, row in found.items() if name in gold and row["language"] != gold[name]]
    assert len(wrong) <= len(found) * 0.02, wrong


def test_broken_encodings_are_repaired(prepared: pipeline.Prepared) -> None:
    found = read_stage(prepared, "normalise")
    for record in read_raw_records():
        if record["planted"] == "mojibake":
            assert "Ã" in record["text"]
            assert found[record["id"]]["text"] == record["text"].encode("cp1252").decode("utf-8")
        if record["planted"] == "decomposed":
            text = found[record["id"]]["text"]
            assert not set("\u00ad\u00a0\u030a\u0308") & set(text)
            assert "å" in text
    assert "æøå" not in found["svar-18.nob"]["text"]
    assert {"ø", "å"} <= set(found["svar-18.nob"]["text"]), "the letters of a Latin-1 file are kept"
    assert not {"\0", "\r", "\f", "\ufeff"} & set(found["svar-27.nno"]["text"])


def test_every_identity_number_is_masked_and_no_decoy(prepared: pipeline.Prepared) -> None:
    before = read_stage(prepared, "deduplicate")
    after = read_stage(prepared, "deidentify")
    numbers = [
        n
        for row in before.values()
        for n in re.findall(r"(?<!\d)\d{6} ?\d{5}(?!\d)", row["text"])
        if identity_number_kind(n.replace(" ", ""))
    ]
    assert len(numbers) == 21
    text = "\n".join(row["text"] for row in after.values())
    assert not any(number in text for number in numbers)
    assert text.count("[fødselsnummer]") == 21
    assert "10203040506" in text
    assert "1234.56.78903" in text


def test_a_group_is_in_one_split_and_each_source_and_standard_in_both(prepared: pipeline.Prepared) -> None:
    splits: dict[str, set[str]] = {}
    cells: set[tuple[str, str, str]] = set()
    for row in read_stage(prepared, "split").values():
        splits.setdefault(row["group"], set()).add(row["split"])
        cells.add((row["source"], row["language"], row["split"]))
    assert all(len(names) == 1 for names in splits.values())
    assert len(cells) == 5 * 2 * 2


def test_laws_keep_their_structure_and_lose_notes_and_metadata(prepared: pipeline.Prepared) -> None:
    rows = read_stage(prepared, "normalise")
    laws = {name: row["text"] for name, row in rows.items() if row["source"] == "laws"}
    text = "\n".join(laws.values())
    assert len(laws) == 12
    assert text.count("§ 1.") >= 10
    assert "Endret ved" not in text, "notes on amendments are left out"
    assert " | " in text, "the table of fees keeps its columns"
    amending = laws["LTI/lov/2025-06-20-905"]
    assert "§ 11 a" in amending, "an announcement includes the new wording"


def test_the_corpus_folder_loads_in_datasets(prepared: pipeline.Prepared) -> None:
    from datasets import load_dataset

    corpus = Corpus(prepared.folder)
    corpus.verify()
    files = sorted(str(path) for path in (prepared.folder / "train").glob("*.arrow"))
    loaded = load_dataset("arrow", data_files=files, split="train")
    assert loaded.num_rows == corpus.manifest.documents("train")
    assert sum(len(ids) for ids in loaded["input_ids"]) == corpus.manifest.tokens("train")
    assert all(ids[-1] == corpus.manifest.tokenizer.eos_token_id for ids in loaded["input_ids"])
    assert set(loaded["license"]) == {"CC0-1.0", "NLOD-2.0", "CC-BY-4.0"}


def test_a_second_prepare_does_nothing_and_another_folder_gets_the_same_bytes(
    prepared: pipeline.Prepared, tmp_path: Path
) -> None:
    before = checksums(prepared.folder)
    second = pipeline.prepare(sample_config(prepared.folder.parent))
    assert second.skipped == ["read", *STAGES, "tokenise"]
    assert checksums(prepared.folder) == before
    elsewhere = pipeline.prepare(sample_config(tmp_path))
    assert checksums(elsewhere.folder) == before
    cuts = [
        StageFolder(corpus.folder.with_name(".sample.stages") / "2-boilerplate").cuts()
        for corpus in (prepared, elsewhere)
    ]
    assert cuts[0] == cuts[1] != []


def test_a_changed_setting_reruns_from_its_stage(prepared: pipeline.Prepared, tmp_path: Path) -> None:
    first = pipeline.prepare(sample_config(tmp_path))
    changed = pipeline.prepare(sample_config(tmp_path, split=SplitConfig(validation_share=0.5, seed=2)))
    assert changed.skipped == ["read", *STAGES[: STAGES.index("split")]]
    assert changed.manifest.digest != first.manifest.digest
