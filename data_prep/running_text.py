"""What of a text is running text, for the rules of stage quality that judge texts by their words.

Forms, laws, letters and documentation hold more than sentences: lines to fill in, merge fields, tables,
addresses, examples of code. None of that says that a document is no text, so rules that measure words and
characters look at the sentences alone, if there are enough of them. A text without any (a table, a program, a
list of addresses) is judged as it stands.
"""

from __future__ import annotations

import re

LONGEST_FIELD = 60  # characters between the braces of a merge field
FEWEST_WORDS, FEWEST_FUNCTION_WORDS = (
    20,
    4,
)  # of sentences; they also have as many words as the lines of code beside them

# dots, ellipses, lines and spaced dots to write on or that lead to a page number
_LEADER = re.compile(
    r"[.·_‥\u2024]{4,}|[…⋯]{2,}[.…]*|(?:[.…·_⋯][ \t]){3,}[.…·_⋯]?|-{5,}|_{2,}|[.]{3}(?=[ \t]*\d+$)",
    re.MULTILINE,
)
_NAME = rf"[^\W\d_][\w .:/-]{{0,{LONGEST_FIELD}}}"  # of a field: words, perhaps with dots between them
_HTML = (
    "a|abbr|article|aside|b|blockquote|body|br|button|code|dd|div|dl|dt|em|footer|form|h[1-6]|head|header|hr|html|i|img|input|label|"
    "li|link|main|meta|nav|ol|option|p|pre|script|section|select|small|span|strong|style|sub|sup|svg|table|tbody|td|textarea|th|"
    "thead|title|tr|u|ul|xml"
)
# {felt}, {{ felt }}, ${felt}, {0}, <felt>, [felt], [ ] and %felt%, but neither y[i] = {x: 1}; nor <div>;
# also [12] and <kari@example.no>
_FIELD = re.compile(
    rf"(?<![=)\]])\$?\{{{{?[#/^]?[ ]?(?:{_NAME}|(?<![\w^_]\{{)\d{{1,2}})[ ]?(?:\\[^{{}}\n]{{0,60}})?\}}}}?(?![ ]*[\{{:;=])"
    rf"|(?<![\w)\]])\[\[?[ ]?(?:{_NAME}|[xX]?)[ ]?\]\]?(?!\(|[ ]*[=\[{{])|%{_NAME}%"
    rf"|<<?(?!(?:{_HTML})\b){_NAME}>>?(?!.{{0,200}}</)"
    rf"|\[\d{{1,3}}(?:[,–-][ ]?\d{{1,3}})*\]|<[^<>\s]+@[^<>\s]+>|<https?://[^<>\s]+>"
)
_LINK = re.compile(r"\[([^\[\]\n]{1,300})\]\([^()\s]*\)")  # of Markdown: its words stay
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+|\b[\w.+-]+@[\w-]+\.[\w.-]+")
_FENCE = re.compile(r"^[ \t]*(```|~~~).*?^[ \t]*\1[ \t]*$", re.MULTILINE | re.DOTALL)
_CODE = '{}<>\\;=$^~`[]"'
_IS_WORD = re.compile(r"[^\W\d_]{2,}")


def without_blanks(text: str, field: str = "felt") -> str:
    """Return a text without lines to write on, and with `field` for each merge field and reference in
    brackets."""
    if (
        ".." in text
        or "…" in text
        or "__" in text
        or ". ." in text
        or "--" in text
        or "··" in text
        or "_ _" in text
    ):
        text = _LEADER.sub(" ", text)
    if any(sign in text for sign in "{[<%"):
        text = _LINK.sub(r"\1", text)
        text = _FIELD.sub(field, text)
    return text


def without_examples(text: str) -> str:
    """Return a text without the blocks that Markdown marks as code."""
    return _FENCE.sub("\n", text) if "```" in text or "~~~" in text else text


def sentences(text: str, function_words: frozenset[str]) -> str:
    """Return the running text of a text without blanks, or all of it where that is too little to be judged
    by."""
    kept, code_words = [], 0
    for line in without_examples(text).split("\n"):
        if _is_row(line):
            continue
        if _is_code(line):
            code_words += len(line.split())
        else:
            kept.append(line)
    running = "\n".join(kept)
    if "://" in running or "@" in running or "www." in running:
        running = _ADDRESS.sub(" ", running)
    words = [word.strip(".,;:!?()").lower() for word in running.split()]
    full = [word for word in words if _IS_WORD.fullmatch(word)]
    enough = (
        len(full) >= max(FEWEST_WORDS, code_words)
        and len(function_words.intersection(words)) >= FEWEST_FUNCTION_WORDS
    )
    return running if enough else text


def _is_row(line: str) -> bool:
    """True of a row of a table: more of its cells are numbers or signs than words."""
    cells = line.replace("|", " ").split()
    if len(cells) < 3:
        return line.count("|") >= 2
    return 2 * sum(_IS_WORD.match(cell) is not None for cell in cells) < len(cells)


def _is_code(line: str) -> bool:
    """True of a line of a program or of data: JSON, XML, commands."""
    signs = sum(map(line.count, _CODE))
    return signs >= 2 and signs > 0.08 * len(line)
