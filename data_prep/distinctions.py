"""Distinction of documents that share most of their text: by titles, numbers, names and words.

Acts, letters and minutes are often based on earlier ones. Two documents with the same provisions
but different titles, amounts or places are distinct; a copy with a print date or an additional line
is a duplicate. So only replacements count, for example of an amount by a different amount. Text
that one document merely has in addition does not count, nor do replacements by words that look
alike (OCR errors, spelling variants). Stage deduplicate uses this module.
"""

from __future__ import annotations

import re
from functools import cached_property

TITLE_WORDS = 20  # a longer first line is a paragraph, not a title
HEAD = 900  # characters at the beginning of a text, which may contain a title below a banner
SHORT_LINE = 80  # characters; a shorter line may be a heading or part of an address
# A "mark" is a number, a date or a name. Duplicates may differ in one mark per WORDS_A_MARK words,
# such as a print date or a typing error. But they differ in at most one mark, or MARKS_SHARE of all
# marks, whichever is more.
WORDS_A_MARK = 200
MARKS_SHARE = 0.2
# Duplicates of at least MIN_WORDS words may differ in a share of their distinct words. The share
# grows with the length of the text: from REPLACED to REPLACED_LONG, which is reached at LONG words.
MIN_WORDS = 30
REPLACED = 0.06
REPLACED_LONG = 0.2
LONG = 1000

_WORD = re.compile(r"[^\W\d_]+")
_CAPITALISED = re.compile(r"[A-ZÆØÅÄÖÜÁČĐŊŠŦŽ][\w-]+")
# A capitalised word is a name if it follows a letter, a digit or one of these characters. After any
# other character, it begins a sentence.
_BEFORE_NAME = frozenset(",:(«/&-")
_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "jan januar january",
            "feb februar february",
            "mar mars march",
            "apr april",
            "mai may",
            "jun juni june",
            "jul juli july",
            "aug august",
            "sep sept september",
            "okt oktober oct october",
            "nov november",
            "des desember dec december",
        ),
        start=1,
    )
    for name in names.split()
}
_NUMBER = re.compile(
    r"(?P<d>\d{1,2})\.?[ ]?(?P<m>"
    + "|".join(
        written
        for name in sorted(_MONTHS, key=len, reverse=True)
        for written in (name, name.title(), name.upper())
    )
    + r")\b\.?,?[ ](?P<y>\d{4})\b"
    r"|(?P<d2>\d{1,2})[./-][ ]?(?P<m2>\d{1,2})[./-][ ]?(?P<y2>\d{4})\b"
    r"|(?P<y3>\d{4})-(?P<m3>\d{2})-(?P<d3>\d{2})\b"
    r"|\d+(?:[ ]\d{3}(?!\d))*(?:[.,:/–-]?\w+)*"
)
_IS_DAY = re.compile(r"\d{4}d\d{2}d\d{2}")
_SPACES = re.compile(r"[^\S\n ]+|[ ]{2,}")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+")
# A line that is added when a page is printed, saved or shown is called furniture here. Lines that
# contain one of these strings are furniture.
_FURNITURE = (
    "utskrift", "utskrevet", "skrevet ut", "utskriven", "printed", "nedlastet", "lastet ned", "lasta ned",
    "downloaded", "sist endret", "sist oppdatert", "sist endra", "sist lagret", "sist redigert",
    "sist besøkt", "last updated", "last modified", "informasjonskaps", "cookie", "versjonsdato",
)  # fmt: skip
# Lines that begin with one of these strings are furniture too.
_FURNITURE_BEGINS = (
    "hentet", "henta", "lest", "oppdatert", "oppdatera", "publisert", "kopiert", "updated", "published",
    "retrieved",
)  # fmt: skip
MAX_FURNITURE = 150  # characters; a longer line is not furniture
_PAGE_NUMBER = re.compile(
    r"[ \t]*(?:side|page|s\.)?[ \t]*\d+(?:[ ]?(?:/|av|of)[ ]?\d+)?[ \t]*", re.IGNORECASE
)
_SUFFIX = re.compile(r"(?:[ ]+[|–—•:-][ ][^|–—•]*|[ ]*[(\[][^()\[\]]*[)\]])$")
_STOP_WORD_LIST = (
    "og i på av er det som for til med en et ei ein eit den de at om fra frå ved eller mv m "
    "the of and in to a an on"
)
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())
# Characters and ligatures that OCR confuses.
_LOOKALIKES = str.maketrans(
    {
        "0": "o",
        "1": "l",
        "i": "l",
        "í": "l",
        "5": "s",
        "8": "b",
        "ø": "o",
        "ö": "o",
        "ó": "o",
        "å": "a",
        "ä": "a",
        "á": "a",
        "é": "e",
        "è": "e",
        "ü": "u",
        "ß": "b",
    }
)
_LIGATURES = (("rn", "m"), ("vv", "w"), ("cl", "d"), ("æ", "ae"), ("ﬁ", "fl"), ("ﬂ", "fl"))
# Beginnings of words that decide a case, in Bokmål and Nynorsk.
_OUTCOME = re.compile(r"(stadfest|opphev|omgj|avvis|forkast|innvilg|avsl(?=[aåo])|frif|dømm|dømt)")
# Up to this number, differing words are compared letter by letter. Texts in which more words differ
# are distinct anyway.
MAX_COMPARED_LETTERS = 50


