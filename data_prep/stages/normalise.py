"""Normalisation of text: encodings, Unicode form, control characters, divided words.

Only faults are repaired. Code and URLs in running text are not changed. In conversations, only
wrongly decoded letters, control characters and line breaks are repaired. For each kind of
change, the documents with such a change are counted. Normalisation is idempotent.

Words that are divided at a line end are joined. A soft hyphen and PDFium's sign for a divided word
(U+FFFE) are always removed. Whether a plain hyphen is removed depends on the two halves and on the
other words of the document: kommu-/nen becomes kommunen, barne-/og becomes barne- og.
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

# Readers that decode the entities of their markup. An entity that is left in their text is shown as
# such on the page, so it is decoded only within words.
DECODING_READERS = frozenset(["lovdata", "stortinget", "parlamint", "regjeringen", "webpage", "markdown"])
# Combining marks after the first 30 on a letter are removed, because NFC takes quadratic time to
# sort them. The limit is that of Unicode's Stream-Safe Text Format.
_MARK = "[{}]".format("".join(c for c in map(chr, range(0x300, 0x20000)) if unicodedata.combining(c)))
_MARKS = re.compile(f"({_MARK}{{30}}){_MARK}+")
_CONTROLS = re.compile("\x1b\\[[\\d;]*[a-zA-Z]|[\x00-\x08\x0e-\x1f\x7f\u206a-\u206f\ufff9-\ufffc\ufeff]")
_C1 = re.compile("[\x80-\x84\x86-\x9f]")
_LINE_BREAKS = re.compile("\r\n?|[\x0b\f\x85\u2028\u2029]")
# Joiners are kept between emoji and in scripts that join letters; zero-width spaces are kept in
# scripts without spaces.
_PICTURE = (
    "\u00a9\u00ae\u203c\u2049\u2122-\u2bff\u3030\u303d\u3297\u3299\ufe0f\U0001f000-\U0001faff"
    "\U000e0020-\U000e007f"
)
_JOINING = "\u0600-\u08ff\u0900-\u0dff\u0f00-\u0fff\u1000-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc"
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_INVISIBLE = re.compile(
    "[\u00ad\ufffe][ \t]*\n[ \t]*(?=[^\\W\\d_])|[\u00ad\u2060\ufeff\ufffe]"
    f"|(?<![{_SPACELESS}])\u200b|\u200b(?![{_SPACELESS}])"
    f"|(?<![{_PICTURE}{_JOINING}])[\u200c\u200d]|(?<=[{_PICTURE}])(?:\u200c|\u200d(?![{_PICTURE}]))"
)
_ENTITY = re.compile(r"&(?:amp;)?(#?[0-9A-Za-z]{1,24};)")
_ASSIGNS = re.compile(r"\w+=")  # a parameter of a URL's query
_MARKUP = re.compile(r"<|&lt;/?[A-Za-z!][^&<>\n]{0,300}(?:&(?!gt;)[^&<>\n]{0,300}){0,20}&gt;")
_EAST_ASIAN = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
_FORMS = re.compile("[\ufb00-\ufb06\uff01-\uff5e]")  # ligatures, and full-width letters
# The first half of a divided word is searched for backwards from the hyphen; a forward search would
# take quadratic time.
_DIVIDED = re.compile(r"-[ \t]*\n[ \t]*([^\W_]\w*)")
_HALF_BACKWARDS = re.compile(r"[\w-]*")
_HALF_BEGINS = re.compile(r"\b[^\W_]")
# Conjunctions after a suspended hyphen, as in barne- og ungdomsarbeid.
_CONJUNCTIONS = frozenset(["og", "eller", "til", "samt", "men", "enn"])
_MAX_PASSES = 5  # two passes of all rules are enough, except for adversarial text
# Letters and signs of correct Norwegian text, in composed form. Two adjacent characters beyond
# ASCII may be bytes of another encoding.
_PLAIN = re.compile("[\t\n -%'-~æøåÆØÅéèêëóòôöäüÉÄÖÜ\u00a0§«»–—‘’“”„•…°½©®²³µ·×€]*")
_MAY_BE_BYTES = re.compile(r"[^\x00-\x7f][^\x00-\x7f]")
# Characters that a repair by ftfy may add. A repair that adds others is rejected.
_EXPECTED = frozenset("æøåÆØÅéèêëóòôöäüÉÈÊÓÒÔÖÄÜáàâíîïúùûñçÁÀ«»–—‘’“”„•…°½§©® \u00a0")
_BESIDE_LETTERS = re.compile(r"[a-zæøå][æøåéèêóòôöäü]|[æøåéèêóòôöäüÆØÅ][a-zæøå]")
_WORDS = re.compile(r"[^\W_][\w-]*")
_NORDIC = frozenset("æøåÆØÅ")
# The first byte of ø and å in UTF-8, decoded as Mac Roman, code page 437 or Windows-1250.
_OTHER_ENCODING_SIGN = re.compile("[√├Ă]")
_SPACES = re.compile(r"[^\S\n]{2,}|[^\S\n ]")  # all white space within a line except a single space
_BLANK_LINES = re.compile(r"\n{3,}")
# Quick tests, which take a tenth of the time: a text without a match of one of these has no match
# of the corresponding expression above.
_INVISIBLE_SIGN = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff\ufffe]")
_LINE_BREAK_SIGN = re.compile("[\r\x0b\f\x85\u2028\u2029]")
_ODD_SPACES_SIGN = re.compile(
    "[{}]".format("".join(c for c in map(chr, range(2**16)) if c.isspace() and c not in "\n "))
)
_DIVIDED_SIGN = re.compile(r"-[ \t]*\n[ \t]*[^\W_]")


class Change(StrEnum):
    """A kind of change to a text. Its value is the name under which such changes are counted."""

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
    """The options for a text, and the changes made to it.

    Attributes:
        decode_entities: True to decode HTML entities outside words too. Those within words, such as
            `&oslash;` in `k&oslash;`, are always decoded.
        changes: the kinds of change so far.
        unchanged_lines: lines that no rule changed. They are not checked again.
    """

    decode_entities: bool = True
    changes: set[Change] = field(default_factory=set)
    unchanged_lines: set[str] = field(default_factory=set)

    def note(self, change: Change, before: str, after: str) -> str:
        """Return `after`. If it differs from `before`, record that such a change was made."""
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
                turn.content = repair(turn.content, rules)
                # Plain prompts and completions are concatenated, so white space at their ends must
                # stay.
                if turn.role:
                    turn.content = rules.note(Change.SPACES, turn.content, _trim(turn.content))
            empty_answers = [turn for turn in document.turns if turn.target and _is_invisible(turn.content)]
            for turn in empty_answers:  # they are kept as context
                turn.target = False
                turn.content = ""
            if not document.whole_text.strip():
                report.drop(document, "empty")
            elif empty_answers and not any(turn.target for turn in document.turns):
                report.drop(document, "empty_answer")
            else:
                if empty_answers:
                    report.counts["empty_answers"] += len(empty_answers)
                report.counts["changed"] += document.whole_text != before
                num_symbols = symbol_fonts.count_characters(before) - symbol_fonts.count_characters(
                    document.whole_text
                )
                if num_symbols:
                    report.counts["symbol_font_characters"] += num_symbols
                document.title = normalise(document.title, rules)
                report.counts.update(rules.changes)
                yield document


def normalise(text: str, rules: Rules | None = None) -> str:
    """Repair all faults of running text, and remove remains of its layout; return the text."""
    return _repeat_until_stable(text, _normalise_once, rules or Rules())


def repair(text: str, rules: Rules | None = None) -> str:
    """Repair the faulty characters of a turn of a conversation; return the turn.

    Its layout is not changed.
    """
    return _repeat_until_stable(text, _repair_characters, rules or Rules())


def _repeat_until_stable(text: str, step: Callable[[str, Rules], str], rules: Rules) -> str:
    """Repeat a repair until nothing changes, at most _MAX_PASSES times; return the text.

    Repetition is needed because a repair may reveal another fault.
    """
    for _ in range(_MAX_PASSES):
        before = text
        text = step(before, rules)
        if text == before:
            break
    return text


def _is_invisible(text: str) -> bool:
    """Return whether a text consists of white space and invisible characters only."""
    return all(sign.isspace() or unicodedata.category(sign) == "Cf" for sign in text)


def _trim(turn: str) -> str:
    """Remove white space at both ends of a turn; return the turn.

    If its first line is indented code, the indentation is kept.
    """
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", turn.rstrip())
    is_indented = text.startswith(("    ", "\t"))
    return text if is_indented else text.lstrip()


# --- repairs in all text -------------------------------------------------------------------------


def _repair_characters(text: str, rules: Rules) -> str:
    """Repair wrongly decoded letters, control characters and line breaks; return the text."""
    if _is_plain(text):
        return text
    return _repair_special_characters(text, rules)


def _repair_special_characters(text: str, rules: Rules) -> str:
    text = rules.note(Change.MOJIBAKE, text, _repair_encoding(text))
    text = rules.note(Change.CONTROLS, text, _CONTROLS.sub("", text))
    if _LINE_BREAK_SIGN.search(text):
        text = rules.note(Change.LINE_BREAKS, text, _LINE_BREAKS.sub("\n", text))
    if symbol_fonts.count_characters(text):
        pieces = verbatim.split(text)
        pieces[::2] = map(symbol_fonts.repair, pieces[::2])
        text = "".join(pieces)
    return text


def _repair_encoding(text: str) -> str:
    text = fixes.fix_surrogates(text)
    if mojibake.PAIR.search(text):
        text = mojibake.repair(text, verbatim.find_spans(text))
    if _C1.search(text):  # Windows-1252 that was decoded as Latin-1
        text = fixes.fix_c1_controls(text)
    if _OTHER_ENCODING_SIGN.search(text):
        text = "\n".join(map(_repair_by_ftfy, text.split("\n")))
    return text


def _repair_by_ftfy(line: str) -> str:
    """Return a line repaired by ftfy, or the line itself if the repair is not credible.

    A repair is credible if it adds æ, ø or å and no unexpected character, and if the repaired line
    has one of these or an accented letter next to another letter.
    """
    if not _OTHER_ENCODING_SIGN.search(line):
        return line
    fixed: str = ftfy.fix_encoding(line)
    added = set(fixed) - set(line)
    is_credible = added <= _EXPECTED and _BESIDE_LETTERS.search(fixed) and added & _NORDIC
    return fixed if is_credible else line


def _is_plain(text: str) -> bool:
    """Return whether a text has only usual characters, so that slow rules can be skipped."""
    return bool(_PLAIN.fullmatch(text)) and not _MAY_BE_BYTES.search(text)


# --- repairs in running text ---------------------------------------------------------------------


def _normalise_once(text: str, rules: Rules) -> str:
    is_plain = _is_plain(text)
    if not is_plain:
        text = _repair_special_characters(text, rules)
    pieces = verbatim.split(text)  # every second one is code or a URL
    if not is_plain:
        pieces[::2] = [_repair_prose(piece, rules) for piece in pieces[::2]]
    pieces[::2] = [rules.note(Change.SPACES, piece, _remove_layout(piece)) for piece in pieces[::2]]
    if any("-\n" in piece and _DIVIDED_SIGN.search(piece) for piece in pieces[::2]):
        before = "".join(pieces)
        pieces[::2] = _join_divided_words(pieces[::2])
        rules.note(Change.WORDS, before, "".join(pieces))
    pieces[0] = rules.note(Change.SPACES, pieces[0], pieces[0].lstrip())
    pieces[-1] = rules.note(Change.SPACES, pieces[-1], pieces[-1].rstrip())
    return "".join(pieces)


def _repair_prose(text: str, rules: Rules) -> str:
    """Repair running text without code and URLs, line by line; return the text."""
    if _is_plain(text):
        return text
    lines = text.split("\n")
    for place, line in enumerate(lines):
        if not _is_plain(line) and line not in rules.unchanged_lines:
            lines[place] = _repair_line(line, rules)
            if lines[place] == line:
                rules.unchanged_lines.add(line)
    text = "\n".join(lines)
    if _INVISIBLE_SIGN.search(text):
        text = rules.note(Change.INVISIBLE, text, _INVISIBLE.sub("", text))
    return text


def _repair_line(line: str, rules: Rules) -> str:
    if "&" in line:
        line = rules.note(Change.ENTITIES, line, _decode_entities(line, rules.decode_entities))
    if _FORMS.search(line) and not _EAST_ASIAN.search(line):
        line = rules.note(Change.FORMS, line, fixes.fix_latin_ligatures(fixes.fix_character_width(line)))
    return rules.note(Change.COMPOSED, line, unicodedata.normalize("NFC", _MARKS.sub(r"\1", line)))


def _decode_entities(line: str, everywhere: bool) -> str:
    """Decode the HTML entities of a line; return the line.

    Entities within words are always decoded.

    Args:
        everywhere: True to decode entities outside words too, unless the line contains markup.
    """
    everywhere = everywhere and not _MARKUP.search(line)

    def decode(match: re.Match[str]) -> str:
        entity = f"&{match[1]}"
        sign: str = fixes.unescape_html(entity)
        is_escaped_twice = match[0] != entity
        before = line[match.start() - 1 : match.start()]
        after = line[match.end() : match.end() + 1]
        if sign == entity and is_escaped_twice:  # in `&amp;foo;` only `&amp;` is an entity
            return entity if everywhere or before.isalpha() else match[0]
        if sign.isalpha():
            is_in_word = before.isalpha() or after.isalpha()
        elif sign == "&":
            is_query = _ASSIGNS.match(line, match.end()) is not None
            is_in_word = before.isalpha() and after.isalpha() and not is_query
        else:
            is_in_word = False
        return sign if is_in_word or (everywhere and not is_escaped_twice) else match[0]

    return _ENTITY.sub(decode, line)


def _remove_layout(text: str) -> str:
    """Reduce white space to single spaces and single blank lines; strip each line."""
    if "  " in text or _ODD_SPACES_SIGN.search(text):
        text = _SPACES.sub(" ", text)
    lines = text.split("\n")
    if len(lines) > 1:
        text = "\n".join([lines[0].rstrip(), *[line.strip() for line in lines[1:-1]], lines[-1].lstrip()])
    return _BLANK_LINES.sub("\n\n", text) if "\n\n\n" in text else text


def _join_divided_words(texts: list[str]) -> list[str]:
    """Join the words that are divided by a hyphen at a line end.

    `a-` and `b` become `ab` or `a-b` if the document has that word elsewhere. Otherwise, the hyphen
    is kept before a capital or a digit (Sør-/Norge), and after capitals or a single letter
    (NAV-/kontor, e-/post). Before a conjunction, the hyphen stands for the rest of a compound. It
    is kept, with a space after it (barne-/og ungdomsarbeid).

    Args:
        texts: the parts of one document.
    """
    elsewhere: set[str] = set()
    for text in texts:
        undivided = _replace_divided_words(text, lambda first, second: " ")
        elsewhere.update(_WORDS.findall(undivided.lower()))

    def join(first: str, second: str) -> str:
        if second.lower() in _CONJUNCTIONS:
            return f"{first}- {second}"
        joined = first + second
        if joined.lower() in elsewhere:
            return joined
        hyphenated = f"{first}-{second}"
        last = first.rpartition("-")[2]
        keeps_hyphen = not second[0].islower() or len(last) <= 1 or last.isupper() or last[-1:].isdigit()
        if keeps_hyphen or hyphenated.lower() in elsewhere:
            return hyphenated
        return joined

    return [_replace_divided_words(text, join) for text in texts]


def _replace_divided_words(text: str, replacement: Callable[[str, str], str]) -> str:
    """Replace each word that is divided at a line end; return the text.

    Args:
        replacement: function that takes the two halves, and returns the string that replaces them.
    """
    pieces = []
    done = 0
    for match in _DIVIDED.finditer(text):
        line = text[max(done, text.rfind("\n", 0, match.start()) + 1) : match.start()]
        run = _HALF_BACKWARDS.match(line[::-1])
        assert run is not None  # it also matches the empty string
        first = _HALF_BEGINS.search(text, match.start() - run.end(), match.start())
        if first:
            half = text[first.start() : match.start()]
            pieces += [text[done : first.start()], replacement(half, match[1])]
            done = match.end()
    return "".join([*pieces, text[done:]])
