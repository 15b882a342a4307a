"""Detection of a document's language and written standard, from its text and its source's claim.

First, data_prep/other_languages.py finds passages in a language far from Norwegian. The rest of the
text is divided into stretches of some hundred characters. py3langid detects the language of each
stretch, and the tables of data_prep/written_standard distinguish the Scandinavian languages. A
stretch has as many votes as it has letters, but none if its words do not clearly favour one
standard, as in tables and lists. Names are ignored.

The language that the source claims (such as Lovdata's `lang`) has a share of the votes. The claim
decides if the text does not, and in titles and other texts that are too short to distinguish the
six languages. A document with substantial parts in both standards gets `nor`, ISO 639-3's code for
Norwegian. The language of a conversation is that of its answers. Passages in a language far from
Norwegian are cut from documents that are kept.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from itertools import compress, groupby, islice, pairwise

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report
from data_prep.language_identifier import LanguageIdentifier
from data_prep.languages import MIXED, NAMES, UNDETERMINED, language_name
from data_prep.other_languages import (
    MIN_WORDS,
    Finding,
    find_by_script,
    find_other_languages,
    is_surely_scandinavian,
    looks_norwegian,
)
from data_prep.passages import PASSAGE, STRETCH, split_into_passages, split_into_stretches
from data_prep.stage_settings import LANGUAGES, LanguageConfig
from data_prep.stages.protocol import ShardStage
from data_prep.written_standard.danish import is_danish_only
from data_prep.written_standard.names import remove_names
from data_prep.written_standard.table import NEIGHBOURS, load_shipped_table, words

# py3langid's ISO 639-1 codes; its Bokmål is "no". These six languages are considered in every text.
# All others are considered only where they are certain, because more candidates cause more errors.
CODES = dict(zip(("no", "nn", "da", "sv", "en", "se"), LANGUAGES, strict=True))
NORWEGIAN = ("nob", "nno")
SCANDINAVIAN = (*NORWEGIAN, *NEIGHBOURS)
# Log odds, in nats, that are added to Norwegian: three stretches in four are expected to be
# Norwegian, but py3langid expects all languages equally often. With a larger prior, py3langid alone
# detected some language worse, on texts that are in no test and no table
# (written_standard/README.md).
PRIOR = math.log((0.75 / len(NORWEGIAN)) / (0.25 / (len(CODES) - len(NORWEGIAN))))
# Number of characters at the beginning of a stretch that py3langid reads. py3langid takes most of
# this stage's time, and more characters would not help.
LOOK = 600
# Minimum lead of a standard, in nats per word, for a stretch to count as clear. 95% of NAV's
# paragraphs over 150 characters have more than 0.95; tables have less than 0.6.
CLEAR = 0.7
LETTERS = 0.6  # minimum share of letters among the characters of prose, without spaces
DISTINCT = 0.35  # minimum share of distinct words among the first 150 words of prose
# Minimum lead of a standard, in nats, for a clear stretch to count towards a mixed document.
SURE = 10.0
# If fewer letters than this are in the detected language, as in a title or a line of a list, the
# source's claim decides among the six languages.
SHORT = 150
# Consecutive passages in another language are cut if they have at least CUT bytes; shorter ones are
# a few words, as in a title. The limit is CUT_QUOTED if they begin with a quotation mark. Bytes are
# counted because a Chinese character carries more information than a Latin letter.
CUT = 60
CUT_QUOTED = 200
# The Norwegian parts of a document in another language are kept if they have at least this number
# of letters in clear stretches.
PART = 60
DOCUMENTS_AT_ONCE = 100  # documents whose stretches py3langid reads in one call
# Evidence for Danish, in nats. A text with a spelling that only Danish has gets DANISH_ALONE. Any
# other text is detected as Danish only if its words that are not Norwegian contribute at least
# DANISH together. With these values, 6 of 7,000 sentences of Bokmål in parliament are detected as
# Danish, instead of 36.
DANISH = 3.0
DANISH_ALONE = 8.0
_QUOTES = ("«", "»", '"', "“", "”", "„", "'", "‘", ">")
_SENTENCE_END = re.compile(r"[^\W\d_A-ZÆØÅ][^\W_]*[)»”\"’']?[.!?][)»”\"’']?(?:\s|$)")

Scores = dict[str, float]  # by language


@dataclass
class Passage:
    """A passage of a document, and its language if this is far from Norwegian."""

    text: str
    finding: Finding | None

    @property
    def code(self) -> str:
        """The ISO 639-3 code of the language, or "" if it is not far from Norwegian."""
        return self.finding.code if self.finding else ""

    def is_certain(self) -> bool:
        """Return whether the passage is certainly running text in a language far from Norwegian.

        It is False for tables, and for Latin, which may be names of species.
        """
        if self.finding is None or not self.finding.is_certain:
            return False
        return " | " not in self.text and self.code != "lat"


@dataclass
class Verdict:
    """The evidence on the language of a text.

    Attributes:
        letters: number of letters in each language.
        clear: number of letters in each language, counted only where the language is clear. It is
            clear in passages far from Norwegian, and in Scandinavian prose whose words favour one
            language by at least CLEAR.
        sure: number of letters in each Scandinavian language, counted only in parts of the prose in
            `clear` that favour it by at least SURE.
        passages: the paragraphs of the text, each with its language if that is far from Norwegian.
    """

    letters: Counter[str] = field(default_factory=Counter)
    clear: Counter[str] = field(default_factory=Counter)
    sure: Counter[str] = field(default_factory=Counter)
    passages: list[Passage] = field(default_factory=list)

    def language(self, claim: str, config: LanguageConfig) -> str:
        """Return the text's ISO 639-3 code; `nor` for both Norwegian standards, `und` if unknown.

        The claim is returned if no part of the text is clearly in one language and the claim is a
        known code. It is also returned if the text has no letters.

        Args:
            claim: the code that the source claims, or "".
        """
        if claim in NAMES and not self.clear:
            return claim
        counts = self.clear or self.letters
        total = counts.total()
        if not total:
            return claim
        if min(self.sure[standard] for standard in NORWEGIAN) >= config.mixed_share * total:
            return MIXED
        votes = {code: count / total for code, count in counts.items()}
        if claim in NAMES:
            votes[claim] = votes.get(claim, 0.0) + config.claim_weight
        winner = max(votes, key=lambda code: (votes[code], code == claim))
        if config.claim_weight and {claim, winner} <= set(LANGUAGES) and counts[winner] < SHORT:
            return claim
        return winner

    def detail(self, code: str) -> str:
        """Return a description of a language, as the detail of a drop.

        It is the language's name; for `und`, it is a description such as "Cyrillic script".
        """
        if code != UNDETERMINED:
            return language_name(code)
        findings = [passage.finding for passage in self.passages if passage.finding]
        details = Counter(finding.detail for finding in findings if finding.code == code)
        if not details:
            return ""
        return details.most_common(1)[0][0]


@dataclass(kw_only=True)
class LanguageSettings:
    """The settings of the stage, and the version of the library that detects languages."""

    keep: list[str]
    min_characters: int
    claim_weight: float
    mixed_share: float
    other_parts: str
    py3langid: str


class Language(ShardStage):
    """Detect the language of each document; drop those in a language that is not kept."""

    name = "language"
    version = 4

    def settings(self, config: CorpusConfig) -> LanguageSettings:
        language = config.language
        return LanguageSettings(
            keep=language.keep,
            min_characters=language.min_characters,
            claim_weight=language.claim_weight,
            mixed_share=language.mixed_share,
            other_parts=language.other_parts,
            py3langid=version("py3langid"),
        )

    def run(self, documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
        keep = set(config.language.keep)
        if keep.issuperset(NORWEGIAN):
            keep.add(MIXED)
        for document, text, verdict in _judge_documents(documents, config.language.min_characters):
            claim = document.language
            if verdict is not None:
                document.language = verdict.language(claim, config.language)
                if config.language.other_parts == "cut" and not document.turns:
                    _cut_other_parts(document, verdict, keep, report)
                report.counts["unlike_its_source_says"] += bool(claim) and document.language != claim
            if not document.language:
                detail = f"{len(text)} characters, and the source claims no language"
                report.drop(document, "language_undecided", detail)
                continue
            if document.language not in keep:
                detail = verdict.detail(document.language) if verdict else language_name(document.language)
                report.drop(document, f"language_{document.language}", detail)
                continue
            report.counts[document.language] += 1
            yield document


def _cut_other_parts(document: Document, verdict: Verdict, keep: set[str], report: Report) -> None:
    """Cut the passages in other languages from a document, and record them in the report.

    A document in a dropped language that is not Scandinavian is reduced to its Norwegian parts, if
    they are long enough. It is then kept, as a document in the language of these parts.

    Args:
        keep: the languages of the documents that are kept.
    """
    if document.language in keep:
        rest = _passages_to_keep(verdict.passages, keep)
    elif document.language in SCANDINAVIAN or document.language == MIXED:
        return
    else:
        rest = [p for p in verdict.passages if not p.finding and looks_norwegian(p.text)]
        rest_verdict = judge("".join(passage.text for passage in rest))
        language = max(rest_verdict.clear, key=lambda code: rest_verdict.clear[code], default="")
        if language not in keep or rest_verdict.clear[language] < PART:
            return
        document.language = language
    kept = set(map(id, rest))
    cut: defaultdict[str, list[str]] = defaultdict(list)
    for passage in verdict.passages:
        if id(passage) not in kept and passage.text.strip():
            cut[passage.code or UNDETERMINED].append(passage.text.strip())
    if not cut:
        return
    text = _join_kept(verdict.passages, kept)
    characters = {code: sum(map(len, texts)) for code, texts in cut.items()}
    # Removed blank lines are added to the largest count, so that the counts add up to the number of
    # characters removed.
    largest = max(characters, key=lambda code: characters[code])
    characters[largest] += len(document.text) - len(text) - sum(characters.values())
    for code, texts in cut.items():
        report.counts[f"characters_cut_{code}"] += characters[code]
        report.cut(document, f"language_{code}", texts, characters[code])
    report.counts["documents_cut"] += 1
    document.text = text


def _join_kept(passages: list[Passage], kept: set[int]) -> str:
    """Return the text of the kept passages; line breaks replace the others.

    Args:
        kept: the value of Python's `id` for each kept passage.
    """
    text = gap = ""
    for passage in passages:
        if id(passage) not in kept:
            gap += passage.text
            continue
        if gap and text:
            between = f"{text[-2:]}{gap}{passage.text[:1]}"
            separator = "\n\n" if "\n\n" in between else "\n"
            text = text.rstrip("\n") + separator + passage.text.lstrip("\n")
        else:
            text += passage.text
        gap = ""
    return text.strip("\n")


def _passages_to_keep(passages: list[Passage], keep: set[str]) -> list[Passage]:
    """Return the passages without those that are certainly in a language to be cut.

    Short parts and quotations are kept. So are English and North Sámi, because they occur in
    Norwegian documents as terms, titles and quotations.
    """
    rest: list[Passage] = []
    not_cut = keep.union(LANGUAGES)
    for is_other, group in groupby(
        passages, key=lambda passage: passage.is_certain() and passage.code not in not_cut
    ):
        run = list(group)
        text = "".join(passage.text for passage in run).strip()
        min_bytes = CUT_QUOTED if text.startswith(_QUOTES) else CUT
        if not is_other or len(text.encode()) < min_bytes:
            rest += run
    return rest


def _judge_documents(
    documents: Iterator[Document], min_characters: int
) -> Iterator[tuple[Document, str, Verdict | None]]:
    """Yield each document, the text that determines its language, and the evidence in this text.

    The evidence is None for a text with fewer than `min_characters`, except a text in a script
    other than Latin.
    """
    while batch := list(islice(documents, DOCUMENTS_AT_ONCE)):
        texts = [_decisive_text(document) for document in batch]
        is_long = [len(text) >= min_characters or find_by_script(text) is not None for text in texts]
        verdicts = judge_all(list(compress(texts, is_long)))
        for document, text, has_verdict in zip(batch, texts, is_long, strict=True):
            yield document, text, next(verdicts) if has_verdict else None


def _decisive_text(document: Document) -> str:
    """Return the text that determines a document's language.

    For a conversation, it is the answers that are targets. So a translation from Bokmål to Nynorsk is
    detected as Nynorsk. If the answers have fewer than STRETCH characters and the source claims no
    language, it is the whole conversation, because such answers may be only a few words or names.
    """
    answers = "\n\n".join(turn.content for turn in document.turns if turn.target)
    if answers and (document.language or len(answers) >= STRETCH):
        return answers
    return document.whole_text


def judge(text: str) -> Verdict:
    """Return the evidence on the language of a text."""
    return next(judge_all([text]))


def judge_all(texts: Sequence[str]) -> Iterator[Verdict]:
    """Yield the evidence on the language of each text.

    py3langid classifies parts of all texts in one call, which is faster.
    """
    split = [list(split_into_passages(text)) for text in texts]
    findings = iter(_find_far_languages([piece for pieces in split for piece in pieces]))
    verdicts = [Verdict(passages=[Passage(piece, next(findings)) for piece in pieces]) for pieces in split]
    for verdict in verdicts:
        _assign_headings(verdict.passages)
    rests = ["".join(p.text for p in verdict.passages if not p.finding) for verdict in verdicts]
    parts = [list(split_into_stretches(rest)) if rest.strip() else [] for rest in rests]
    scores = _scores([stretch for part in parts for stretch in part])
    for verdict, part in zip(verdicts, parts, strict=True):
        _count_far_passages(verdict)
        _count_near_stretches(verdict, part, scores)
        yield verdict


def _find_far_languages(pieces: list[str]) -> list[Finding | None]:
    """Return the language of each piece if it is far from Norwegian, else None."""
    doubtful = [
        number
        for number, piece in enumerate(pieces)
        if len(piece) >= PASSAGE // 4 and not is_surely_scandinavian(piece)
    ]
    findings: list[Finding | None] = [None] * len(pieces)
    for number, finding in zip(
        doubtful, find_other_languages([pieces[number] for number in doubtful]), strict=True
    ):
        findings[number] = finding
    return findings


def _assign_headings(found: list[Passage]) -> None:
    """Set the language of headings above passages in a language far from Norwegian.

    A short passage that does not look Norwegian gets the language of the passage below it.
    """
    for below, heading in pairwise(reversed(found)):
        is_short = len(heading.text) < PASSAGE
        if below.finding and not heading.finding and is_short and not looks_norwegian(heading.text):
            heading.finding = below.finding


def _count_far_passages(verdict: Verdict) -> None:
    """Count, in a verdict, the letters of its passages in languages far from Norwegian."""
    for passage in verdict.passages:
        if passage.finding:
            letters = sum(map(len, words(passage.text)))
            verdict.letters[passage.code] += letters
            verdict.clear[passage.code] += letters


def _count_near_stretches(verdict: Verdict, part: list[str], scores: Iterator[Scores]) -> None:
    """Count, in a verdict, the letters of a text without passages far from Norwegian.

    Args:
        part: the stretches of that text (some hundred characters each).
        scores: py3langid's scores of the stretches. One is taken for each stretch.
    """
    for stretch in part:
        stretch_scores = next(scores)
        all_words = words(stretch)
        letters = sum(map(len, all_words))
        if not letters:
            continue
        common_words = words(remove_names(stretch))
        code, lead = _detect(common_words or all_words, stretch_scores)
        if code not in SCANDINAVIAN and len(common_words) >= MIN_WORDS:
            # Sámi or English names in a Norwegian sentence may be the only evidence, so the
            # language is detected again without names.
            other_code, other_lead = _detect(common_words, next(_scores([remove_names(stretch)])))
            if other_code in NORWEGIAN:
                code = other_code
                lead = other_lead
        verdict.letters[code] += letters
        if code not in SCANDINAVIAN or not common_words or lead < CLEAR * len(common_words):
            continue
        if _is_prose(stretch, all_words, letters):
            verdict.clear[code] += letters
            if lead >= SURE:
                verdict.sure[code] += letters


def _is_prose(stretch: str, found: list[str], letters: int) -> bool:
    """Return whether a part of a text is sentences, not a table or a list.

    Args:
        found: its words.
        letters: number of letters in the words.
    """
    first_words = found[:150]
    has_letters = letters > LETTERS * (len(stretch) - stretch.count(" ") - stretch.count("\n"))
    has_variety = len(set(first_words)) > DISTINCT * len(first_words)
    return has_letters and has_variety and _SENTENCE_END.search(stretch) is not None


def detect(text: str) -> str:
    """Return the ISO 639-3 code of a short text's likeliest language, or `und` if it is unknown."""
    finding = _find_far_languages([text])[0]
    if finding:
        return finding.code
    code, _ = _detect(words(text), next(_scores([text])))
    return code