class Profile:
    """The title, numbers, names and words of a document, to compare it with similar ones.

    Args:
        lines: the lines that `profile` returned.

    Attributes:
        has_title: True if the source gives a title. Otherwise, the first line is the title if it
            looks like one.
        num_words: number of words of the text.
        title: words and numbers of the title.
        core: words and numbers of the title, without the end of the title if that is a site's name
            or a short title in brackets.
        numbers: numbers and dates of the text.
        names: words of names in the text.
        head: words and numbers of the first HEAD characters, which may contain a title.
        words: distinct words of the text.
    """

    def __init__(self, lines: str) -> None:
        self._parts = lines.split("\n")

    @property
    def has_title(self) -> bool:
        return self._parts[0] == "title"

    @property
    def num_words(self) -> int:
        return int(self._parts[1])

    @cached_property
    def title(self) -> frozenset[str]:
        return frozenset(self._parts[2].split())

    @cached_property
    def numbers(self) -> frozenset[str]:
        return frozenset(self._parts[3].split())

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self._parts[4].split())

    @cached_property
    def head(self) -> frozenset[str]:
        return frozenset(self._parts[5].split())

    @cached_property
    def core(self) -> frozenset[str]:
        return frozenset(self._parts[7].split())

    @cached_property
    def words(self) -> frozenset[str]:
        return frozenset(self._parts[6].split())

    @property
    def key(self) -> str:
        """Title, numbers and names. Documents with the same key can only differ in other words."""
        return "\n".join(self._parts[2:5])


def profile(title: str, text: str) -> str:
    """Return the title, numbers, names and words of a document, as lines that `Profile` reads.

    Args:
        title: the title that the source gives, or "".
    """
    text = _SPACES.sub(" ", text)
    words = _WORD.findall(text.casefold())
    head = text[:HEAD]
    plain = "\n".join([line for line in text.split("\n") if not _is_furniture(line)])
    if "://" in plain or "www." in plain:
        plain = _ADDRESS.sub(" ", plain)
    first = title.strip() or _first_line(text)
    return "\n".join(
        [
            "title" if title.strip() else "",
            str(len(words)),
            _join_sorted(_title_words(first)),
            _join_sorted(_numbers(plain)),
            _join_sorted(_names(plain)),
            _join_sorted({*_WORD.findall(head.casefold()), *_numbers(head)}),
            _join_sorted(set(words)),
            _join_sorted(_title_words(_SUFFIX.sub("", first.strip()) or first)),
        ]
    )


def are_distinct(a: Profile, b: Profile) -> bool:
    """Return whether two documents are distinct although they share most of their text."""
    return _titles_differ(a, b) or _outcomes_differ(a, b) or _marks_differ(a, b) or _words_differ(a, b)


