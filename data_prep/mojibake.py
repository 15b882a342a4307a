"""Repair of UTF-8 text that was decoded as Windows-1252 or Latin-1, such as `mÃ¥` for `må`.

By the wrong decoding, one character becomes a sequence of two to four characters, such as `Ã¥` or
`â€™`. Such a sequence may also be correct text: `IRMÃ»` ends a quotation in Portuguese, and `Å²` is
a unit. A text may contain both. Therefore each sequence is classified by the characters before and
after it, as surely broken, perhaps broken, or right. Sequences that are perhaps broken are repaired
only if the text has one that is surely broken. In the code, a sequence is called a pair, because
most consist of two characters. Stage normalise uses this module.
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
# Characters that often follow a letter in correct text.
_COMMON = frozenset("«»“”‘’–—…•‹›™°·§©®²³¹±½¼¾€´×\u00a0\u00ad")
# Characters of _COMMON that often come between two letters.
_BETWEEN_LETTERS = frozenset("’‘´·\u00a0\u00ad")
_CLOSING = frozenset("»”’›…–—™€\u00a0\u00ad")
_OPENING = frozenset("«“‘‹\"'(")
_ENDS_PHRASE = frozenset(".,;:!?)%")
_EXTENDED = frozenset("čČđĐŋŊšŠŧŦžŽœŒāĀēĒīĪōŌūŪąĄćĆęĘłŁńŃśŚźŹżŻěĚřŘůŮťŤďĎňŇőŐűŰğĞıİşŞŸ")
_BEFORE_A_VERB = re.compile(r" [^\W\d_]{2}")  # a space and a verb, after the infinitive marker å
_SCRIPTS = ("ÐÑ", "ÎÏ", "ØÙÚÛ")  # first characters of broken letters of Cyrillic, Greek and Arabic
_MIN_RUN = 3  # at least this many adjacent pairs of one such script are surely broken


class Judgement(IntEnum):
    """True if a sequence of characters is one character that was decoded wrongly."""

    RIGHT = 0
    PERHAPS = 1
    SURELY = 2


@dataclass
class _Pair:
    """A sequence of two to four characters that may be one wrongly decoded character.

    Attributes:
        start, end: where the sequence begins and ends in the text.
        characters: the sequence.
        original: the character that the correct decoding gives.
    """

    start: int
    end: int
    characters: str
    original: str


def repair(text: str, verbatim: Sequence[tuple[int, int]] = ()) -> str:
    """Return `text` with its wrongly decoded characters repaired, such as `mÃ¥` to `må`.

    Args:
        verbatim: spans of code or URLs, in order. Characters in them are not evidence that the text
            was decoded wrongly, because code may be about such errors.
    """
    pairs = _find_pairs(text)
    if not pairs:
        return text
    judgements = [_judge(text, pairs, number) for number in range(len(pairs))]
    in_prose = _are_outside(pairs, verbatim)
    evidence = zip(judgements, in_prose, strict=True)
    if not any(judgement is Judgement.SURELY and is_prose for judgement, is_prose in evidence):
        return text
    pieces: list[str] = []
    end = 0  # end of the last repaired pair
    for pair, judgement in zip(pairs, judgements, strict=True):
        if judgement is not Judgement.RIGHT:
            pieces += [text[end : pair.start], pair.original]
            end = pair.end
    return "".join([*pieces, text[end:]])


def _find_pairs(text: str) -> list[_Pair]:
    found = []
    for match in PAIR.finditer(text):
        original = bytes(_BYTE_OF[character] for character in match[0]).decode("utf-8", "ignore")
        if len(original) == 1:
            if "\x80" <= original <= "\x9f":  # Windows-1252, decoded as Latin-1 and encoded as UTF-8
                original = original.encode("latin-1").decode("cp1252", "ignore") or original
            found.append(_Pair(match.start(), match.end(), match[0], original))
    return found


def _are_outside(pairs: list[_Pair], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Return, for each of `pairs`, whether it starts outside all spans. The spans are in order."""
    outside = []
    index = 0
    for pair in pairs:
        while index < len(spans) and spans[index][1] <= pair.start:
            index += 1
        outside.append(index == len(spans) or pair.start < spans[index][0])
    return outside


def _judge(text: str, pairs: list[_Pair], number: int) -> Judgement:
    pair = pairs[number]
    lead = pair.characters[0]
    second = pair.characters[1]
    before, after = _neighbours(text, pairs, number)
    if lead == "Ã":
        if pair.original in "åÅ" and not before.strip() and _BEFORE_A_VERB.match(text, pair.end):
            return Judgement.SURELY
        second_before = text[max(0, pair.start - 2) : pair.start - 1]
        return _judge_letter(pair.original, second, before, after, second_before)
    if lead == "Â":
        return _judge_sign(second, before)
    if lead == "â":
        return _judge_symbol(pair.original, second)
    if lead in "ÄÅ":
        return _judge_extended(pair.original, second, before, after)
    if lead == "ï":
        is_broken = _is_special(pair.original)
    elif lead == "ð":
        is_broken = pair.original >= "\U0001f000"
    else:
        is_broken = _is_in_run(pairs, number)
    return Judgement.SURELY if is_broken else Judgement.RIGHT


