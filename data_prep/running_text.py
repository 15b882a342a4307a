"""Selection of a text's sentences, for the rules of stage quality about words.

Forms, laws, letters and documentation contain more than sentences: lines to fill in, merge fields,
tables, addresses, examples of code. These do not make a document a bad one, so the rules are
applied to its sentences only, if there are enough of them. Other texts (a table, a program, a list
of addresses) are judged whole.
"""

from __future__ import annotations

import re

LONGEST_FIELD = 60  # characters between the braces of a merge field
# Sentences are enough if they have at least so many words, and not fewer words than the lines of
# code.
MIN_WORDS = 20
MIN_FUNCTION_WORDS = 4

# Dots, ellipses and lines to write on, or that lead to a page number.
_LEADER = re.compile(
    r"[.·_‥\u2024]{4,}|[…⋯]{2,}[.…]*|(?:[.…·_⋯][ \t]){3,}[.…·_⋯]?|-{5,}|_{2,}|[.]{3}(?=[ \t]*\d+$)",
    re.MULTILINE,
)
_NAME = rf"[^\W\d_][\w .:/-]{{0,{LONGEST_FIELD}}}"  # a field's name: words, also joined by dots
_HTML = (
    "a|abbr|article|aside|b|blockquote|body|br|button|code|dd|div|dl|dt|em|footer|form|h[1-6]|head|header"
    "|hr|html|i|img|input|label|li|link|main|meta|nav|ol|option|p|pre|script|section|select|small|span"
    "|strong|style|sub|sup|svg|table|tbody|td|textarea|th|thead|title|tr|u|ul|xml"
)
# Merge fields {felt}, {{ felt }}, ${felt}, {0}, <felt>, [felt], [ ] and %felt%, references [12] and
# addresses <kari@example.no>; but not code such as y[i] = {x: 1}; or <div>.
_FIELD = re.compile(
    rf"(?<![=)\]])\$?\{{{{?[#/^]?[ ]?(?:{_NAME}|(?<![\w^_]\{{)\d{{1,2}})[ ]?"
    rf"(?:\\[^{{}}\n]{{0,60}})?\}}}}?(?![ ]*[\{{:;=])"
    rf"|(?<![\w)\]])\[\[?[ ]?(?:{_NAME}|[xX]?)[ ]?\]\]?(?!\(|[ ]*[=\[{{])|%{_NAME}%"
    rf"|<<?(?!(?:{_HTML})\b){_NAME}>>?(?!.{{0,200}}</)"
    rf"|\[\d{{1,3}}(?:[,–-][ ]?\d{{1,3}})*\]|<[^<>\s]+@[^<>\s]+>|<https?://[^<>\s]+>"
)
_LINK = re.compile(r"\[([^\[\]\n]{1,300})\]\([^()\s]*\)")  # Markdown's [text](address)
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+|\b[\w.+-]+@[\w-]+\.[\w.-]+")
_FENCE = re.compile(r"^[ \t]*(```|~~~).*?^[ \t]*\1[ \t]*$", re.MULTILINE | re.DOTALL)
_CODE = '{}<>\\;=$^~`[]"'
_IS_WORD = re.compile(r"[^\W\d_]{2,}")
_LEADER_PARTS = ("..", "…", "__", ". .", "--", "··", "_ _")  # one of them is in any text that has a leader


def replace_blanks(text: str, field: str = "felt") -> str:
    """Return a text without lines to write on, and with `field` for each merge field."""
    if any(part in text for part in _LEADER_PARTS):
        text = _LEADER.sub(" ", text)
    if any(sign in text for sign in "{[<%"):
        text = _LINK.sub(r"\1", text)
        text = _FIELD.sub(field, text)
    return text


def remove_code_blocks(text: str) -> str:
    """Return a text without the blocks that Markdown marks as code."""
    if "```" not in text and "~~~" not in text:
        return text
    return _FENCE.sub("\n", text)


def select_sentences(text: str, function_words: frozenset[str]) -> str:
    """Return the sentences of a text without blanks; the whole text if they are too few."""
    kept = []
    num_code_words = 0
    for line in remove_code_blocks(text).split("\n"):
        if _is_row(line):
            continue
        if _is_code(line):
            num_code_words += len(line.split())
        else:
            kept.append(line)
    running = "\n".join(kept)
    if "://" in running or "@" in running or "www." in running:
        running = _ADDRESS.sub(" ", running)
    tokens = [token.strip(".,;:!?()").lower() for token in running.split()]
    num_words = sum(_IS_WORD.fullmatch(token) is not None for token in tokens)
    num_function_words = len(function_words.intersection(tokens))
    if num_words < max(MIN_WORDS, num_code_words) or num_function_words < MIN_FUNCTION_WORDS:
        return text
    return running


def _is_row(line: str) -> bool:
    """Return whether a line is a row of a table: fewer than half of its cells are words."""
    cells = line.replace("|", " ").split()
    if len(cells) < 3:
        return line.count("|") >= 2
    return 2 * sum(_IS_WORD.match(cell) is not None for cell in cells) < len(cells)


def _is_code(line: str) -> bool:
    """Return whether a line is code or data: a program, JSON, XML, commands."""
    signs = sum(map(line.count, _CODE))
    return signs >= 2 and signs > 0.08 * len(line)
