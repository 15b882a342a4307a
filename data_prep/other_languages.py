"""Detection of languages other than Norwegian, Danish and Swedish. Used by stage language.

"The six" are Bokmål, Nynorsk, Danish, Swedish, English and North Sámi. Other languages are detected

1. by the script of the letters;
2. by py3langid's scores, if one of its other languages scores clearly higher than the six;
3. by the lack of the six languages' small words.

Before 2 and 3, names, addresses and codes are removed (written_standard/names.py), because a
Norwegian text may contain names in other languages.
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
from data_prep.scripts import LANGUAGES_BY_SCRIPT, LETTERS_BY_LANGUAGE, LETTERS_BY_SCRIPT
from data_prep.written_standard.names import remove_codes, remove_names
from data_prep.written_standard.table import load_shipped_table, words

MAX_CHARACTERS = 600  # maximum length of the text that py3langid receives

# A text's lead is the score of py3langid's best other language minus the best score of the six, in
# nats per byte. A text with at least MIN_LEAD is in the other language. The articles of the
# Universal Declaration of Human Rights (UDHR) in 60 other languages have leads of at least 0.27 (Low
# German); 19 in 20 have more than 0.8. Sentences in Norwegian, Danish, Swedish and North Sámi have
# leads of at most -0.36, and sentences in English of at most -0.3 (written_standard/README.md).
MIN_LEAD = 0.3
# Between UNSURE_LEAD and MIN_LEAD, the six languages' small words decide.
UNSURE_LEAD = -0.3
# If a text's best language is Scandinavian and its lead is below this, it surely is Scandinavian.
# The leads of South Sámi texts are higher.
SURELY_SCANDINAVIAN = -0.7
# If a text's best language is North Sámi and its lead is below this, it surely is North Sámi. In
# Universal Dependencies (UD), 99% of North Sámi sentences, 30% of Lule Sámi sentences and no Inari
# Sámi sentence have a lead below this.
_SURELY_NORTH_SAMI = -1.15

# The best other language is named if its score exceeds that of the second best by at least this, in
# nats per byte. For texts in languages that py3langid covers, the difference is at least 0.24.
MIN_LEAD_OF_SECOND = 0.2
# The same limit, in nats per character, for two languages of a script other than Latin.
MIN_LEAD_IN_SCRIPT = 0.1

LETTERS_OF_SCRIPT = 15  # minimum of letters of another script
MIN_WORDS = 6  # running text with fewer different words is too short
# The same for the lower-case words of a sentence of mostly capitalized words. Its lead must be at
# least twice MIN_LEAD.
MIN_LOWERCASE_WORDS = 3
MIN_WORDS_UNKNOWN = 12  # the same, if only the lack of small words indicates another language
# A text is running text if at least this share of its words are lower-case and not codes. German
# prose has a share of half; tables and programs have less than this.
RUNNING_SHARE = 0.4
# Limits on the share of a text's longer words whose first four letters are in the table of Bokmål and
# Nynorsk. Each word is counted once. UDHR's articles have 0.69, English and Swedish text
# has 0.3.
MIN_BEGINNINGS = 0.35  # with a smaller share, the words are unknown
NORWEGIAN_BEGINNINGS = 0.5  # a text with at least this share looks Norwegian
# A text with at least this share is surely not in another language if it has half of KNOWN_SHARE.
SURE_BEGINNINGS = 0.65
SMALL_WORDS_SHARE = 0.08  # with a smaller share of the six languages' small words, the words are unknown
# A text is surely not in another language if at least KNOWN_SHARE of its words are Norwegian small
# words, or FAMILIAR_SHARE are words of the table of Bokmål and Nynorsk.
KNOWN_SHARE = 0.2
FAMILIAR_SHARE = 0.5

_SCANDINAVIAN = ("nob", "nno", "dan", "swe")
_FAR = ("eng", "sme")

# Small words of Norwegian that are rare or absent in Dutch, German, French, Faroese and others.
_NORWEGIAN_WORDS = """
    og ikke ikkje på av er som til med det å har skal vil eller ved fra frå også kan for eit dei
    vi du jeg eg han hun ho seg sin være vere var blir bli ble vart etter når dersom hvis denne
    dette disse desse må bør
