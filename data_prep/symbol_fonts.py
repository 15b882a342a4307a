"""Characters of Microsoft's Symbol and Wingdings fonts, which Word files and PDFs hold as private use, U+F020
to U+F0FF. For stage normalise.

The two fonts use the same code points, and plain text does not name the font. So the place decides: at the
start of a line such a character is a bullet, else it is read as Symbol's, or as the one of Wingdings that
Word writes in text (arrows, check marks, boxes and faces). A letter of Symbol counts only where text or a
number follows or touches it: alone at the end of a line it may be an icon of a web font. What is in neither
table stays as it is.

The tables are those of Unicode (Public/MAPPINGS/VENDORS/ADOBE/symbol.txt) and of the Wingdings fonts
(Unicode's L2/11-052).
"""

from __future__ import annotations

import re
from collections import Counter

# from U+F020 on; a space where Symbol has no character, or one that is a part of a large bracket
_SYMBOL = (
    " !∀#∃%&∋()∗+,−./0123456789:;<=>?"
    "≅ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ[∴]⊥_"
    " αβχδεφγηιϕκλµνοπθρστυϖωξψζ{|}∼ "
    "                                "
    "€ϒ′≤⁄∞ƒ♣♦♥♠↔←↑→↓°±″≥×∝∂•÷≠≡≈…   "
    "ℵℑℜ℘⊗⊕∅∩∪⊃⊇⊄⊂⊆∈∉∠∇®©™∏√⋅¬∧∨⇔⇐⇑⇒⇓"
    "◊〈®©™∑          〉∫              "
)
SYMBOL = {chr(0xF020 + place): sign for place, sign in enumerate(_SYMBOL) if sign != " "}
# of Wingdings, what stands in text: Word turns --> and :) into these; the others are check marks and boxes of
# forms
WINGDINGS = {
    "\uf04a": "☺", "\uf04b": "😐", "\uf04c": "☹", "\uf0a7": "▪", "\uf0a8": "☐", "\uf0d8": "➢",
    "\uf0df": "←", "\uf0e0": "→", "\uf0e1": "↑", "\uf0e2": "↓", "\uf0e7": "⬅", "\uf0e8": "➔",
    "\uf0ef": "⇦", "\uf0f0": "⇨", "\uf0f1": "⇧", "\uf0f2": "⇩", "\uf0f3": "⬄", "\uf0fb": "✗", "\uf0fc": "✓",
    "\uf0fd": "☒", "\uf0fe": "☑",
}  # fmt: skip
# at the start of a line: not a bullet, but what somebody marked or is to mark
MARKS = {
    "\uf06f": "☐", "\uf071": "☐", "\uf072": "☐", "\uf078": "☒", "\uf0a8": "☐", "\uf0fb": "✗", "\uf0fc": "✓",
    "\uf0fd": "☒", "\uf0fe": "☑",
}  # fmt: skip
BULLET = "•"

_SIGN = re.compile("[\uf020-\uf0ff]")
# Wingdings' and Symbol's bullets, arrowheads, stars, flowers, hands and pens; not the letters and digits of
# Symbol's text
_BULLETS = "\uf02d\uf0b7\uf09e\uf09f\uf06c-\uf078\uf0a0-\uf0a2\uf0a4-\uf0a8\uf0aa-\uf0af\uf0b2\uf0b5\uf0b6"
_ARROWS_AND_MARKS = "\uf0d5-\uf0f3\uf0fb-\uf0fe"
_HANDS = "\uf021\uf03f\uf043-\uf049\uf07b\uf07c\uf0c4"
# A bullet that stands on a line of its own, as in the text of a PDF, belongs to the line below; a letter of a
# formula is none.
_AT_START = re.compile(
    f"^([ \t]*)([{_BULLETS}{_ARROWS_AND_MARKS}{_HANDS}])"
    "(?=\\s|$|[^\\W_])(?![ \t]*[=<>≤≥+*/)])(?:[ \t]*\n(?=[ \t]*[^\\W_])|[ \t]*)",
    re.MULTILINE,
)
_LETTER = re.compile("[\uf041-\uf05a\uf061-\uf07a]")
_ICON = re.compile(r"(?:^|(?<=\s))[\uf020-\uf0ff](?=[ \t]*$)", re.MULTILINE)


# A private-use character of any other font that begins the words of several lines is a bullet there.
_OTHER_BULLET = re.compile("^([ \t]*)([\ue000-\uf01f\uf100-\uf8ff])[ \t]+(?=[^\\W_])", re.MULTILINE)
ITEMS = 2  # lines that make a list


def mend(text: str) -> str:
    """Return the text with characters of these fonts as what they show; mending twice is mending once."""
    if not text.isascii():
        text = _mend_bullets_of_other_fonts(text)
    if not _SIGN.search(text):
        return text
    text = _AT_START.sub(lambda found: f"{found[1]}{MARKS.get(found[2], BULLET)} ", text)
    icons = {
        found.start()
        for found in _ICON.finditer(text)
        if found[0] not in WINGDINGS and _LETTER.match(found[0])
    }
    return _SIGN.sub(lambda found: found[0] if found.start() in icons else _in_text(found[0]), text)


def count(text: str) -> int:
    """Return how many characters of these fonts are in a text."""
    return len(_SIGN.findall(text)) + sum(_bullets_of_other_fonts(text).values()) if not text.isascii() else 0


def _mend_bullets_of_other_fonts(text: str) -> str:
    signs = _bullets_of_other_fonts(text)
    return (
        _OTHER_BULLET.sub(lambda found: f"{found[1]}{BULLET} " if found[2] in signs else found[0], text)
        if signs
        else text
    )


def _bullets_of_other_fonts(text: str) -> Counter[str]:
    """Count the characters that begin lines of a list, by character."""
    counts = Counter(found[2] for found in _OTHER_BULLET.finditer(text))
    return Counter({sign: count for sign, count in counts.items() if count >= ITEMS})


def _in_text(sign: str) -> str:
    return WINGDINGS.get(sign) or SYMBOL.get(sign, sign)