def _titles_differ(a: Profile, b: Profile) -> bool:
    only_a = a.title - b.title
    only_b = b.title - a.title
    if a.has_title and b.has_title:
        if a.core < b.core or b.core < a.core:
            return True  # an act that amends the other, or that has a narrower subject
    elif 2 * len(a.title & b.title) < max(len(a.title), len(b.title)):
        # The first lines are not variants of one title, so one of them may be a banner above the
        # title. Words of one title that are in the other document's head therefore do not count.
        only_a = only_a - b.head
        only_b = only_b - a.head
    return bool(only_a and only_b) and _count_replaced(only_a, only_b) > 0


def _outcomes_differ(a: Profile, b: Profile) -> bool:
    """Return whether two documents decide a case differently, such as "granted" and "rejected".

    They do if each has a word for an outcome that the other document lacks.
    """
    outcomes_a = _outcomes(a.words)
    outcomes_b = _outcomes(b.words)
    return bool(outcomes_a - outcomes_b and outcomes_b - outcomes_a)


def _outcomes(words: frozenset[str]) -> set[str]:
    return {match[1] for match in map(_OUTCOME.match, words) if match}


def _marks_differ(a: Profile, b: Profile) -> bool:
    only_a, only_b = _differing_numbers(a, b)
    only_a |= a.names - b.words
    only_b |= b.names - a.words
    if not only_a or not only_b:
        return False
    words = min(a.num_words, b.num_words)
    marks = min(len(a.numbers) + len(a.names), len(b.numbers) + len(b.names))
    return _count_replaced(only_a, only_b) > min(words / WORDS_A_MARK, max(1, MARKS_SHARE * marks))


def _differing_numbers(a: Profile, b: Profile) -> tuple[frozenset[str], frozenset[str]]:
    """Return the numbers that only one of two documents has, as (only in a, only in b).

    If the month of a date is misspelled, the date is read as two numbers, a day and a year. So a
    date that only one document has is left out, with its day and year, if the following hold:

    - The other document has the day and the year as numbers.
    - The document with the date lacks at least one of these two numbers.
    - All dates of the other document are in this document too.
    """
    only_a = a.numbers - b.numbers
    only_b = b.numbers - a.numbers
    left_out: set[str] = set()
    for own, others, all_others in ((only_a, only_b, b.numbers), (only_b, only_a, a.numbers)):
        if any(map(_IS_DAY.fullmatch, others)):
            continue
        for date in filter(_IS_DAY.fullmatch, own):
            year, _, day = date.split("d")
            parts = {year, day.lstrip("0")}
            if parts <= all_others and parts & others:
                left_out |= {date, *parts}
    return only_a - left_out, only_b - left_out


def _words_differ(a: Profile, b: Profile) -> bool:
    only_a = a.words - b.words
    only_b = b.words - a.words
    if not only_a or not only_b:
        return False
    words = min(a.num_words, b.num_words)
    share = REPLACED + (REPLACED_LONG - REPLACED) * min(words / LONG, 1)
    allowed = share * min(len(a.words), len(b.words)) if words >= MIN_WORDS else 0
    return min(len(only_a), len(only_b)) > allowed and _count_replaced(only_a, only_b) > allowed


def _count_replaced(only_a: frozenset[str], only_b: frozenset[str]) -> int:
    """Return how many words of one document are replaced by different words in the other.

    A word that is replaced by one that looks alike does not count.

    Args:
        only_a: words that only the first document has.
        only_b: words that only the second document has.
    """
    by_shape: dict[str, list[str]] = {}
    for word in sorted(only_b):
        by_shape.setdefault(_shape(word), []).append(word)
    left_a = []
    for word in sorted(only_a):
        same = by_shape.get(_shape(word))
        if same:
            same.pop()
        else:
            left_a.append(word)
    left_b = [word for words in by_shape.values() for word in words]
    if max(len(left_a), len(left_b)) <= MAX_COMPARED_LETTERS:
        for word in left_a.copy():
            other = next((other for other in left_b if _is_typing_error(word, other)), None)
            if other is not None:
                left_b.remove(other)
                left_a.remove(word)
    return min(len(left_a), len(left_b))


