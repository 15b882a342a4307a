"""Replacement of the private-use characters of Symbol and Wingdings fonts. Used by stage normalise.

Word files and PDFs contain these characters as U+F020 to U+F0FF. Both fonts use the same code
points, and plain text does not name the font. So a character is interpreted by its position:

- At the start of a line, it is a bullet, or a check mark or box of a form (MARKS).
- Elsewhere, it is a character of WINGDINGS (arrows, check marks, boxes and faces that Word
  inserts), or else a character of SYMBOL.
- A letter of Symbol by itself at the end of a line is kept, because it may be an icon of a web
  font. Characters in no table are kept too.

The tables are those of Unicode (Public/MAPPINGS/VENDORS/ADOBE/symbol.txt) and of the Wingdings
fonts (Unicode's L2/11-052).
"""

from __future__ import annotations

import re
from collections import Counter

# Symbol's characters from U+F020 on. A space stands for no character, or for a part of a large
# bracket.
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
# Characters of Wingdings that occur in text. Word replaces strings such as --> and :) by some of
# them; others are check marks and boxes of forms.
WINGDINGS = {
    "\uf04a": "☺", "\uf04b": "😐", "\uf04c": "☹", "\uf0a7": "▪", "\uf0a8": "☐", "\uf0d8": "➢",
    "\uf0df": "←", "\uf0e0": "→", "\uf0e1": "↑", "\uf0e2": "↓", "\uf0e7": "⬅", "\uf0e8": "➔",
    "\uf0ef": "⇦", "\uf0f0": "⇨", "\uf0f1": "⇧", "\uf0f2": "⇩", "\uf0f3": "⬄", "\uf0fb": "✗", "\uf0fc": "✓",
    "\uf0fd": "☒", "\uf0fe": "☑",
}  # fmt: skip
# Characters that are boxes or check marks of forms, not bullets, at the start of a line.
MARKS = {
    "\uf06f": "☐", "\uf071": "☐", "\uf072": "☐", "\uf078": "☒", "\uf0a8": "☐", "\uf0fb": "✗", "\uf0fc": "✓",
    "\uf0fd": "☒", "\uf0fe": "☑",
}  # fmt: skip
BULLET = "•"

_SIGN = re.compile("[\uf020-\uf0ff]")
# Bullets, arrowheads, stars, flowers, hands and pens of both fonts, without Symbol's letters and
# digits.
_BULLETS = "\uf02d\uf0b7\uf09e\uf09f\uf06c-\uf078\uf0a0-\uf0a2\uf0a4-\uf0a8\uf0aa-\uf0af\uf0b2\uf0b5\uf0b6"
_ARROWS_AND_MARKS = "\uf0d5-\uf0f3\uf0fb-\uf0fe"
_HANDS = "\uf021\uf03f\uf043-\uf049\uf07b\uf07c\uf0c4"
# If a bullet is on a line of its own, as in the text of a PDF, the next line is joined to it. A
# character before an operator is part of a formula and not a bullet.
_AT_START = re.compile(
    f"^([ \t]*)([{_BULLETS}{_ARROWS_AND_MARKS}{_HANDS}])"
    "(?=\\s|$|[^\\W_])(?![ \t]*[=<>≤≥+*/)])(?:[ \t]*\n(?=[ \t]*[^\\W_])|[ \t]*)",
    re.MULTILINE,
)
_LETTER = re.compile("[\uf041-\uf05a\uf061-\uf07a]")
_ICON = re.compile(r"(?:^|(?<=\s))[\uf020-\uf0ff](?=[ \t]*$)", re.MULTILINE)
# A private-use character of another font is a bullet if it begins at least MIN_ITEMS lines of text.
_OTHER_BULLET = re.compile("^([ \t]*)([\ue000-\uf01f\uf100-\uf8ff])[ \t]+(?=[^\\W_])", re.MULTILINE)
MIN_ITEMS = 2


def repair(text: str) -> str:
    """Replace private-use characters by the Unicode characters for their glyphs; return the text.

    The function is idempotent.
    """
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
    """Count the private-use characters of Symbol and Wingdings, and the bullets of other fonts."""
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
    """Count the bullets of fonts other than Symbol and Wingdings, by character.

    Such a bullet is a private-use character that starts at least MIN_ITEMS lines.
    """
    counts = Counter(match[2] for match in _OTHER_BULLET.finditer(text))
    return Counter({sign: count for sign, count in counts.items() if count >= MIN_ITEMS})