"""
_OTHER_WORDS = """
    i en et den de at om af och att är inte från det som för på the of and to in is that with be
    or for by are was not this which shall it as on from ja lea leat ahte dan go ii eai mii maid
    dat lei son dahje maiddái leamaš
"""
_NORWEGIAN = frozenset(_NORWEGIAN_WORDS.split())
_SIX = _NORWEGIAN.union(_OTHER_WORDS.split())
# Small words that only one of these languages has. They are 15 to 25% of the words of its running
# text. Of these languages, py3langid covers only North Sámi and Finnish.
_MARKS = {
    "sme": (
        "leat go ii ahte gal lei mu nu dahje maid eai leamaš maiddái son mun don buot sii ledje lean "
        "oažžut dušše maŋŋel"
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
_MARKED_SHARE = 0.06  # a text with at least this share of such words is in their language
# Letters of languages that resemble North Sámi or Finnish. North Sámi and Finnish do not have them.
_SPELLINGS = {
    "sms": re.compile(r"[ǩǧǥǯʹʼʒ]"),
    "smn": re.compile("â"),
    "sma": re.compile("ï"),
    "smj": re.compile("å"),
    "fkv": re.compile("[kpt]h[aeiouyäö]|đ"),
}
_SPELT_SHARE = 0.08  # a text with at least this share of words with such letters is in their language
# Languages that py3langid takes for another one, by the language that it returns.
_NEAR = {"sme": ("sms", "smn", "sma", "smj"), "est": ("sms",), "fin": ("fkv",)}

_LATIN = re.compile(r"[A-Za-zªºÀ-ÖØ-öø-ʸˠ-ˤḀ-ỿⱠ-ⱿꜢ-ꟿﬀ-ﬆＡ-Ｚａ-ｚ]")
_OTHER_SCRIPT = re.compile(r"[^\W\d_A-Za-zªºÀ-ÖØ-öø-ʸˠ-ˤḀ-ỿⱠ-Ɀꜣ-ꟿﬀ-ﬆＡ-Ｚａ-ｚ]")
_FOREIGN_LETTER = re.compile(r"[^\W\d_A-Za-zÆØÅæøåÉéÈèÊêÓóÒòÔôÄäÖöÜüÀà]")
# A text with at least FOREIGN_LETTERS letters that Norwegian does not have may be in another
# language even if it has many Norwegian small words, because Faroese has the same small words.
FOREIGN_LETTERS = 3
_SENTENCE = re.compile(r"\w[.!?:]$|[^\W\d_]{3}[.!?:] |,$")
_MIN_LETTERS_SHARE = 0.02  # minimum share of these letters among the text's letters of the script
# Languages that are hard to distinguish, by the ISO 639-3 code of their group.
_GROUPS = {"hbs": {"bos", "hrv", "srp"}, "msa": {"ind", "msa"}}


@dataclass(frozen=True)
class Finding:
    """The language of a text that is not Scandinavian.

    Attributes:
        code: ISO 639-3 code, or `und` if the language is unknown.
        detail: description of an unknown language, such as "Cyrillic script".
        is_certain: True if the script, the spelling or py3langid shows the language. False if the
            text only lacks the small words (such as "og") of the six languages.
    """

    code: str
    detail: str = ""
    is_certain: bool = True


def is_surely_scandinavian(text: str) -> bool:
    """Return whether a text has enough Norwegian words to be surely Scandinavian."""
    head = text[: MAX_CHARACTERS // 2]
    if len(_FOREIGN_LETTER.findall(head)) >= FOREIGN_LETTERS:
        return False
    found = head.lower().split()
    num_small = sum(map(_NORWEGIAN.__contains__, found))
    if num_small >= KNOWN_SHARE * len(found) > 0:
        return True
    if sum(map(_familiar_words().__contains__, found)) >= FAMILIAR_SHARE * len(found) > 0:
        return True
    return num_small >= KNOWN_SHARE / 2 * len(found) and _share_of_beginnings(found) >= SURE_BEGINNINGS


def looks_norwegian(text: str) -> bool:
    """Return whether many of a text's words are Norwegian, or begin like Norwegian words."""
    found = words(text[:MAX_CHARACTERS])
    return is_surely_scandinavian(text) or _share_of_beginnings(found) >= NORWEGIAN_BEGINNINGS


