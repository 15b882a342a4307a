"""Detection of each document's language and written standard, passage by passage, with the source's claim
weighed.

Passages in a language far from Norwegian are found first (data_prep/other_languages.py: py3langid's whole
set, where it leaves no doubt). The rest is judged by stretches of some hundred characters: py3langid for the
language, our own tables for the near ones. A stretch counts by its letters. It has no say where Norwegian
words are not clearly of one standard, as in tables and lists, and names have none anywhere. The source's
claim (Lovdata's `lang`, a letter's own field) counts as a share of the letters: it decides where the text
does not, and in titles and other texts too short to decide among the six languages. A document with both
standards in earnest gets ISO 639-3's code for Norwegian as a whole, `nor`, and a count. A conversation is in
the language of its answers. Passages in a language far from Norwegian that is not kept are cut from a
document that is kept.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from itertools import groupby, islice, pairwise

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
from data_prep.stage_settings import LANGUAGES, LanguageConfig
from data_prep.stages.protocol import ShardStage
from data_prep.written_standard.danish import is_danish_only
from data_prep.written_standard.names import remove_names
from data_prep.written_standard.table import NEIGHBOURS, load_shipped_table, words

# py3langid's ISO 639-1 codes; its Bokmål is "no". The languages that occur beside Norwegian compete
# everywhere; all others are considered only where they are beyond doubt, for more competitors add noise.
CODES = dict(zip(("no", "nn", "da", "sv", "en", "se"), LANGUAGES, strict=True))
NORWEGIAN = ("nob", "nno")
SCANDINAVIAN = (*NORWEGIAN, *NEIGHBOURS)
# In nats: three stretches in four of what is read are taken to be Norwegian; py3langid takes languages for
# equally likely. It is the most at which py3langid alone tells no language better, on texts of no test and
# no table (written_standard/README.md).
PRIOR = math.log((0.75 / len(NORWEGIAN)) / (0.25 / (len(CODES) - len(NORWEGIAN))))
# Characters; under 60 every tool is wrong in one of six (facts of UD's sentences), here in one of a hundred
STRETCH = 200
LONGEST = 1500  # characters: longer stretches are cut at line ends
PASSAGE = 60  # characters of a passage that may be in another language by itself
PARAGRAPH = 100  # characters of a line that is a paragraph, whether a blank line follows or not
# Characters of a stretch that py3langid sees: it takes most of this stage's time, and knows by then
LOOK = 600
# Nats a word; 95% of NAV's paragraphs over 150 characters have more than 0.95, tables have less than 0.6
CLEAR = 0.7
LETTERS = 0.6  # share of letters among what is no space; tables have less
DISTINCT = 0.35  # share of distinct words among the first 150; tables have less
SURE = 10.0  # nats a stretch must have for a standard, besides, before it makes a document mixed
# Letters of clear text, below which the claim decides among the six: a title, a line of a list of letters
SHORT = 150
# Bytes of passages in a row from which on another language is cut: less is a few words, as in a title; where
# it begins with a quotation mark, more. Bytes, as a Chinese letter says more than a Latin one.
CUT = 60
CUT_QUOTED = 200
# Letters of clear text that make the Norwegian parts of a document in another language worth keeping
PART = 60
DOCUMENTS_AT_ONCE = 100  # whose stretches py3langid sees together
# Nats that words which Norwegian does not have must bring together before a text is taken for Danish, if
# none of them is Danish alone by its spelling; and what one that is weighs. Plain Bokmål of parliament
# taken for Danish: 6 sentences in 7,000 instead of 36
DANISH = 3.0
DANISH_ALONE = 8.0
_QUOTES = ("«", "»", '"', "“", "”", "„", "'", "‘", ">")
_SENTENCE_END = re.compile(r"[^\W\d_A-ZÆØÅ][^\W_]*[)»”\"’']?[.!?][)»”\"’']?(?:\s|$)")

Scores = dict[str, float]  # by language


@dataclass
class Passage:
    """A piece of a document, and what it is if it is far from Norwegian."""

    text: str
    finding: Finding | None

    @property
    def code(self) -> str:
        return self.finding.code if self.finding else ""

    def is_certain(self) -> bool:
        """Return whether it is running text that is surely in another language: no table, no names of species
        in Latin."""
        return (
            self.finding is not None
            and self.finding.is_certain
            and " | " not in self.text
            and self.code != "lat"
        )


@dataclass
class Verdict:
    """What the text says, in letters by language: of all stretches, of those that are clear, of those that
    are beyond doubt.

    Attributes:
        passages: the text in order, cut where its language changes.
    """

    letters: Counter[str] = field(default_factory=Counter)
    clear: Counter[str] = field(default_factory=Counter)
    sure: Counter[str] = field(default_factory=Counter)
    passages: list[Passage] = field(default_factory=list)

    def language(self, claim: str, config: LanguageConfig) -> str:
        """ISO 639-3 code, `nor` for both standards, or `und`; `claim` is what the source says, or ""."""
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
        """What a drop in this language says beside its code."""
        if code != UNDETERMINED:
            return language_name(code)
        found = Counter(
            passage.finding.detail for passage in self.passages if passage.finding and passage.code == code
        )
        return found.most_common(1)[0][0] if found else ""


@dataclass(kw_only=True)
class LanguageSettings:
    """The settings of the stage, and the version of the library that tells languages apart."""

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
        for document, text, verdict in _judgements(documents, config.language.min_characters):
            claim = document.language
            if verdict is not None:
                document.language = verdict.language(claim, config.language)
                if config.language.other_parts == "cut" and not document.turns:
                    _keep_parts(document, verdict, keep, report)
                report.counts["unlike_its_source_says"] += bool(claim) and document.language != claim
            if not document.language:
                report.drop(
                    document,
                    "language_undecided",
                    f"{len(text)} characters, and the source claims no language",
                )
                continue
            if document.language not in keep:
                detail = verdict.detail(document.language) if verdict else language_name(document.language)
                report.drop(document, f"language_{document.language}", detail)
                continue
            report.counts[document.language] += 1
            yield document


def _keep_parts(document: Document, verdict: Verdict, keep: set[str], report: Report) -> None:
    """Cut what is in another language from a document that is kept; of one that is not, keep the Norwegian
    parts.

    A document whose Norwegian parts are no good piece of text is left as it is.
    """
    if document.language in keep:
        rest = _without_others(verdict.passages, keep)
    elif document.language in SCANDINAVIAN or document.language == MIXED:
        return
    else:
        rest = [p for p in verdict.passages if not p.finding and looks_norwegian(p.text)]
        of_rest = judge("".join(passage.text for passage in rest))
        language = max(of_rest.clear, key=lambda code: of_rest.clear[code], default="")
        if language not in keep or of_rest.clear[language] < PART:
            return
        document.language = language
    kept = set(map(id, rest))
    if not any(passage.text.strip() for passage in verdict.passages if id(passage) not in kept):
        return
    text = _joined(verdict.passages, kept)
    cut: defaultdict[str, list[str]] = defaultdict(list)
    for passage in verdict.passages:
        if id(passage) not in kept and passage.text.strip():
            cut[passage.code or UNDETERMINED].append(passage.text.strip())
    taken = {code: sum(map(len, texts)) for code, texts in cut.items()}
    # The blank lines around them, so that what was read is what is kept and what was taken.
    taken[max(taken, key=lambda code: taken[code])] += len(document.text) - len(text) - sum(taken.values())
    for code, texts in cut.items():
        report.counts[f"characters_cut_{code}"] += taken[code]
        report.cut(document, f"language_{code}", texts, taken[code])
    report.counts["documents_cut"] += 1
    document.text = text


def _joined(passages: list[Passage], kept: set[int]) -> str:
    """The text of the passages with these ids; where others were cut, paragraphs stay apart as they were."""
    text, gap = "", ""
    for passage in passages:
        if id(passage) not in kept:
            gap += passage.text
            continue
        if gap and text:
            between = f"{text[-2:]}{gap}{passage.text[:1]}"
            text = text.rstrip("\n") + ("\n\n" if "\n\n" in between else "\n") + passage.text.lstrip("\n")
        else:
            text += passage.text
        gap = ""
    return text.strip("\n")


def _without_others(passages: list[Passage], keep: set[str]) -> list[Passage]:
    """The passages but for those in a row that are surely in a language to be cut, and long enough to be no
    quotation.

    English and North Sámi stand in Norwegian documents as terms, titles and quotations: they count for the
    document as a whole.
    """
    rest: list[Passage] = []
    left_in = keep.union(LANGUAGES)
    for is_other, group in groupby(
        passages, key=lambda passage: passage.is_certain() and passage.code not in left_in
    ):
        run = list(group)
        text = "".join(passage.text for passage in run).strip()
        least = CUT_QUOTED if text.startswith(_QUOTES) else CUT
        if not is_other or len(text.encode()) < least:
            rest += run
    return rest


def _judgements(
    documents: Iterator[Document], min_characters: int
) -> Iterator[tuple[Document, str, Verdict | None]]:
    """Each document, the text that decides on its language, and what that says if it is long enough."""
    while batch := list(islice(documents, DOCUMENTS_AT_ONCE)):
        texts = [_judged(document) for document in batch]
        enough = [len(text) >= min_characters or find_by_script(text) is not None for text in texts]
        verdicts = judge_all([text for text, is_enough in zip(texts, enough, strict=True) if is_enough])
        for document, text, is_enough in zip(batch, texts, enough, strict=True):
            yield document, text, next(verdicts) if is_enough else None


def _judged(document: Document) -> str:
    """What decides on its language: of a conversation, what the model is to learn to say.

    A pair that learns Nynorsk from Bokmål is Nynorsk. Where that is less than a stretch and nothing is
    claimed, it is all of it: answers cut out of a text are a few words, or names.
    """
    answers = "\n\n".join(turn.content for turn in document.turns if turn.target)
    return answers if answers and (document.language or len(answers) >= STRETCH) else document.whole_text


def judge(text: str) -> Verdict:
    """Each stretch of the text, judged by itself."""
    return next(judge_all([text]))


def judge_all(texts: Sequence[str]) -> Iterator[Verdict]:
    """The same of many texts, of which py3langid sees all stretches at once."""
    split = [list(passages(text)) for text in texts]
    findings = iter(_far_from_norwegian([piece for pieces in split for piece in pieces]))
    verdicts = [Verdict(passages=[Passage(piece, next(findings)) for piece in pieces]) for pieces in split]
    for verdict in verdicts:
        _give_headings_to_paragraphs(verdict.passages)
    rests = ["".join(p.text for p in verdict.passages if not p.finding) for verdict in verdicts]
    parts = [list(stretches(rest)) if rest.strip() else [] for rest in rests]
    scores = _scores([stretch for part in parts for stretch in part])
    for verdict, part in zip(verdicts, parts, strict=True):
        _count_far(verdict)
        _count_near(verdict, part, scores)
        yield verdict


def _far_from_norwegian(pieces: list[str]) -> list[Finding | None]:
    """What each piece is; None of those that are Scandinavian, or say nothing."""
    doubtful = [
        n
        for n, piece in enumerate(pieces)
        if len(piece) >= PASSAGE // 4 and not is_surely_scandinavian(piece)
    ]
    findings: list[Finding | None] = [None] * len(pieces)
    for number, finding in zip(
        doubtful, find_other_languages([pieces[number] for number in doubtful]), strict=True
    ):
        findings[number] = finding
    return findings


def _give_headings_to_paragraphs(found: list[Passage]) -> None:
    """Give short passages that do not look Norwegian the language of the passage below them."""
    for below, heading in pairwise(reversed(found)):
        if (
            below.finding
            and not heading.finding
            and len(heading.text) < PASSAGE
            and not looks_norwegian(heading.text)
        ):
            heading.finding = below.finding


def _count_far(verdict: Verdict) -> None:
    for passage in verdict.passages:
        if passage.finding:
            letters = sum(map(len, words(passage.text)))
            verdict.letters[passage.code] += letters
            verdict.clear[passage.code] += letters


def _count_near(verdict: Verdict, part: list[str], scores: Iterator[Scores]) -> None:
    for stretch in part:
        found = words(stretch)
        letters = sum(map(len, found))
        if not letters:
            next(scores)
            continue
        telling = words(remove_names(stretch))
        code, lead = _detect(telling or found, next(scores))
        if (
            code not in SCANDINAVIAN and len(telling) >= MIN_WORDS
        ):  # Sámi or English names in a Norwegian sentence
            without = _detect(telling, next(_scores([remove_names(stretch)])))
            if without[0] in NORWEGIAN:
                code, lead = without
        verdict.letters[code] += letters
        if (
            code in SCANDINAVIAN
            and telling
            and lead >= CLEAR * len(telling)
            and _is_prose(stretch, found, letters)
        ):
            verdict.clear[code] += letters
            if lead >= SURE:
                verdict.sure[code] += letters


def _is_prose(stretch: str, found: list[str], letters: int) -> bool:
    some = found[:150]
    is_text = letters > LETTERS * (len(stretch) - stretch.count(" ") - stretch.count("\n"))
    return is_text and len(set(some)) > DISTINCT * len(some) and _SENTENCE_END.search(stretch) is not None


def passages(text: str) -> Iterator[str]:
    """Paragraphs, short ones taken together: pieces that may be in another language each. Joined, they are
    the text.

    Short lines never go with the paragraph below them, which may be in another language than they are.
    """
    piece, is_after_blank = "", True
    for line in text.split("\n"):
        stands_alone = _is_paragraph(line, is_after_blank)
        is_after_blank = not line
        if piece and stands_alone:
            yield piece
            piece = ""
        piece += line + "\n"
        ends = not line or stands_alone or len(piece) >= LONGEST
        if ends and len(piece.encode()) >= PASSAGE:
            yield piece
            piece = ""
    if piece:
        yield piece


def _is_paragraph(line: str, is_after_blank: bool) -> bool:
    """Return whether a line is, or begins, a paragraph long enough to be in another language by itself."""
    size = len(line.encode())
    return size >= PARAGRAPH or (
        size >= PASSAGE and (is_after_blank or line.rstrip().endswith((".", "!", "?", "。", "።", "۔", "؟")))
    )


def stretches(text: str) -> Iterator[str]:
    """Paragraphs, short ones taken together and long ones cut at line ends; a rest too short to be judged
    goes with the last."""
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
    """ISO 639-3 code of the likeliest language of one stretch of text, or `und`."""
    finding = _far_from_norwegian([text])[0]
    return finding.code if finding else _detect(words(text), next(_scores([text])))[0]


def _scores(texts: list[str]) -> Iterator[Scores]:
    """py3langid's, of the head of each text."""
    codes = [CODES[code] for code in identifier().codes]
    found = identifier().compute_scores([text[:LOOK] for text in texts])
    return (dict(zip(codes, row, strict=True)) for row in found.tolist())


