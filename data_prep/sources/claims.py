"""What sources claim about their documents, in our words: languages, dates, and a reader's own options."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from data_prep.config import SourceConfig
from data_prep.languages import ISO_639_3
from data_prep.user_error import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Options = TypeVar("Options", bound=DataclassInstance)

_NAMES = {
    "bokmål": "nob",
    "nor": "nob",
    "nynorsk": "nno",
}  # what sources write beside codes; "nor" says no more than Norwegian
_MONTHS = (
    "januar", "februar", "mars", "april", "mai", "juni", "juli", "august", "september", "oktober", "november", "desember",
)  # fmt: skip
_ISO = re.compile(r"\b(1[5-9]\d\d|20\d\d)-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_WRITTEN = re.compile(rf"\b(\d{{1,2}})\.?\s+({'|'.join(_MONTHS)})\s+(1[5-9]\d\d|20\d\d)", re.IGNORECASE)
_DOTTED = re.compile(r"\b(\d{1,2})\.(\d{1,2})\.(1[5-9]\d\d|20\d\d)\b")
_YEAR = re.compile(r"\b(1[5-9]\d\d|20\d\d)\b")


def parse_language(claim: object) -> str:
    """Return the ISO 639-3 code of what a source calls a language, or "" if it is not known: nb, NN, no,
    en-GB, pl, ukr …"""
    name = str(claim or "").strip().lower().replace("_", "-")
    if name in ("no-nn", "nor-nn", "nor-nno", "no-nno"):
        return "nno"
    return _code(name) or _code(name.partition("-")[0])


def _code(name: str) -> str:
    return _NAMES.get(name) or ISO_639_3.get(name, "")


def parse_date(claim: object) -> str:
    """The first date in a text as 2014-02-13, or its year, or "": 2014-02-13T10:00, 13. februar 2014,
    13.2.2014, 2014."""
    text = str(claim or "")
    if match := _ISO.search(text):
        return match[0]
    if match := _WRITTEN.search(text):
        return f"{match[3]}-{_MONTHS.index(match[2].lower()) + 1:02d}-{int(match[1]):02d}"
    if (match := _DOTTED.search(text)) and int(match[2]) <= 12:
        return f"{match[3]}-{int(match[2]):02d}-{int(match[1]):02d}"
    return match[0] if (match := _YEAR.search(text)) else ""


def parse_options(source: SourceConfig, kind: type[Options]) -> Options:
    """The source's options as the reader's dataclass.

    Raises:
        UserError: one is not among them, or has a value that it cannot have.
    """
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(set(source.options) - set(known)):
        raise UserError(
            f"options.{unknown[0]}: reader {source.reader} has {', '.join(known) or 'no options'}"
        )
    for name, value in source.options.items():
        default = getattr(kind(), name)
        if type(value) is not type(default) and not (isinstance(default, float) and isinstance(value, int)):
            raise UserError(
                f"options.{name} is {value!r}: reader {source.reader} takes a {type(default).__name__} there"
            )
    return kind(**source.options)