def _scores(texts: list[str]) -> Iterator[Scores]:
    """Yield py3langid's scores of the first LOOK characters of each text."""
    codes = [CODES[code] for code in identifier().codes]
    found = identifier().compute_scores([text[:LOOK] for text in texts])
    return (dict(zip(codes, row, strict=True)) for row in found.tolist())


def _detect(found: list[str], scores: Scores) -> tuple[str, float]:
    """Return the likeliest language of a text, and its lead (log odds, in nats).

    The odds of Bokmål or Nynorsk are those against the other of the two. The odds of Danish or
    Swedish are those against Norwegian. For English and North Sámi, the lead is infinite.

    Args:
        found: the text's words.
        scores: py3langid's scores of the text.
    """
    standard = max(NORWEGIAN, key=lambda code: scores[code])
    # Norwegian comes first, because `max` returns the first of equal scores, which a word unknown
    # to py3langid has.
    ranked = {standard: scores[standard] + PRIOR} | {
        code: score for code, score in scores.items() if code not in NORWEGIAN
    }
    code = max(ranked, key=lambda code: ranked[code])
    if code != standard and code not in NEIGHBOURS:
        return code, math.inf
    near = {standard: ranked[standard]}
    for neighbour, table in NEIGHBOURS.items():
        near[neighbour] = ranked[neighbour] + load_shipped_table(table).score(found)
    if near["dan"] + DANISH_ALONE > near[standard]:
        near["dan"] += _danish_evidence(found)
    code = max(near, key=lambda code: near[code])
    if code != standard:
        return code, near[code] - near[standard]
    score = load_shipped_table().score(found)
    if not score:
        return standard, 0.0
    return ("nno" if score > 0 else "nob"), abs(score)


def _danish_evidence(found: Sequence[str]) -> float:
    """Return the log odds to add to Danish, given the words of a text.

    Words that are not Norwegian are evidence for Danish. If they are too few or too weak, negative
    infinity is returned.
    """
    if any(map(is_danish_only, found)):
        return DANISH_ALONE
    norwegian, danish = load_shipped_table().weights, load_shipped_table(NEIGHBOURS["dan"])
    new = sum(max(0.0, danish.score([word])) for word in found if word not in norwegian)
    return 0.0 if new >= DANISH else -math.inf


@cache
def identifier() -> LanguageIdentifier:
    """Return py3langid, restricted to the six languages that the stage distinguishes."""
    return LanguageIdentifier(list(CODES))
