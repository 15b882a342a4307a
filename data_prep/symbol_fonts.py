"""Replacement of the private-use characters of Symbol and Wingdings fonts. Used by stage normalise.

Word files and PDFs contain them as U+F020 to U+F0FF. The two fonts use the same code points, and
plain text does not name the font, so a character is interpreted by its position. At the start of a
line it is a bullet. Elsewhere it is one that Word inserts from Wingdings (arrows, check marks,
boxes, faces), else one of Symbol. A letter of Symbol by itself at the end of a line is kept, as it
may be an icon of a web font. Characters in neither table are kept.

The tables are those of Unicode (Public/MAPPINGS/VENDORS/ADOBE/symbol.txt) and of the Wingdings
fonts (Unicode's L2/11-052).
"""

from __future__ import annotations

import re
from collections import Counter

# The characters from U+F020 on; a space where Symbol has none, or a part of a large bracket.
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
# Characters of Wingdings that occur in text: Word replaces --> and :) by some; others are check
# marks and boxes of forms.
WINGDINGS = {
    "\uf04a": "☺", "\uf04b": "😐", "\uf04c": "☹", "\uf0a7": "▪", "\uf0a8": "☐", "\uf0d8": "➢",
    "\uf0df": "←", "\uf0e0": "→", "\uf0e1": "↑", "\uf0e2": "↓", "\uf0e7": "⬅", "\uf0e8": "➔",
    "\uf0ef": "⇦", "\uf0f0": "⇨", "\uf0f1": "⇧", "\uf0f2": "⇩", "\uf0f3": "⬄", "\uf0fb": "✗", "\uf0fc": "✓",
    "\uf0fd": "☒", "\uf0fe": "☑",
}  # fmt: skip
# Characters that are boxes and check marks of forms at the start of a line, not bullets.
MARKS = {
    "\uf06f": "☐", "\uf071": "☐", "\uf072": "☐", "\uf078": "☒", "\uf0a8": "☐", "\uf0fb": "✗", "\uf0fc": "✓",
    "\uf0fd": "☒", "\uf0fe": "☑",
}  # fmt: skip
BULLET = "•"

_SIGN = re.compile("[\uf020-\uf0ff]")
# Bullets, arrowheads, stars, flowers, hands and pens of both fonts; not Symbol's letters and
# digits.
_BULLETS = "\uf02d\uf0b7\uf09e\uf09f\uf06c-\uf078\uf0a0-\uf0a2\uf0a4-\uf0a8\uf0aa-\uf0af\uf0b2\uf0b5\uf0b6"
_ARROWS_AND_MARKS = "\uf0d5-\uf0f3\uf0fb-\uf0fe"
_HANDS = "\uf021\uf03f\uf043-\uf049\uf07b\uf07c\uf0c4"
# A bullet on a line of its own, as in the text of a PDF, belongs to the next line; a letter of a
# formula is not a bullet.
_AT_START = re.compile(
    f"^([ \t]*)([{_BULLETS}{_ARROWS_AND_MARKS}{_HANDS}])"
    "(?=\\s|$|[^\\W_])(?![ \t]*[=<>≤≥+*/)])(?:[ \t]*\n(?=[ \t]*[^\\W_])|[ \t]*)",
    re.MULTILINE,
)
_LETTER = re.compile("[\uf041-\uf05a\uf061-\uf07a]")
_ICON = re.compile(r"(?:^|(?<=\s))[\uf020-\uf0ff](?=[ \t]*$)", re.MULTILINE)
# A private-use character of any other font at the beginning of several lines of text is a bullet.
_OTHER_BULLET = re.compile("^([ \t]*)([\ue000-\uf01f\uf100-\uf8ff])[ \t]+(?=[^\\W_])", re.MULTILINE)
MIN_ITEMS = 2  # lines from which such lines are a list


def repair(text: str) -> str:
    """Return a text with characters of these fonts replaced by the ones they show; idempotent."""
    if not text.isascii():
        text = _repair_other_bullets(text)
    if not _SIGN.search(text):
        return text
    text = _AT_START.sub(lambda match: f"{match[1]}{MARKS.get(match[2], BULLET)} ", text)
    icons = {
        match.start()
        for match in _ICON.finditer(text)
        if match[0] not in WINGDINGS and _LETTER.match(match[0])
    }

    def replace(match: re.Match[str]) -> str:
        sign = match[0]
        if match.start() in icons:
            return sign
        return WINGDINGS.get(sign) or SYMBOL.get(sign, sign)

    return _SIGN.sub(replace, text)


def count_characters(text: str) -> int:
    """Return the number of characters of these fonts in a text."""
    if text.isascii():
        return 0
    return len(_SIGN.findall(text)) + sum(_count_other_bullets(text).values())


def _repair_other_bullets(text: str) -> str:
    signs = _count_other_bullets(text)
    if not signs:
        return text

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}{BULLET} " if match[2] in signs else match[0]

    return _OTHER_BULLET.sub(replace, text)


def _count_other_bullets(text: str) -> Counter[str]:
    """Count the bullets of other fonts, by character."""
    counts = Counter(match[2] for match in _OTHER_BULLET.finditer(text))
    return Counter({sign: count for sign, count in counts.items() if count >= MIN_ITEMS})
