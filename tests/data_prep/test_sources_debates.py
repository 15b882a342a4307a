"""The readers of parliamentary debates: Stortinget and ParlaMint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data_prep.reading import broken_places, read, texts
from tests.data_prep.source_texts import ANNOTATED_WORDS, NEW_MINUTES, OLD_MINUTES, PARLAMINT_DEBATE

# --- Stortinget


@pytest.mark.parametrize("encoding", ["UTF-8", "ISO-8859-1"])
def test_old_minutes_keep_speaker_kind_and_time(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "s140213.xml").write_bytes(OLD_MINUTES.format(encoding=encoding).encode(encoding))
    documents, report = read("stortinget", tmp_path)
    assert [d.id for d in documents] == ["s140213:1.0", "s140213:1.1", "s140213:1.2"]
    assert documents[1].text == (
        "Sak nr. 1\n\nInnstilling om fjellskogen\n\nPresidenten: Ordet går til saksordføreren.\n\n"
        "Kari Eksempel (Sp) [10:00:37], hovedinnlegg: Skogen er viktig.\n\nTakk.\n\n"
        "Ola Dømme (A) [10:05:00], replikk: Kva kostar det?\n\n"
        "Per Prøve hadde her overtatt presidentplassen."
    )
    assert documents[2].text == "Referat\n\nKari Eksempel (Sp): Ingen merknader."
    assert {(d.group, d.date) for d in documents} == {("s140213", "2014-02-13")}
    assert {d.url.partition("=")[2] for d in documents} == {"s140213"}
    (tmp_path / "s140213.xml").rename(tmp_path / "kopi.xml")
    urls = {d.url for d in read("stortinget", tmp_path)[0]}
    assert urls == {""}, "the file name is not a publication id of Stortinget"
    assert [d.title for d in documents[1:]] == ["Innstilling om fjellskogen", "Referat"]
    assert not report.broken


def test_new_minutes_keep_speaker_kind_and_time(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(NEW_MINUTES)
    documents, _ = read("stortinget", tmp_path)
    assert texts(documents) == [
        "Møte tirsdag den 17. november 2020 kl. 10\n\nPresident: Per Prøve",
        "Sak nr. 1 [10:00:12]\n\nInnstilling om ferjer\n\n"
        "Presidenten: Etter ønske fra komiteen er taletiden begrenset.\n\n"
        "Kari Eksempel (H) [10:01:00], hovedinnlegg: Ferjene går for sjelden.\n\nPunkt:\n\n"
        "flere avganger\n\nOla Dømme (A) [10:04:00], replikk: Hva koster det?\n\nÅr | Kroner",
    ]
    assert {(d.group, d.date) for d in documents} == {("refs-202021-11-17", "2020-11-17")}
    export = "https://data.stortinget.no/eksport/publikasjon"
    assert documents[1].url == f"{export}?publikasjonid=refs-202021-11-17"
    speeches, _ = read("stortinget", tmp_path, options={"unit": "speech"})
    assert [text.partition(",")[0].partition(":")[0] for text in texts(speeches)] == [
        "Presidenten",
        "Kari Eksempel (H) [10",
        "Ola Dømme (A) [10",
    ]
    assert speeches[1].text.endswith("Punkt:\n\nflere avganger")


@pytest.mark.parametrize(
    ("xml", "error"),
    [
        ("<forhandling><mote></forhandling>", "not well-formed XML"),
        ("<rss/>", "not minutes of Stortinget: the root is <rss>"),
        ("<forhandling>" + "<a>" * 400 + "</a>" * 400 + "</forhandling>", "Excessive depth"),
        ("", "not well-formed XML"),
        ("bare tekst", "not well-formed XML"),
        (
            '<!DOCTYPE f [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
            '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
            "<forhandling><mote><saker><sak><innlegg><a>&c;</a></innlegg></sak></saker></mote></forhandling>",
            "uses the entity &c;, which it declares itself",
        ),
        (
            (
                '<!DOCTYPE f [<!ENTITY x SYSTEM "file:///etc/hostname">]><forhandling><mote>'
                "<a>&x;</a></mote></forhandling>"
            ),
            "uses the entity &x;, which it declares itself",
        ),
        (
            (
                '<!DOCTYPE f [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd"> %p;]><forhandling>'
                "<a>&y;</a></forhandling>"
            ),
            "&y;",
        ),
    ],
)
def test_malformed_markup_is_quarantined_and_good_files_are_read(
    tmp_path: Path, xml: str, error: str
) -> None:
    (tmp_path / "a.xml").write_text(xml)
    (tmp_path / "b.xml").write_text(NEW_MINUTES)
    documents, report = read("stortinget", tmp_path)
    assert len(documents) == 2
    ((place, found),) = broken_places(report)
    assert place == "a.xml"
    assert error in found


# --- ParlaMint


def test_debates_keep_headings_and_speakers(tmp_path: Path) -> None:
    (tmp_path / "ParlaMint-NO_2022-05-10.xml").write_text(
        PARLAMINT_DEBATE.format(seg="<seg>Takk, president!</seg>")
    )
    (tmp_path / "ParlaMint-NO-listPerson.xml").write_text(
        '<listPerson xmlns="http://www.tei-c.org/ns/1.0"><person/></listPerson>'
    )
    documents, report = read("parlamint", tmp_path)
    assert texts(documents) == [
        "Sak nr. 1 [10:00:00]\n\nSpørsmål om ferjer\n\n"
        "Kari Eksempel (Sp) [10:00:37]: Representanten Ola Dømme, frå fylket, spør.\n\n"
        "Eg svarar gjerne, og eg svarar lenge.\n\nPresidenten: Neste.",
        "Takk, president!",
    ]
    assert [d.language for d in documents] == ["nno", "nob"]
    assert {(d.group, d.date, d.url) for d in documents} == {
        ("ParlaMint-NO_2022-05-10", "2022-05-10", "https://data.stortinget.no/x")
    }
    assert report.counts["files_without_debates"] == 1
    speeches, _ = read("parlamint", tmp_path, options={"unit": "speech"})
    assert [(d.id, d.language) for d in speeches] == [("u1", "nno"), ("u2", "nob"), ("u3", "nob")]


def test_annotated_debates_give_the_text_of_plain_ones(tmp_path: Path) -> None:
    (tmp_path / "a.ana.xml").write_text(PARLAMINT_DEBATE.format(seg=ANNOTATED_WORDS))
    assert texts(read("parlamint", tmp_path)[0])[1] == "Takk, president!"
