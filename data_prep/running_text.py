"""Selection of the sentences of a text. Stage quality applies its rules on words to them.

Forms, laws, letters and documentation contain more than sentences: fill-in lines, merge fields,
tables, addresses and examples of code. These do not make a document a bad one. Therefore the rules
are applied to the sentences only. They are applied to the whole text if it has too few sentences,
such as a table, a program or a list of addresses.
"""

from __future__ import annotations

import re

LONGEST_FIELD = 60  # characters between the braces of a merge field
# A text has enough sentences if they have at least MIN_WORDS words and MIN_FUNCTION_WORDS different
# function words, and no fewer words than the lines of code.
MIN_WORDS = 20
MIN_FUNCTION_WORDS = 4

# Fill-in lines of dots, ellipses, dashes or underscores, and dots before a page number.
_LEADER = re.compile(
    r"[.·_‥\u2024]{4,}|[…⋯]{2,}[.…]*|(?:[.…·_⋯][ \t]){3,}[.…·_⋯]?|-{5,}|_{2,}|[.]{3}(?=[ \t]*\d+$)",
    re.MULTILINE,
)
# The name of a merge field: words and numbers, also joined by characters such as a dot.
_NAME = rf"[^\W\d_][\w .:/-]{{0,{LONGEST_FIELD}}}"
_HTML = (
    "a|abbr|article|aside|b|blockquote|body|br|button|code|dd|div|dl|dt|em|footer|form|h[1-6]|head|header"
    "|hr|html|i|img|input|label|li|link|main|meta|nav|ol|option|p|pre|script|section|select|small|span"
    "|strong|style|sub|sup|svg|table|tbody|td|textarea|th|thead|title|tr|u|ul|xml"
)
# Merge fields ({felt}, {{ felt }}, ${felt}, {0}, <felt>, [felt], [ ], %felt%), references such as
# [12], and addresses such as <kari@example.no>. Code such as `y[i] = {x: 1};` or <div> does not match.
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
# Any text in which _LEADER matches contains one of these.
_LEADER_PARTS = ("..", "…", "__", ". .", "--", "··", "_ _")


def replace_blanks(text: str, field: str = "felt") -> str:
    """Remove fill-in lines (`.....`, `_____`) from a text, and replace its merge fields.

    A Markdown link is replaced by its text.

    Args:
        field: the string that replaces each merge field. Such a field is the place of a value, for
            example `[name]` or `{{ name }}`.
    """
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
    """Return the sentences of a text, without tables, code and addresses.

    If the sentences have too few words (see MIN_WORDS), the whole text is returned.

    Args:
        text: a text that `replace_blanks` returned.
        function_words: function words in lower case.
    """
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
    """Return whether a line is a row of a table.

    White space and "|" divide a line into cells. A line with at least three cells is a row if fewer
    than half of them begin with two letters. A line with fewer cells is a row if it contains
    at least two "|".
    """
    cells = line.replace("|", " ").split()
    if len(cells) < 3:
        return line.count("|") >= 2
    return 2 * sum(_IS_WORD.match(cell) is not None for cell in cells) < len(cells)


def _is_code(line: str) -> bool:
    """Return whether a line is code or data, such as a program, JSON, XML or commands."""
    signs = sum(map(line.count, _CODE))
    return signs >= 2 and signs > 0.08 * len(line)
