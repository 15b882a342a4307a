"""Boilerplate, that is, lines at the start or end of nearly all pages of a host, is cut.

Outcomes of cases, closings of letters, laws and copies of a page are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report
from data_prep.stage_settings import BoilerplateConfig
from data_prep.stages import boilerplate
from tests.data_prep.documents import make_config, make_document

CASES = Path(__file__).parents[2].parent / "shared" / "cases"
MENU = "Hopp til hovedinnhold\nHjem | Tjenester | Kontakt oss"
FOOTER = "Personvern og informasjonskapsler\n\nStorvika kommune – tett på havet"


def remove_boilerplate(
    shards: list[list[Document]], tmp_path: Path, **settings: Any
) -> tuple[list[str], Report]:
    """Return the texts after the stage with the given settings, and its report."""
    return run_boilerplate(shards, tmp_path, make_config(boilerplate=BoilerplateConfig(**settings)))


def make_pages(texts: Sequence[str], host: str = "storvika.example") -> list[Document]:
    return [make_document(text, f"side-{i}", url=f"https://{host}/{i}") for i, text in enumerate(texts)]


def run_boilerplate(
    shards: list[list[Document]], tmp_path: Path, settings: CorpusConfig
) -> tuple[list[str], Report]:
    stage = boilerplate.Boilerplate()
    paths = []
    report = Report()
    for number, shard in enumerate(shards):
        paths.append(tmp_path / f"collected-{number}.parquet")
        pq.write_table(stage.collect(iter(shard), settings), paths[-1], row_group_size=4)
    decided = stage.decide(paths, settings)
    texts = []
    for shard in shards:
        texts += [document.text for document in stage.run(iter(shard), settings, report, decided)]
    return texts, report


def make_storvika_pages(number: int) -> Iterator[Document]:
    for i in range(number):
        shared = "Alle sidene har denne setningen midt i."
        body = (
            f"Veileder nummer {i} om noe helt annet.\n\nDet står noe eget her: {i * 37}.\n\n"
            f"{shared}\n\nSlutt {i}."
        )
        yield make_document(
            f"{MENU}\n\n{body}\n\n{FOOTER}", f"page-{i}", url=f"https://www.storvika.example/{i}"
        )


def test_menus_and_footers_are_cut_and_sentences_shared_within_pages_stay(tmp_path: Path) -> None:
    documents = list(make_storvika_pages(6))
    expected = [d.text.removeprefix(MENU).removesuffix(FOOTER).strip() for d in documents]
    texts, report = remove_boilerplate([documents[:2], documents[2:]], tmp_path)
    assert texts == expected
    assert "Alle sidene har denne setningen" in texts[0]
    assert report.counts["documents_cut"] == 6
    assert report.counts["lines_cut"] > 6


def test_shard_boundaries_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_one_shard = remove_boilerplate([list(make_storvika_pages(6))], tmp_path)[0]
    assert remove_boilerplate([[page] for page in make_storvika_pages(6)], tmp_path)[0] == in_one_shard
    # the size of a batch of lines makes no difference either
    monkeypatch.setattr(boilerplate, "LINES_AT_ONCE", 3)
    assert remove_boilerplate([[page] for page in make_storvika_pages(6)], tmp_path)[0] == in_one_shard


def test_two_documents_are_not_a_site_and_copies_count_once(tmp_path: Path) -> None:
    two = [d.text for d in make_storvika_pages(2)]
    assert remove_boilerplate([list(make_storvika_pages(2))], tmp_path)[0] == two
    assert remove_boilerplate([make_pages([two[0]] * 5)], tmp_path)[0] == [two[0]] * 5


def test_near_copies_are_left_whole_for_deduplication(tmp_path: Path) -> None:
    links = " | ".join(["Tjenester", "Personvern", "Kontakt oss"] * 3)
    texts = [f"{links}\n\nSak {i}\n\n{links}" for i in range(5)]
    after, report = remove_boilerplate([make_pages(texts)], tmp_path)
    assert after == texts
    assert report.counts["left_mostly_repeated"] == 5


def test_sites_are_distinguished_by_host(tmp_path: Path) -> None:
    texts = [d.text for d in make_storvika_pages(8)]
    two_hosts = make_pages(texts[:4], "a.example") + make_pages(texts[4:], "b.example")
    assert remove_boilerplate([two_hosts], tmp_path)[0] == texts, "four pages of each are too few"
    one_host = make_pages(texts[:4], "a.example") + make_pages(texts[4:], "www.a.example")
    assert remove_boilerplate([one_host], tmp_path)[0] != texts


def test_documents_without_a_host_are_a_site_only_where_configured(tmp_path: Path) -> None:
    texts = [d.text for d in make_storvika_pages(6)]
    no_host = [make_document(text, str(i)) for i, text in enumerate(texts)]
    assert remove_boilerplate([no_host], tmp_path) == (texts, Report())
    after, report = remove_boilerplate([no_host], tmp_path, sites=["letters"])
    assert after == remove_boilerplate([make_pages(texts)], tmp_path)[0] != texts
    assert report.counts["documents_cut"] == 6


def test_a_line_on_a_minority_of_pages_is_not_boilerplate(tmp_path: Path) -> None:
    texts = []
    for i in range(40):
        foot = "Del på e-post | Skriv ut | Til toppen" if i % 4 else f"Ende {i}"
        texts.append(f"Veileder {i} om noe eget.\n\n{foot}")
    assert remove_boilerplate([make_pages(texts)], tmp_path)[0] == texts
    assert remove_boilerplate([make_pages(texts)], tmp_path, min_share=0.5)[0] != texts


OUTCOMES = [
    "Konklusjon\nKlagen tas ikke til følge.",
    "Vedtaket stadfestes.",
    "Nemnda sitt vedtak:\n\nKlaga vert ikkje teken til følgje.",
    "Slutning\n\n«Anken forkastes.»",
    "KONKLUSJON OG VEDTAK\n\nKLAGEN AVVISES!",
    "Avgjørelse etter dette: **Søknaden innvilges.**",
    "Klagen avvises",
    "Statsforvaltaren stadfestar vedtaket",
    "Søknaden innvilget for tre år",
    "Resultat: Avslag, tidligere vedtak",
    "Fylkesmannen stadfestar vedtaket\nVedtaket kan ikke påklages videre, jf. forvaltningsloven § 28.",
    "§ 4. Ikrafttredelse\nForskriften trer i kraft straks.",
    "Med vennlig hilsen\nStatsforvalteren i Storvika",
    "Venleg helsing\n\nKari Nordmann\nseniorrådgiver, Storvika kommune",
    "Hilsen oss på Storvika skattekontor",
    "Klagen førte ikke fram.",
    "Nemnda finn at avtala er ugyldig",
    "Søknaden innvilges\n\nOslo, 3. mars 2020\nKari Nordmann\nnemndsleder",
    f"Klager gis medhold\n\nUnderskrift\n{'_' * 20}\nKari Nordmann\nnemndleder",
    "- Klagen avvist",
    "| Resultat | Avslag |",
    "| Utfall | Ikke medhold |\n| Saksnr | Se over |",
    "Brudd på likestillingsloven § 6",
    "Konklusjon: diskriminering\nOslo, den 3. mai 2021",
    "Straff: fengsel i 60 dager",
    "Pålegg om retting",
    "Oppsigelsen ugyldig",
    "Dispensasjon for garasje",
    "Lovleg tilgang til dokumentet",
    "Krav om innsyn i e-post",
]


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("frame", ["", "Del på e-post | Skriv ut | Til toppen\n© Storvika kommune"])
def test_outcomes_and_closings_are_kept_though_all_pages_of_the_host_share_them(
    outcome: str, frame: str, tmp_path: Path
) -> None:
    texts = [
        f"{MENU}\n\nSaken gjelder støy fra skytefelt {i}.\n\n{outcome}\n\n{frame}".strip() for i in range(12)
    ]
    after, _ = remove_boilerplate([make_pages(texts)], tmp_path)
    for i, text in enumerate(after):
        assert text.startswith(f"Saken gjelder støy fra skytefelt {i}."), "the menu is cut"
        assert text.endswith(outcome), "the footer after the outcome is cut"


def test_openings_are_kept_though_all_pages_of_the_host_share_them(tmp_path: Path) -> None:
    ingress = "Med hjemmel i lov om havner har Storvika kommune fastsatt følgende forskrift."
    for begin in (
        ingress,
        "## Introduksjon",
        "§ 1. Virkeområde og formål",
        "Kapittel 1 Innledning",
        "1.2 Om denne veilederen",
    ):
        texts = [f"{MENU}\n\n{begin}\n\nDette handler om kai {i}." for i in range(6)]
        assert remove_boilerplate([make_pages(texts)], tmp_path)[0] == [
            text.removeprefix(MENU).strip() for text in texts
        ]


def test_sentences_within_a_footer_are_cut_only_below_its_certain_start(tmp_path: Path) -> None:
    notice = "Vi bruker informasjonskapsler for å telle besøk."
    ruled = f"{'_' * 40}\nSlik klager du: Skriv til oss innen tre uker."
    links = f"Del på e-post | Skriv ut | Til toppen\n{notice}\nOrganisasjonsnummer 999 999 941"
    for foot in (ruled, links):
        for end in ("Vedtaket stadfestes.", "Klagefrist {}"):
            texts = [f"Saken gjelder støy fra skytefelt {i}.\n\n{end.format(i)}\n\n{foot}" for i in range(6)]
            assert remove_boilerplate([make_pages(texts)], tmp_path)[0] == [
                text.removesuffix(foot).strip() for text in texts
            ]
    texts = [f"Om noe eget, {i}.\n\nVedtaket stadfestes.\n\n{notice}" for i in range(6)]
    assert remove_boilerplate([make_pages(texts)], tmp_path)[0] == texts, (
        "nothing separates the notice from the body"
    )


@pytest.mark.parametrize(
    "frame",
    [
        "Storvika kommune\nPostboks 12, 1234 Storvika\nTelefon: 12 34 56 78\nOrg.nr. 123 456 789",
        "Publisert av Storvika kommune\nFølg oss på Facebook\nPersonvern og informasjonskapsler",
        "Fant du det du lette etter?\nJa\nNei\nKontakt oss",
        "Til toppen\nNAV\nOm NAV | Presse | Jobb i NAV\n© NAV",
    ],
)
def test_common_page_footers_are_cut(frame: str, tmp_path: Path) -> None:
    texts = [f"Saken gjelder støy fra skytefelt {i}.\n\n{frame}" for i in range(6)]
    assert remove_boilerplate([make_pages(texts)], tmp_path)[0] == [
        f"Saken gjelder støy fra skytefelt {i}." for i in range(6)
    ]


@pytest.mark.parametrize(
    "frame",
    [
        "Hopp til hovedinnhold\nMeny\nSøk\nHjem > Tjenester > Bolig",
        "Til forsiden\nNAV\nPrivatperson | Arbeidsgiver | Samarbeidspartner\nSøk",
        "Vi bruker informasjonskapsler på dette nettstedet.\nGodta alle\nBare nødvendige\nMeny",
    ],
)
def test_common_page_headers_are_cut_and_the_document_type_stays(frame: str, tmp_path: Path) -> None:
    texts = [f"{frame}\n\nVedtak i klagesak\n\nSaken gjelder støy fra skytefelt {i}." for i in range(6)]
    assert remove_boilerplate([make_pages(texts)], tmp_path)[0] == [
        text.removeprefix(frame).strip() for text in texts
    ]


def test_cut_lines_are_recorded_with_counts_and_an_example(tmp_path: Path) -> None:
    _, report = remove_boilerplate([list(make_storvika_pages(6))], tmp_path)
    cuts = {cut.text: cut for cut in report.cuts.values()}
    assert {line for part in (MENU, FOOTER) for line in part.split("\n") if line} == set(cuts)
    for cut in cuts.values():
        assert (cut.source, cut.reason, cut.documents, cut.example) == (
            "letters",
            "frame of letters storvika.example",
            6,
            "page-0",
        )
    assert report.counts["lines_cut"] == sum(cut.documents for cut in cuts.values())


@pytest.mark.parametrize("name", ["outcome-lines.jsonl", "act-titles.jsonl"])
@pytest.mark.parametrize("url", ["", "https://nemnda.example/sak/"])
def test_real_outcomes_and_titles_are_kept_whole(name: str, url: str, tmp_path: Path) -> None:
    path = CASES / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    documents = [make_document(r["text"], r["id"], url=url and url + r["id"]) for r in records]
    texts = [d.text for d in documents]
    after, report = remove_boilerplate(
        [documents], tmp_path, min_documents=2, min_share=0.3, sites=["letters"]
    )
    assert (after, report.counts) == (texts, {})


def test_laws_are_not_cut(tmp_path: Path) -> None:
    laws = [
        make_document(
            f"Lov om {i}.\n\n§ 1. Noe om {i}.\n\nSide | Lov | Meny", str(i), url="https://l.example"
        )
        for i in range(9)
    ]
    texts = [d.text for d in laws]
    assert run_boilerplate([laws], tmp_path, make_config(reader="lovdata"))[0] == texts


def test_an_invalid_url_belongs_to_no_site() -> None:
    for url in ("http://[foo]/x", "storvika.example/side", "file:///a/b", ""):
        assert boilerplate.site_of(make_document("Tekst.", "a", url=url), make_config()) is None
    document = make_document("Tekst.", "a", url="https://www.B.example:80/x")
    assert boilerplate.site_of(document, make_config()) == "letters b.example"


@pytest.mark.parametrize(
    ("source", "reader", "message"),
    [
        ("brev", "jsonl", "boilerplate.sites names 'brev': choose among letters"),
        (
            "letters",
            "lovdata",
            "boilerplate.sites names 'letters', whose reader lovdata is not in boilerplate.readers",
        ),
    ],
)
def test_a_setting_of_sites_that_would_have_no_effect_is_rejected(
    source: str, reader: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(reader=reader, boilerplate=BoilerplateConfig(sites=[source]))
