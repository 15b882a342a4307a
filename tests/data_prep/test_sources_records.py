"""The readers of records: JSON lines and arrays, NCC, Målfrid, Hugging Face, treebanks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data_prep import reading
from data_prep.config import SourceConfig
from data_prep.document import Report
from tests.data_prep.reading import broken_places, corrupt_each_value, read, texts, write_lines
from tests.data_prep.source_texts import SQUAD_CONTEXT

TEXT = "Kommunen har behandlet søknaden og gir tillatelse etter plan- og bygningsloven."


# --- JSON lines and arrays


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("ikke json", "not JSON: Expecting value at character 0"),
        ('{"text": "åpen', "not JSON: Invalid control character at at character 14"),
        ("[1, 2]", "must be a JSON object, but has type list"),
        ('{"id": "uten tekst"}', "no string under 'text'"),
        ('{"text": 5}', "no string under 'text'"),
        ('{"text": null}', "no string under 'text'"),
        ("[" * 100_000, "JSON that Python cannot parse"),
        ('{"text": ' * 5000 + "1" + "}" * 5000, "JSON that Python cannot parse"),
        (f'{{"text": "x", "n": {"9" * 5000}}}', "JSON that Python cannot parse"),
    ],
)
def test_a_malformed_line_is_quarantined_with_its_place_and_others_are_read(
    tmp_path: Path, line: str, error: str
) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "Først."}}\n{line}\n\n{{"text": "Sist."}}\n')
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["Først.", "Sist."]
    ((place, found),) = broken_places(report)
    assert place == "a.jsonl:line 2"
    assert found.startswith(error)
    assert "\n" not in found


def test_an_array_is_streamed_element_by_element(tmp_path: Path) -> None:
    """Each element is longer than one read of the file; its strings contain brackets and quotes."""
    records = [{"id": n, "text": f'{n}: [{{"}}], "\\" ' + "æøå" * 5000} for n in range(40)]
    for name, indent in (("tett.json", None), ("luftig.json", 2)):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf \n" + json.dumps(records, ensure_ascii=False, indent=indent).encode())
        documents, report = read("jsonl", path)
        assert texts(documents) == [record["text"] for record in records]
        assert not report.broken


@pytest.mark.parametrize("rest", ['{"text": }]', '{"text": "åpen', "", "{]", '[[{"text": "x"}'])
def test_elements_before_an_error_in_an_array_are_kept_and_it_is_reported(tmp_path: Path, rest: str) -> None:
    (tmp_path / "a.json").write_text(f'[{{"text": "En."}},\n{{"text": "To."}},\n{rest}')
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["En.", "To."]
    ((place, error),) = broken_places(report)
    assert place == "a.json:record 3"
    assert "the rest of the file cannot be read" in error
    assert report.counts["broken_off"] == 1


@pytest.mark.parametrize("between", ["", "\n", " \n" * 50_000])
def test_concatenated_arrays_are_read(tmp_path: Path, between: str) -> None:
    arrays = [[{"text": f"{n}: " + "å" * 30_000}, {"text": f"{n}."}] for n in range(3)]
    (tmp_path / "a.json").write_text(
        between.join([json.dumps(array, ensure_ascii=False) for array in [*arrays, []]]) + between
    )
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == [record["text"] for array in arrays for record in array]
    assert not report.broken


@pytest.mark.parametrize("rest", ["]", "x" * 100_000])
def test_stray_text_after_an_array_is_reported(tmp_path: Path, rest: str) -> None:
    (tmp_path / "a.json").write_text(f'[{{"text": "En."}}]\n{rest}')
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["En."]
    ((place, error),) = broken_places(report)
    assert place == "a.json:record 2"
    assert error.startswith("an array is followed by ")
    assert report.counts["broken_off"] == 1


@pytest.mark.parametrize(("rest", "num_faults"), [('{"text": "To."}', 2), (',[{"text": "To."}]', 0)])
def test_records_after_an_array_are_read(tmp_path: Path, rest: str, num_faults: int) -> None:
    (tmp_path / "a.json").write_text(f'[{{"text": "En."}}]\n{rest}')
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["En.", "To."]
    assert len(report.broken) == num_faults


def test_an_array_element_over_max_record_bytes_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "Liten."}, {"text": "x" * 3_000_000}]))
    documents, report = read("jsonl", tmp_path, limits={"max_record_bytes": 2**20})
    assert texts(documents) == ["Liten."]
    ((place, error),) = broken_places(report)
    assert place == "a.json:record 2"
    assert error.startswith("larger than limits.max_record_bytes")


@pytest.mark.parametrize(
    ("encoding", "count"),
    [
        ("utf-8", ""),
        ("utf-8-sig", ""),
        ("cp1252", "decoded_as_cp1252"),
        ("utf-16", ""),
        ("utf-16-le", ""),
        ("utf-16-be", ""),
        ("utf-32", ""),
    ],
)
@pytest.mark.parametrize("reader", ["text", "jsonl", "array", "table"])
def test_encodings_are_detected_from_the_bytes(
    tmp_path: Path, encoding: str, count: str, reader: str
) -> None:
    sentence = "Søkjaren på Ås får «løyve» – innan 14 dagar."
    content = {
        "text": sentence,
        "jsonl": json.dumps({"text": sentence}, ensure_ascii=False) + "\n",
        "array": json.dumps([{"text": sentence}], ensure_ascii=False),
        "table": f'id;text\n1;"{sentence}"\n',
    }[reader]
    ending = {"text": "txt", "jsonl": "jsonl", "array": "json", "table": "csv"}[reader]
    (tmp_path / f"a.{ending}").write_bytes(content.encode(encoding))
    options = {"options": {"delimiter": ";"}} if reader == "table" else {}
    documents, report = read("jsonl" if reader == "array" else reader, tmp_path, **options)
    assert texts(documents) == [sentence]
    assert not report.broken
    if count and reader != "array":
        assert report.counts[count] == 1


def test_stray_bytes_and_nuls_lose_no_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(
        "Vedtak på ".encode() + "Ås".encode("cp1252") + b" er\0 fattet. " + b"x" * 100
    )
    documents, report = read("text", tmp_path)
    assert documents[0].text.startswith("Vedtak på Ås er fattet.")
    assert report.counts["nul_bytes_removed"] == 1


# --- NCC


def ncc(doc_type: str, number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"{number:07d}",
        "doc_type": doc_type,
        "publish_year": 2019,
        "lang_fasttext": "nn",
        "lang_fasttext_conf": "0.641",
        "text": f"{TEXT} ({doc_type} {number})",
        **changes,
    }


def test_ncc_yields_the_public_sector_and_no_withdrawn_newspaper(tmp_path: Path) -> None:
    records = [
        ncc("maalfrid_regjeringen"),
        ncc("parliament", lang_fasttext="no"),
        ncc("government_nb", lang_fasttext="no"),
        ncc("publicreports", lang_fasttext="da"),
        ncc("lovdata_cd_rundskriv_lovavdeling_2005"),
        ncc("newspapers_online_nb"),
        ncc("newspapers_online_nn", 2),
        ncc("newspaper_ocr"),
        ncc("books"),
        ncc("wikipedia_download_nbo"),
    ]
    with gzip.open(tmp_path / "train-shard-0001-of-0002.json.gz", "wt") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    documents, report = read("ncc", tmp_path)
    assert [d.id.partition("/")[0] for d in documents] == [record["doc_type"] for record in records[:5]]
    assert [d.language for d in documents] == ["nno", "nob", "nob", "dan", "nno"]
    assert documents[0].date == "2019"
    assert documents[0].text == records[0]["text"]
    assert (report.counts["withdrawn_newspapers"], report.counts["other_doc_types"]) == (2, 3)
    assert not report.broken
    everything, report = read("ncc", tmp_path, options={"doc_types": ["*"]})
    assert not any("newspapers_online" in d.id for d in everything)
    assert report.counts["withdrawn_newspapers"] == 2


def test_ncc_confidence_is_parsed_from_a_string(tmp_path: Path) -> None:
    confidences = ["0.95", "0.1", 0.5, "1.00", None, "høy", [0.9]]
    write_lines(
        tmp_path / "a.json",
        [ncc("parliament", n, lang_fasttext_conf=c) for n, c in enumerate(confidences)],
    )
    documents, report = read("ncc", tmp_path, options={"min_confidence": 0.5})
    assert [d.id for d in documents] == [f"parliament/{n:07d}" for n in (0, 2, 3, 4)]
    assert report.counts["below_min_confidence"] == 1
    assert [place for place, _ in broken_places(report)] == ["a.json:line 6", "a.json:line 7"]


# --- Målfrid


def test_maalfrid_has_language_and_url_and_groups_by_folder(tmp_path: Path) -> None:
    pages = [
        {"lang": "nob", "url": "https://www.eksempeltilsynet.no/tilsyn/a.html", "fulltext": TEXT},
        {
            "lang": "nno",
            "url": "https://eksempeltilsynet.no/tilsyn/b.pdf",
            "text": "Kommunen har handsama søknaden.",
        },
        {
            "lang": "sme",
            "url": "https://eksempeltilsynet.no/",
            "content": "Gielda lea meannudan ohcama.",
        },
        {"lang": "nob", "url": "https://eksempeltilsynet.no/om/oss"},
        {"lang": "nob", "fulltext": "Uten adresse."},
        {"lang": "nob", "url": "http://[merkelig", "fulltext": "Rar adresse."},
    ]
    write_lines(tmp_path / "eksempeltilsynet.no_nob_html.jsonl", pages)
    documents, report = read("maalfrid", tmp_path)
    assert [d.language for d in documents] == ["nob", "nno", "sme", "nob"]
    assert [d.group for d in documents][:3] == ["eksempeltilsynet.no/tilsyn"] * 2 + ["eksempeltilsynet.no/"]
    assert documents[0].url == documents[0].id == pages[0]["url"]
    assert [error for _, error in broken_places(report)] == [
        "no string under 'fulltext' or 'text' or 'content'; set fields.text to the key of the text",
        "no string under 'url'",
    ]


# --- Hugging Face


def test_a_saved_data_set_is_read_by_split_as_text_and_as_conversations(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["En.", "To."], "lang": ["nob", "nn"]})
    chats = datasets.Dataset.from_dict(
        {"messages": [[{"role": "user", "content": "Når?"}, {"role": "assistant", "content": "Nå."}]]}
    )
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(tmp_path / "tekst"))
    chats.save_to_disk(str(tmp_path / "samtaler"))
    documents, _ = read("huggingface", tmp_path / "tekst", fields={"language": "lang"})
    assert [(d.text, d.language) for d in documents] == [("En.", "nob"), ("To.", "nno")]
    assert texts(read("huggingface", tmp_path / "tekst", options={"split": "test"})[0]) == ["En."]
    (chat,) = read("huggingface", tmp_path / "samtaler")[0]
    assert [(t.role, t.content, t.target) for t in chat.turns] == [
        ("user", "Når?", False),
        ("assistant", "Nå.", True),
    ]
    with pytest.raises(ValueError, match=r"has no split 'dev'; set options.split to one of train, test"):
        read("huggingface", tmp_path / "tekst", options={"split": "dev"})
    file = next((tmp_path / "samtaler").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:200])
    documents, report = read("huggingface", tmp_path / "samtaler")
    assert not documents
    assert "truncated or corrupt" in report.broken[0].error


def test_an_unavailable_data_set_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        FileNotFoundError,
        match=r"data set ingen/finnes, split train: not a folder, and cannot be loaded.*"
        r"HF_HUB_OFFLINE is set",
    ) as raised:
        read("huggingface", Path("ingen/finnes"))
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"not a data set that save_to_disk wrote"):
        read("huggingface", tmp_path)


# --- treebanks


def test_a_treebank_is_read_by_sentence_or_by_its_documents(tmp_path: Path) -> None:
    words = "1\tEg\teg\tPRON\t_\t_\t0\troot\t_\t_\n"
    (tmp_path / "no_nynorsk-ud-dev.conllu").write_text(
        f"# sent_id = 1\n# text = Eg les.\n{words}\n# sent_id = 2\n# text = Du les.\n{words}\n{words}\n"
    )
    (tmp_path / "sv_prov-ud-dev.conllu").write_text(
        f"# newdoc id = a\n# text = Ett.\n{words}\n# text = Två.\n{words}\n# newdoc id = b\n"
        f"# text = Tre.\n{words}"
    )
    documents, report = read("conllu", tmp_path)
    assert [(d.text, d.language) for d in documents] == [
        ("Eg les.", "nno"),
        ("Du les.", "nno"),
        ("Ett. Två.", "swe"),
        ("Tre.", "swe"),
    ]
    assert [error for _, error in broken_places(report)] == ["the sentence has no text (# text = …)"]


def test_documents_of_a_treebank_may_lack_an_id(tmp_path: Path) -> None:
    words = "1\tEg\teg\tPRON\t_\t_\t0\troot\t_\t_\n"
    (tmp_path / "nn_prov-ud-dev.conllu").write_text(
        f"# text = Åleine.\n{words}\n# newdoc\n# text = Ein.\n{words}\n# text = To.\n{words}\n"
        f"# newdoc id = b\n{words}\n# text = Tre.\n{words}\n{words}\n# newdoc\n# text = Fire.\n"
        f"{words}# \0\0\0\n"
    )
    documents, report = read("conllu", tmp_path)
    assert texts(documents) == ["Åleine.", "Ein. To.", "Tre.", "Fire."]
    assert documents[2].id == "nn_prov-ud-dev:b"
    assert [place for place, _ in broken_places(report)] == [
        f"nn_prov-ud-dev.conllu:line {n}" for n in (11, 17, 22)
    ]


# --- damaged records of all readers

MESSAGES = [
    {"role": "user", "content": "Når?"},
    {"role": "assistant", "content": [{"type": "text", "text": "Nå."}]},
]
ANSWERED = {
    "question": "Når?",
    "answers": [{"text": "1. januar 2021", "answer_start": 0}],
    "id": "q",
}
VALID_RECORDS: dict[str, list[dict[str, Any]]] = {
    "jsonl": [
        {
            "text": TEXT,
            "id": "a",
            "group": "g",
            "language": "nb",
            "title": "t",
            "date": "2014",
            "url": "http://a.no/b",
        }
    ],
    "chat": [
        {"messages": MESSAGES, "id": "a", "group": "g"},
        {"instruction": "a", "input": "b", "output": "c"},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        {"prompt": "a", "completion": "b", "tools": []},
    ],
    "ncc": [ncc("parliament")],
    "maalfrid": [{"url": "http://a.no/b/c", "lang": "nob", "fulltext": TEXT, "date": 2014}],
    "parallel": [{"id": "a", "path": "b", "nob": "Jeg", "nno": "Eg"}],
    "squad": [
        {**ANSWERED, "context": SQUAD_CONTEXT},
        {"paragraphs": [{"context": SQUAD_CONTEXT, "qas": [ANSWERED]}], "title": "t"},
    ],
}


@pytest.mark.parametrize("reader", VALID_RECORDS)
def test_no_malformed_record_prevents_reading_good_ones(tmp_path: Path, reader: str) -> None:
    last = {**VALID_RECORDS[reader][0], "id": "siste"}
    records = [
        *VALID_RECORDS[reader],
        *(record for shape in VALID_RECORDS[reader] for record in corrupt_each_value(shape)),
        last,
    ]
    write_lines(tmp_path / "a.jsonl", records)
    (tmp_path / "b.json").write_text(json.dumps(records))
    source, report = SourceConfig(reader=reader, path=str(tmp_path), license="CC0-1.0"), Report()
    for file in reading.files(source):
        documents = list(reading.read("s", source, report, [file]))
        assert "siste" in documents[-1].id
        assert all(
            isinstance(getattr(d, key), str)
            for d in documents
            for key in ("id", "text", "title", "date", "url", "group")
        )
    assert report.broken
