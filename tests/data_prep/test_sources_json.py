"""JSON however it is laid out: objects that hold the list of records, broken elements, lines of many kinds.
All is invented."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from data_prep import reading
from data_prep.config import SourceConfig
from data_prep.document import Report
from data_prep.sources import json_text
from tests.data_prep.reading import faults, read, texts, write_lines

SAID = 'Ombudet mener at {fristen} i sak NUMBER "burde" vært [oversittet]},{.'
RECORDS: list[dict[str, Any]] = [
    {"id": f"2019/{n}", "text": SAID.replace("NUMBER", str(n)), "meta": {"parts": [{"id": 1}]}}
    for n in range(1, 5)
]
EXPECTED = [record["text"] for record in RECORDS]


def dump(value: Any, indent: int | None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


# --- an object that holds the list of records
# ---------------------------------------------------------------------------------


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
    (tmp_path / "a.json").write_text(dump(body, indent))
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == EXPECTED
    assert documents[0].id == "2019/1"
    assert not report.broken
    assert [key for key in report.counts if key.startswith("list_found_")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_an_object_is_read_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_bytes(
        dump({"items": [{"text": "Søknad på Ås"}]}, 2).replace("\n", "\r\n").encode(encoding)
    )
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["Søknad på Ås"]
    assert report.counts["decoded_as_cp1252"] == (encoding == "cp1252")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("joint", ["", "\n", ",\n"])
def test_objects_one_after_another_are_each_read(tmp_path: Path, indent: int | None, joint: str) -> None:
    pages = [{"page": 1, "items": RECORDS[:2]}, {"page": 2, "items": RECORDS[2:3]}, RECORDS[3]]
    (tmp_path / "a.json").write_text(joint.join(dump(page, indent) for page in pages))
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == EXPECTED
    assert not report.broken


def test_one_pretty_printed_record_is_one_document_and_not_its_parts(tmp_path: Path) -> None:
    record = {"comments": [{"text": "Enig."}, {"text": "Uenig."}], "text": "Saken gjelder støy."}
    (tmp_path / "a.json").write_text(dump(record, 2))
    (tmp_path / "b.jsonl").write_text(dump(record, None))
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["Saken gjelder støy."] * 2
    assert not report.broken


@pytest.mark.parametrize("indent", [None, 2])
def test_a_record_without_a_text_among_others_is_broken_and_its_parts_are_no_records(
    tmp_path: Path, indent: int | None
) -> None:
    records = [{"id": 1, "text": "En."}, {"id": 2, "comments": [{"text": "Enig."}]}, {"id": 3, "text": "To."}]
    (tmp_path / "a.json").write_text("\n".join(dump(record, indent) for record in records))
    (tmp_path / "b.json").write_text(dump(records, indent))
    (tmp_path / "c.json").write_text(dump({"items": records}, indent))
    broken = dump(records[1], indent)[:-1] + ' "x"'
    (tmp_path / "d.json").write_text("\n".join([dump(records[0], indent), broken, dump(records[2], indent)]))
    for name in "abcd":
        documents, report = read("jsonl", tmp_path / f"{name}.json")
        assert texts(documents) == ["En.", "To."]
        ((_, error),) = faults(report)
        assert error.startswith("not JSON" if name == "d" else "no string under 'text'")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_named_list_is_read_and_no_other(tmp_path: Path, indent: int | None) -> None:
    body = {
        "arkiv": [{"text": "Gammel."}],
        "text": "Om samlingen",
        "svar": {"saker": [{"text": "Ny."}, {"text": "Nyest."}]},
    }
    (tmp_path / "a.json").write_text(dump(body, indent))
    assert texts(read("jsonl", tmp_path, options={"records": "svar.saker"})[0]) == ["Ny.", "Nyest."]
    assert texts(read("jsonl", tmp_path)[0]) == ["Om samlingen"], "an object with the text is a record"


@dataclass(frozen=True)
class NoList:
    """A JSON object from which no list of records can be taken, and a part of the error."""

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
        "two depths", {"x": {"a": RECORDS}, "b": RECORDS}, "contains several lists of records, 'x.a', 'b'"
    ),
    NoList(
        "another name",
        {"items": RECORDS},
        "no list under 'docs', which options.records names; the object's keys are 'items'",
        {"records": "docs"},
    ),
    NoList("a number", {"items": 5, "docs": RECORDS}, "no list under 'items'", {"records": "items"}),
    NoList("by key", {"s1": RECORDS[0], "s2": RECORDS[1]}, "contains 2 records under keys, 's1', 's2'"),
    NoList(
        "by key, deeper",
        {"saker": {"s1": RECORDS[0], "s2": RECORDS[1]}},
        "contains 2 records under keys, 's1', 's2'",
    ),
    NoList("no text", {"items": [{"body": "x"}]}, "no string under 'text'"),
    NoList("strings", {"items": ["x", "y"]}, "no string under 'text'"),
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("case", NO_LISTS, ids=lambda case: case.id)
def test_an_object_without_a_plain_list_of_records_is_one_line(
    tmp_path: Path, case: NoList, indent: int | None
) -> None:
    (tmp_path / "a.json").write_text(dump(case.body, indent))
    documents, report = read("jsonl", tmp_path, options=case.options)
    assert not documents
    ((_, found),) = faults(report)
    assert found.startswith(case.error)


def test_an_empty_page_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(dump({"data": {"items": []}, "page": 7}, 2))
    write_lines(tmp_path / "b.jsonl", [{"id": 7, "attachments": []}, {"text": "En."}])
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == ["En."]
    assert faults(report) == [("b.jsonl:line 1", "no string under 'text'")]


def test_the_setting_is_one_of_the_readers_and_names_keys(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"options.records: must be keys joined by dots, as response.docs, not 'a..b'"
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
        ("squad", {"id": "a", "context": "Det skjedde i 1814.", "question": "Når?", "answers": ["1814"]}),
        (
            "squad",
            {
                "paragraphs": [
                    {"context": "I 1814.", "qas": [{"id": 1, "question": "Når?", "answers": ["1814"]}]}
                ]
            },
        ),
    ],
)
def test_every_reader_of_json_takes_its_records_from_an_object(
    tmp_path: Path, reader: str, record: dict[str, Any]
) -> None:
    alone = write_lines(tmp_path / "a.jsonl", [record])
    expected = [(d.text, d.turns) for d in read(reader, alone)[0]]
    assert expected
    for name, indent in (("b.json", None), ("c.json", 2)):
        (tmp_path / name).write_text(dump({"count": 1, "data": [record]}, indent))
        documents, report = read(reader, tmp_path / name)
        assert [(d.text, d.turns) for d in documents] == expected
        assert not report.broken
    (tmp_path / "d.json").write_text(dump({"a": {"b": [record]}, "data": [record]}, 2))
    assert [
        (d.text, d.turns) for d in read(reader, tmp_path / "d.json", options={"records": "a.b"})[0]
    ] == expected


def test_a_long_object_is_read_without_holding_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a record is held to max_record_bytes; a list that comes behind what was looked at is said."""
    monkeypatch.setattr(json_text, "WINDOW", 2**17)
    records = [{"id": n, "text": f"{n}: " + "å" * 5000} for n in range(100)]
    for name, indent in (("a.json", None), ("b.json", 2)):
        (tmp_path / name).write_text(dump({"count": 100, "items": records, "next": {"page": 2}}, indent))
        documents, report = read("jsonl", tmp_path / name, limits={"max_record_bytes": 2**16})
        assert texts(documents) == [record["text"] for record in records]
        assert not report.broken
    (tmp_path / "a.json").write_text(dump({"items": records, "more": records[:3]}, 2))
    documents, report = read("jsonl", tmp_path / "a.json", limits={"max_record_bytes": 2**16})
    assert len(documents) == 100
    assert [error for _, error in faults(report)] == [
        "a second list of 3 records, 'more'; set options.records to the one to read"
    ]
    documents, report = read(
        "jsonl", tmp_path / "a.json", options={"records": "more"}, limits={"max_record_bytes": 2**20}
    )
    assert [d.text for d in documents] == [record["text"] for record in records[:3]]


