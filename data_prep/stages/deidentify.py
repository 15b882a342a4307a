"""Masks national identity numbers (fødselsnummer and its kin). Only numbers whose check digits fit are
masked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report
from data_prep.stages.protocol import CorpusStage

# Six digits and five, written together or parted by one space, no-break space or hyphen; not inside a longer
# number.
_CANDIDATE = re.compile(r"(?<![\d])(\d{6})[ \u00a0\u202f-]?(\d{5})(?!\d)")
_SIGN = re.compile(
    r"\d\d\d\d\d\d[ \u00a0\u202f-]?\d\d\d\d\d"
)  # a text without has none, and this takes a quarter of the time

_WEIGHTS_1 = (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)
_WEIGHTS_2 = (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)

# What is added to the month (or, for D-numbers, the day) of a birth date, and the kind of number that makes.
_KINDS = (
    (0, 0, "fødselsnummer"),
    (40, 0, "d_number"),
    (0, 40, "h_number"),
    (0, 65, "synthetic"),
    (0, 80, "synthetic"),
    (40, 40, "synthetic"),
    (40, 65, "synthetic"),
    (40, 80, "synthetic"),
)
_RULE_OF_2032 = ("fødselsnummer", "d_number")


@dataclass(kw_only=True)
class DeidentifySettings:
    """The replacements."""

    national_identity_number: str


class Deidentify(CorpusStage):
    """Mask the numbers in texts and titles, and rename the ids and groups that hold them."""

    name = "deidentify"
    version = 2

    def settings(self, config: CorpusConfig) -> DeidentifySettings:
        return DeidentifySettings(national_identity_number=config.deidentify.national_identity_number)

    def collect(self, documents: Iterator[Document], config: CorpusConfig) -> pa.Table:
        """Ids and groups that hold such numbers."""
        names = (name for document in documents for name in (document.id, document.group))
        return pa.table(
            {"name": pa.array(dict.fromkeys(name for name in names if mask(name, "")[1]), pa.string())}
        )

    def decide(self, collected: list[Path], config: CorpusConfig) -> pa.Table:
        """What they are called instead. Two groups must stay two, and a hash of eleven digits can be undone:
        they are numbered in order of appearance."""
        names = dict.fromkeys(name for path in collected for name in pq.read_table(path)["name"].to_pylist())
        replacement = config.deidentify.national_identity_number
        aliases = [mask(name, f"{replacement}{number}")[0] for number, name in enumerate(names, start=1)]
        return pa.table({"name": pa.array(names, pa.string()), "alias": pa.array(aliases, pa.string())})

    def run(
        self, documents: Iterator[Document], config: CorpusConfig, report: Report, decided: pa.Table
    ) -> Iterator[Document]:
        replacement = config.deidentify.national_identity_number
        aliases = dict(zip(decided["name"].to_pylist(), decided["alias"].to_pylist(), strict=True))

        def masked(text: str) -> str:
            text, found = mask(text, replacement)
            for kind, count in found.items():
                report.counts[f"masked_{kind}"] += count
            return text

        for document in documents:
            document.text, document.title = masked(document.text), masked(document.title)
            for turn in document.turns:
                turn.content = masked(turn.content)
            names = document.id, document.group
            document.id, document.group = (aliases.get(name, name) for name in names)
            report.counts["masked_in_names"] += names != (document.id, document.group)
            yield document


def mask(text: str, replacement: str) -> tuple[str, Counter[str]]:
    """`text` with every national identity number replaced, and how many of each kind there were."""
    found: Counter[str] = Counter()
    if not _SIGN.search(text):
        return text, found

    def replace(match: re.Match[str]) -> str:
        kind = identity_number_kind(match[1] + match[2])
        if kind is None:
            return match[0]
        found[kind] += 1
        return replacement

    return _CANDIDATE.sub(replace, text), found


def identity_number_kind(digits: str) -> str | None:
    """fødselsnummer, d_number, h_number or synthetic if the eleven digits are a valid number of that kind,
    else None.

    Both weighted sums of the digits must leave 0 modulo 11. By the rule from 2032 (Skatteetaten, "Nytt
    fødselsnummer fra 2032") the first may leave 1, 2 or 3 too in fødselsnummer and D-numbers. Synthetic
    numbers add 80 (Tenor), 65 or, with a D-number's day, 40 to the month, and belong to nobody; they are
    masked all the same, as whoever uses them treats them as numbers of persons.
    """
    numbers = [int(d) for d in digits]
    first = sum(n * w for n, w in zip(numbers, _WEIGHTS_1, strict=False)) % 11
    if first > 3 or sum(n * w for n, w in zip(numbers, _WEIGHTS_2, strict=True)) % 11:
        return None
    day, month, year = int(digits[:2]), int(digits[2:4]), int(digits[4:6])
    for day_offset, month_offset, kind in _KINDS:
        # From 2032 the individual number no longer tells the century: a date that exists in either century
        # will do.
        if (first == 0 or kind in _RULE_OF_2032) and any(
            _is_date(day - day_offset, month - month_offset, century + year) for century in (1900, 2000)
        ):
            return kind
    return None


def _is_date(day: int, month: int, year: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True
