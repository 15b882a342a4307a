"""What tells documents apart that share most of their text: titles, numbers, dates, names and replaced words.
For stage deduplicate.

Acts, letters and minutes are written upon each other. Two with the same provisions, and another title, amount
or place, are two documents, and a copy with a printer's date or a line more is one. So only what stands
against each other counts, as an amount in the place of another: what one document has beyond the other never
tells them apart. Words that look alike (OCR, another spelling) do not stand against each other.
"""

from __future__ import annotations

import re
from functools import cached_property

TITLE_WORDS = 20  # of a first line; a longer one is a paragraph
HEAD = 900  # characters in which a title may stand below a banner
SHORT_LINE = 80  # characters of a line that is a heading, or part of an address
WORDS_A_MARK = (
    200  # one number, date or name in so many words may be another: a printer's date, a slip of the pen
)
MARKS_SHARE = 0.2  # but no more than this share of all, or one
FEWEST_WORDS = 30  # from which on words may be replaced at all …
# … up to this share of the different words, which grows with the text up to LONG words
REPLACED, REPLACED_LONG, LONG = 0.06, 0.2, 1000

_WORD = re.compile(r"[^\W\d_]+")
_CAPITALISED = re.compile(r"[A-ZÆØÅÄÖÜÁČĐŊŠŦŽ][\w-]+")
# Behind these, letters and digits a capital is a name's; behind others a sentence begins.
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
    r"|(?P<d2>\d{1,2})[./-][ ]?(?P<m2>\d{1,2})[./-][ ]?(?P<y2>\d{4})\b|(?P<y3>\d{4})-(?P<m3>\d{2})-(?P<d3>\d{2})\b"
    r"|\d+(?:[ ]\d{3}(?!\d))*(?:[.,:/–-]?\w+)*"
)
_IS_DAY = re.compile(r"\d{4}d\d{2}d\d{2}")
_SPACES = re.compile(r"[^\S\n ]+|[ ]{2,}")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+")
# of lines that whoever prints, saves or shows a page puts there: anywhere in them, or at their beginning
_FURNITURE = (
    "utskrift", "utskrevet", "skrevet ut", "utskriven", "printed", "nedlastet", "lastet ned", "lasta ned", "downloaded",
    "sist endret", "sist oppdatert", "sist endra", "sist lagret", "sist redigert", "sist besøkt", "last updated", "last modified",
    "informasjonskaps", "cookie", "versjonsdato",
)  # fmt: skip
_FURNITURE_BEGINS = (
    "hentet", "henta", "lest", "oppdatert", "oppdatera", "publisert", "kopiert", "updated", "published", "retrieved",
)  # fmt: skip
LONGEST_FURNITURE = 150  # characters of such a line
_PAGE_NUMBER = re.compile(
    r"[ \t]*(?:side|page|s\.)?[ \t]*\d+(?:[ ]?(?:/|av|of)[ ]?\d+)?[ \t]*", re.IGNORECASE
)
_SUFFIX = re.compile(r"(?:[ ]+[|–—•:-][ ][^|–—•]*|[ ]*[(\[][^()\[\]]*[)\]])$")
_STOP_WORDS = "og i på av er det som for til med en et ei ein eit den de at om fra frå ved eller mv m the of and in to a an on"
_STOP = frozenset(_STOP_WORDS.split())
_LOOKS = str.maketrans(
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
# Beginnings of words that decide a case, in both standards
_OUTCOME = re.compile(r"(stadfest|opphev|omgj|avvis|forkast|innvilg|avsl(?=[aåo])|frif|dømm|dømt)")
_SPELT = 50  # words that are compared letter by letter; of more, the two texts are others


class Profile:
    """The titles, numbers, names and words of a document, as far as they tell it apart from others.

    Attributes:
        has_title: whether its source gives a title; else it is the first line that looks like one.
        title: words and numbers of the title; `core` those before a site's name or a short title in brackets.
        numbers, names: of the text; dates are numbers.
        head, words: all words, and those of the first lines, in which a title may stand.
        num_words: all, however often.
    """

    def __init__(self, line: str) -> None:
        self._parts = line.split("\n")

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
        """What documents must share that nothing but words can tell apart."""
        return "\n".join(self._parts[2:5])


def profile(title: str, text: str) -> str:
    """Return the lines of which a Profile is made."""
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
            _listed(_title_words(first)),
            _listed(_numbers(plain)),
            _listed(_names(plain)),
            _listed({*_WORD.findall(head.casefold()), *_numbers(head)}),
            _listed(set(words)),
            _listed(_title_words(_SUFFIX.sub("", first.strip()) or first)),
        ]
    )


def tell_apart(a: Profile, b: Profile) -> bool:
    """Whether two documents that share most of their text are not one."""
    return _titles_differ(a, b) or _outcomes_differ(a, b) or _marks_differ(a, b) or _words_differ(a, b)


def _titles_differ(a: Profile, b: Profile) -> bool:
    ours, theirs = a.title - b.title, b.title - a.title
    if a.has_title and b.has_title:
        if a.core < b.core or b.core < a.core:
            return True  # an act on amendments, or on a part of what the other is on
    elif 2 * len(a.title & b.title) < max(
        len(a.title), len(b.title)
    ):  # else each line stands in the other's place
        ours, theirs = ours - b.head, theirs - a.head
    return bool(ours and theirs) and _fewest_against(ours, theirs) > 0


