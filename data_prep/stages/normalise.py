"""Text as it was meant: encoding faults repaired, one Unicode form, no control characters, whole words.

Only what is broken changes. Code and URLs in running text keep what was written, and so do conversations, in
which nothing is mended but letters of a wrong encoding, control characters and line breaks. Each kind of
change is counted, by documents. Normalising twice is normalising once. Words that a line end parted are put
together again: at a soft hyphen or PDFium's mark (U+FFFE) always, at a plain hyphen by what else the document
says (kommu-/nen is kommunen, barne-/og stays barne- og).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import ftfy
from ftfy import fixes

from data_prep import mojibake, symbol_fonts, verbatim
from data_prep.config import CorpusConfig
from data_prep.document import Document, Report
from data_prep.stages.protocol import ShardStage

# Readers that decode the entities of their markup: one that is left is what the page shows.
DECODING_READERS = frozenset(["lovdata", "stortinget", "parlamint", "regjeringen", "webpage", "markdown"])
# Of marks upon one letter, those that Unicode's Stream-Safe Text Format allows: NFC takes quadratic time to
# put them in order.
_MARK = "[{}]".format("".join(c for c in map(chr, range(0x300, 0x20000)) if unicodedata.combining(c)))
_MARKS = re.compile(f"({_MARK}{{30}}){_MARK}+")
_CONTROLS = re.compile("\x1b\\[[\\d;]*[a-zA-Z]|[\x00-\x08\x0e-\x1f\x7f\u206a-\u206f\ufff9-\ufffc\ufeff]")
_C1 = re.compile("[\x80-\x84\x86-\x9f]")
_LINE_BREAKS = re.compile("\r\n?|[\x0b\f\x85\u2028\u2029]")
# Joiners mean something between emoji and in scripts that join letters, zero-width spaces in those without
# spaces.
_PICTURE = "\u00a9\u00ae\u203c\u2049\u2122-\u2bff\u3030\u303d\u3297\u3299\ufe0f\U0001f000-\U0001faff\U000e0020-\U000e007f"
_JOINING = "\u0600-\u08ff\u0900-\u0dff\u0f00-\u0fff\u1000-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc"
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_INVISIBLE = re.compile(
    "[\u00ad\ufffe][ \t]*\n[ \t]*(?=[^\\W\\d_])|[\u00ad\u2060\ufeff\ufffe]"
    f"|(?<![{_SPACELESS}])\u200b|\u200b(?![{_SPACELESS}])"
    f"|(?<![{_PICTURE}{_JOINING}])[\u200c\u200d]|(?<=[{_PICTURE}])(?:\u200c|\u200d(?![{_PICTURE}]))"
)
_ENTITY = re.compile(r"&(?:amp;)?(#?[0-9A-Za-z]{1,24};)")
_ASSIGNS = re.compile(r"\w+=")  # as in a query
_MARKUP = re.compile(r"<|&lt;/?[A-Za-z!][^&<>\n]{0,300}(?:&(?!gt;)[^&<>\n]{0,300}){0,20}&gt;")
_EAST_ASIAN = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
_FORMS = re.compile("[\ufb00-\ufb06\uff01-\uff5e]")  # ligatures, and letters as wide as East Asian ones
# The word before a hyphen at a line end is looked for from there, backwards: looked for first, it would take
# quadratic time.
_PARTED = re.compile(r"-[ \t]*\n[ \t]*([^\W_]\w*)")
_HALF_BACKWARDS = re.compile(r"[\w-]*")
_HALF_BEGINS = re.compile(r"\b[^\W_]")
_CONJUNCTIONS = frozenset(
    ["og", "eller", "til", "samt", "men", "enn"]
)  # after a hyphen that stands for a word's second half
_PASSES = 5  # of all our rules, until nothing changes; two do for all but text made to be nasty
# Letters and signs of good Norwegian text, in composed form. Two beyond ASCII side by side may be bytes of
# another encoding.
_PLAIN = re.compile("[\t\n -%'-~æøåÆØÅéèêëóòôöäüÉÄÖÜ\u00a0§«»–—‘’“”„•…°½©®²³µ·×€]*")
_MAY_BE_BYTES = re.compile(r"[^\x00-\x7f][^\x00-\x7f]")
# What ftfy may put for signs of yet other encodings (Mac Roman, code page 437 …) for it to be believed.
_EXPECTED = frozenset("æøåÆØÅéèêëóòôöäüÉÈÊÓÒÔÖÄÜáàâíîïúùûñçÁÀ«»–—‘’“”„•…°½§©® \u00a0")
_BESIDE_LETTERS = re.compile(r"[a-zæøå][æøåéèêóòôöäü]|[æøåéèêóòôöäüÆØÅ][a-zæøå]")
_WORDS = re.compile(r"[^\W_][\w-]*")
_NORDIC = frozenset("æøåÆØÅ")
_OTHER_ENCODING_SIGN = re.compile(
    "[√├Ă]"
)  # what UTF-8's first byte of ø and å is in Mac Roman, code page 437, Windows-1250
_SPACES = re.compile(r"[^\S\n]{2,}|[^\S\n ]")  # all but the single space, which stays what it is
_BLANK_LINES = re.compile(r"\n{3,}")
# Texts without a match of these have none of those above either, and looking for these takes a tenth of the
# time.
_INVISIBLE_SIGN = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff\ufffe]")
_LINE_BREAK_SIGN = re.compile("[\r\x0b\f\x85\u2028\u2029]")
_ODD_SPACES_SIGN = re.compile(
    "[{}]".format("".join(c for c in map(chr, range(2**16)) if c.isspace() and c not in "\n "))
)
_PARTED_SIGN = re.compile(r"-[ \t]*\n[ \t]*[^\W_]")


class Change(StrEnum):
    """A kind of change, by the name of its count."""

    MOJIBAKE = "mojibake_repaired"
    CONTROLS = "control_characters_removed"
    LINE_BREAKS = "line_breaks_replaced"
    ENTITIES = "entities_decoded"
    COMPOSED = "letters_composed"
    FORMS = "letter_forms_replaced"
    INVISIBLE = "invisible_removed"
    WORDS = "words_joined"
    SPACES = "white_space_changed"


@dataclass
class Rules:
    """How a text is treated, and what was found in it.

    Attributes:
        decode_entities: whether entities that stand alone are decoded; those within a word always are.
        changes: the kinds of change so far.
        good: lines that all rules leave as they are.
    """

    decode_entities: bool = True
    changes: set[Change] = field(default_factory=set)
    good: set[str] = field(default_factory=set)

    def note(self, change: Change, before: str, after: str) -> str:
        if after != before:
            self.changes.add(change)
        return after


@dataclass(kw_only=True)
class NormaliseSettings:
    """The version of the library that repairs encodings."""

    ftfy: str


class Normalise(ShardStage):
    """Repair the text of each document; drop those that are empty."""

    name = "normalise"
    version = 5

    def settings(self, config: CorpusConfig) -> NormaliseSettings:
        return NormaliseSettings(ftfy=ftfy.__version__)

    def run(self, documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
        for document in documents:
            before = document.whole_text
            rules = Rules(decode_entities=config.sources[document.source].reader not in DECODING_READERS)
            document.text = normalise(document.text, rules)
            for turn in document.turns:
                # Plain prompts and completions meet without anything between them: the white space there is
                # theirs.
                repaired = repair(turn.content, rules)
                turn.content = (
                    rules.note(Change.SPACES, repaired, _trimmed(repaired)) if turn.role else repaired
                )
            empty_answers = [turn for turn in document.turns if turn.target and _shows_nothing(turn.content)]
            for turn in empty_answers:
                turn.target, turn.content = (
                    False,
                    "",
                )  # an empty answer costs its turn, which stays as context
            if not document.whole_text.strip():
                report.drop(document, "empty")
            elif empty_answers and not any(turn.target for turn in document.turns):
                report.drop(document, "empty_answer")
            else:
                if empty_answers:
                    report.counts["empty_answers"] += len(empty_answers)
                report.counts["changed"] += document.whole_text != before
                if mended := symbol_fonts.count_characters(before) - symbol_fonts.count_characters(
                    document.whole_text
                ):
                    report.counts["symbol_font_characters"] += mended
                document.title = normalise(document.title, rules)
                report.counts.update(rules.changes)
                yield document


def normalise(text: str, rules: Rules | None = None) -> str:
    """Return running text as it was meant; on it, layout left only noise."""
    return _settled(text, _normalise_once, rules or Rules())


def repair(text: str, rules: Rules | None = None) -> str:
    """Return a turn of a conversation without what is surely broken."""
    return _settled(text, _mend_signs, rules or Rules())


def _settled(text: str, step: Callable[[str, Rules], str], rules: Rules) -> str:
    """Repeat a step, for one repair can lay bare another fault; a few times, for some text never settles."""
    for _ in range(_PASSES):
        before, text = text, step(text, rules)
        if text == before:
            break
    return text


def _shows_nothing(text: str) -> bool:
    """Return True if a text is white space and invisible signs alone."""
    return all(sign.isspace() or unicodedata.category(sign) == "Cf" for sign in text)


def _trimmed(turn: str) -> str:
    """Return a turn without white space at its ends, but for the indent of code in its first line."""
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", turn.rstrip())
    return text if text.startswith(("    ", "\t")) else text.lstrip()


# --- in all text -----------------------------------------------------------------------------------------


def _mend_signs(text: str, rules: Rules) -> str:
    """Mend what is wrong in any text: letters of a wrong encoding, control characters, line breaks."""
    if _is_plain(text):
        return text
    return _mend_odd_signs(text, rules)


def _mend_odd_signs(text: str, rules: Rules) -> str:
    text = rules.note(Change.MOJIBAKE, text, _mend_encoding(text))
    text = rules.note(Change.CONTROLS, text, _CONTROLS.sub("", text))
    if _LINE_BREAK_SIGN.search(text):
        text = rules.note(Change.LINE_BREAKS, text, _LINE_BREAKS.sub("\n", text))
    if symbol_fonts.count_characters(text):
        pieces = verbatim.split(text)
        pieces[::2] = map(symbol_fonts.repair, pieces[::2])
        text = "".join(pieces)
    return text


def _mend_encoding(text: str) -> str:
    text = fixes.fix_surrogates(text)
    if mojibake.PAIR.search(text):
        text = mojibake.repair(text, verbatim.find_spans(text))
    if _C1.search(text):  # Windows-1252 that was read as Latin-1, as browsers read it
        text = fixes.fix_c1_controls(text)
    if _OTHER_ENCODING_SIGN.search(text):
        text = "\n".join(map(_reread, text.split("\n")))
    return text


def _reread(line: str) -> str:
    """Return a line as ftfy reads it, if that puts letters where letters belong, and nothing else."""
    fixed: str = ftfy.fix_encoding(line) if _OTHER_ENCODING_SIGN.search(line) else line
    added = set(fixed) - set(line)
    return fixed if added <= _EXPECTED and _BESIDE_LETTERS.search(fixed) and added & _NORDIC else line


def _is_plain(text: str) -> bool:
    """Return True if no rule for signs would change anything; they would take far longer to find that out."""
    return bool(_PLAIN.fullmatch(text)) and not _MAY_BE_BYTES.search(text)


# --- in running text -------------------------------------------------------------------------------------


def _normalise_once(text: str, rules: Rules) -> str:
    is_plain = _is_plain(text)
    if not is_plain:
        text = _mend_odd_signs(text, rules)
    pieces = verbatim.split(text)  # every second one is code or a URL
    if not is_plain:
        pieces[::2] = [_mend_prose(piece, rules) for piece in pieces[::2]]
    pieces[::2] = [rules.note(Change.SPACES, piece, _without_layout(piece)) for piece in pieces[::2]]
    if any("-\n" in piece and _PARTED_SIGN.search(piece) for piece in pieces[::2]):
        parted = "".join(pieces)
        pieces[::2] = _joined_words(pieces[::2])
        rules.note(Change.WORDS, parted, "".join(pieces))
    pieces[0] = rules.note(Change.SPACES, pieces[0], pieces[0].lstrip())
    pieces[-1] = rules.note(Change.SPACES, pieces[-1], pieces[-1].rstrip())
    return "".join(pieces)


def _mend_prose(text: str, rules: Rules) -> str:
    """Mend lines one by one, but for the `good`; lines that come out as they went in are added there."""
    if _is_plain(text):
        return text
    lines = text.split("\n")
    for place, line in enumerate(lines):
        if not _is_plain(line) and line not in rules.good:
            lines[place] = _mend_line(line, rules)
            if lines[place] == line:
                rules.good.add(line)
    text = "\n".join(lines)
    if _INVISIBLE_SIGN.search(text):
        text = rules.note(Change.INVISIBLE, text, _INVISIBLE.sub("", text))
    return text


def _mend_line(line: str, rules: Rules) -> str:
    if "&" in line:
        line = rules.note(Change.ENTITIES, line, _decode_entities(line, rules.decode_entities))
    if _FORMS.search(line) and not _EAST_ASIAN.search(line):
        line = rules.note(Change.FORMS, line, fixes.fix_latin_ligatures(fixes.fix_character_width(line)))
    return rules.note(Change.COMPOSED, line, unicodedata.normalize("NFC", _MARKS.sub(r"\1", line)))


def _decode_entities(line: str, everywhere: bool) -> str:
    """Decode entities within words, and elsewhere those that are no part of a text about markup."""
    everywhere = everywhere and not _MARKUP.search(line)

    def decode(match: re.Match[str]) -> str:
        entity = f"&{match[1]}"
        sign: str = fixes.unescape_html(entity)
        if (
            sign == entity and match[0] != entity
        ):  # no name of a sign: the `&amp;` before it stands for itself
            return (
                f"&{match[1]}"
                if everywhere or line[match.start() - 1 : match.start()].isalpha()
                else match[0]
            )
        before, after = line[match.start() - 1 : match.start()], line[match.end() : match.end() + 1]
        if sign.isalpha():
            is_broken = before.isalpha() or after.isalpha()
        else:
            is_broken = (
                sign == "&" and before.isalpha() and after.isalpha() and not _ASSIGNS.match(line, match.end())
            )
        is_escaped_twice = match[0] != entity
        return sign if is_broken or (everywhere and not is_escaped_twice) else match[0]

    return _ENTITY.sub(decode, line)


def _without_layout(text: str) -> str:
    """Return text with single spaces, none at the ends of its lines, and one blank line at a time."""
    if "  " in text or _ODD_SPACES_SIGN.search(text):
        text = _SPACES.sub(" ", text)
    lines = text.split("\n")
    if len(lines) > 1:
        text = "\n".join([lines[0].rstrip(), *[line.strip() for line in lines[1:-1]], lines[-1].lstrip()])
    return _BLANK_LINES.sub("\n\n", text) if "\n\n\n" in text else text


def _joined_words(texts: list[str]) -> list[str]:
    """Put words together that a hyphen parts at a line end.

    Of `a-` and `b`, `ab` or `a-b` is right if the document has it elsewhere. Else the hyphen belongs to the
    word before a capital or a digit (Sør-/Norge), after capitals or a single letter (NAV-/kontor, e-/post),
    and stands for what is left out before `og` and its kin (barne-/og ungdomsarbeid).
    """
    elsewhere = {
        word
        for text in texts
        for word in _WORDS.findall(_parted_replaced(text, lambda first, second: " ").lower())
    }

    def whole(first: str, second: str) -> str:
        joined, hyphenated = first + second, f"{first}-{second}"
        if second.lower() in _CONJUNCTIONS:
            return f"{first}- {second}"
        if joined.lower() in elsewhere:
            return joined
        last = first.rpartition("-")[2]
        belongs = not second[0].islower() or len(last) <= 1 or last.isupper() or last[-1:].isdigit()
        return hyphenated if belongs or hyphenated.lower() in elsewhere else joined

    return [_parted_replaced(text, whole) for text in texts]


def _parted_replaced(text: str, replacement: Callable[[str, str], str]) -> str:
    """What replaces each word that a hyphen parts at a line end, by its two halves."""
    pieces, done = [], 0
    for match in _PARTED.finditer(text):
        line = text[max(done, text.rfind("\n", 0, match.start()) + 1) : match.start()]
        run = _HALF_BACKWARDS.match(line[::-1])
        assert run is not None  # it matches nothing at all, too
        if first := _HALF_BEGINS.search(text, match.start() - run.end(), match.start()):
            pieces += [text[done : first.start()], replacement(text[first.start() : match.start()], match[1])]
            done = match.end()
    return "".join([*pieces, text[done:]])
