"""Readers of records: JSON lines and arrays, NCC, Målfrid, parallel texts, SQuAD, tables, Talk of Norway, Hub
data sets, treebanks. All documents here are invented, in the exact format of the source."""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import reading
from data_prep.config import SourceConfig
from data_prep.document import Report
from tests.data_prep.reading import faults, read, strange, texts, write_lines

TEXT = "Kommunen har behandlet søknaden og gir tillatelse etter plan- og bygningsloven."


# --- JSON lines and arrays
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("ikke json", "not JSON: Expecting value at character 0"),
        ('{"text": "åpen', "not JSON: Invalid control character at at character 14"),
        ("[1, 2]", "a JSON list, not an object"),
        ('{"id": "uten tekst"}', "no string under 'text'"),
        ('{"text": 5}', "no string under 'text'"),
        ('{"text": null}', "no string under 'text'"),
        ("[" * 100_000, "JSON that Python cannot parse"),
        ('{"text": ' * 5000 + "1" + "}" * 5000, "JSON that Python cannot parse"),
        (f'{{"text": "x", "n": {"9" * 5000}}}', "JSON that Python cannot parse"),
    ],
)
def test_a_broken_line_is_quarantined_with_its_place_and_the_others_arrive(
    tmp_path: Path, line: str, error: str
) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "Først."}}\n{line}\n\n{{"text": "Sist."}}\n')
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["Først.", "Sist."]
    ((place, found),) = faults(report)
    assert place == "a.jsonl:line 2"
    assert found.startswith(error)
    assert "\n" not in found


def test_an_array_is_read_element_by_element(tmp_path: Path) -> None:
    """Longer than what is read of the file at a time, with everything in it that could be taken for an
    end."""
    records = [{"id": n, "text": f'{n}: [{{"}}], "\\" ' + "æøå" * 5000} for n in range(40)]
    for name, indent in (("tett.json", None), ("luftig.json", 2)):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf \n" + json.dumps(records, ensure_ascii=False, indent=indent).encode())
        documents, report = read("jsonl", path)
        assert texts(documents) == [record["text"] for record in records]
        assert not report.broken


@pytest.mark.parametrize("rest", ['{"text": }]', '{"text": "åpen', "", "{]", '[[{"text": "x"}'])
def test_elements_before_a_fault_in_an_array_are_kept_and_the_loss_is_said(tmp_path: Path, rest: str) -> None:
    (tmp_path / "a.json").write_text(f'[{{"text": "En."}},\n{{"text": "To."}},\n{rest}')
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["En.", "To."]
    ((place, error),) = faults(report)
    assert place == "a.json:record 3"
    assert "the rest of the file cannot be read" in error
    assert report.counts["broken_off"] == 1


@pytest.mark.parametrize("between", ["", "\n", " \n" * 50_000])
def test_arrays_are_read_one_after_another(tmp_path: Path, between: str) -> None:
    arrays = [[{"text": f"{n}: " + "å" * 30_000}, {"text": f"{n}."}] for n in range(3)]
    (tmp_path / "a.json").write_text(
        between.join([json.dumps(array, ensure_ascii=False) for array in [*arrays, []]]) + between
    )
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == [record["text"] for array in arrays for record in array]
    assert not report.broken


@pytest.mark.parametrize("rest", ["]", "x" * 100_000])
def test_what_stands_behind_an_array_and_is_none_is_said(tmp_path: Path, rest: str) -> None:
    (tmp_path / "a.json").write_text(f'[{{"text": "En."}}]\n{rest}')
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["En."]
    ((place, error),) = faults(report)
    assert place == "a.json:record 2"
    assert error.startswith("an array is followed by ")
    assert report.counts["broken_off"] == 1


