"""What a site repeats at the ends of its documents is cut; what documents share inside, laws, and copies are left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep.config import BoilerplateConfig
from data_prep.document import Document, Report
from data_prep.stages import boilerplate
from tests.data_prep.documents import config, document

MENU = "Hopp til hovedinnhold\nHjem | Tjenester | Kontakt oss"
FOOTER = "Personvern og informasjonskapsler\n\nStorvika kommune – tett på havet"


def cleaned(shards: list[list[Document]], tmp_path: Path, **settings: object) -> tuple[list[str], Report]:
    """Shard by shard, as the pipeline does it."""
    chosen = config(boilerplate=BoilerplateConfig(**settings), reader=str(settings.pop("reader", "jsonl")))  # type: ignore[arg-type]
    return run(shards, tmp_path, chosen)


def run(shards: list[list[Document]], tmp_path: Path, chosen: object) -> tuple[list[str], Report]:
    paths, report = [], Report()
    for number, shard in enumerate(shards):
        paths.append(tmp_path / f"collected-{number}.parquet")
        pq.write_table(boilerplate.collect(iter(shard), chosen), paths[-1], row_group_size=4)  # type: ignore[arg-type]
    decided = boilerplate.decide(paths, chosen)  # type: ignore[arg-type]
    return [d.text for shard in shards for d in boilerplate.run(iter(shard), chosen, report, decided)], report  # type: ignore[arg-type]


def pages(number: int) -> Iterator[Document]:
    for i in range(number):
        shared = "Alle sidene har denne setningen midt i."
        body = f"Veileder nummer {i} om noe helt annet.\n\nDet står noe eget her: {i * 37}.\n\n{shared}\n\nSlutt {i}."
        yield document(f"{MENU}\n\n{body}\n\n{FOOTER}", f"page-{i}")


def test_menu_and_footer_go_and_shared_sentences_inside_stay(tmp_path: Path) -> None:
    every = list(pages(6))
    expected = [d.text.removeprefix(MENU).removesuffix(FOOTER).strip() for d in every]
    texts, report = cleaned([every[:2], every[2:]], tmp_path)
    assert texts == expected
    assert "Alle sidene har denne setningen" in texts[0]
    assert report.counts["documents_cut"] == 6
    assert report.counts["lines_cut"] > 6


def test_where_shards_end_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = cleaned([list(pages(6))], tmp_path)[0]
    assert cleaned([[page] for page in pages(6)], tmp_path)[0] == one
    monkeypatch.setattr(boilerplate, "LINES_AT_ONCE", 3)  # nor how many lines are counted together
    assert cleaned([[page] for page in pages(6)], tmp_path)[0] == one


def test_two_documents_are_no_site_and_a_copy_is_no_second_document(tmp_path: Path) -> None:
    two = [d.text for d in pages(2)]
    assert cleaned([list(pages(2))], tmp_path)[0] == two
    copies = [document(two[0], f"copy-{i}") for i in range(5)]
    assert cleaned([copies], tmp_path)[0] == [two[0]] * 5


def test_near_copies_are_left_whole_for_the_stage_that_removes_them(tmp_path: Path) -> None:
    texts = [f"Det samme lange brevet til alle.\n\nDen samme lange setningen igjen.\n\nSak {i}" for i in range(5)]
    after, report = cleaned([[document(text, str(i)) for i, text in enumerate(texts)]], tmp_path)
    assert after == texts
    assert report.counts["left_mostly_repeated"] == 5


def test_sites_are_told_apart_by_host(tmp_path: Path) -> None:
    first = [document(d.text, d.id, url=f"https://a.example/{d.id}") for d in pages(2)]
    second = [document(d.text, d.id + "b", url=f"https://b.example/{d.id}") for d in pages(2)]
    assert cleaned([first + second], tmp_path)[0] == [d.text for d in [*pages(2), *pages(2)]], "two pages of each are too few"


def test_laws_are_left_alone(tmp_path: Path) -> None:
    laws = [document(f"Lov om {i}.\n\n§ 1. Noe om {i}.\n\nDenne loven trer i kraft straks.", str(i)) for i in range(9)]
    texts = [d.text for d in laws]
    assert run([laws], tmp_path, config(reader="lovdata"))[0] == texts


def test_an_address_that_is_none_is_of_no_site() -> None:
    assert boilerplate.site_of(document("Tekst.", "a", url="http://[foo]/x")) == boilerplate.site_of(document("Tekst.", "b"))