def _is_special(character: str) -> bool:
    """Return whether a character is not a letter but special.

    Special are a byte-order mark, U+FFFD, ligatures, and private-use characters of symbol fonts.
    """
    if character in "\ufeff\ufffd":
        return True
    return "\ufb00" <= character <= "\ufb06" or "\uf000" <= character <= "\uf0ff"


def _neighbours(text: str, pairs: list[_Pair], number: int) -> tuple[str, str]:
    """Return the characters before and after the sequence `pairs[number]`.

    If a neighbour belongs to another of the sequences, the character to which that sequence would
    be repaired is returned instead.
    """
    pair = pairs[number]
    before = text[pair.start - 1 : pair.start]
    after = text[pair.end : pair.end + 1]
    if number and pairs[number - 1].end == pair.start:
        before = pairs[number - 1].original
    if number + 1 < len(pairs) and pairs[number + 1].start == pair.end:
        after = pairs[number + 1].original
    return before, after


def _judge_letter(original: str, second: str, before: str, after: str, second_before: str) -> Judgement:
    """Classify two characters that begin with `Ã` and may be a wrongly decoded æ, ø, å or é.

    At the end of a word in capitals, as in `MAÇÃ»`, they are correct text.

    Args:
        original: the character to which the two would be repaired.
        second: the second of the two.
        before: the character before the two.
        after: the character after the two.
        second_before: the character before `before`.
    """
    is_odd = second not in _COMMON
    if before.islower():
        return Judgement.SURELY
    if not original.isalpha():
        return Judgement.PERHAPS
    if after.isalpha():
        fits = after.islower() or original.isupper()
        if fits and (is_odd or second not in _BETWEEN_LETTERS):
            return Judgement.SURELY
        return Judgement.PERHAPS
    if not before.isupper():
        return Judgement.PERHAPS
    if original.islower() and second_before.isalpha():  # at the end of a word in capitals
        return Judgement.RIGHT
    return Judgement.SURELY if is_odd else Judgement.PERHAPS


def _judge_symbol(original: str, second: str) -> Judgement:
    """Classify characters that begin with `â` and may be a wrongly decoded quote, dash or arrow.

    Args:
        original: the character to which they would be repaired.
        second: the second of the characters.
    """
    if not ("\u2000" <= original < "\u2500" or "\u25a0" <= original < "\u2c00"):
        return Judgement.RIGHT
    if second == "€" or second not in _COMMON:
        return Judgement.SURELY
    return Judgement.PERHAPS


def _judge_sign(second: str, before: str) -> Judgement:
    """Classify two characters that begin with `Â`.

    They may be one wrongly decoded sign, equal to the second of them: `§` becomes `Â§`. In
    `«Â»`, they are correct text.

    Args:
        second: the second of the two characters.
        before: the character before the two.
    """
    if before.islower() or before.isdigit() or before in _ENDS_PHRASE:
        return Judgement.SURELY
    if before in _OPENING and second in _CLOSING:
        return Judgement.RIGHT
    if before.isupper() or second in _CLOSING:
        return Judgement.PERHAPS
    return Judgement.SURELY


def _judge_extended(original: str, second: str, before: str, after: str) -> Judgement:
    """Classify two characters that begin with `Ä` or `Å`.

    They may be a wrongly decoded letter of another language, such as Sámi č, đ, ŋ, š, ŧ or ž. In
    `«BLÅ»` and `Å²`, they are correct text.

    Args:
        original: the character to which the two would be repaired.
        second: the second of the two.
        before: the character before the two.
        after: the character after the two.
    """
    if original not in _EXTENDED:
        return Judgement.RIGHT
    if before.islower() and after.islower():
        return Judgement.SURELY
    if second in _COMMON:
        return Judgement.RIGHT
    return Judgement.SURELY if before.islower() or after.islower() else Judgement.PERHAPS


def _is_in_run(pairs: list[_Pair], number: int) -> bool:
    """Return whether `pairs[number]` is in a run of wrongly decoded letters of one script.

    The script is Cyrillic, Greek or Arabic. A run has at least _MIN_RUN letters, without other
    characters between them.
    """
    script = next((leads for leads in _SCRIPTS if pairs[number].characters[0] in leads), "")
    if not script:
        return False
    length = 1
    for step in (-1, 1):
        index = number
        while 0 <= index + step < len(pairs) and length < _MIN_RUN:
            left, right = sorted((index, index + step))
            is_adjacent = pairs[left].end == pairs[right].start
            if not is_adjacent or pairs[index + step].characters[0] not in script:
                break
            length += 1
            index += step
    return length >= _MIN_RUN