@pytest.mark.parametrize(("rest", "num_faults"), [('{"text": "To."}', 2), (',[{"text": "To."}]', 0)])
def test_records_behind_an_array_arrive(tmp_path: Path, rest: str, num_faults: int) -> None:
    (tmp_path / "a.json").write_text(f'[{{"text": "En."}}]\n{rest}')
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["En.", "To."]
    assert len(report.broken) == num_faults


def test_an_element_of_an_array_is_no_larger_than_a_record_may_be(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "Liten."}, {"text": "x" * 3_000_000}]))
    documents, report = read("jsonl", tmp_path, limits={"max_record_bytes": 2**20})
    assert texts(documents) == ["Liten."]
    ((place, error),) = faults(report)
    assert (place, error[:35]) == ("a.json:record 2", "larger than limits.max_record_bytes")


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
def test_encodings_are_told_from_the_bytes(tmp_path: Path, encoding: str, count: str, reader: str) -> None:
    said = "Søkjaren på Ås får «løyve» – innan 14 dagar."
    content = {
        "text": said,
        "jsonl": json.dumps({"text": said}, ensure_ascii=False) + "\n",
        "array": json.dumps([{"text": said}], ensure_ascii=False),
        "table": f'id;text\n1;"{said}"\n',
    }[reader]
    ending = {"text": "txt", "jsonl": "jsonl", "array": "json", "table": "csv"}[reader]
    (tmp_path / f"a.{ending}").write_bytes(content.encode(encoding))
    options = {"options": {"delimiter": ";"}} if reader == "table" else {}
    documents, report = read("jsonl" if reader == "array" else reader, tmp_path, **options)
    assert texts(documents) == [said]
    assert not report.broken
    if count and reader != "array":
        assert report.counts[count] == 1


def test_a_stray_byte_and_a_stray_nul_cost_no_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(
        "Vedtak på ".encode() + "Ås".encode("cp1252") + b" er\0 fattet. " + b"x" * 100
    )
    documents, report = read("text", tmp_path)
    assert documents[0].text.startswith("Vedtak på Ås er fattet.")
    assert report.counts["nul_bytes_removed"] == 1


# --- NCC
# ---------------------------------------------------------------------------------------------------------------------


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


def test_ncc_reads_the_public_sector_and_no_withdrawn_newspaper(tmp_path: Path) -> None:
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


def test_ncc_confidence_is_a_string(tmp_path: Path) -> None:
    confidences = ["0.95", "0.1", 0.5, "1.00", None, "høy", [0.9]]
    write_lines(
        tmp_path / "a.json", [ncc("parliament", n, lang_fasttext_conf=c) for n, c in enumerate(confidences)]
    )
    documents, report = read("ncc", tmp_path, options={"min_confidence": 0.5})
    assert [d.id for d in documents] == [f"parliament/{n:07d}" for n in (0, 2, 3, 4)]
    assert report.counts["below_min_confidence"] == 1
    assert [place for place, _ in faults(report)] == ["a.json:line 6", "a.json:line 7"]


# --- Målfrid
# -----------------------------------------------------------------------------------------------------------------


def test_maalfrid_says_language_and_address_and_groups_by_the_sites_folder(tmp_path: Path) -> None:
    pages = [
        {"lang": "nob", "url": "https://www.eksempeltilsynet.no/tilsyn/a.html", "fulltext": TEXT},
        {
            "lang": "nno",
            "url": "https://eksempeltilsynet.no/tilsyn/b.pdf",
            "text": "Kommunen har handsama søknaden.",
        },
        {"lang": "sme", "url": "https://eksempeltilsynet.no/", "content": "Gielda lea meannudan ohcama."},
        {"lang": "nob", "url": "https://eksempeltilsynet.no/om/oss"},
        {"lang": "nob", "fulltext": "Uten adresse."},
        {"lang": "nob", "url": "http://[merkelig", "fulltext": "Rar adresse."},
    ]
    write_lines(tmp_path / "eksempeltilsynet.no_nob_html.jsonl", pages)
    documents, report = read("maalfrid", tmp_path)
    assert [d.language for d in documents] == ["nob", "nno", "sme", "nob"]
    assert [d.group for d in documents][:3] == ["eksempeltilsynet.no/tilsyn"] * 2 + ["eksempeltilsynet.no/"]
    assert documents[0].url == documents[0].id == pages[0]["url"]
    assert [error for _, error in faults(report)] == [
        "no string under 'fulltext or text or content'",
        "no string under 'url'",
    ]