def _detect(found: list[str], scores: Scores) -> tuple[str, float]:
    """Its language, and by how many nats it leads: a standard of Norwegian the other, Danish and Swedish
    Norwegian.

    Args:
        found: the text's words.
        scores: py3langid's of the text.
    """
    standard = max(NORWEGIAN, key=lambda code: scores[code])
    # Norwegian first: where nothing tells, as in a word that py3langid does not know, max takes the first.
    ranked = {standard: scores[standard] + PRIOR} | {
        code: score for code, score in scores.items() if code not in NORWEGIAN
    }
    code = max(ranked, key=lambda code: ranked[code])
    if code != standard and code not in NEIGHBOURS:
        return code, math.inf
    near = {standard: ranked[standard]} | {
        c: ranked[c] + load_shipped_table(t).score(found) for c, t in NEIGHBOURS.items()
    }
    if near["dan"] + DANISH_ALONE > near[standard]:
        near["dan"] += _danish_evidence(found)
    code = max(near, key=lambda code: near[code])
    if code != standard:
        return code, near[code] - near[standard]
    score = load_shipped_table().score(found)
    return (("nno" if score > 0 else "nob") if score else standard), abs(score)


def _danish_evidence(found: Sequence[str]) -> float:
    """What it adds to the log-odds of Danish whether a text holds words that Norwegian does not have."""
    if any(map(is_danish_only, found)):
        return DANISH_ALONE
    norwegian, danish = load_shipped_table().weights, load_shipped_table(NEIGHBOURS["dan"])
    new = sum(max(0.0, danish.score([word])) for word in found if word not in norwegian)
    return 0.0 if new >= DANISH else -math.inf


@cache
def identifier() -> LanguageIdentifier:
    """py3langid, held to CODES."""
    return LanguageIdentifier(list(CODES))
