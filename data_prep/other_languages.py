"""Detection of languages that are far from Norwegian: all but Danish and Swedish. For stage language.

In three steps: the script of the letters; py3langid's whole set of languages, where one of them leads the six
beyond doubt; and, where neither knows the language, common small words of the six that are missing. Only
words in running text are looked at: names, addresses and codes are removed before
(written_standard/names.py), since they keep their language in Norwegian text too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from data_prep.language_identifier import LanguageIdentifier
from data_prep.languages import ISO_639_3, UNDETERMINED
from data_prep.written_standard.names import without_codes, without_names
from data_prep.written_standard.table import shipped_table, words

LOOK = 600  # characters of a text that py3langid sees
# In nats a byte of running text, by which the best of all other languages leads the best of the six. Of
# running text in 60 languages, UDHR's articles, the least is 0.27 (Low German) and 19 in 20 have more than
# 0.8; of Norwegian, Danish, Swedish and North Sámi sentences the most is -0.36, of English -0.3
# (written_standard/README.md).
RATE = 0.3
# Nats a byte by which it leads the next other language before it is named; known ones lead by 0.24 and more …
NAMED = 0.2
NAMED_IN_SCRIPT = 0.1  # the same among the languages of another script
# Below which one of the four Scandinavian languages leads without doubt; South Sámi has more
SURELY_SCANDINAVIAN = -0.7
UNSURE = -0.3  # … and below which one of the six leads clearly: between this and RATE small words decide
LETTERS_OF_SCRIPT = 15  # of another script, before it counts
WORDS = 6  # of running text; fewer tell nothing
FEW_WORDS = 3  # the same in a sentence of many capitals, if py3langid's lead is twice as great
# Share of a text's words that are in lower case and no codes; German prose has half, tables and programs less
RUNNING = 0.4
WORDS_UNKNOWN = 12  # the same, where nothing but missing small words speaks against the six
# Share of the different longer words whose first four letters begin words that the tables know
BEGINNINGS = 0.35
# The same, from which on a text looks Norwegian; UDHR's articles have 0.69, English and Swedish 0.3
NORWEGIAN_BEGINNINGS = 0.5
# The same, from which on a text with half as many small words as KNOWN is surely no other language
SURE_BEGINNINGS = 0.65
SMALL_WORDS = 0.08  # share of the words that are the six languages' small words; less is unknown
# Share of the words that are Norwegian's own small words from which on a text is surely no other language …
KNOWN = 0.2
FAMILIAR = 0.5  # … and that are words of the table of Bokmål and Nynorsk

_SCANDINAVIAN = ("nob", "nno", "dan", "swe")
_FAR = ("eng", "sme")

# Small words that Norwegian has and Dutch, German, French, Faroese … do not have, or seldom
_NORWEGIAN_WORDS = """
    og ikke ikkje på av er som til med det å har skal vil eller ved fra frå også kan for eit dei vi du jeg
    eg han hun ho seg sin være vere var blir bli ble vart etter når dersom hvis denne dette disse desse må
    bør
"""
_OTHER_WORDS = """
    i en et den de at om af och att är inte från det som för på the of and to in is that with be or for by
    are was not this which shall it as on from ja lea leat ahte dan go ii eai mii maid dat lei son dahje
    maiddái leamaš
