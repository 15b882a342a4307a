"""The readers of tables and of Talk of Norway, whose speeches are in a table."""

from __future__ import annotations

import csv
import io
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data_prep.reading import broken_places, read, texts

# --- tables

COLUMNS = {
    "text": "innhold",
    "id": "nr",
    "date": "publisert",
    "language": "målform",
    "group": "sak",
}


def test_the_columns_of_a_table_are_found_by_name(tmp_path: Path) -> None:
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
    lines = [",".join(rows[0])]
    for row in rows:
        cells = ['"' + value.replace('"', '""') + '"' for value in row.values()]
        lines.append(",".join(cells))
    (tmp_path / "a.csv").write_text("\r\n".join(lines))
    for name in ("a.csv", "b.parquet"):
        documents, report = read("table", tmp_path / name, fields=COLUMNS)
        assert texts(documents) == [row["innhold"] for row in rows]
        assert [(d.id, d.date, d.language, d.group) for d in documents] == [
            ("1", "2017-05-03", "nob", "17/1"),
            ("2", "2018-02-01", "nno", "17/1"),
        ]
        assert not report.broken


def test_rows_with_another_number_of_columns_are_quarantined(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('id\ttext\n1\tGod.\n2\n3\tfor\tmange\n\n4\tGod og.\n5\t"åpent\n')
    documents, report = read("table", tmp_path)
    assert texts(documents) == ["God.", "God og."]
    assert [place for place, _ in broken_places(report)] == [
        "a.tsv:line 3",
        "a.tsv:line 4",
        "a.tsv:line 7",
    ]


STRAY = '3,"Sitat uten slutt,b\n'


@pytest.mark.parametrize(
    ("lines", "lost"),
    [
        # the open quote runs to the end of the file
        (STRAY, ["3"]),
        # the open quote runs to the size limit of a row
        (STRAY + "4,God.,b\n" * 2000, ["3"]),
        # the open quote runs to a quote that does not end a cell
        (STRAY + '4,God.,"b"\n' + STRAY.replace("3", "5") + "6,God.,b\n", ["3", "5"]),
        # the open quote runs to a quote that ends a cell; that row has a wrong number of columns
        (STRAY + "4,God.,b\n5,God.,b\n" + '6,Slutt",b,c\n', ["3", "6"]),
        ('3,"God\nog, ja,\nlang.",b\n', []),
        ('3,"For\nog, ja:\nmange.",b,c\n4,God.,b\n', ["3"]),
    ],
)
def test_a_stray_quote_loses_only_its_own_row(tmp_path: Path, lines: str, lost: list[str]) -> None:
    (tmp_path / "a.csv").write_text(f"nr,text,b\n{lines}7,God og.,b\n")
    documents, report = read("table", tmp_path, limits={"max_record_bytes": 2**17})
    kept = [line for line in lines.splitlines() if line[0].isdigit() and line[0] not in lost]
    assert len(documents) == len(kept) + 1
    assert documents[-1].text == "God og."
    numbers = {f"a.csv:line {n}": line[0] for n, line in enumerate(lines.splitlines(), start=2)}
    assert [numbers[place] for place, _ in broken_places(report)] == lost


def test_a_table_of_stray_quotes_is_read_in_linear_time(tmp_path: Path) -> None:
    """Every row seems to continue in the next. Rereading the file for each row would take hours."""
    (tmp_path / "a.csv").write_text("nr,text\n" + 'a","\n' * 20_000 + "7,God.\n")
    documents, report = read("table", tmp_path)
    assert texts(documents) == ["God."]
    assert len(report.broken) == 20_000


def test_stray_bytes_and_nuls_of_a_table_are_counted(tmp_path: Path) -> None:
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
def test_the_delimiter_of_a_table_is_detected(
    tmp_path: Path, separator: str, encoding: str, ending: str, quoting: Any
) -> None:
    """Texts contain all four delimiters, and numbers have decimal commas as in Norwegian Excel."""
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
    """A table as a spreadsheet program exports it, and the expected texts and delimiter."""

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
    Sheet(
        "one column",
        "text\nJa, nei; kanskje\n\nNei | ja\n",
        ["Ja, nei; kanskje", "Nei | ja"],
        "none",
    ),
    Sheet("one column in quotes", 'text\n"Ja, ""nei""\nog ja"\n', ['Ja, "nei"\nog ja'], "none"),
    Sheet("decimal commas", DECIMALS, ["Ja", "Nei"]),
    Sheet("semicolons in texts", PROSE, ["Ja; nei; ja; nei", "Ja; ja; ja; ja"], "comma"),
    Sheet("spaces in the header", "id; text ;x\n1;Ja;\n", ["Ja"]),
    Sheet("empty lines first", "\n\nid;text\n1;Ja\n", ["Ja"]),
    Sheet("empty columns last", "id;text\n1;Ja;;\n2;Nei\n", ["Ja", "Nei"]),
    Sheet("line ends of old Macs", "id;text\r1;Ja\r2;Nei\r", ["Ja", "Nei"]),
    Sheet(
        "many rows",
        "id;text\n" + "".join(f"{n};{text}\n" for n, text in enumerate(NUMBERED)),
        NUMBERED,
    ),
    Sheet("a long row", f"id;text\n1;{LONG}\n", [LONG]),
]


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.id)
def test_tables_exported_from_spreadsheets_are_read(tmp_path: Path, sheet: Sheet) -> None:
    (tmp_path / "a.csv").write_bytes(sheet.content.encode())
    documents, report = read("table", tmp_path)
    assert texts(documents) == sheet.texts
    assert not report.broken
    assert report.counts[f"separator_{sheet.separator}"] == 1