# --- parallel texts
# -----------------------------------------------------------------------------------------------------------

LETTER = [
    {"id": "brev-0", "path": "mal/A.kt", "nob": "Du kan få {felt} fra NAV.", "nno": "Du kan få {felt} frå NAV.",
     "eng": "You may get {felt}."},
    {"id": "brev-1", "path": "mal/A.kt", "nob": "AFP-tillegg", "nno": "AFP-tillegg"},
    {"id": "brev-2", "path": "mal/A.kt", "nob": "Vi har {felt} avslått.", "nno": "Vi har avslått."},
    {"id": "brev-3", "path": "mal/B.kt", "nob": "Bare bokmål her."},
    {"id": "brev-4", "path": "mal/B.kt", "nob": "Hva kan du gjøre?", "nno": "Kva kan du gjere?"},
]  # fmt: skip


def test_parallel_texts_become_pairs_that_teach_the_other_written_standard(tmp_path: Path) -> None:
    write_lines(tmp_path / "brev.jsonl", LETTER)
    documents, report = read("parallel", tmp_path)
    assert [d.id for d in documents] == [
        "brev-0:nob-nno",
        "brev-0:nno-nob",
        "brev-4:nob-nno",
        "brev-4:nno-nob",
    ]
    asked, answered = documents[0].turns
    assert (asked.role, asked.target, answered.role, answered.target) == ("user", False, "assistant", True)
    assert asked.content == "Skriv om teksten til nynorsk:\n\nDu kan få {felt} fra NAV."
    assert answered.content == "Du kan få {felt} frå NAV."
    assert [d.language for d in documents] == ["nno", "nob", "nno", "nob"]
    assert [d.group for d in documents] == ["mal/A.kt"] * 2 + ["mal/B.kt"] * 2
    assert {d.mask for d in documents} == {"assistant_masks"}
    counts = report.counts
    assert (
        counts["pairs_of_the_same_text"]
        == counts["pairs_with_other_merge_fields"]
        == counts["pairs_with_an_empty_side"]
        == 2
    )


def test_parallel_texts_become_translations_as_prompt_and_completion(tmp_path: Path) -> None:
    write_lines(tmp_path / "brev.jsonl", LETTER)
    documents, _ = read(
        "parallel", tmp_path, options={"form": "prompt_completion", "pairs": ["eng-nob", "nob-eng"]}
    )
    assert [[t.content for t in d.turns] for d in documents] == [
        ["Oversett teksten til bokmål:\n\nYou may get {felt}.\n\n", "Du kan få {felt} fra NAV."],
        ["Translate the text into English:\n\nDu kan få {felt} fra NAV.\n\n", "You may get {felt}."],
    ]
    assert {d.mask for d in documents} == {"completion_mask"}
    assert {t.role for d in documents for t in d.turns} == {""}


def test_parallel_texts_become_whole_letters_in_each_language_of_one_group(tmp_path: Path) -> None:
    write_lines(tmp_path / "brev.jsonl", LETTER)
    documents, _ = read("parallel", tmp_path, options={"form": "text"})
    assert [(d.group, d.language) for d in documents] == [
        ("mal/A.kt", "nob"),
        ("mal/A.kt", "nno"),
        ("mal/A.kt", "eng"),
        ("mal/B.kt", "nob"),
        ("mal/B.kt", "nno"),
    ]
    assert documents[1].text == "Du kan få {felt} frå NAV.\n\nAFP-tillegg\n\nVi har avslått."


