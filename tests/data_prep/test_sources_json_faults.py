"""A broken element of a JSON list loses no other record."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from data_prep import reading
from data_prep.config import SourceConfig
from data_prep.document import Report
from tests.data_prep.json_records import EXPECTED, RECORDS, dump_json
from tests.data_prep.reading import broken_places, read, texts


@dataclass
class Fault:
    """Broken elements in a list of four records.

    Attributes:
        broken: JSON text of each broken element, by the number of the record that it replaces.
    """

    id: str
    broken: dict[int, str]


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
    Fault("an invalid escape", {2: '{"id": "2019/2", "text": "C:\\Temp"}'}),
    Fault("a comment", {2: '// {"id": "2019/2"}'}),
    Fault("the first", {1: '{"id": "2019/1", "text": "Et "galt" tegn"}'}),
    Fault("the first, one quote", {1: '{"id": "2019/1", "text": "Et "galt tegn"}'}),
    Fault("the last", {4: '{"id": "2019/4", "text": "Et "galt" tegn"}'}),
    Fault(
        "two in a row",
        {
            2: '{"id": "2019/2", "text": "Et "galt tegn"}',
            3: '{"id": "2019/3", "text": Et galt tegn"}',
        },
    ),
    Fault("every other", {1: '{"id": "2019/1", "text" "x"}', 3: '{"id": "2019/3" "text": "x"}'}),
]
# by layout: opening, separator and closing of the list, indentation of the records
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
def test_a_broken_element_loses_no_other_record(tmp_path: Path, fault: Fault, layout: str) -> None:
    opening, comma, closing, indent = LAYOUTS[layout]
    parts = []
    for number, record in enumerate(RECORDS, start=1):
        if number not in fault.broken:
            part = dump_json(record, indent and 2)
        elif indent:
            part = fault.broken[number].replace('{"id"', '{\n  "id"').replace(', "text"', ',\n  "text"')
            if part.endswith("}"):
                part = part[:-1] + "\n}"
        else:
            part = fault.broken[number]
        if indent:
            part = part.replace("\n", "\n" + " " * (indent - 2 or 2))
        parts.append(part)
    (tmp_path / "a.json").write_text(opening + comma.join(parts) + closing)
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == [
        text for number, text in enumerate(EXPECTED, start=1) if number not in fault.broken
    ]
    assert len(report.broken) == len(fault.broken)
    unit = "line" if layout == "lines" else "record"
    places = [place for place, _ in broken_places(report)]
    assert places == [f"a.json:{unit} {number}" for number in fault.broken]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "lines"])
def test_stray_text_between_elements_is_one_broken_record(tmp_path: Path, layout: str) -> None:
    opening, comma, closing, indent = LAYOUTS[layout]
    parts = [dump_json(record, indent and 2) for record in RECORDS]
    parts[1] += " eller"
    (tmp_path / "a.json").write_text(opening + comma.join(parts) + closing)
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == EXPECTED
    assert len(report.broken) == 1


@pytest.mark.parametrize(
    "tail", [', "next": {"page": 2', ', "next": nei}', "", ', "more": [{"name": "x"', " eller"]
)
@pytest.mark.parametrize("indent", [None, 2])
def test_an_error_outside_the_list_loses_no_record(tmp_path: Path, tail: str, indent: int | None) -> None:
    (tmp_path / "a.json").write_text(dump_json({"n": 4, "items": RECORDS}, indent).rstrip("\n}") + tail)
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == EXPECTED
    assert len(report.broken) == 1


def test_an_extra_closing_bracket_loses_no_record(tmp_path: Path) -> None:
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(
            dump_json({"items": RECORDS}, indent).replace('{"id": "2019/3"', ']{"id": "2019/3"', 1)
        )
        assert texts(read("jsonl", tmp_path)[0]) == EXPECTED


@pytest.mark.parametrize("joint", [" ", "\n", ",,", ",\n,", ",\n"])
def test_extra_and_missing_commas_lose_nothing(tmp_path: Path, joint: str) -> None:
    text = joint.join(dump_json(record, None) for record in RECORDS)
    around = {
        "a": ("[", "]"),
        "b": ("[", ",]"),
        "c": ('{"items": [', "]}"),
        "d": ('{"items":\n[', ",]}"),
    }
    for name, (before, behind) in around.items():
        (tmp_path / f"{name}.json").write_text(before + text + behind)
        documents, report = read("jsonl", tmp_path / f"{name}.json")
        assert texts(documents) == EXPECTED
        assert not report.broken


@pytest.mark.parametrize(
    "layout",
    ["one a line", "one line", "pretty", "object", "object, pretty", "nested", "nested, pretty"],
)
@pytest.mark.parametrize("cut", [1, 40, 90])
def test_records_before_a_truncation_are_kept_and_it_is_reported(
    tmp_path: Path, layout: str, cut: int
) -> None:
    opening, comma, _, indent = LAYOUTS[layout]
    margin = "\n" + " " * (indent or 0)
    text = opening + comma.join(dump_json(record, indent and 2).replace("\n", margin) for record in RECORDS)
    (tmp_path / "a.json").write_text(text[:-cut])
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == EXPECTED[:3]
    assert len(report.broken) == 1
    assert "the rest of the file cannot be read" in report.broken[0].error
    assert report.counts["broken_off"] == 1


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("in_object", [True, False])
def test_records_before_a_truncation_of_a_gzip_file_are_kept(
    tmp_path: Path, in_object: bool, indent: int | None
) -> None:
    random = Random(0)
    records = [{"id": n, "text": "".join(random.choices("abcdefghij ", k=400))} for n in range(2000)]
    body: Any = {"count": 2000, "response": {"docs": records}} if in_object else records
    packed = gzip.compress(dump_json(body, indent).encode())
    (tmp_path / "a.json.gz").write_bytes(packed)
    documents, report = read("jsonl", tmp_path)
    assert texts(documents) == [record["text"] for record in records]
    assert not report.broken
    (tmp_path / "a.json.gz").write_bytes(packed[: len(packed) // 2])
    documents, report = read("jsonl", tmp_path)
    assert 800 < len(documents) < 1200
    assert texts(documents) == [record["text"] for record in records[: len(documents)]]
    ((place, error),) = broken_places(report)
    assert place == f"a.json.gz:record {len(documents) + 1}"
    assert error.startswith("gzip data is truncated or corrupt")
    assert report.counts["broken_off"] == 1


def test_an_element_over_the_size_limit_loses_no_other_record(tmp_path: Path) -> None:
    records = [{"text": "Liten."}, {"text": "x" * 3_000_000}, {"text": "Liten igjen."}]
    for name, text in {
        "a": dump_json(records, None),
        "b": dump_json(records, 2),
        "c": dump_json({"items": records}, 2),
    }.items():
        (tmp_path / f"{name}.json").write_text(text)
        documents, report = read("jsonl", tmp_path / f"{name}.json", limits={"max_record_bytes": 2**20})
        assert texts(documents) == ["Liten.", "Liten igjen."]
        error = "larger than limits.max_record_bytes; raise that limit if this is intended"
        assert broken_places(report) == [(f"{name}.json:record 2", error)]


def test_many_broken_elements_are_read_in_linear_time(tmp_path: Path) -> None:
    """Each element is scanned at most twice, and not up to the end of the file."""
    parts = ['{"id": "1", "text": "Et "galt tegn"}', '{"id": "2", "text": "Bra."}'] * 5000
    (tmp_path / "a.json").write_text("[" + ",".join(parts) + "]")
    source, report = SourceConfig(reader="jsonl", path=str(tmp_path), license="CC0-1.0"), Report()
    assert sum(1 for _ in reading.read("s", source, report, reading.files(source))) == 5000
    assert len(report.broken) == 5000


def test_a_deeply_nested_element_is_one_record(tmp_path: Path) -> None:
    deep = '{"text": "Dyp.", "x": ' + "[" * 800 + '{"a": 1}' + "]" * 800 + "}"
    for name, text in {
        "a": f"[{deep}, nei, {deep}]",
        "b": f'{{"items": [{deep}, nei, {deep}]}}',
    }.items():
        (tmp_path / f"{name}.json").write_text(text)
        documents, report = read("jsonl", tmp_path / f"{name}.json")
        assert texts(documents) == ["Dyp.", "Dyp."]
        assert len(report.broken) == 1


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("broken", ['{"id": "x" "text": "y"}', '{"id": "x", "text": "y}', "{'id': 'x'}"])
def test_a_broken_element_after_a_list_of_strings_loses_no_other_record(
    tmp_path: Path, broken: str, indent: int | None
) -> None:
    whole = dump_json(
        {"keywords": ["a [1]", 'b "2"', 3], "none": [], "items": [RECORDS[0], "@", *RECORDS[1:]]},
        indent,
    )
    path = tmp_path / "a.json"
    path.write_text(whole.replace('"@"', broken))
    documents, report = read("jsonl", path)
    assert texts(documents) == EXPECTED
    assert len(broken_places(report)) == 1


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("body", ["@", '{"count": 4, "items": @, "next": null}'])
def test_records_after_a_stray_closing_bracket_are_read(
    tmp_path: Path, body: str, indent: int | None
) -> None:
    parts = [dump_json(record, indent) for record in RECORDS]
    path = tmp_path / "a.json"
    path.write_text(body.replace("@", "[" + parts[0] + "], " + ", ".join(parts[1:]) + "]"))
    documents, report = read("jsonl", path)
    assert texts(documents) == EXPECTED
    assert len(broken_places(report)) == 1