def test_rows_that_contradict_the_detected_delimiter_are_quarantined(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;text\n1;God, ja.\n2\n3;for;mange\n\n4;God og, ja.\n")
    documents, report = read("table", tmp_path)
    assert texts(documents) == ["God, ja.", "God og, ja."]
    assert [place for place, _ in broken_places(report)] == ["a.csv:line 3", "a.csv:line 4"]


def test_options_delimiter_overrides_detection(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\nid;a,text\n1;b,Ja\n")
    documents, report = read("table", tmp_path, options={"delimiter": ","})
    assert texts(documents) == ["Ja"]
    assert not [key for key in report.counts if key.startswith("separator_")]


def test_a_duplicate_column_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text;id;text\nEn;1;To\n")
    with pytest.raises(ValueError, match=r"has two columns 'text'; rename"):
        read("table", tmp_path)


def test_a_truncated_parquet_file_and_a_row_without_text_are_quarantined(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["En.", None, "To."]}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:-10])
    documents, report = read("table", tmp_path)
    assert texts(documents) == ["En.", "To."]
    assert [place for place, _ in broken_places(report)] == ["a.parquet:row 2", "b.parquet:row 1"]


@pytest.mark.parametrize("reader", ["table", "huggingface"])
def test_a_row_that_python_cannot_represent_is_quarantined(tmp_path: Path, reader: str) -> None:
    offsets = pa.py_buffer(struct.pack("<4i", 0, 1, 2, 3))
    text = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xffc")])
    rows = pa.table({"text": text, "date": pa.array([0, 0, 2**31 - 1], pa.date32())})
    if reader == "table":
        pq.write_table(rows, tmp_path / "a.parquet")
    else:
        with pa.ipc.new_stream(tmp_path / "a.arrow", rows.schema) as stream:
            stream.write_table(rows)
        (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    documents, report = read(reader, tmp_path)
    assert texts(documents) == ["a"]
    assert [place.rpartition(":")[2] for place, _ in broken_places(report)] == ["row 2", "row 3"]


def test_a_missing_column_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("innhold,nr\nx,1\n")
    with pytest.raises(
        ValueError, match=r"no column 'text', its columns are innhold, nr; .* fields: \{text: innhold\}"
    ):
        read("table", tmp_path)
    with pytest.raises(
        ValueError,
        match=r"no column 'text', its columns are innhold, nr; rename a column, or use reader table",
    ):
        read("talk_of_norway", tmp_path)


# --- Talk of Norway


def test_talk_of_norway_keeps_speaker_and_party_and_groups_by_transcript(tmp_path: Path) -> None:
    (tmp_path / "ton.csv").write_text(
        "id,rep_name,party_id,date,transcript,speaker_role,debate_title,language,text\n"
        "tale1,Kari Eksempel,SP,2011-02-10,s110210,representative,Landbruk,nno,"
        '"Eg vil takke komiteen, president."\n'
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


def test_labelled_lines_of_talk_of_norway_are_read(tmp_path: Path) -> None:
    (tmp_path / "sentences_7k_nno.txt").write_text(
        "Regjeringa har lenge oversett åtvaringane.\n\nDet er mi meining.\n"
    )
    (tmp_path / "labelled.csv").write_text(
        "date,language,text\n2001-06-14,nob,Det gjelder bl.a. de som er syke.\n"
    )
    documents, _ = read("talk_of_norway", tmp_path)
    assert [(d.language, d.date) for d in documents] == [
        ("nob", "2001-06-14"),
        ("nno", ""),
        ("nno", ""),
    ]