# --- broken elements
# ----------------------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """What is broken in a list of the records 1 to 4, and which of them are lost by it."""

    id: str
    broken: dict[int, str]
    closed: bool = True


FAULTS = [
    Fault("two stray quotes", {2: '{"id": "2019/2", "text": "Den andre har et "galt" hermetegn."}'}),
    Fault("one stray quote", {2: '{"id": "2019/2", "text": "Den andre har et "galt hermetegn."}'}),
    Fault(
        "quote and braces",
        {2: '{"id": "2019/2", "text": "Et "galt },{ tegn", "meta": {"parts": [{"id": 1}]}}'},
    ),
    Fault("no value", {2: '{"id": "2019/2", "text": }'}),
    Fault("no brace", {2: '{"id": "2019/2", "text": "Uten slutt."'}),
    Fault("no quote at the end", {2: '{"id": "2019/2", "text": "Uten slutt.}'}),
    Fault("an escape that is none", {2: '{"id": "2019/2", "text": "C:\\Temp"}'}),
    Fault("a comment", {2: '// {"id": "2019/2"}'}),
    Fault("the first", {1: '{"id": "2019/1", "text": "Et "galt" tegn"}'}),
    Fault("the first, one quote", {1: '{"id": "2019/1", "text": "Et "galt tegn"}'}),
    Fault("the last", {4: '{"id": "2019/4", "text": "Et "galt" tegn"}'}),
    Fault(
        "two in a row",
        {2: '{"id": "2019/2", "text": "Et "galt tegn"}', 3: '{"id": "2019/3", "text": Et galt tegn"}'},
    ),
    Fault("every other", {1: '{"id": "2019/1", "text" "x"}', 3: '{"id": "2019/3" "text": "x"}'}),
]
LAYOUTS = {
    "one a line": ("[\n", ",\n", "\n]", None),
    "one line": ("[", ", ", "]", None),
    "tight": ("[", ",", "]\n", None),
    "pretty": ("[\n  ", ",\n  ", "\n]\n", 2),
    "pretty, braces together": ("[\n  ", ", ", "\n]\n", 2),
    "commas before": ("[\n  ", "\n, ", "\n]", None),
    "object": ('{"count": 4, "items": [', ", ", '], "next": null}', None),
    "object, one a line": (
        '{\n"count": 4,\n"items": [\n',
        ",\n",
        '\n],\n"facets": [\n{"id": "x"}\n]\n}',
        None,
    ),
    "object, pretty": (
        '{\n  "count": 4,\n  "items": [\n    ',
        ",\n    ",
        '\n  ],\n  "facets": [\n    {"id": "x"}\n  ]\n}',
        4,
    ),
    "nested": ('{"response": {"n": 4, "docs": [', ", ", ']}, "next": null}', None),
    "nested, pretty": (
        '{\n "response": {\n  "docs": [\n    ',
        ",\n    ",
        '\n  ],\n  "n": 4\n },\n "more": [\n    {"id": "x"}\n  ]\n}',
        4,
    ),
    "lines": ("", "\n", "\n", None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_a_broken_element_costs_itself_alone(tmp_path: Path, fault: Fault, layout: str) -> None:
    opening, comma, closing, indent = LAYOUTS[layout]
    parts = []
    for number, record in enumerate(RECORDS, start=1):
        part = fault.broken.get(number, dump(record, indent and 2))
        if indent and number in fault.broken:
            part = (
                part.replace('{"id"', '{\n  "id"')
                .replace(', "text"', ',\n  "text"')
                .replace(' "text": "', ' "text": "')
            )
            part = part[:-1] + "\n}" if part.endswith("}") else part
        parts.append(part.replace("\n", "\n" + " " * ((indent or 2) - 2 or 2) if indent else "\n"))
    (tmp_path / "a.json").write_text(opening + comma.join(parts) + closing)
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == [
        text for number, text in enumerate(EXPECTED, start=1) if number not in fault.broken
    ]
    assert len(report.broken) == len(fault.broken)
    word = "line" if layout == "lines" else "record"
    assert [place for place, _ in faults(report)] == [f"a.json:{word} {number}" for number in fault.broken]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "lines"])