"""
_NORWEGIAN = frozenset(_NORWEGIAN_WORDS.split())
_SIX = _NORWEGIAN.union(_OTHER_WORDS.split())
# Small words of one of these languages alone, of which py3langid knows North Sámi and Finnish only:
# 15 to 25% of running text
_MARKS = {
    "sme": (
        "leat go ii ahte gal lei mu nu dahje maid eai leamaš maiddái son mun don buot sii ledje lean oažžut dušše maŋŋel"
    ),
    "smj": (
        "le sáme gå li aj la jali galggá valla gånnå sån ietjá baktu majt vaj milta ájnas biejve gåktu "
        "ådå galggi mij gájkka åvdås"
    ),
    "sma": (
        "jïh jih leah gosse guktie bïjre goh dïhte edtja dellie mijjieh jallh juktie dejtie aktem mietie "
        "åadtjodh gaajhkesh saemien"
    ),
    "smn": ("já lii tâi láá puoh sehe moh kalga taam tot meid talle lah uv mield"),
    "fin": ("on tai sekä ovat että mutta joka jotka myös kun kuin ole eivät hänen voi olla ettei jos"),
    "fkv": ("oon ette kans het mie sie net tet tahi sitte kväänin ko jälkhiin saattaa niinko olheet"),
}
_MARKED = {word: code for code, text in _MARKS.items() for word in text.split()}
_MARKED_SHARE = 0.06
# Letters that North Sámi and Finnish do not have, and the language that has them
_SPELLINGS = {
    "sms": re.compile(r"[ǩǧǥǯʹʼʒ]"),
    "smn": re.compile("â"),
    "sma": re.compile("ï"),
    "smj": re.compile("å"),
    "fkv": re.compile("[kpt]h[aeiouyäö]|đ"),
}
_SPELT_SHARE = 0.08
_NEAR = {
    "sme": ("sms", "smn", "sma", "smj"),
    "est": ("sms",),
    "fin": ("fkv",),
}  # what py3langid takes for one of these
# In nats a byte by which North Sámi leads all other languages: 99% of UD's sentences have more, 70% of Lule
# and all of Inari less
_SURELY_NORTH_SAMI = -1.15

_LATIN = re.compile(r"[A-Za-zªºÀ-ÖØ-öø-ʸˠ-ˤḀ-ỿⱠ-ⱿꜢ-ꟿﬀ-ﬆＡ-Ｚａ-ｚ]")
_OTHER_SCRIPT = re.compile(r"[^\W\d_A-Za-zªºÀ-ÖØ-öø-ʸˠ-ˤḀ-ỿⱠ-Ɀꜣ-ꟿﬀ-ﬆＡ-Ｚａ-ｚ]")
_FOREIGN_LETTER = re.compile(r"[^\W\d_A-Za-zÆØÅæøåÉéÈèÊêÓóÒòÔôÄäÖöÜüÀà]")
# that Norwegian does not have, from which on the text may be in another language: Faroese has small words of
# it
FOREIGN_LETTERS = 3
_SENTENCE = re.compile(r"\w[.!?:]$|[^\W\d_]{3}[.!?:] |,$")
_SCRIPTS = {
    "Greek": r"\u0370-\u03ff\u1f00-\u1fff",
    "Cyrillic": r"\u0400-\u052f",
    "Armenian": r"\u0530-\u058f",
    "Hebrew": r"\u0590-\u05ff",
    "Arabic": r"\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "Syriac": r"\u0700-\u074f",
    "Thaana": r"\u0780-\u07bf",
    "Devanagari": r"\u0900-\u097f",
    "Bengali": r"\u0980-\u09ff",
    "Gurmukhi": r"\u0a00-\u0a7f",
    "Gujarati": r"\u0a80-\u0aff",
    "Odia": r"\u0b00-\u0b7f",
    "Tamil": r"\u0b80-\u0bff",
    "Telugu": r"\u0c00-\u0c7f",
    "Kannada": r"\u0c80-\u0cff",
    "Malayalam": r"\u0d00-\u0d7f",
    "Sinhala": r"\u0d80-\u0dff",
    "Thai": r"\u0e00-\u0e7f",
    "Lao": r"\u0e80-\u0eff",
    "Tibetan": r"\u0f00-\u0fff",
    "Burmese": r"\u1000-\u109f",
    "Georgian": r"\u10a0-\u10ff\u1c90-\u1cbf",
    "Hangul": r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Ethiopic": r"\u1200-\u139f\u2d80-\u2ddf",
    "Cherokee": r"\u13a0-\u13ff",
    "Khmer": r"\u1780-\u17ff",
    "Mongolian": r"\u1800-\u18af",
    "Kana": r"\u3040-\u30ff",
    "Han": r"\u3400-\u9fff\u8c48-\ufaff",
    "Tifinagh": r"\u2d30-\u2d7f",
}
_OF_SCRIPT = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
# Which of py3langid's languages are written in a script; a script of one language names it
_LANGUAGES_OF = {
    "Greek": "ell",
    "Cyrillic": "rus ukr bel bul srp mkd kaz kir mon tgk tat bak",
    "Armenian": "hye",
    "Hebrew": "heb yid",
    "Arabic": "ara fas urd pus uig ckb",
    "Devanagari": "hin mar nep san gom",
    "Bengali": "ben asm",
    "Gurmukhi": "pan",
    "Gujarati": "guj",
    "Odia": "ori",
    "Tamil": "tam",
    "Telugu": "tel",
    "Kannada": "kan",
    "Malayalam": "mal",
    "Sinhala": "sin",
    "Thai": "tha",
    "Lao": "lao",
    "Tibetan": "dzo",
    "Burmese": "mya",
    "Georgian": "kat",
    "Hangul": "kor",
    "Ethiopic": "amh tir",
    "Khmer": "khm",
    "Kana": "jpn",
    "Han": "zho",
}
# Letters of a language that py3langid takes for another: (script, letters, language)
_LETTERS_OF = (
    ("Ethiopic", re.compile("[ኣኦሕዕሓኽኹቕኾ]"), "tir"),
    ("Arabic", re.compile("[ێۆڕڵ]"), "ckb"),
    ("Hebrew", re.compile("[װױײ]|אַ|אָ"), "yid"),
)
_AS_ONE = {
    "hbs": {"bos", "hrv", "srp"},
    "msa": {"ind", "msa"},
}  # that no program tells apart well, and ISO 639-3's code for all
_MARKS_A_LANGUAGE = 0.02  # share of the script's letters that these are


@dataclass(frozen=True)
class Finding:
    """The language of a text that is not Scandinavian.

    Attributes:
        code: ISO 639-3, or `und` where the language is not known.
        detail: what is known of a language without a name.
        is_certain: whether another language leads beyond doubt; else only small words speak against the six.
    """

    code: str
    detail: str = ""
    is_certain: bool = True


def is_surely_scandinavian(text: str) -> bool:
    """Return whether so many of a text's words are Norwegian that no language far from it need be
    considered."""
    head = text[: LOOK // 2]
    if len(_FOREIGN_LETTER.findall(head)) >= FOREIGN_LETTERS:
        return False
    found = head.lower().split()
    small = sum(map(_NORWEGIAN.__contains__, found))
    if small >= KNOWN * len(found) > 0:
        return True
    if sum(map(_known().__contains__, found)) >= FAMILIAR * len(found) > 0:
        return True
    return small >= KNOWN / 2 * len(found) and _share_of_beginnings(found) >= SURE_BEGINNINGS


def looks_norwegian(text: str) -> bool:
    """Return whether a text holds Norwegian small words, or longer words that begin as Norwegian ones do."""
    found = words(text[:LOOK])
    return is_surely_scandinavian(text) or _share_of_beginnings(found) >= NORWEGIAN_BEGINNINGS


def find(texts: Sequence[str]) -> list[Finding | None]:
    """Return the language of each text that is not Scandinavian; None where it is, or is too short or no
    running text."""
    findings: list[Finding | None] = [find_by_script(text) for text in texts]
    running = [
        _running_text(text) if found is None else "" for text, found in zip(texts, findings, strict=True)
    ]
    doubtful = [number for number, text in enumerate(running) if text]
    for number, ranking in zip(doubtful, _rankings([running[number] for number in doubtful]), strict=True):
        findings[number] = _by_ranking(running[number], ranking)
    short = [number for number, text in enumerate(running) if findings[number] is None and not text]
    for number, finding in zip(short, _of_capitals([texts[number] for number in short]), strict=True):
        findings[number] = finding
    return findings


def _of_capitals(texts: Sequence[str]) -> list[Finding | None]:
    """The languages of sentences that are mostly capitalised words, as in German: the few others must be of
    the same."""
    findings: list[Finding | None] = [None] * len(texts)
    whole = [" ".join(without_codes(text[: 2 * LOOK]).split())[:LOOK] for text in texts]
    few = [" ".join(word for word in text.split() if word[0].islower()) for text in whole]
    able = [
        n for n, text in enumerate(few) if len(set(text.split())) >= FEW_WORDS and _SENTENCE.search(whole[n])
    ]
    rankings = zip(_rankings([whole[n] for n in able]), _rankings([few[n] for n in able]), strict=True)
    for number, (of_whole, of_few) in zip(able, rankings, strict=True):
        size = len(whole[number].encode())
        if of_whole.code == of_few.code and of_whole.lead >= 2 * RATE * size and of_few.lead > 0:
            findings[number] = _named(of_whole.code, of_whole.second, of_whole.lead_of_second / size)
    return findings


def find_by_script(text: str) -> Finding | None:
    """Return the language of a text of which most letters are of another script than Latin, however short it
    is."""
    if text.isascii():
        return None
    others = _OTHER_SCRIPT.findall(text)
    if len(others) < LETTERS_OF_SCRIPT or len(others) < len(_LATIN.findall(text)):
        return None
    letters = "".join(others)
    counts = {name: len(pattern.findall(letters)) for name, pattern in _OF_SCRIPT.items()}
    script = max(counts, key=lambda name: counts[name])
    if not counts[script]:
        return Finding(UNDETERMINED, "a script without a name here")
    if script == "Han" and counts["Kana"] > 0.05 * counts["Han"]:
        script = "Kana"
    return _of_script(text, script, counts[script])


def _of_script(text: str, script: str, letters: int) -> Finding:
    for of, pattern, code in _LETTERS_OF:
        if of == script and len(pattern.findall(text)) > _MARKS_A_LANGUAGE * letters:
            return Finding(code)
    candidates = _LANGUAGES_OF.get(script, "").split()
    if len(candidates) == 1:
        return Finding(candidates[0])
    codes = _columns()[2]
    scores = dict(zip(codes, _by_language([text[:LOOK]])[0].tolist(), strict=True))
    ranked = sorted((scores[code], code) for code in candidates if code in scores)
    if not ranked or (len(ranked) > 1 and ranked[-1][0] - ranked[-2][0] < NAMED_IN_SCRIPT * len(text[:LOOK])):
        return Finding(UNDETERMINED, f"{script} script")
    return Finding(ranked[-1][1])


@dataclass(frozen=True)
class _Ranking:
    """The best languages by py3langid's scores; the six apart from the others, and leads in nats.

    Attributes:
        code, second: the two best of the others.
        lead: of the best of the others against the best of the six.
        lead_of_second: of the best of the others against the next of them.
        of_six: the score of each of the six.
        is_language: whether py3langid takes it for a language at all, and for no code.
    """

    code: str
    second: str
    lead: float
    lead_of_second: float
    of_six: dict[str, float]
    is_language: bool


def _rankings(texts: Sequence[str]) -> list[_Ranking]:
    six, others, codes = _columns()
    if not texts:
        return []
    scores = _by_language(texts)
    rankings = []
    for row, best in zip(scores, np.argsort(-scores[:, others], axis=1)[:, :2], strict=True):
        first, second = others[best[0]], others[best[1]]
        of_six = {codes[column]: float(row[column]) for column in six}
        highest = max(of_six.values())
        is_language = row[codes.index("")] <= max(highest, row[first])
        lead, lead_of_second = float(row[first]) - highest, float(row[first] - row[second])
        rankings.append(
            _Ranking(codes[first], codes[second], lead, lead_of_second, of_six, bool(is_language))
        )
    return rankings


def _by_ranking(text: str, ranking: _Ranking) -> Finding | None:
    """The language of running text in Latin letters."""
    size = len(text.encode())
    of_six, rate = ranking.of_six, ranking.lead / size
    if not ranking.is_language:
        return None
    first_of_six = max(of_six, key=lambda code: of_six[code])
    if rate < SURELY_SCANDINAVIAN and first_of_six in _SCANDINAVIAN:
        return None
    found = words(text)
    if near := _near(found, ranking.code if rate > 0 else first_of_six):
        return Finding(near)
    if rate >= RATE and ranking.code == "lat" and not _SENTENCE.search(text):
        return None  # names of species and of laws stand in Norwegian lists
    if rate >= RATE:
        return _named(ranking.code, ranking.second, ranking.lead_of_second / size)
    if first_of_six == "sme":
        unknown = rate > _SURELY_NORTH_SAMI and _marks(found)["sme"] < 2
    else:
        unknown = rate > UNSURE and _knows_hardly_any(found)
    if unknown and len(set(found)) >= WORDS_UNKNOWN:
        return Finding(UNDETERMINED, "words that no table knows", is_certain=False)
    if (
        first_of_six in _FAR
        and of_six[first_of_six] - max(of_six[code] for code in _SCANDINAVIAN) >= RATE * size
    ):
        return Finding(first_of_six)
    return None


def _knows_hardly_any(found: Sequence[str]) -> bool:
    """Return whether neither small words of the six nor beginnings of Norwegian words are among these."""
    if sum(map(_SIX.__contains__, found)) >= SMALL_WORDS * len(found):
        return False
    return _share_of_beginnings(found) < BEGINNINGS


def _share_of_beginnings(found: Sequence[str]) -> float:
    """Of the different longer words, those whose first four letters begin words that the tables know."""
    longer = {word for word in found if len(word) > 4}
    return sum(f"{word[:4]}-" in shipped_table().weights for word in longer) / max(1, len(longer))


def _named(best: str, second: str, lead: float) -> Finding:
    if lead >= NAMED:
        return Finding(best)
    for code, members in _AS_ONE.items():
        if {best, second} <= members:
            return Finding(code)
    return Finding(UNDETERMINED, f"near to {best} and {second}")


def _marks(found: Sequence[str]) -> Counter[str]:
    return Counter(_MARKED[word] for word in found if word in _MARKED)


def _near(found: Sequence[str], code: str) -> str:
    """Return the language near `code` that py3langid does not know, if these words are of it; else ""."""
    counts = _marks(found)
    near = _NEAR.get(code, ())
    for candidate in ("sma", *near):  # South Sámi is like no other: py3langid guesses
        marked = counts[candidate] > counts[code] and counts[candidate] >= max(2, _MARKED_SHARE * len(found))
        spelt = sum(_SPELLINGS[candidate].search(word) is not None for word in found)
        is_enough = candidate in near or counts[candidate] > 2
        if (marked and is_enough) or spelt >= max(2, _SPELT_SHARE * len(found)):
            return candidate
    return ""


def _running_text(text: str) -> str:
    """The head of a text without names and codes; "" if it is no running text."""
    head = text[: 2 * LOOK]
    tokens = head.split()
    if len(tokens) < WORDS:
        return ""
    left = without_names(without_codes(head)).split()
    running = [word for word in left if len(word) > 1 and word[0].islower()]
    if len(set(running)) < WORDS or len(running) < RUNNING * len(tokens):
        return ""
    return " ".join(left)[:LOOK]


def _by_language(texts: Sequence[str]) -> NDArray[np.float64]:
    """The best score of each language, of shape (texts, languages), in the order of `_columns`."""
    scores = _whole_set().scores(texts)
    codes = [ISO_639_3.get(code, "") for code in _whole_set().codes]
    return np.stack(
        [scores[:, [n for n, of in enumerate(codes) if of == code]].max(1) for code in _columns()[2]], axis=1
    )


@cache
def _columns() -> tuple[list[int], list[int], list[str]]:
    """Where `_by_language` has the six and the others, and the languages of all its columns; "" is no
    language."""
    codes = sorted({ISO_639_3.get(code, "") for code in _whole_set().codes})
    six = [codes.index(code) for code in (*_SCANDINAVIAN, *_FAR)]
    return six, [n for n, code in enumerate(codes) if code and n not in six], codes


@cache
def _whole_set() -> LanguageIdentifier:
    """py3langid with all its languages."""
    return LanguageIdentifier(())


@cache
def _known() -> frozenset[str]:
    """The words of the table of Bokmål and Nynorsk that are long enough to be no other language's by
    chance."""
    return (
        frozenset(word for word in shipped_table().weights if len(word) > 3 and "-" not in word) | _NORWEGIAN
    )
