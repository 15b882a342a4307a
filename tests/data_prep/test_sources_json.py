"""JSON in many layouts: objects that contain the list of records, and JSON lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data_prep.sources import json_text
from tests.data_prep.json_records import EXPECTED, RECORDS, dump_json
from tests.data_prep.reading import broken_places, read, texts, write_lines

# --- objects that hold the list of records


@pytest.mark.parametrize("indent", [None, 0, 2, "\t"])
@pytest.mark.parametrize(
    "body",
    [
        {"pageCount": 1, "items": RECORDS},
        {"items": RECORDS, "next": "https://eksempel.no/side/2"},
        {"response": {"numFound": 4, "docs": RECORDS}, "responseHeader": {"status": 0}},
        {"data": {"items": RECORDS, "links": []}, "tags": ["a", "b"]},
        {"facets": [{"name": "år", "count": 3}], "hits": {"total": {"value": 4}, "hits": RECORDS}},
    ],
)
def test_the_list_of_records_in_an_object_is_found(
    tmp_path: Path, body: dict[str, Any], indent: int | None
) -> None:
    (tmp_path / "a.json").write_text(dump_json(body, indent))
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == EXPECTED
    assert documents[0].id == "2019/1"
    assert not report.broken
    assert [key for key in report.counts if key.startswith("list_found_")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_an_object_is_read_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_bytes(
        dump_json({"items": [{"text": "Søknad på Ås"}]}, 2).replace("\n", "\r\n").encode(encoding)
    )
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["Søknad på Ås"]
    assert report.counts["decoded_as_cp1252"] == (encoding == "cp1252")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("joint", ["", "\n", ",\n"])
def test_concatenated_objects_are_all_read(tmp_path: Path, indent: int | None, joint: str) -> None:
    pages = [{"page": 1, "items": RECORDS[:2]}, {"page": 2, "items": RECORDS[2:3]}, RECORDS[3]]
    (tmp_path / "a.json").write_text(joint.join(dump_json(page, indent) for page in pages))
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == EXPECTED
    assert not report.broken


def test_a_pretty_printed_record_is_one_document(tmp_path: Path) -> None:
    record = {"comments": [{"text": "Enig."}, {"text": "Uenig."}], "text": "Saken gjelder støy."}
    (tmp_path / "a.json").write_text(dump_json(record, 2))
    (tmp_path / "b.jsonl").write_text(dump_json(record, None))
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["Saken gjelder støy."] * 2
    assert not report.broken


@pytest.mark.parametrize("indent", [None, 2])
def test_lists_within_a_record_without_text_are_not_records(tmp_path: Path, indent: int | None) -> None:
    records = [
        {"id": 1, "text": "En."},
        {"id": 2, "comments": [{"text": "Enig."}]},
        {"id": 3, "text": "To."},
    ]
    (tmp_path / "a.json").write_text("\n".join(dump_json(record, indent) for record in records))
    (tmp_path / "b.json").write_text(dump_json(records, indent))
    (tmp_path / "c.json").write_text(dump_json({"items": records}, indent))
    broken = dump_json(records[1], indent)[:-1] + ' "x"'
    (tmp_path / "d.json").write_text(
        "\n".join([dump_json(records[0], indent), broken, dump_json(records[2], indent)])
    )
    for name in "abcd":
        documents, report = read("jsonl", tmp_path / f"{name}.json")
        assert texts(documents) == ["En.", "To."]
        ((_, error),) = broken_places(report)
        assert error.startswith("not JSON" if name == "d" else "no string under 'text'")


@pytest.mark.parametrize("indent", [None, 2])
def test_only_the_list_named_by_options_records_is_read(tmp_path: Path, indent: int | None) -> None:
    body = {
        "arkiv": [{"text": "Gammel."}],
        "text": "Om samlingen",
        "svar": {"saker": [{"text": "Ny."}, {"text": "Nyest."}]},
    }
    (tmp_path / "a.json").write_text(dump_json(body, indent))
    assert texts(read("jsonl", tmp_path, options={"records": "svar.saker"})[0]) == ["Ny.", "Nyest."]
    assert texts(read("jsonl", tmp_path)[0]) == ["Om samlingen"], "an object with a text is itself a record"


@dataclass(frozen=True)
class NoList:
    """A JSON object without a unique list of records, and the start of the expected error."""

    id: str
    body: dict[str, Any]
    error: str
    options: dict[str, Any] = field(default_factory=dict)


NO_LISTS = [
    NoList(
        "two lists",
        {"a": RECORDS, "b": RECORDS},
        "contains several lists of records, 'a', 'b'; set options.records to one of them",
    ),
    NoList(
        "two depths",
        {"x": {"a": RECORDS}, "b": RECORDS},
        "contains several lists of records, 'x.a', 'b'",
    ),
    NoList(
        "another name",
        {"items": RECORDS},
        "no list under 'docs'; set options.records to the path of the list (keys of the object: 'items')",
        {"records": "docs"},
    ),
    NoList("a number", {"items": 5, "docs": RECORDS}, "no list under 'items'", {"records": "items"}),
    NoList(
        "by key",
        {"s1": RECORDS[0], "s2": RECORDS[1]},
        "contains 2 records under separate keys ('s1', 's2' …), not in a list",
    ),
    NoList(
        "by key, deeper",
        {"saker": {"s1": RECORDS[0], "s2": RECORDS[1]}},
        "contains 2 records under separate keys ('s1', 's2' …), not in a list",
    ),
    NoList("no text", {"items": [{"body": "x"}]}, "no string under 'text'"),
    NoList("strings", {"items": ["x", "y"]}, "no string under 'text'"),
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("case", NO_LISTS, ids=lambda case: case.id)
def test_an_object_without_a_unique_list_of_records_is_quarantined(
    tmp_path: Path, case: NoList, indent: int | None
) -> None:
    (tmp_path / "a.json").write_text(dump_json(case.body, indent))
    documents, report = read("jsonl", tmp_path, options=case.options)
    assert not documents
    ((_, found),) = broken_places(report)
    assert found.startswith(case.error)


def test_an_empty_list_of_records_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(dump_json({"data": {"items": []}, "page": 7}, 2))
    write_lines(tmp_path / "b.jsonl", [{"id": 7, "attachments": []}, {"text": "En."}])
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["En."]
    assert broken_places(report) == [("b.jsonl:line 1", "no string under 'text'")]


def test_options_records_is_validated(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"options.records: must be keys joined by dots, such as response.docs, not 'a..b'"
    ):
        read("jsonl", tmp_path, options={"records": "a..b"})
    with pytest.raises(
        ValueError, match=r"options.list: unknown option of reader maalfrid; its options are records"
    ):
        read("maalfrid", tmp_path, options={"list": "a"})


MESSAGES = [{"role": "user", "content": "Når?"}, {"role": "assistant", "content": "Nå."}]


@pytest.mark.parametrize(
    ("reader", "record"),
    [
        ("chat", {"id": "a", "messages": MESSAGES}),
        ("chat", {"instruction": "Når?", "output": "Nå.", "sources": [{"instruction": "x"}]}),
        ("ncc", {"id": "1", "doc_type": "parliament", "text": "Møte er satt."}),
        ("maalfrid", {"url": "http://a.no/b/c", "lang": "nob", "fulltext": "Om oss."}),
        ("parallel", {"id": "a", "nob": "Jeg vil.", "nno": "Eg vil."}),
        (
            "squad",
            {"id": "a", "context": "Det skjedde i 1814.", "question": "Når?", "answers": ["1814"]},
        ),
        (
            "squad",
            {
                "paragraphs": [
                    {
                        "context": "I 1814.",
                        "qas": [{"id": 1, "question": "Når?", "answers": ["1814"]}],
                    }
                ]
            },
        ),
    ],
)
def test_every_json_reader_finds_the_list_of_records_in_an_object(
    tmp_path: Path, reader: str, record: dict[str, Any]
) -> None:
    lines = write_lines(tmp_path / "a.jsonl", [record])
    expected = [(d.text, d.turns) for d in read(reader, lines)[0]]
    assert expected
    for name, indent in (("b.json", None), ("c.json", 2)):
        (tmp_path / name).write_text(dump_json({"count": 1, "data": [record]}, indent))
        documents, report = read(reader, tmp_path / name)
        assert [(d.text, d.turns) for d in documents] == expected
        assert not report.broken
    (tmp_path / "d.json").write_text(dump_json({"a": {"b": [record]}, "data": [record]}, 2))
    documents, _ = read(reader, tmp_path / "d.json", options={"records": "a.b"})
    assert [(d.text, d.turns) for d in documents] == expected


def test_a_long_object_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """max_record_bytes limits each record, not the object.

    The object is longer than WINDOW, the number of characters that are searched for lists of
    records. A second list, which begins after them, is reported when the first has been read.
    """
    monkeypatch.setattr(json_text, "WINDOW", 2**17)
    records = [{"id": n, "text": f"{n}: " + "å" * 5000} for n in range(100)]
    for name, indent in (("a.json", None), ("b.json", 2)):
        (tmp_path / name).write_text(dump_json({"count": 100, "items": records, "next": {"page": 2}}, indent))
        documents, report = read("jsonl", tmp_path / name, limits={"max_record_bytes": 2**16})
        assert texts(documents) == [record["text"] for record in records]
        assert not report.broken
    (tmp_path / "a.json").write_text(dump_json({"items": records, "more": records[:3]}, 2))
    documents, report = read("jsonl", tmp_path / "a.json", limits={"max_record_bytes": 2**16})
    assert len(documents) == 100
    assert [error for _, error in broken_places(report)] == [
        "a second list of 3 records, 'more', is not read; set options.records to the list to read"
    ]
    documents, report = read(
        "jsonl",
        tmp_path / "a.json",
        options={"records": "more"},
        limits={"max_record_bytes": 2**20},
    )
    assert [d.text for d in documents] == [record["text"] for record in records[:3]]


# --- lines


@dataclass(frozen=True)
class Lines:
    """Lines of JSON, the expected texts, and the expected places of broken records."""

    id: str
    content: str
    texts: list[str]
    broken: list[str] = field(default_factory=list)


LINES = [
    Lines("line ends of Windows", '{"text": "a"}\r\n{"text": "b"}\r\n', ["a", "b"]),
    Lines("commas", '{"text": "a"},\n{"text": "b"},\n', ["a", "b"]),
    Lines("two a line", '{"text": "a"}{"text": "b"}\n{"text": "c"}\n', ["a", "b", "c"]),
    Lines("two a line with a comma", '{"text": "a"} , {"text": "b"}\n{"text": "c"}\n', ["a", "b", "c"]),
    Lines("comments", '# merknad\n{"text": "a"}\n// {"text": "b"}\n', ["a"], ["line 1", "line 3"]),
    Lines("a brace left out", '{"text": "a"\n{"text": "b"}\n', ["b"], ["line 1"]),
    Lines("a truncated record", '{"id": 1,\n{"text": "b"}\n', ["b"], ["line 1"]),
    Lines(
        "lists of records",
        '{"items": [{"text": "a"}]}\n{"items": [{"text": "b"}, 5]}\n{"text": "c"}\n',
        ["a", "b", "c"],
        ["line 2.2"],
    ),
    Lines("a list of others", '{"id": 1, "tags": [{"name": "a"}]}\n{"text": "b"}\n', ["b"], ["line 1"]),
    Lines("empty lines", '\n\n{"text": "a"}\n\n', ["a"]),
]


@pytest.mark.parametrize("lines", LINES, ids=lambda lines: lines.id)
def test_json_lines_of_many_kinds_are_read(tmp_path: Path, lines: Lines) -> None:
    for ending in ("jsonl", "json", "ndjson"):
        (tmp_path / f"a.{ending}").write_text(lines.content)
        documents, report = read("jsonl", tmp_path / f"a.{ending}")
        assert texts(documents) == lines.texts
        assert [broken.at for broken in report.broken] == lines.broken


def test_a_first_line_of_any_length_is_a_record(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"tags": [{"a": 1}], "text": "x" * 200_000}, {"text": "b"}])
    documents, report = read("jsonl", tmp_path)
    assert [len(text) for text in texts(documents)] == [200_000, 1]
    assert not report.broken