def find_other_languages(texts: Sequence[str]) -> list[Finding | None]:
    """Return the language of each text that is not Scandinavian, and None for the other texts.

    Texts that are too short, or that are not running text, also get None.
    """
    findings: list[Finding | None] = [find_by_script(text) for text in texts]
    running: list[str] = []
    for text, finding in zip(texts, findings, strict=True):
        running.append(_running_text(text) if finding is None else "")
    ranked = [number for number, text in enumerate(running) if text]
    rankings = _rank_languages([running[number] for number in ranked])
    for number, ranking in zip(ranked, rankings, strict=True):
        findings[number] = _find_by_ranking(running[number], ranking)
    short = [number for number, text in enumerate(running) if findings[number] is None and not text]
    findings_of_short = _find_in_capitals([texts[number] for number in short])
    for number, finding in zip(short, findings_of_short, strict=True):
        findings[number] = finding
    return findings


def _find_in_capitals(texts: Sequence[str]) -> list[Finding | None]:
    """Return the languages of texts with many capitalized words, such as German sentences.

    A text without many capitalized words gets None. So does a text for whose lower-case words alone
    py3langid finds another language.
    """
    findings: list[Finding | None] = [None] * len(texts)
    sentences = [
        " ".join(remove_codes(text[: 2 * MAX_CHARACTERS]).split())[:MAX_CHARACTERS] for text in texts
    ]
    lowercase = [" ".join(word for word in text.split() if word[0].islower()) for text in sentences]
    numbers = [
        number
        for number, text in enumerate(lowercase)
        if len(set(text.split())) >= MIN_LOWERCASE_WORDS and _SENTENCE.search(sentences[number])
    ]
    rankings = _rank_languages([sentences[number] for number in numbers])
    rankings_of_lowercase = _rank_languages([lowercase[number] for number in numbers])
    for number, ranking, of_lowercase in zip(numbers, rankings, rankings_of_lowercase, strict=True):
        size = len(sentences[number].encode())
        is_same = ranking.code == of_lowercase.code
        if is_same and ranking.lead >= 2 * MIN_LEAD * size and of_lowercase.lead > 0:
            findings[number] = _name_language(ranking, size)
    return findings


def find_by_script(text: str) -> Finding | None:
    """Return the language of a text if most of its letters are not Latin, else None."""
    if text.isascii():
        return None
    others = _OTHER_SCRIPT.findall(text)
    if len(others) < LETTERS_OF_SCRIPT or len(others) < len(_LATIN.findall(text)):
        return None
    letters = "".join(others)
    counts = {name: len(pattern.findall(letters)) for name, pattern in LETTERS_BY_SCRIPT.items()}
    script = max(counts, key=lambda name: counts[name])
    if not counts[script]:
        return Finding(UNDETERMINED, "unknown script")
    if script == "Han" and counts["Kana"] > 0.05 * counts["Han"]:
        script = "Kana"
    return _find_in_script(text, script, counts[script])


def _find_in_script(text: str, script: str, num_letters: int) -> Finding:
    """Return the language of a text in a script other than Latin.

    Args:
        script: the name of the script, such as "Cyrillic".
        num_letters: number of the text's letters in `script`.
    """
    for letters_script, letters, code in LETTERS_BY_LANGUAGE:
        if letters_script == script and len(letters.findall(text)) > _MIN_LETTERS_SHARE * num_letters:
            return Finding(code)
    candidates = LANGUAGES_BY_SCRIPT.get(script, "").split()
    if len(candidates) == 1:
        return Finding(candidates[0])
    head = text[:MAX_CHARACTERS]
    scores = dict(zip(_columns().codes, _score_languages([head])[0].tolist(), strict=True))
    ranked = sorted((scores[code], code) for code in candidates if code in scores)
    if not ranked:
        return Finding(UNDETERMINED, f"{script} script")
    if len(ranked) > 1 and ranked[-1][0] - ranked[-2][0] < MIN_LEAD_IN_SCRIPT * len(head):
        return Finding(UNDETERMINED, f"{script} script")
    return Finding(ranked[-1][1])


