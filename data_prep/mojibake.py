"""Repair UTF-8 that was read as Windows-1252 or Latin-1, sign by sign: `mÃ¥` is `må`, also beside a right «.
For stage normalise.

The bytes of a letter in UTF-8 look like two or three signs: `Ã¥`, `â€™`. Some of these pairs are right text
too (`IRMÃ»` ends a quotation in Portuguese, `Å²` is a unit). So a pair is surely broken, perhaps broken, or
right, by the signs beside it; what is perhaps broken is repaired only in a text that holds something surely
broken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

_HIGH = bytes(range(0x80, 0xC0))
_BYTE_OF = {chr(code): code for code in range(0x80, 0x100)}
_BYTE_OF |= {_HIGH[i : i + 1].decode("cp1252", "ignore"): 0x80 + i for i in range(0x20)}
_BYTE_OF.pop("")
_CONTINUATION = "[" + "".join(re.escape(sign) for sign, code in _BYTE_OF.items() if code < 0xC0) + "]"
PAIR = re.compile(
    f"[\u00c2-\u00df]{_CONTINUATION}|[\u00e2\u00ef]{_CONTINUATION}{{2}}|\u00f0{_CONTINUATION}{{3}}"
)
# Signs that often stand behind a letter in right text, and those of them that do so between letters.
_COMMON = frozenset("«»“”‘’–—…•‹›™°·§©®²³¹±½¼¾€´×\u00a0\u00ad")
_BETWEEN_LETTERS = frozenset("’‘´·\u00a0\u00ad")
_CLOSING = frozenset("»”’›…–—™€\u00a0\u00ad")
_OPENING = frozenset("«“‘‹\"'(")
_ENDS_PHRASE = frozenset(".,;:!?)%")
_EXTENDED = frozenset("čČđĐŋŊšŠŧŦžŽœŒāĀēĒīĪōŌūŪąĄćĆęĘłŁńŃśŚźŹżŻěĚřŘůŮťŤďĎňŇőŐűŰğĞıİşŞŸ")
_BEFORE_A_VERB = re.compile(r" [^\W\d_]{2}")  # å stands alone before an infinitive
_SCRIPTS = ("ÐÑ", "ÎÏ", "ØÙÚÛ")  # what letters of Cyrillic, Greek and Arabic begin with
_RUN = 3  # pairs of such a script in a row


class Judgement(IntEnum):
    """How sure it is that a pair of signs is one broken sign."""

    RIGHT = 0
    PERHAPS = 1
    SURELY = 2


@dataclass
class _Pair:
    start: int
    end: int
    signs: str
    meant: str


def repair(text: str, quoted: Sequence[tuple[int, int]] = ()) -> str:
    """Return `text` with what is broken repaired.

    Args:
        quoted: parts, in order, that are no evidence of a broken text: code may be about such signs.
    """
    pairs = _pairs(text)
    if not pairs:
        return text
    judged = [_judge(text, pairs, number) for number in range(len(pairs))]
    in_prose = _outside(pairs, quoted)
    if not any(one is Judgement.SURELY and prose for one, prose in zip(judged, in_prose, strict=True)):
        return text
    pieces: list[str] = []
    done = 0
    for pair, one in zip(pairs, judged, strict=True):
        if one is not Judgement.RIGHT:
            pieces += [text[done : pair.start], pair.meant]
            done = pair.end
    return "".join([*pieces, text[done:]])


def _pairs(text: str) -> list[_Pair]:
    found = []
    for match in PAIR.finditer(text):
        meant = bytes(_BYTE_OF[sign] for sign in match[0]).decode("utf-8", "ignore")
        if len(meant) == 1:
            if "\x80" <= meant <= "\x9f":  # of Windows-1252 written as UTF-8 by way of Latin-1
                meant = meant.encode("latin-1").decode("cp1252", "ignore") or meant
            found.append(_Pair(match.start(), match.end(), match[0], meant))
    return found


def _outside(pairs: list[_Pair], quoted: Sequence[tuple[int, int]]) -> list[bool]:
    outside = []
    place = 0
    for pair in pairs:
        while place < len(quoted) and quoted[place][1] <= pair.start:
            place += 1
        outside.append(place == len(quoted) or pair.start < quoted[place][0])
    return outside


def _judge(text: str, pairs: list[_Pair], number: int) -> Judgement:
    pair = pairs[number]
    lead, second = pair.signs[0], pair.signs[1]
    before, after = _neighbours(text, pairs, number)
    if lead == "Ã":
        if pair.meant in "åÅ" and not before.strip() and _BEFORE_A_VERB.match(text, pair.end):
            return Judgement.SURELY
        return _judge_letter(pair.meant, second, before, after, text[max(0, pair.start - 2) : pair.start - 1])
    if lead == "Â":
        return _judge_sign(second, before)
    if lead == "â":
        is_symbol = "\u2000" <= pair.meant < "\u2500" or "\u25a0" <= pair.meant < "\u2c00"
        sure = Judgement.SURELY if second == "€" or second not in _COMMON else Judgement.PERHAPS
        return sure if is_symbol else Judgement.RIGHT
    if lead == "ï":
        known = (
            pair.meant in "\ufeff\ufffd"
            or "\ufb00" <= pair.meant <= "\ufb06"
            or "\uf000" <= pair.meant <= "\uf0ff"
        )
        return Judgement.SURELY if known else Judgement.RIGHT
    if lead == "ð":
        return Judgement.SURELY if pair.meant >= "\U0001f000" else Judgement.RIGHT
    if lead in "ÄÅ":
        return _judge_extended(pair.meant, second, before, after)
    return Judgement.SURELY if _in_run(pairs, number) else Judgement.RIGHT


def _neighbours(text: str, pairs: list[_Pair], number: int) -> tuple[str, str]:
    """Return the signs before and behind a pair, as they are meant."""
    pair = pairs[number]
    before, after = text[pair.start - 1 : pair.start], text[pair.end : pair.end + 1]
    if number and pairs[number - 1].end == pair.start:
        before = pairs[number - 1].meant
    if number + 1 < len(pairs) and pairs[number + 1].start == pair.end:
        after = pairs[number + 1].meant
    return before, after


def _judge_letter(meant: str, second: str, before: str, after: str, before_that: str) -> Judgement:
    """Judge `Ã` and a sign: æ, ø, å, é and their kin. Right are capitals at the end of a word: `MAÇÃ»`."""
    is_odd = second not in _COMMON
    if before.islower():
        return Judgement.SURELY
    if not meant.isalpha():
        return Judgement.PERHAPS
    if after.isalpha():
        fits = after.islower() or meant.isupper()
        return Judgement.SURELY if fits and (is_odd or second not in _BETWEEN_LETTERS) else Judgement.PERHAPS
    if before.isupper():
        in_capitals = before_that.isalpha()
        if meant.islower() and in_capitals:
            return Judgement.RIGHT
        return Judgement.SURELY if is_odd else Judgement.PERHAPS
    return Judgement.PERHAPS


def _judge_sign(second: str, before: str) -> Judgement:
    """Judge `Â` and a sign, which is meant: `Â§` is `§`. Right is the letter as a quotation: `«Â»`."""
    if before.islower() or before.isdigit() or before in _ENDS_PHRASE:
        return Judgement.SURELY
    if before in _OPENING and second in _CLOSING:
        return Judgement.RIGHT
    if before.isupper() or second in _CLOSING:
        return Judgement.PERHAPS
    return Judgement.SURELY


def _judge_extended(meant: str, second: str, before: str, after: str) -> Judgement:
    """Judge `Ä` or `Å` and a sign: č, đ, ŋ, š, ŧ, ž of Sámi and their kin. Right are `«BLÅ»` and `Å²`."""
    if meant not in _EXTENDED:
        return Judgement.RIGHT
    if second in _COMMON:
        return Judgement.SURELY if before.islower() and after.islower() else Judgement.RIGHT
    return Judgement.SURELY if before.islower() or after.islower() else Judgement.PERHAPS


def _in_run(pairs: list[_Pair], number: int) -> bool:
    """Return whether a pair stands in a row of pairs that all begin as letters of one script do."""
    script = next((leads for leads in _SCRIPTS if pairs[number].signs[0] in leads), "")
    if not script:
        return False
    length = 1
    for step in (-1, 1):
        place = number
        while 0 <= place + step < len(pairs) and length < _RUN:
            here, there = sorted((place, place + step))
            touches = pairs[here].end == pairs[there].start
            if not touches or pairs[place + step].signs[0] not in script:
                break
            length += 1
            place += step
    return length >= _RUN