def _outcomes_differ(a: Profile, b: Profile) -> bool:
    """Whether two decisions end in other ways: one word decides, however long the text is."""
    ours, theirs = (
        {found[1] for word in words if (found := _OUTCOME.match(word))} for words in (a.words, b.words)
    )
    return bool(ours - theirs and theirs - ours)


def _marks_differ(a: Profile, b: Profile) -> bool:
    ours, theirs = _without_misspelt_dates(a, b)
    ours |= a.names - b.words
    theirs |= b.names - a.words
    if not ours or not theirs:
        return False
    words = min(a.num_words, b.num_words)
    marks = min(len(a.numbers) + len(a.names), len(b.numbers) + len(b.names))
    return _fewest_against(ours, theirs) > min(words / WORDS_A_MARK, max(1, MARKS_SHARE * marks))


def _without_misspelt_dates(a: Profile, b: Profile) -> tuple[frozenset[str], frozenset[str]]:
    """Return the numbers of each that the other has not, without dates that stand there with a misspelt
    month.

    Of such a date the other has the day and the year as numbers, and no date of its own in its place.
    """
    ours, theirs = a.numbers - b.numbers, b.numbers - a.numbers
    left_out: set[str] = set()
    for own, others, all_others in ((ours, theirs, b.numbers), (theirs, ours, a.numbers)):
        if any(map(_IS_DAY.fullmatch, others)):
            continue
        for date in filter(_IS_DAY.fullmatch, own):
            year, _, day = date.split("d")
            parts = {year, day.lstrip("0")}
            if parts <= all_others and parts & others:
                left_out |= {date, *parts}
    return ours - left_out, theirs - left_out


def _words_differ(a: Profile, b: Profile) -> bool:
    ours, theirs = a.words - b.words, b.words - a.words
    if not ours or not theirs:
        return False
    words = min(a.num_words, b.num_words)
    share = REPLACED + (REPLACED_LONG - REPLACED) * min(words / LONG, 1)
    allowed = share * min(len(a.words), len(b.words)) if words >= FEWEST_WORDS else 0
    return min(len(ours), len(theirs)) > allowed and _fewest_against(ours, theirs) > allowed


def _fewest_against(ours: frozenset[str], theirs: frozenset[str]) -> int:
    """How many words of each side stand against the other's, those that look alike left out."""
    shapes: dict[str, list[str]] = {}
    for word in sorted(theirs):
        shapes.setdefault(_shape(word), []).append(word)
    left = []
    for word in sorted(ours):
        if same := shapes.get(_shape(word)):
            same.pop()
        else:
            left.append(word)
    others = [word for words in shapes.values() for word in words]
    if max(len(left), len(others)) <= _SPELT:
        for word in left.copy():
            if (other := next((other for other in others if _is_slip(word, other)), None)) is not None:
                others.remove(other)
                left.remove(word)
    return min(len(left), len(others))


def _shape(word: str) -> str:
    """A word as a bad scan shows it; numbers stay numbers."""
    if word.isdecimal():
        return word.translate(_LOOKS)
    for letters, look in _LIGATURES:
        word = word.replace(letters, look)
    return word.translate(_LOOKS)


def _is_slip(a: str, b: str) -> bool:
    """Whether one letter of a long word is another, missing, or in its neighbour's place. Of numbers none
    is."""
    if min(len(a), len(b)) < 6 or abs(len(a) - len(b)) > 1 or not (a.isalpha() and b.isalpha()):
        return False
    start = next(
        (place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    x, y = a[start:], b[start:]
    return x[1:] == y[1:] or x[1:] == y or x == y[1:] or (x[:2] == y[1::-1] and x[2:] == y[2:])


def _first_line(text: str) -> str:
    """Return the first line of the text itself if it looks like a title: short, and not a sentence; else
    ""."""
    lines = text.split("\n", 12)
    for line in lines[:-1]:
        line = line.strip()
        if not _WORD.search(line) or _is_furniture(line):
            continue
        is_title = len(line.split()) <= TITLE_WORDS and line[-1] not in ".!?;,"
        return line if is_title else ""
    return ""


def _title_words(title: str) -> set[str]:
    return (set(_WORD.findall(_NUMBER.sub(" ", title).casefold())) - _STOP) | _numbers(title)


def _numbers(text: str) -> set[str]:
    """Numbers and dates, however they are written."""
    return {_number(found) for found in _NUMBER.finditer(text)}


def _number(found: re.Match[str]) -> str:
    return "".join(filter(str.isalnum, found[0])).casefold() if found.lastgroup is None else _day(found)


def _day(found: re.Match[str]) -> str:
    day, year = (found[name] or found[f"{name}2"] or found[f"{name}3"] for name in ("d", "y"))
    month = _MONTHS[found["m"].lower()] if found["m"] else int(found["m2"] or found["m3"])
    return f"{year}d{month:02}d{int(day):02}"


def _names(text: str) -> set[str]:
    """Words with a capital inside a sentence, or on a line too short for one."""
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
    if not line or len(line) > LONGEST_FURNITURE:
        return False
    lower = line.casefold()
    if lower.startswith(_FURNITURE_BEGINS) or any(sign in lower for sign in _FURNITURE):
        return True
    return lower[-1].isdigit() and _PAGE_NUMBER.fullmatch(line) is not None


def _listed(words: set[str]) -> str:
    return " ".join(sorted(words))
