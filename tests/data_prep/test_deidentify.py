"""Identity numbers are masked. python-stdnum confirms the kinds of numbers that it supports."""

from __future__ import annotations

import random

import pytest
from stdnum.no import fodselsnummer

from data_prep.config import CorpusConfig, SourceConfig
from data_prep.document import Document
from data_prep.stages.deidentify import Deidentify, identity_number_kind, mask
from tests.data_prep.identity_numbers import WEIGHTS_2, valid_numbers
from tests.data_prep.stages import run_corpus_stage


@pytest.mark.parametrize(
    ("day", "month", "kind"), [(0, 0, "fødselsnummer"), (40, 0, "d_number"), (0, 40, "h_number")]
)
def test_kinds_of_identity_numbers_agree_with_stdnum(day: int, month: int, kind: str) -> None:
    for number in valid_numbers(day, month):
        assert fodselsnummer.is_valid(number)
        assert identity_number_kind(number) == kind


@pytest.mark.parametrize(("day", "month"), [(0, 80), (0, 65), (40, 80), (40, 65)])
def test_the_synthetic_series_are_recognised(day: int, month: int) -> None:
    assert all(identity_number_kind(number) == "synthetic" for number in valid_numbers(day, month))


def test_a_wrong_second_check_digit_is_rejected() -> None:
    for number in valid_numbers(0, 0):
        assert identity_number_kind(f"{number[:10]}{(int(number[10]) + 1) % 10}") is None


def test_the_rule_of_2032_accepts_more_first_check_digits() -> None:
    accepted = 0
    for number in valid_numbers(0, 0):
        for first in range(10):
            ten = f"{number[:9]}{first}"
            second = -sum(int(d) * w for d, w in zip(ten, WEIGHTS_2, strict=True)) % 11
            accepted += second < 10 and identity_number_kind(f"{ten}{second}") is not None
    assert 2.5 < accepted / len(valid_numbers(0, 0)) < 4


def test_random_digits_rarely_pass() -> None:
    rng = random.Random(1)
    hits = sum(identity_number_kind(f"{rng.randrange(10**11):011d}") is not None for _ in range(200_000))
    assert hits / 200_000 < 0.005


@pytest.mark.parametrize(
    "written", ["{0}{1}", "{0} {1}", "{0}-{1}", "{0}\u00a0{1}", "f.nr.{0}{1}.", "({0} {1})"]
)
def test_an_identity_number_is_masked_in_every_notation(written: str) -> None:
    number = valid_numbers(0, 80)[0]
    text = f"Søkeren, {written.format(number[:6], number[6:])} bor i Storvika."
    masked, found = mask(text, "[fødselsnummer]")
    assert number[6:] not in masked
    assert "[fødselsnummer]" in masked
    assert found == {"synthetic": 1}


@pytest.mark.parametrize("number", ["10203040506", "1234.56.78903", "999999941", "KID 00{0}", "{0}7"])
def test_other_numbers_are_not_masked(number: str) -> None:
    text = f"Ref. {number.format(valid_numbers(0, 80)[0])} gjelder."
    assert mask(text, "[fødselsnummer]") == (text, {})


def test_ids_titles_and_groups_are_masked_and_stay_distinct() -> None:
    """Case numbers and file names may contain identity numbers, and are written into the shards."""
    first, second = valid_numbers(0, 80)[:2]
    config = CorpusConfig(name="x", sources={"s": SourceConfig(reader="text", path="x", license="CC0-1.0")})
    documents = [
        Document(
            id=f"{n}/{i}",
            text="Tekst.",
            title=f"Sak {n}",
            source="s",
            license="CC0-1.0",
            group=f"sak-{n}",
        )
        for n in (first, second)
        for i in range(2)
    ]
    masked_documents, report = run_corpus_stage(Deidentify(), [documents[:1], documents[1:]], config)
    names = " ".join(f"{d.id} {d.title} {d.group}" for d in masked_documents)
    assert first not in names
    assert second not in names
    assert len({d.id for d in masked_documents}) == 4
    assert [d.group for d in masked_documents[:2]] == [masked_documents[0].group] * 2
    assert masked_documents[0].group != masked_documents[2].group
    assert report.counts["masked_in_names"] == 4