def test_what_stands_between_elements_is_one_broken_record(tmp_path: Path, layout: str) -> None:
    opening, comma, closing, indent = LAYOUTS[layout]
    parts = [dump(record, indent and 2) for record in RECORDS]
    parts[1] += " eller"
    (tmp_path / "a.json").write_text(opening + comma.join(parts) + closing)
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == EXPECTED
    assert len(report.broken) == 1


@pytest.mark.parametrize(
    "tail", [', "next": {"page": 2', ', "next": nei}', "", ', "more": [{"name": "x"', " eller"]
)
@pytest.mark.parametrize("indent", [None, 2])
def test_what_is_broken_beside_the_list_costs_no_record(
    tmp_path: Path, tail: str, indent: int | None
) -> None:
    (tmp_path / "a.json").write_text(dump({"n": 4, "items": RECORDS}, indent).rstrip("\n}") + tail)
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == EXPECTED
    assert len(report.broken) == 1


def test_a_closing_bracket_too_many_costs_no_record(tmp_path: Path) -> None:
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(
            dump({"items": RECORDS}, indent).replace('{"id": "2019/3"', ']{"id": "2019/3"', 1)
        )
        assert texts(read("jsonl", tmp_path)[0]) == EXPECTED


@pytest.mark.parametrize("joint", [" ", "\n", ",,", ",\n,", ",\n"])
def test_commas_too_many_or_too_few_cost_nothing(tmp_path: Path, joint: str) -> None:
    text = joint.join(dump(record, None) for record in RECORDS)
    around = {"a": ("[", "]"), "b": ("[", ",]"), "c": ('{"items": [', "]}"), "d": ('{"items":\n[', ",]}")}
    for name, (before, behind) in around.items():
        (tmp_path / f"{name}.json").write_text(before + text + behind)
        documents, report = read("jsonl", tmp_path / f"{name}.json")
        assert texts(documents) == EXPECTED
        assert not report.broken