def test_a_parallel_record_of_the_wrong_kind_is_quarantined(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "brev.jsonl", [{"id": "x", "nob": ["liste"]}, {"id": "y", "fra": "Bonjour"}, LETTER[4]]
    )
    documents, report = read("parallel", tmp_path)
    assert len(documents) == 2
    assert [error for _, error in faults(report)] == [
        "'nob' is a list, not a string",
        "no text under any of nob, nno, eng, sme, dan, swe",
    ]


# --- SQuAD
# --------------------------------------------------------------------------------------------------------------------

CONTEXT = "Fylkesmannen ble statsforvalter 1. januar 2021. Navnet er kjønnsnøytralt."


def question(asked: str, answer: str | None, number: int) -> dict[str, Any]:
    answers = [] if answer is None else [{"text": answer, "answer_start": CONTEXT.find(answer)}]
    return {"question": asked, "id": number, "answers": answers, "is_impossible": answer is None}


def test_squad_asks_of_a_text_and_teaches_the_answer(tmp_path: Path) -> None:
    asked = [
        question("Når?", "1. januar 2021", 7),
        question("Hvem?", None, 8),
        question("Hva?", "finnes ikke i teksten", 9),
    ]
    body = {
        "data": [
            {
                "title": "Embete",
                "paragraphs": [{"context": CONTEXT, "qas": asked}, {"context": "Uten spørsmål."}],
            },
            5,
        ]
    }
    (tmp_path / "spm.json").write_text(json.dumps(body, indent=1))
    documents, report = read("squad", tmp_path)
    assert [[t.content for t in d.turns] for d in documents] == [
        [f"{CONTEXT}\n\nSpørsmål: Når?", "1. januar 2021"]
    ]
    assert (documents[0].id, documents[0].title, documents[0].mask) == ("spm:7", "Embete", "assistant_masks")
    assert report.counts["unanswerable"] == 1
    assert [error.partition(":")[0] for _, error in faults(report)] == [
        "the answer is not in the text",
        "a paragraph without questions (qas)",
        "not an object with paragraphs",
    ]
    documents, _ = read(
        "squad", tmp_path, options={"form": "prompt_completion", "unanswerable": "Teksten sier det ikke."}
    )
    assert [d.turns[1].content for d in documents] == ["1. januar 2021", "Teksten sier det ikke."]
    assert documents[0].turns[0].content.endswith("Når?\nSvar: ")
    assert len({d.group for d in documents}) == 1


def test_squad_is_read_a_question_a_line_too(tmp_path: Path) -> None:
    line = {
        "id": "a",
        "title": "",
        "context": CONTEXT,
        "question": "Når?",
        "answers": {"text": ["1. januar 2021"], "answer_start": [0]},
    }
    write_lines(
        tmp_path / "spm.jsonl",
        [line, {"context": CONTEXT}, {**line, "id": "b", "answers": {"text": [3]}}, line],
    )
    documents, report = read("squad", tmp_path)
    assert [d.id for d in documents] == ["spm:a", "spm:a:2"]
    assert [error for _, error in faults(report)] == [
        "no text under 'question'",
        "answers are not a list of texts",
    ]


@pytest.mark.parametrize(
    "answers", [5, True, "1. januar 2021", [5], {"text": "1. januar 2021"}, {"text": None}]
)
def test_squad_answers_that_are_no_list_of_texts_are_quarantined(tmp_path: Path, answers: object) -> None:
    good = {"context": CONTEXT, "question": "Når?", "answers": ["1. januar 2021"]}
    write_lines(tmp_path / "a.jsonl", [{**good, "answers": answers}, good])
    (tmp_path / "b.json").write_text(
        json.dumps([{"paragraphs": [{"context": CONTEXT, "qas": [{**good, "answers": answers}, good]}]}])
    )
    documents, report = read("squad", tmp_path)
    assert len(documents) == 2
    error = "answers are not a list of texts"
    assert faults(report) == [("a.jsonl:line 1", error), ("b.json:record 1", error)]


