"""The reader of public journals (eInnsyn)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.data_prep.reading import broken_places, read, texts
from tests.data_prep.source_texts import ARKIV, JSON_LD_GRAPH, NOARK_EXPORT, make_journal


def expand(graph: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the graph in JSON-LD's expanded form: names are full IRIs, and values are in lists."""

    def expand_name(key: str) -> str:
        return key.replace("arkiv:", ARKIV)

    def as_list(value: Any) -> list[Any]:
        return value if isinstance(value, list) else [value]

    def expand_value(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {"@value": value}
        return {expand_name(key): expand_name(inner) for key, inner in value.items()}

    nodes = []
    for node in graph:
        types = [expand_name(kind) for kind in as_list(node["@type"])]
        nodes.append({"@id": node["@id"], "@type": types})
        for key, values in node.items():
            if not key.startswith("@"):
                nodes[-1][expand_name(key)] = [expand_value(value) for value in as_list(values)]
    return nodes


EXPECTED_TEXT = (
    "Sak 2021/44: Klage på vedtak\nPlan\n\nInngående dokument 1 (2021-03-02): Klage\n"
    "{attachment}Unntatt offentlighet: Offl. § 13"
)


def test_noark_journals_yield_public_titles_and_nothing_withheld(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(NOARK_EXPORT)
    (document,), report = read("einnsyn", tmp_path)
    assert document.text == (
        EXPECTED_TEXT.format(attachment="")
        + "\n\nJournalpost 2: Svar\n\nJournalpost 3: Kart\nHoveddokument: Kart over området"
    )
    assert "HEMMELIG" not in str(document)
    assert (document.group, document.title, document.date) == ("sak-1", "Klage på vedtak", "2021")
    assert not report.broken


SHIELD = "<skjerming><tilgangsrestriksjon>Unntatt offentlighet</tilgangsrestriksjon></skjerming>"


@pytest.mark.parametrize(
    "withheld",
    ["", "arkivdel", "klasse", "mappe", "dokumentbeskrivelse", "same", "missing", "empty"],
)
def test_a_document_title_is_read_only_where_nothing_around_it_is_withheld(
    tmp_path: Path, withheld: str
) -> None:
    titles = {
        "same": "<tittel>Kart</tittel>",
        "missing": "",
        "empty": "<tittel/><offentligTittel/>",
    }
    own = titles.get(withheld, "<tittel>Kart</tittel><offentligTittel>Kart</offentligTittel>")
    shield = SHIELD if withheld == "dokumentbeskrivelse" else ""
    xml = (
        f"<systemID>b</systemID>{own}<dokumentbeskrivelse>"
        f"<tittel>Tegning</tittel>{shield}</dokumentbeskrivelse>"
    )
    xml = f"<registrering xsi:type='journalpost'>{xml}</registrering>"
    xml = (
        f"<mappe xsi:type='saksmappe'><systemID>a</systemID>"
        f"<offentligTittel>Ny vei</offentligTittel>{xml}</mappe>"
    )
    for name in ("mappe", "klasse", "arkivdel"):
        xml = f"<{name}>{xml}{SHIELD if withheld == name else ''}</{name}>"
    (tmp_path / "a.xml").write_text(
        f"<arkiv xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance'>{xml}</arkiv>"
    )
    (document,), report = read("einnsyn", tmp_path)
    assert document.title == "Ny vei"
    assert ("Tegning" in document.text) is (withheld == "")
    assert not report.broken


def test_folders_without_an_id_stay_separate(tmp_path: Path) -> None:
    folders = "".join(
        f"<mappe xsi:type='saksmappe'><offentligTittel>Sak {n}</offentligTittel>"
        f"<registrering xsi:type='journalpost'><offentligTittel>Brev {n}</offentligTittel>"
        f"</registrering></mappe>"
        for n in "ab"
    )
    (tmp_path / "a.xml").write_text(
        f"<arkiv xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance'>{folders}</arkiv>"
    )
    documents, _ = read("einnsyn", tmp_path)
    assert [d.text for d in documents] == [
        "Sak: Sak a\n\nJournalpost: Brev a",
        "Sak: Sak b\n\nJournalpost: Brev b",
    ]


@pytest.mark.parametrize("form", ["compact", "nested", "expand"])
def test_json_ld_journals_yield_public_titles_and_nothing_withheld(tmp_path: Path, form: str) -> None:
    graph = [
        {**JSON_LD_GRAPH[0], "x:kind": ["a term that we have a name like"], "inside": 5},
        *JSON_LD_GRAPH[1:],
    ]
    body: Any = {"@context": {"arkiv": ARKIV}, "@graph": graph}
    if form == "expand":
        body = expand(graph)
    if form == "nested":  # documents are nested in entries, entries in cases
        entry = {
            **JSON_LD_GRAPH[1],
            "arkiv:dokumentbeskrivelse": [JSON_LD_GRAPH[2]],
            "arkiv:skjerming": JSON_LD_GRAPH[3],
        }
        del entry["arkiv:parent"]
        body = {
            "@context": {"arkiv": ARKIV},
            "@graph": [{**graph[0], "arkiv:registrering": [entry]}],
        }
    (tmp_path / "a.jsonld").write_text(json.dumps(body, ensure_ascii=False, indent=1))
    (document,), report = read("einnsyn", tmp_path)
    assert document.text == EXPECTED_TEXT.format(attachment="Vedlegg: Vedlegg om vei\n")
    assert "HEMMELIG" not in str(document)
    assert (document.id, document.group) == ("a:sak-1", "sak-1")
    assert not report.broken


def test_an_entry_without_its_case_belongs_to_the_group_of_the_case(tmp_path: Path) -> None:
    (tmp_path / "a.jsonld").write_text(json.dumps({"@graph": JSON_LD_GRAPH[1:]}))
    (tmp_path / "b.jsonld").write_text(json.dumps({"@graph": [{"@id": "x", "@type": "arkiv:Saksmappe"}]}))
    (document,), report = read("einnsyn", tmp_path)
    assert (document.id, document.group) == ("a:jp-1", "sak-1")
    assert report.counts["without_public_titles"] == 1


@pytest.mark.parametrize("version", ["3", "5"])
@pytest.mark.parametrize("kind", ["offentligJournal", "loependeJournal"])
def test_archive_journals_yield_public_titles_by_case(tmp_path: Path, kind: str, version: str) -> None:
    (tmp_path / f"{kind}.xml").write_text(make_journal(kind, version))
    documents, report = read("einnsyn", tmp_path)
    assert texts(documents) == [
        "Sak 2021/44: Klage på vedtak\nPlan\n\nJournalpost 1 (2021-02-27): Klage\n"
        "Unntatt offentlighet: Offl. § 13\n\nJournalpost 2 (2021-03-02): Svar",
        "Sak 2021/45: Ny vei\nPlan\n\nJournalpost 1 (2021-03-02): Kart",
    ]
    assert "HEMMELIG" not in str(documents)
    assert [(d.group, d.title, d.date) for d in documents] == [
        ("958:2021/44", "Klage på vedtak", "2021"),
        ("958:2021/45", "Ny vei", "2021"),
    ]
    assert not report.broken


def test_unredacted_titles_never_replace_missing_public_ones(tmp_path: Path) -> None:
    bare = re.sub("<offentligTittel>.*?</offentligTittel>", "", make_journal("loependeJournal"))
    (tmp_path / "a.xml").write_text(bare)
    (tmp_path / "b.xml").write_text(
        re.sub("<offentligTittel>(Kart|Ny vei)</offentligTittel>", "", make_journal("loependeJournal"))
    )
    documents, report = read("einnsyn", tmp_path)
    assert [d.title for d in documents] == ["Klage på vedtak"]
    assert "HEMMELIG" not in str(documents)
    assert report.counts["without_public_titles"] == 3


def test_a_case_title_given_in_one_row_applies_to_all_rows(tmp_path: Path) -> None:
    text = make_journal("offentligJournal").replace(
        "<offentligTittel>Klage på vedtak</offentligTittel>", "", 1
    )
    (tmp_path / "a.xml").write_text(text)
    assert [d.title for d in read("einnsyn", tmp_path)[0]] == ["Klage på vedtak", "Ny vei"]


# nested too deeply: for json.loads, or for the recursion over the parsed value
DEEP = '{"@id": "x", "@type": "y", "z": ' * 990 + "1" + "}" * 990


@pytest.mark.parametrize(
    "body", ["{", "[" * 5000, DEEP, '<arkiv><mappe xsi:type="saksmappe"/></arkiv>', "<rss/>"]
)
def test_a_malformed_delivery_is_quarantined(tmp_path: Path, body: str) -> None:
    (tmp_path / "a.jsonld").write_text(body)
    (tmp_path / "b.xml").write_text(NOARK_EXPORT)
    documents, report = read("einnsyn", tmp_path)
    assert len(documents) == 1
    assert [place for place, _ in broken_places(report)] == ["a.jsonld"]