@pytest.mark.parametrize(
    "layout", ["one a line", "one line", "pretty", "object", "object, pretty", "nested", "nested, pretty"]
)
@pytest.mark.parametrize("cut", [1, 40, 90])
def test_a_list_that_is_cut_keeps_what_came_before_and_says_so(tmp_path: Path, layout: str, cut: int) -> None:
    opening, comma, _, indent = LAYOUTS[layout]
    margin = "\n" + " " * (indent or 0)
    text = opening + comma.join(dump(record, indent and 2).replace("\n", margin) for record in RECORDS)
    (tmp_path / "a.json").write_text(text[:-cut])
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == EXPECTED[:3]
    assert len(report.broken) == 1
    assert "the rest of the file cannot be read" in report.broken[0].error
    assert report.counts["broken_off"] == 1


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("in_object", [True, False])
def test_a_packed_file_that_breaks_off_keeps_what_came_before(
    tmp_path: Path, in_object: bool, indent: int | None
) -> None:
    random = Random(0)
    records = [{"id": n, "text": "".join(random.choices("abcdefghij ", k=400))} for n in range(2000)]
    body: Any = {"count": 2000, "response": {"docs": records}} if in_object else records
    packed = gzip.compress(dump(body, indent).encode())
    (tmp_path / "a.json.gz").write_bytes(packed)
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == [record["text"] for record in records]
    assert not report.broken
    (tmp_path / "a.json.gz").write_bytes(packed[: len(packed) // 2])
    documents, report = read("jsonl", tmp_path)
    assert 800 < len(documents) < 1200
    assert texts(documents) == [record["text"] for record in records[: len(documents)]]
    ((place, error),) = faults(report)
    assert place == f"a.json.gz:record {len(documents) + 1}"
    assert error.startswith("gzip data is truncated or corrupt")
    assert report.counts["broken_off"] == 1


def test_an_element_that_is_too_long_costs_itself_alone(tmp_path: Path) -> None:
    records = [{"text": "Liten."}, {"text": "x" * 3_000_000}, {"text": "Liten igjen."}]
    for name, text in {
        "a": dump(records, None),
        "b": dump(records, 2),
        "c": dump({"items": records}, 2),
    }.items():
        (tmp_path / f"{name}.json").write_text(text)
        documents, report = read("jsonl", tmp_path / f"{name}.json", limits={"max_record_bytes": 2**20})
        assert texts(documents) == ["Liten.", "Liten igjen."]
        assert faults(report) == [(f"{name}.json:record 2", "larger than limits.max_record_bytes")]


def test_many_broken_elements_take_no_long_time(tmp_path: Path) -> None:
    """Each is looked over once or twice: what is looked for is not read to the end for every one."""
    parts = ['{"id": "1", "text": "Et "galt tegn"}', '{"id": "2", "text": "Bra."}'] * 5000
    (tmp_path / "a.json").write_text("[" + ",".join(parts) + "]")
    source, report = SourceConfig(reader="jsonl", path=str(tmp_path), license="CC0-1.0"), Report()
    assert sum(1 for _ in reading.read("s", source, report, reading.files(source))) == 5000
    assert len(report.broken) == 5000


def test_an_element_that_is_nested_deep_is_one(tmp_path: Path) -> None:
    deep = '{"text": "Dyp.", "x": ' + "[" * 800 + '{"a": 1}' + "]" * 800 + "}"
    for name, text in {"a": f"[{deep}, nei, {deep}]", "b": f'{{"items": [{deep}, nei, {deep}]}}'}.items():
        (tmp_path / f"{name}.json").write_text(text)
        documents, report = read("jsonl", tmp_path / f"{name}.json")
        assert texts(documents) == ["Dyp.", "Dyp."]
        assert len(report.broken) == 1


# --- lines
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lines:
    """Lines of JSON, the texts that are read, and the places that are broken."""

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
    Lines("a record cut off", '{"id": 1,\n{"text": "b"}\n', ["b"], ["line 1"]),
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
def test_lines_of_many_kinds(tmp_path: Path, lines: Lines) -> None:
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


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("broken", ['{"id": "x" "text": "y"}', '{"id": "x", "text": "y}', "{'id': 'x'}"])
def test_a_broken_element_costs_itself_where_a_list_of_words_stands_before_the_records(
    tmp_path: Path, broken: str, indent: int | None
) -> None:
    whole = dump(
        {"keywords": ["a [1]", 'b "2"', 3], "none": [], "items": [RECORDS[0], "@", *RECORDS[1:]]}, indent
    )
    path = tmp_path / "a.json"
    path.write_text(whole.replace('"@"', broken))
    documents, report = read("jsonl", path)
    assert texts(documents) == EXPECTED
    assert len(faults(report)) == 1


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("body", ["@", '{"count": 4, "items": @, "next": null}'])
def test_a_stray_end_of_the_list_costs_none_of_the_records_behind_it(
    tmp_path: Path, body: str, indent: int | None
) -> None:
    parts = [dump(record, indent) for record in RECORDS]
    path = tmp_path / "a.json"
    path.write_text(body.replace("@", "[" + parts[0] + "], " + ", ".join(parts[1:]) + "]"))
    documents, report = read("jsonl", path)
    assert texts(documents) == EXPECTED
    assert len(faults(report)) == 1
