"""Removal of proper names, addresses and codes from a text, before its words tell its language.

Names of bodies, places and persons keep their language whatever is written around them: `Sametinget`, `Kvam herad` and
`Directorate of Health` stand in Bokmål too. A name is a capitalised word inside a sentence, or several in a row (`Møre og
Romsdal fylkeskommune`, `Universitetet i Oslo`). What begins a line or sentence by itself is a word.
"""

from __future__ import annotations

import re

_UPPER = "A-ZÀ-ÖØ-ÞČĐŊŠŦŽĆĘŁŃŚŹŻĀĒĪŪĢĶĻŅĖĮŲİŞĞŐŰŘŤĎŇĚŮ"
_NAME = rf"[{_UPPER}][\w'’&.-]*"
_LINK = r"(?:i|og|på|for|til|av|frå|fra|og|mot|of|the|and|in|on|de|del|di|da|von|van|der|zu|und|och)"
_BODY = (
    r"(?:fylkeskommunes?|kommunes?|fylkes?|fylkesting|kommunestyre|herad|bydel|vegvesen|universitet|tingrett|"
    r"lagmannsrett|politidistrikt|bispedømme|sameting|fylkesmann|helseforetak|sykehus|sjukehus|høgskole|høgskule|"
    r"vidaregåande|videregående|skole|skule|gielda|suohkan|tjïelte|kommuvdna|gemeinde|county|municipality|university)"
)
_NOT_WORDS = re.compile(r"https?://\S+|www\.\S+|\S+@\S+|\S*(?:[\d_/\\=<>{}|]|\w\.\w)\S*")
_NAMES = re.compile(
    rf"\b{_NAME}(?:[ ,/–-]+(?:{_LINK} ){{0,2}}{_NAME})+(?:[ /]{_BODY}\b)*"  # several in a row
    rf"|\b{_NAME}[ /]{_BODY}\b"
    rf"|(?<=[^\W\d_][ ,]){_NAME}"  # one inside a sentence: a letter stands before it
    rf"|(?<=[^\W\d_],[ ]){_NAME}"
)


def without_names(text: str) -> str:
    """Return the text without names, addresses and what holds digits or signs of code."""
    return _NAMES.sub(" ", _NOT_WORDS.sub(" ", text))