def _shape(word: str) -> str:
    """Return a form of a word that is the same for all words that look alike.

    All letters and digits that OCR confuses with each other are replaced by one of them.
    """
    for letters, replacement in _LIGATURES:
        word = word.replace(letters, replacement)
    return word.translate(_LOOKALIKES)


def _is_typing_error(a: str, b: str) -> bool:
    """Return whether two words differ only by a typing error.

    That is one letter that is replaced or missing, or two letters that are transposed. Words of
    fewer than six letters, and numbers, never count as typing errors.
    """
    if min(len(a), len(b)) < 6 or abs(len(a) - len(b)) > 1 or not (a.isalpha() and b.isalpha()):
        return False
    letters = enumerate(zip(a, b, strict=False))
    start = next((place for place, (x, y) in letters if x != y), min(len(a), len(b)))
    a = a[start:]
    b = b[start:]
    is_replaced = a[1:] == b[1:]
    is_missing = a[1:] == b or a == b[1:]
    is_swapped = a[:2] == b[1::-1] and a[2:] == b[2:]
    return is_replaced or is_missing or is_swapped


def _first_line(text: str) -> str:
    """Return the first line of a text if it looks like a title, else "".

    A title is short and not a sentence. Lines without words are skipped, as are lines that a
    printer or browser adds, such as a print date or page number.
    """
    lines = text.split("\n", 12)
    for line in lines[:-1]:
        line = line.strip()
        if not _WORD.search(line) or _is_furniture(line):
            continue
        is_title = len(line.split()) <= TITLE_WORDS and line[-1] not in ".!?;,"
        return line if is_title else ""
    return ""


def _title_words(title: str) -> set[str]:
    """Return the words (without stop words) and numbers of a title."""
    words = set(_WORD.findall(_NUMBER.sub(" ", title).casefold()))
    return (words - _STOP_WORDS) | _numbers(title)


def _numbers(text: str) -> set[str]:
    """Return the numbers and dates of a text.

    All notations of a number or date give the same string.
    """
    return {_normalise_number(match) for match in _NUMBER.finditer(text)}


def _normalise_number(match: re.Match[str]) -> str:
    if match.lastgroup is None:
        return "".join(filter(str.isalnum, match[0])).casefold()
    return _normalise_date(match)


def _normalise_date(match: re.Match[str]) -> str:
    """Return a date as <year>d<month>d<day>."""
    day, year = (match[name] or match[f"{name}2"] or match[f"{name}3"] for name in ("d", "y"))
    month = _MONTHS[match["m"].lower()] if match["m"] else int(match["m2"] or match["m3"])
    return f"{year}d{month:02}d{int(day):02}"


def _names(text: str) -> set[str]:
    """Return the words of names in lower case.

    Names are capitalised words inside sentences, and on lines that are too short for a sentence.
    """
    found = set()
    for match in _CAPITALISED.finditer(text):
        before = text[max(match.start() - 2, 0) : match.start()].strip(" ")
        if before and (before[-1].isalnum() or before[-1] in _BEFORE_NAME):
            found.add(match[0])
    for line in text.split("\n"):
        if len(line) < SHORT_LINE and line.count(" ") < 4:
            found.update(_CAPITALISED.findall(line))
    return {part for name in found for part in _WORD.findall(name.casefold())}


def _is_furniture(line: str) -> bool:
    """Return whether a line is a print date, a page number or the like, not part of the text."""
    if not line or len(line) > MAX_FURNITURE:
        return False
    lower = line.casefold()
    if lower.startswith(_FURNITURE_BEGINS) or any(sign in lower for sign in _FURNITURE):
        return True
    return lower[-1].isdigit() and _PAGE_NUMBER.fullmatch(line) is not None


def _join_sorted(words: set[str]) -> str:
    return " ".join(sorted(words))
