"""Normalisation of the languages and dates that sources state, and checks of readers' options."""

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

# Names that sources use instead of ISO 639 codes. "nor", Norwegian without a written standard, is
# treated as Bokmål.
_NAMES = {"bokmål": "nob", "nor": "nob", "nynorsk": "nno"}
_MONTHS = (
    "januar", "februar", "mars", "april", "mai", "juni",
    "juli", "august", "september", "oktober", "november", "desember",
)  # fmt: skip
_ISO = re.compile(r"\b(1[5-9]\d\d|20\d\d)-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_WRITTEN = re.compile(rf"\b(\d{{1,2}})\.?\s+({'|'.join(_MONTHS)})\s+(1[5-9]\d\d|20\d\d)", re.IGNORECASE)
_DOTTED = re.compile(r"\b(\d{1,2})\.(\d{1,2})\.(1[5-9]\d\d|20\d\d)\b")
_YEAR = re.compile(r"\b(1[5-9]\d\d|20\d\d)\b")


def parse_language(claim: object) -> str:
    """Convert a language as a source states it ("nb", "Nynorsk") to ISO 639-3; "" if unknown."""
    name = str(claim or "").strip().lower().replace("_", "-")
    if name in ("no-nn", "nor-nn", "nor-nno", "no-nno"):
        return "nno"
    return _code(name) or _code(name.partition("-")[0])


def _code(name: str) -> str:
    return _NAMES.get(name) or ISO_639_3.get(name, "")


def parse_date(claim: object) -> str:
    """Return the date in a text as YYYY-MM-DD.

    If the text has no date, its first year is returned; if it has no year, "". Dates may be written
    as 2014-02-13T10:00, 13. februar 2014 or 13.2.2014. If a text has dates in several of these
    formats, the format listed first is used.
    """
    text = str(claim or "")
    iso = _ISO.search(text)
    if iso:
        return iso[0]
    written = _WRITTEN.search(text)
    if written:
        month = _MONTHS.index(written[2].lower()) + 1
        return f"{written[3]}-{month:02d}-{int(written[1]):02d}"
    dotted = _DOTTED.search(text)
    if dotted and int(dotted[2]) <= 12:
        return f"{dotted[3]}-{int(dotted[2]):02d}-{int(dotted[1]):02d}"
    year = _YEAR.search(text)
    return year[0] if year else ""


def parse_options(source: SourceConfig, kind: type[Options]) -> Options:
    """Check a source's options, and return them as an instance of the reader's dataclass `kind`.

    Raises:
        UserError: an option is unknown, or its value has the wrong type or is not allowed.
    """
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(source.options) - set(known))
    if unknown:
        raise UserError(
            f"options.{unknown[0]}: unknown option of reader {source.reader}; its options are "
            f"{', '.join(known)}"
        )
    for name, value in source.options.items():
        default = getattr(kind(), name)
        is_int_for_float = isinstance(default, float) and isinstance(value, int)
        if type(value) is not type(default) and not is_int_for_float:
            raise UserError(
                f"options.{name}: must be a {type(default).__name__} for reader {source.reader}, "
                f"not {value!r}"
            )
    return kind(**source.options)