# --- tables
# -------------------------------------------------------------------------------------------------------------------

COLUMNS = {"text": "innhold", "id": "nr", "date": "publisert", "language": "målform", "group": "sak"}


def test_a_table_is_read_by_the_names_of_its_columns(tmp_path: Path) -> None:
    rows = [
        {
            "nr": "1",
            "innhold": 'Han sa "nei",\nog gikk.',
            "publisert": "3. mai 2017",
            "målform": "bokmål",
            "sak": "17/1",
        },
        {
            "nr": "2",
            "innhold": "Ho svara ja.",
            "publisert": "2018-02-01",
            "målform": "nynorsk",
            "sak": "17/1",
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    lines = [",".join(rows[0])] + [
        ",".join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in rows
    ]
    (tmp_path / "a.csv").write_text("\r\n".join(lines))
    for name in ("a.csv", "b.parquet"):
        documents, report = read("table", tmp_path / name, fields=COLUMNS)
        assert texts(documents) == [row["innhold"] for row in rows]
        assert [(d.id, d.date, d.language, d.group) for d in documents] == [
            ("1", "2017-05-03", "nob", "17/1"),
            ("2", "2018-02-01", "nno", "17/1"),
        ]
        assert not report.broken


def test_rows_that_do_not_fit_are_quarantined(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('id\ttext\n1\tGod.\n2\n3\tfor\tmange\n\n4\tGod og.\n5\t"åpent\n')
    documents, report = read("table", tmp_path)
    assert texts(documents) == ["God.", "God og."]
    assert [place for place, _ in faults(report)] == ["a.tsv:line 3", "a.tsv:line 4", "a.tsv:line 7"]


STRAY = '3,"Sitat uten slutt,b\n'


@pytest.mark.parametrize(
    ("lines", "lost"),
    [
        (STRAY, ["3"]),  # until the file ends
        (STRAY + "4,God.,b\n" * 2000, ["3"]),  # until a row has its longest
        (
            STRAY + '4,God.,"b"\n' + STRAY.replace("3", "5") + "6,God.,b\n",
            ["3", "5"],
        ),  # until a quote that closes nothing
        (
            STRAY + "4,God.,b\n5,God.,b\n" + '6,Slutt",b,c\n',
            ["3", "6"],
        ),  # until one that closes, in a row with other columns
        ('3,"God\nog, ja,\nlang.",b\n', []),
        ('3,"For\nog, ja:\nmange.",b,c\n4,God.,b\n', ["3"]),
    ],
)
def test_a_stray_quote_costs_its_own_row(tmp_path: Path, lines: str, lost: list[str]) -> None:
    (tmp_path / "a.csv").write_text(f"nr,text,b\n{lines}7,God og.,b\n")
    documents, report = read("table", tmp_path, limits={"max_record_bytes": 2**17})
    kept = [line for line in lines.splitlines() if line[0].isdigit() and line[0] not in lost]
    assert len(documents) == len(kept) + 1
    assert documents[-1].text == "God og."
    numbers = {f"a.csv:line {n}": line[0] for n, line in enumerate(lines.splitlines(), start=2)}
    assert [numbers[place] for place, _ in faults(report)] == lost


def test_a_table_of_stray_quotes_ends(tmp_path: Path) -> None:
    """Each line goes on in the next without end: to go back for every one would take hours."""
    (tmp_path / "a.csv").write_text("nr,text\n" + 'a","\n' * 20_000 + "7,God.\n")
    documents, report = read("table", tmp_path)
    assert texts(documents) == ["God."]
    assert len(report.broken) == 20_000


def test_a_stray_byte_and_a_stray_nul_of_a_table_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        "id,text\n1,Vedtak på ".encode() + "Ås".encode("cp1252") + b" er\0 fattet.\n"
    )
    documents, report = read("table", tmp_path)
    assert texts(documents) == ["Vedtak på Ås er fattet."]
    assert (report.counts["decoded_as_cp1252"], report.counts["nul_bytes_removed"]) == (1, 1)


SUMS = [
    {"nr": "1", "tekst": 'Kommunen sa "nei", og vi klaget; så ja.', "sum": "1,5"},
    {"nr": "2", "tekst": "Første linje,\nandre; linje\tmed | strek.", "sum": "2 300,75"},
    {"nr": "3", "tekst": "Ås, Bø; Å", "sum": "0,1"},
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("ending", ["\r\n", "\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_the_separator_of_a_table_is_found(
    tmp_path: Path, separator: str, encoding: str, ending: str, quoting: Any
) -> None:
    """Texts hold all of them, and sums have decimal commas, as Excel writes them in Norway."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(SUMS[0]), delimiter=separator, quoting=quoting, lineterminator=ending)
    writer.writeheader()
    writer.writerows(SUMS)
    (tmp_path / "a.csv").write_bytes(file.getvalue().encode(encoding))
    documents, report = read("table", tmp_path, fields={"text": "tekst", "id": "nr"})
    assert texts(documents) == [row["tekst"] for row in SUMS]
    assert [d.id for d in documents] == ["1", "2", "3"]
    assert not report.broken
    name = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}[separator]
    assert {key: count for key, count in report.counts.items() if key.startswith("separator_")} == {
        f"separator_{name}": 1
    }


@dataclass(frozen=True)
class Sheet:
    """A table as a spreadsheet writes it, its texts, and the separator that is found."""

    id: str
    content: str
    texts: list[str]
    separator: str = "semicolon"


LONG = "Lang, " * 20_000
DECIMALS = "navn, fornavn;sum;text\nA, B;1,5;Ja\nC, D;2,5;Nei\n"
PROSE = "id,text\n1,Ja; nei; ja; nei\n2,Ja; ja; ja; ja\n"
NUMBERED = [f"Sak, {n}" for n in range(9000)]
SHEETS = [
    Sheet("Excel's first line", "sep=;\nid;text\n1;Ja, nei\n", ["Ja, nei"]),
    Sheet("that line in quotes", '"sep=|"\r\nid|text\r\n1|Ja; nei\r\n', ["Ja; nei"], "pipe"),
    Sheet("another separator", "SEP=#\nid#text\n1#Ja\n", ["Ja"], "other"),
    Sheet("a header alone", "id;text\n", []),
    Sheet("one column", "text\nJa, nei; kanskje\n\nNei | ja\n", ["Ja, nei; kanskje", "Nei | ja"], "none"),
    Sheet("one column in quotes", 'text\n"Ja, ""nei""\nog ja"\n', ['Ja, "nei"\nog ja'], "none"),
    Sheet("decimal commas", DECIMALS, ["Ja", "Nei"]),
    Sheet("semicolons in texts", PROSE, ["Ja; nei; ja; nei", "Ja; ja; ja; ja"], "comma"),
    Sheet("spaces in the header", "id; text ;x\n1;Ja;\n", ["Ja"]),
    Sheet("empty lines first", "\n\nid;text\n1;Ja\n", ["Ja"]),
    Sheet("empty columns last", "id;text\n1;Ja;;\n2;Nei\n", ["Ja", "Nei"]),
    Sheet("line ends of old Macs", "id;text\r1;Ja\r2;Nei\r", ["Ja", "Nei"]),
    Sheet("many rows", "id;text\n" + "".join(f"{n};{text}\n" for n, text in enumerate(NUMBERED)), NUMBERED),
    Sheet("a long row", f"id;text\n1;{LONG}\n", [LONG]),
]


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.id)
def test_tables_as_they_come_from_spreadsheets(tmp_path: Path, sheet: Sheet) -> None:
    (tmp_path / "a.csv").write_bytes(sheet.content.encode())
    documents, report = read("table", tmp_path)
    assert texts(documents) == sheet.texts
    assert not report.broken
    assert report.counts[f"separator_{sheet.separator}"] == 1


def test_rows_that_do_not_fit_a_found_separator_are_quarantined(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;text\n1;God, ja.\n2\n3;for;mange\n\n4;God og, ja.\n")
    documents, report = read("table", tmp_path)
    assert texts(documents) == ["God, ja.", "God og, ja."]
    assert [place for place, _ in faults(report)] == ["a.csv:line 3", "a.csv:line 4"]


def test_a_separator_that_is_set_is_the_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\nid;a,text\n1;b,Ja\n")
    documents, report = read("table", tmp_path, options={"delimiter": ","})
    assert texts(documents) == ["Ja"]
    assert not [key for key in report.counts if key.startswith("separator_")]


def test_a_column_that_is_there_twice_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text;id;text\nEn;1;To\n")
    with pytest.raises(ValueError, match=r"has two columns 'text'; rename"):
        read("table", tmp_path)


def test_a_cut_parquet_file_and_a_row_without_text_are_quarantined(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["En.", None, "To."]}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:-10])
    documents, report = read("table", tmp_path)
    assert texts(documents) == ["En.", "To."]
    assert [place for place, _ in faults(report)] == ["a.parquet:row 2", "b.parquet:row 1"]


@pytest.mark.parametrize("reader", ["table", "huggingface"])
def test_a_row_that_python_cannot_hold_is_quarantined(tmp_path: Path, reader: str) -> None:
    text = pa.Array.from_buffers(
        pa.string(),
        3,
        [
            None,
            pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])),
            pa.py_buffer(b"a\xffc"),
        ],
    )
    rows = pa.table({"text": text, "date": pa.array([0, 0, 2**31 - 1], pa.date32())})
    if reader == "table":
        pq.write_table(rows, tmp_path / "a.parquet")
    else:
        with pa.ipc.new_stream(tmp_path / "a.arrow", rows.schema) as stream:
            stream.write_table(rows)
        (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    documents, report = read(reader, tmp_path)
    assert texts(documents) == ["a"]
    assert [place.rpartition(":")[2] for place, _ in faults(report)] == ["row 2", "row 3"]


def test_a_column_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("innhold,nr\nx,1\n")
    with pytest.raises(
        ValueError, match=r"no column 'text', its columns are innhold, nr; .* fields: \{text: innhold\}"
    ):
        read("table", tmp_path)
    with pytest.raises(
        ValueError,
        match=r"no column 'text', its columns are innhold, nr; rename one of them, or use reader table",
    ):
        read("talk_of_norway", tmp_path)


# --- Talk of Norway
# -----------------------------------------------------------------------------------------------------------


def test_talk_of_norway_keeps_speaker_and_party_and_groups_by_transcript(tmp_path: Path) -> None:
    (tmp_path / "ton.csv").write_text(
        "id,rep_name,party_id,date,transcript,speaker_role,debate_title,language,text\n"
        'tale1,Kari Eksempel,SP,2011-02-10,s110210,representative,Landbruk,nno,"Eg vil takke komiteen, president."\n'
        "tale2,,,2011-02-10,s110210,President,Landbruk,nob,Neste taler er statsråden.\n"
    )
    documents, report = read("talk_of_norway", tmp_path)
    assert texts(documents) == [
        "Kari Eksempel (SP): Eg vil takke komiteen, president.",
        "Presidenten: Neste taler er statsråden.",
    ]
    assert [(d.language, d.date, d.group, d.title) for d in documents] == [
        ("nno", "2011-02-10", "s110210", "Landbruk"),
        ("nob", "2011-02-10", "s110210", "Landbruk"),
    ]
    assert not report.broken


def test_talk_of_norway_reads_labelled_lines(tmp_path: Path) -> None:
    (tmp_path / "sentences_7k_nno.txt").write_text(
        "Regjeringa har lenge oversett åtvaringane.\n\nDet er mi meining.\n"
    )
    (tmp_path / "labelled.csv").write_text(
        "date,language,text\n2001-06-14,nob,Det gjelder bl.a. de som er syke.\n"
    )
    documents, _ = read("talk_of_norway", tmp_path)
    assert [(d.language, d.date) for d in documents] == [("nob", "2001-06-14"), ("nno", ""), ("nno", "")]


# --- Hugging Face
# -------------------------------------------------------------------------------------------------------------


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


def test_a_data_set_that_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        FileNotFoundError,
        match=r"data set ingen/finnes, split train: not a folder, and cannot be loaded.*HF_HUB_OFFLINE is set",
    ) as raised:
        read("huggingface", Path("ingen/finnes"))
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"not a data set that save_to_disk wrote"):
        read("huggingface", tmp_path)


# --- treebanks
# ----------------------------------------------------------------------------------------------------------------


def test_a_treebank_is_read_by_sentences_or_its_own_documents(tmp_path: Path) -> None:
    words = "1\tEg\teg\tPRON\t_\t_\t0\troot\t_\t_\n"
    (tmp_path / "no_nynorsk-ud-dev.conllu").write_text(
        f"# sent_id = 1\n# text = Eg les.\n{words}\n# sent_id = 2\n# text = Du les.\n{words}\n{words}\n"
    )
    (tmp_path / "sv_prov-ud-dev.conllu").write_text(
        f"# newdoc id = a\n# text = Ett.\n{words}\n# text = Två.\n{words}\n# newdoc id = b\n# text = Tre.\n{words}"
    )
    documents, report = read("conllu", tmp_path)
    assert [(d.text, d.language) for d in documents] == [
        ("Eg les.", "nno"),
        ("Du les.", "nno"),
        ("Ett. Två.", "swe"),
        ("Tre.", "swe"),
    ]
    assert [error for _, error in faults(report)] == ["a sentence without its text (# text = …)"]


def test_documents_of_a_treebank_begin_with_or_without_an_id(tmp_path: Path) -> None:
    words = "1\tEg\teg\tPRON\t_\t_\t0\troot\t_\t_\n"
    (tmp_path / "nn_prov-ud-dev.conllu").write_text(
        f"# text = Åleine.\n{words}\n# newdoc\n# text = Ein.\n{words}\n# text = To.\n{words}\n"
        f"# newdoc id = b\n{words}\n# text = Tre.\n{words}\n{words}\n# newdoc\n# text = Fire.\n{words}# \0\0\0\n"
    )
    documents, report = read("conllu", tmp_path)
    assert texts(documents) == ["Åleine.", "Ein. To.", "Tre.", "Fire."]
    assert documents[2].id == "nn_prov-ud-dev:b"
    assert [place for place, _ in faults(report)] == [f"nn_prov-ud-dev.conllu:line {n}" for n in (11, 17, 22)]


# --- records of any shape
# -----------------------------------------------------------------------------------------------------

MESSAGES = [
    {"role": "user", "content": "Når?"},
    {"role": "assistant", "content": [{"type": "text", "text": "Nå."}]},
]
ANSWERED = {"question": "Når?", "answers": [{"text": "1. januar 2021", "answer_start": 0}], "id": "q"}
GOOD: dict[str, list[dict[str, Any]]] = {
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
        {**ANSWERED, "context": CONTEXT},
        {"paragraphs": [{"context": CONTEXT, "qas": [ANSWERED]}], "title": "t"},
    ],
}


@pytest.mark.parametrize("reader", GOOD)
def test_no_record_of_any_shape_keeps_the_good_ones_from_arriving(tmp_path: Path, reader: str) -> None:
    last = {**GOOD[reader][0], "id": "siste"}
    records = [*GOOD[reader], *(record for shape in GOOD[reader] for record in strange(shape)), last]
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