@dataclass(frozen=True)
class _Ranking:
    """The languages that suit a text best, by py3langid's scores (log-probabilities, in nats).

    "The six" are the languages that the module docstring names.

    Attributes:
        code: the language with the highest score, of all languages except the six.
        second: the language with the second highest score, of all languages except the six.
        lead: score of `code` minus the best score of the six.
        lead_of_second: score of `code` minus the score of `second`.
        of_six: the score of each of the six.
        is_language: True if py3langid takes the text for a natural language, not for code.
    """

    code: str
    second: str
    lead: float
    lead_of_second: float
    of_six: dict[str, float]
    is_language: bool


def _rank_languages(texts: Sequence[str]) -> list[_Ranking]:
    if not texts:
        return []
    columns = _columns()
    codes = columns.codes
    scores = _score_languages(texts)
    best_two = np.argsort(-scores[:, columns.others], axis=1)[:, :2]
    rankings = []
    for row, best in zip(scores, best_two, strict=True):
        first = columns.others[best[0]]
        second = columns.others[best[1]]
        of_six = {codes[column]: float(row[column]) for column in columns.six}
        highest = max(of_six.values())
        rankings.append(
            _Ranking(
                code=codes[first],
                second=codes[second],
                lead=float(row[first]) - highest,
                lead_of_second=float(row[first] - row[second]),
                of_six=of_six,
                is_language=bool(row[codes.index("")] <= max(highest, row[first])),
            )
        )
    return rankings


def _find_by_ranking(text: str, ranking: _Ranking) -> Finding | None:
    """Return the language of a text in Latin letters.

    Return None if the text may be Scandinavian, or is code or a list of Latin names.

    Args:
        text: the text, without names and codes.
        ranking: the languages for which py3langid's scores of the text are highest.
    """
    size = len(text.encode())
    of_six = ranking.of_six
    lead = ranking.lead / size
    if not ranking.is_language:
        return None
    first_of_six = max(of_six, key=lambda code: of_six[code])
    if lead < SURELY_SCANDINAVIAN and first_of_six in _SCANDINAVIAN:
        return None
    found = words(text)
    near = _find_near_language(found, ranking.code if lead > 0 else first_of_six)
    if near:
        return Finding(near)
    if lead >= MIN_LEAD:
        if ranking.code == "lat" and not _SENTENCE.search(text):
            return None  # a list of names of species, or of laws
        return _name_language(ranking, size)
    if first_of_six == "sme":
        is_unknown = lead > _SURELY_NORTH_SAMI and _count_marks(found)["sme"] < 2
    else:
        is_unknown = lead > UNSURE_LEAD and _are_unknown(found)
    if is_unknown and len(set(found)) >= MIN_WORDS_UNKNOWN:
        return Finding(UNDETERMINED, "words of no known language", is_certain=False)
    lead_over_scandinavian = of_six[first_of_six] - max(of_six[code] for code in _SCANDINAVIAN)
    if first_of_six in _FAR and lead_over_scandinavian >= MIN_LEAD * size:
        return Finding(first_of_six)
    return None


def _are_unknown(found: Sequence[str]) -> bool:
    """Return whether few of a text's words are known.

    Known are the small words (such as "og") of Bokmål, Nynorsk, Danish, Swedish, English and North
    Sámi, and words that begin like Norwegian words.
    """
    if sum(map(_SIX.__contains__, found)) >= SMALL_WORDS_SHARE * len(found):
        return False
    return _share_of_beginnings(found) < MIN_BEGINNINGS


def _share_of_beginnings(found: Sequence[str]) -> float:
    """Return the share of words that begin like Norwegian words.

    Such a word has its first four letters in the shipped table of Bokmål and Nynorsk. Only words of
    at least five letters are considered, and each is counted once.
    """
    longer = {word for word in found if len(word) > 4}
    return sum(f"{word[:4]}-" in load_shipped_table().weights for word in longer) / max(1, len(longer))


