"""Which language a document is in, by its long paragraphs: py3langid for the language, our own tables for the near ones.

Each stretch of some hundred characters is judged by itself and counts by its letters; where Norwegian words are not clearly of
one standard, as in tables, or what looks Danish or Swedish may be Norwegian, it has no say. What the source claims (Lovdata's
`lang`, a letter's own field) counts as a share of the letters too: it decides where the text does not. A document with both
standards in earnest gets ISO 639-3's code for Norwegian as a whole, `nor`, and a count. A conversation is in the language of its
answers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from itertools import islice
from typing import Any

from data_prep.config import LANGUAGES, CorpusConfig, LanguageConfig
from data_prep.document import Document, Report
from data_prep.language_identifier import LanguageIdentifier
from data_prep.written_standard.table import NEIGHBOURS, shipped_table, words

VERSION = 3

# py3langid's ISO 639-1 codes; its Bokmål is "no". Only languages that occur beside Norwegian compete: more only adds noise.
CODES = dict(zip(("no", "nn", "da", "sv", "en", "se"), LANGUAGES, strict=True))
NORWEGIAN = ("nob", "nno")
# In nats: three stretches in four of what is read are taken to be Norwegian; py3langid takes languages for equally likely.
# It is the most at which py3langid alone tells no language better, on texts of no test and no table (written_standard/README.md).
PRIOR = math.log((0.75 / len(NORWEGIAN)) / (0.25 / (len(CODES) - len(NORWEGIAN))))
MIXED = "nor"
STRETCH = 200  # characters; under 60 every tool is wrong in one of six (facts of UD's sentences), here in one of a hundred
LONGEST = 1500  # characters: longer stretches are cut at line ends
LOOK = 600  # characters of a stretch that py3langid sees: it takes most of this stage's time, and knows by then
CLEAR = 0.7  # nats a word; 95% of NAV's paragraphs over 150 characters have more than 0.95, tables have less than 0.6
LETTERS, DISTINCT = (
    0.6,
    0.35,
)  # shares: of letters among what is no space, of distinct words among the first 150; tables have less
SURE = 10.0  # nats a stretch must have for a standard, besides, before it makes a document mixed
DOCUMENTS_AT_ONCE = 100  # whose stretches py3langid sees together

Scores = dict[str, float]  # by language


@dataclass
class Verdict:
    """What the text says, in letters by language: of all stretches, of those that are clear, of those that are beyond doubt."""

    letters: Counter[str] = field(default_factory=Counter)
    clear: Counter[str] = field(default_factory=Counter)
    sure: Counter[str] = field(default_factory=Counter)

    def language(self, claim: str, config: LanguageConfig) -> str:
        """ISO 639-3 code, or `nor` for both standards; `claim` is what the source says, or ""."""
        if claim in CODES.values() and not self.clear:
            return claim
        counts = self.clear or self.letters
        total = counts.total()
        if not total:
            return claim
        if min(self.sure[standard] for standard in NORWEGIAN) >= config.mixed_share * total:
            return MIXED
        votes = {code: count / total for code, count in counts.items()}
        if claim in CODES.values():
            votes[claim] = votes.get(claim, 0.0) + config.claim_weight
        return max(votes, key=lambda code: (votes[code], code == claim))


def settings(config: CorpusConfig) -> dict[str, Any]:
    language = config.language
    return {
        "keep": language.keep,
        "min_characters": language.min_characters,
        "claim_weight": language.claim_weight,
        "mixed_share": language.mixed_share,
        "py3langid": version("py3langid"),
    }


def run(documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
    keep = set(config.language.keep)
    if keep.issuperset(NORWEGIAN):
        keep.add(MIXED)
    for document, text, verdict in _judgements(documents, config.language.min_characters):
        claim = document.language
        if verdict is not None:
            document.language = verdict.language(claim, config.language)
            report.counts["unlike_its_source_says"] += bool(claim) and document.language != claim
        if not document.language:
            report.drop(document, "language_undecided", f"{len(text)} characters, and the source claims no language")
            continue
        if document.language not in keep:
            report.drop(document, f"language_{document.language}")
            continue
        report.counts[document.language] += 1
        yield document


def _judgements(documents: Iterator[Document], min_characters: int) -> Iterator[tuple[Document, str, Verdict | None]]:
    """Each document, the text that decides on its language, and what that says if it is long enough."""
    while batch := list(islice(documents, DOCUMENTS_AT_ONCE)):
        texts = [_judged(document) for document in batch]
        verdicts = judge_all([text for text in texts if len(text) >= min_characters])
        for document, text in zip(batch, texts, strict=True):
            yield document, text, next(verdicts) if len(text) >= min_characters else None


def _judged(document: Document) -> str:
    """What decides on its language: of a conversation, what the model is to learn to say.

    A pair that learns Nynorsk from Bokmål is Nynorsk. Where that is less than a stretch and nothing is claimed, it is all of it:
    answers cut out of a text are a few words, or names.
    """
    answers = "\n\n".join(turn.content for turn in document.turns if turn.target)
    return answers if answers and (document.language or len(answers) >= STRETCH) else document.whole_text


def judge(text: str) -> Verdict:
    """Each stretch of the text, judged by itself."""
    return next(judge_all([text]))


def judge_all(texts: Sequence[str]) -> Iterator[Verdict]:
    """The same of many texts, of which py3langid sees all stretches at once."""
    parts = [list(stretches(text)) for text in texts]
    scores = _scores([stretch for part in parts for stretch in part])
    return (_verdict(part, scores) for part in parts)


def _verdict(stretches: list[str], scores: Iterator[Scores]) -> Verdict:
    verdict = Verdict()
    for stretch in stretches:
        found = words(stretch)
        letters = sum(map(len, found))
        code, lead = _detect(found, next(scores))
        verdict.letters[code] += letters
        if _is_prose(stretch, found, letters) and lead >= CLEAR * len(found):
            verdict.clear[code] += letters
            if lead >= SURE:
                verdict.sure[code] += letters
    return verdict


def _is_prose(stretch: str, found: list[str], letters: int) -> bool:
    some = found[:150]
    return len(set(some)) > DISTINCT * len(some) and letters > LETTERS * (len(stretch) - stretch.count(" ") - stretch.count("\n"))


def stretches(text: str) -> Iterator[str]:
    """Paragraphs, short ones taken together and long ones cut at line ends; a rest too short to be judged goes with the last."""
    stretch, gathered = "", ""
    for line in text.split("\n"):
        gathered += line + "\n"
        if len(gathered) >= (LONGEST if line else STRETCH):
            if stretch:
                yield stretch
            stretch, gathered = gathered, ""
    if stretch and len(gathered) >= STRETCH // 3:
        yield stretch
        stretch = ""
    yield stretch + gathered


def detect(text: str) -> str:
    """ISO 639-3 code of the likeliest language of one stretch of text among CODES."""
    return _detect(words(text), next(_scores([text])))[0]


def _scores(texts: list[str]) -> Iterator[Scores]:
    """py3langid's, of the head of each text."""
    codes = [CODES[code] for code in identifier().codes]
    found = identifier().scores([text[:LOOK] for text in texts])
    return (dict(zip(codes, row, strict=True)) for row in found.tolist())


def _detect(found: list[str], scores: Scores) -> tuple[str, float]:
    """Its language, and by how many nats it leads: a standard of Norwegian the other, Danish and Swedish Norwegian.

    Args:
        found: the text's words.
        scores: py3langid's of the text.
    """
    standard = max(NORWEGIAN, key=lambda code: scores[code])
    # Norwegian first: where nothing tells, as in a word that py3langid does not know, max takes the first.
    ranked = {standard: scores[standard] + PRIOR} | {code: score for code, score in scores.items() if code not in NORWEGIAN}
    code = max(ranked, key=lambda code: ranked[code])
    if code != standard and code not in NEIGHBOURS:
        return code, math.inf
    near = {standard: ranked[standard]} | {c: ranked[c] + shipped_table(t).score(found) for c, t in NEIGHBOURS.items()}
    code = max(near, key=lambda code: near[code])
    if code != standard:
        return code, near[code] - near[standard]
    score = shipped_table().score(found)
    return (("nno" if score > 0 else "nob") if score else standard), abs(score)


@cache
def identifier() -> LanguageIdentifier:
    """py3langid, held to CODES."""
    return LanguageIdentifier(list(CODES))
