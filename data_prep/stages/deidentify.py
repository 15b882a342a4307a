"""Masking of valid national identity numbers (fødselsnummer, D-number, H-number)."""

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

# Six digits, then five digits, with nothing, a space, a no-break space or a hyphen between them. They
# are not part of a longer number.
_CANDIDATE = re.compile(r"(?<![\d])(\d{6})[ \u00a0\u202f-]?(\d{5})(?!\d)")
# Quick test, in a quarter of the time: a text in which this pattern is not found has no candidate.
_QUICK = re.compile(r"\d\d\d\d\d\d[ \u00a0\u202f-]?\d\d\d\d\d")

_WEIGHTS_1 = (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)
_WEIGHTS_2 = (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)

# For each kind of number: the offsets that are added to the day and to the month of birth, and the
# name of the kind.
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
_KINDS_OF_2032 = ("fødselsnummer", "d_number")  # kinds to which the rule from 2032 applies


@dataclass(kw_only=True)
class DeidentifySettings:
    """The setting of the stage: the string that replaces a national identity number."""

    national_identity_number: str


class Deidentify(CorpusStage):
    """Mask identity numbers in texts and titles; rename the ids and groups that contain them."""

    name = "deidentify"
    version = 2

    def settings(self, config: CorpusConfig) -> DeidentifySettings:
        return DeidentifySettings(national_identity_number=config.deidentify.national_identity_number)

    def collect(self, documents: Iterator[Document], config: CorpusConfig) -> pa.Table:
        """Return the ids and groups that contain national identity numbers."""
        names = (name for document in documents for name in (document.id, document.group))
        found = dict.fromkeys(name for name in names if mask(name, "")[1])
        return pa.table({"name": pa.array(found, pa.string())})

    def decide(self, collected: list[Path], config: CorpusConfig) -> pa.Table:
        """Return a new name for each id and group that contains a national identity number.

        New names are numbered in order of appearance, so that different groups keep different
        names. A hash cannot be used instead, because a hash of eleven digits can be reversed by
        trying all numbers.
        """
        names = dict.fromkeys(name for path in collected for name in pq.read_table(path)["name"].to_pylist())
        replacement = config.deidentify.national_identity_number
        aliases = [mask(name, f"{replacement}{number}")[0] for number, name in enumerate(names, start=1)]
        return pa.table({"name": pa.array(names, pa.string()), "alias": pa.array(aliases, pa.string())})

    def run(
        self, documents: Iterator[Document], config: CorpusConfig, report: Report, decided: pa.Table
    ) -> Iterator[Document]:
        replacement = config.deidentify.national_identity_number
        aliases = dict(zip(decided["name"].to_pylist(), decided["alias"].to_pylist(), strict=True))

        def mask_and_count(text: str) -> str:
            text, found = mask(text, replacement)
            for kind, count in found.items():
                report.counts[f"masked_{kind}"] += count
            return text

        for document in documents:
            document.text = mask_and_count(document.text)
            document.title = mask_and_count(document.title)
            for turn in document.turns:
                turn.content = mask_and_count(turn.content)
            is_renamed = document.id in aliases or document.group in aliases
            report.counts["masked_in_names"] += is_renamed
            document.id = aliases.get(document.id, document.id)
            document.group = aliases.get(document.group, document.group)
            yield document


def mask(text: str, replacement: str) -> tuple[str, Counter[str]]:
    """Replace every national identity number in `text`.

    Returns:
        The new text, and how many numbers of each kind were replaced.
    """
    found: Counter[str] = Counter()
    if not _QUICK.search(text):
        return text, found

    def replace(match: re.Match[str]) -> str:
        kind = identity_number_kind(match[1] + match[2])
        if kind is None:
            return match[0]
        found[kind] += 1
        return replacement

    return _CANDIDATE.sub(replace, text), found


def identity_number_kind(digits: str) -> str | None:
    """Return the kind of a number of eleven digits, or None if it is not valid.

    The kinds are fødselsnummer, d_number, h_number and synthetic.

    Both weighted sums of the digits must be 0 modulo 11. By the rule from 2032 (Skatteetaten, "Nytt
    fødselsnummer fra 2032"), the first sum of a fødselsnummer or D-number may also be 1, 2 or 3.
    In synthetic numbers, the month is increased by 80 (Tenor) or by 65, or both day and month are
    increased (see `_KINDS`). They belong to nobody, but are masked too, because texts use them like
    the numbers of persons.
    """
    numbers = [int(d) for d in digits]
    first = sum(n * w for n, w in zip(numbers, _WEIGHTS_1, strict=False)) % 11
    if first > 3 or sum(n * w for n, w in zip(numbers, _WEIGHTS_2, strict=True)) % 11:
        return None
    day = int(digits[:2])
    month = int(digits[2:4])
    year = int(digits[4:6])
    for day_offset, month_offset, kind in _KINDS:
        if first and kind not in _KINDS_OF_2032:
            continue
        # From 2032, a number does not show the century, so the date need exist in only one
        # of the two.
        if any(_is_date(day - day_offset, month - month_offset, century + year) for century in (1900, 2000)):
            return kind
    return None


def _is_date(day: int, month: int, year: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True
