"""Removal of proper names, addresses and codes from a text, before its words tell its language.

Names of bodies, places and persons keep their language whatever is written around them: `Sametinget`, `Kvam
herad` and `Directorate of Health` stand in Bokmål too. A name is a capitalised word inside a sentence, or
several in a row (`Møre og Romsdal fylkeskommune`, `Universitetet i Oslo`). What begins a line or sentence by
itself is a word.
"""

from __future__ import annotations

import re

_UPPER = "A-ZÀ-ÖØ-ÞČĐŊŠŦŽĆĘŁŃŚŹŻĀĒĪŪĢĶĻŅĖĮŲİŞĞŐŰŘŤĎŇĚŮ"
_NAME = rf"[{_UPPER}][\w'’&.-]*"
_LINK = r"(?:i|og|på|for|of|the|and|in|on|de|del|di|da|von|van|der|zu|und|och)"
_BODY = (
    r"(?:fylkeskommunes?|kommunes?|fylkes?|fylkesting|kommunestyre|herad|bydel|vegvesen|universitet|tingrett|"
    r"lagmannsrett|politidistrikt|bispedømme|sameting|fylkesmann|helseforetak|sykehus|sjukehus|høgskole|høgskule|"
    r"vidaregåande|videregående|skole|skule|gielda|suohkan|tjïelte|kommuvdna|gemeinde|county|municipality|university)"
)
_CODE = re.compile(r"[\d_/\\=<>{}|@]|\w\.\w")
_NAMES = re.compile(
    rf"{_NAME}(?:(?P<more>(?:[ ,/–-]+(?:{_LINK} ){{0,2}}{_NAME})+(?:[ /]{_BODY}\b)*|[ /]{_BODY}\b)|)"
)


def without_names(text: str) -> str:
    """Return the text without names."""
    return _NAMES.sub(_word_or_nothing, text)


def without_codes(text: str) -> str:
    """Return the text's words without addresses and what holds digits or signs of code, lines as they
    were."""
    return "\n".join(
        " ".join(token for token in line.split() if token.isalpha() or not _CODE.search(token))
        for line in text.split("\n")
    )


def _word_or_nothing(match: re.Match[str]) -> str:
    """A capitalised word is kept where it begins a line or a sentence, and no other name follows it."""
    if match["more"]:
        return " "
    before = match.string[max(0, match.start() - 3) : match.start()].rstrip()
    is_inside = before[-1:].isalnum() or (before[-1:] == "," and before[-2:-1].isalpha())
    return " " if is_inside else match[0]
