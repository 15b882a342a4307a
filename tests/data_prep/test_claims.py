"""Parsing of the dates and languages that sources give for their documents."""

from __future__ import annotations

import pytest

from data_prep.sources import claims


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("2014-02-13T10:00:00+01:00", "2014-02-13"),
        ("Møte torsdag den 13. februar 2014 kl. 10", "2014-02-13"),
        ("1.12.2020", "2020-12-01"),
        (2019, "2019"),
        ("NOU 2015: 8", "2015"),
        ("", ""),
        (None, ""),
        ("kl. 10.15", ""),
        ("31.13.2020", "2020"),
        ("12345", ""),
    ],
)
def test_dates_are_parsed_from_every_notation(claim: object, expected: str) -> None:
    assert claims.parse_date(claim) == expected


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("nb", "nob"),
        ("no", "nob"),
        ("NN", "nno"),
        ("nn-NO", "nno"),
        ("en_GB", "eng"),
        ("se", "sme"),
        ("fr", "fra"),
        (None, ""),
        ("pl", "pol"),
        ("UKR", "ukr"),
        ("ar-SY", "ara"),
        ("ger", "deu"),
        ("zh_Hans", "zho"),
        ("smj", "smj"),
        ("klingon", ""),
    ],
)
def test_languages_are_mapped_to_iso_639_3(claim: object, expected: str) -> None:
    assert claims.parse_language(claim) == expected