def _name_language(ranking: _Ranking, size: int) -> Finding:
    """Return the language with the highest score, other than the six of the module docstring.

    If the second best has nearly the same score, return the group of languages to which both
    belong, or `und` if there is none.

    Args:
        size: size of the text in bytes.
    """
    if ranking.lead_of_second / size >= MIN_LEAD_OF_SECOND:
        return Finding(ranking.code)
    for code, members in _GROUPS.items():
        if {ranking.code, ranking.second} <= members:
            return Finding(code)
    return Finding(UNDETERMINED, f"near to {ranking.code} and {ranking.second}")


def _count_marks(found: Sequence[str]) -> Counter[str]:
    return Counter(_MARKED[word] for word in found if word in _MARKED)


def _find_near_language(found: Sequence[str], code: str) -> str:
    """Return the language of a text that py3langid has taken for another language, or "".

    Two kinds of languages are considered: South Sámi, which py3langid may take for any language,
    and the languages that it may take for `code` (see _NEAR). A text is in one of them if it has
    enough of that language's small words or spellings.

    Args:
        found: the words of the text.
        code: the language that py3langid finds.
    """
    counts = _count_marks(found)
    near = _NEAR.get(code, ())
    for candidate in ("sma", *near):  # py3langid may take South Sámi for any language
        count = counts[candidate]
        has_marks = count > counts[code] and count >= max(2, _MARKED_SHARE * len(found))
        is_enough = candidate in near or count > 2
        num_spelt = sum(_SPELLINGS[candidate].search(word) is not None for word in found)
        if (has_marks and is_enough) or num_spelt >= max(2, _SPELT_SHARE * len(found)):
            return candidate
    return ""


def _running_text(text: str) -> str:
    """Return the beginning of a text, without names and codes.

    Return "" if the beginning is too short, or not sentences.
    """
    head = text[: 2 * MAX_CHARACTERS]
    tokens = head.split()
    if len(tokens) < MIN_WORDS:
        return ""
    kept = remove_names(remove_codes(head)).split()
    running = [word for word in kept if len(word) > 1 and word[0].islower()]
    if len(set(running)) < MIN_WORDS or len(running) < RUNNING_SHARE * len(tokens):
        return ""
    return " ".join(kept)[:MAX_CHARACTERS]


def _score_languages(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return py3langid's scores of texts, as an array [texts, languages].

    `_columns` gives the language of each column. If py3langid has several variants of a language,
    its score is the best of theirs.
    """
    scores = _all_languages().compute_scores(texts)
    codes = [ISO_639_3.get(code, "") for code in _all_languages().codes]
    best = []
    for language in _columns().codes:
        variants = [number for number, code in enumerate(codes) if code == language]
        best.append(scores[:, variants].max(1))
    return np.stack(best, axis=1)


@dataclass(frozen=True)
class _Columns:
    """The columns of the array that `_score_languages` returns.

    Attributes:
        codes: the language of each column; "" for py3langid's classes of code.
        six: indices of the columns of the six languages that the module docstring names.
        others: indices of the columns of all other languages, without code.
    """

    codes: list[str]
    six: list[int]
    others: list[int]


@cache
def _columns() -> _Columns:
    codes = sorted({ISO_639_3.get(code, "") for code in _all_languages().codes})
    six = [codes.index(code) for code in (*_SCANDINAVIAN, *_FAR)]
    others = [number for number, code in enumerate(codes) if code and number not in six]
    return _Columns(codes, six, others)


@cache
def _all_languages() -> LanguageIdentifier:
    return LanguageIdentifier(())


@cache
def _familiar_words() -> frozenset[str]:
    """Return words by which Norwegian text is recognised.

    They are the Norwegian small words, and the words of at least four letters in the shipped table
    of Bokmål and Nynorsk. The table's shorter words are left out, because other languages may have
    the same words by chance.
    """
    longer = (word for word in load_shipped_table().weights if len(word) > 3 and "-" not in word)
    return frozenset(longer) | _NORWEGIAN
