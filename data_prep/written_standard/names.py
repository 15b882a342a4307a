"""Removal of names, addresses and codes from a text, before its language is identified.

Names of agencies, places and persons are not translated: `Sametinget`, `Kvam herad` and
`Directorate of Health` occur in texts in Bokmål too. A name is a capitalized word within a
sentence, or several capitalized words in a row (`Møre og Romsdal fylkeskommune`, `Universitetet i
Oslo`). A single capitalized word at the beginning of a line or sentence counts as an ordinary word.
"""

from __future__ import annotations

import re

_UPPER = "A-ZÀ-ÖØ-ÞČĐŊŠŦŽĆĘŁŃŚŹŻĀĒĪŪĢĶĻŅĖĮŲİŞĞŐŰŘŤĎŇĚŮ"
_NAME = rf"[{_UPPER}][\w'’&.-]*"
_LINK = r"(?:i|og|på|for|of|the|and|in|on|de|del|di|da|von|van|der|zu|und|och)"
_BODY = (
    r"(?:fylkeskommunes?|kommunes?|fylkes?|fylkesting|kommunestyre|herad|bydel|vegvesen|universitet"
    r"|tingrett|lagmannsrett|politidistrikt|bispedømme|sameting|fylkesmann|helseforetak|sykehus|sjukehus"
    r"|høgskole|høgskule|vidaregåande|videregående|skole|skule|gielda|suohkan|tjïelte|kommuvdna|gemeinde"
    r"|county|municipality|university)"
)
_CODE = re.compile(r"[\d_/\\=<>{}|@]|\w\.\w")
_NAMES = re.compile(
    rf"{_NAME}(?:(?P<more>(?:[ ,/–-]+(?:{_LINK} ){{0,2}}{_NAME})+(?:[ /]{_BODY}\b)*|[ /]{_BODY}\b)|)"
)


def remove_names(text: str) -> str:
    """Return a text with a space in place of each name."""
    return _NAMES.sub(_keep_ordinary_word, text)


def remove_codes(text: str) -> str:
    """Return a text without the words that contain digits or characters of program code, such as _.

    Web and e-mail addresses are removed too. Line ends are kept.
    """
    lines = []
    for line in text.split("\n"):
        kept = [token for token in line.split() if token.isalpha() or not _CODE.search(token)]
        lines.append(" ".join(kept))
    return "\n".join(lines)


def _keep_ordinary_word(match: re.Match[str]) -> str:
    """Return the match if it is a capitalized word that begins a line or sentence, else " "."""
    if match["more"]:
        return " "
    before = match.string[max(0, match.start() - 3) : match.start()].rstrip()
    is_inside = before[-1:].isalnum() or (before[-1:] == "," and before[-2:-1].isalpha())
    return " " if is_inside else match[0]
