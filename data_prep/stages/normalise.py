"""Text as it was meant: encoding faults repaired, one Unicode form, no control characters, words whole, quiet white space.

Normalising twice is normalising once. Words that a line end parted are put together again: at a soft hyphen or PDFium's mark
(U+FFFE) always, at a plain hyphen by what else the document says (kommu-/nen is kommunen, barne-/og stays barne- og).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import ftfy

from data_prep.config import CorpusConfig
from data_prep.document import Document, Report

VERSION = 5

# Curly quotes are correct Norwegian typography («…», ’): ftfy must not flatten them.
_FTFY = ftfy.TextFixerConfig(uncurl_quotes=False, fix_line_breaks=True, normalization=None, explain=False)
# Of marks upon one letter, those that Unicode's Stream-Safe Text Format allows: NFC takes quadratic time to put them in order.
_MARK = "[{}]".format("".join(c for c in map(chr, range(0x300, 0x20000)) if unicodedata.combining(c)))
_MARKS = re.compile(f"({_MARK}{{30}}){_MARK}+")
_INVISIBLE = re.compile("(?:[\u00ad\ufffe][ \t]*\n[ \t]*(?=[^\\W\\d_])|[\u00ad\u200b\u200c\u200d\u2060\ufeff\ufffe])")
# The word before a hyphen at a line end is looked for from there, backwards: looked for first, it would take quadratic time.
_PARTED = re.compile(r"-[ \t]*\n[ \t]*([^\W_]\w*)")
_HALF_BACKWARDS = re.compile(r"[\w-]*")
_HALF_BEGINS = re.compile(r"\b[^\W_]")
_JOINING = frozenset(["og", "eller", "til", "samt", "men", "enn"])  # after a hyphen that stands for a word's second half
_PASSES = 5  # of ftfy and our own rules, until nothing changes; two do for all but text made to be nasty
_LINE_BREAKS = re.compile("\r\n?|[\f\x85\u2028\u2029]")
# Letters and signs of good Norwegian text, in composed form. Two beyond ASCII side by side may be bytes of another encoding.
_PLAIN = re.compile("[\t\n -%'-~æøåÆØÅéèêëóòôöäüÉÄÖÜ\u00a0§«»–—‘’“”„•…°½©®²³µ·×€]*")
_MAY_BE_BYTES = re.compile(r"[^\x00-\x7f][^\x00-\x7f]")
_WORDS = re.compile(r"[^\W_][\w-]*")
_SPACES = re.compile(r"[^\S\n]{2,}|[^\S\n ]")  # all but the single space, which stays what it is
_ODD_SPACES = re.compile(r"[^\S\n\t ]")
_BLANK_LINES = re.compile(r"\n{3,}")
# Texts without a match of these have none of those above either, and looking for these takes a tenth of the time.
_INVISIBLE_SIGN = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff\ufffe]")
_LINE_BREAK_SIGN = re.compile("[\r\f\x85\u2028\u2029]")
_ODD_SPACES_SIGN = re.compile("[{}]".format("".join(c for c in map(chr, range(2**16)) if c.isspace() and c not in "\n ")))
_PARTED_SIGN = re.compile(r"-[ \t]*\n[ \t]*[^\W_]")


def settings(config: CorpusConfig) -> dict[str, Any]:
    return {"ftfy": ftfy.__version__}


def run(documents: Iterator[Document], config: CorpusConfig, report: Report) -> Iterator[Document]:
    for document in documents:
        before = document.whole_text
        document.text = normalise(document.text)
        for turn in document.turns:
            # Plain prompts and completions meet without anything between them: the white space there is theirs.
            turn.content = repair(turn.content).strip() if turn.role else repair(turn.content)
        empty_answers = [turn for turn in document.turns if turn.target and not turn.content.strip()]
        for turn in empty_answers:
            turn.target = False  # an empty answer costs its turn, which stays as context
        if not document.whole_text.strip():
            report.drop(document, "empty")
        elif empty_answers and not any(turn.target for turn in document.turns):
            report.drop(document, "empty_answer")
        else:
            report.counts["empty_answers"] += len(empty_answers)
            report.counts["changed"] += document.whole_text != before
            document.title = normalise(document.title)
            yield document


def normalise(text: str) -> str:
    """Running text, on which layout left only noise."""
    return _settled(text, _normalise_once)


def repair(text: str) -> str:
    """A turn of a conversation: its indents and blank lines are lists, tables and code, and stay."""
    return _settled(text, _repair_once)


def _settled(text: str, step: Callable[[str, set[str]], str]) -> str:
    """One repair can lay bare another fault: until nothing changes, or, of text that never settles, a few times."""
    good: set[str] = set()  # lines that ftfy leaves as they are
    for _ in range(_PASSES):
        before, text = text, step(text, good)
        if text == before:
            break
    return text


def _normalise_once(text: str, good: set[str]) -> str:
    text = _fixed(text, good)
    if "  " in text or _ODD_SPACES_SIGN.search(text):
        text = _SPACES.sub(" ", text)
    text = _dehyphenated("\n".join([line.strip() for line in text.split("\n")]))
    return (_BLANK_LINES.sub("\n\n", text) if "\n\n\n" in text else text).strip()


def _repair_once(text: str, good: set[str]) -> str:
    text = _fixed(text, good)
    return _ODD_SPACES.sub(" ", text) if _ODD_SPACES_SIGN.search(text) else text


def _fixed(text: str, good: set[str]) -> str:
    """Repaired by ftfy line by line, but for the lines that are `good`; what it finds good, it adds."""
    if _is_plain(text):
        return text
    lines = (_LINE_BREAKS.sub("\n", text) if _LINE_BREAK_SIGN.search(text) else text).split("\n")
    for place, line in enumerate(lines):
        if not _is_plain(line) and line not in good:
            lines[place] = _mended(line)
            if lines[place] == line:
                good.add(line)
    text = "\n".join(lines)
    return _INVISIBLE.sub("", text) if _INVISIBLE_SIGN.search(text) else text


def _mended(line: str) -> str:
    return unicodedata.normalize("NFC", _MARKS.sub(r"\1", ftfy.fix_text(line, _FTFY)))


def _is_plain(text: str) -> bool:
    """True if ftfy would change nothing, which takes it a hundred times as long to say (tested against it)."""
    return bool(_PLAIN.fullmatch(text)) and not _MAY_BE_BYTES.search(text)


def _dehyphenated(text: str) -> str:
    """Put words together that a hyphen parts at a line end.

    Of `a-` and `b`, `ab` or `a-b` is right if the document has it elsewhere. Else the hyphen belongs to the word before a capital
    or a digit (Sør-/Norge), after capitals or a single letter (NAV-/kontor, e-/post), and stands for what is left out before `og`
    and its kin (barne-/og ungdomsarbeid).
    """
    if "-\n" not in text or not _PARTED_SIGN.search(text):
        return text
    elsewhere = set(_WORDS.findall(_parted_replaced(text, lambda first, second: " ").lower()))

    def whole(first: str, second: str) -> str:
        joined, hyphenated = first + second, f"{first}-{second}"
        if second.lower() in _JOINING:
            return f"{first}- {second}"
        if joined.lower() in elsewhere:
            return joined
        last = first.rpartition("-")[2]
        belongs = not second[0].islower() or len(last) <= 1 or last.isupper() or last[-1:].isdigit()
        return hyphenated if belongs or hyphenated.lower() in elsewhere else joined

    return _parted_replaced(text, whole)


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
