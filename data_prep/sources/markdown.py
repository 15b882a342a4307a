"""Markdown documentation, also as Jekyll builds sites from it: one document a file, a folder's files are a group.

Kept: headings with their marks, lists, tables, code as it stands. Out: front matter (its title becomes the first heading if the
text has none of its own), comments, HTML tags, template tags around their text, contents; links and pictures are reduced
to their text, rules of tables to their least. A paragraph is one line, as on the page, wherever its source broke it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.config import SourceConfig
from data_prep.document import Document, Report, Unreadable
from data_prep.sources import claims
from data_prep.sources.files import contents, decode, find, stem

SUFFIXES = (".md", ".markdown", ".mdx")

_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_KEY = re.compile(r"^(\w+)[ \t]*:[ \t]*([^ \t\n].*)$", re.MULTILINE)
# What may run on and on ends at its own next opening, or is bounded: a page of nothing but openings must not take hours.
_HIGHLIGHT = re.compile(
    r"\{%-?\s{0,20}highlight\s{0,20}(\w*+)[^%]{0,200}%\}((?:(?!\{%-?\s{0,20}(?:end)?highlight).){0,50000}+)"
    r"\{%-?\s{0,20}endhighlight\s{0,20}-?%\}", re.DOTALL,
)  # fmt: skip
# A fence closes with at least as many marks as it opened with; one that never closes runs to the end.
_FENCE = re.compile(r"^([ \t]*)(`{3,}+|~{3,}+)[^\n]*+\n.*?(?:^[ \t]*\2[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_INLINE_CODE = re.compile(r"(?<!`)(`{1,20}+)(?!`).{1,2000}?(?<!`)\1(?!`)")
_ITEM = re.compile(r"\s*(?:[-*+]|\d+[.)])[ \t]")
_ALONE = re.compile(
    r"\s*(?:[#>|<:{]|\[[^\]\n]+\]:|=+\s*$|-+\s*$|\*{3,}|_{3,})"
)  # begins what no line can go on with, or be part of
_TABLE_RULE = re.compile(r"^(?=.*\|)[ \t|:-]+$", re.MULTILINE)
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_REDUCTIONS = (
    (re.compile(r"^[ \t]*(?:[-*+]|\d+\.)[^\n]*\n[ \t]*\{:[ \t]*toc[^}\n]*\}[ \t]*$", re.MULTILINE), ""),  # kramdown's contents
    (re.compile(r"\{%-?\s{0,20}include\s[^%]{0,200}?content\s{0,20}=\s{0,20}\"((?:(?!\{%).){0,4000}?)\"\s{0,20}-?%\}",
                re.DOTALL), r"\1"),
    (re.compile(r"\{[%{](?:(?!\{[%{]).){0,1000}?[%}]\}", re.DOTALL), ""),
    (re.compile(r"^[ \t]*\[[^\]\n]+\]:[ \t]+\S+.*$", re.MULTILINE), ""),  # what [text][name] refers to
    (re.compile(r"!\[((?:(?!!\[)[^\]]){0,1000})\]\((?:[^()]|\([^()]{0,500}\)){0,2000}\)(?:\{[^{}\n]*\})?"), r"\1"),
    (re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]{0,200}\]){1,1000})\]"
                r"\((?:[^()\n]|\([^()\n]{0,500}\)){0,2000}\)(?:\{[^{}\n]*\})?"), r"\1"),
    (re.compile(r"\[([^\[\]\n]+)\]\[[^\[\]\n]*\]"), r"\1"),
    (re.compile(r"<(https?://[^<>\s]+|[\w.+-]+@[\w.-]+)>"), r"\1"),
    (re.compile(r"(?<![ \t])[ \t]*+\{[:#][^{}\n]*\}[ \t]*$", re.MULTILINE), ""),  # kramdown's attributes
    (re.compile(r"<code>((?:(?!<code>).){0,20000}?)</code>", re.DOTALL | re.IGNORECASE), r"`\1`"),
    (re.compile(r"<(script|style)\b(?:(?!<\1\b).){0,20000}?</\1>", re.DOTALL | re.IGNORECASE), ""),
    (re.compile(r"</?(?:a|abbr|b|blockquote|body|br|center|dd|details|div|dl|dt|em|figcaption|figure|font|h[1-6]|hr|html|i|iframe|"
                r"img|kbd|li|nav|nobr|notextt?ile|ol|p|pre|s|section|small|span|strong|sub|summary|sup|table|tbody|td|th|thead|tr|u|ul|video)"
                r"(?=[\s/>])[^<>]*>", re.IGNORECASE), ""),
)  # fmt: skip


def files(source: SourceConfig) -> list[Path]:
    return find(source, SUFFIXES)


def read(name: str, source: SourceConfig, report: Report, paths: Sequence[Path]) -> Iterator[Document]:
    for where, raw in contents(name, source, report, paths, SUFFIXES):
        with report.quarantining(where):
            text, front = reduce(decode(raw, report))
            heading = re.match(r"#+[ \t]+(.+)", text)
            title = front.get("title") or (heading[1] if heading else "")
            if title and not heading:
                text = f"# {title}\n\n{text}"
            place = stem(where)
            yield Document(
                id=place, text=text, title=title, source=name, license=source.license, date=claims.date(front.get("date")),
                language=claims.language(front.get("lang") or front.get("language")), group=place.rpartition("/")[0] or place,
            )  # fmt: skip


def reduce(text: str) -> tuple[str, dict[str, str]]:
    """What a reader of the page would read, and its front matter."""
    front: dict[str, str] = {}
    text = text.replace("\r\n", "\n")
    if match := _FRONT.match(text):
        front = {key.lower(): value.rstrip(" \t").strip("\"'") for key, value in _KEY.findall(match[1])}
        text = text[match.end() :]
    text = _HIGHLIGHT.sub(lambda match: f"```{match[1]}\n{match[2].strip(chr(10))}\n```", text)
    pieces, at = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [_prose(text[at : fence.start()]), fence[0]]
        at = fence.end()
    text = "".join([*pieces, _prose(text[at:])])
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip(), front


def _prose(text: str) -> str:
    code: list[str] = []

    def keep(match: re.Match[str]) -> str:
        code.append(match[0])
        return f"\0{len(code) - 1}\0"

    text = _INLINE_CODE.sub(keep, _unwrapped(text.replace("\0", "")))
    # In a table row a line break would end the row.
    text = "\n".join(_LINE_BREAK.sub(" " if line.lstrip().startswith("|") else "\n", line) for line in text.split("\n"))
    text = _without_comments(text)
    for pattern, replacement in _REDUCTIONS:
        text = pattern.sub(replacement, text)
    try:
        text = html.unescape(text)
    except ValueError:  # of thousands of digits
        raise Unreadable("a numeric reference to no character") from None
    text = _TABLE_RULE.sub(lambda match: re.sub("-{4,}", "---", match[0]), text)
    return re.sub(r"\0(\d+)\0", lambda match: code[int(match[1])], text)


def _unwrapped(text: str) -> str:
    """Each paragraph and list item as one line: a line end in it is a space, unless two spaces or a backslash stand before it."""
    lines: list[list[str]] = []  # of pieces each
    goes_on = blank = code = False
    for line in text.split("\n"):
        alone = "|" in line or _ALONE.match(line) is not None
        item = not alone and _ITEM.match(line) is not None
        code = (code or blank) and not item and line.startswith(("    ", "\t"))
        blank = not line.strip()
        if goes_on and not (blank or alone or item):
            lines[-1][-1] = lines[-1][-1].rstrip()
            lines[-1].append(line.lstrip())
        else:
            lines.append([line])
        goes_on = not (blank or alone or code or line.endswith(("  ", "\\")))
    return "\n".join(map(" ".join, lines))


def _without_comments(text: str) -> str:
    """A comment that never ends is none."""
    pieces, at = [], 0
    while (start := text.find("<!--", at)) >= 0 and (end := text.find("-->", start)) >= 0:
        pieces.append(text[at:start])
        at = end + 3
    return "".join([*pieces, text[at:]])
